//! Bodies of failovers: what each did to acknowledged writes.

use serde::{Deserialize, Serialize};
use tagfast_domain::UnixMillis;
use tagfast_store::{
    FailoverReport, FailoverTimes, FailoverWrite, IncompleteLog, NodeRepair, VerdictCounts,
    VerdictKind,
};
use utoipa::ToSchema;

use super::content::{ContentBody, VersionText};
use super::receipts::VerdictName;
use crate::time::Rfc3339;

/// A page of failovers.
#[derive(Serialize, ToSchema)]
#[schema(as = Failovers)]
pub(crate) struct FailoversBody<'a> {
    pub(crate) items: Vec<FailoverBody<'a>>,
    /// Where the next page starts; `null` on the last one.
    #[schema(required = true)]
    pub(crate) next_cursor: Option<String>,
}

/// A failover: a cluster has a new epoch.
#[derive(Serialize, ToSchema)]
#[schema(as = Failover)]
pub(crate) struct FailoverBody<'a> {
    /// The cluster, as the shard map names it.
    cluster: &'a str,
    /// The epoch that began.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    epoch: String,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    at: Rfc3339,
    /// Its ordinal: larger for later epochs of the cluster.
    ordinal: u64,
    /// The leader term: the creation revision of Patroni's leader key in etcd.
    term: u64,
    /// PostgreSQL's timeline.
    timeline: u32,
    /// The log position at which the timeline left the one before; missing: it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    fork_lsn: Option<Lsn>,
    /// The epoch before; missing: it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_epoch: Option<String>,
    /// Whether the repair is closed: verdicts on the writes of the epochs before are final.
    closed: bool,
    /// The epoch of a later failover, whose repair ended this one's; missing: its own repair is
    /// closed, or open.
    #[serde(skip_serializing_if = "Option::is_none")]
    superseded_by: Option<String>,
    /// The earliest time of each phase that any process saw.
    times: TimesBody,
    durations: DurationsBody,
    /// The member that is primary in the epoch. With the scope `admin` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    primary: Option<&'a str>,
    /// The member that was primary before. With the scope `admin` only; missing: it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_primary: Option<&'a str>,
    /// The verdicts of all processes on the acknowledged writes of all tenants that the failover
    /// could have lost. With the scope `admin` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    counts: Option<CountsBody>,
    /// Processes that were registered and have not reported. With the scope `admin` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing_nodes: Option<&'a [String]>,
}

impl<'a> FailoverBody<'a> {
    /// What it was. `is_admin`: also what is about all tenants, and the names of machines.
    pub(crate) fn new(report: &'a FailoverReport, is_admin: bool) -> Self {
        Self {
            cluster: &report.cluster,
            epoch: report.epoch.to_string(),
            at: Rfc3339(report.times.minted_at),
            ordinal: report.ordinal.0,
            term: report.term,
            timeline: report.timeline,
            fork_lsn: report.fork_lsn.map(Lsn),
            previous_epoch: report.previous.map(|epoch| epoch.to_string()),
            closed: report.is_closed,
            superseded_by: report.superseded_by.map(|epoch| epoch.to_string()),
            times: report.times.into(),
            durations: report.times.into(),
            primary: is_admin.then_some(report.primary.as_str()),
            previous_primary: report.previous_primary.as_deref().filter(|_| is_admin),
            counts: is_admin.then(|| report.counts.into()),
            missing_nodes: is_admin.then_some(report.missing_nodes.as_slice()),
        }
    }
}

/// A failover with what each process reported of it.
#[derive(Serialize, ToSchema)]
#[schema(as = FailoverReport)]
pub(crate) struct FailoverReportBody<'a> {
    #[serde(flatten)]
    failover: FailoverBody<'a>,
    /// Every process that reported. With the scope `admin` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<Vec<NodeRepairBody<'a>>>,
}

impl<'a> FailoverReportBody<'a> {
    /// See [`FailoverBody::new`].
    pub(crate) fn new(report: &'a FailoverReport, is_admin: bool) -> Self {
        Self {
            failover: FailoverBody::new(report, is_admin),
            nodes: is_admin.then(|| report.nodes.iter().map(NodeRepairBody::from).collect()),
        }
    }
}

