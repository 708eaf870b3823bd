//! The pure decisions: the guard, the closing of a repair, and the verdict about a write.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use tagfast_domain::EpochOrdinal;
use tagfast_failover::closing::CLOSING_AFTER;
use tagfast_failover::guard::{COVERAGE_WAIT_MAX, EPOCH_SETTLE_TIME, GUARD_MARGIN};
use tagfast_failover::{
    Closing, EpochRecord, GuardFacts, GuardOptions, GuardState, OnLag, RecordedVerdict,
    VerdictFacts, WriteVerdict, closing, guard, superseded, verdict,
};

use crate::support::{cases, epoch, epoch_id};

const HOLD: GuardOptions =
    GuardOptions { max_loss: Duration::from_millis(1000), on_lag: OnLag::Hold };
const SETTLED: GuardFacts = GuardFacts {
    exposure: Duration::ZERO,
    waiting: Duration::ZERO,
    streaming: 2,
    has_members: true,
    epoch_age: EPOCH_SETTLE_TIME,
};

fn exposed(ms: u64) -> GuardFacts {
    GuardFacts { exposure: Duration::from_millis(ms), ..SETTLED }
}

#[test]
fn the_guard_grows_careful_with_the_exposure() {
    for (ms, state) in [
        (0, GuardState::Open),
        (499, GuardState::Open),
        (500, GuardState::Throttled),
        (939, GuardState::Throttled),
        (940, GuardState::Holding),
        (3_000, GuardState::Holding),
        (3_001, GuardState::Refusing),
    ] {
        assert_eq!(guard(&HOLD, &exposed(ms)), state, "{ms} ms");
    }
}

#[test]
fn writes_are_refused_when_waiting_is_hopeless_but_not_in_a_young_epoch() {
    let long = GuardFacts { waiting: COVERAGE_WAIT_MAX + Duration::from_millis(1), ..exposed(950) };
    let alone = GuardFacts { streaming: 0, ..exposed(950) };
    // Replicas that hang are listed as streaming, and who was refused does not wait any more.
    let hanging = exposed(HOLD.max_loss.as_millis() as u64 + 2001);
    for facts in [long, alone, hanging] {
        assert_eq!(guard(&HOLD, &facts), GuardState::Refusing);
        let young = GuardFacts { epoch_age: EPOCH_SETTLE_TIME - Duration::from_millis(1), ..facts };
        assert_eq!(guard(&HOLD, &young), GuardState::Holding);
        let available = GuardOptions { on_lag: OnLag::Availability, ..HOLD };
        assert_eq!(guard(&available, &facts), GuardState::Throttled);
        let single = GuardFacts { has_members: false, ..facts };
        assert_eq!(guard(&HOLD, &single), GuardState::Open, "no failover can happen");
    }
    assert_eq!(
        guard(&HOLD, &GuardFacts { waiting: COVERAGE_WAIT_MAX, ..exposed(950) }),
        GuardState::Holding
    );
}

