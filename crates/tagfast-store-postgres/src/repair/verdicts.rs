//! Answers receipts: what became of acknowledged writes.
//!
//! A write whose position lies before the end of its epoch is part of the current history, and no
//! database is asked. Of the others one query a cluster reads what repairs have recorded, which ids
//! documents have evicted, and which repairs are closed. It is answered by the primary, proven like
//! a read.
//!
//! How it fails: what cannot be told is `unknown` with its reason. Without a primary the receipts
//! that need it fail, each with the same error.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use tagfast_domain::{EpochOrdinal, UnixMillis};
use tagfast_failover::{Commit, EpochRecord, RecordedVerdict, VerdictFacts, WriteVerdict, verdict};
use tagfast_resilience::ErrorChain;
use tagfast_store::{LostReason, Receipt, ReceiptReader, StoreError, Verdict};
use tokio::time::Instant;
use tokio_postgres::types::ToSql;

use super::verdict_rows::{VERDICTS_REMEMBERED_MS, verdict_from_row};
use super::verdict_session::VerdictSession;
use crate::boot_clock::boot_time;
use crate::cluster::epoch_ends::EpochEnds;
use crate::cluster::topology::Node;
use crate::connect::{PgError, within};
use crate::options::limit;
use crate::refusal::unavailable;
use crate::store::{ClusterHandle, PostgresStore};

/// How long receipts wait for a primary and its proof.
const PRIMARY_WAIT: Duration = Duration::from_secs(1);

/// The verdict about a write whose epoch no one knows, or of which nothing is remembered.
const EXPIRED: Verdict = Verdict::Unknown("expired");
/// A repair may still bring it back.
const PENDING: Verdict = Verdict::Unknown("pending");

/// What the primary knows of some writes.
#[derive(Default)]
struct RecordedWrites {
    /// By the number of the write.
    recorded: HashMap<usize, Verdict>,
    evicted: Vec<usize>,
    /// Ordinals of the epochs whose repairs are closed for good, and when each was closed.
    closings: Vec<(u64, UnixMillis)>,
}

impl RecordedWrites {
    /// When verdicts about an epoch became final; `None`: they are not.
    fn closed_after(&self, epoch: EpochOrdinal) -> Option<UnixMillis> {
        let after = self.closings.iter().find(|(ordinal, _)| *ordinal > epoch.0);
        after.map(|(_, closed_at)| *closed_at)
    }
}

/// The verdict about the write number `n`.
fn decide(
    n: usize,
    receipt: &Receipt,
    ends: &EpochEnds,
    known: &RecordedWrites,
    now: UnixMillis,
) -> Verdict {
    let recorded = known.recorded.get(&n).copied();
    let epoch = receipt.position.epoch;
    let closed_at = ends.ordinal_of(epoch).and_then(|ordinal| known.closed_after(ordinal));
    let facts = VerdictFacts {
        recorded: recorded.map(|verdict| match verdict {
            Verdict::Repaired { .. } => RecordedVerdict::Repaired,
            Verdict::Lost(_) => RecordedVerdict::Lost,
            Verdict::Kept | Verdict::Unknown(_) => RecordedVerdict::Kept,
        }),
        is_known: known.evicted.contains(&n),
        epoch_end: ends.of(epoch),
        inside: receipt.inside_lsn,
        flushed: receipt.position.lsn,
        is_closed: closed_at.is_some(),
    };
    match (verdict(&facts), recorded) {
        (WriteVerdict::Kept | WriteVerdict::Repaired | WriteVerdict::Lost, Some(recorded)) => {
            recorded
        }
        (WriteVerdict::Kept, None) => Verdict::Kept,
        (WriteVerdict::Repaired, None) => {
            Verdict::Repaired { is_superseded: false, by_event: false }
        }
        // What a repair did about it may have been forgotten.
        (WriteVerdict::Lost, None)
            if closed_at.is_none_or(|at| now.saturating_sub(at) >= VERDICTS_REMEMBERED_MS) =>
        {
            EXPIRED
        }
        (WriteVerdict::Lost, None) => Verdict::Lost(LostReason::Unreported),
        // It was never an epoch of this cluster, or etcd has lost its history.
        (WriteVerdict::Pending, _) if ends.of(epoch).is_none() => EXPIRED,
        (WriteVerdict::Pending, _) => PENDING,
        (WriteVerdict::Expired, _) => EXPIRED,
    }
}

impl PostgresStore {
    /// The verdicts about writes of one cluster, in the order of the receipts.
    async fn verdicts_of(
        &self,
        handle: &ClusterHandle,
        receipts: &[&Receipt],
    ) -> Vec<Result<Verdict, StoreError>> {
        let cluster = &handle.cluster;
        // Once: an epoch may begin meanwhile.
        let ends = cluster.epoch_ends();
        let is_asked =
            |receipt: &Receipt| ends.of(receipt.position.epoch) < Some(receipt.position.lsn);
        let asked: Vec<&Receipt> = receipts.iter().copied().filter(|r| is_asked(r)).collect();
        let answers: Result<Vec<Verdict>, StoreError> = match asked.is_empty() {
            true => Ok(Vec::new()),
            false => self.ask_primary(handle, &asked).await,
        };
        let mut answers = answers.map(Vec::into_iter).map_err(Arc::new);
        let answer = |receipt: &&Receipt| match (&mut answers, is_asked(receipt)) {
            (_, false) => Ok(Verdict::Kept),
            (Ok(answers), true) => Ok(answers.next().unwrap_or(PENDING)),
            (Err(error), true) => Err(error.share()),
        };
        receipts.iter().map(answer).collect()
    }

