//! The dead-letter store conformance suite, with a restart before every call; and replays.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tagfast_domain::ContentKey;
use tagfast_events::conformance::MemorySink;
use tagfast_events::conformance::dead_letters::{DeadLetterStoreHarness, exhausted};
use tagfast_events::{
    AutoReplayPolicy, Consumer, ConsumerGroup, DeadLetter, DeadLetterFilter, DeadLetterState,
    DeadLetterStore, NewReplayJob, Positions, RecordVerdict, ReplayJob, ReplayWorker,
    RuntimeOptions,
};
use tagfast_resilience::SystemClock;
use tagfast_store_embedded::EmbeddedStore;
use tagfast_testkit::wait_for_condition_async;

use crate::support::{Fixture, NOW, add, key, records, write};

const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Reopens the store for every call.
struct Harness {
    fixture: Fixture,
    store: Mutex<Option<Arc<EmbeddedStore>>>,
}

impl Harness {
    fn new() -> Self {
        Self { fixture: Fixture::new(), store: Mutex::new(None) }
    }

    fn reopened(&self) -> Arc<EmbeddedStore> {
        let mut store = self.store.lock();
        if let Some(store) = store.take() {
            store.close();
        }
        let opened = self.fixture.open();
        *store = Some(Arc::clone(&opened));
        opened
    }
}

#[async_trait]
impl DeadLetterStoreHarness for Harness {
    async fn store(&self) -> Arc<dyn DeadLetterStore> {
        self.reopened().dead_letters()
    }

    async fn park(&self, dead_letters: &[DeadLetter]) {
        let bus = self.reopened().bus();
        for dead_letter in dead_letters {
            bus.park(dead_letter).await.expect("parked");
        }
    }
}

tagfast_events::dead_letter_store_suite! { Harness::new() }

/// A store with a dead letter of each of its contents, and a consumer that has applied all of them.
struct ReplayFixture {
    store: Arc<EmbeddedStore>,
    sink: Arc<MemorySink>,
    /// While it is set, the sink refuses every record.
    refuses: Arc<AtomicBool>,
    consumer: Arc<Consumer>,
    contents: usize,
}

impl ReplayFixture {
    async fn new(fixture: &Fixture, contents: usize) -> Self {
        let store = fixture.open();
        let keys: Vec<ContentKey> = (0..contents).map(|n| key("t", &format!("p{n}"))).collect();
        for key in &keys {
            write(&store, add(key, &["a"])).await;
        }
        let refuses = Arc::new(AtomicBool::new(false));
        let sink = MemorySink::with_verdicts(ConsumerGroup::INDEXER, {
            let refuses = Arc::clone(&refuses);
            move |_| match refuses.load(Ordering::Relaxed) {
                true => RecordVerdict::Poison { code: "refused", message: "not today".to_owned() },
                false => RecordVerdict::Applied,
            }
        });
        let bus = store.bus();
        for record in records(&bus, ConsumerGroup("reader"), &Positions::new()).await {
            bus.park(&exhausted(record, NOW)).await.expect("parked");
        }
        let clock = Arc::new(SystemClock);
        let consumer =
            Consumer::spawn(bus, Arc::clone(&sink) as _, RuntimeOptions::default(), clock);
        wait_for_condition_async("the consumer", TEST_TIMEOUT, || async {
            let known = sink.newest().len();
            if known == contents { Ok(()) } else { Err(format!("{known} of {contents}")) }
        })
        .await;
        Self { store, sink, refuses, consumer: Arc::new(consumer), contents }
    }

    fn replay_worker(&self) -> ReplayWorker {
        ReplayWorker::spawn(
            self.store.dead_letters(),
            Arc::clone(&self.consumer),
            Arc::new(SystemClock),
        )
    }

    async fn replay(&self, id: &str, dry_run: bool) -> ReplayJob {
        let store = self.store.dead_letters();
        let job = NewReplayJob { id: id.to_owned(), dry_run, rate: 20_000, at: NOW };
        store.create_job(&job, &DeadLetterFilter::default()).await.expect("a job");
        wait_for_condition_async("the job", TEST_TIMEOUT, || async {
            let job = store.job(id).await.map_err(|e| e.to_string())?.ok_or("no job")?;
            if job.left() == 0 { Ok(job) } else { Err(format!("{job:?}")) }
        })
        .await
    }
}

/// A dry run predicts a replay, a second replay changes nothing, and two workers that replay at
/// once do not disturb each other.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_replay_changes_nothing() {
    let fixture = Fixture::new();
    let replays = ReplayFixture::new(&fixture, 600).await;
    let all = replays.sink.newest().clone();
    // Every third content is as if it had never been applied.
    let lost: Vec<ContentKey> = all.keys().step_by(3).cloned().collect();
    replays.sink.newest().retain(|key, _| !lost.contains(key));
    let (worker, other) = (replays.replay_worker(), replays.replay_worker());
    let (missing, there) = (lost.len() as u64, (replays.contents - lost.len()) as u64);

    let dry = replays.replay("dry", true).await;
    assert_eq!(
        (dry.dead_letters, dry.applied, dry.superseded, dry.failed),
        (missing + there, missing, there, 0)
    );
    assert_eq!(replays.sink.newest().len() as u64, there, "a dry run applies nothing");

    let first = replays.replay("first", false).await;
    // A dead letter that one worker applied is superseded for the other.
    assert_eq!(first.applied + first.superseded, missing + there);
    assert!(first.applied <= missing && first.failed == 0, "{first:?}");
    assert_eq!(*replays.sink.newest(), all);

    let second = replays.replay("second", false).await;
    assert_eq!((second.dead_letters, second.closed), (0, missing + there));
    assert_eq!(*replays.sink.newest(), all);
    let open = replays
        .store
        .dead_letters()
        .open_counts(AutoReplayPolicy::default())
        .await
        .expect("counts");
    assert_eq!(open.iter().map(|of| of.open).sum::<u64>(), 0);
    worker.stop().await;
    other.stop().await;
    replays.consumer.stop().await;
}

/// A dead letter that fails again stays open with its new failure; a later replay may succeed.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_fails_again_stays_open() {
    let fixture = Fixture::new();
    let replays = ReplayFixture::new(&fixture, 20).await;
    let all = std::mem::take(&mut *replays.sink.newest());
    let worker = replays.replay_worker();
    replays.refuses.store(true, Ordering::Relaxed);
    assert_eq!(replays.replay("refused", false).await.failed, 20);
    let page = replays
        .store
        .dead_letters()
        .list(&DeadLetterFilter::default(), None, 100)
        .await
        .expect("a page");
    let outcomes: BTreeSet<_> = page
        .dead_letters
        .iter()
        .map(|l| (l.state, l.replays, l.dead_letter.attempts, l.dead_letter.code.as_str()))
        .collect();
    assert_eq!(outcomes, BTreeSet::from([(DeadLetterState::Open, 1, 5, "refused")]));
    replays.refuses.store(false, Ordering::Relaxed);
    assert_eq!(replays.replay("taken", false).await.applied, 20);
    assert_eq!(*replays.sink.newest(), all);
    worker.stop().await;
    replays.consumer.stop().await;
}
