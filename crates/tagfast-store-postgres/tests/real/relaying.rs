//! Relays on real clusters: a failing sink loses nothing, a relay that stands still is replaced,
//! tables are emptied.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, UnixMillis};
use tagfast_failover::EpochRecord;
use tagfast_resilience::{Clock, SystemClock};
use tagfast_store::StoreError;
use tagfast_store_postgres::{OutboxRow, OutboxSink, PastEpoch, PublishError};
use tagfast_testkit::wait_for_condition_async;

use crate::kit::{self, Recording};
use crate::writes::{key_of, put};

/// A sink that refuses for a while.
#[derive(Default)]
struct Refusing {
    refuses: AtomicBool,
    asked: AtomicU32,
    kept: Recording,
}

#[async_trait]
impl OutboxSink for Refusing {
    async fn begin_epoch(&self, cluster: &str, epoch: &EpochRecord) -> Result<(), PublishError> {
        self.kept.begin_epoch(cluster, epoch).await
    }

    async fn publish(
        &self,
        cluster: &str,
        epoch: &EpochRecord,
        rows: &[OutboxRow],
        hi: u64,
    ) -> Result<(), PublishError> {
        if self.refuses.load(Ordering::SeqCst) {
            self.asked.fetch_add(1, Ordering::SeqCst);
            return Err(PublishError("the bus is away".to_owned()));
        }
        self.kept.publish(cluster, epoch, rows, hi).await
    }

    async fn doubtful(
        &self,
        _: &str,
        _: &EpochRecord,
        _: &[PastEpoch],
    ) -> Result<Vec<ContentKey>, PublishError> {
        Ok(Vec::new())
    }

    async fn complete_through(&self, cluster: &str, epoch: &EpochRecord, at: UnixMillis, hi: u64) {
        self.kept.complete_through(cluster, epoch, at, hi).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_fails_gets_everything_in_the_end() {
    let sink = Arc::new(Refusing::default());
    let options = kit::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let store = kit::open(options, Arc::clone(&sink) as _).await;
    let key = key_of(0, "failing");
    put(&store, &key, "before").await.expect("written");
    sink.refuses.store(true, Ordering::SeqCst);
    for n in 0..50 {
        put(&store, &key, &format!("t{n}")).await.expect("writes do not wait for the bus");
    }
    wait_for_condition_async("the relay tries again", Duration::from_secs(10), || async {
        let asked = sink.asked.load(Ordering::SeqCst);
        if asked >= 3 { Ok(()) } else { Err(asked) }
    })
    .await;
    sink.refuses.store(false, Ordering::SeqCst);
    store.drained().await;
    let events = sink.kept.events();
    let versions: Vec<_> = events.iter().filter(|e| e.key == key).map(|e| e.version).collect();
    assert!(versions.windows(2).all(|w| w[0] < w[1]), "in the order of versions: {versions:?}");
    let added: usize = events
        .iter()
        .filter(|e| e.key == key)
        .flat_map(|e| &e.changes)
        .map(|c| c.added.len())
        .sum();
    assert_eq!(added, 51, "every change once");
}

/// A sink that stops the thread it is called on, and with it the whole single-threaded process
/// around it.
#[derive(Default)]
struct Standing {
    stands: Mutex<bool>,
    goes_on: Condvar,
    reached: AtomicBool,
}

#[async_trait]
impl OutboxSink for Standing {
    async fn begin_epoch(&self, _: &str, _: &EpochRecord) -> Result<(), PublishError> {
        Ok(())
    }

    async fn publish(
        &self,
        _: &str,
        _: &EpochRecord,
        _: &[OutboxRow],
        _: u64,
    ) -> Result<(), PublishError> {
        self.reached.store(true, Ordering::SeqCst);
        let mut stands = self.stands.lock().expect("no panic under the lock");
        while *stands {
            stands = self.goes_on.wait(stands).expect("no panic under the lock");
        }
        Ok(())
    }

    async fn doubtful(
        &self,
        _: &str,
        _: &EpochRecord,
        _: &[PastEpoch],
    ) -> Result<Vec<ContentKey>, PublishError> {
        Ok(Vec::new())
    }

    async fn complete_through(&self, _: &str, _: &EpochRecord, _: UnixMillis, _: u64) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_stands_still_is_replaced() {
    let options = kit::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let key = key_of(0, "standing");
    let standing = Arc::new(Standing::default());
    *standing.stands.lock().expect("no panic under the lock") = true;
    // A node of its own thread: when its sink stands still, everything of it does, as under
    // SIGSTOP.
    let (node_options, node_sink, node_key) = (options.clone(), Arc::clone(&standing), key.clone());
    let node = std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let store = kit::open(node_options, Arc::clone(&node_sink) as _).await;
            // Acknowledged or not: the relay may stop the thread first.
            let _ = tokio::time::timeout(Duration::from_secs(20), put(&store, &node_key, "first"))
                .await;
            let reached = || async {
                if node_sink.reached.load(Ordering::SeqCst) { Ok(()) } else { Err("not yet") }
            };
            wait_for_condition_async("its relay publishes", Duration::from_secs(20), reached).await;
        });
    });
    wait_for_condition_async("the first node stands still", Duration::from_secs(30), || async {
        if standing.reached.load(Ordering::SeqCst) { Ok(()) } else { Err("not yet") }
    })
    .await;
    let sink = Arc::new(Recording::default());
    let store = kit::open(options, Arc::clone(&sink) as _).await;
    put(&store, &key, "second").await.expect("written");
    wait_for_condition_async(
        "the second node's relay has taken over",
        Duration::from_secs(20),
        || async {
            let names: Vec<String> = sink
                .events()
                .iter()
                .flat_map(|e| &e.changes)
                .flat_map(|c| &c.added)
                .map(|n| n.to_string())
                .collect();
            // What the first relay had not stored as published comes again.
            if names.contains(&"first".to_owned()) && names.contains(&"second".to_owned()) {
                Ok(())
            } else {
                Err(format!("{names:?}"))
            }
        },
    )
    .await;
    *standing.stands.lock().expect("no panic under the lock") = false;
    standing.goes_on.notify_all();
    node.join().expect("the first node goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outbox_is_emptied() {
    let options = kit::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let database = options.database.clone();
    let store = kit::open(options, Arc::new(Recording::default())).await;
    let key = key_of(0, "emptied");
    for n in 0..30 {
        put(&store, &key, &format!("t{n}")).await.expect("written");
    }
    let rows = "SELECT (SELECT count(*) FROM outbox_0)::int + (SELECT count(*) FROM outbox_1)::int
                     + (SELECT count(*) FROM outbox_2)::int";
    assert!(kit::number(0, &database, rows).await > 0);
    // Three turns of five seconds.
    wait_for_condition_async("nothing is left of it", Duration::from_secs(30), || async {
        let left = kit::number(0, &database, rows).await;
        if left == 0 { Ok(()) } else { Err(format!("{left} rows")) }
    })
    .await;
}

