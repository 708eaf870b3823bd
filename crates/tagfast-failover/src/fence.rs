//! The fence: proofs that no other node can have become primary before a commit returned.
//!
//! **F1, the lease.** The leader key of our reign was read, and its lease lives on for `r` seconds:
//! nobody else can take the key before `sent + r`. One second of that is kept back for clock rates
//! and the answer's way out.
//!
//! **F2, members in recovery.** While etcd is silent: every other member answers that it is in
//! recovery and follows our timeline, in rounds at most a second apart since the last F1 proof, the
//! last one asked after the commit returned. "Nobody else is primary now" alone would believe a
//! member that was promoted, acknowledged, died and came back.
//!
//! Why not Patroni's `GET /primary`: it may be true up to the last moment of the lease, and later
//! on a stalled node.

use std::time::Duration;

use crate::epoch::{EpochRecord, LeaderKey};

/// Time since this machine's start, asleep or not (`CLOCK_BOOTTIME`): a clock that is set does not
/// move it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct BootTime(pub Duration);

/// Kept back from a lease: 0.1 % clock rate over 20 s is 20 ms, the rest is for the answer's way
/// out.
pub const LEASE_MARGIN: Duration = Duration::from_secs(1);
/// Longest gap between two rounds of F2; a promotion, death, rewind and return takes six seconds or
/// more.
pub const ROUND_GAP: Duration = Duration::from_secs(1);
/// A commit that took longer needs a proof that was asked for after it returned: a backend may
/// outlive its postmaster.
pub const SLOW_COMMIT: Duration = Duration::from_secs(1);

/// What etcd said about the leader key and its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseAnswer {
    /// When the first of the two requests was sent.
    pub sent: BootTime,
    /// The key.
    pub leader: LeaderKey,
    /// Whole seconds that the lease had left, rounded down.
    pub remaining_s: u64,
    /// Patroni is paused: a lease proves nothing then.
    pub paused: bool,
}

/// What one other member answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberAnswer {
    /// It is in recovery.
    pub in_recovery: bool,
    /// The timeline its receiver follows.
    pub received_timeline: Option<u32>,
}

/// One round of questions to all members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// When the first question was sent.
    pub sent: BootTime,
    /// Our primary still passes the check of the reign.
    pub primary_checked: bool,
    /// One answer for each other member of the last list from etcd; none: it did not answer.
    pub members: Vec<Option<MemberAnswer>>,
}

/// The fence of one epoch.
#[derive(Debug, Clone)]
pub struct Fence {
    epoch: EpochRecord,
    deadline: Option<BootTime>,
    /// When the newest F1 proof was asked for.
    proven_at: Option<BootTime>,
    /// The newest round of an unbroken chain that began at the last F1 proof.
    chain: Option<BootTime>,
    paused: bool,
}

/// Whether the fence permits an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permit {
    /// Yes.
    Yes,
    /// Not yet: a proof asked for after this moment is needed.
    ProofAfter(BootTime),
}

impl Fence {
    /// A fence that permits nothing yet.
    pub fn new(epoch: EpochRecord) -> Self {
        Self { epoch, deadline: None, proven_at: None, chain: None, paused: false }
    }

    /// The epoch it is of.
    pub fn epoch(&self) -> &EpochRecord {
        &self.epoch
    }

    /// Until when F1 permits.
    pub fn deadline(&self) -> Option<BootTime> {
        self.deadline
    }

    /// Takes what etcd said. False: the key is not of this reign, so the epoch is over.
    pub fn lease(&mut self, answer: &LeaseAnswer) -> bool {
        let ours = answer.leader.create_revision == self.epoch.reign
            && answer.leader.member == self.epoch.member;
        if !ours {
            return false;
        }
        self.paused = answer.paused;
        let until = BootTime(
            (answer.sent.0 + Duration::from_secs(answer.remaining_s)).saturating_sub(LEASE_MARGIN),
        );
        self.deadline = self.deadline.max(Some(until));
        if self.proven_at.is_none_or(|at| at < answer.sent) {
            self.proven_at = Some(answer.sent);
            self.chain = Some(answer.sent);
        }
        true
    }

