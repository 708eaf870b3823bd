//! The promises of every book of dead letters, kept by this one, also after a stop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, EpochId, Version};
use tagfast_events::conformance::letters::{LetterHarness, exhausted};
use tagfast_events::{
    Clerk, Consumer, Cooldown, DeadLetter, Group, Job, LetterBook, LetterFilter, LetterState,
    NewJob, Partition, Positions, RecordVerdict, RuntimeOptions, Sink, SinkError, SinkRecord,
    Start,
};
use tagfast_resilience::SystemClock;
use tagfast_store_embedded::EmbeddedStore;
use tagfast_testkit::wait_for_condition_async;

use crate::support::{Fixture, NOW, add, key, records, write};

const PATIENCE: Duration = Duration::from_secs(30);

/// Opens the store anew for everybody who asks for the book.
struct Harness {
    fixture: Fixture,
    store: Mutex<Option<Arc<EmbeddedStore>>>,
}

impl Harness {
    fn new() -> Self {
        Self { fixture: Fixture::new(), store: Mutex::new(None) }
    }

    fn reopened(&self) -> Arc<EmbeddedStore> {
        let mut store = self.store.lock().expect("no panic");
        if let Some(store) = store.take() {
            store.close();
        }
        let opened = self.fixture.open();
        *store = Some(Arc::clone(&opened));
        opened
    }
}

#[async_trait]
impl LetterHarness for Harness {
    async fn book(&self) -> Arc<dyn LetterBook> {
        self.reopened().letters()
    }

    async fn park(&self, letters: &[DeadLetter]) {
        let bus = self.reopened().bus();
        for letter in letters {
            bus.park(letter).await.expect("parked");
        }
    }
}

tagfast_events::letters_suite! { Harness::new() }

/// Keeps the newest version of each content, and can forget some.
#[derive(Default)]
struct Newest {
    versions: Mutex<BTreeMap<ContentKey, Version>>,
    refuses: AtomicBool,
}

impl Newest {
    fn versions(&self) -> MutexGuard<'_, BTreeMap<ContentKey, Version>> {
        self.versions.lock().expect("no panic under the lock")
    }
}

#[async_trait]
impl Sink for Newest {
    fn group(&self) -> Group {
        Group::INDEXER
    }

    async fn start(&self, _: EpochId, _: &[Partition]) -> Result<Start, SinkError> {
        Ok(Start::Committed)
    }

    async fn apply(&self, records: &[SinkRecord]) -> Result<Vec<RecordVerdict>, SinkError> {
        let mut versions = self.versions();
        let refuses = self.refuses.load(Ordering::Relaxed);
        let judge = |record: &SinkRecord| {
            if refuses {
                return RecordVerdict::Poison { code: "refused", message: "not today".to_owned() };
            }
            let known = versions.entry(record.event.key.clone()).or_default();
            if *known >= record.event.version {
                return RecordVerdict::Superseded;
            }
            *known = record.event.version;
            RecordVerdict::Applied
        };
        Ok(records.iter().map(judge).collect())
    }

    async fn flush(&self) -> Result<(), SinkError> {
        Ok(())
    }

    async fn versions(&self, keys: &[ContentKey]) -> Result<Vec<Option<Version>>, SinkError> {
        let versions = self.versions();
        Ok(keys.iter().map(|key| versions.get(key).copied()).collect())
    }

    async fn advance(&self, positions: &Positions) -> Result<Positions, SinkError> {
        Ok(positions.clone())
    }

    async fn rebuild(
        &self,
        _: &Positions,
        _: EpochId,
        _: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), SinkError> {
        Ok(())
    }

    async fn close(&self) -> Result<(), SinkError> {
        Ok(())
    }
}

/// A store with letters of every one of its contents, a consumer that has applied them, and who
/// replays.
struct Desk {
    store: Arc<EmbeddedStore>,
    sink: Arc<Newest>,
    consumer: Arc<Consumer>,
    contents: usize,
}

