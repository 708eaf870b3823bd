//! The rule by which every answer is judged, whatever source it comes from.
//!
//! Writes of one kind are numbered in the order in which they were acknowledged. An answer shows
//! the first `seen` of them. An answer that is not marked may lack no write that was acknowledged
//! before the time that the answer itself claims (`as_of`), and none that was acknowledged longer
//! ago than the bound of its source.

use std::time::{SystemTime, UNIX_EPOCH};

/// Stands for the time of a write that a source owes to no reader: its answer said so.
pub(crate) const NOT_OWED: u64 = u64::MAX;

/// The time, Unix ms.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

/// An answer of a source.
#[derive(Debug, Clone)]
pub(crate) struct Observation {
    /// When it was asked for, Unix ms.
    pub(crate) asked: u64,
    /// Up to when it claims to show everything, Unix ms; `None` when it claims nothing.
    pub(crate) as_of: Option<u64>,
    /// Whether it says that it is stale, or what it lacks.
    pub(crate) marked: bool,
    /// How many writes it shows.
    pub(crate) seen: usize,
}

/// Why an answer is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// It lacks a write that was acknowledged this long before its own `as_of`, in milliseconds.
    Claim(u64),
    /// It lacks a write that was acknowledged this long before it was asked for, in milliseconds:
    /// longer than the bound.
    Bound(u64),
}

/// When the first write that an answer lacks was acknowledged, Unix ms; `None` when it lacks none.
/// `acknowledged` has the time of each write, in order.
pub(crate) fn lacks_since(observation: &Observation, acknowledged: &[u64]) -> Option<u64> {
    let lacking = acknowledged.get(observation.seen..).unwrap_or_default();
    lacking.iter().copied().find(|time| *time != NOT_OWED)
}

/// Judges an answer of a source with this bound, in milliseconds.
pub(crate) fn judge(
    observation: &Observation,
    acknowledged: &[u64],
    bound_ms: u64,
) -> Result<(), Lie> {
    let Some(since) = lacks_since(observation, acknowledged).filter(|_| !observation.marked) else {
        return Ok(());
    };
    if let Some(as_of) = observation.as_of.filter(|as_of| since < *as_of) {
        return Err(Lie::Claim(as_of - since));
    }
    let age = observation.asked.saturating_sub(since);
    if age > bound_ms { Err(Lie::Bound(age)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND_MS: u64 = 1_000;

    fn answer(asked: u64, as_of: u64, seen: usize) -> Observation {
        Observation { asked, as_of: Some(as_of), marked: false, seen }
    }

    #[test]
    fn a_claim_is_held_against_what_was_acknowledged_before_it() {
        let acknowledged = [100, 200, 300];
        assert_eq!(judge(&answer(400, 400, 3), &acknowledged, BOUND_MS), Ok(()));
        assert_eq!(judge(&answer(400, 300, 2), &acknowledged, BOUND_MS), Ok(()));
        assert_eq!(judge(&answer(400, 301, 2), &acknowledged, BOUND_MS), Err(Lie::Claim(1)));
        assert_eq!(judge(&answer(400, 350, 0), &acknowledged, BOUND_MS), Err(Lie::Claim(250)));
    }

    #[test]
    fn an_answer_without_a_claim_has_the_bound_of_its_source() {
        let old = |asked| Observation { as_of: None, ..answer(asked, 0, 0) };
        assert_eq!(judge(&old(1_100), &[100], BOUND_MS), Ok(()));
        assert_eq!(judge(&old(1_101), &[100], BOUND_MS), Err(Lie::Bound(1_001)));
        // An old claim does not excuse an unmarked answer.
        assert_eq!(judge(&answer(1_101, 50, 0), &[100], BOUND_MS), Err(Lie::Bound(1_001)));
    }

    #[test]
    fn a_marked_answer_may_be_old_and_a_write_that_is_not_owed_may_be_missing() {
        let marked = Observation { marked: true, ..answer(9_000, 9_000, 0) };
        assert_eq!(judge(&marked, &[100], BOUND_MS), Ok(()));
        assert_eq!(judge(&answer(9_000, 9_000, 0), &[NOT_OWED], BOUND_MS), Ok(()));
        assert_eq!(
            judge(&answer(9_000, 9_000, 0), &[NOT_OWED, 100], 0),
            Err(Lie::Claim(8_900)),
            "a later write is owed"
        );
    }

    /// Generated histories: a source that follows the writes with a delay and says so is never
    /// blamed, and one that stands still while it says that it follows always is.
    #[test]
    fn only_sources_that_lie_are_blamed() {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..2_000 {
            let mut time = 1_000;
            let acknowledged: Vec<u64> = (0..random.usize(1..50))
                .map(|_| {
                    time += random.u64(1..200);
                    time
                })
                .collect();
            let asked = time + random.u64(0..5_000);
            let through = asked - random.u64(0..asked.min(BOUND_MS));
            let shown = acknowledged.iter().filter(|at| **at < through).count();
            assert_eq!(
                judge(&answer(asked, through, shown), &acknowledged, BOUND_MS),
                Ok(()),
                "seed {seed}: it shows everything before {through}"
            );
            let stands = random.usize(0..acknowledged.len());
            assert!(
                judge(&answer(time + 1, time + 1, stands), &acknowledged, BOUND_MS).is_err(),
                "seed {seed}: it lacks write {stands} and claims to have all"
            );
        }
    }
}
