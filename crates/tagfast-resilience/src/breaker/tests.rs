//! When it opens, how it closes, and that no schedule keeps it open forever.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

struct Fixture {
    now: Arc<AtomicU64>,
    breaker: Arc<Breaker>,
    transitions: Arc<Mutex<Vec<(BreakerState, &'static str)>>>,
}

impl Fixture {
    fn new(options: BreakerOptions) -> Self {
        let (now, transitions) =
            (Arc::new(AtomicU64::new(100_000)), Arc::new(Mutex::new(Vec::new())));
        let (clock, sink) = (Arc::clone(&now), Arc::clone(&transitions));
        let breaker = Breaker::new(
            "test",
            options,
            Arc::new(move || Duration::from_millis(clock.load(Ordering::Relaxed))),
            Arc::new(move |t: &Transition| sink.lock().push((t.to, t.reason))),
            7,
        );
        Self { now, breaker, transitions }
    }

    fn advance(&self, ms: u64) {
        self.now.fetch_add(ms, Ordering::Relaxed);
    }

    fn call(&self, good: bool) -> bool {
        match self.breaker.acquire() {
            Ok(permit) if good => permit.ok(),
            Ok(permit) => permit.failed(),
            Err(_) => return false,
        }
        true
    }

    fn transitions(&self) -> Vec<(BreakerState, &'static str)> {
        std::mem::take(&mut *self.transitions.lock())
    }