impl Desk {
    async fn new(fixture: &Fixture, contents: usize) -> Self {
        let store = fixture.open();
        let keys: Vec<ContentKey> = (0..contents).map(|n| key("t", &format!("p{n}"))).collect();
        for key in &keys {
            write(&store, add(key, &["a"])).await;
        }
        let sink = Arc::new(Newest::default());
        let bus = store.bus();
        for record in records(&bus, Group("reader"), &Positions::new()).await {
            bus.park(&exhausted(record, NOW)).await.expect("parked");
        }
        let clock = Arc::new(SystemClock);
        let consumer =
            Consumer::spawn(bus, Arc::clone(&sink) as _, RuntimeOptions::default(), clock);
        wait_for_condition_async("the consumer", PATIENCE, || async {
            let known = sink.versions().len();
            if known == contents { Ok(()) } else { Err(format!("{known} of {contents}")) }
        })
        .await;
        Self { store, sink, consumer: Arc::new(consumer), contents }
    }

    fn clerk(&self) -> Clerk {
        Clerk::spawn(self.store.letters(), Arc::clone(&self.consumer), Arc::new(SystemClock))
    }

    async fn replay(&self, id: &str, dry_run: bool) -> Job {
        let book = self.store.letters();
        let job = NewJob { id: id.to_owned(), dry_run, rate: 20_000, at: NOW };
        book.begin(&job, &LetterFilter::default()).await.expect("a job");
        wait_for_condition_async("the job", PATIENCE, || async {
            let job = book.job(id).await.map_err(|e| e.to_string())?.ok_or("no job")?;
            if job.left() == 0 { Ok(job) } else { Err(format!("{job:?}")) }
        })
        .await
    }
}

/// CR6: a dry run says what a replay does, a second replay changes nothing, and two who replay at
/// once do not disturb each other.
#[tokio::test(flavor = "multi_thread")]
async fn cr6_a_second_replay_changes_nothing() {
    let fixture = Fixture::new();
    let desk = Desk::new(&fixture, 600).await;
    let all = desk.sink.versions().clone();
    // Every third content is as if it had never been applied.
    let lost: Vec<ContentKey> = all.keys().step_by(3).cloned().collect();
    desk.sink.versions().retain(|key, _| !lost.contains(key));
    let (clerk, other) = (desk.clerk(), desk.clerk());
    let (missing, there) = (lost.len() as u64, (desk.contents - lost.len()) as u64);

    let dry = desk.replay("dry", true).await;
    assert_eq!(
        (dry.letters, dry.applied, dry.superseded, dry.failed),
        (missing + there, missing, there, 0)
    );
    assert_eq!(desk.sink.versions().len() as u64, there, "a dry run applies nothing");

    let first = desk.replay("first", false).await;
    // What one of the two applied the other one finds applied.
    assert_eq!(first.applied + first.superseded, missing + there);
    assert!(first.applied <= missing && first.failed == 0, "{first:?}");
    assert_eq!(*desk.sink.versions(), all);

    let second = desk.replay("second", false).await;
    assert_eq!((second.letters, second.closed), (0, missing + there));
    assert_eq!(*desk.sink.versions(), all);
    let open = desk.store.letters().open_letters(Cooldown::default()).await.expect("counts");
    assert_eq!(open.iter().map(|of| of.open).sum::<u64>(), 0);
    clerk.stop().await;
    other.stop().await;
    desk.consumer.stop().await;
}

/// A letter that fails again stays open and says so; the next replay may succeed.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_fails_again_stays_open() {
    let fixture = Fixture::new();
    let desk = Desk::new(&fixture, 20).await;
    let all = std::mem::take(&mut *desk.sink.versions());
    let clerk = desk.clerk();
    desk.sink.refuses.store(true, Ordering::Relaxed);
    assert_eq!(desk.replay("refused", false).await.failed, 20);
    let page =
        desk.store.letters().list(&LetterFilter::default(), None, 100).await.expect("a page");
    let said: BTreeSet<_> = page
        .letters
        .iter()
        .map(|l| (l.state, l.replays, l.letter.attempts, l.letter.code.as_str()))
        .collect();
    assert_eq!(said, BTreeSet::from([(LetterState::Open, 1, 5, "refused")]));
    desk.sink.refuses.store(false, Ordering::Relaxed);
    assert_eq!(desk.replay("taken", false).await.applied, 20);
    assert_eq!(*desk.sink.versions(), all);
    clerk.stop().await;
    desk.consumer.stop().await;
}
