//! What a failover loses of acknowledged writes: it comes back, or its callers are told.
//!
//! Replication is frozen in the senders of the primary a moment before the primary is killed, so
//! that acknowledged writes are certain to be lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::{ContentKey, IfMatch, Limits, Operation, TenantId, WriteId};
use tagfast_sharding::LogicalShard;
use tagfast_store::failovers::{FailoverReader, FailoverWritesRequest, VerdictKind};
use tagfast_store::{
    Consistency, History, LostReason, REPAIR_PENDING, ReadOptions, Receipt, ReceiptReader,
    TagReader, TagWriter, Verdict,
};
use tagfast_store_postgres::testing::{GatedSink, RecordingSink};
use tagfast_store_postgres::{NullSink, PostgresOptions};
use tagfast_testkit::wait_for_condition_async;

use crate::process::ServiceProcess;
use crate::repair_clients::{
    Clients, acknowledge, check, closed_report, epoch_of, is_past_end, names, options, patch,
    process, replicas_have_all, tags, write_of,
};
use crate::replica_faults::FrozenPrimary;
#[cfg(feature = "full")]
use crate::replica_faults::reinitialize;
use crate::scenarios::{ONE_AT_A_TIME, SECOND};
use crate::support;
use crate::writes::key_of;

/// How long replication is frozen before the primary dies: less than `max_loss`.
const FROZEN: Duration = Duration::from_millis(600);
/// Tags of a content at most.
const LIMIT: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
async fn lost_writes_come_back_and_those_of_a_dead_process_are_named() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let options = options().await;
    let sink = Arc::new(RecordingSink::default());
    let living = support::open(process(&options, "living"), Arc::clone(&sink) as _).await;
    let dying = PostgresOptions { relay: false, ..process(&options, "dying") };
    let dying = support::open(dying, Arc::new(NullSink)).await;
    let before = epoch_of(&living).await;
    let (clients, of_dying) = (Clients::start(&living, "living"), Clients::start(&dying, "dying"));
    clients.answered(50).await;
    of_dying.answered(50).await;
    let frozen = FrozenPrimary::freeze().await;
    tokio::time::sleep(FROZEN).await;
    // The process and the primary die together.
    let of_dying = of_dying.abort();
    drop(dying);
    frozen.kill().await;
    clients.answered(200).await;
    let key = key_of(0, "living-0-0");
    let marked = living.view(&key, &ReadOptions::default()).await.expect("a view");
    let open = living.is_repair_open(LogicalShard::of(&key));
    let report = closed_report(&living, before).await;
    wait_for_condition_async("reads to be whole", 10 * SECOND, || async {
        let view = living.view(&key, &ReadOptions::default()).await;
        let view = view.map_err(|error| error.to_string())?;
        if view.degraded.contains(&REPAIR_PENDING) { Err(format!("{view:?}")) } else { Ok(()) }
    })
    .await;
    let acknowledged = clients.finish().await;

    let (lost, repaired) = check(&living, &acknowledged).await;
    println!(
        "primary killed, replication frozen 0.6 s before: {} acknowledged, {lost} lost in the \
         failover, {repaired} of them repaired",
        acknowledged.len(),
    );
    assert!(lost > 0, "the fault lost nothing");
    assert_eq!(repaired, lost, "each lost write was repaired, and no other one");
    // What no one is left to repair is gone, and its receipts say so.
    let past = of_dying.iter().filter(|write| is_past_end(&living, &write.receipt));
    let (mut gone, mut expired) = (0, 0);
    for write in past {
        match living.verdict(&write.receipt).await.expect("a verdict") {
            Verdict::Lost(LostReason::Unreported) => gone += 1,
            // Its group commit lay across the end of the epoch.
            Verdict::Unknown("expired") => expired += 1,
            other @ (Verdict::Kept
            | Verdict::Repaired { .. }
            | Verdict::Lost(_)
            | Verdict::Unknown(_)) => panic!("{}: {other:?}", write.tag),
        }
    }
    println!("of the process that died: {gone} lost, {expired} unknown");
    assert!(gone > 0, "without a repair the writes are gone");
    for write in of_dying.iter().filter(|write| !is_past_end(&living, &write.receipt)) {
        assert_eq!(living.verdict(&write.receipt).await.ok(), Some(Verdict::Kept));
    }

    assert!(report.missing_nodes.iter().any(|node| node.starts_with("dying.")), "{report:?}");
    let node = report.nodes.iter().find(|node| node.node.starts_with("living."));
    let node = node.unwrap_or_else(|| panic!("a report of the living process: {report:?}"));
    assert_eq!((node.counts.repaired, node.counts.lost), (repaired as u64, 0), "{report:?}");
    assert!(report.fork_lsn.is_some() && report.previous_primary.is_some(), "{report:?}");
    let times = report.times;
    assert!(times.suspected_at <= times.held_at && times.held_at.is_some(), "{times:?}");
    assert!(times.promoted_at.is_some() && times.first_acknowledged_at.is_some(), "{times:?}");
    assert!(!open || marked.degraded.contains(&REPAIR_PENDING), "{marked:?}");
    println!("phases: {times:?}");

    let tenant = TenantId::parse("test").expect("a tenant");
    let other = TenantId::parse("tes").expect("a tenant");
    let listed = async |verdict, tenant, after, limit| {
        let request = FailoverWritesRequest { epoch: report.epoch, verdict, tenant, after, limit };
        living.failover_writes(&request).await.expect("a list")
    };
    let all = listed(None, Some(&tenant), None, 1_000_000).await;
    let ids: BTreeSet<WriteId> = all.iter().map(|write| write.write_id).collect();
    // Of a group commit that lies across the end, writes may be kept, and then are not listed.
    let is_behind_end = |receipt: &Receipt| {
        let end = living.epoch_end(receipt.shard, receipt.position.epoch);
        end.is_some_and(|end| receipt.inside_lsn >= end)
    };
    let lost_ids: BTreeSet<WriteId> = acknowledged
        .iter()
        .filter(|write| is_behind_end(&write.receipt))
        .map(|write| write.receipt.write_id)
        .collect();
    assert!(ids.is_superset(&lost_ids), "{} listed, {} lost", ids.len(), lost_ids.len());
    assert_eq!(listed(None, Some(&other), None, 10).await, []);
    assert_eq!(listed(Some(VerdictKind::Lost), None, None, 10).await, []);
    let of_kind: Vec<_> =
        all.iter().filter(|w| matches!(w.verdict, Verdict::Repaired { .. })).take(1).collect();
    let page = listed(Some(VerdictKind::Repaired), None, None, 1).await;
    assert_eq!(page.iter().collect::<Vec<_>>(), of_kind);
    assert_eq!(listed(None, None, Some(all[0].write_id), 1).await, all[1..2]);

    // The bus has the state that the primary has.
    living.drained().await;
    let events = sink.events();
    for write in acknowledged.iter().filter(|write| is_past_end(&living, &write.receipt)).take(50) {
        let newest = events.iter().filter(|e| e.key == write.key).max_by_key(|e| e.version);
        let published: BTreeSet<String> = newest
            .map(|event| event.tags.iter().map(|tag| tag.name.as_str().to_owned()).collect())
            .unwrap_or_default();
        assert_eq!(published, names(&living, &write.key).await, "{}", write.key);
    }
    let began = std::time::Instant::now();
    let receipts: Vec<Receipt> =
        acknowledged.iter().rev().chain(&of_dying).map(|write| write.receipt).take(500).collect();
    living.verdicts(&receipts).await.into_iter().for_each(|v| assert!(v.is_ok(), "{v:?}"));
    println!("{} verdicts in one call: {:?}", receipts.len(), began.elapsed());
    living.close().await;
}