/// What one process of the service repaired after a failover, or published events alone.
#[derive(Serialize, ToSchema)]
#[schema(as = NodeRepair)]
pub(crate) struct NodeRepairBody<'a> {
    /// The process; `events`: what published events brought back, which no process counts again.
    node: &'a str,
    /// The verdicts on the writes that it had acknowledged.
    counts: CountsBody,
    /// When its repair began.
    #[schema(value_type = String, format = DateTime)]
    began_at: Rfc3339,
    /// When it ended; missing: it goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    ended_at: Option<Rfc3339>,
    /// Ranges of the log for which it had forgotten its writes, because its journal was full or
    /// damaged: what was lost there is not listed.
    incomplete: Vec<IncompleteLogBody>,
    /// The phases as this process saw them.
    times: TimesBody,
}

impl<'a> From<&'a NodeRepair> for NodeRepairBody<'a> {
    fn from(node: &'a NodeRepair) -> Self {
        Self {
            node: &node.node,
            counts: node.counts.into(),
            began_at: Rfc3339(node.began_at),
            ended_at: node.ended_at.map(Rfc3339),
            incomplete: node.incomplete.iter().map(IncompleteLogBody::from).collect(),
            times: node.times.into(),
        }
    }
}

/// A range of an epoch's log for which a process had forgotten its writes. What it could not read
/// back from its copy of the journal has the range `0/0` to `FFFFFFFF/FFFFFFFF` and no writes:
/// what it held is not known.
#[derive(Serialize, ToSchema)]
#[schema(as = IncompleteLog)]
struct IncompleteLogBody {
    /// The epoch.
    epoch: String,
    /// From this log position.
    from_lsn: Lsn,
    /// Up to this log position.
    to_lsn: Lsn,
    /// How many writes.
    writes: u64,
}

impl From<&IncompleteLog> for IncompleteLogBody {
    fn from(log: &IncompleteLog) -> Self {
        Self {
            epoch: log.epoch.to_string(),
            from_lsn: Lsn(log.from),
            to_lsn: Lsn(log.to),
            writes: log.writes,
        }
    }
}

/// A log position as PostgreSQL writes it: `16/B374D848`.
#[derive(Clone, Copy, ToSchema)]
#[schema(value_type = String, pattern = "^[0-9A-F]{1,8}/[0-9A-F]{1,8}$")]
pub(crate) struct Lsn(pub(crate) u64);

impl Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF))
    }
}

/// How many writes had which verdict.
#[derive(Serialize, ToSchema)]
#[schema(as = VerdictCounts)]
struct CountsBody {
    /// They were in the new history.
    kept: u64,
    /// They were lost and brought back.
    repaired: u64,
    /// They were lost for good.
    lost: u64,
    /// No one was told of them, or their verdict is not final.
    unknown: u64,
}

impl From<VerdictCounts> for CountsBody {
    fn from(counts: VerdictCounts) -> Self {
        let VerdictCounts { kept, repaired, lost, unknown } = counts;
        Self { kept, repaired, lost, unknown }
    }
}

/// When each phase was. What is missing was not seen, or is still to come.
#[derive(Serialize, ToSchema)]
#[schema(as = FailoverTimes)]
struct TimesBody {
    /// The first call to the old primary failed, or its leader key was gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    suspected_at: Option<Rfc3339>,
    /// Writes began to wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    held_at: Option<Rfc3339>,
    /// The new primary was first seen out of recovery.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    promoted_at: Option<Rfc3339>,
    /// The epoch was minted.
    #[schema(value_type = String, format = DateTime)]
    minted_at: Rfc3339,
    /// The first write was acknowledged in the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    first_acknowledged_at: Option<Rfc3339>,
    /// The repair was closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    repair_closed_at: Option<Rfc3339>,
}

impl From<FailoverTimes> for TimesBody {
    fn from(times: FailoverTimes) -> Self {
        Self {
            suspected_at: times.suspected_at.map(Rfc3339),
            held_at: times.held_at.map(Rfc3339),
            promoted_at: times.promoted_at.map(Rfc3339),
            minted_at: Rfc3339(times.minted_at),
            first_acknowledged_at: times.first_acknowledged_at.map(Rfc3339),
            repair_closed_at: times.repair_closed_at.map(Rfc3339),
        }
    }
}

