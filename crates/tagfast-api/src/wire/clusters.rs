//! Bodies of the state of clusters.

use std::time::Duration;

use serde::Serialize;
use tagfast_store::{
    ClusterEpoch, ClusterMember, ClusterReport, ClusterWarning, FailingCallsReport, JournalReport,
    LaneReport, MemberRole, OutboxReport,
};
use utoipa::ToSchema;

use super::failovers::Lsn;
use super::words::{CallKindName, GuardStateName};
use crate::time::Rfc3339;

/// The clusters.
#[derive(Serialize, ToSchema)]
#[schema(as = Clusters)]
pub(crate) struct ClustersBody {
    pub(crate) items: Vec<ClusterBody>,
    /// Always `null`: the list is complete.
    #[schema(required = true)]
    pub(crate) next_cursor: Option<String>,
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A cluster, as the process that answers sees it.
#[derive(Serialize, ToSchema)]
#[schema(as = Cluster)]
pub(crate) struct ClusterBody {
    /// Its name in the shard map.
    name: String,
    /// When the process looked. Samples that are older have their own time.
    #[schema(value_type = String, format = DateTime)]
    observed_at: Rfc3339,
    /// The epoch that the process is in; missing: it knows of none yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<EpochBody>,
    /// Why the cluster takes no writes; missing: it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// Its members, the primary first.
    members: Vec<MemberBody>,
    /// For how long the lease still proves leadership, in milliseconds: without a newer proof, no
    /// write is acknowledged after it. Missing: there was no proof yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    proof_left_ms: Option<u64>,
    guard: GuardBody,
    /// The writer lanes of the process.
    lanes: Vec<LaneBody>,
    outbox: OutboxBody,
    journal: JournalBody,
    /// Whether the repair after the last failover is closed; missing: that is not known yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    repair_closed: Option<bool>,
    /// Long transactions that keep events from search and popular tags; each says what to do.
    long_transactions: Vec<String>,
    /// Calls that fail, with the cause.
    failing: Vec<FailingBody>,
    /// What weakens a promise on the cluster.
    warnings: Vec<WarningBody>,
}

impl From<ClusterReport> for ClusterBody {
    fn from(cluster: ClusterReport) -> Self {
        Self {
            name: cluster.name,
            observed_at: Rfc3339(cluster.observed_at),
            epoch: cluster.epoch.map(EpochBody::from),
            problem: cluster.problem,
            members: cluster.members.into_iter().map(MemberBody::from).collect(),
            proof_left_ms: cluster.proof_left.map(ms),
            guard: GuardBody {
                state: cluster.guard.state,
                exposure_ms: ms(cluster.guard.exposure),
                max_loss_ms: ms(cluster.guard.max_loss),
            },
            lanes: cluster.lanes.into_iter().map(LaneBody::from).collect(),
            outbox: cluster.outbox.into(),
            journal: cluster.journal.into(),
            repair_closed: cluster.is_repair_closed,
            long_transactions: cluster.long_transactions,
            failing: cluster.failing.into_iter().map(FailingBody::from).collect(),
            warnings: cluster.warnings.into_iter().map(WarningBody::from).collect(),
        }
    }
}

/// An epoch and its primary.
#[derive(Serialize, ToSchema)]
#[schema(as = ClusterEpoch)]
struct EpochBody {
    id: String,
    /// Larger for later epochs of the cluster.
    ordinal: u64,
    /// The leader term: the creation revision of Patroni's leader key in etcd.
    term: u64,
    /// PostgreSQL's timeline.
    timeline: u32,
    /// When it was minted.
    #[schema(value_type = String, format = DateTime)]
    since: Rfc3339,
    /// The member that takes writes in this epoch; missing: none is known to.
    #[serde(skip_serializing_if = "Option::is_none")]
    primary: Option<String>,
}

impl From<ClusterEpoch> for EpochBody {
    fn from(epoch: ClusterEpoch) -> Self {
        Self {
            id: epoch.id.to_string(),
            ordinal: epoch.ordinal.0,
            term: epoch.term,
            timeline: epoch.timeline,
            since: Rfc3339(epoch.since),
            primary: epoch.primary,
        }
    }
}

/// What a member is in the epoch.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum MemberRoleName {
    /// It takes the writes.
    Primary,
    /// Any other member.
    Replica,
}