/// The relay of a living process had published what the dead one had acknowledged, and no replica
/// had it: the events bring it back. What was not published is lost, and said to be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x19_published_writes_of_a_dead_process_come_back() {
    let _turn = ONE_AT_A_TIME.lock().await;
    // The guard would hold the last write: it is to be acknowledged, and lost.
    let options = PostgresOptions { max_loss: 60 * SECOND, ..options().await };
    let sink = Arc::new(GatedSink::new(RecordingSink::scanning()));
    let living = support::open(process(&options, "relaying"), Arc::clone(&sink) as _).await;
    let relayless = PostgresOptions { relay: false, ..options.clone() };
    let dying = ServiceProcess::start(&relayless, "vanishing").await;
    let before = epoch_of(&living).await;
    let key = |name: &str| key_of(0, &format!("published-{name}"));
    for name in ["removed", "replaced", "unpublished"] {
        acknowledge(&living, write_of(&key(name), patch(&["old", "gone"], &[]), None)).await;
    }
    living.drained().await;
    let mut frozen = FrozenPrimary::freeze().await;
    frozen.freeze_new();
    let replace = Operation::replace(tags(&["x"]), &Limits::default()).expect("a replace");
    let mut lost = vec![
        write_of(&key("removed"), patch(&[], &["gone"]), None),
        write_of(&key("replaced"), replace, None),
    ];
    lost.extend((0..20).map(|n| write_of(&key(&n.to_string()), patch(&["x"], &[]), None)));
    let ids: BTreeSet<WriteId> = lost.iter().map(|request| request.write.id).collect();
    let answers = dying.store().write_many(lost).await;
    let published: Vec<Receipt> =
        answers.into_iter().map(|answer| answer.expect("acknowledged").receipt).collect();
    wait_for_condition_async("their events", 20 * SECOND, || async {
        let events = sink.inner().events();
        let changes = events.iter().flat_map(|event| &event.changes);
        let found = changes.filter(|change| ids.contains(&change.write_id)).count();
        if found == ids.len() { Ok(()) } else { Err(found) }
    })
    .await;
    sink.close();
    let unpublished = write_of(&key("unpublished"), patch(&["x"], &[]), None);
    let unpublished = acknowledge(dying.store(), unpublished).await.receipt;
    drop(dying);
    frozen.kill().await;
    wait_for_condition_async("the next epoch", 60 * SECOND, || async {
        let status = living.status();
        if status[0].epoch.is_some_and(|e| e > before) {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    sink.open();
    let report = closed_report(&living, before).await;

    assert!(published.iter().all(|receipt| is_past_end(&living, receipt)), "all of them were lost");
    for verdict in living.verdicts(&published).await {
        let by_event = Verdict::Repaired { is_superseded: false, by_event: true };
        assert_eq!(verdict.expect("a verdict"), by_event);
    }
    let unreported = Verdict::Lost(LostReason::Unreported);
    assert_eq!(living.verdict(&unpublished).await.ok(), Some(unreported));
    for (name, expected) in [
        ("removed", vec!["old"]),
        ("replaced", vec!["x"]),
        ("7", vec!["x"]),
        ("unpublished", vec!["gone", "old"]),
    ] {
        let found: Vec<String> = names(&living, &key(name)).await.into_iter().collect();
        assert_eq!(found, expected, "{name}");
    }
    let node = report.nodes.iter().find(|node| node.node == "events");
    let node = node.unwrap_or_else(|| panic!("what the events brought back: {report:?}"));
    assert_eq!(node.counts.repaired, ids.len() as u64, "{report:?}");
    assert_eq!(report.counts.repaired, ids.len() as u64, "{report:?}");
    assert!(report.missing_nodes.iter().any(|node| node.starts_with("vanishing.")), "{report:?}");
    let request = FailoverWritesRequest {
        epoch: report.epoch,
        verdict: Some(VerdictKind::Repaired),
        tenant: None,
        after: None,
        limit: 100,
    };
    let listed = living.failover_writes(&request).await.expect("a list");
    assert_eq!(listed.iter().map(|write| write.write_id).collect::<BTreeSet<_>>(), ids);

    // Consumers keep what came back.
    living.drained().await;
    let events = sink.inner().events();
    for name in ["removed", "replaced", "7"] {
        let of_key = events.iter().filter(|event| event.key == key(name));
        let newest = of_key.max_by_key(|event| event.version).expect("an event");
        let published: BTreeSet<String> =
            newest.tags.iter().map(|tag| tag.name.as_str().to_owned()).collect();
        assert_eq!(published, names(&living, &key(name)).await, "{name}");
    }
    living.close().await;
}

/// The repair is lost with the second primary, and done again from the journal. Only with `full`:
/// where Patroni starts the second primary again in place of another failover, its replicas need a
/// reinitialisation before any other test.
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
async fn a_second_failover_right_after_loses_no_repair() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let options = options().await;
    let store = support::open(process(&options, "twice"), Arc::new(NullSink)).await;
    let before = epoch_of(&store).await;
    let clients = Clients::start(&store, "twice");
    clients.answered(50).await;
    let frozen = FrozenPrimary::freeze().await;
    let first = frozen.node.clone();
    tokio::time::sleep(FROZEN).await;
    frozen.kill().await;
    let second = wait_for_condition_async("a second primary", 60 * SECOND, || async {
        let status = store.status();
        match &status[0].primary {
            Some(name) if *name != first.name && status[0].epoch.is_some_and(|e| e > before) => {
                Ok(status[0].epoch.unwrap_or_default())
            }
            _ => Err(format!("{status:?}")),
        }
    })
    .await;
    // The process that follows it gets nothing of the repair.
    let mut frozen = FrozenPrimary::freeze().await;
    for _ in 0..10 {
        tokio::time::sleep(FROZEN / 10).await;
        frozen.freeze_new();
    }
    frozen.kill().await;
    let report = closed_report(&store, second).await;
    clients.answered(50).await;
    let acknowledged = clients.finish().await;
    let (lost, repaired) = check(&store, &acknowledged).await;
    println!(
        "two failovers: {} acknowledged, {lost} past the ends of their epochs, {repaired} \
         repaired; {report:?}",
        acknowledged.len()
    );
    assert!(lost > 0, "the faults lost nothing");
    assert!(report.counts.repaired > 0 && report.counts.lost == 0, "{report:?}");
    store.close().await;
    // It was rewound to the second primary, whose log ended with it.
    reinitialize(&first).await;
}

/// What a process acknowledged before the failover, and what became of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_cannot_come_back_are_told_apart() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut options = options().await;
    options.limits.tags_per_content = LIMIT;
    let other = support::open(process(&options, "awake"), Arc::new(NullSink)).await;
    let relayless = PostgresOptions { relay: false, ..options.clone() };
    let sleeper = ServiceProcess::start(&relayless, "sleepy").await;
    let before = epoch_of(&other).await;
    let key = |name: &str| key_of(0, &format!("fate-{name}"));
    let all = ["limit", "conditional", "overruled", "replaced", "removed", "batch", "retried"];
    for name in all {
        acknowledge(&other, write_of(&key(name), patch(&["old", "gone"], &[]), None)).await;
    }
    let version = {
        let options = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
        other.view(&key("conditional"), &options).await.expect("a view").version
    };
    replicas_have_all(other.database()).await;
    let mut frozen = FrozenPrimary::freeze().await;
    frozen.freeze_new();
    let replace =
        |names: &[&str]| Operation::replace(tags(names), &Limits::default()).expect("a replace");
    let matches = || Some(IfMatch::any_of(vec![version]));
    let retried = write_of(&key("retried"), patch(&["again"], &[]), None);
    let lost = [
        write_of(&key("limit"), patch(&["x"], &[]), None),
        write_of(&key("conditional"), patch(&["x"], &[]), matches()),
        write_of(&key("overruled"), patch(&["x"], &["gone"]), None),
        write_of(&key("replaced"), replace(&["old", "x"]), None),
        write_of(&key("removed"), patch(&[], &["gone"]), None),
        retried.clone(),
    ];
    let mut receipts = Vec::new();
    for request in lost {
        receipts.push(acknowledge(sleeper.store(), request).await.receipt);
    }
    let batch = vec![write_of(&key("batch"), patch(&["one"], &[]), None)];
    let batch = sleeper.store().write_many(batch).await;
    receipts.extend(batch.into_iter().map(|answer| answer.expect("acknowledged").receipt));
    let wake = sleeper.freeze();
    frozen.kill().await;
    wait_for_condition_async("the next epoch", 60 * SECOND, || async {
        let status = other.status();
        if status[0].epoch.is_some_and(|e| e > before) {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    // The new history decides before the repair.
    acknowledge(&other, write_of(&key("limit"), patch(&["full"], &[]), None)).await;
    acknowledge(&other, write_of(&key("conditional"), patch(&["y"], &[]), matches())).await;
    acknowledge(&other, write_of(&key("overruled"), replace(&["later"]), None)).await;
    // The client of a write without an answer tries again; this one had its answer.
    let again = acknowledge(&other, retried).await;
    drop(wake);
    let report = closed_report(&other, before).await;
    assert!(receipts.iter().all(|receipt| is_past_end(&other, receipt)), "all of them were lost");
    let verdicts: Vec<Verdict> = other
        .verdicts(&receipts)
        .await
        .into_iter()
        .map(|verdict| verdict.expect("a verdict"))
        .collect();
    let repaired = Verdict::Repaired { is_superseded: false, by_event: false };
    let expected = [
        Verdict::Lost(LostReason::Limit),
        Verdict::Lost(LostReason::Conflict),
        Verdict::Repaired { is_superseded: true, by_event: false },
        repaired,
        repaired,
        Verdict::Kept,
        repaired,
    ];
    assert_eq!(verdicts, expected, "{report:?}");
    for (name, expected) in [
        ("limit", vec!["full", "gone", "old"]),
        ("conditional", vec!["gone", "old", "y"]),
        ("overruled", vec!["later"]),
        ("replaced", vec!["old", "x"]),
        ("removed", vec!["old"]),
        ("retried", vec!["again", "gone", "old"]),
        ("batch", vec!["gone", "old", "one"]),
    ] {
        let found: Vec<String> = names(&other, &key(name)).await.into_iter().collect();
        assert_eq!(found, expected, "{name}");
    }
    assert_eq!(other.verdict(&again.receipt).await.ok(), Some(Verdict::Kept));
    let node = report.nodes.iter().find(|node| node.node.starts_with("sleepy."));
    let node = node.unwrap_or_else(|| panic!("a report of the sleeper: {report:?}"));
    assert_eq!((node.counts.kept, node.counts.repaired, node.counts.lost), (1, 4, 2), "{report:?}");
    sleeper.close().await;
    other.close().await;
}

/// A process sleeps until no one waits for it any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_after_the_closing_is_listed_and_not_applied() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let options = options().await;
    let other = support::open(process(&options, "awake"), Arc::new(NullSink)).await;
    let relayless = PostgresOptions { relay: false, ..options.clone() };
    let sleeper = ServiceProcess::start(&relayless, "late").await;
    let before = epoch_of(&other).await;
    let key = key_of(0, "late");
    acknowledge(&other, write_of(&key, patch(&["old"], &[]), None)).await;
    let frozen = FrozenPrimary::freeze().await;
    let lost = write_of(&key, patch(&["x"], &[]), None);
    let receipt = acknowledge(sleeper.store(), lost).await.receipt;
    let wake = sleeper.freeze();
    frozen.kill().await;
    // Its registration ends after 10 s.
    let report = closed_report(&other, before).await;
    assert!(report.missing_nodes.iter().any(|node| node.starts_with("late.")), "{report:?}");
    let unreported = Verdict::Lost(LostReason::Unreported);
    assert_eq!(other.verdict(&receipt).await.ok(), Some(unreported));
    drop(wake);
    let late = wait_for_condition_async("the late report", 60 * SECOND, || async {
        let report = other.failover(report.epoch).await.map_err(|error| error.to_string())?;
        let nodes = report.into_iter().flat_map(|report| report.nodes);
        nodes.into_iter().find(|n| n.node.starts_with("late.")).ok_or_else(|| "none".to_owned())
    })
    .await;
    assert_eq!((late.counts.lost, late.counts.repaired), (1, 0), "{late:?}");
    assert_eq!(other.verdict(&receipt).await.ok(), Some(Verdict::Lost(LostReason::Late)));
    assert_eq!(names(&other, &key).await, BTreeSet::from(["old".to_owned()]));
    sleeper.close().await;
    other.close().await;
}

/// Many lost contents beside clients that write on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
async fn many_contents_come_back_beside_new_writes() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let contents = if support::full() { 10_000 } else { 500 };
    // The guard would hold so many: here as many as possible are to be lost.
    let options = PostgresOptions { max_loss: 60 * SECOND, ..options().await };
    let store = support::open(process(&options, "many"), Arc::new(NullSink)).await;
    let before = epoch_of(&store).await;
    let keys: Vec<ContentKey> = (0..contents).map(|n| key_of(0, &format!("many-{n}"))).collect();
    let mut frozen = FrozenPrimary::freeze().await;
    for chunk in keys.chunks(500) {
        frozen.freeze_new();
        let requests = chunk.iter().map(|key| write_of(key, patch(&["x"], &[]), None)).collect();
        for answer in store.write_many(requests).await {
            assert!(answer.is_ok(), "{answer:?}");
        }
    }
    frozen.freeze_new();
    let clients = Clients::start(&store, "beside");
    frozen.kill().await;
    let report = closed_report(&store, before).await;
    clients.answered(20).await;
    let acknowledged = clients.finish().await;
    check(&store, &acknowledged).await;
    let node = report.nodes.first().unwrap_or_else(|| panic!("a report: {report:?}"));
    let took = node.ended_at.unwrap_or_default() - node.began_at;
    println!("{contents} contents repaired in {took} ms beside {} writes", acknowledged.len());
    assert!(node.counts.repaired >= contents as u64, "{report:?}");
    assert_eq!(node.counts.lost, 0, "{report:?}");
    for key in keys.iter().step_by(contents / 50) {
        assert!(names(&store, key).await.contains("x"), "{key}");
    }
    store.close().await;
}
