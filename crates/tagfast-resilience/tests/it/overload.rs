//! The cache is lost at full load and returns empty.

use crate::simulation::{ALL, LOST_AT, NONE, Plan, Protections, RESTORED_AT, Run, run, run_all};

/// Whether the large counts are requested.
fn full() -> bool {
    cfg!(feature = "full")
}

fn plan(protections: Protections, seed: u64, seconds: f64, scale: usize) -> Plan {
    Plan { protections, seed, seconds, scale }
}

/// The scale of the runs: half, or full with the feature `full`.
fn scale() -> usize {
    if full() { 1 } else { 2 }
}

/// The figures of a run, for messages.
fn describe(run: &Run) -> String {
    let seconds = (LOST_AT as usize - 1..run.seconds()).map(|at| at as f64);
    let protections = seconds
        .map(|at| format!("{at}:{:.3}/{:.2}", run.goodput(at, at + 1.0), run.load(at, at + 1.0)));
    protections.collect::<Vec<_>>().join(" ")
}

/// The service stays up and recovers: 10 seeds, or full scale and 50 seeds with the feature `full`.
#[test]
fn as_shipped_it_is_back_within_ten_seconds_and_the_database_never_has_too_much() {
    let seeds = if full() { 50 } else { 10 };
    let plans: Vec<_> = (1..=seeds).map(|seed| plan(ALL, seed, 28.0, scale())).collect();
    for (seed, run) in (1..).zip(run_all(&plans)) {
        assert!(run.goodput(1.0, LOST_AT) > 0.999, "seed {seed}: {}", describe(&run));
        assert!(
            run.recovery().is_some_and(|seconds| seconds <= 10.0),
            "seed {seed}: {}",
            describe(&run)
        );
        assert!(
            run.peak() <= 1.2,
            "seed {seed}: {} of the capacity: {}",
            run.peak(),
            describe(&run)
        );
        assert!(
            run.goodput(LOST_AT, RESTORED_AT) > 0.6,
            "seed {seed}: what can be answered is: {}",
            describe(&run)
        );
    }
}

/// With timeouts and retries alone, and also with batches and a retry budget, the service is down
/// until the clients stop.
#[test]
fn without_limiter_breaker_and_single_flight_it_never_recovers() {
    let scale = if full() { 1 } else { 16 };
    let batches = Protections { batching: true, budget: true, ..NONE };
    let plans = [plan(NONE, 1, 61.0, scale), plan(batches, 1, 61.0, scale)];
    for (run, load) in run_all(&plans).into_iter().zip([20.0, 2.0]) {
        assert!(run.goodput(1.0, LOST_AT) > 0.99, "{}", describe(&run));
        assert_eq!(run.recovery(), None, "{}", describe(&run));
        assert!(run.goodput(RESTORED_AT + 10.0, RESTORED_AT + 45.0) < 0.02, "{}", describe(&run));
        assert!(run.peak() > load, "{}: {}", run.peak(), describe(&run));
    }
}

/// Each mechanism is necessary: with all others enabled, a bound is broken without it.
#[test]
fn each_part_does_its_share() {
    let without = [
        Protections { limiter: false, ..ALL },
        Protections { batching: false, ..ALL },
        Protections { single_flight: false, ..ALL },
        Protections { limiter: false, single_flight: false, ..ALL },
        ALL,
    ];
    let plans = without.map(|protections| plan(protections, 1, 28.0, scale()));
    let runs = run_all(&plans);
    let [limiter, batching, single_flight, both, all] = &runs[..] else { panic!("five runs") };
    assert!(
        limiter.peak() > 1.5,
        "the limiter bounds what the database gets: {}",
        describe(limiter)
    );
    assert!(
        limiter.goodput(LOST_AT, RESTORED_AT) < all.goodput(LOST_AT, RESTORED_AT),
        "and so keeps it answering: {}",
        describe(limiter)
    );
    assert!(
        batching.recovery().is_none_or(|at| at > 10.0),
        "batches fill the cache in time: {}",
        describe(batching)
    );
    assert!(
        single_flight.goodput(LOST_AT, RESTORED_AT) < all.goodput(LOST_AT, RESTORED_AT),
        "one load answers many: {}",
        describe(single_flight)
    );
    assert!(
        both.peak() > limiter.peak(),
        "single-flight bounds it a little, too: {}",
        describe(both)
    );
}

#[test]
fn a_seed_gives_the_same_run_and_another_one_another() {
    let [first, again, other] = [1, 1, 2].map(|seed| run(plan(ALL, seed, 18.0, 16)));
    assert!(first == again, "{}\n{}", describe(&first), describe(&again));
    assert!(first != other);
}
