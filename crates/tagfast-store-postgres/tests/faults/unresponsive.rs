//! Servers that receive and do not answer: every request to them ends, within its limit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tagfast_events::{ConsumerGroup, DeadLetterStore};
use tagfast_resilience::{Clock, SystemClock};
use tagfast_sharding::LogicalShard;
use tagfast_store::{Consistency, ReadOptions, ShardScanner, StoreError, TagReader, TagWriter};
use tagfast_store_postgres::{NullSink, PostgresDeadLetters, PostgresStore};
use tagfast_testkit::stack::Fault;

use crate::scenarios::{NODES, ONE_AT_A_TIME, SECOND, all_whole, fault};
use crate::support;
use crate::writes::{key_of, put, request};

/// How late a task may run on two busy processors in a debug build.
const SLACK: Duration = Duration::from_millis(500);

/// A request, how long it may take, its result, and how long it took.
type Timed = (&'static str, Duration, Result<(), String>, Duration);

async fn timed<T, E: std::fmt::Display>(
    what: &'static str,
    max: Duration,
    request: impl Future<Output = Result<T, E>>,
) -> Timed {
    let began = Instant::now();
    // Far beyond every limit: a request that gets here has none.
    let answer = tokio::time::timeout(40 * SECOND, request).await;
    let answer =
        answer.map_or(Err("never".to_owned()), |a| a.map(drop).map_err(|error| error.to_string()));
    (what, max, answer, began.elapsed())
}

async fn view(
    store: &PostgresStore,
    consistency: Consistency,
    within: Option<Duration>,
) -> Result<(), StoreError> {
    let deadline = within.map(|within| tokio::time::Instant::now() + within);
    let options = ReadOptions { consistency, deadline, ..ReadOptions::default() };
    store.view(&key_of(0, "unresponsive"), &options).await.map(drop)
}

/// Connections are open and statements prepared when the servers stop answering.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
async fn every_request_to_unresponsive_nodes_ends() {
    let _turn = ONE_AT_A_TIME.lock().await;
    all_whole().await;
    let mut options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    options.hold = 2 * SECOND;
    let store = support::open(options, Arc::new(NullSink)).await;
    let dead_letters = PostgresDeadLetters::new(Arc::clone(&store));
    let key = key_of(0, "unresponsive");
    let shard = LogicalShard::of(&key);
    // Opens every connection.
    put(&store, &key, "tag").await.expect("written");
    for consistency in [Consistency::Session, Consistency::Strong, Consistency::Eventual] {
        view(&store, consistency, None).await.expect("read");
    }
    store.scan(shard, None, None, 10).await.expect("scanned");
    dead_letters.ingested_through(ConsumerGroup::INDEXER).await.expect("read");
    store.drained().await;

    for node in NODES {
        fault(Fault::Hang, node).await;
    }
    let hurried = Duration::from_millis(300);
    let mut soon = request(&key, "soon");
    soon.deadline = Some(tokio::time::Instant::now() + SECOND);
    let first = tokio::join!(
        timed("a view with a deadline", hurried, view(&store, Consistency::Session, Some(hurried))),
        timed("a view", 5 * SECOND, view(&store, Consistency::Session, None)),
        timed("a view of a replica", 5 * SECOND, view(&store, Consistency::Eventual, None)),
        timed("a strong view", 5 * SECOND, view(&store, Consistency::Strong, None)),
        timed(
            "a strong view with a deadline",
            hurried,
            view(&store, Consistency::Strong, Some(hurried))
        ),
        // A running commit is waited for, at most as long as a group commit may take.
        timed("a write", 5 * SECOND + SECOND, put(&store, &key, "other")),
        timed("a write with a deadline", SECOND + Duration::from_millis(200), store.write(soon)),
        // The timeout of a page, the attempt that is running then, and the connection before it.
        timed("a page of a scan", 18 * SECOND, store.scan(shard, None, None, 10)),
        timed(
            "the dead-letter store",
            6 * SECOND,
            dead_letters.ingested_through(ConsumerGroup::INDEXER)
        ),
    );
    let again = tokio::join!(
        // Its connection is gone, and a new one is not answered.
        timed("the dead-letter store, once more", 4 * SECOND, dead_letters.try_lead()),
        timed("a write, once more", 3 * SECOND, put(&store, &key, "another")),
    );
    for node in NODES {
        fault(Fault::Heal, node).await;
    }
    let all = [
        first.0, first.1, first.2, first.3, first.4, first.5, first.6, first.7, first.8, again.0,
        again.1,
    ];
    for (what, by, answer, took) in &all {
        println!(
            "{what}: {took:.2?} of {by:?}: {}",
            answer.as_ref().err().map_or("answered", String::as_str)
        );
    }
    for (what, by, answer, took) in &all {
        assert!(answer.is_err(), "{what}: no node answers");
        assert!(*took <= *by + SLACK, "{what} took {took:?}, {by:?} are allowed");
    }
    // The relay was stuck, too. It goes on: commits from now on are published.
    let written = tokio::time::timeout(30 * SECOND, async {
        while put(&store, &key, "at last").await.is_err() {}
        store.drained().await;
    });
    written.await.expect("everything goes on");
}
