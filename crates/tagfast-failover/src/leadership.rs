//! Leadership proofs: that no other node can have become primary before a commit returned. They
//! fence off a primary that was replaced.
//!
//! **The lease proof.** The leader key of our term was read, and its lease lives on for `r`
//! seconds: no other node can take the key before `sent + r`. One second of that is kept back for
//! clock rates and for the way of the acknowledgement to the writer.
//!
//! **The member proof.** While etcd does not answer: every other member answers that it is in
//! recovery and follows our timeline, in probe rounds at most a second apart since the last lease
//! proof, the last one sent after the commit returned. "No member is primary now" alone would
//! believe a member that was promoted, acknowledged, died and came back. The members are all that
//! were ever seen, not those that etcd lists now: keys of members expire. An empty list proves
//! nothing.
//!
//! A look that shows a different term ends every proof at once and for good, because a term never
//! returns. Looks overtake each other: one that is older than the newest that was used is dropped.
//!
//! Why not Patroni's `GET /primary`: it may be true up to the last moment of the lease, and on a
//! stalled node even after it.
//!
//! How it fails: without a proof a commit is not acknowledged; the writer waits or retries.

use std::time::Duration;

use crate::epoch::{EpochRecord, LeaderKey};

/// Time since this machine's start, suspended or not (`CLOCK_BOOTTIME`): setting the wall clock
/// does not move it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct BootTime(pub Duration);

/// Kept back from a lease: 0.1 % clock rate over 20 s is 20 ms, the rest is for the way of the
/// acknowledgement to the writer.
pub const LEASE_MARGIN: Duration = Duration::from_secs(1);
/// Longest gap between two probe rounds of the member proof; a promotion, death, rewind and return
/// takes six seconds or more.
pub const PROBE_ROUND_GAP_MAX: Duration = Duration::from_secs(1);
/// A commit that took longer needs a proof that was requested after it returned: a backend may
/// outlive its postmaster.
pub const SLOW_COMMIT_AFTER: Duration = Duration::from_secs(1);

/// etcd's answer about the leader key and its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseAnswer {
    /// When the first of the two requests was sent.
    pub sent: BootTime,
    /// The key.
    pub leader: LeaderKey,
    /// How long the lease had left, in whole seconds, rounded down.
    pub remaining_s: u64,
    /// Patroni is paused: the lease proves nothing then.
    pub paused: bool,
}

/// What one other member answered to a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberAnswer {
    /// Whether it is in recovery.
    pub in_recovery: bool,
    /// The timeline that its WAL receiver follows; `None`: it receives nothing.
    pub received_timeline: Option<u32>,
}

/// One round of probes of all members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeRound {
    /// When the first probe was sent.
    pub sent: BootTime,
    /// Our primary still passes the epoch check.
    pub primary_checked: bool,
    /// One answer for each other member that was ever seen; `None`: it did not answer.
    pub members: Vec<Option<MemberAnswer>>,
}

/// The proofs of leadership in one epoch.
#[derive(Debug, Clone)]
pub struct LeadershipProof {
    epoch: EpochRecord,
    /// Until when the lease proves leadership; `None`: no lease was read yet.
    deadline: Option<BootTime>,
    /// When the newest lease proof was requested; `None`: there is none.
    proven_at: Option<BootTime>,
    /// The newest round of an unbroken chain that began at the last lease proof; `None`: the chain
    /// is broken.
    chain: Option<BootTime>,
    paused: bool,
    /// How many other members there are; `None`: not known yet.
    members: Option<usize>,
    /// The newest revision of etcd that was used.
    revision: u64,
    /// A look showed that the term is over.
    has_ended: bool,
}

/// Whether leadership is proven for a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProofStatus {
    /// No other primary can have begun before the commit returned.
    Proven,
    /// Not yet: a proof that was requested after this moment is needed.
    ProofAfter(BootTime),
}

impl LeadershipProof {
    /// Nothing is proven yet.
    pub fn new(epoch: EpochRecord) -> Self {
        Self {
            epoch,
            deadline: None,
            proven_at: None,
            chain: None,
            paused: false,
            members: None,
            revision: 0,
            has_ended: false,
        }
    }

    /// Sets how many other members were ever seen: a round proves nothing without an answer for
    /// each of them.
    pub fn set_members(&mut self, count: usize) {
        self.members = Some(count);
    }

    /// The epoch that it is about.
    pub fn epoch(&self) -> &EpochRecord {
        &self.epoch
    }