    /// Opens it and lets its open time pass.
    fn opened(options: BreakerOptions) -> Self {
        let fixture = Self::new(options);
        (0..options.min_calls).for_each(|_| assert!(fixture.call(false)));
        assert_eq!(fixture.transitions(), [(BreakerState::Open, "failures")]);
        fixture
    }
}

#[test]
fn too_few_calls_decide_nothing() {
    let fixture = Fixture::new(BreakerOptions::default());
    (0..19).for_each(|_| assert!(fixture.call(false)));
    assert_eq!(fixture.breaker.state(), BreakerState::Closed);
    assert!(fixture.call(false) && !fixture.call(false));
    assert_eq!(fixture.transitions(), [(BreakerState::Open, "failures")]);
}

#[test]
fn half_of_the_calls_may_fail_and_no_more() {
    let fixture = Fixture::new(BreakerOptions::default());
    (0..100).for_each(|n| assert!(fixture.call(n % 5 > 1), "{n}"));
    assert_eq!(fixture.breaker.state(), BreakerState::Closed, "two in five");
    for _ in 0..60 {
        fixture.call(false);
    }
    assert_eq!(fixture.breaker.state(), BreakerState::Open);
}

/// The window slides.
#[test]
fn a_million_successes_do_not_hide_what_fails_now() {
    let fixture = Fixture::new(BreakerOptions::default());
    for n in 0..1_000_000 {
        assert!(fixture.call(true));
        if n % 1000 == 0 {
            fixture.advance(10);
        }
    }
    let mut failing = 0;
    while fixture.breaker.state() == BreakerState::Closed {
        fixture.call(failing % 2 == 0);
        failing += 1;
        fixture.advance(10);
        assert!(failing < 1100, "half of all calls have failed for ten seconds");
    }
}

#[test]
fn slow_calls_open_it_too() {
    let fixture = Fixture::new(BreakerOptions::default());
    let permits: Vec<_> = (0..20).map(|_| fixture.breaker.acquire().unwrap()).collect();
    fixture.advance(500);
    permits.into_iter().for_each(Permit::ok);
    assert_eq!(fixture.transitions(), [(BreakerState::Open, "slow_calls")]);
}

/// A dependency that swallows calls is noticed when they are slow, not when they time out.
#[test]
fn swallowed_calls_are_noticed() {
    let fixture = Fixture::new(BreakerOptions {
        slow_after: Duration::from_millis(250),
        ..BreakerOptions::default()
    });
    assert!(fixture.call(true));
    fixture.advance(20);
    let swallowed: Vec<_> = (0..20).map(|_| fixture.breaker.acquire().unwrap()).collect();
    fixture.advance(250);
    assert!(fixture.breaker.acquire().is_ok(), "the slot they began in has not passed yet");
    fixture.advance(20);
    assert!(fixture.breaker.acquire().is_err());
    assert_eq!(fixture.transitions(), [(BreakerState::Open, "stall")]);
    drop(swallowed);
}

#[test]
fn it_closes_in_growing_steps() {
    let fixture = Fixture::opened(BreakerOptions::default());
    fixture.advance(500);
    for step in PROBE_STEPS {
        let permits: Vec<_> = (0..step).map(|_| fixture.breaker.acquire().unwrap()).collect();
        assert!(permits.iter().all(Permit::is_probe));
        assert!(fixture.breaker.acquire().is_err(), "no more than {step} at a time");
        permits.into_iter().for_each(Permit::ok);
    }
    assert_eq!(
        fixture.transitions(),
        [(BreakerState::HalfOpen, "open_time_over"), (BreakerState::Closed, "probes_succeeded")]
    );
}

#[test]
fn open_times_double_up_to_a_cap_and_restart_after_a_good_time() {
    let fixture = Fixture::opened(BreakerOptions::default());
    let mut last = 0;
    for n in 0..8u32 {
        let refused = fixture.breaker.acquire().unwrap_err();
        let nominal = (500 << n).min(10_000u128);
        let open = refused.retry_after.as_millis();
        assert!((nominal / 2 - 1..=nominal).contains(&open), "{n}: {open} of {nominal}");
        last = open;
        fixture.advance(u64::try_from(open).unwrap() + 1);
        assert!(fixture.call(false), "one probe");
    }
    assert!(last >= 5000);
    fixture.advance(10_000);
    (0..31).for_each(|_| assert!(fixture.call(true)));
    assert_eq!(fixture.breaker.state(), BreakerState::Closed);
    fixture.advance(30_000);
    (0..20).for_each(|_| assert!(fixture.call(false)));
    assert!(fixture.breaker.acquire().unwrap_err().retry_after <= Duration::from_millis(500));
}

/// 40 results that arrive in a later state: they change only the count of late results.
fn come_late(fixture: &Fixture, late: Vec<Permit>) {
    let before = fixture.breaker.snapshot();
    let step = format!("{:?}", fixture.breaker.inner.lock().step);
    for (n, permit) in late.into_iter().enumerate() {
        match n % 3 {
            0 => permit.failed(),
            1 => permit.ok(),
            _ => drop(permit),
        }
    }
    let after = fixture.breaker.snapshot();
    assert_eq!((after.late, after.cancelled), (before.late + 27, before.cancelled + 13));
    assert_eq!(BreakerSnapshot { late: before.late, cancelled: before.cancelled, ..after }, before);
    assert_eq!(format!("{:?}", fixture.breaker.inner.lock().step), step);
    assert!(
        fixture.breaker.inner.lock().unfinished.values().all(|calls| *calls <= 5),
        "nor what is under way"
    );
}

/// Results of an earlier generation change nothing in any state.
#[test]
fn late_results_change_nothing() {
    let fixture = Fixture::new(BreakerOptions::default());
    let begin =
        |fixture: &Fixture| (0..40).map(|_| fixture.breaker.acquire().unwrap()).collect::<Vec<_>>();
    let (for_open, for_half, for_closed, for_forced) =
        (begin(&fixture), begin(&fixture), begin(&fixture), begin(&fixture));
    (0..20).for_each(|_| assert!(fixture.call(false)));
    assert_eq!(fixture.breaker.state(), BreakerState::Open);
    come_late(&fixture, for_open);
    fixture.advance(500);
    let probe = fixture.breaker.acquire().unwrap();
    come_late(&fixture, for_half);
    assert_eq!(fixture.breaker.state(), BreakerState::HalfOpen);
    probe.ok();
    assert_eq!(fixture.breaker.state(), BreakerState::HalfOpen, "one step of five");
    (0..30).for_each(|_| assert!(fixture.call(true)));
    assert_eq!(fixture.breaker.state(), BreakerState::Closed);
    let under_way: Vec<_> = (0..5).map(|_| fixture.breaker.acquire().unwrap()).collect();
    come_late(&fixture, for_closed);
    drop(under_way);
    fixture.breaker.force(Some(false));
    come_late(&fixture, for_forced);
}

#[test]
fn it_does_not_say_open_when_the_open_time_is_over() {
    let fixture = Fixture::opened(BreakerOptions::default());
    let snapshot = fixture.breaker.snapshot();
    assert_eq!((snapshot.state, snapshot.reason), (BreakerState::Open, "failures"));
    fixture.advance(500);
    let snapshot = fixture.breaker.snapshot();
    assert_eq!((snapshot.state, snapshot.reason), (BreakerState::HalfOpen, "open_time_over"));
    assert_eq!(
        fixture.transitions(),
        [(BreakerState::HalfOpen, "open_time_over")],
        "and each transition is reported once"
    );
    fixture.advance(1_000_000);
    assert_eq!(
        fixture.breaker.state(),
        BreakerState::HalfOpen,
        "without calls there is nothing to judge"
    );
    assert!(fixture.breaker.acquire().is_ok_and(|permit| permit.is_probe()));
    assert_eq!(fixture.transitions(), []);
}

/// All admitted probes hang, so no further call can notice it.
#[test]
fn a_snapshot_notices_stalled_calls_without_a_new_call() {
    let fixture = Fixture::new(BreakerOptions {
        slow_after: Duration::from_millis(250),
        ..BreakerOptions::default()
    });
    let _swallowed: Vec<_> = (0..20).map(|_| fixture.breaker.acquire().unwrap()).collect();
    fixture.advance(270);
    assert_eq!(fixture.breaker.state(), BreakerState::Open);
    assert_eq!(fixture.transitions(), [(BreakerState::Open, "stall")]);
}

#[test]
fn a_step_of_cancelled_probes_is_repeated() {
    let fixture = Fixture::opened(BreakerOptions::default());
    fixture.advance(500);
    for step in PROBE_STEPS {
        for _ in 0..3 {
            let probes: Vec<_> = (0..step).map(|_| fixture.breaker.acquire().unwrap()).collect();
            assert!(fixture.breaker.acquire().is_err());
            fixture.advance(1900);
            drop(probes);
            assert_eq!(fixture.breaker.state(), BreakerState::HalfOpen, "neither way");
        }
        (0..step).for_each(|_| assert!(fixture.call(true)));
    }
    assert_eq!(fixture.breaker.state(), BreakerState::Closed);
    assert_eq!(fixture.breaker.snapshot().cancelled, 3 * 31);
}

#[test]
fn of_a_later_step_one_in_five_may_fail() {
    for (bad, state) in [(3, BreakerState::Closed), (4, BreakerState::Open)] {
        let fixture = Fixture::opened(BreakerOptions::default());
        fixture.advance(500);
        (0..15).for_each(|_| assert!(fixture.call(true)));
        (0..16).for_each(|n| assert!(fixture.call(n >= bad), "{n}"));
        assert_eq!(fixture.breaker.state(), state, "{bad} of 16");
    }
}

#[test]
fn held_closed_for_long_it_remembers_nothing_of_its_calls() {
    let fixture = Fixture::new(BreakerOptions::default());
    fixture.breaker.force(Some(false));
    for _ in 0..1000 {
        assert!(fixture.call(true));
        fixture.advance(10);
    }
    assert!(fixture.breaker.inner.lock().unfinished.is_empty());
}

#[test]
fn a_probe_that_hangs_opens_it_again() {
    let fixture = Fixture::opened(BreakerOptions::default());
    fixture.advance(500);
    let hangs = fixture.breaker.acquire().unwrap();
    fixture.advance(2001);
    assert!(fixture.breaker.acquire().is_err());
    assert_eq!(fixture.transitions().last(), Some(&(BreakerState::Open, "probe_takes_too_long")));
    hangs.ok();
    assert_eq!(fixture.breaker.state(), BreakerState::Open);
}

#[test]
fn it_is_held_by_hand_until_an_operator_releases_it() {
    let fixture = Fixture::new(BreakerOptions::default());
    fixture.breaker.force(Some(true));
    assert!(fixture.breaker.acquire().is_err());
    fixture.advance(100_000);
    fixture.breaker.reset("another node");
    assert!(fixture.breaker.acquire().is_err());
    fixture.breaker.force(Some(false));
    (0..100).for_each(|_| assert!(fixture.call(false)));
    fixture.breaker.force(None);
    assert_eq!(fixture.breaker.state(), BreakerState::Closed);
    fixture.breaker.force(None);
    let reasons: Vec<_> = fixture.transitions().into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(reasons, ["by_hand"; 3]);
}

#[test]
fn another_one_behind_it_begins_closed() {
    let fixture = Fixture::opened(BreakerOptions::default());
    fixture.breaker.reset("new_epoch");
    assert!(fixture.call(true));
    assert_eq!(fixture.transitions(), [(BreakerState::Closed, "new_epoch")]);
}

#[derive(Debug, Clone, Copy)]
enum Move {
    Begin,
    Ok(usize),
    Fail(usize),
    Cancel(usize),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        4 => Just(Move::Begin),
        2 => (0usize..40).prop_map(Move::Ok),
        2 => (0usize..40).prop_map(Move::Fail),
        1 => (0usize..40).prop_map(Move::Cancel),
        2 => (1u64..400).prop_map(Move::Pass),
    ];
    proptest::collection::vec(one, 1..200)
}

