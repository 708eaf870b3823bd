//! The acknowledgement gate: whether a commit may be acknowledged now.
//!
//! A node acknowledges a write only in the epoch that it is in. Once it adopts a later epoch, the
//! gate is closed for the older one forever: a write that was acknowledged after the node's own
//! repair pass would be one that no repair looks at.
//!
//! How it fails: towards [`Decision::Unknown`]; the writer retries with the same id.

use tagfast_domain::EpochId;

use crate::epoch::EpochRecord;
use crate::leadership::{BootTime, LeaderObservation, LeadershipProof, ProbeRound, ProofStatus};

/// A commit that returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// The epoch its transaction checked.
    pub epoch: EpochId,
    /// When the transaction was sent.
    pub sent: BootTime,
    /// When the last of its results arrived.
    pub returned: BootTime,
}

/// What the writers of a commit may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is durable, and no other primary can have begun before it returned.
    Acknowledge,
    /// Not yet: get a proof that was requested after this moment, then decide again.
    ProofAfter(BootTime),
    /// The epoch has ended: the outcome is unknown. Retry with the same id on the new primary.
    Unknown,
}

/// The gate of one node for one cluster: the epoch that it is in, and that epoch's proofs.
#[derive(Debug, Clone, Default)]
pub struct AckGate {
    /// `None`: no epoch is known yet.
    proof: Option<LeadershipProof>,
    /// How many members there are beside the primary; `None`: not known yet.
    members: Option<usize>,
}

impl AckGate {
    /// The epoch this node is in; `None` before it adopted one.
    pub fn epoch(&self) -> Option<&EpochRecord> {
        self.proof.as_ref().map(LeadershipProof::epoch)
    }

    /// Until when the lease proves leadership; `None` before the first lease answer.
    pub fn deadline(&self) -> Option<BootTime> {
        self.proof.as_ref().and_then(LeadershipProof::deadline)
    }

    /// Adopts the epoch in etcd. A later one closes the gate for the one before; an older one is a
    /// late answer and changes nothing. True when the epoch changed.
    pub fn adopt_epoch(&mut self, epoch: &EpochRecord) -> bool {
        let later = self.epoch().is_none_or(|known| epoch.ordinal > known.ordinal);
        // Unproven(epoch n) => Unproven(epoch m), m > n: every proof of epoch n is dropped.
        if later {
            let mut proof = LeadershipProof::new(epoch.clone());
            self.members.iter().for_each(|count| proof.set_members(*count));
            self.proof = Some(proof);
        }
        later
    }

    /// Sets how many other members were ever seen, see [`LeadershipProof::set_members`].
    pub fn set_members(&mut self, count: usize) {
        self.members = Some(count);
        if let Some(proof) = &mut self.proof {
            proof.set_members(count);
        }
    }

    /// Records an observation of the leader key, see [`LeadershipProof::record_observation`].
    /// False: the term has ended, or no epoch is known.
    pub fn record_observation(&mut self, observation: &LeaderObservation) -> bool {
        self.proof.as_mut().is_some_and(|proof| proof.record_observation(observation))
    }

    /// Records a round of member probes that was sent in this epoch; a round of a different epoch
    /// is ignored.
    pub fn record_round(&mut self, epoch: EpochId, round: &ProbeRound) {
        if let Some(proof) = self.proof.as_mut().filter(|p| p.epoch().id == epoch) {
            proof.record_round(round);
        }
    }