    async fn ask_primary(
        &self,
        handle: &ClusterHandle,
        receipts: &[&Receipt],
    ) -> Result<Vec<Verdict>, StoreError> {
        let cluster = &handle.cluster;
        let until = Instant::now() + PRIMARY_WAIT;
        let no_primary = || unavailable("the cluster has no primary", false);
        let (epoch, node) = cluster.primary(until).await.ok_or_else(no_primary)?;
        let (ends, is_complete) = self.ends_for(handle, &epoch, receipts).await;
        let sent = boot_time();
        let read = self.read_writes(handle, &epoch, &node, receipts).await;
        let known = read.map_err(|error| {
            cluster.report_failure();
            tracing::debug!(cluster = cluster.name, error = %ErrorChain(&error), "no verdicts");
            unavailable("the primary does not answer", false)
        })?;
        let asked = Commit { epoch: epoch.id, sent, returned: boot_time() };
        if !cluster.may_acknowledge(&asked, until).await {
            return Err(unavailable("the primary may have been replaced", false));
        }
        let now = self.clock.now_ms();
        let decide = |(n, receipt): (usize, &&Receipt)| {
            let verdict = decide(n, receipt, &ends, &known, now);
            // Its epoch may be one that etcd would know.
            let is_unsure = !is_complete && ends.of(receipt.position.epoch).is_none();
            if verdict == EXPIRED && is_unsure { PENDING } else { verdict }
        };
        Ok(receipts.iter().enumerate().map(decide).collect())
    }

    /// The ends of the epochs in this epoch's history, and whether they are those of all epochs. An
    /// epoch that this process does not know is looked up in etcd.
    async fn ends_for(
        &self,
        handle: &ClusterHandle,
        epoch: &EpochRecord,
        receipts: &[&Receipt],
    ) -> (EpochEnds, bool) {
        let known = handle.cluster.epoch_ends();
        if receipts.iter().all(|receipt| known.of(receipt.position.epoch).is_some()) {
            return (known, true);
        }
        match self.etcd.history(&handle.cluster.scope).await {
            Ok(history) => (EpochEnds::new(Some(&history), epoch), true),
            Err(_) => (known, false),
        }
    }

    async fn read_writes(
        &self,
        handle: &ClusterHandle,
        epoch: &EpochRecord,
        node: &Node,
        receipts: &[&Receipt],
    ) -> Result<RecordedWrites, PgError> {
        let session = self.verdict_session(handle, &node.address).await?;
        let ids: Vec<&[u8]> = receipts.iter().map(|r| r.write_id.0.as_slice()).collect();
        let id: &[u8] = &epoch.id.0;
        let parameters: [&(dyn ToSql + Sync); 2] = [&ids, &id];
        let client = &session.connection.client;
        let all = async {
            // The closings first: what a repair recorded before one is seen by the second read.
            let (closings, writes) = futures_util::future::join(
                client.query(&session.select_closings, &[]),
                client.query(&session.select_writes, &parameters),
            )
            .await;
            Ok((closings?, writes?))
        };
        let (closings, writes) = within("reading verdicts", limit::READ_TIMEOUT, all).await?;
        let mut known = RecordedWrites::default();
        for row in closings {
            known.closings.push((row.get::<_, i64>(0).cast_unsigned(), row.get(1)));
        }
        for row in writes {
            let n = usize::try_from(row.get::<_, i32>(0) - 1).unwrap_or(usize::MAX);
            if let Some(verdict) = verdict_from_row(row.get(1), row.get(2)) {
                known.recorded.insert(n, verdict);
            }
            if row.get(3) {
                known.evicted.push(n);
            }
        }
        Ok(known)
    }

    async fn verdict_session(
        &self,
        handle: &ClusterHandle,
        address: &str,
    ) -> Result<Arc<VerdictSession>, PgError> {
        let mut open = handle.verdict_session.lock().await;
        if let Some((known, session)) = &*open
            && known == address
            && !session.connection.client.is_closed()
        {
            return Ok(Arc::clone(session));
        }
        let session = Arc::new(VerdictSession::open(&self.connections, address).await?);
        *open = Some((address.to_owned(), Arc::clone(&session)));
        Ok(session)
    }
}

#[async_trait]
impl ReceiptReader for PostgresStore {
    async fn verdict(&self, receipt: &Receipt) -> Result<Verdict, StoreError> {
        let handle = self.cluster(receipt.shard);
        let verdicts = self.verdicts_of(handle, &[receipt]).await;
        verdicts.into_iter().next().unwrap_or(Ok(PENDING))
    }