/// 10^4 schedules, 10^6 with the feature `full`.
fn schedules() -> u32 {
    if cfg!(feature = "full") { 1_000_000 } else { 10_000 }
}

/// A call starts. Half-open, a free probe is issued at once, and no probe is waited for longer than
/// four slow calls take.
fn begin(fixture: &Fixture, held: &mut Vec<Permit>) -> Result<(), TestCaseError> {
    let slow = fixture.breaker.options.slow_after;
    let snapshot = fixture.breaker.snapshot();
    let acquired = fixture.breaker.acquire();
    if snapshot.state == BreakerState::HalfOpen {
        let now = (fixture.breaker.now)();
        let probes = held.iter().filter(|permit| permit.generation == snapshot.generation);
        let oldest = probes.clone().map(|permit| permit.began).min();
        prop_assert!(
            oldest.is_none_or(|began| now - began <= slow * 4),
            "a probe hangs for {:?}",
            now - oldest.unwrap()
        );
        prop_assert!(acquired.is_ok() || probes.count() > 0, "refused without a probe under way");
    }
    held.extend(acquired);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: schedules(), ..ProptestConfig::default() })]
    /// Whichever calls are cancelled, no permit is lost: once calls end and time passes, the
    /// breaker closes.
    #[test]
    fn no_schedule_holds_it_open_forever(steps in steps()) {
        let fixture = Fixture::new(BreakerOptions { min_calls: 5, stalled_calls: 5, ..BreakerOptions::default() });
        let mut held: Vec<Permit> = Vec::new();
        for step in steps {
            match step {
                Move::Begin => begin(&fixture, &mut held)?,
                Move::Ok(n) if !held.is_empty() => held.swap_remove(n % held.len()).ok(),
                Move::Fail(n) if !held.is_empty() => held.swap_remove(n % held.len()).failed(),
                Move::Cancel(n) if !held.is_empty() => drop(held.swap_remove(n % held.len())),
                Move::Pass(ms) => fixture.advance(ms),
                Move::Ok(_) | Move::Fail(_) | Move::Cancel(_) => {}
            }
        }
        // Half-open it never refuses for longer than four slow calls take; open, never for longer
        // than the cap.
        fixture.advance(2001);
        let _ = fixture.breaker.acquire();
        fixture.advance(10_001);
        drop(held);
        let mut calls = 0;
        while fixture.breaker.state() != BreakerState::Closed {
            // Earlier failures may still count in the current step: it may open once more.
            if !fixture.call(true) {
                fixture.advance(10_001);
            }
            calls += 1;
            prop_assert!(calls <= 2 * 31 + 1, "it does not close: {:?}", fixture.breaker);
        }
    }
}
