//! The writer without its thread: a full disk, and batches composed by tests.

use std::sync::atomic::AtomicU64;

use tagfast_domain::{ContentKey, Tag, Version, WriteId};
use tagfast_resilience::ManualClock;
use tokio::sync::oneshot;

use super::*;
use crate::directory::{self, Directory, OpenOptions};
use crate::queue::Queue;
use crate::queue::tests::job_of;
use crate::retention::ExpireBytes;

type Waiting = oneshot::Receiver<Result<WriteAnswer, StoreError>>;

struct Fixture {
    writer: Writer,
    _open: (tempfile::TempDir, directory::DirectoryLock),
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().expect("a directory");
    let clock = Arc::new(ManualClock::new(1_800_000_000_000));
    let mut options = OpenOptions::new(dir.path().join("data"), Arc::clone(&clock) as _);
    options.files = 1;
    let Directory { lock, epoch, mut writers, .. } =
        directory::open(&options).expect("a new directory");
    let conn = writers.remove(0);
    let file = Arc::new(FileState {
        index: 0,
        queue: Queue::default(),
        newest: AtomicU64::new(0),
        retained_from: AtomicU64::new(0),
        keys: Arc::default(),
    });
    let retention = Retention::new(0, ExpireBytes(2 << 30));
    let (committed, _) = watch::channel(0);
    let writer = Writer::new(file, conn, epoch, Limits::default(), clock, committed, retention);
    Fixture { writer, _open: (dir, lock) }
}

fn key(id: &str) -> ContentKey {
    ContentKey::parse("t", "doc", id).expect("a content")
}

fn job(id: u128, content: &str, tags: usize) -> (WriteJob, Waiting) {
    let tags = (0..tags).map(|n| Tag::parse(&format!("{id:x}-{n:050}")).expect("a tag")).collect();
    job_of(WriteId(id.to_be_bytes()), key(content), tags)
}

impl Fixture {
    fn run(&mut self, jobs: Vec<(WriteJob, Waiting)>) -> Vec<Result<WriteAnswer, StoreError>> {
        let (writes, waiting): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
        self.writer.run_batch(Batch { writes, ..Batch::default() });
        waiting.into_iter().map(|mut w| w.try_recv().expect("an answer")).collect()
    }

    fn count(&self, table: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        self.writer.conn.query_row(&sql, [], |row| row.get(0)).expect("a count")
    }

    fn version(&self, content: &str) -> Version {
        let bytes = key(content).to_bytes();
        let stored = stored_key(LogicalShard::of(&key(content)), &bytes);
        let doc = rows::document(&self.writer.conn, &stored).expect("a read");
        doc.map_or(Version::NONE, |d| d.expect("a document").version)
    }
}

#[test]
fn a_full_disk_refuses_the_batch_writes_nothing_and_heals_by_itself() {
    let mut f = fixture();
    let before = f.run(vec![job(1, "page", 3)]).remove(0).expect("written");
    let pages: i64 =
        f.writer.conn.pragma_query_value(None, "page_count", |r| r.get(0)).expect("a count");
    f.writer.conn.pragma_update(None, "max_page_count", pages + 1).expect("a limit");

    let jobs = || {
        (10..40u128)
            .map(|n| job(n, &format!("c{}", n % 7), 80))
            .chain([job(50, "page", 1)])
            .collect()
    };
    for answer in f.run(jobs()) {
        let error = answer.expect_err("there is no space");
        assert!(matches!(error, StoreError::DiskFull), "{error}");
        assert!(!error.is_outcome_unknown() && error.is_retryable());
    }
    assert!(f.writer.conn.is_autocommit(), "rolled back");
    assert_eq!((f.count("content"), f.count("bus_event")), (1, 1), "nothing by halves");
    assert_eq!(f.version("page"), before.version);
    assert_eq!(f.writer.file.newest.load(Ordering::Acquire), 1);
    // What needs no space is still answered.
    assert!(f.run(vec![job(1, "page", 3)]).remove(0).expect("known").repeated);

    f.writer.conn.pragma_update(None, "max_page_count", 1_000_000).expect("space");
    let answers = f.run(jobs());
    let refused = answers.iter().filter(|a| a.is_err()).count();
    assert!(answers.iter().any(Result::is_ok), "it works again by itself");
    for error in answers.iter().filter_map(|a| a.as_ref().err()) {
        assert!(matches!(error, StoreError::Refused(_)), "only the limit of tags refuses: {error}");
    }
    assert!(refused > 0 && f.version("page") > before.version);
    assert_eq!(f.count("bus_event"), 1 + 8, "one event per content of the batch");
    assert_eq!(
        f.writer.file.newest.load(Ordering::Acquire),
        9,
        "the failed batch used no position"
    );
}

