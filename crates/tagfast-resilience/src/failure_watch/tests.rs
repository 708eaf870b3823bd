//! A pure state machine, against its rules and against a naive model that forgets nothing.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const TICK: Duration = Duration::from_millis(250);

/// Counts, their watch, and a clock.
struct Watched {
    counts: OutcomeCounts,
    watch: FailureWatch,
    now: Duration,
}

impl Watched {
    fn new(causes: usize) -> Self {
        let (counts, now) = (OutcomeCounts::new(causes), Duration::from_secs(100));
        let watch = FailureWatch::new(now, counts.totals());
        Self { counts, watch, now }
    }

    fn tick(&mut self, after: Duration) -> Vec<CauseChange> {
        self.now += after;
        self.watch.observe(self.now, self.counts.totals())
    }

    /// Ticks for so long, `each` time with these outcomes; what began and ended, and when.
    fn run(&mut self, lasts: Duration, mut each: impl FnMut(&OutcomeCounts)) -> Vec<Told> {
        let until = self.now + lasts;
        let mut told = Vec::new();
        while self.now < until {
            each(&self.counts);
            let changes = self.tick(TICK);
            told.extend(changes.into_iter().map(|change| Told::of(change, self.now)));
        }
        told
    }
}

/// A change without its counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Began(usize, Duration),
    Ended(usize, Duration),
}

impl Told {
    fn of(change: CauseChange, at: Duration) -> Self {
        match change {
            CauseChange::Began(ongoing) => Self::Began(ongoing.cause, at),
            CauseChange::Ended(ongoing) => Self::Ended(ongoing.cause, at),
        }
    }
}

const S: fn(u64) -> Duration = Duration::from_secs;

#[test]
fn a_failure_that_its_retry_mends_begins_nothing() {
    let mut calls = Watched::new(2);
    for _ in 0..20 {
        let told = calls.run(S(3), |counts| counts.succeeded(1));
        assert_eq!(told, []);
        // A whole batch fails and succeeds at once when it is sent again.
        calls.counts.failed(0, 500);
        calls.counts.succeeded(500);
        assert_eq!(calls.tick(TICK), []);
    }
    assert_eq!(calls.watch.ongoing().count(), 0);
}

#[test]
fn a_cause_is_told_once_when_it_begins_and_once_when_it_ends() {
    let mut calls = Watched::new(3);
    assert_eq!(calls.run(S(10), |counts| counts.succeeded(100)), []);
    let broken = calls.now;
    let told = calls.run(S(300), |counts| counts.failed(2, 4));
    let [Told::Began(2, began)] = told[..] else { panic!("{told:?}") };
    assert!(began - broken <= S(3), "{:?}", began - broken);
    let (failures, all) = calls.watch.share();
    assert_eq!(failures, all, "every call fails");
    let healed = calls.now;
    let told = calls.run(S(60), |counts| counts.succeeded(100));
    let [Told::Ended(2, ended)] = told[..] else { panic!("{told:?}") };
    assert!(ended - healed <= S(4), "{:?}", ended - healed);
}

/// One call at a time, each of which waits three seconds for a lock, while a few others succeed.
#[test]
fn calls_that_take_long_to_fail_do_not_flap() {
    let mut calls = Watched::new(1);
    calls.run(S(5), |counts| counts.succeeded(1));
    let mut ticks = 0;
    let told = calls.run(S(120), |counts| {
        ticks += 1;
        if ticks % 13 == 0 {
            counts.failed(0, 900);
        }
        counts.succeeded(5);
    });
    assert!(matches!(told[..], [Told::Began(0, _)]), "{told:?}");
}

#[test]
fn silence_changes_nothing() {
    let mut calls = Watched::new(1);
    assert_eq!(calls.run(S(60), |_| ()), [], "no call, no failure");
    assert!(matches!(calls.run(S(2), |counts| counts.failed(0, 1))[..], [Told::Began(0, _)]));
    assert_eq!(calls.run(S(60), |_| ()), [], "nothing proves that it is over");
    assert!(matches!(calls.run(S(5), |counts| counts.succeeded(1))[..], [Told::Ended(0, _)]));
}

#[test]
fn a_cause_that_takes_the_place_of_another_ends_it() {
    let mut calls = Watched::new(2);
    assert!(matches!(calls.run(S(5), |counts| counts.failed(0, 1))[..], [Told::Began(0, _)]));
    let told = calls.run(S(10), |counts| counts.failed(1, 1));
    let causes: BTreeSet<usize> = calls.watch.ongoing().map(|ongoing| ongoing.cause).collect();
    assert!(told.iter().any(|t| matches!(t, Told::Began(1, _))), "{told:?}");
    assert!(told.iter().any(|t| matches!(t, Told::Ended(0, _))), "{told:?}");
    assert_eq!(causes, BTreeSet::from([1]));
}

