//! What the tests of the repair write with: clients that retry until they are answered.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tagfast_domain::{
    ContentKey, IfMatch, Limits, Operation, Tag, TagName, UserId, Write, WriteId,
};
use tagfast_resilience::{Breakers, Clock, SystemClock};
use tagfast_store::failovers::{FailoverReader, FailoverReport};
use tagfast_store::{
    Consistency, History, ReadOptions, Receipt, ReceiptReader, TagReader, TagWriter, Verdict,
    WriteAnswer, WriteRequest,
};
use tagfast_store_postgres::{PostgresOptions, PostgresStore};
use tagfast_testkit::wait_for_condition_async;

use crate::scenarios::{SECOND, all_whole};
use crate::support;
use crate::writes::key_of;

/// How long a client waits that was refused.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Options of processes on a database of their own, each with a name.
pub(crate) async fn options() -> PostgresOptions {
    all_whole().await;
    support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await
}

/// A process: two of them share no breakers.
pub(crate) fn process(options: &PostgresOptions, name: &str) -> PostgresOptions {
    let breakers = Breakers::new(Arc::new(SystemClock));
    PostgresOptions { node: name.to_owned(), breakers, ..options.clone() }
}

pub(crate) fn write_of(
    key: &ContentKey,
    operation: Operation,
    if_match: Option<IfMatch>,
) -> WriteRequest {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("random bits");
    let user = UserId::parse("user").expect("a user");
    WriteRequest::new(Write { id: WriteId(id), key: key.clone(), user, operation, if_match })
}

pub(crate) fn tags(names: &[&str]) -> Vec<Tag> {
    names.iter().map(|name| Tag::parse(name).expect("a tag")).collect()
}

pub(crate) fn patch(add: &[&str], remove: &[&str]) -> Operation {
    let remove = remove.iter().map(|name| TagName::parse(name).expect("a tag")).collect();
    Operation::patch(tags(add), remove, &Limits::default()).expect("a patch")
}

pub(crate) async fn acknowledge(store: &PostgresStore, request: WriteRequest) -> WriteAnswer {
    store.write(request).await.expect("acknowledged")
}

pub(crate) async fn names(store: &PostgresStore, key: &ContentKey) -> BTreeSet<String> {
    let options = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    let view = store.view(key, &options).await.expect("a strong read");
    view.tags.iter().map(|tag| tag.name.as_str().to_owned()).collect()
}

/// An acknowledged write of a client: whether its tag must be there in the end.
pub(crate) struct Acknowledged {
    pub(crate) key: ContentKey,
    pub(crate) tag: String,
    pub(crate) present: bool,
    pub(crate) receipt: Receipt,
}

/// Writes as a client does that gets its answer in the end: it retries with the same id.
pub(crate) async fn until_acknowledged(
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
pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<Acknowledged>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Clients {
    pub(crate) fn start(store: &Arc<PostgresStore>, run: &str) -> Self {
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

    pub(crate) fn count(&self) -> usize {
        self.answers.lock().len()
    }

    /// Waits for as many more answers.
    pub(crate) async fn answered(&self, more: usize) {
        let before = self.count();
        wait_for_condition_async("acknowledgements", 60 * SECOND, || async {
            let count = self.count();
            if count >= before + more { Ok(()) } else { Err(count) }
        })
        .await;
    }

    pub(crate) async fn finish(self) -> Vec<Acknowledged> {
        self.stop.store(true, Ordering::SeqCst);
        join_all(self.tasks).await.into_iter().for_each(|task| task.expect("no client panics"));
        std::mem::take(&mut *self.answers.lock())
    }

    /// As when the process is killed: no one hears of it again.
    pub(crate) fn abort(self) -> Vec<Acknowledged> {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        std::mem::take(&mut *self.answers.lock())
    }
}

/// Waits until every replica of the first cluster has what its primary has.
pub(crate) async fn replicas_have_all(database: &str) {
    let lag = "SELECT count(*)::int FROM pg_stat_replication \
               WHERE flush_lsn < pg_current_wal_flush_lsn()";
    wait_for_condition_async("the replicas to have it", 10 * SECOND, || async {
        match support::number(0, database, lag).await {
            0 => Ok(()),
            behind => Err(behind),
        }
    })
    .await;
}

/// Whether a write lies past the end of its epoch.
pub(crate) fn is_past_end(store: &PostgresStore, receipt: &Receipt) -> bool {
    let end = store.epoch_end(receipt.shard, receipt.position.epoch).unwrap_or(0);
    receipt.position.lsn > end
}

/// The report of the newest failover of the first cluster, once its repair is closed.
pub(crate) async fn closed_report(store: &PostgresStore, after: u64) -> FailoverReport {
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
/// were not part of the new primary's history, and how many of them came back.
pub(crate) async fn check(store: &PostgresStore, writes: &[Acknowledged]) -> (usize, usize) {
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
        // The position of a group commit that is kept may lie past the end: it is read after the
        // commit, and other transactions were flushed meanwhile.
        let is_across = || {
            let end = store.epoch_end(write.receipt.shard, write.receipt.position.epoch);
            end.is_some_and(|end| write.receipt.inside_lsn < end)
        };
        let is_lost = match verdict {
            Verdict::Kept if is_past_end(store, &write.receipt) => {
                assert!(is_across(), "{} {}: {:?}", write.key, write.tag, write.receipt);
                false
            }
            Verdict::Kept | Verdict::Repaired { .. } | Verdict::Lost(_) | Verdict::Unknown(_) => {
                is_past_end(store, &write.receipt)
            }
        };
        lost += usize::from(is_lost);
        repaired += usize::from(matches!(verdict, Verdict::Repaired { .. }));
        last.insert((write.key.clone(), write.tag.clone()), (write.present, *verdict));
    }
    for ((key, tag), (present, verdict)) in last {
        let is_there = names(store, &key).await.contains(&tag);
        match verdict {
            Verdict::Kept | Verdict::Repaired { is_superseded: false, .. } => {
                assert_eq!(is_there, present, "{key} {tag}: {verdict:?}");
            }
            Verdict::Lost(_) => assert_ne!(is_there, present, "{key} {tag}: {verdict:?}"),
            Verdict::Repaired { is_superseded: true, .. } | Verdict::Unknown(_) => {
                panic!("{key} {tag}: {verdict:?}")
            }
        }
    }
    (lost, repaired)
}

/// Waits until the store has a primary of a later epoch; returns its ordinal.
pub(crate) async fn next_epoch(store: &PostgresStore, before: u64, timeout: Duration) -> u64 {
    wait_for_condition_async("the next epoch", timeout, || async {
        let status = store.status();
        let epoch = status[0].epoch.filter(|epoch| *epoch > before);
        epoch.filter(|_| status[0].primary.is_some()).ok_or(format!("{status:?}"))
    })
    .await
}

pub(crate) async fn epoch_of(store: &PostgresStore) -> u64 {
    store.status()[0].epoch.expect("an epoch")
}
