//! When it opens, how it closes, and that no schedule keeps it open for ever.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

struct World {
    now: Arc<AtomicU64>,
    breaker: Arc<Breaker>,
    told: Arc<Mutex<Vec<(BreakerState, &'static str)>>>,
}

impl World {
    fn new(options: BreakerOptions) -> Self {
        let (now, told) = (Arc::new(AtomicU64::new(100_000)), Arc::new(Mutex::new(Vec::new())));
        let (clock, sink) = (Arc::clone(&now), Arc::clone(&told));
        let breaker = Breaker::new(
            "test",
            options,
            Arc::new(move || Duration::from_millis(clock.load(Ordering::Relaxed))),
            Arc::new(move |t: &Transition| sink.lock().unwrap().push((t.to, t.reason))),
            7,
        );
        Self { now, breaker, told }
    }

    fn pass(&self, ms: u64) {
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

    fn told(&self) -> Vec<(BreakerState, &'static str)> {
        std::mem::take(&mut *self.told.lock().unwrap())
    }

    /// Opens it and lets its open time pass.
    fn opened(options: BreakerOptions) -> Self {
        let world = Self::new(options);
        (0..options.min_calls).for_each(|_| assert!(world.call(false)));
        assert_eq!(world.told(), [(BreakerState::Open, "failures")]);
        world
    }
}

#[test]
fn too_few_calls_decide_nothing() {
    let world = World::new(BreakerOptions::default());
    (0..19).for_each(|_| assert!(world.call(false)));
    assert_eq!(world.breaker.state(), BreakerState::Closed);
    assert!(world.call(false) && !world.call(false));
    assert_eq!(world.told(), [(BreakerState::Open, "failures")]);
}

#[test]
fn half_of_the_calls_may_fail_and_no_more() {
    let world = World::new(BreakerOptions::default());
    (0..100).for_each(|n| assert!(world.call(n % 5 > 1), "{n}"));
    assert_eq!(world.breaker.state(), BreakerState::Closed, "two in five");
    for _ in 0..60 {
        world.call(false);
    }
    assert_eq!(world.breaker.state(), BreakerState::Open);
}

/// DB8: a window that really slides.
#[test]
fn db8_a_million_successes_do_not_hide_what_fails_now() {
    let world = World::new(BreakerOptions::default());
    for n in 0..1_000_000 {
        assert!(world.call(true));
        if n % 1000 == 0 {
            world.pass(10);
        }
    }
    let mut failing = 0;
    while world.breaker.state() == BreakerState::Closed {
        world.call(failing % 2 == 0);
        failing += 1;
        world.pass(10);
        assert!(failing < 1100, "half of all calls have failed for ten seconds");
    }
}

#[test]
fn slow_calls_open_it_too() {
    let world = World::new(BreakerOptions::default());
    let permits: Vec<_> = (0..20).map(|_| world.breaker.acquire().unwrap()).collect();
    world.pass(500);
    permits.into_iter().for_each(Permit::ok);
    assert_eq!(world.told(), [(BreakerState::Open, "slow_calls")]);
}

/// DB4: what swallows calls is noticed when they are slow, not when they time out.
#[test]
fn db4_swallowed_calls_are_noticed() {
    let world = World::new(BreakerOptions {
        slow_after: Duration::from_millis(250),
        ..BreakerOptions::default()
    });
    assert!(world.call(true));
    world.pass(20);
    let swallowed: Vec<_> = (0..20).map(|_| world.breaker.acquire().unwrap()).collect();
    world.pass(250);
    assert!(world.breaker.acquire().is_ok(), "the slot they began in has not passed yet");
    world.pass(20);
    assert!(world.breaker.acquire().is_err());
    assert_eq!(world.told(), [(BreakerState::Open, "stall")]);
    drop(swallowed);
}

#[test]
fn it_closes_in_growing_steps() {
    let world = World::opened(BreakerOptions::default());
    world.pass(500);
    for step in STEPS {
        let permits: Vec<_> = (0..step).map(|_| world.breaker.acquire().unwrap()).collect();
        assert!(permits.iter().all(Permit::is_probe));
        assert!(world.breaker.acquire().is_err(), "no more than {step} at a time");
        permits.into_iter().for_each(Permit::ok);
    }
    assert_eq!(
        world.told(),
        [(BreakerState::HalfOpen, "open_time_over"), (BreakerState::Closed, "probes_succeeded")]
    );
}

#[test]
fn open_times_double_up_to_a_cap_and_begin_anew_after_a_good_time() {
    let world = World::opened(BreakerOptions::default());
    let mut last = 0;
    for n in 0..8u32 {
        let refused = world.breaker.acquire().unwrap_err();
        let nominal = (500 << n).min(10_000u128);
        let open = refused.retry_after.as_millis();
        assert!((nominal / 2 - 1..=nominal).contains(&open), "{n}: {open} of {nominal}");
        last = open;
        world.pass(u64::try_from(open).unwrap() + 1);
        assert!(world.call(false), "one probe");
    }
    assert!(last >= 5000);
    world.pass(10_000);
    (0..31).for_each(|_| assert!(world.call(true)));
    assert_eq!(world.breaker.state(), BreakerState::Closed);
    world.pass(30_000);
    (0..20).for_each(|_| assert!(world.call(false)));
    assert!(world.breaker.acquire().unwrap_err().retry_after <= Duration::from_millis(500));
}

/// Results that come when the breaker is in a later state, 40 of them: they change nothing but the
/// count of late ones.
fn come_late(world: &World, late: Vec<Permit>) {
    let before = world.breaker.look();
    let step = format!("{:?}", world.breaker.lock().step);
    for (n, permit) in late.into_iter().enumerate() {
        match n % 3 {
            0 => permit.failed(),
            1 => permit.ok(),
            _ => drop(permit),
        }
    }
    let after = world.breaker.look();
    assert_eq!((after.late, after.cancelled), (before.late + 27, before.cancelled + 13));
    assert_eq!(BreakerLook { late: before.late, cancelled: before.cancelled, ..after }, before);
    assert_eq!(format!("{:?}", world.breaker.lock().step), step);
    assert!(
        world.breaker.lock().unfinished.values().all(|calls| *calls <= 5),
        "nor what is under way"
    );
}

/// DB6: results of an earlier generation change nothing, whatever state it is in by then.
#[test]
fn db6_late_results_change_nothing() {
    let world = World::new(BreakerOptions::default());
    let begin =
        |world: &World| (0..40).map(|_| world.breaker.acquire().unwrap()).collect::<Vec<_>>();
    let (for_open, for_half, for_closed, for_forced) =
        (begin(&world), begin(&world), begin(&world), begin(&world));
    (0..20).for_each(|_| assert!(world.call(false)));
    assert_eq!(world.breaker.state(), BreakerState::Open);
    come_late(&world, for_open);
    world.pass(500);
    let probe = world.breaker.acquire().unwrap();
    come_late(&world, for_half);
    assert_eq!(world.breaker.state(), BreakerState::HalfOpen);
    probe.ok();
    assert_eq!(world.breaker.state(), BreakerState::HalfOpen, "one step of five");
    (0..30).for_each(|_| assert!(world.call(true)));
    assert_eq!(world.breaker.state(), BreakerState::Closed);
    let under_way: Vec<_> = (0..5).map(|_| world.breaker.acquire().unwrap()).collect();
    come_late(&world, for_closed);
    drop(under_way);
    world.breaker.force(Some(false));
    come_late(&world, for_forced);
}

#[test]
fn it_does_not_say_open_when_the_open_time_is_over() {
    let world = World::opened(BreakerOptions::default());
    let look = world.breaker.look();
    assert_eq!((look.state, look.reason), (BreakerState::Open, "failures"));
    world.pass(500);
    let look = world.breaker.look();
    assert_eq!((look.state, look.reason), (BreakerState::HalfOpen, "open_time_over"));
    assert_eq!(
        world.told(),
        [(BreakerState::HalfOpen, "open_time_over")],
        "and everybody is told, once"
    );
    world.pass(1_000_000);
    assert_eq!(world.breaker.state(), BreakerState::HalfOpen, "nobody called: that says nothing");
    assert!(world.breaker.acquire().is_ok_and(|permit| permit.is_probe()));
    assert_eq!(world.told(), []);
}

/// DB4, where nobody is let through to call: all who may are swallowed already.
#[test]
fn db4_who_looks_sees_swallowed_calls_though_nobody_calls() {
    let world = World::new(BreakerOptions {
        slow_after: Duration::from_millis(250),
        ..BreakerOptions::default()
    });
    let _swallowed: Vec<_> = (0..20).map(|_| world.breaker.acquire().unwrap()).collect();
    world.pass(270);
    assert_eq!(world.breaker.state(), BreakerState::Open);
    assert_eq!(world.told(), [(BreakerState::Open, "stall")]);
}

#[test]
fn a_step_of_cancelled_probes_is_repeated() {
    let world = World::opened(BreakerOptions::default());
    world.pass(500);
    for step in STEPS {
        for _ in 0..3 {
            let probes: Vec<_> = (0..step).map(|_| world.breaker.acquire().unwrap()).collect();
            assert!(world.breaker.acquire().is_err());
            world.pass(1900);
            drop(probes);
            assert_eq!(world.breaker.state(), BreakerState::HalfOpen, "neither way");
        }
        (0..step).for_each(|_| assert!(world.call(true)));
    }
    assert_eq!(world.breaker.state(), BreakerState::Closed);
    assert_eq!(world.breaker.look().cancelled, 3 * 31);
}

#[test]
fn of_a_later_step_one_in_five_may_fail() {
    for (bad, state) in [(3, BreakerState::Closed), (4, BreakerState::Open)] {
        let world = World::opened(BreakerOptions::default());
        world.pass(500);
        (0..15).for_each(|_| assert!(world.call(true)));
        (0..16).for_each(|n| assert!(world.call(n >= bad), "{n}"));
        assert_eq!(world.breaker.state(), state, "{bad} of 16");
    }
}

#[test]
fn held_closed_for_long_it_remembers_nothing_of_its_calls() {
    let world = World::new(BreakerOptions::default());
    world.breaker.force(Some(false));
    for _ in 0..1000 {
        assert!(world.call(true));
        world.pass(10);
    }
    assert!(world.breaker.lock().unfinished.is_empty());
}

#[test]
fn a_probe_that_hangs_opens_it_again() {
    let world = World::opened(BreakerOptions::default());
    world.pass(500);
    let hangs = world.breaker.acquire().unwrap();
    world.pass(2001);
    assert!(world.breaker.acquire().is_err());
    assert_eq!(world.told().last(), Some(&(BreakerState::Open, "probe_takes_too_long")));
    hangs.ok();
    assert_eq!(world.breaker.state(), BreakerState::Open);
}

#[test]
fn it_is_held_by_hand_until_somebody_lets_go() {
    let world = World::new(BreakerOptions::default());
    world.breaker.force(Some(true));
    assert!(world.breaker.acquire().is_err());
    world.pass(100_000);
    world.breaker.begin_anew("another node");
    assert!(world.breaker.acquire().is_err());
    world.breaker.force(Some(false));
    (0..100).for_each(|_| assert!(world.call(false)));
    world.breaker.force(None);
    assert_eq!(world.breaker.state(), BreakerState::Closed);
    world.breaker.force(None);
    let reasons: Vec<_> = world.told().into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(reasons, ["by_hand"; 3]);
}

#[test]
fn another_one_behind_it_begins_closed() {
    let world = World::opened(BreakerOptions::default());
    world.breaker.begin_anew("new_epoch");
    assert!(world.call(true));
    assert_eq!(world.told(), [(BreakerState::Closed, "new_epoch")]);
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

/// 10^4 schedules, 10^6 with `TAGFAST_FULL=1`.
fn schedules() -> u32 {
    if std::env::var_os("TAGFAST_FULL").is_some_and(|v| v == "1") { 1_000_000 } else { 10_000 }
}

/// A call begins. Half open, a place without a probe in it is given at once, and no probe is waited
/// for longer than four slow calls take.
fn begin(world: &World, held: &mut Vec<Permit>) -> Result<(), TestCaseError> {
    let slow = world.breaker.options.slow_after;
    let look = world.breaker.look();
    let acquired = world.breaker.acquire();
    if look.state == BreakerState::HalfOpen {
        let now = (world.breaker.now)();
        let probes = held.iter().filter(|permit| permit.generation == look.generation);
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
    /// DB5: whatever is cancelled, no permit is lost: once calls end and time passes, it closes again.
    #[test]
    fn db5_no_schedule_holds_it_open_for_ever(steps in steps()) {
        let world = World::new(BreakerOptions { min_calls: 5, stalled_calls: 5, ..BreakerOptions::default() });
        let mut held: Vec<Permit> = Vec::new();
        for step in steps {
            match step {
                Move::Begin => begin(&world, &mut held)?,
                Move::Ok(n) if !held.is_empty() => held.swap_remove(n % held.len()).ok(),
                Move::Fail(n) if !held.is_empty() => held.swap_remove(n % held.len()).failed(),
                Move::Cancel(n) if !held.is_empty() => drop(held.swap_remove(n % held.len())),
                Move::Pass(ms) => world.pass(ms),
                Move::Ok(_) | Move::Fail(_) | Move::Cancel(_) => {}
            }
        }
        // Half open it never refuses for longer than four slow calls take; open not for longer than the cap.
        world.pass(2001);
        let _ = world.breaker.acquire();
        world.pass(10_001);
        drop(held);
        let mut calls = 0;
        while world.breaker.state() != BreakerState::Closed {
            // What failed before may still count in the step under way: it may open once more.
            if !world.call(true) {
                world.pass(10_001);
            }
            calls += 1;
            prop_assert!(calls <= 2 * 31 + 1, "it does not close: {:?}", world.breaker);
        }
    }
}
