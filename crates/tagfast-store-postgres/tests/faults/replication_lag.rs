//! Replicas that fall behind while the primary writes: the span of acknowledged writes that a
//! failover could lose is bounded, and `Durability: replicated` means what it says.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tagfast_domain::{Call, ContentKey, IdempotencyKey};
use tagfast_resilience::{Clock, SystemClock};
use tagfast_store::{
    Consistency, Durability, ReadOptions, ReplicaCount, StoreError, TagReader, TagWriter,
    WriteAnswer, WriteRequest,
};
use tagfast_store_postgres::{
    FailureCause, NullSink, OnLag, PostgresOptions, PostgresStore, ReplicatedMeans,
};
use tagfast_testkit::stack::NodeInfo;
use tagfast_testkit::wait_for_condition_async;

use crate::replica_ages::replicas;
use crate::replica_faults::Stop;
use crate::scenarios::{ONE_AT_A_TIME, SECOND, all_whole, on_stack};
use crate::support;
use crate::writes::{key_of, put, request};

const WRITERS: usize = 4;

/// Healthy clusters, and a store whose options `change` has changed. All replicas confirm.
async fn open(change: impl FnOnce(&mut PostgresOptions)) -> Arc<PostgresStore> {
    all_whole().await;
    let mut options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    change(&mut options);
    let store = support::open(options, Arc::new(NullSink)).await;
    all_confirm(&store).await;
    store
}

