//! When a dead letter is replayed automatically.

use tagfast_domain::UnixMillis;

use crate::bus::FailureClass;

/// The cool-down before each automatic replay, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoReplayPolicy {
    /// Cool-down before the first replay, in milliseconds.
    pub first_ms: i64,
    /// Factor from one cool-down to the next.
    pub factor: i64,
    /// Number of automatic replays.
    pub times: u32,
}

impl Default for AutoReplayPolicy {
    fn default() -> Self {
        Self { first_ms: 300_000, factor: 5, times: 3 }
    }
}

impl AutoReplayPolicy {
    /// When a dead letter that failed at `at` after `replays` replays is due, Unix ms; `None` if it
    /// is never replayed automatically.
    pub fn next_replay_at(
        &self,
        class: FailureClass,
        replays: u32,
        at: UnixMillis,
    ) -> Option<UnixMillis> {
        let wait_ms = self.cool_down_ms(replays);
        (!self.needs_attention(class, replays)).then(|| at.saturating_add(wait_ms))
    }

    /// Whether a dead letter is not replayed automatically (any more), so that an operator must
    /// look at it. Waiting changes nothing about poison.
    pub fn needs_attention(&self, class: FailureClass, replays: u32) -> bool {
        class == FailureClass::Poison || replays >= self.times
    }

    /// The latest failures that are due at `now`: for each number of replays the time (Unix ms) at
    /// or before which the last failure must lie.
    pub fn due_at(&self, now: UnixMillis) -> Vec<(u32, UnixMillis)> {
        (0..self.times)
            .map(|replays| (replays, now.saturating_sub(self.cool_down_ms(replays))))
            .collect()
    }

    fn cool_down_ms(&self, replays: u32) -> i64 {
        self.first_ms.saturating_mul(self.factor.saturating_pow(replays))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poison_is_never_replayed_automatically_and_the_rest_a_few_times() {
        let policy = AutoReplayPolicy::default();
        assert_eq!(policy.next_replay_at(FailureClass::Poison, 0, 1), None);
        let due: Vec<_> =
            (0..4).map(|n| policy.next_replay_at(FailureClass::Exhausted, n, 0)).collect();
        assert_eq!(due, [Some(300_000), Some(1_500_000), Some(7_500_000), None]);
    }

    #[test]
    fn a_dead_letter_is_due_when_its_next_replay_has_come() {
        let policy = AutoReplayPolicy { first_ms: 100, factor: 3, times: 2 };
        for (replays, failed_by) in policy.due_at(10_000) {
            let next = |at| policy.next_replay_at(FailureClass::Exhausted, replays, at);
            assert_eq!(next(failed_by), Some(10_000));
            assert_eq!(next(failed_by + 1), Some(10_001));
        }
        assert_eq!(policy.due_at(0).len(), 2);
    }
}