    /// Until when the lease proves leadership; `None`: no lease was read yet.
    pub fn deadline(&self) -> Option<BootTime> {
        self.deadline
    }

    /// Records etcd's answer as of a revision (`header.revision` of the read of the leader key). An
    /// answer that is older than one that was used changes nothing. False: the term has ended.
    pub fn record_look(&mut self, revision: u64, answer: &LeaseAnswer) -> bool {
        if revision < self.revision {
            return !self.has_ended;
        }
        self.revision = revision;
        self.record_lease(answer)
    }

    /// Records that no node held the leader key as of a revision. False: the term has ended.
    pub fn record_vacancy(&mut self, revision: u64) -> bool {
        // Terms are named by revisions: an older look is of the time before this term.
        if revision >= self.epoch.term {
            self.end();
        }
        !self.has_ended
    }

    fn end(&mut self) {
        self.has_ended = true;
        self.deadline = None;
        self.proven_at = None;
        self.chain = None;
    }

    /// Records etcd's answer. False: the term has ended.
    pub fn record_lease(&mut self, answer: &LeaseAnswer) -> bool {
        let LeaderKey { create_revision, member } = &answer.leader;
        let is_ours = *create_revision == self.epoch.term && *member == self.epoch.member;
        // An earlier term is an answer that was overtaken.
        if !is_ours && *create_revision >= self.epoch.term {
            self.end();
        }
        if !is_ours || self.has_ended {
            return !self.has_ended;
        }
        self.paused = answer.paused;
        let until = BootTime(
            (answer.sent.0 + Duration::from_secs(answer.remaining_s)).saturating_sub(LEASE_MARGIN),
        );
        self.deadline = self.deadline.max(Some(until));
        // Broken | Chained(at) => Chained(sent): a newer lease proof begins the chain again.
        if self.proven_at.is_none_or(|at| at < answer.sent) {
            self.proven_at = Some(answer.sent);
            self.chain = Some(answer.sent);
        }
        true
    }

    /// Records a round of probes. A failed or late one breaks the chain until etcd proves the term
    /// again.
    pub fn record_round(&mut self, round: &ProbeRound) {
        let is_complete =
            self.members.is_some_and(|count| count > 0 && round.members.len() >= count);
        let good = round.primary_checked
            && is_complete
            && round.members.iter().all(|answer| {
                answer.is_some_and(|a| {
                    a.in_recovery && a.received_timeline == Some(self.epoch.timeline)
                })
            });
        self.chain = match self.chain {
            // Chained(last) => Chained(sent)
            Some(last) if good && round.sent.0 <= last.0 + PROBE_ROUND_GAP_MAX => {
                Some(last.max(round.sent))
            }
            // Chained | Broken => Broken
            _ => None,
        };
    }