/// How long each phase took, in milliseconds; what is missing has not ended, or its begin was not
/// seen. Clocks of several machines are compared: a few milliseconds mean nothing.
#[derive(Serialize, ToSchema)]
#[schema(as = FailoverDurations)]
struct DurationsBody {
    /// From the suspicion to the first acknowledged write: how long writes did not succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    outage_ms: Option<u64>,
    /// From the suspicion to the promotion: Patroni's part.
    #[serde(skip_serializing_if = "Option::is_none")]
    promotion_ms: Option<u64>,
    /// From the promotion to the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    minting_ms: Option<u64>,
    /// From the epoch to the first acknowledged write.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_acknowledgement_ms: Option<u64>,
    /// From the epoch to the close of the repair.
    #[serde(skip_serializing_if = "Option::is_none")]
    repair_ms: Option<u64>,
}

impl From<FailoverTimes> for DurationsBody {
    fn from(times: FailoverTimes) -> Self {
        let between = |from: Option<UnixMillis>, to: Option<UnixMillis>| {
            Some(to?.saturating_sub(from?).max(0).unsigned_abs())
        };
        let minted = Some(times.minted_at);
        Self {
            outage_ms: between(times.suspected_at, times.first_acknowledged_at),
            promotion_ms: between(times.suspected_at, times.promoted_at),
            minting_ms: between(times.promoted_at, minted),
            first_acknowledgement_ms: between(minted, times.first_acknowledged_at),
            repair_ms: between(minted, times.repair_closed_at),
        }
    }
}

/// A verdict of a write that a failover did not simply keep.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ListedVerdict {
    /// The failover lost it and the repair brought it back.
    Repaired,
    /// The failover lost it for good.
    Lost,
}

impl From<ListedVerdict> for VerdictKind {
    fn from(verdict: ListedVerdict) -> Self {
        match verdict {
            ListedVerdict::Repaired => Self::Repaired,
            ListedVerdict::Lost => Self::Lost,
        }
    }
}

/// A page of the writes of a failover.
#[derive(Serialize, ToSchema)]
#[schema(as = FailoverWrites)]
pub(crate) struct FailoverWritesBody<'a> {
    pub(crate) items: Vec<FailoverWriteBody<'a>>,
    /// Where the next page starts; `null` on the last one.
    #[schema(required = true)]
    pub(crate) next_cursor: Option<String>,
}

/// An acknowledged write that a failover did not simply keep.
#[derive(Serialize, ToSchema)]
#[schema(as = FailoverWrite)]
pub(crate) struct FailoverWriteBody<'a> {
    /// Its id.
    write_id: String,
    /// The tenant of its content.
    tenant: &'a str,
    content: ContentBody<'a>,
    /// What became of it.
    verdict: VerdictName,
    /// Why, as a receipt's verdict has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    reason: Option<&'static str>,
    /// The version that it had made.
    #[schema(value_type = String)]
    version: VersionText,
    /// The epoch in which it was acknowledged.
    epoch: String,
    /// When the verdict was recorded.
    #[schema(value_type = String, format = DateTime)]
    at: Rfc3339,
}

impl<'a> From<&'a FailoverWrite> for FailoverWriteBody<'a> {
    fn from(write: &'a FailoverWrite) -> Self {
        Self {
            write_id: write.write_id.to_string(),
            tenant: write.key.tenant.as_str(),
            content: (&write.key.content).into(),
            verdict: write.verdict.into(),
            reason: write.verdict.reason(),
            version: VersionText(write.version),
            epoch: write.epoch.to_string(),
            at: Rfc3339(write.at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_positions_are_written_as_postgresql_does() {
        let text = |lsn| serde_json::to_string(&Lsn(lsn)).unwrap();
        assert_eq!(text(0), "\"0/0\"");
        assert_eq!(text(0x16_B374_D848), "\"16/B374D848\"");
        assert_eq!(text(0x1_0000_00A0), "\"1/A0\"");
    }

    #[test]
    fn phases_that_were_not_seen_have_no_duration() {
        let times = FailoverTimes {
            suspected_at: Some(1000),
            promoted_at: Some(3500),
            minted_at: 3490,
            repair_closed_at: Some(4000),
            ..FailoverTimes::default()
        };
        let durations = serde_json::to_value(DurationsBody::from(times)).unwrap();
        // Clocks of two machines differ: no phase is shorter than nothing.
        let expected = serde_json::json!({"promotion_ms": 2500, "minting_ms": 0, "repair_ms": 510});
        assert_eq!(durations, expected);
    }
}