    async fn verdicts(&self, receipts: &[Receipt]) -> Vec<Result<Verdict, StoreError>> {
        // By cluster, each asked once.
        let mut places: HashMap<u16, Vec<usize>> = HashMap::new();
        for (n, receipt) in receipts.iter().enumerate() {
            places.entry(self.cluster(receipt.shard).cluster.index).or_default().push(n);
        }
        let asked = places.into_values().map(async |places| {
            let of_cluster: Vec<&Receipt> = places.iter().map(|n| &receipts[*n]).collect();
            let verdicts = match of_cluster.first() {
                Some(first) => self.verdicts_of(self.cluster(first.shard), &of_cluster).await,
                None => Vec::new(),
            };
            places.into_iter().zip(verdicts).collect::<Vec<_>>()
        });
        let mut verdicts: Vec<(usize, Result<Verdict, StoreError>)> =
            join_all(asked).await.into_iter().flatten().collect();
        verdicts.sort_by_key(|(n, _)| *n);
        verdicts.into_iter().map(|(_, verdict)| verdict).collect()
    }
}

#[cfg(test)]
mod tests {
    use tagfast_domain::{EpochId, WriteId};
    use tagfast_sharding::LogicalShard;
    use tagfast_store::Position;

    use super::*;
    use crate::cluster::epoch_ends::tests::epoch;

    fn receipt(n: u8, inside_lsn: u64, lsn: u64) -> Receipt {
        Receipt {
            cluster: 0,
            shard: LogicalShard::from_number(0).expect("a shard"),
            inside_lsn,
            position: Position { epoch: EpochId([n; 16]), xid: 1, lsn },
            write_id: WriteId([n; 16]),
        }
    }

    /// Epoch 1 ends at 500 in epoch 2, epoch 2 at 800 in epoch 3.
    fn ends() -> EpochEnds {
        let (one, two, three) = (
            epoch(1, None, 1, None),
            epoch(2, Some(1), 2, Some(500)),
            epoch(3, Some(2), 3, Some(800)),
        );
        EpochEnds::new(Some(&[one, two, three.clone()]), &three)
    }

    fn closed(ordinal: u64, at: UnixMillis) -> RecordedWrites {
        RecordedWrites { closings: vec![(ordinal, at)], ..RecordedWrites::default() }
    }

    #[test]
    fn a_write_past_the_end_is_lost_once_a_later_repair_is_closed() {
        let of = |n, known: &RecordedWrites| decide(0, &receipt(n, 900, 910), &ends(), known, 10);
        assert_eq!(of(1, &RecordedWrites::default()), PENDING);
        assert_eq!(of(1, &closed(2, 5)), Verdict::Lost(LostReason::Unreported));
        // Epoch 2 died before its repair was closed; the closing of epoch 3 speaks for it.
        assert_eq!(of(1, &closed(3, 5)), Verdict::Lost(LostReason::Unreported));
        assert_eq!(of(2, &closed(2, 5)), PENDING, "a later repair than its own must be closed");
    }

    #[test]
    fn a_verdict_that_a_repair_recorded_stands() {
        let mut known = closed(2, 5);
        for (verdict, reason) in [
            ("kept", None),
            ("repaired", None),
            ("repaired", Some("superseded")),
            ("lost", Some("limit")),
            ("lost", Some("conflict")),
            ("lost", Some("late")),
        ] {
            let recorded = verdict_from_row(Some(verdict), reason).expect("a verdict");
            assert_eq!((recorded.as_str(), recorded.reason()), (verdict, reason));
            known.recorded.insert(0, recorded);
            assert_eq!(decide(0, &receipt(1, 900, 910), &ends(), &known, 10), recorded);
        }
        assert_eq!(verdict_from_row(None, None), None);
        assert_eq!(verdict_from_row(Some("lost"), Some("of a newer program")), None);
    }

    #[test]
    fn an_evicted_id_is_kept() {
        let known = RecordedWrites { evicted: vec![0], ..closed(2, 5) };
        assert_eq!(decide(0, &receipt(1, 900, 910), &ends(), &known, 10), Verdict::Kept);
    }

    #[test]
    fn what_repairs_have_forgotten_is_expired_not_lost() {
        let of = |now| decide(0, &receipt(1, 900, 910), &ends(), &closed(2, 5), now);
        assert_eq!(of(4 + VERDICTS_REMEMBERED_MS), Verdict::Lost(LostReason::Unreported));
        assert_eq!(of(5 + VERDICTS_REMEMBERED_MS), EXPIRED);
        // Its commit may lie on either side of the end, and no one remembers its id.
        assert_eq!(decide(0, &receipt(1, 490, 510), &ends(), &closed(2, 5), 10), EXPIRED);
        // Of an epoch that etcd does not know.
        assert_eq!(decide(0, &receipt(9, 1, 2), &ends(), &closed(2, 5), 10), EXPIRED);
    }
}