    /// Takes a round of answers. A bad or late one breaks the chain until etcd proves the reign
    /// again.
    pub fn round(&mut self, round: &Round) {
        let good = round.primary_checked
            && round.members.iter().all(|answer| {
                answer.is_some_and(|a| {
                    a.in_recovery && a.received_timeline == Some(self.epoch.timeline)
                })
            });
        self.chain = match self.chain {
            Some(last) if good && round.sent.0 <= last.0 + ROUND_GAP => Some(last.max(round.sent)),
            _ => None,
        };
    }

    /// Whether a commit that was sent and returned at these times may be acknowledged now.
    pub fn permits(&self, sent: BootTime, returned: BootTime, now: BootTime) -> Permit {
        let slow = returned.0.saturating_sub(sent.0) > SLOW_COMMIT;
        let lease = !self.paused && self.deadline.is_some_and(|deadline| now < deadline);
        let lease = lease && (!slow || self.proven_at.is_some_and(|at| at > returned));
        // The chain begins with an F1 proof, which is not a round: that moment alone proves nothing
        // by F2.
        let rounds = self.chain.is_some_and(|at| at > returned && Some(at) != self.proven_at);
        if lease || rounds { Permit::Yes } else { Permit::ProofAfter(returned) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tagfast_domain::{EpochId, EpochOrdinal};

    fn at(ms: u64) -> BootTime {
        BootTime(Duration::from_millis(ms))
    }

    fn epoch(reign: u64) -> EpochRecord {
        EpochRecord {
            id: EpochId([1; 16]),
            ordinal: EpochOrdinal(1),
            reign,
            member: "p".to_owned(),
            timeline: 1,
            fork_lsn: None,
            parent_id: None,
            minted_at: 0,
            minted_by: "a".to_owned(),
        }
    }

    fn lease(sent: u64, reign: u64, remaining_s: u64) -> LeaseAnswer {
        let leader = LeaderKey { create_revision: reign, member: "p".to_owned() };
        LeaseAnswer { sent: at(sent), leader, remaining_s, paused: false }
    }

    fn round(sent: u64, members: Vec<Option<MemberAnswer>>) -> Round {
        Round { sent: at(sent), primary_checked: true, members }
    }

    fn follows(timeline: u32) -> Option<MemberAnswer> {
        Some(MemberAnswer { in_recovery: true, received_timeline: Some(timeline) })
    }

    fn yes(fence: &Fence, sent: u64, returned: u64, now: u64) -> bool {
        fence.permits(at(sent), at(returned), at(now)) == Permit::Yes
    }

    #[test]
    fn nothing_is_permitted_without_a_proof() {
        assert!(!yes(&Fence::new(epoch(7)), 10, 20, 30));
    }

    #[test]
    fn a_lease_permits_until_a_second_before_its_end() {
        let mut fence = Fence::new(epoch(7));
        assert!(fence.lease(&lease(1000, 7, 18)));
        assert!(yes(&fence, 2000, 2010, 17_999));
        assert!(!yes(&fence, 17_900, 17_950, 18_000));
    }

    #[test]
    fn x1_x6b_the_lease_of_another_reign_proves_nothing() {
        let mut fence = Fence::new(epoch(7));
        assert!(
            !fence.lease(&lease(1000, 8, 19)),
            "the same node holds the key again: another reign"
        );
        assert!(!yes(&fence, 1100, 1110, 1120));
    }

    #[test]
    fn an_older_answer_does_not_shorten_the_fence() {
        let mut fence = Fence::new(epoch(7));
        fence.lease(&lease(5000, 7, 19));
        fence.lease(&lease(1000, 7, 18));
        assert_eq!(fence.deadline(), Some(at(23_000)));
    }

    #[test]
    fn a_slow_commit_needs_a_proof_asked_for_after_it() {
        // The postmaster was killed and the key released while a busy backend went on for seconds.
        let mut fence = Fence::new(epoch(7));
        fence.lease(&lease(1000, 7, 19));
        assert_eq!(fence.permits(at(1500), at(2600), at(2601)), Permit::ProofAfter(at(2600)));
        fence.lease(&lease(2500, 7, 19));
        assert!(!yes(&fence, 1500, 2600, 2700), "asked for before the commit returned");
        fence.lease(&lease(2601, 7, 19));
        assert!(yes(&fence, 1500, 2600, 2700));
    }

    #[test]
    fn a_paused_patroni_makes_the_lease_worthless() {
        let mut fence = Fence::new(epoch(7));
        fence.lease(&LeaseAnswer { paused: true, ..lease(1000, 7, 19) });
        assert!(!yes(&fence, 1100, 1110, 1120));
        fence.round(&round(1500, vec![follows(1), follows(1)]));
        assert!(yes(&fence, 1100, 1110, 1520), "members in recovery still prove it");
    }

    #[test]
    fn members_in_recovery_prove_it_while_etcd_is_silent() {
        let mut fence = Fence::new(epoch(7));
        fence.lease(&lease(0, 7, 2));
        for sent in (500..=30_000).step_by(500) {
            fence.round(&round(sent, vec![follows(1), follows(1)]));
        }
        assert!(yes(&fence, 29_900, 29_950, 30_010));
        assert!(
            !yes(&fence, 29_900, 30_000, 30_010),
            "the round must be asked after the commit returned"
        );
    }

    #[test]
    fn x4_a_member_that_was_primary_in_between_breaks_the_chain() {
        let mut fence = Fence::new(epoch(7));
        fence.lease(&lease(0, 7, 2));
        fence.round(&round(800, vec![follows(1), follows(1)]));
        // R1 is promoted, acknowledges, dies (no answer), returns as a replica that looks as
        // before.
        fence.round(&round(1600, vec![None, follows(1)]));
        for sent in (2400..9000).step_by(800) {
            fence.round(&round(sent, vec![follows(1), follows(1)]));
        }
        assert!(!yes(&fence, 8000, 8100, 8900), "the chain stays broken until etcd answers");
        fence.lease(&lease(9000, 7, 19));
        assert!(yes(&fence, 8000, 8100, 9100));
    }

    #[test]
    fn x4_a_gap_that_hides_a_promotion_breaks_the_chain() {
        let mut fence = Fence::new(epoch(7));
        fence.lease(&lease(0, 7, 2));
        fence.round(&round(800, vec![follows(1)]));
        fence.round(&round(2801, vec![follows(1)]));
        assert!(!yes(&fence, 2000, 2100, 2900));
    }

    #[test]
    fn a_member_on_another_timeline_or_a_failed_check_breaks_the_chain() {
        for bad in [
            round(800, vec![follows(2)]),
            round(800, vec![Some(MemberAnswer { in_recovery: false, received_timeline: Some(1) })]),
            round(800, vec![Some(MemberAnswer { in_recovery: true, received_timeline: None })]),
            Round { primary_checked: false, ..round(800, vec![follows(1)]) },
        ] {
            let mut fence = Fence::new(epoch(7));
            fence.lease(&lease(0, 7, 1));
            fence.round(&bad);
            fence.round(&round(1000, vec![follows(1)]));
            assert!(!yes(&fence, 100, 200, 1100), "{bad:?}");
        }
    }

    proptest! {
        /// The grid of schedules in one property: the key's holder refreshes its lease at any moments, a reader asks and is
        /// answered late, its requests stall anywhere. Whatever is permitted is permitted before the lease's true end.
        #[test]
        fn a_permit_never_outlives_the_lease(
            refreshes in proptest::collection::vec(0u64..5000, 1..12),
            asks in proptest::collection::vec((0u64..3000, 0u64..2000), 1..20),
            ttl in 5u64..40,
            probe in 0u64..60_000,
        ) {
            let mut ends = Vec::new();
            let mut now = 0;
            for gap in refreshes {
                now += gap;
                ends.push((now, now + ttl * 1000));
            }
            let mut fence = Fence::new(epoch(7));
            let mut sent = 0;
            for (gap, stall) in asks {
                sent += gap;
                // etcd answers from its state at some moment after the request was sent.
                let seen = sent + stall;
                let Some((_, end)) = ends.iter().rfind(|(from, end)| *from <= seen && seen < *end) else { continue };
                let leader = LeaderKey { create_revision: 7, member: "p".to_owned() };
                fence.lease(&LeaseAnswer { sent: at(sent), leader, remaining_s: (end - seen) / 1000, paused: false });
            }
            let last_end = ends.last().map_or(0, |(_, end)| *end);
            if yes(&fence, probe, probe, probe) {
                prop_assert!(probe < last_end, "permitted at {} after the end {}", probe, last_end);
            }
        }
    }
}
