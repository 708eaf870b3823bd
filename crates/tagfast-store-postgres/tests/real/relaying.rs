//! Relays on real clusters: a failing sink loses nothing, a relay that stands still is replaced,
//! tables are truncated.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::{Condvar, Mutex};
use tagfast_domain::{ContentKey, UnixMillis};
use tagfast_events::{DivergedContent, EndedEpoch};
use tagfast_failover::EpochRecord;
use tagfast_resilience::{Clock, SystemClock};
use tagfast_store::StoreError;
use tagfast_store_postgres::testing::{GatedSink, RecordingSink};
use tagfast_store_postgres::{OutboxBatch, OutboxSink, PublishError};
use tagfast_testkit::wait_for_condition_async;

use crate::support;
use crate::writes::{key_of, put};

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_fails_gets_everything_in_the_end() {
    let sink = Arc::new(GatedSink::new(RecordingSink::default()));
    let options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let store = support::open(options, Arc::clone(&sink) as _).await;
    let key = key_of(0, "failing");
    put(&store, &key, "before").await.expect("written");
    sink.close();
    for n in 0..50 {
        put(&store, &key, &format!("t{n}")).await.expect("writes do not wait for the bus");
    }
    wait_for_condition_async("the relay retries", Duration::from_secs(10), || async {
        let refused = sink.refused();
        if refused >= 3 { Ok(()) } else { Err(refused) }
    })
    .await;
    sink.open();
    store.drained().await;
    let events = sink.inner().events();
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

/// A sink that blocks the thread it is called on, and with it the single-threaded node around it.
#[derive(Default)]
struct BlockingSink {
    blocks: Mutex<bool>,
    released: Condvar,
    reached: AtomicBool,
}

#[async_trait]
impl OutboxSink for BlockingSink {
    async fn begin_epoch(&self, _: &str, _: &EpochRecord) -> Result<(), PublishError> {
        Ok(())
    }

    async fn publish(&self, _: OutboxBatch<'_>) -> Result<(), PublishError> {
        self.reached.store(true, Ordering::SeqCst);
        let mut blocks = self.blocks.lock();
        while *blocks {
            self.released.wait(&mut blocks);
        }
        Ok(())
    }

    async fn diverged_contents(
        &self,
        _: &str,
        _: &EpochRecord,
        _: &[EndedEpoch],
    ) -> Result<Vec<DivergedContent>, PublishError> {
        Ok(Vec::new())
    }

    async fn complete_through(&self, _: &str, _: &EpochRecord, _: UnixMillis, _: u64) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_stands_still_is_replaced() {
    let options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let key = key_of(0, "standing");
    let blocking = Arc::new(BlockingSink::default());
    *blocking.blocks.lock() = true;
    // A node on one thread: while its sink blocks, the whole node stands still, as under SIGSTOP.
    let (node_options, node_sink, node_key) = (options.clone(), Arc::clone(&blocking), key.clone());
    let node = std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let store = support::open(node_options, Arc::clone(&node_sink) as _).await;
            // Acknowledged or not: the relay may block the thread first.
            let _ = tokio::time::timeout(Duration::from_secs(20), put(&store, &node_key, "first"))
                .await;
            let reached = || async {
                if node_sink.reached.load(Ordering::SeqCst) { Ok(()) } else { Err("not yet") }
            };
            wait_for_condition_async("its relay publishes", Duration::from_secs(20), reached).await;
        });
    });
    wait_for_condition_async("the first node stands still", Duration::from_secs(30), || async {
        if blocking.reached.load(Ordering::SeqCst) { Ok(()) } else { Err("not yet") }
    })
    .await;
    let sink = Arc::new(RecordingSink::default());
    let store = support::open(options, Arc::clone(&sink) as _).await;
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
            // What the first relay published without storing its cursor is sent again.
            if names.contains(&"first".to_owned()) && names.contains(&"second".to_owned()) {
                Ok(())
            } else {
                Err(format!("{names:?}"))
            }
        },
    )
    .await;
    *blocking.blocks.lock() = false;
    blocking.released.notify_all();
    node.join().expect("the first node goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_outbox_is_truncated() {
    let options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let database = options.database.clone();
    let store = support::open(options, Arc::new(RecordingSink::default())).await;
    let key = key_of(0, "emptied");
    for n in 0..30 {
        put(&store, &key, &format!("t{n}")).await.expect("written");
    }
    let rows = "SELECT (SELECT count(*) FROM outbox_0)::int + (SELECT count(*) FROM outbox_1)::int
                     + (SELECT count(*) FROM outbox_2)::int";
    assert!(support::number(0, &database, rows).await > 0);
    // Three rotations of five seconds.
    wait_for_condition_async("no row is left", Duration::from_secs(30), || async {
        let left = support::number(0, &database, rows).await;
        if left == 0 { Ok(()) } else { Err(format!("{left} rows")) }
    })
    .await;
}

/// Contents of which a replaced primary published a lost write are written again, also as empty
/// when they do not exist.
#[tokio::test(flavor = "multi_thread")]
async fn diverged_contents_are_written_again() {
    let options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let sink = Arc::new(RecordingSink::default());
    let (never, lost) = (key_of(0, "never there"), key_of(1, "also lost"));
    let diverged =
        [("c0", &never), ("c1", &lost)].map(|(cluster, key)| (cluster.to_owned(), key.clone()));
    sink.set_diverged(diverged.to_vec());
    let store = support::open(options, Arc::clone(&sink) as _).await;
    wait_for_condition_async("both are published as empty", Duration::from_secs(20), || async {
        let events = sink.events();
        let empty = |key: &ContentKey| events.iter().any(|e| e.key == *key && e.tags.is_empty());
        if empty(&never) && empty(&lost) { Ok(()) } else { Err(format!("{events:?}")) }
    })
    .await;
    let event = sink.events().into_iter().find(|e| e.key == never).expect("published");
    let written = put(&store, &never, "now").await.expect("written");
    assert!(written.version > event.version, "{written:?} after {event:?}");
}

/// A long outage of the bus does not fill the disk: at the bound writes are refused, and they go on
/// when the bus is back.
#[tokio::test(flavor = "multi_thread")]
async fn the_outbox_has_a_bound() {
    let options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let options = tagfast_store_postgres::PostgresOptions { outbox_bytes: 2 << 20, ..options };
    let sink = Arc::new(GatedSink::new(RecordingSink::default()));
    sink.close();
    let store = support::open(options, Arc::clone(&sink) as _).await;
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
    // Each cluster has its own outbox.
    put(&store, &key_of(1, "elsewhere"), "x").await.expect("taken");
    sink.open();
    wait_for_condition_async("writes go on", Duration::from_secs(60), || async {
        put(&store, &key_of(0, "bound after"), "x").await.map(drop).map_err(|e| e.to_string())
    })
    .await;
}
