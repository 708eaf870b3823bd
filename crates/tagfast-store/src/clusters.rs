//! The clusters as one process of the service sees them: what its operator looks at on call.
//!
//! How it fails: it does not. The report is made from memory, so that it can also be had while a
//! cluster is down; every sample carries the time at which it was taken.

use std::time::Duration;

use tagfast_domain::{EpochId, EpochOrdinal, UnixMillis};

/// A cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterReport {
    /// Its name.
    pub name: String,
    /// When the report was made, Unix ms.
    pub observed_at: UnixMillis,
    /// The epoch this process is in, with its primary; `None`: it has adopted none.
    pub epoch: Option<ClusterEpoch>,
    /// Why the cluster takes no writes; `None`: it does.
    pub problem: Option<String>,
    /// Its members, the primary first.
    pub members: Vec<ClusterMember>,
    /// For how long the lease still proves leadership; zero: no longer, `None`: it never did.
    pub proof_left: Option<Duration>,
    /// What bounds the loss of a failover.
    pub guard: ClusterGuard,
    /// The writer lanes of this process.
    pub lanes: Vec<LaneReport>,
    /// The outbox of the primary.
    pub outbox: OutboxReport,
    /// The journal of this process.
    pub journal: JournalReport,
    /// Whether the repair after the last failover is closed; `None`: that was not read yet.
    pub is_repair_closed: Option<bool>,
    /// The long transactions that hold the relay, each a sentence that says what to do.
    pub long_transactions: Vec<String>,
    /// Which calls fail, and why.
    pub failing: Vec<FailingCallsReport>,
    /// What weakens a promise.
    pub warnings: Vec<ClusterWarning>,
}

/// An epoch and its primary. A primary is named here alone: what a node of an earlier epoch says of
/// itself is not believed, so no report names two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterEpoch {
    /// Its id.
    pub id: EpochId,
    /// Its ordinal.
    pub ordinal: EpochOrdinal,
    /// The leader term: the creation revision of Patroni's leader key.
    pub term: u64,
    /// Its timeline.
    pub timeline: u32,
    /// When it was minted, Unix ms.
    pub since: UnixMillis,
    /// The member that takes writes in it; `None`: none is known to now.
    pub primary: Option<String>,
}

/// What a member is in the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberRole {
    /// It takes the writes.
    Primary,
    /// Any other member.
    Replica,
}

/// A member of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterMember {
    /// Its name.
    pub name: String,
    /// Host and port of its PostgreSQL.
    pub address: String,
    /// What it is in the epoch.
    pub role: MemberRole,
    /// When it last answered this process, Unix ms; `None`: it has not.
    pub observed_at: Option<UnixMillis>,
    /// Of a replica: how far it is behind, at least; `None`: nothing is known.
    pub age: Option<Duration>,
    /// Whether the primary streams to it; `None`: it is the primary, or that is not known.
    pub is_streaming: Option<bool>,
    /// The log position that it has flushed, as the primary of this epoch says; `None`: unknown.
    pub flushed: Option<u64>,
    /// Why it is behind, and what to do; `None`: it is not.
    pub problem: Option<String>,
}

/// What bounds the loss of a failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterGuard {
    /// A stable word: `open`, `throttled`, `holding` or `refusing`.
    pub state: &'static str,
    /// The age of the oldest acknowledged write of this process that no replica has.
    pub exposure: Duration,
    /// The span of acknowledged writes that a failover may lose.
    pub max_loss: Duration,
}

/// A writer lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneReport {
    /// Its number.
    pub number: usize,
    /// Writes that wait in it.
    pub queued: usize,
    /// The most that may wait.
    pub queued_max: usize,
}

/// The outbox of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxReport {
    /// What its tables take on disk, in bytes.
    pub bytes: u64,
    /// From this size on writes are refused, in bytes.
    pub bytes_max: u64,
    /// When that was read, Unix ms; `None`: it was not.
    pub observed_at: Option<UnixMillis>,
}

/// The journal of a process for a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalReport {
    /// What it holds, in bytes.
    pub bytes: usize,
    /// The most it may hold, in bytes.
    pub bytes_max: usize,
    /// The contents in it.
    pub contents: usize,
    /// Those of them that wait for a repair.
    pub waiting_for_repair: usize,
    /// Acknowledged writes that it had to forget and that a failover could still lose.
    pub forgotten_writes: u64,
}

/// Calls that fail for one cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailingCallsReport {
    /// `writes` or `reads`.
    pub calls: &'static str,
    /// The cause, a stable word.
    pub cause: &'static str,
    /// The cause as a sentence.
    pub problem: String,
    /// What to do.
    pub remedy: String,
    /// For how long.
    pub lasts: Duration,
    /// The share of the last calls that failed, in percent.
    pub share_percent: u64,
    /// The last error's own words; empty: there were none.
    pub error: String,
}

/// What weakens a promise on a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterWarning {
    /// The part that it is about, a stable word: `etcd`, `installation`, `journal`,
    /// `loss`.
    pub part: &'static str,
    /// A sentence that says what to do.
    pub text: String,
}

/// Reports the state of clusters.
pub trait ClusterReader: Send + Sync {
    /// Every cluster of the shard map, by name. Must answer from memory without blocking.
    fn clusters(&self) -> Vec<ClusterReport>;
}
