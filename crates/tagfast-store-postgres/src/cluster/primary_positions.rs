//! Log positions of the primary, each with a time: what proves how old a replica is.
//!
//! A sample says: whatever was acknowledged before this time lies at or below this log position. A
//! server of the current history that shows everything up to the position is therefore at least as
//! new as the time. Nothing is written for it, no clock but this machine's takes part, and an idle
//! primary does not make its replicas look old: the same position is proven for a later time again.
//!
//! How it fails: towards older. Without a primary no sample is taken, and everything ages. A server
//! that is behind every sample, as after the start of this process, is not proven at all.

use std::collections::VecDeque;
use std::time::Duration;

use tagfast_failover::BootTime;

/// Samples at most. Too few: the age of a replica that is far behind is overstated; too many:
/// memory, 24 bytes each.
const SAMPLES_MAX: usize = 512;
/// The shortest time between two samples of a primary that writes.
pub(crate) const SAMPLE_INTERVAL_MIN: Duration = Duration::from_millis(50);

/// A log position that the primary of the epoch had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    /// Before the primary was asked.
    taken: BootTime,
    /// Everything acknowledged before `taken` lies at or below it.
    position: u64,
}

/// The samples of the current epoch, the oldest first: times and positions grow.
#[derive(Debug, Default)]
pub(crate) struct PrimaryPositions(VecDeque<Sample>);

impl PrimaryPositions {
    /// Adds a sample. One that was taken before the newest one adds nothing.
    pub(crate) fn record(&mut self, taken: BootTime, position: u64) {
        if self.0.back().is_some_and(|newest| taken <= newest.taken) {
            return;
        }
        // A later time for the same position, or for a smaller one, proves more.
        while self.0.back().is_some_and(|newest| newest.position >= position) {
            self.0.pop_back();
        }
        self.0.push_back(Sample { taken, position });
        if self.0.len() > SAMPLES_MAX {
            self.thin_out();
        }
    }

    /// Drops the sample that is missed least: where the gap that it leaves is the smallest part of
    /// its age.
    fn thin_out(&mut self) {
        let Some(now) = self.newest() else { return };
        let mut least: Option<(f64, usize)> = None;
        for n in 1..self.0.len().saturating_sub(1) {
            let (before, this, after) = (self.0[n - 1].taken, self.0[n].taken, self.0[n + 1].taken);
            let gap = after.0.saturating_sub(before.0).as_secs_f64();
            let part = gap / now.0.saturating_sub(this.0).as_secs_f64();
            if least.is_none_or(|(smallest, _)| part < smallest) {
                least = Some((part, n));
            }
        }
        if let Some((_, n)) = least {
            self.0.remove(n);
        }
    }

    /// The newest time of which a server that shows everything up to `position` shows everything;
    /// `None`: it is behind every sample.
    pub(crate) fn proven_through(&self, position: u64) -> Option<BootTime> {
        let reached = self.0.partition_point(|sample| sample.position <= position);
        reached.checked_sub(1).and_then(|n| self.0.get(n)).map(|sample| sample.taken)
    }

    /// Forgets everything: a different epoch has begun. A server that has its row shows whatever of
    /// the epochs before is part of the history.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// When the newest position was taken; `None`: there is none.
    pub(crate) fn newest(&self) -> Option<BootTime> {
        self.0.back().map(|sample| sample.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> BootTime {
        BootTime(Duration::from_millis(ms))
    }

    fn positions(samples: &[(u64, u64)]) -> PrimaryPositions {
        let mut positions = PrimaryPositions::default();
        samples.iter().for_each(|(ms, position)| positions.record(at(*ms), *position));
        positions
    }

    #[test]
    fn a_position_proves_the_newest_time_at_or_below_it() {
        let known = positions(&[(100, 10), (200, 20), (300, 30)]);
        let proven = [9, 10, 19, 20, 30, 99].map(|position| known.proven_through(position));
        let through = |ms| Some(at(ms));
        let expected = [None, through(100), through(100), through(200), through(300), through(300)];
        assert_eq!(proven, expected);
    }

    #[test]
    fn an_idle_primary_proves_the_same_position_for_later_times() {
        let known = positions(&[(100, 10), (200, 10), (900, 10)]);
        assert_eq!((known.proven_through(10), known.0.len()), (Some(at(900)), 1));
    }

    #[test]
    fn answers_that_overtake_each_other_prove_nothing_false() {
        // Asked earlier, answered later: its position is larger than that of the later question.
        let mut known = positions(&[(100, 10), (150, 30), (200, 20)]);
        assert_eq!(known.proven_through(20), Some(at(200)));
        assert_eq!(known.proven_through(19), Some(at(100)));
        known.record(at(180), 15);
        assert_eq!(known.proven_through(19), Some(at(100)), "a late answer adds nothing");
    }

    /// Against every sample that was ever taken: the bounded table never claims more, and little
    /// less: a tenth of the age, and one interval.
    #[test]
    fn the_bounded_table_never_claims_more_and_little_less() {
        for seed in 0..4 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut known, mut all) = (PrimaryPositions::default(), Vec::new());
            let (mut now, mut position) = (1_000, 1_000);
            for _ in 0..4_000 {
                now += random.u64(50..500);
                position += if random.u8(..4) == 0 { 0 } else { random.u64(1..5_000) };
                known.record(at(now), position);
                all.push((now, position));
            }
            assert!(known.0.len() <= SAMPLES_MAX);
            for _ in 0..1_000 {
                let asked = random.u64(0..position + 1_000);
                let reached = all.partition_point(|(_, position)| *position <= asked);
                let truth = reached.checked_sub(1).map(|n| all[n].0);
                let claimed = known.proven_through(asked).map(|t| t.0.as_millis() as u64);
                let (Some(truth), Some(claimed)) = (truth, claimed) else {
                    assert_eq!(truth, claimed, "seed {seed}: behind everything");
                    continue;
                };
                assert!(claimed <= truth, "seed {seed}: {claimed} is claimed, {truth} is true");
                let allowed = 1_000 + (now - truth) / 10;
                assert!(truth - claimed <= allowed, "seed {seed}: {truth} - {claimed}");
            }
        }
    }
}
