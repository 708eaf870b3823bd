//! What happens beside a repair: contents that are written all the time, writes that wait for the
//! primary at the same moment, no writes at all, and a closing while it is under way.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use tagfast_domain::ContentKey;
use tagfast_store::{LostReason, Receipt, ReceiptReader, TagWriter, Verdict};
use tagfast_store_postgres::{NullSink, PostgresOptions};
use tagfast_testkit::wait_for_condition_async;

use crate::process::ServiceProcess;
use crate::repair_clients::{
    acknowledge, closed_report, epoch_of, is_past_end, names, next_epoch, options, patch, process,
    replicas_have_all, until_acknowledged, write_of,
};
use crate::replica_faults::FrozenPrimary;
use crate::scenarios::{ONE_AT_A_TIME, SECOND};
use crate::support;
use crate::writes::key_of;

/// Contents that are written all the time: half of them exist on the new primary, the others are
/// created there by the repair or by a writer.
const CONTENTS: usize = 16;
/// How long a repair lets writes that wait go first, in ms.
const WRITES_FIRST_MS: i64 = 1000;
/// Times that were taken from different clocks of one machine, in ms.
const CLOCKS_MS: i64 = 20;

const REPAIRED: Verdict = Verdict::Repaired { is_superseded: false, by_event: false };

/// A repair locks what it cannot write otherwise, and creates what no writer has created. It begins
/// behind the first of the writes that waited for the primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contents_that_are_written_all_the_time_are_repaired() {
    let _turn = ONE_AT_A_TIME.lock().await;
    // The guard would hold the writes: all of them are to be acknowledged, and lost.
    let options = PostgresOptions { max_loss: 60 * SECOND, ..options().await };
    let store = support::open(process(&options, "racing"), Arc::new(NullSink)).await;
    let before = epoch_of(&store).await;
    let keys: Vec<ContentKey> = (0..CONTENTS).map(|n| key_of(0, &format!("hot-{n}"))).collect();
    for key in &keys[..CONTENTS / 2] {
        acknowledge(&store, write_of(key, patch(&["old"], &[]), None)).await;
    }
    replicas_have_all(store.database()).await;
    let mut frozen = FrozenPrimary::freeze().await;
    frozen.freeze_new();
    let lost = keys.iter().map(|key| write_of(key, patch(&["lost"], &[]), None)).collect();
    let answers = store.write_many(lost).await.into_iter();
    let receipts: Vec<Receipt> = answers.map(|answer| answer.expect("it is").receipt).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = |key: &ContentKey| {
        let (store, stop, key) = (Arc::clone(&store), Arc::clone(&stop), key.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                until_acknowledged(&store, patch(&["own"], &[]), &key).await;
                until_acknowledged(&store, patch(&[], &["own"]), &key).await;
            }
        })
    };
    let writers: Vec<_> = keys.iter().map(writer).collect();
    frozen.kill().await;
    let report = closed_report(&store, before).await;
    stop.store(true, Ordering::SeqCst);
    join_all(writers).await.into_iter().for_each(|writer| writer.expect("no writer panics"));

    assert!(receipts.iter().all(|receipt| is_past_end(&store, receipt)), "all of them were lost");
    for (key, verdict) in keys.iter().zip(store.verdicts(&receipts).await) {
        assert_eq!(verdict.expect("a verdict"), REPAIRED, "{key}: {report:?}");
        assert!(names(&store, key).await.contains("lost"), "{key}");
    }
    assert_eq!((report.counts.lost, report.counts.unknown), (0, 0), "{report:?}");
    let node = report.nodes.first().unwrap_or_else(|| panic!("a report: {report:?}"));
    let first = report.times.first_acknowledged_at.expect("the writers went on");
    let latest = first.min(report.times.minted_at + WRITES_FIRST_MS);
    assert!(node.began_at + CLOCKS_MS >= latest, "the repair came first: {report:?}");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_needs_no_writes_beside_it() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let options = options().await;
    let store = support::open(process(&options, "alone"), Arc::new(NullSink)).await;
    let before = epoch_of(&store).await;
    let key = key_of(0, "alone");
    let mut frozen = FrozenPrimary::freeze().await;
    frozen.freeze_new();
    let receipt = acknowledge(&store, write_of(&key, patch(&["x"], &[]), None)).await.receipt;
    frozen.kill().await;
    let report = closed_report(&store, before).await;
    assert!(is_past_end(&store, &receipt), "it was lost");
    assert_eq!(store.verdict(&receipt).await.ok(), Some(REPAIRED), "{report:?}");
    assert_eq!(report.times.first_acknowledged_at, None, "nothing was written: {report:?}");
    assert_eq!(names(&store, &key).await, BTreeSet::from(["x".to_owned()]));
    store.close().await;
}

/// A closing comes when a repair has read what it joins and is about to write it. What the closing
/// made final stays true.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closing_between_reading_and_writing_makes_a_repair_late() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let options = options().await;
    let other = support::open(process(&options, "awake"), Arc::new(NullSink)).await;
    let relayless = PostgresOptions { relay: false, ..options.clone() };
    let sleeper = ServiceProcess::start(&relayless, "overtaken").await;
    let before = epoch_of(&other).await;
    let key = key_of(0, "overtaken");
    acknowledge(&other, write_of(&key, patch(&["old"], &[]), None)).await;
    replicas_have_all(other.database()).await;
    let mut frozen = FrozenPrimary::freeze().await;
    frozen.freeze_new();
    let lost = write_of(&key, patch(&["x"], &[]), None);
    let receipt = acknowledge(sleeper.store(), lost).await.receipt;
    let wake = sleeper.freeze();
    frozen.kill().await;
    next_epoch(&other, before, 60 * SECOND).await;
    let (closing, driver) = support::session(0, other.database()).await;
    let lock = "BEGIN; SELECT FROM epoch ORDER BY ordinal DESC LIMIT 1 FOR UPDATE";
    closing.batch_execute(lock).await.expect("locked");
    drop(wake);
    let waiting = "SELECT count(*)::int FROM pg_stat_activity
                   WHERE application_name = 'tagfast-repair' AND datname = current_database()
                     AND wait_event_type = 'Lock'";
    wait_for_condition_async("the repair to wait for the closing", 60 * SECOND, || async {
        // A session of its own: a transaction sees the activity of one moment.
        match support::number(0, other.database(), waiting).await {
            0 => Err("none waits"),
            _ => Ok(()),
        }
    })
    .await;
    let close = "UPDATE epoch SET repair_closed_at = clock_timestamp()
                 WHERE ordinal = (SELECT max(ordinal) FROM epoch); COMMIT";
    closing.batch_execute(close).await.expect("closed");
    driver.abort();
    let report = closed_report(&other, before).await;
    wait_for_condition_async("the late report", 60 * SECOND, || async {
        match other.verdict(&receipt).await {
            Ok(Verdict::Lost(LostReason::Late)) => Ok(()),
            verdict => Err(format!("{verdict:?}")),
        }
    })
    .await;
    assert!(is_past_end(&other, &receipt), "it was lost: {report:?}");
    assert_eq!(names(&other, &key).await, BTreeSet::from(["old".to_owned()]));
    sleeper.close().await;
    other.close().await;
}