    /// Whether leadership is proven now for a commit that was sent and returned at these times.
    pub fn proof_status(&self, sent: BootTime, returned: BootTime, now: BootTime) -> ProofStatus {
        let slow = returned.0.saturating_sub(sent.0) > SLOW_COMMIT_AFTER;
        let lease = !self.paused && self.deadline.is_some_and(|deadline| now < deadline);
        let lease = lease && (!slow || self.proven_at.is_some_and(|at| at > returned));
        // The chain begins with a lease proof, which is not a round: that moment alone is no member
        // proof.
        let rounds = self.chain.is_some_and(|at| at > returned && Some(at) != self.proven_at);
        if lease || rounds { ProofStatus::Proven } else { ProofStatus::ProofAfter(returned) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::tests::record;
    use proptest::prelude::*;

    fn at(ms: u64) -> BootTime {
        BootTime(Duration::from_millis(ms))
    }

    fn epoch(term: u64) -> EpochRecord {
        record(1, term, "p", 1)
    }

    fn lease(sent: u64, term: u64, remaining_s: u64) -> LeaseAnswer {
        let leader = LeaderKey { create_revision: term, member: "p".to_owned() };
        LeaseAnswer { sent: at(sent), leader, remaining_s, paused: false }
    }

    fn round(sent: u64, members: Vec<Option<MemberAnswer>>) -> ProbeRound {
        ProbeRound { sent: at(sent), primary_checked: true, members }
    }

    fn member(in_recovery: bool, received_timeline: Option<u32>) -> Option<MemberAnswer> {
        Some(MemberAnswer { in_recovery, received_timeline })
    }

    fn follows(timeline: u32) -> Option<MemberAnswer> {
        member(true, Some(timeline))
    }

    /// With two other members.
    fn unproven() -> LeadershipProof {
        let mut proof = LeadershipProof::new(epoch(7));
        proof.set_members(2);
        proof
    }

    fn proven(proof: &LeadershipProof, sent: u64, returned: u64, now: u64) -> bool {
        proof.proof_status(at(sent), at(returned), at(now)) == ProofStatus::Proven
    }

    #[test]
    fn nothing_is_proven_at_first() {
        assert!(!proven(&LeadershipProof::new(epoch(7)), 10, 20, 30));
    }

    #[test]
    fn a_lease_is_a_proof_until_a_second_before_its_end() {
        let mut proof = LeadershipProof::new(epoch(7));
        assert!(proof.record_lease(&lease(1000, 7, 18)));
        assert!(proven(&proof, 2000, 2010, 17_999));
        assert!(!proven(&proof, 17_900, 17_950, 18_000));
    }

    #[test]
    fn the_lease_of_a_different_term_proves_nothing() {
        let mut proof = LeadershipProof::new(epoch(7));
        assert!(
            !proof.record_lease(&lease(1000, 8, 19)),
            "the same node holds the key again: a different term"
        );
        assert!(!proven(&proof, 1100, 1110, 1120));
    }

    #[test]
    fn an_older_answer_does_not_shorten_the_proof() {
        let mut proof = LeadershipProof::new(epoch(7));
        proof.record_lease(&lease(5000, 7, 19));
        proof.record_lease(&lease(1000, 7, 18));
        assert_eq!(proof.deadline(), Some(at(23_000)));
    }

    #[test]
    fn a_slow_commit_needs_a_proof_requested_after_it() {
        // The postmaster was killed and the key released while a busy backend went on for seconds.
        let mut proof = LeadershipProof::new(epoch(7));
        proof.record_lease(&lease(1000, 7, 19));
        assert_eq!(
            proof.proof_status(at(1500), at(2600), at(2601)),
            ProofStatus::ProofAfter(at(2600))
        );
        proof.record_lease(&lease(2500, 7, 19));
        assert!(!proven(&proof, 1500, 2600, 2700), "requested before the commit returned");
        proof.record_lease(&lease(2601, 7, 19));
        assert!(proven(&proof, 1500, 2600, 2700));
    }

    #[test]
    fn a_paused_patroni_makes_the_lease_worthless() {
        let mut proof = unproven();
        proof.record_lease(&LeaseAnswer { paused: true, ..lease(1000, 7, 19) });
        assert!(!proven(&proof, 1100, 1110, 1120));
        proof.record_round(&round(1500, vec![follows(1), follows(1)]));
        assert!(proven(&proof, 1100, 1110, 1520), "members in recovery still prove it");
    }

    #[test]
    fn members_in_recovery_prove_it_while_etcd_does_not_answer() {
        let mut proof = unproven();
        proof.record_lease(&lease(0, 7, 2));
        for sent in (500..=30_000).step_by(500) {
            proof.record_round(&round(sent, vec![follows(1), follows(1)]));
        }
        assert!(proven(&proof, 29_900, 29_950, 30_010));
        assert!(
            !proven(&proof, 29_900, 30_000, 30_010),
            "the round must be sent after the commit returned"
        );
    }

    #[test]
    fn a_member_that_was_primary_in_between_breaks_the_chain() {
        let mut proof = unproven();
        proof.record_lease(&lease(0, 7, 2));
        proof.record_round(&round(800, vec![follows(1), follows(1)]));
        // R1 is promoted, acknowledges, dies (no answer), returns as a replica that looks as
        // before.
        proof.record_round(&round(1600, vec![None, follows(1)]));
        for sent in (2400..9000).step_by(800) {
            proof.record_round(&round(sent, vec![follows(1), follows(1)]));
        }
        assert!(!proven(&proof, 8000, 8100, 8900), "the chain stays broken until etcd answers");
        proof.record_lease(&lease(9000, 7, 19));
        assert!(proven(&proof, 8000, 8100, 9100));
    }

    #[test]
    fn a_gap_that_hides_a_promotion_breaks_the_chain() {
        let mut proof = unproven();
        proof.record_lease(&lease(0, 7, 2));
        proof.record_round(&round(800, vec![follows(1), follows(1)]));
        proof.record_round(&round(2801, vec![follows(1), follows(1)]));
        assert!(!proven(&proof, 2000, 2100, 2900));
    }

    #[test]
    fn a_member_on_a_different_timeline_or_a_failed_check_breaks_the_chain() {
        for bad in [
            round(800, vec![follows(1), follows(2)]),
            round(800, vec![follows(1), member(false, Some(1))]),
            round(800, vec![follows(1), member(true, None)]),
            ProbeRound { primary_checked: false, ..round(800, vec![follows(1), follows(1)]) },
        ] {
            let mut proof = unproven();
            proof.record_lease(&lease(0, 7, 1));
            proof.record_round(&bad);
            proof.record_round(&round(1000, vec![follows(1), follows(1)]));
            assert!(!proven(&proof, 100, 200, 1100), "{bad:?}");
        }
    }

    #[test]
    fn a_round_proves_nothing_unless_every_member_that_was_ever_seen_answers() {
        let answers = |count: usize| round(500, vec![follows(1); count]);
        for (members, answered, is_proof) in [
            (None, 0, false),
            (None, 2, false),
            (Some(0), 0, false),
            (Some(2), 0, false),
            (Some(2), 1, false),
            (Some(2), 2, true),
            (Some(1), 2, true),
        ] {
            let mut proof = LeadershipProof::new(epoch(7));
            if let Some(count) = members {
                proof.set_members(count);
            }
            proof.record_lease(&lease(0, 7, 1));
            proof.record_round(&answers(answered));
            assert_eq!(proven(&proof, 100, 200, 600), is_proof, "{members:?} {answered}");
        }
    }

    #[test]
    fn a_look_at_a_later_term_ends_every_proof_for_good() {
        let ends: [fn(&mut LeadershipProof) -> bool; 3] = [
            |proof| proof.record_look(9, &lease(1100, 9, 19)),
            |proof| proof.record_vacancy(8),
            |proof| {
                let mut other = lease(1100, 7, 19);
                other.leader.member = "r1".to_owned();
                proof.record_look(9, &other)
            },
        ];
        for end in ends {
            let mut proof = unproven();
            assert!(proof.record_look(7, &lease(1000, 7, 19)));
            proof.record_round(&round(1050, vec![follows(1), follows(1)]));
            assert!(proven(&proof, 1010, 1020, 1060));
            assert!(!end(&mut proof));
            assert!(!proven(&proof, 1010, 1020, 1200), "nothing of what was proven counts");
            assert!(!proof.record_look(10, &lease(1300, 7, 19)), "a term never returns");
            proof.record_round(&round(1350, vec![follows(1), follows(1)]));
            assert!(!proven(&proof, 1310, 1320, 1400));
        }
    }

    #[test]
    fn a_look_that_was_overtaken_changes_nothing() {
        let mut proof = LeadershipProof::new(epoch(7));
        assert!(proof.record_look(20, &LeaseAnswer { paused: true, ..lease(1000, 7, 19) }));
        assert!(proof.record_look(19, &lease(1001, 7, 19)), "asked later, answered earlier");
        assert!(!proven(&proof, 1010, 1020, 1100), "Patroni is paused");
        assert!(proof.record_look(21, &lease(1200, 7, 19)));
        assert!(proof.record_look(6, &lease(900, 3, 19)), "the term before");
        assert!(proof.record_lease(&lease(900, 3, 19)));
        assert!(proof.record_vacancy(6), "the vacancy before this term");
        assert!(proven(&proof, 1210, 1220, 1300));
    }

    proptest! {
        /// All schedules in one property: the holder of the key refreshes its lease at any
        /// moments, a reader is answered late, its requests stall anywhere. Whatever is proven is
        /// proven before the lease's true end.
        #[test]
        fn a_proof_never_outlives_the_lease(
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
            let mut proof = LeadershipProof::new(epoch(7));
            let mut sent = 0;
            for (gap, stall) in asks {
                sent += gap;
                // etcd answers from its state at some moment after the request was sent.
                let seen = sent + stall;
                let alive = |(from, end): &&(u64, u64)| *from <= seen && seen < *end;
                let Some((_, end)) = ends.iter().rfind(alive) else { continue };
                proof.record_lease(&lease(sent, 7, (end - seen) / 1000));
            }
            let last_end = ends.last().map_or(0, |(_, end)| *end);
            if proven(&proof, probe, probe, probe) {
                prop_assert!(probe < last_end, "proven at {} after the end {}", probe, last_end);
            }
        }
    }
}