/// What a replaced primary published and lost is written again: an empty state of a content that
/// nobody has, too.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_doubtful_is_written_again() {
    let options = kit::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let sink = Arc::new(Recording::default());
    let (never, lost) = (key_of(0, "never there"), key_of(1, "also lost"));
    let doubted =
        [("c0", &never), ("c1", &lost)].map(|(cluster, key)| (cluster.to_owned(), key.clone()));
    *sink.doubted.lock().expect("no panic under the lock") = doubted.to_vec();
    let store = kit::open(options, Arc::clone(&sink) as _).await;
    wait_for_condition_async("both are told to be empty", Duration::from_secs(20), || async {
        let events = sink.events();
        let told = |key: &ContentKey| events.iter().any(|e| e.key == *key && e.tags.is_empty());
        if told(&never) && told(&lost) { Ok(()) } else { Err(format!("{events:?}")) }
    })
    .await;
    let event = sink.events().into_iter().find(|e| e.key == never).expect("told");
    let written = put(&store, &never, "now").await.expect("written");
    assert!(written.version > event.version, "{written:?} after {event:?}");
}

/// A bus that is away for long does not fill the disk: at the bound writes are refused by name, and
/// go on when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn the_outbox_has_a_bound() {
    let options = kit::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let options = tagfast_store_postgres::PostgresOptions { outbox_bytes: 2 << 20, ..options };
    let sink = Arc::new(Refusing::default());
    sink.refuses.store(true, Ordering::SeqCst);
    let store = kit::open(options, Arc::clone(&sink) as _).await;
    let mut n = 0;
    let refused = wait_for_condition_async("a refusal", Duration::from_secs(60), || {
        let many: Vec<_> =
            (0..200).map(|i| (key_of(0, &format!("bound {}", n * 200 + i)), i)).collect();
        n += 1;
        let store = &store;
        async move {
            let writes = many.iter().map(async |(key, i)| put(store, key, &format!("t{i}")).await);
            let answers = futures_util::future::join_all(writes).await;
            answers.into_iter().find_map(Result::err).ok_or("everything was taken")
        }
    })
    .await;
    assert!(
        matches!(refused, StoreError::Overloaded { queue: "outbox", limit: 2_097_152, .. }),
        "{refused}"
    );
    // The other cluster has an outbox of its own.
    put(&store, &key_of(1, "elsewhere"), "x").await.expect("taken");
    sink.refuses.store(false, Ordering::SeqCst);
    wait_for_condition_async("writes go on", Duration::from_secs(60), || async {
        put(&store, &key_of(0, "bound after"), "x").await.map(drop).map_err(|e| e.to_string())
    })
    .await;
}
