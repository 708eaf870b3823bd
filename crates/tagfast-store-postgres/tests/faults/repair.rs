//! What a failover loses of acknowledged writes: it comes back, or everybody is told.
//!
//! Replication is frozen in the senders of the primary a moment before the primary is killed, so
//! that acknowledged writes are certain to be lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use rustix::process::Signal;
use tagfast_domain::{
    ContentKey, IfMatch, Limits, Operation, Tag, TagName, TenantId, UserId, Write, WriteId,
};
use tagfast_resilience::{Breakers, Clock, SystemClock};
use tagfast_sharding::LogicalShard;
use tagfast_store::failovers::{
    FailoverReader, FailoverReport, FailoverWritesRequest, VerdictKind,
};
use tagfast_store::{
    Consistency, History, LostReason, REPAIR_PENDING, ReadOptions, Receipt, ReceiptReader,
    TagReader, TagWriter, Verdict, WriteAnswer, WriteRequest,
};
use tagfast_store_postgres::testing::RecordingSink;
use tagfast_store_postgres::{NullSink, PostgresOptions, PostgresStore};
use tagfast_testkit::stack::host::Process;
use tagfast_testkit::stack::{Fault, NodeInfo};
use tagfast_testkit::wait_for_condition_async;

use crate::replica_faults::{processes_of, reinitialize, signal};
use crate::scenarios::{ONE_AT_A_TIME, SECOND, all_whole, fault, primary};
use crate::support;
use crate::writes::key_of;

/// How long replication is frozen before the primary dies: less than `max_loss`.
const FROZEN: Duration = Duration::from_millis(600);
/// How long a client waits that was refused.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// Tags of a content at most.
const LIMIT: usize = 3;

/// Options of processes on a database of their own, each with a name.
async fn options() -> PostgresOptions {
    all_whole().await;
    support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await
}

/// A process: two of them share no breakers.
fn process(options: &PostgresOptions, name: &str) -> PostgresOptions {
    let breakers = Breakers::new(Arc::new(SystemClock));
    PostgresOptions { node: name.to_owned(), breakers, ..options.clone() }
}

fn write_of(key: &ContentKey, operation: Operation, if_match: Option<IfMatch>) -> WriteRequest {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("random bits");
    let user = UserId::parse("user").expect("a user");
    WriteRequest::new(Write { id: WriteId(id), key: key.clone(), user, operation, if_match })
}

fn tags(names: &[&str]) -> Vec<Tag> {
    names.iter().map(|name| Tag::parse(name).expect("a tag")).collect()
}

fn patch(add: &[&str], remove: &[&str]) -> Operation {
    let remove = remove.iter().map(|name| TagName::parse(name).expect("a tag")).collect();
    Operation::patch(tags(add), remove, &Limits::default()).expect("a patch")
}

async fn acknowledge(store: &PostgresStore, request: WriteRequest) -> WriteAnswer {
    store.write(request).await.expect("acknowledged")
}

async fn names(store: &PostgresStore, key: &ContentKey) -> BTreeSet<String> {
    let options = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    let view = store.view(key, &options).await.expect("a strong read");
    view.tags.iter().map(|tag| tag.name.as_str().to_owned()).collect()
}

/// The primary of the first cluster, whose stream stands still.
pub(crate) struct FrozenPrimary {
    node: NodeInfo,
    senders: Vec<Process>,
}

impl FrozenPrimary {
    pub(crate) async fn freeze() -> Self {
        let node = primary().await;
        let senders = processes_of(&node, "walsender");
        signal(&senders, Signal::STOP);
        Self { node, senders }
    }

    /// Freezes the senders that began since.
    fn freeze_new(&mut self) {
        self.senders = processes_of(&self.node, "walsender");
        signal(&self.senders, Signal::STOP);
    }

    /// Kills the server. A sender that was woken would send what is to be lost.
    pub(crate) async fn kill(self) {
        fault(Fault::Kill, &self.node.name).await;
        signal(&self.senders, Signal::KILL);
    }
}

/// An acknowledged write of a client: whether its tag must be there in the end.
struct Acknowledged {
    key: ContentKey,
    tag: String,
    present: bool,
    receipt: Receipt,
}

/// Writes as a client does that gets its answer in the end: it retries with the same id.
async fn until_acknowledged(
    store: &PostgresStore,
    operation: Operation,
    key: &ContentKey,
) -> Receipt {
    let request = write_of(key, operation, None);
    loop {
        match store.write(request.clone()).await {
            Ok(WriteAnswer { receipt, .. }) => return receipt,
            Err(_) => tokio::time::sleep(RETRY_AFTER).await,
        }
    }
}

