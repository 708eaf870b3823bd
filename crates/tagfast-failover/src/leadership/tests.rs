//! The rules of the proofs one by one, and over all schedules.

use super::*;
use crate::epoch::tests::record;
use proptest::prelude::*;

fn at(ms: u64) -> BootTime {
    BootTime(Duration::from_millis(ms))
}

fn epoch(term: u64) -> EpochRecord {
    record(1, term, "p", 1)
}

/// An observation of the key of `p`, whose lease was asked for at `sent`.
fn held(revision: u64, sent: u64, term: u64, remaining_s: u64) -> LeaderObservation {
    LeaderObservation {
        revision,
        raft_term: 1,
        leader: Some(LeaderKey { create_revision: term, member: "p".to_owned() }),
        key_lease: 5,
        lease: Some(LeaseAnswer { id: 5, sent: at(sent), remaining_s, raft_term: 1 }),
        paused: false,
    }
}

/// As of a revision that the term has reached.
fn lease(sent: u64, term: u64, remaining_s: u64) -> LeaderObservation {
    held(term, sent, term, remaining_s)
}

fn vacancy(revision: u64) -> LeaderObservation {
    LeaderObservation { leader: None, key_lease: 0, lease: None, ..held(revision, 0, 0, 0) }
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
    assert!(proof.record_observation(&lease(1000, 7, 18)));
    assert!(proven(&proof, 2000, 2010, 17_999));
    assert!(!proven(&proof, 17_900, 17_950, 18_000));
}

#[test]
fn the_lease_of_a_different_term_proves_nothing() {
    let mut proof = LeadershipProof::new(epoch(7));
    assert!(
        !proof.record_observation(&lease(1000, 8, 19)),
        "the same node holds the key again: a different term"
    );
    assert!(!proven(&proof, 1100, 1110, 1120));
}

#[test]
fn an_older_answer_does_not_shorten_the_proof() {
    let mut proof = LeadershipProof::new(epoch(7));
    proof.record_observation(&lease(5000, 7, 19));
    proof.record_observation(&lease(1000, 7, 18));
    assert_eq!(proof.deadline(), Some(at(23_000)));
}

#[test]
fn a_slow_commit_needs_a_proof_requested_after_it() {
    // The postmaster was killed and the key released while a busy backend went on for seconds.
    let mut proof = LeadershipProof::new(epoch(7));
    proof.record_observation(&lease(1000, 7, 19));
    assert_eq!(proof.proof_status(at(1500), at(2600), at(2601)), ProofStatus::ProofAfter(at(2600)));
    proof.record_observation(&lease(2500, 7, 19));
    assert!(!proven(&proof, 1500, 2600, 2700), "requested before the commit returned");
    proof.record_observation(&lease(2601, 7, 19));
    assert!(proven(&proof, 1500, 2600, 2700));
}

#[test]
fn a_paused_patroni_makes_the_lease_worthless() {
    let mut proof = unproven();
    proof.record_observation(&LeaderObservation { paused: true, ..lease(1000, 7, 19) });
    assert!(!proven(&proof, 1100, 1110, 1120));
    proof.record_round(&round(1500, vec![follows(1), follows(1)]));
    assert!(proven(&proof, 1100, 1110, 1520), "members in recovery still prove it");
}

#[test]
fn members_in_recovery_prove_it_while_etcd_does_not_answer() {
    let mut proof = unproven();
    proof.record_observation(&lease(0, 7, 2));
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
    proof.record_observation(&lease(0, 7, 2));
    proof.record_round(&round(800, vec![follows(1), follows(1)]));
    // R1 is promoted, acknowledges, dies (no answer), returns as a replica that looks as
    // before.
    proof.record_round(&round(1600, vec![None, follows(1)]));
    for sent in (2400..9000).step_by(800) {
        proof.record_round(&round(sent, vec![follows(1), follows(1)]));
    }
    assert!(!proven(&proof, 8000, 8100, 8900), "the chain stays broken until etcd answers");
    proof.record_observation(&lease(9000, 7, 19));
    assert!(proven(&proof, 8000, 8100, 9100));
}

#[test]
fn a_gap_that_hides_a_promotion_breaks_the_chain() {
    let mut proof = unproven();
    proof.record_observation(&lease(0, 7, 2));
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
        proof.record_observation(&lease(0, 7, 1));
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
        proof.record_observation(&lease(0, 7, 1));
        proof.record_round(&answers(answered));
        assert_eq!(proven(&proof, 100, 200, 600), is_proof, "{members:?} {answered}");
    }
}