/// Waits until both replicas confirm a write.
async fn all_confirm(store: &PostgresStore) {
    let write = replicated("confirmed", "tag");
    wait_for_condition_async("both replicas to confirm", 60 * SECOND, || async {
        match store.write(write.clone()).await {
            Ok(answer) if answer.replicated == Some(ReplicaCount { replicas: 2, of: 2 }) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// A write that asks for replicas and can be repeated.
fn replicated(name: &str, tag: &str) -> WriteRequest {
    let request = request(&key_of(0, name), tag);
    let key = IdempotencyKey::of_write(request.write.id, Call::Patch, &request.write.key.content);
    let deadline = Some(tokio::time::Instant::now() + 60 * SECOND);
    WriteRequest { keyed: Some(key), durability: Durability::Replicated, deadline, ..request }
}

async fn tags_of(store: &PostgresStore, key: &ContentKey) -> usize {
    let strong = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    wait_for_condition_async("a strong read", 30 * SECOND, || async {
        store.view(key, &strong).await.map_err(|error| error.to_string())
    })
    .await
    .tags
    .len()
}

/// The log position that a replica has on its disk.
async fn received(node: &NodeInfo) -> u64 {
    let node = node.clone();
    let position = "SELECT (pg_last_wal_receive_lsn() - '0/0')::bigint";
    let text = on_stack(move |stack| stack.sql(&node, position).expect("a position")).await;
    text.parse().expect("a number")
}

/// A write, from its call to its answer.
struct Attempt {
    key: ContentKey,
    sent: Instant,
    answered: Instant,
    answer: Result<WriteAnswer, StoreError>,
}

/// Writers that write new contents, one after the other, until `until`, or until so many writes
/// were refused.
async fn write_until(
    store: &Arc<PostgresStore>,
    name: &str,
    until: Instant,
    refusals_max: usize,
) -> Vec<Attempt> {
    let refusals = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (store, name) = (Arc::clone(store), format!("{name}-{writer}"));
            let refusals = Arc::clone(&refusals);
            tokio::spawn(async move {
                let mut attempts = Vec::new();
                while Instant::now() < until && refusals.load(Ordering::Relaxed) < refusals_max {
                    let key = key_of(0, &format!("{name}-{}", attempts.len()));
                    let sent = Instant::now();
                    let answer = put(&store, &key, "tag").await;
                    // A refused writer comes back later, as `Retry-After` asks.
                    if answer.is_err() {
                        refusals.fetch_add(usize::from(is_lag(&answer, false)), Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    attempts.push(Attempt { key, sent, answered: Instant::now(), answer });
                }
                attempts
            })
        })
        .collect();
    let mut all = Vec::new();
    for writer in writers {
        all.extend(writer.await.expect("no panic"));
    }
    all
}

fn is_lag(answer: &Result<WriteAnswer, StoreError>, unknown: bool) -> bool {
    matches!(answer, Err(StoreError::ReplicationLag { outcome_unknown, .. })
        if *outcome_unknown == unknown)
}

/// The acknowledged writes that no replica has, were all acknowledged within the bound.
///
/// A write was acknowledged between its call and its answer; so the span of the acknowledgements is
/// at least that from the first answer to the last call.
async fn check_bound(attempts: &[Attempt], replicas: &[NodeInfo], bound: Duration) {
    let mut covered = 0;
    for node in replicas {
        covered = covered.max(received(node).await);
    }
    let exposed: Vec<&Attempt> = attempts
        .iter()
        .filter(|attempt| {
            attempt.answer.as_ref().is_ok_and(|answer| answer.receipt.position.lsn > covered)
        })
        .collect();
    let first = exposed.iter().map(|attempt| attempt.answered).min().expect("some are exposed");
    let last = exposed.iter().map(|attempt| attempt.sent).max().expect("some are exposed");
    let span = last.saturating_duration_since(first);
    assert!(span <= bound, "{} exposed writes over {span:?}", exposed.len());
}

/// Both replicas stand still in silence, listed as streaming.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_exposure_is_bounded_and_writes_go_on_when_the_replicas_do() {
    let _turn = ONE_AT_A_TIME.lock().await;
    for max_loss in [SECOND, SECOND / 2] {
        let store = open(|options| options.max_loss = max_loss).await;
        let replicas = replicas().await;
        for node in &replicas {
            Stop::ReceiverFrozen.begin(node).await;
        }
        let name = format!("bounded-{}", max_loss.as_millis());
        // In the first seconds of an epoch writes are held and not refused.
        let attempts = write_until(&store, &name, Instant::now() + 30 * SECOND, 100).await;
        let margin = Duration::from_millis(60);
        check_bound(&attempts, &replicas, max_loss + margin).await;
        // Nothing of what was refused reached the database; what waited there is told as unknown.
        let refused: Vec<&Attempt> =
            attempts.iter().filter(|attempt| is_lag(&attempt.answer, false)).collect();
        assert!(!refused.is_empty(), "new writes are refused");
        for attempt in refused.iter().take(20) {
            assert_eq!(tags_of(&store, &attempt.key).await, 0, "{}", attempt.key);
        }
        let unknown = attempts.iter().filter(|attempt| is_lag(&attempt.answer, true)).count();
        let all_known = attempts.iter().all(|attempt| {
            attempt.answer.is_ok()
                || is_lag(&attempt.answer, true)
                || is_lag(&attempt.answer, false)
        });
        assert!(all_known, "no other error");
        assert!(unknown <= 4 * WRITERS, "{unknown} writes are in doubt: one group waits at a time");
        let failing = store.status().remove(0).failing;
        assert!(
            failing.iter().any(|calls| calls.cause == FailureCause::ReplicationLag),
            "readiness names it: {failing:?}"
        );
        for node in &replicas {
            Stop::ReceiverFrozen.end(node).await;
        }
        let key = key_of(0, &format!("{name}-after"));
        wait_for_condition_async("writes go on", 30 * SECOND, || async {
            put(&store, &key, "tag").await.map(drop).map_err(|error| error.to_string())
        })
        .await;
        for attempt in attempts.iter().filter(|attempt| attempt.answer.is_ok()) {
            assert_eq!(tags_of(&store, &attempt.key).await, 1, "{}", attempt.key);
        }
        store.close().await;
    }
}

/// The same, with `store.on_lag = "availability"`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn availability_acknowledges_and_says_that_no_replica_has_it() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let max_loss = SECOND / 5;
    let store = open(|options| {
        options.max_loss = max_loss;
        options.on_lag = OnLag::Availability;
    })
    .await;
    let replicas = replicas().await;
    for node in &replicas {
        Stop::ReceiverFrozen.begin(node).await;
    }
    let began = Instant::now();
    let attempts = write_until(&store, "available", began + 10 * max_loss, 1).await;
    for node in &replicas {
        Stop::ReceiverFrozen.end(node).await;
    }
    let beyond: Vec<&Attempt> =
        attempts.iter().filter(|attempt| attempt.sent > began + 5 * max_loss).collect();
    assert!(!beyond.is_empty(), "writes go on");
    for attempt in beyond {
        let answer = attempt.answer.as_ref().expect("acknowledged");
        assert_eq!(answer.replicated, Some(ReplicaCount { replicas: 0, of: 2 }));
    }
    store.close().await;
}

/// One of two replicas stands still: `all` waits for it, `one` does not, and `local` for neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicated_waits_for_the_replicas_it_names() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let all = open(|_| ()).await;
    let one = open(|options| options.replicated_means = ReplicatedMeans::One).await;
    let stopped = replicas().await.remove(0);
    Stop::ReceiverFrozen.begin(&stopped).await;
    let deadline = Some(tokio::time::Instant::now() + 2 * SECOND);
    let write = WriteRequest { deadline, ..replicated("waits", "tag") };
    let waited = all.write(write.clone()).await;
    let counted = one.write(replicated("one", "tag")).await.expect("one has it").replicated;
    let local = put(&all, &key_of(0, "local"), "tag").await;
    // A batch waits once, for all of its items.
    let batch = (0..50).map(|n| replicated(&format!("batch-{n}"), "tag")).collect();
    let batch = one.write_many(batch).await;
    Stop::ReceiverFrozen.end(&stopped).await;
    assert!(is_lag(&waited, true), "it is committed, and not replicated: {waited:?}");
    assert_eq!(counted, Some(ReplicaCount { replicas: 1, of: 2 }));
    assert!(local.is_ok(), "{local:?}");
    for answer in batch {
        let count = answer.expect("one has it").replicated.expect("there are replicas");
        assert!(count.replicas >= 1, "{count:?}");
    }
    // The retry of the one in doubt finds it, and vouches for as much.
    let retry = WriteRequest { deadline: None, ..write };
    let answer = wait_for_condition_async("the retry is settled", 60 * SECOND, || async {
        all.write(retry.clone()).await.map_err(|error| error.to_string())
    })
    .await;
    assert!(answer.repeated, "{answer:?}");
    assert_eq!(answer.replicated, Some(ReplicaCount { replicas: 2, of: 2 }));
    all.close().await;
    one.close().await;
}

/// No replica streams, and something else does: it is no replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_replica_replicated_is_refused_before_it_is_written() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let store = open(|options| options.max_loss = 60 * SECOND).await;
    let replicas = replicas().await;
    for node in &replicas {
        Stop::ReceiverAstray.begin(node).await;
    }
    let archiver = on_stack(|stack| {
        let primary = stack.primary("c0").expect("a primary");
        let dir = tempfile::tempdir().expect("a folder");
        let mut command = stack.log_receiver(&primary, dir.path()).expect("a command");
        (command.spawn().expect("it starts"), dir, primary)
    })
    .await;
    let (mut archiver, _dir, primary) = archiver;
    wait_for_condition_async("the archiver to stream", 30 * SECOND, || async {
        let node = primary.clone();
        let query = "SELECT string_agg(application_name || ' ' || state, ',')
                     FROM pg_stat_replication";
        let streams = on_stack(move |stack| stack.sql(&node, query).expect("rows")).await;
        if streams == "pg_receivewal streaming" { Ok(()) } else { Err(streams) }
    })
    .await;
    let write = replicated("alone", "tag");
    let refused = wait_for_condition_async("it is refused", 30 * SECOND, || async {
        let deadline = Some(tokio::time::Instant::now() + SECOND);
        // Each attempt is a new content: in the first seconds of an epoch it is waited for.
        let name = format!("alone-{:?}", Instant::now());
        let attempt = WriteRequest { deadline, ..replicated(&name, "tag") };
        let key = attempt.write.key.clone();
        let answer = store.write(attempt).await;
        if is_lag(&answer, false) { Ok(key) } else { Err(format!("{answer:?}")) }
    })
    .await;
    assert_eq!(tags_of(&store, &refused).await, 0, "nothing was written");
    let local = WriteRequest { durability: Durability::Local, ..write };
    let answer = store.write(local).await.expect("local needs no replica");
    assert_eq!(answer.replicated, Some(ReplicaCount { replicas: 0, of: 0 }));
    archiver.kill().expect("it runs");
    archiver.wait().expect("it ends");
    for node in &replicas {
        Stop::ReceiverAstray.end(node).await;
    }
    all_confirm(&store).await;
    store.close().await;
}