#[test]
fn a_failover_ends_with_the_repair_of_a_later_one() {
    let of =
        |n, parent: Option<u64>| EpochRecord { parent_id: parent.map(epoch_id), ..epoch(n, "p") };
    let history = [of(1, None), of(2, Some(1)), of(4, Some(3)), of(3, Some(2)), of(5, Some(4))];
    let ended_with = |n, closed: &[u64]| -> Vec<u64> {
        let closed = closed.iter().copied().map(EpochOrdinal).collect();
        let ended = superseded(&history, EpochOrdinal(n), &closed);
        ended.into_iter().map(|epoch| epoch.ordinal.0).collect()
    };
    assert_eq!(ended_with(4, &[]), [2, 3], "no failover began the first, and the fifth is later");
    assert_eq!(ended_with(4, &[2]), [3]);
    assert_eq!(ended_with(4, &[1, 2, 3]), [0; 0]);
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_repair_is_closed_when_all_have_reported_or_at_its_limit() {
    let young = CLOSING_AFTER - Duration::from_millis(1);
    let missing = closing(&set(&["a", "b"]), &set(&["a"]), young);
    assert_eq!(missing, Closing::WaitFor(set(&["b"])));
    let all = closing(&set(&["a", "b"]), &set(&["a", "b", "gone"]), Duration::ZERO);
    assert_eq!(all, Closing::Close(set(&[])));
    let late = closing(&set(&["a", "b"]), &set(&["a"]), CLOSING_AFTER);
    assert_eq!(late, Closing::Close(set(&["b"])));
}

#[test]
fn an_empty_list_of_processes_closes_nothing_before_the_limit() {
    assert_eq!(closing(&set(&[]), &set(&["a"]), Duration::ZERO), Closing::WaitFor(set(&[])));
    assert_eq!(closing(&set(&[]), &set(&[]), CLOSING_AFTER), Closing::Close(set(&[])));
}

const PAST_END: VerdictFacts = VerdictFacts {
    recorded: None,
    is_known: false,
    epoch_end: Some(100),
    inside: 100,
    flushed: 110,
    is_closed: true,
};

#[test]
fn the_first_rule_that_applies_decides() {
    use WriteVerdict::{Expired, Kept, Lost, Pending, Repaired};
    let of = |recorded| VerdictFacts { recorded: Some(recorded), ..PAST_END };
    for (facts, expected) in [
        (of(RecordedVerdict::Kept), Kept),
        (of(RecordedVerdict::Repaired), Repaired),
        (VerdictFacts { is_known: true, ..of(RecordedVerdict::Lost) }, Lost),
        (VerdictFacts { is_known: true, ..PAST_END }, Kept),
        (VerdictFacts { flushed: 100, inside: 90, ..PAST_END }, Kept),
        (VerdictFacts { is_closed: false, ..PAST_END }, Pending),
        (VerdictFacts { epoch_end: None, ..PAST_END }, Pending),
        (PAST_END, Lost),
        (VerdictFacts { inside: 99, ..PAST_END }, Expired),
        (VerdictFacts { epoch_end: Some(0), inside: 1, ..PAST_END }, Lost),
    ] {
        assert_eq!(verdict(&facts), expected, "{facts:?}");
    }
}

proptest! {
    #![proptest_config(cases(500, 20))]

    /// The commit record lies somewhere in the transaction's range. Whatever the current history
    /// kept is never called lost, whatever it lost is never called kept, and after the closing a
    /// verdict does not change.
    #[test]
    fn a_verdict_is_never_a_guess(
        inside in 0..100u64, length in 1..20u64, commit in 0..20u64, end in 0..120u64,
        is_closed: bool,
    ) {
        let flushed = inside + length;
        let commit = (inside + 1 + commit).min(flushed);
        let facts = VerdictFacts { inside, flushed, epoch_end: Some(end), is_closed, ..PAST_END };
        match verdict(&facts) {
            WriteVerdict::Kept => prop_assert!(commit <= end),
            WriteVerdict::Lost => prop_assert!(commit > end && is_closed),
            WriteVerdict::Pending => prop_assert!(!is_closed),
            WriteVerdict::Expired => prop_assert!(inside < end && end < flushed),
            WriteVerdict::Repaired => prop_assert!(false, "nothing was recorded"),
        }
    }

    /// More exposure never makes the guard less careful, and nothing that is not covered is
    /// acknowledged in the margin before the largest loss.
    #[test]
    fn the_guard_is_monotonous(
        less in 0..3000u64, more in 0..3000u64, waiting in 0..3000u64, streaming in 0..3usize,
        age in 0..20_000u64, max_loss in 200..3000u64,
    ) {
        let options = GuardOptions { max_loss: Duration::from_millis(max_loss), ..HOLD };
        let facts = |exposure| GuardFacts {
            exposure: Duration::from_millis(exposure),
            waiting: Duration::from_millis(waiting),
            streaming,
            has_members: true,
            epoch_age: Duration::from_millis(age),
        };
        let of = |ms| guard(&options, &facts(ms));
        prop_assert!(of(less.min(more)) <= of(less.max(more)));
        if Duration::from_millis(more) >= options.max_loss - GUARD_MARGIN {
            prop_assert!(of(more) >= GuardState::Holding);
        }
    }
}