#[test]
fn a_cause_that_was_not_announced_is_the_last_one() {
    let counts = OutcomeCounts::new(2);
    counts.failed(7, 3);
    assert_eq!(*counts.totals().failed, [0, 3]);
}

/// What happens between two looks: the time that passes, successes, failures by cause.
type Step = (u16, u8, [u8; 3]);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let quiet = prop_oneof![3 => Just(0u8), 2 => 1..4u8, 1 => 50..200u8];
    let step = (0..1500u16, quiet.clone(), [quiet.clone(), quiet.clone(), quiet]);
    // Phases of one kind, as faults are.
    let phase = (step, 1..12usize).prop_map(|(step, n)| vec![step; n]);
    prop::collection::vec(phase, 1..14).prop_map(|phases| phases.concat())
}

/// The naive model: every outcome with its time, nothing forgotten.
#[derive(Default)]
struct Model {
    all: Vec<(Duration, Option<usize>, u64)>,
}

impl Model {
    fn last(&self, of: impl Fn(Option<usize>) -> bool) -> Option<Duration> {
        self.all.iter().rev().find(|(_, cause, n)| *n > 0 && of(*cause)).map(|(at, ..)| *at)
    }

    /// How many outcomes of a kind came later than `since`.
    fn count(&self, since: Duration, of: impl Fn(Option<usize>) -> bool) -> u64 {
        let later = self.all.iter().filter(|(at, cause, _)| *at > since && of(*cause));
        later.map(|(_, _, n)| n).sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Against the model: a cause begins only while most calls of a window fail, and then alone by
    /// its own failures; it ends only after its calm; begins and ends alternate; where every call
    /// fails for long enough something is told, and where every call succeeds nothing is; memory is
    /// bounded.
    #[test]
    fn what_is_told_follows_from_the_outcomes(steps in steps()) {
        let mut calls = Watched::new(3);
        let start = calls.now;
        let mut model = Model::default();
        let mut ongoing: [Option<u64>; 3] = [None; 3];
        let longest = Duration::from_millis(1500);
        for (ms, succeeded, failed) in steps {
            let after = Duration::from_millis(u64::from(ms));
            let now = calls.now + after;
            calls.counts.succeeded(u64::from(succeeded));
            model.all.push((now, None, u64::from(succeeded)));
            for (cause, n) in failed.into_iter().enumerate() {
                calls.counts.failed(cause, u64::from(n));
                model.all.push((now, Some(cause), u64::from(n)));
                if let Some(failures) = &mut ongoing[cause] {
                    *failures += u64::from(n);
                }
            }
            let changes = calls.tick(after);
            // The window reaches back to the last look that is not in it.
            let widest = now.saturating_sub(FAILURE_WINDOW + longest);
            for change in changes {
                match change {
                    CauseChange::Began(it) => {
                        prop_assert!(ongoing[it.cause].is_none(), "it began twice");
                        let own = model.count(widest, |c| c == Some(it.cause));
                        prop_assert!(own > 0, "it begins without a failure");
                        prop_assert!(it.failures <= own);
                        ongoing[it.cause] = Some(it.failures);
                    }
                    CauseChange::Ended(it) => {
                        prop_assert_eq!(ongoing[it.cause].take(), Some(it.failures));
                        let failed_at = model.last(|c| c == Some(it.cause)).expect("a failure");
                        prop_assert!(now - failed_at >= CAUSE_CALM);
                        let other = model.last(|c| c != Some(it.cause));
                        prop_assert!(other.is_some_and(|at| at > failed_at), "nothing came since");
                    }
                }
            }
            let told: Vec<usize> = calls.watch.ongoing().map(|it| it.cause).collect();
            let expected: Vec<usize> = (0..3).filter(|c| ongoing[*c].is_some()).collect();
            prop_assert_eq!(&told, &expected);
            let succeeded_at = model.last(|c| c.is_none()).unwrap_or(start);
            let failed_at = model.last(|c| c.is_some());
            let failing_lately = model.count(now - FAILURE_WINDOW, |c| c.is_some()) > 0;
            if failing_lately && now - succeeded_at > FAILURE_WINDOW + longest {
                prop_assert!(!told.is_empty(), "every call has failed for a whole window");
            }
            if failed_at.is_none_or(|at| now - at >= CAUSE_CALM && succeeded_at > at) {
                prop_assert!(told.is_empty(), "every call has succeeded since: {told:?}");
            }
            prop_assert!(calls.watch.samples.len() <= SAMPLES_MAX as usize + 3);
        }
    }
}
