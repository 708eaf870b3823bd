//! From a group commit that returned to what its callers may be told.
//!
//! The order is that of the protocol: what the commit vouches for is journaled, then leadership is
//! proven, then the guard looks at how much a failover could lose, then the writes count as
//! acknowledged. The journal comes first, so that whatever a caller is told can be repaired.
//!
//! How it fails: towards not telling. Without a proof, or behind the end of its epoch, a group is
//! retried with the ids of its writes; without a replica that has it, it waits, and its callers
//! learn that the outcome is unknown.

use tagfast_domain::EpochId;
use tagfast_failover::{AckDecision, Commit, Decision, GuardState, JournaledCommit, ReplicaCount};
use tokio::time::Instant;

use crate::boot_clock::boot_time;
use crate::cluster::topology::Cluster;
use crate::health::cause::FailureCause;
use crate::options::ReplicatedMeans;
use crate::write::group_commit::CommitOutcome;

/// A group commit that is in the journal, where it vouches for anything.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CommittedGroup {
    /// It holds writes that succeed.
    Journaled(JournaledCommit),
    /// It only refuses writes, which promises nothing about the state behind the refusal.
    OnlyRefusals(Commit),
}

/// What became of a group that waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AckOutcome {
    /// Its callers may be told. `None`: the cluster has no replicas, or nothing was written.
    Acknowledged(Option<ReplicaCount>),
    /// Leadership is not proven, or the epoch has ended: retry with the same ids.
    Unproven,
    /// No replica has it in time.
    Unreplicated,
}

impl AckOutcome {
    /// What writes failed by; `None`: they did not.
    pub(crate) fn failure(self) -> Option<FailureCause> {
        match self {
            Self::Acknowledged(_) => None,
            Self::Unproven => Some(FailureCause::Unproven),
            Self::Unreplicated => Some(FailureCause::ReplicationLag),
        }
    }
}

impl CommittedGroup {
    /// Journals what a group commit vouches for. `None`: its epoch has ended, and its outcome is
    /// unknown.
    pub(crate) fn record(cluster: &Cluster, outcome: &mut CommitOutcome) -> Option<Self> {
        let contents = std::mem::take(&mut outcome.contents);
        if contents.is_empty() {
            return Some(Self::OnlyRefusals(outcome.commit));
        }
        let mut acknowledger = cluster.acknowledger();
        let is_first = acknowledger.journal().is_empty();
        let group = acknowledger.record(outcome.commit, outcome.at, contents);
        drop(acknowledger);
        if is_first {
            cluster.guard.want();
        }
        group.map(Self::Journaled)
    }

    /// The epoch of the commit.
    pub(crate) fn epoch(&self) -> EpochId {
        match self {
            Self::Journaled(group) => group.commit.epoch,
            Self::OnlyRefusals(commit) => commit.epoch,
        }
    }

    /// Decides once. A group that wrote nothing counts no replicas.
    pub(crate) fn decide(&self, cluster: &Cluster) -> AckDecision {
        let mut acknowledger = cluster.acknowledger();
        let now = boot_time();
        match self {
            Self::Journaled(group) => {
                let decision = acknowledger.decide_group(group, now);
                if matches!(decision, AckDecision::Acknowledge(_)) {
                    cluster.repair.acknowledge(group.commit.epoch, now);
                }
                decision
            }
            Self::OnlyRefusals(commit) => match acknowledger.decide(commit, now) {
                Decision::Acknowledge => AckDecision::Acknowledge(None),
                Decision::ProofAfter(moment) => AckDecision::ProofAfter(moment),
                Decision::Unknown => AckDecision::Unknown,
            },
        }
    }

    /// Waits until the group is acknowledged, at most until `until`. While the guard refuses writes
    /// no replica is waited for.
    pub(crate) async fn acknowledged(&self, cluster: &Cluster, until: Instant) -> AckOutcome {
        let mut proofs = cluster.subscribe_proofs();
        let mut wait = None;
        loop {
            let late = match self.decide(cluster) {
                AckDecision::Acknowledge(count) => return AckOutcome::Acknowledged(count),
                AckDecision::Unknown => return AckOutcome::Unproven,
                AckDecision::ProofAfter(_) => {
                    cluster.refresh.notify_one();
                    AckOutcome::Unproven
                }
                AckDecision::WaitForReplica if cluster.guard.state() == GuardState::Refusing => {
                    return AckOutcome::Unreplicated;
                }
                AckDecision::WaitForReplica => {
                    wait.get_or_insert_with(|| cluster.guard.wait());
                    AckOutcome::Unreplicated
                }
            };
            tokio::select! {
                changed = proofs.changed() => if changed.is_err() { return late },
                () = tokio::time::sleep_until(until) => return late,
            }
        }
    }

    /// Waits until the replicas have an acknowledged group that was asked for, at most until
    /// `until`.
    pub(crate) async fn replicated(
        &self,
        cluster: &Cluster,
        means: ReplicatedMeans,
        until: Instant,
    ) -> AckOutcome {
        let Self::Journaled(group) = self else { return AckOutcome::Acknowledged(None) };
        let mut proofs = cluster.subscribe_proofs();
        let _wait = cluster.guard.wait();
        loop {
            let (decision, count) = {
                let acknowledger = cluster.acknowledger();
                let decision = acknowledger.decide(&group.commit, boot_time());
                (decision, acknowledger.coverage().count(group.flushed))
            };
            let is_enough = match means {
                ReplicatedMeans::All => count.is_all(),
                ReplicatedMeans::One => count.replicas > 0,
            };
            let late = match decision {
                Decision::Acknowledge if is_enough => return AckOutcome::Acknowledged(Some(count)),
                Decision::Acknowledge => AckOutcome::Unreplicated,
                Decision::Unknown => return AckOutcome::Unproven,
                Decision::ProofAfter(_) => {
                    cluster.refresh.notify_one();
                    AckOutcome::Unproven
                }
            };
            tokio::select! {
                changed = proofs.changed() => if changed.is_err() { return late },
                () = tokio::time::sleep_until(until) => return late,
            }
        }
    }

    /// Its callers do not wait any more.
    pub(crate) fn stop_waiting(&self, cluster: &Cluster) {
        if let Self::Journaled(group) = self {
            cluster.acknowledger().stop_waiting(group);
        }
    }
}
