//! May a commit be acknowledged now? The fence of the current epoch and the gate in front of all
//! older ones.
//!
//! A write is acknowledged only in the epoch that its node still is in. Once a later epoch is
//! learnt the gate is closed for the older one for ever: an answer after the node's own repair pass
//! would name a write that no repair looks at.

use tagfast_domain::EpochId;

use crate::epoch::EpochRecord;
use crate::fence::{BootTime, Fence, LeaseAnswer, Permit, Round};

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

/// What to tell the callers of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It happened, and no other primary can have begun before.
    Acknowledge,
    /// Ask for a proof after this moment, then decide again.
    ProofAfter(BootTime),
    /// The epoch is over: the write is `unknown`; try it again with its id on the new primary.
    Unknown,
}

/// The state that decides.
#[derive(Debug, Clone, Default)]
pub struct Acknowledger {
    fence: Option<Fence>,
}

impl Acknowledger {
    /// The epoch this node is in.
    pub fn epoch(&self) -> Option<&EpochRecord> {
        self.fence.as_ref().map(Fence::epoch)
    }

    /// Until when the lease permits.
    pub fn deadline(&self) -> Option<BootTime> {
        self.fence.as_ref().and_then(Fence::deadline)
    }

    /// Learns the epoch in etcd. A later one closes the gate for the one before; an older one is a
    /// late answer and changes nothing. True when the epoch changed.
    pub fn learn(&mut self, epoch: &EpochRecord) -> bool {
        let later = self.epoch().is_none_or(|known| epoch.ordinal > known.ordinal);
        if later {
            self.fence = Some(Fence::new(epoch.clone()));
        }
        later
    }

    /// Takes what etcd said about the lease. False: another reign holds the key.
    pub fn lease(&mut self, answer: &LeaseAnswer) -> bool {
        self.fence.as_mut().is_some_and(|fence| fence.lease(answer))
    }

    /// Takes a round of members' answers, asked for in this epoch.
    pub fn round(&mut self, epoch: EpochId, round: &Round) {
        if let Some(fence) = self.fence.as_mut().filter(|f| f.epoch().id == epoch) {
            fence.round(round);
        }
    }

    /// Decides about a commit.
    pub fn decide(&self, commit: &Commit, now: BootTime) -> Decision {
        let Some(fence) = self.fence.as_ref().filter(|f| f.epoch().id == commit.epoch) else {
            return Decision::Unknown;
        };
        match fence.permits(commit.sent, commit.returned, now) {
            Permit::Yes => Decision::Acknowledge,
            Permit::ProofAfter(moment) => Decision::ProofAfter(moment),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::LeaderKey;
    use std::time::Duration;
    use tagfast_domain::EpochOrdinal;

    fn at(ms: u64) -> BootTime {
        BootTime(Duration::from_millis(ms))
    }

    fn epoch(n: u8, member: &str) -> EpochRecord {
        EpochRecord {
            id: EpochId([n; 16]),
            ordinal: EpochOrdinal(u64::from(n)),
            reign: u64::from(n) * 10,
            member: member.to_owned(),
            timeline: u32::from(n),
            fork_lsn: None,
            parent_id: None,
            minted_at: 0,
            minted_by: "a".to_owned(),
        }
    }

    fn lease(sent: u64, n: u8, member: &str) -> LeaseAnswer {
        let leader = LeaderKey { create_revision: u64::from(n) * 10, member: member.to_owned() };
        LeaseAnswer { sent: at(sent), leader, remaining_s: 19, paused: false }
    }

    fn commit(n: u8, returned: u64) -> Commit {
        Commit { epoch: EpochId([n; 16]), sent: at(returned - 5), returned: at(returned) }
    }

    #[test]
    fn a_proven_commit_of_the_current_epoch_is_acknowledged() {
        let mut node = Acknowledger::default();
        assert_eq!(node.decide(&commit(1, 10), at(11)), Decision::Unknown, "no epoch is known");
        assert!(node.learn(&epoch(1, "p")));
        assert_eq!(node.decide(&commit(1, 10), at(11)), Decision::ProofAfter(at(10)));
        assert!(node.lease(&lease(5, 1, "p")));
        assert_eq!(node.decide(&commit(1, 10), at(11)), Decision::Acknowledge);
    }

    #[test]
    fn x2_a_late_answer_of_an_older_epoch_stays_behind_the_gate() {
        let mut node = Acknowledger::default();
        node.learn(&epoch(1, "p"));
        node.lease(&lease(0, 1, "p"));
        let late = commit(1, 10);
        node.learn(&epoch(2, "r1"));
        node.lease(&lease(20, 2, "r1"));
        assert_eq!(node.decide(&late, at(30)), Decision::Unknown);
    }

    #[test]
    fn x6_a_node_that_slept_through_two_failovers_acknowledges_nothing_old() {
        let mut node = Acknowledger::default();
        node.learn(&epoch(1, "p"));
        node.lease(&lease(0, 1, "p"));
        // R1 reigned and died; P holds the key again. The node's next look finds epoch 3, on the
        // same member.
        assert!(!node.lease(&lease(60_000, 3, "p")), "the key is of another reign");
        assert_eq!(node.decide(&commit(1, 60_010), at(60_020)), Decision::ProofAfter(at(60_010)));
        node.learn(&epoch(3, "p"));
        assert_eq!(node.decide(&commit(1, 60_010), at(60_030)), Decision::Unknown);
    }

    #[test]
    fn an_older_epoch_is_not_learnt_again() {
        let mut node = Acknowledger::default();
        node.learn(&epoch(2, "r1"));
        assert!(!node.learn(&epoch(1, "p")));
        assert_eq!(node.epoch().map(|e| e.ordinal), Some(EpochOrdinal(2)));
    }

    #[test]
    fn a_round_of_another_epoch_proves_nothing() {
        let mut node = Acknowledger::default();
        node.learn(&epoch(2, "r1"));
        node.lease(&LeaseAnswer { remaining_s: 1, ..lease(0, 2, "r1") });
        let round = Round { sent: at(500), primary_checked: true, members: Vec::new() };
        node.round(EpochId([1; 16]), &round);
        assert_eq!(node.decide(&commit(2, 400), at(600)), Decision::ProofAfter(at(400)));
    }
}