#[test]
fn a_damaged_document_fails_its_own_writes_only() {
    let mut f = fixture();
    f.run(vec![job(1, "good", 1), job(2, "bad", 1)]);
    let stored = stored_key(LogicalShard::of(&key("bad")), &key("bad").to_bytes());
    f.writer
        .conn
        .execute("UPDATE content SET doc = x'FF00' WHERE k = ?1", [stored])
        .expect("damaged");
    let answers = f.run(vec![job(3, "bad", 1), job(4, "good", 1), job(5, "bad", 1)]);
    assert!(matches!(answers[0], Err(StoreError::Damaged { .. })));
    assert!(answers[1].is_ok());
    assert!(matches!(answers[2], Err(StoreError::Damaged { .. })));
}

#[test]
fn full_durability_is_back_after_offsets_alone() {
    let mut f = fixture();
    let synchronous = |f: &Fixture| -> i64 {
        f.writer.conn.pragma_query_value(None, "synchronous", |r| r.get(0)).expect("a number")
    };
    assert_eq!(synchronous(&f), 2);
    let offsets = BTreeMap::from([(
        ConsumerGroup("g"),
        BusPosition {
            next: 5,
            publisher_epochs: tagfast_events::PublisherEpochs::embedded(1),
            anchor: None,
        },
    )]);
    f.writer.run_batch(Batch { offsets, ..Batch::default() });
    assert_eq!((synchronous(&f), f.count("bus_offset")), (2, 1));
    f.run(vec![job(1, "page", 1)]).remove(0).expect("written");
}

#[test]
fn ids_pushed_out_of_a_document_are_still_known() {
    let mut f = fixture();
    let first = f.run(vec![job(1, "page", 1)]).remove(0).expect("written");
    for n in 2..30 {
        f.run(vec![job(n, "page", 1)]).remove(0).expect("written");
    }
    assert!(f.count("applied") > 0);
    let again = f.run(vec![job(1, "page", 1)]).remove(0).expect("answered");
    assert!(again.repeated && again.version == first.version && again.added == first.added);
    let other = f.run(vec![job(1, "page", 2)]).remove(0);
    assert!(matches!(other, Err(StoreError::Refused(tagfast_domain::Refusal::WriteIdReused))));
}

/// The process may have forgotten, or believe otherwise: the file knows, and corrects it.
#[test]
fn a_key_of_the_file_is_refused_and_the_memory_corrected() {
    let mut f = fixture();
    let (first, _first_waits) = job(1, "page", 1);
    let (other, _other_waits) = job(1, "other", 1);
    let [first, other] = [first, other].map(|job| job.request.keyed.expect("a key"));
    f.run(vec![job(1, "page", 1)]).remove(0).expect("written");
    let now = f.writer.clock.now_ms();
    assert!(f.writer.file.keys.bind(&other, now), "a process that does not know the first");
    let jobs = vec![job(1, "other", 1), job(2, "other", 1), job(1, "page", 1)];
    let mut answers = f.run(jobs).into_iter();
    let refused = answers.next().expect("an answer").expect_err("the key is bound");
    assert!(matches!(refused, StoreError::Refused(tagfast_domain::Refusal::KeyReused)));
    assert!(answers.next().expect("an answer").expect("written").changed, "it disturbs no other");
    assert!(answers.next().expect("an answer").expect("answered").repeated);
    assert!(f.writer.file.keys.bind(&first, now), "the file knew better");
    assert_eq!(f.count("idempotency_key"), 2);
}