/// Clients of one process that add tags, and remove every fourth one again.
struct Clients {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<Acknowledged>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Clients {
    fn start(store: &Arc<PostgresStore>, run: &str) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let client = |n: usize| {
            let (store, stop) = (Arc::clone(store), Arc::clone(&stop));
            let answers: Arc<Mutex<Vec<Acknowledged>>> = Arc::clone(&answers);
            let run = format!("{run}-{n}");
            tokio::spawn(async move {
                for round in 0_u32.. {
                    let key = key_of(0, &format!("{run}-{}", round / 20));
                    let tag = format!("t{round}");
                    let changes = [(true, patch(&[&tag], &[])), (false, patch(&[], &[&tag]))];
                    for (present, operation) in
                        changes.into_iter().take(if round % 4 == 3 { 2 } else { 1 })
                    {
                        let (key, tag) = (key.clone(), tag.clone());
                        let receipt = until_acknowledged(&store, operation, &key).await;
                        answers.lock().push(Acknowledged { key, tag, present, receipt });
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                    }
                }
            })
        };
        let tasks = (0..4).map(client).collect();
        Self { stop, answers, tasks }
    }

    fn count(&self) -> usize {
        self.answers.lock().len()
    }

    /// Waits for as many more answers.
    async fn answered(&self, more: usize) {
        let before = self.count();
        wait_for_condition_async("acknowledgements", 60 * SECOND, || async {
            let count = self.count();
            if count >= before + more { Ok(()) } else { Err(count) }
        })
        .await;
    }

    async fn finish(self) -> Vec<Acknowledged> {
        self.stop.store(true, Ordering::SeqCst);
        join_all(self.tasks).await.into_iter().for_each(|task| task.expect("no client panics"));
        std::mem::take(&mut *self.answers.lock())
    }

    /// As when the process is killed: nobody hears of it again.
    fn abort(self) -> Vec<Acknowledged> {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        std::mem::take(&mut *self.answers.lock())
    }
}

/// Whether a write lies past the end of its epoch.
fn is_past_end(store: &PostgresStore, receipt: &Receipt) -> bool {
    let end = store.epoch_end(receipt.shard, receipt.position.epoch).unwrap_or(0);
    receipt.position.lsn > end
}

/// The report of the newest failover of the first cluster, once its repair is closed.
async fn closed_report(store: &PostgresStore, after: u64) -> FailoverReport {
    wait_for_condition_async("the repair to be closed", 90 * SECOND, || async {
        let reports = store.failovers(None, 20).await.map_err(|error| error.to_string())?;
        let newest = reports.into_iter().find(|report| report.cluster == "c0");
        let newest = newest.filter(|report| report.ordinal.0 > after);
        match newest {
            Some(report) if report.is_closed => Ok(report),
            Some(report) => Err(format!("open: {report:?}")),
            None => Err("no failover".to_owned()),
        }
    })
    .await
}

/// Each acknowledged write is in the content or listed, and its receipt says so. Returns how many
/// lay past the end of their epochs, and how many of them came back.
async fn check(store: &PostgresStore, writes: &[Acknowledged]) -> (usize, usize) {
    let receipts: Vec<Receipt> = writes.iter().map(|write| write.receipt).collect();
    let mut verdicts = Vec::with_capacity(receipts.len());
    for receipts in receipts.chunks(500) {
        verdicts.extend(store.verdicts(receipts).await);
    }
    let (mut lost, mut repaired) = (0, 0);
    // The last word about each tag: a client writes one after the other.
    let mut last = std::collections::BTreeMap::new();
    for (n, write) in writes.iter().enumerate() {
        let verdict = verdicts[n].as_ref().expect("a verdict");
        lost += usize::from(is_past_end(store, &write.receipt));
        repaired += usize::from(matches!(verdict, Verdict::Repaired { .. }));
        last.insert((write.key.clone(), write.tag.clone()), (write.present, *verdict));
    }
    for ((key, tag), (present, verdict)) in last {
        let is_there = names(store, &key).await.contains(&tag);
        match verdict {
            Verdict::Kept | Verdict::Repaired { is_superseded: false } => {
                assert_eq!(is_there, present, "{key} {tag}: {verdict:?}");
            }
            Verdict::Lost(_) => assert_ne!(is_there, present, "{key} {tag}: {verdict:?}"),
            Verdict::Repaired { is_superseded: true } | Verdict::Unknown(_) => {
                panic!("{key} {tag}: {verdict:?}")
            }
        }
    }
    (lost, repaired)
}

