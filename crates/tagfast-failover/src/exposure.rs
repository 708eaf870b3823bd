//! The acknowledged work that no replica has: the age of its oldest acknowledgement.
//!
//! It is kept apart from the journal's groups, because a group that the journal had to forget is no
//! less exposed. An acknowledgement that came later, of a position that is not later, can never be
//! the oldest one, so what is kept is ascending in both, and every step costs the same however much
//! is exposed.
//!
//! How it fails: pessimistically. Acknowledgements within [`RESOLUTION`], and those beyond
//! [`EXPOSED_MAX`], become one, which counts as old as the oldest of them until the last position
//! is covered.

use std::collections::VecDeque;
use std::time::Duration;

use crate::leadership::BootTime;

/// Acknowledgements that are closer in time are not told apart.
const RESOLUTION: Duration = Duration::from_millis(1);
/// How many acknowledgements are told apart: more than the largest loss that can be configured has.
const EXPOSED_MAX: usize = 1 << 16;

#[derive(Debug, Default)]
pub(crate) struct Exposure {
    /// Positions with the time of their acknowledgement; both ascend.
    acknowledged: VecDeque<(u64, BootTime)>,
}

impl Exposure {
    /// Adds an acknowledgement of what is flushed up to a position.
    pub(crate) fn add(&mut self, flushed: u64, at: BootTime) {
        let place = self.acknowledged.partition_point(|(position, _)| *position < flushed);
        if self.acknowledged.get(place).is_some_and(|(_, older)| *older <= at) {
            return;
        }
        if self.acknowledged.get(place).is_some_and(|(position, _)| *position == flushed) {
            self.acknowledged.remove(place);
        }
        let younger = self.acknowledged.partition_point(|(_, older)| *older < at);
        if younger < place {
            self.acknowledged.drain(younger..place);
        }
        let place = younger.min(place);
        let is_full = self.acknowledged.len() >= EXPOSED_MAX;
        match self.acknowledged.back_mut() {
            Some((position, older))
                if *position < flushed && (is_full || at.0 < older.0 + RESOLUTION) =>
            {
                *position = flushed;
            }
            _ => self.acknowledged.insert(place, (flushed, at)),
        }
    }

    /// Forgets what a replica has.
    pub(crate) fn cover(&mut self, by_one: u64) {
        while self.acknowledged.front().is_some_and(|(position, _)| *position <= by_one) {
            self.acknowledged.pop_front();
        }
    }

    pub(crate) fn oldest(&self) -> Option<BootTime> {
        self.acknowledged.front().map(|(_, at)| *at)
    }

    pub(crate) fn clear(&mut self) {
        self.acknowledged.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn at(ms: u64) -> BootTime {
        BootTime(Duration::from_millis(ms))
    }

    proptest! {
        /// The reference keeps everything.
        #[test]
        fn the_oldest_is_that_of_a_plain_list(
            steps in proptest::collection::vec((0u64..60, 0u64..60, any::<bool>()), 0..200)
        ) {
            let mut exposure = Exposure::default();
            let mut list: Vec<(u64, BootTime)> = Vec::new();
            for (position, time, is_cover) in steps {
                if is_cover {
                    exposure.cover(position);
                    list.retain(|(flushed, _)| *flushed > position);
                } else {
                    exposure.add(position, at(time));
                    list.push((position, at(time)));
                }
                prop_assert_eq!(exposure.oldest(), list.iter().map(|(_, at)| *at).min());
            }
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_never_younger_than_it_is() {
        let mut exposure = Exposure::default();
        let count = 2 * EXPOSED_MAX as u64;
        for n in 0..count {
            exposure.add(n, at(n));
        }
        assert_eq!(exposure.acknowledged.len(), EXPOSED_MAX);
        for covered in (0..count - 1).step_by(97) {
            exposure.cover(covered);
            assert!(exposure.oldest().is_some_and(|oldest| oldest <= at(covered + 1)));
        }
        exposure.cover(count);
        assert_eq!(exposure.oldest(), None);
    }

    #[test]
    fn acknowledgements_at_the_same_time_take_one_place() {
        let mut exposure = Exposure::default();
        for n in 0..5000 {
            exposure.add(n, BootTime(Duration::from_micros(n)));
        }
        assert_eq!(exposure.acknowledged.len(), 5);
        exposure.cover(1500);
        assert_eq!(exposure.oldest(), Some(at(1)), "not younger than the one at 1501 us");
    }
}
