//! Servers that take everything and answer nothing: whatever is asked of them ends, and by when.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tagfast_events::{Group, LetterBook};
use tagfast_resilience::{Clock, SystemClock};
use tagfast_sharding::LogicalShard;
use tagfast_store::{Consistency, ReadOptions, ShardScanner, StoreError, TagReader, TagWriter};
use tagfast_store_postgres::{Discard, PostgresLetters, PostgresStore};
use tagfast_testkit::stack::Fault;

use crate::kit;
use crate::scenarios::{NODES, SECOND, TURN, all_whole, fault};
use crate::writes::{key_of, put, request};

/// Two busy processors, a debug build.
const SLACK: Duration = Duration::from_millis(500);

/// What is asked, by when it is over, and what it came to.
type Told = (&'static str, Duration, Result<(), String>, Duration);

async fn timed<T, E: std::fmt::Display>(
    what: &'static str,
    by: Duration,
    asked: impl Future<Output = Result<T, E>>,
) -> Told {
    let began = Instant::now();
    // Far beyond: who comes here has no limit.
    let answer = tokio::time::timeout(40 * SECOND, asked).await;
    let answer =
        answer.map_or(Err("never".to_owned()), |a| a.map(drop).map_err(|error| error.to_string()));
    (what, by, answer, began.elapsed())
}

async fn view(
    store: &PostgresStore,
    consistency: Consistency,
    within: Option<Duration>,
) -> Result<(), StoreError> {
    let deadline = within.map(|within| tokio::time::Instant::now() + within);
    let options = ReadOptions { consistency, deadline, ..ReadOptions::default() };
    store.view(&key_of(0, "silent"), &options).await.map(drop)
}

/// Connections that are open, statements that are prepared, and then silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
async fn whatever_is_asked_of_silent_nodes_ends() {
    let _turn = TURN.lock().await;
    all_whole().await;
    let mut options = kit::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    options.hold = 2 * SECOND;
    let store = kit::open(options, Arc::new(Discard)).await;
    let letters = PostgresLetters::new(Arc::clone(&store));
    let key = key_of(0, "silent");
    let shard = LogicalShard::of(&key);
    // Everything has its connection by now.
    put(&store, &key, "tag").await.expect("written");
    for consistency in [Consistency::Session, Consistency::Strong, Consistency::Eventual] {
        view(&store, consistency, None).await.expect("read");
    }
    store.scan(shard, None, None, 10).await.expect("scanned");
    letters.read_to(Group::INDEXER).await.expect("read");
    store.drained().await;

    for node in NODES {
        fault(Fault::Hang, node).await;
    }
    let hurried = Duration::from_millis(300);
    let mut soon = request(&key, "soon");
    soon.deadline = Some(tokio::time::Instant::now() + SECOND);
    let told = tokio::join!(
        timed("a view with a deadline", hurried, view(&store, Consistency::Session, Some(hurried))),
        timed("a view", 5 * SECOND, view(&store, Consistency::Session, None)),
        timed("a view of a replica", 5 * SECOND, view(&store, Consistency::Eventual, None)),
        timed("a strong view", 5 * SECOND, view(&store, Consistency::Strong, None)),
        timed(
            "a strong view with a deadline",
            hurried,
            view(&store, Consistency::Strong, Some(hurried))
        ),
        // A commit that is under way is waited for, at most as long as a group commit may take.
        timed("a write", 5 * SECOND + SECOND, put(&store, &key, "other")),
        timed("a write with a deadline", SECOND + Duration::from_millis(200), store.write(soon)),
        // Twice a view's patience, the page that is under way then, and the connection before it.
        timed("a page of a scan", 18 * SECOND, store.scan(shard, None, None, 10)),
        timed("the book of letters", 6 * SECOND, letters.read_to(Group::INDEXER)),
    );
    let again = tokio::join!(
        // By now its connection is gone and a new one is not answered.
        timed("the book of letters, once more", 4 * SECOND, letters.leads()),
        timed("a write, once more", 3 * SECOND, put(&store, &key, "another")),
    );
    for node in NODES {
        fault(Fault::Heal, node).await;
    }
    let all =
        [told.0, told.1, told.2, told.3, told.4, told.5, told.6, told.7, told.8, again.0, again.1];
    for (what, by, answer, took) in &all {
        println!(
            "{what}: {took:.2?} of {by:?}: {}",
            answer.as_ref().err().map_or("answered", String::as_str)
        );
    }
    for (what, by, answer, took) in &all {
        assert!(answer.is_err(), "{what}: nobody answers");
        assert!(*took <= *by + SLACK, "{what} took {took:?}, {by:?} are allowed");
    }
    // The relay hung, too. It goes on: what is committed from now on is published.
    let written = tokio::time::timeout(30 * SECOND, async {
        while put(&store, &key, "at last").await.is_err() {}
        store.drained().await;
    });
    written.await.expect("everything goes on");
}