#[test]
fn an_observation_of_a_later_term_ends_every_proof_for_good() {
    let other_member = |revision| {
        let leader = Some(LeaderKey { create_revision: 7, member: "r1".to_owned() });
        LeaderObservation { leader, ..held(revision, 1100, 7, 19) }
    };
    // Also where etcd said nothing of the lease, or an answer of its former leader.
    let unconfirmed = LeaderObservation { raft_term: 2, ..held(9, 1100, 9, 19) };
    for end in [held(9, 1100, 9, 19), vacancy(8), other_member(9), unconfirmed] {
        let mut proof = unproven();
        assert!(proof.record_observation(&held(7, 1000, 7, 19)));
        proof.record_round(&round(1050, vec![follows(1), follows(1)]));
        assert!(proven(&proof, 1010, 1020, 1060));
        assert!(!proof.record_observation(&end));
        assert!(!proven(&proof, 1010, 1020, 1200), "nothing of what was proven counts: {end:?}");
        assert_eq!(proof.deadline(), None, "{end:?}");
        assert!(!proof.record_observation(&held(10, 1300, 7, 19)), "a term never returns");
        proof.record_round(&round(1350, vec![follows(1), follows(1)]));
        assert!(!proven(&proof, 1310, 1320, 1400));
    }
}

#[test]
fn an_observation_that_was_overtaken_changes_nothing() {
    let mut proof = LeadershipProof::new(epoch(7));
    let paused = LeaderObservation { paused: true, ..held(20, 1000, 7, 19) };
    assert!(proof.record_observation(&paused));
    assert!(proof.record_observation(&held(19, 1001, 7, 19)), "asked later, answered earlier");
    assert!(!proven(&proof, 1010, 1020, 1100), "Patroni is paused");
    assert!(proof.record_observation(&held(21, 1200, 7, 19)));
    assert!(proof.record_observation(&held(6, 900, 3, 19)), "the term before");
    assert!(proof.record_observation(&vacancy(6)), "the vacancy before this term");
    assert!(proof.record_observation(&vacancy(20)), "what was seen since is newer");
    assert!(proven(&proof, 1210, 1220, 1300));
}

/// etcd's leader is cut off from the other members and not from us: it answers for the lease as
/// before, and its successor answers the read.
#[test]
fn a_lease_of_etcds_former_leader_proves_nothing() {
    let answer = held(7, 1000, 7, 19);
    let successor = LeaderObservation { raft_term: 2, ..answer.clone() };
    let other_lease = LeaderObservation { key_lease: 6, ..answer.clone() };
    let not_asked = LeaderObservation { lease: None, ..answer.clone() };
    for (observation, is_proof) in
        [(&answer, true), (&successor, false), (&other_lease, false), (&not_asked, false)]
    {
        let mut proof = unproven();
        assert!(proof.record_observation(observation), "the term goes on: {observation:?}");
        assert_eq!(proven(&proof, 1100, 1110, 1200), is_proof, "{observation:?}");
        // Nor is it a beginning for the proof by members.
        proof.record_round(&round(1150, vec![follows(1), follows(1)]));
        assert_eq!(proven(&proof, 1100, 1110, 30_000), is_proof, "{observation:?}");
    }
}

#[test]
fn a_lease_counts_for_twenty_seconds_at_most() {
    let mut proof = LeadershipProof::new(epoch(7));
    proof.record_observation(&lease(1000, 7, 29));
    assert_eq!(proof.deadline(), Some(at(20_000)));
}

#[test]
fn a_late_observation_does_not_set_the_chain_back() {
    let mut proof = unproven();
    proof.record_observation(&held(7, 0, 7, 2));
    proof.record_round(&round(800, vec![follows(1), follows(1)]));
    // Requested before that round, answered after it.
    proof.record_observation(&held(8, 100, 7, 2));
    proof.record_round(&round(1500, vec![follows(1), follows(1)]));
    assert!(proven(&proof, 1300, 1400, 30_000));
}