async fn epoch_of(store: &PostgresStore) -> u64 {
    store.status()[0].epoch.expect("an epoch")
}

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
    // What nobody is left to repair is gone, and its receipts say so.
    let past = of_dying.iter().filter(|write| is_past_end(&living, &write.receipt));
    let (mut gone, mut expired) = (0, 0);
    for write in past {
        match living.verdict(&write.receipt).await.expect("a verdict") {
            Verdict::Lost(LostReason::Unreported) => gone += 1,
            // Its group commit lay across the end of the epoch.
            Verdict::Unknown("expired") => expired += 1,
            other => panic!("{}: {other:?}", write.tag),
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
    let lost_ids: BTreeSet<WriteId> = acknowledged
        .iter()
        .filter(|write| is_past_end(&living, &write.receipt))
        .map(|write| write.receipt.write_id)
        .collect();
    assert!(ids.is_superset(&lost_ids), "{} listed, {} lost", ids.len(), lost_ids.len());
    assert_eq!(listed(None, Some(&other), None, 10).await, []);
    assert_eq!(listed(Some(VerdictKind::Lost), None, None, 10).await, []);
    let page = listed(Some(VerdictKind::Repaired), None, None, 1).await;
    assert_eq!(page, all[..1]);
    assert_eq!(listed(None, None, Some(page[0].write_id), 1).await, all[1..2]);

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

/// The repair is lost with the second primary, and done again from the journal.
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
    // Whoever follows it gets nothing of the repair.
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

/// A process on a thread of its own, which can be made to stand still as a whole.
struct Sleeper {
    runtime: tokio::runtime::Handle,
    store: Arc<PostgresStore>,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Sleeper {
    async fn start(options: PostgresOptions) -> Self {
        let (opened, open) = tokio::sync::oneshot::channel();
        let (end, ended) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            let handle = runtime.handle().clone();
            runtime.block_on(async move {
                let store = support::open(options, Arc::new(NullSink)).await;
                assert!(opened.send((handle, Arc::clone(&store))).is_ok(), "somebody waits");
                // An error: the test has failed.
                let _ = ended.await;
                store.close().await;
            });
        });
        let (runtime, store) = open.await.expect("it opens");
        Self { runtime, store, end: Some(end), thread: Some(thread) }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(Arc<PostgresStore>) -> futures_util::future::BoxFuture<'static, T>,
    ) -> T {
        self.runtime.spawn(work(Arc::clone(&self.store))).await.expect("no panic")
    }

    async fn acknowledge(&self, request: WriteRequest) -> WriteAnswer {
        self.run(|store| Box::pin(async move { acknowledge(&store, request).await })).await
    }

    /// Stands still until the sender is used or dropped.
    fn sleep(&self) -> std::sync::mpsc::Sender<()> {
        let (wake, woken) = std::sync::mpsc::channel();
        let asleep = async move { assert!(woken.recv().is_err(), "nothing is sent") };
        self.runtime.spawn(asleep);
        wake
    }

    fn end(mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
    }
}

/// What a process acknowledged before the failover, and what became of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_cannot_come_back_are_told_apart() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut options = options().await;
    options.limits.tags_per_content = LIMIT;
    let other = support::open(process(&options, "awake"), Arc::new(NullSink)).await;
    let relayless = PostgresOptions { relay: false, ..process(&options, "sleepy") };
    let sleeper = Sleeper::start(relayless).await;
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
    wait_for_condition_async("the replicas to have it", 10 * SECOND, || async {
        let lag = "SELECT count(*)::int FROM pg_stat_replication \
                   WHERE flush_lsn < pg_current_wal_flush_lsn()";
        match support::number(0, other.database(), lag).await {
            0 => Ok(()),
            behind => Err(behind),
        }
    })
    .await;
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
        receipts.push(sleeper.acknowledge(request).await.receipt);
    }
    let batch: Vec<WriteRequest> =
        ["one", "two"].map(|tag| write_of(&key("batch"), patch(&[tag], &[]), None)).into();
    let batch = batch.into_iter().take(1).collect::<Vec<_>>();
    let batch = sleeper.run(|store| Box::pin(async move { store.write_many(batch).await })).await;
    receipts.extend(batch.into_iter().map(|answer| answer.expect("acknowledged").receipt));
    let wake = sleeper.sleep();
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
    let repaired = Verdict::Repaired { is_superseded: false };
    let expected = [
        Verdict::Lost(LostReason::Limit),
        Verdict::Lost(LostReason::Conflict),
        Verdict::Repaired { is_superseded: true },
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
    sleeper.end();
    other.close().await;
}

/// A process sleeps until nobody waits for it any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_after_the_closing_is_listed_and_not_applied() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let options = options().await;
    let other = support::open(process(&options, "awake"), Arc::new(NullSink)).await;
    let relayless = PostgresOptions { relay: false, ..process(&options, "late") };
    let sleeper = Sleeper::start(relayless).await;
    let before = epoch_of(&other).await;
    let key = key_of(0, "late");
    acknowledge(&other, write_of(&key, patch(&["old"], &[]), None)).await;
    let frozen = FrozenPrimary::freeze().await;
    let receipt = sleeper.acknowledge(write_of(&key, patch(&["x"], &[]), None)).await.receipt;
    let wake = sleeper.sleep();
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
    sleeper.end();
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