/// A member of a cluster.
#[derive(Serialize, ToSchema)]
#[schema(as = ClusterMember)]
struct MemberBody {
    name: String,
    /// Host and port of its PostgreSQL.
    address: String,
    role: MemberRoleName,
    /// When it last answered the process; missing: it has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    observed_at: Option<Rfc3339>,
    /// Of a replica: how far it is behind, at least, in milliseconds; missing: nothing is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<u64>,
    /// Of a replica: whether the primary streams to it; missing: that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    streaming: Option<bool>,
    /// Of a replica: the log position that it has flushed, as the primary says; missing: unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    flushed_lsn: Option<Lsn>,
    /// Why it is behind, and what to do; missing: it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl From<ClusterMember> for MemberBody {
    fn from(member: ClusterMember) -> Self {
        Self {
            name: member.name,
            address: member.address,
            role: match member.role {
                MemberRole::Primary => MemberRoleName::Primary,
                MemberRole::Replica => MemberRoleName::Replica,
            },
            observed_at: member.observed_at.map(Rfc3339),
            age_ms: member.age.map(ms),
            streaming: member.is_streaming,
            flushed_lsn: member.flushed.map(Lsn),
            problem: member.problem,
        }
    }
}

/// What bounds the loss of a failover.
#[derive(Serialize, ToSchema)]
#[schema(as = ClusterGuard)]
struct GuardBody {
    /// `open`, `throttled` (writes go in small groups), `holding` (a write is acknowledged only
    /// when a replica has it), `refusing` (writes are refused before they reach the database).
    #[schema(value_type = GuardStateName)]
    state: &'static str,
    /// The age of the oldest acknowledged write of the process that no replica has.
    exposure_ms: u64,
    /// The span of acknowledged writes that a failover may lose.
    max_loss_ms: u64,
}

/// A writer lane.
#[derive(Serialize, ToSchema)]
#[schema(as = ClusterLane)]
struct LaneBody {
    number: usize,
    /// Writes that wait in it.
    queued: usize,
    /// The most that may wait; more are refused.
    queued_max: usize,
}

impl From<LaneReport> for LaneBody {
    fn from(lane: LaneReport) -> Self {
        let LaneReport { number, queued, queued_max } = lane;
        Self { number, queued, queued_max }
    }
}

/// The outbox on the primary: events that wait for Kafka.
#[derive(Serialize, ToSchema)]
#[schema(as = ClusterOutbox)]
struct OutboxBody {
    /// What it takes on disk.
    bytes: u64,
    /// From this size on writes are refused.
    bytes_max: u64,
    /// When that was read; missing: it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    observed_at: Option<Rfc3339>,
}

impl From<OutboxReport> for OutboxBody {
    fn from(outbox: OutboxReport) -> Self {
        let OutboxReport { bytes, bytes_max, observed_at } = outbox;
        Self { bytes, bytes_max, observed_at: observed_at.map(Rfc3339) }
    }
}

/// What the process has acknowledged and a failover could still lose.
#[derive(Serialize, ToSchema)]
#[schema(as = ClusterJournal)]
struct JournalBody {
    bytes: usize,
    /// The most it may hold; beyond it forgets the oldest.
    bytes_max: usize,
    /// The contents in it.
    contents: usize,
    /// Those of them that wait for a repair.
    waiting_for_repair: usize,
    /// Acknowledged writes that it had to forget and that a failover could still lose, unlisted.
    forgotten_writes: u64,
}

impl From<JournalReport> for JournalBody {
    fn from(journal: JournalReport) -> Self {
        let JournalReport { bytes, bytes_max, contents, waiting_for_repair, forgotten_writes } =
            journal;
        Self { bytes, bytes_max, contents, waiting_for_repair, forgotten_writes }
    }
}

/// Calls that fail for one cause.
#[derive(Serialize, ToSchema)]
#[schema(as = ClusterFailing)]
struct FailingBody {
    #[schema(value_type = CallKindName)]
    calls: &'static str,
    /// The cause, a stable word.
    #[schema(value_type = String)]
    cause: &'static str,
    /// The cause as a sentence.
    problem: String,
    /// What to do.
    remedy: String,
    /// For how long they have failed.
    lasts_ms: u64,
    /// The share of the last calls that failed, for whatever cause.
    share_percent: u64,
    /// The last error's own words; missing: there were none.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(value_type = Option<String>)]
    error: String,
}

impl From<FailingCallsReport> for FailingBody {
    fn from(failing: FailingCallsReport) -> Self {
        Self {
            calls: failing.calls,
            cause: failing.cause,
            problem: failing.problem,
            remedy: failing.remedy,
            lasts_ms: ms(failing.lasts),
            share_percent: failing.share_percent,
            error: failing.error,
        }
    }
}

/// What weakens a promise.
#[derive(Serialize, ToSchema)]
#[schema(as = ClusterWarning)]
struct WarningBody {
    /// The part that it is about, a stable word.
    #[schema(value_type = String)]
    part: &'static str,
    /// A sentence that says what to do.
    text: String,
}

impl From<ClusterWarning> for WarningBody {
    fn from(warning: ClusterWarning) -> Self {
        let ClusterWarning { part, text } = warning;
        Self { part, text }
    }
}
