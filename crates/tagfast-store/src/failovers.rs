//! What failovers did to acknowledged writes: the reports of a store that is replicated.
//!
//! How it fails: a report is only as complete as the processes that reported. Those that did not
//! are named, and so are log ranges for which a process had forgotten its writes.

use async_trait::async_trait;
use tagfast_domain::{ContentKey, EpochId, EpochOrdinal, TenantId, UnixMillis, Version, WriteId};

use crate::{StoreError, Verdict};

/// The place of a failover in the order of all clusters' failovers, larger for later ones. Ordinals
/// alone do not order them: two clusters that lost one machine may mint in the same millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FailoverCursor {
    /// The ordinal of the epoch that began.
    pub ordinal: EpochOrdinal,
    /// Its id.
    pub epoch: EpochId,
}

/// When each phase of a failover was, in Unix ms; `None`: it was not seen, or is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FailoverTimes {
    /// The first call to the old primary failed, or its leader key was gone.
    pub suspected_at: Option<UnixMillis>,
    /// Writes began to wait.
    pub held_at: Option<UnixMillis>,
    /// The new primary was first seen out of recovery.
    pub promoted_at: Option<UnixMillis>,
    /// The epoch was minted.
    pub minted_at: UnixMillis,
    /// The first write was acknowledged in the new epoch.
    pub first_acknowledged_at: Option<UnixMillis>,
    /// The repair was closed: verdicts of earlier epochs are final.
    pub repair_closed_at: Option<UnixMillis>,
}

/// How many writes of ended epochs had which verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VerdictCounts {
    /// They were in the new history.
    pub kept: u64,
    /// They were lost and brought back.
    pub repaired: u64,
    /// They were lost for good.
    pub lost: u64,
    /// No one was told of them, or their verdict is not final.
    pub unknown: u64,
}

/// A range of an ended epoch's log for which a process had forgotten its writes. Up to `u64::MAX`,
/// without writes: a file could not be read, and what it held is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IncompleteLog {
    /// The epoch.
    pub epoch: EpochId,
    /// From this log position.
    pub from: u64,
    /// Up to this log position.
    pub to: u64,
    /// How many writes.
    pub writes: u64,
}

/// What one process of the service repaired after a failover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRepair {
    /// The process.
    pub node: String,
    /// Its acknowledged writes that a failover could have lost.
    pub counts: VerdictCounts,
    /// When its repair began, Unix ms.
    pub began_at: UnixMillis,
    /// When it ended, Unix ms; `None`: it goes on.
    pub ended_at: Option<UnixMillis>,
    /// Where it cannot tell.
    pub incomplete: Vec<IncompleteLog>,
    /// The phases as this process saw them.
    pub times: FailoverTimes,
}

/// One failover: the epoch that it began, and what became of the writes of the epochs before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverReport {
    /// The cluster.
    pub cluster: String,
    /// The epoch that began.
    pub epoch: EpochId,
    /// Its ordinal.
    pub ordinal: EpochOrdinal,
    /// The epoch before; `None`: it is unknown.
    pub previous: Option<EpochId>,
    /// The member that is primary in it.
    pub primary: String,
    /// The member that was primary before; `None`: it is unknown.
    pub previous_primary: Option<String>,
    /// The leader term: the creation revision of Patroni's leader key.
    pub term: u64,
    /// Its timeline.
    pub timeline: u32,
    /// Where its timeline left its parent; `None`: it did not.
    pub fork_lsn: Option<u64>,
    /// The earliest time of each phase that any process saw.
    pub times: FailoverTimes,
    /// The sum over all processes.
    pub counts: VerdictCounts,
    /// Every process that reported.
    pub nodes: Vec<NodeRepair>,
    /// Processes that were registered and have not reported.
    pub missing_nodes: Vec<String>,
    /// Whether verdicts about the epochs before are final.
    pub is_closed: bool,
    /// The epoch of a later failover, whose repair ended this one's; `None`: it had an end of its
    /// own, or is open.
    pub superseded_by: Option<EpochId>,
}

impl FailoverReport {
    /// Its place in the order of all failovers.
    pub fn cursor(&self) -> FailoverCursor {
        FailoverCursor { ordinal: self.ordinal, epoch: self.epoch }
    }
}

/// An acknowledged write that a failover did not simply keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverWrite {
    /// Its id.
    pub write_id: WriteId,
    /// Its content.
    pub key: ContentKey,
    /// What became of it.
    pub verdict: Verdict,
    /// The version that it had made.
    pub version: Version,
    /// The epoch in which it was acknowledged.
    pub epoch: EpochId,
    /// When the verdict was recorded, Unix ms.
    pub at: UnixMillis,
}

/// Which writes of a failover are listed.
#[derive(Debug, Clone, Copy)]
pub struct FailoverWritesRequest<'a> {
    /// The epoch that the failover began.
    pub epoch: EpochId,
    /// Only those with this verdict; `None`: all.
    pub verdict: Option<VerdictKind>,
    /// Only those of this tenant; `None`: of all.
    pub tenant: Option<&'a TenantId>,
    /// Only those after this id; `None`: from the first one on.
    pub after: Option<WriteId>,
    /// Maximum number.
    pub limit: usize,
}

/// A verdict without its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VerdictKind {
    /// See [`Verdict::Repaired`].
    Repaired,
    /// See [`Verdict::Lost`].
    Lost,
}

/// Reads what failovers did.
#[async_trait]
pub trait FailoverReader: Send + Sync {
    /// The failovers of all clusters, newest first; with `before` only the earlier ones.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`]: etcd, which has the reports, does not answer.
    async fn failovers(
        &self,
        before: Option<FailoverCursor>,
        limit: usize,
    ) -> Result<Vec<FailoverReport>, StoreError>;

    /// The failover that began this epoch; `None`: there is none.
    ///
    /// # Errors
    ///
    /// As [`FailoverReader::failovers`].
    async fn failover(&self, epoch: EpochId) -> Result<Option<FailoverReport>, StoreError>;

    /// The writes of a failover that were not simply kept, in the order of their ids. They are
    /// remembered for seven days. An unknown epoch has none.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`]: the cluster cannot be read.
    async fn failover_writes(
        &self,
        request: &FailoverWritesRequest<'_>,
    ) -> Result<Vec<FailoverWrite>, StoreError>;
}

/// Learns what failovers did, to tell people.
pub trait FailoverObserver: Send + Sync {
    /// The repair after a failover is closed, by this process: no other one calls this for it. Must
    /// not block.
    fn repair_closed(&self, report: &FailoverReport);
}