/// Patroni's loop on the primary refreshes the lease and tells its REST API that it leads; it may
/// stall before each step, and never refreshes again. Every stall of a list at every place, the
/// lease asked for every half second and answered at once or late: no proof outlives it.
#[test]
fn a_proof_never_outlives_the_lease_on_the_grid_of_stalls() {
    const TTL_MS: u64 = 20_000;
    const STALLS_MS: [u64; 7] = [0, 500, 3000, 7000, 12_000, 16_000, 19_500];
    let mut proofs = 0;
    for refreshed in STALLS_MS {
        let end = refreshed + TTL_MS;
        for told in [0, 500, 3000].map(|stall| refreshed + stall) {
            for (asked, delay) in
                (told..end).step_by(500).flat_map(|asked| [0, 10, 700].map(|delay| (asked, delay)))
            {
                let answered = asked + delay;
                if answered >= end {
                    continue;
                }
                let mut proof = LeadershipProof::new(epoch(7));
                assert!(proof.record_observation(&lease(asked, 7, (end - answered) / 1000)));
                let deadline = proof.deadline().expect("a lease was read");
                assert!(deadline < at(end), "{refreshed} {told} {asked} {delay}");
                assert!(!proven(&proof, end, end, end), "{asked} {delay}");
                proofs += usize::from(proven(&proof, answered, answered, answered));
            }
        }
    }
    assert!(proofs > 1000, "{proofs} answers proved something");
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
            proof.record_observation(&lease(sent, 7, (end - seen) / 1000));
        }
        let last_end = ends.last().map_or(0, |(_, end)| *end);
        if proven(&proof, probe, probe, probe) {
            prop_assert!(probe < last_end, "proven at {} after the end {}", probe, last_end);
        }
    }

    /// A leader of etcd loses the other members and goes on answering for the lease, which the
    /// primary renews at it, while a successor, who knows of no renewal, lets it end. The successor
    /// alone answers reads of the key from then on.
    #[test]
    fn a_former_leader_of_etcd_proves_nothing_that_its_successor_does_not(
        renewals in proptest::collection::vec(0u64..2000, 1..20),
        succeeded in 0u64..20_000,
        asks in proptest::collection::vec((0u64..2000, 0u64..600, any::<bool>()), 1..30),
        probe in 0u64..60_000,
    ) {
        const TTL_MS: u64 = 20_000;
        let renewed: Vec<u64> = renewals
            .iter()
            .scan(0, |now, gap| { *now += gap; Some(*now) })
            .collect();
        // Its end at the former leader, and at the successor, who begins with a whole lease.
        let former_end = |at: u64| {
            renewed.iter().rfind(|renewal| **renewal <= at).copied().unwrap_or(0) + TTL_MS
        };
        let end = succeeded.max(1) + TTL_MS;
        let mut proof = LeadershipProof::new(epoch(7));
        let mut sent = 0;
        for (gap, delay, asks_former) in asks {
            sent += gap;
            let read = sent + delay;
            let of_former = asks_former || sent < succeeded;
            let lease_end = if of_former { former_end(sent) } else { end };
            let is_held = read < end;
            let observation = LeaderObservation {
                raft_term: if read < succeeded { 1 } else { 2 },
                lease: (lease_end > sent).then(|| LeaseAnswer {
                    id: 5,
                    sent: at(sent),
                    remaining_s: (lease_end - sent) / 1000,
                    raft_term: if of_former { 1 } else { 2 },
                }),
                ..if is_held { held(7 + read, 0, 7, 0) } else { vacancy(7 + read) }
            };
            proof.record_observation(&observation);
            let is_confirmed = observation.confirmed_lease().is_some();
            let same_leader = of_former == (read < succeeded);
            prop_assert!(is_confirmed == (same_leader && lease_end > sent && is_held));
        }
        if proven(&proof, probe, probe, probe) {
            prop_assert!(probe < end, "proven at {} after the end {}", probe, end);
        }
    }

    /// Observations in any order: what counts is the newest, and once one of them does not show the
    /// term nothing is proven any more.
    #[test]
    fn the_newest_observation_decides(
        order in proptest::collection::vec(0usize..12, 1..30),
        ends in 1u64..12,
    ) {
        let mut proof = LeadershipProof::new(epoch(7));
        let (mut newest, mut has_ended) = (0, false);
        for place in order {
            let revision = 7 + place as u64;
            let observation = if revision < 7 + ends {
                // The later ones show a pause.
                let paused = place >= 6;
                LeaderObservation { paused, ..held(revision, 1000, 7, 19) }
            } else {
                vacancy(revision)
            };
            newest = newest.max(place);
            has_ended |= newest as u64 >= ends;
            prop_assert_eq!(proof.record_observation(&observation), !has_ended);
            let is_proven = proven(&proof, 1100, 1110, 1200);
            prop_assert_eq!(is_proven, !has_ended && newest < 6);
        }
    }

    /// A member is promoted, acknowledges, dies and returns as a replica that answers as before,
    /// six seconds later at the earliest. Rounds come as they come, some members answer late or are
    /// not asked. What is proven by members returned before the promotion.
    #[test]
    fn no_commit_is_proven_by_members_after_one_of_them_was_promoted(
        rounds in proptest::collection::vec((50u64..1050, 0u64..400, 0u8..60), 1..60),
        promoted in 500u64..15_000,
        lived in 100u64..5000,
        returned in 0u64..30_000,
    ) {
        let mut proof = unproven();
        // Its lease is over at once: the members alone prove.
        proof.record_observation(&lease(0, 7, 1));
        let back = promoted + 6000.max(lived);
        let mut sent = 0;
        for (gap, delay, kind) in rounds {
            // Now and then there is none for long enough to hide a promotion.
            sent += gap + if kind == 2 { 7000 } else { 0 };
            let answered = sent + delay;
            let other = if answered < promoted || answered >= back {
                follows(1)
            } else if answered < promoted + lived {
                member(false, None)
            } else {
                None
            };
            let members = match kind {
                // It is listed no more, or no one is.
                0 => vec![follows(1)],
                1 => Vec::new(),
                _ => vec![follows(1), other],
            };
            proof.record_round(&round(sent, members));
            if proven(&proof, returned, returned, 60_000) {
                prop_assert!(returned < promoted, "{} but promoted at {}", returned, promoted);
            }
        }
    }
}