    /// Decides about a commit.
    pub fn decide(&self, commit: &Commit, now: BootTime) -> Decision {
        let Some(proof) = self.proof.as_ref().filter(|p| p.epoch().id == commit.epoch) else {
            return Decision::Unknown;
        };
        match proof.proof_status(commit.sent, commit.returned, now) {
            ProofStatus::Proven => Decision::Acknowledge,
            ProofStatus::ProofAfter(moment) => Decision::ProofAfter(moment),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::LeaderKey;
    use crate::epoch::tests::record;
    use crate::leadership::LeaseAnswer;
    use std::time::Duration;
    use tagfast_domain::EpochOrdinal;

    fn at(ms: u64) -> BootTime {
        BootTime(Duration::from_millis(ms))
    }

    fn epoch(n: u8, member: &str) -> EpochRecord {
        record(u64::from(n), u64::from(n) * 10, member, u32::from(n))
    }

    fn lease(sent: u64, n: u8, member: &str) -> LeaderObservation {
        let term = u64::from(n) * 10;
        LeaderObservation {
            revision: term,
            raft_term: 1,
            leader: Some(LeaderKey { create_revision: term, member: member.to_owned() }),
            key_lease: 5,
            lease: Some(LeaseAnswer { id: 5, sent: at(sent), remaining_s: 19, raft_term: 1 }),
            paused: false,
        }
    }

    fn commit(n: u8, returned: u64) -> Commit {
        Commit { epoch: EpochId([n; 16]), sent: at(returned - 5), returned: at(returned) }
    }

    #[test]
    fn a_proven_commit_of_the_current_epoch_is_acknowledged() {
        let mut node = AckGate::default();
        assert_eq!(node.decide(&commit(1, 10), at(11)), Decision::Unknown, "no epoch is known");
        assert!(node.adopt_epoch(&epoch(1, "p")));
        assert_eq!(node.decide(&commit(1, 10), at(11)), Decision::ProofAfter(at(10)));
        assert!(node.record_observation(&lease(5, 1, "p")));
        assert_eq!(node.decide(&commit(1, 10), at(11)), Decision::Acknowledge);
    }

    #[test]
    fn a_late_result_of_an_older_epoch_stays_behind_the_gate() {
        let mut node = AckGate::default();
        node.adopt_epoch(&epoch(1, "p"));
        node.record_observation(&lease(0, 1, "p"));
        let late = commit(1, 10);
        node.adopt_epoch(&epoch(2, "r1"));
        node.record_observation(&lease(20, 2, "r1"));
        assert_eq!(node.decide(&late, at(30)), Decision::Unknown);
    }

    #[test]
    fn a_node_that_slept_through_two_failovers_acknowledges_nothing_old() {
        let mut node = AckGate::default();
        node.adopt_epoch(&epoch(1, "p"));
        node.record_observation(&lease(0, 1, "p"));
        // R1 led and died; P holds the key again. The node's next poll finds epoch 3, on the same
        // member.
        assert!(!node.record_observation(&lease(60_000, 3, "p")), "the key is of a different term");
        assert_eq!(node.decide(&commit(1, 60_010), at(60_020)), Decision::ProofAfter(at(60_010)));
        node.adopt_epoch(&epoch(3, "p"));
        assert_eq!(node.decide(&commit(1, 60_010), at(60_030)), Decision::Unknown);
    }

    #[test]
    fn an_older_epoch_is_not_adopted() {
        let mut node = AckGate::default();
        node.adopt_epoch(&epoch(2, "r1"));
        assert!(!node.adopt_epoch(&epoch(1, "p")));
        assert_eq!(node.epoch().map(|e| e.ordinal), Some(EpochOrdinal(2)));
    }

    #[test]
    fn a_round_of_a_different_epoch_proves_nothing() {
        let mut node = AckGate::default();
        node.adopt_epoch(&epoch(2, "r1"));
        let mut ends_soon = lease(0, 2, "r1");
        ends_soon.lease.iter_mut().for_each(|lease| lease.remaining_s = 1);
        node.record_observation(&ends_soon);
        let round = ProbeRound { sent: at(500), primary_checked: true, members: Vec::new() };
        node.record_round(EpochId([1; 16]), &round);
        assert_eq!(node.decide(&commit(2, 400), at(600)), Decision::ProofAfter(at(400)));
    }
}
