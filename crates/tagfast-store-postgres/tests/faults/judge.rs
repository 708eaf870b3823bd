//! Asks the service what became of the writes of a run, when all repairs are closed, and puts the
//! answers into the history.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::{EpochId, WriteId};
use tagfast_sharding::LogicalShard;
use tagfast_store::failovers::{FailoverReader, FailoverReport, FailoverWritesRequest};
use tagfast_store::{History, Receipt, ReceiptReader, StoreError, Verdict};
use tagfast_store_postgres::PostgresStore;
use tagfast_testkit::history::{VerdictAnswer, WriteVerdict};
use tagfast_testkit::wait_for_condition_async;

use crate::client::Answers;

/// Receipts in one call, as the API allows.
const RECEIPTS_MAX: usize = 500;
/// Listed writes in one call.
const PAGE: usize = 1000;
/// A repair is closed after 60 s at the latest, and its closing must reach the replicas.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a primary may be busy with other things.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

fn verdict_of(verdict: Verdict) -> WriteVerdict {
    match verdict {
        Verdict::Kept => WriteVerdict::Kept,
        Verdict::Repaired { .. } => WriteVerdict::Repaired,
        Verdict::Lost(reason) => WriteVerdict::Lost(reason.as_str().to_owned()),
        Verdict::Unknown(reason) => WriteVerdict::Unknown(reason.to_owned()),
    }
}

/// Asks about every receipt of the answers.
async fn ask(
    answers: &Answers,
    store: &PostgresStore,
) -> Result<BTreeMap<usize, WriteVerdict>, String> {
    let all: Vec<(usize, Receipt)> = answers.receipts.iter().map(|(n, r)| (*n, *r)).collect();
    let mut verdicts = BTreeMap::new();
    for part in all.chunks(RECEIPTS_MAX) {
        let receipts: Vec<Receipt> = part.iter().map(|(_, receipt)| *receipt).collect();
        for ((place, _), verdict) in part.iter().zip(store.verdicts(&receipts).await) {
            verdicts.insert(*place, verdict_of(verdict.map_err(|error| error.to_string())?));
        }
    }
    Ok(verdicts)
}

fn note(
    answers: &mut Answers,
    verdicts: BTreeMap<usize, WriteVerdict>,
    at: Duration,
    closed: bool,
) {
    for (place, verdict) in verdicts {
        answers.history.writes[place].verdicts.push(VerdictAnswer { at, closed, verdict });
    }
}

/// The failovers of the first cluster after the epoch `since`, once all their repairs are closed.
async fn closed_failovers(store: &PostgresStore, since: u64) -> Vec<FailoverReport> {
    wait_for_condition_async("every repair to be closed", CLOSING_TIMEOUT, || async {
        let reports = store.failovers(None, 50).await.map_err(|error| error.to_string())?;
        let ours = |r: &FailoverReport| r.cluster == "c0" && r.ordinal.0 > since;
        let reports: Vec<FailoverReport> = reports.into_iter().filter(ours).collect();
        match reports.iter().find(|report| !report.is_closed) {
            None => Ok(reports),
            Some(open) => Err(format!("{open:?}")),
        }
    })
    .await
}

/// Every write that the reports list, with its verdict.
async fn listed(
    store: &PostgresStore,
    reports: &[FailoverReport],
) -> Result<BTreeMap<u128, WriteVerdict>, StoreError> {
    let mut listed = BTreeMap::new();
    for report in reports {
        let mut after = None;
        loop {
            let (epoch, limit) = (report.epoch, PAGE);
            let request =
                FailoverWritesRequest { epoch, verdict: None, tenant: None, after, limit };
            let page = store.failover_writes(&request).await?;
            after = page.last().map(|write| write.write_id);
            let id = |id: WriteId| u128::from_be_bytes(id.0);
            listed.extend(page.iter().map(|w| (id(w.write_id), verdict_of(w.verdict))));
            if page.len() < PAGE {
                break;
            }
        }
    }
    Ok(listed)
}

/// Completes the history of the first cluster. `since`: the ordinal of its epoch before the
/// faults; `began_ms`: the start of the history in Unix ms; `now`: the time in the history.
pub(crate) async fn judge(
    answers: &mut Answers,
    stores: &[Arc<PostgresStore>],
    since: u64,
    began_ms: i64,
    now: impl Fn() -> Duration,
) {
    let first = &stores[0];
    // Not final yet, perhaps: an answer that may still change.
    if let Ok(verdicts) = ask(answers, first).await {
        note(answers, verdicts, now(), false);
    }
    let reports = closed_failovers(first, since).await;
    for store in stores {
        let verdicts = wait_for_condition_async("final verdicts", CLOSING_TIMEOUT, || async {
            let verdicts = ask(answers, store).await?;
            let pending = WriteVerdict::Unknown("pending".to_owned());
            match verdicts.values().filter(|verdict| **verdict == pending).count() {
                0 => Ok(verdicts),
                count => Err(format!("{count} are pending")),
            }
        })
        .await;
        note(answers, verdicts, now(), true);
    }
    let listed = wait_for_condition_async("the lists of writes", READ_TIMEOUT, || async {
        listed(first, &reports).await
    });
    answers.history.listed = Some(listed.await);
    let shard = answers.contents.values().next().map(LogicalShard::of).expect("a content");
    for epoch in &mut answers.history.epochs {
        let end = first.epoch_end(shard, EpochId(epoch.id.to_be_bytes()));
        epoch.end = end.filter(|end| *end != u64::MAX);
        let report = reports.iter().find(|r| u128::from_be_bytes(r.epoch.0) == epoch.id);
        let Some(report) = report else { continue };
        let closed_at = report.times.repair_closed_at.map(|at| at.saturating_sub(began_ms));
        let closed_at = closed_at.and_then(|ms| u64::try_from(ms).ok());
        epoch.closed_at = closed_at.map(Duration::from_millis);
        let ended = report.nodes.iter().filter(|node| node.ended_at.is_some());
        epoch.reported = ended.filter_map(|node| number_of(&node.node)).collect::<BTreeSet<_>>();
    }
}

/// The number of a process, from its name: `p1.` and what tells its runs apart.
fn number_of(name: &str) -> Option<u32> {
    name.strip_prefix('p')?.split('.').next()?.parse().ok()
}
