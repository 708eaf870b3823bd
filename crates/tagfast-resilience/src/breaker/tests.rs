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
    let world = World::new(BreakerOptions { slow_after: Duration::from_millis(250), ..BreakerOptions::default() });
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
    assert_eq!(world.told(), [(BreakerState::HalfOpen, "open_time_over"), (BreakerState::Closed, "probes_succeeded")]);
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

/// DB6: results of an earlier generation change nothing.
#[test]
fn db6_late_results_change_nothing() {
    let world = World::new(BreakerOptions::default());
    let late: Vec<_> = (0..40).map(|_| world.breaker.acquire().unwrap()).collect();
    (0..20).for_each(|_| assert!(world.call(false)));
    world.pass(500);
    let probe = world.breaker.acquire().unwrap();
    for (n, permit) in late.into_iter().enumerate() {
        if n % 2 == 0 { permit.failed() } else { permit.ok() }
    }
    assert_eq!(world.breaker.state(), BreakerState::HalfOpen);
    probe.ok();
    assert_eq!(world.breaker.state(), BreakerState::HalfOpen, "one step of five");
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
    proptest::collection::vec(one, 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    /// DB5: whatever is cancelled, no permit is lost: once calls end and time passes, it closes again.
    #[test]
    fn db5_no_schedule_holds_it_open_for_ever(steps in steps()) {
        let world = World::new(BreakerOptions { min_calls: 5, stalled_calls: 5, ..BreakerOptions::default() });
        let mut held: Vec<Permit> = Vec::new();
        for step in steps {
            match step {
                Move::Begin => held.extend(world.breaker.acquire()),
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
