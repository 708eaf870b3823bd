//! Whether the leaderboards are written, and whether every owner of a partition pushes its counts.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tagfast_domain::UnixMillis;
use tagfast_events::Partition;
use tagfast_resilience::ErrorChain;

use super::error::LeaderboardError;

/// Rounds begin once a second: after this time without one that succeeded, something hangs.
const STUCK_AFTER: Duration = Duration::from_secs(4);
/// Age in ms above which counts that were pushed, and the leaderboards made of them, are named.
pub(super) const NAMED_AGE_MS: i64 = 5000;

#[derive(Debug)]
struct State {
    published_at: Instant,
    /// The error of the last round; `None` if it succeeded.
    error: Option<String>,
    /// What is said of the partition with the oldest counts; `None` if it is young.
    oldest: Option<String>,
}

/// What a publisher tells about itself.
#[derive(Debug)]
pub(super) struct PublisherHealth(Mutex<State>);

impl PublisherHealth {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { published_at: Instant::now(), error: None, oldest: None }))
    }

    /// A round succeeded.
    pub(super) fn published(&self) {
        let mut state = self.0.lock();
        (state.published_at, state.error) = (Instant::now(), None);
    }

    /// A round failed.
    pub(super) fn failed(&self, error: &LeaderboardError) {
        self.0.lock().error = Some(ErrorChain(error).to_string());
    }

    /// Notes the partition whose counts were pushed through the oldest time (Unix ms; `None`:
    /// never); `None` if this process merges nothing.
    pub(super) fn note_oldest(
        &self,
        oldest: Option<(Partition, Option<UnixMillis>)>,
        now: UnixMillis,
    ) {
        let text = oldest.and_then(|(Partition(number), through)| match through {
            None => Some(format!("the counts of partition {number} were never pushed")),
            Some(at) if now - at > NAMED_AGE_MS => Some(format!(
                "the counts of partition {number} were pushed as of {} s ago: look at the process \
                 that owns it, or at its feed",
                (now - at) / 1000
            )),
            Some(_) => None,
        });
        self.0.lock().oldest = text;
    }

    /// What is wrong; `None` if nothing is.
    pub(super) fn problem(&self) -> Option<String> {
        let state = self.0.lock();
        if let Some(error) = &state.error {
            return Some(format!("the leaderboards are not written: {error}"));
        }
        let quiet = state.published_at.elapsed();
        if quiet > STUCK_AFTER {
            return Some(format!("the leaderboards were not written for {} s", quiet.as_secs()));
        }
        state.oldest.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_that_is_not_pushed_is_named() {
        let health = PublisherHealth::new();
        health.published();
        health.note_oldest(Some((Partition(3), Some(10_000))), 10_500);
        assert_eq!(health.problem(), None);
        health.note_oldest(Some((Partition(3), Some(10_000))), 30_000);
        let text = health.problem().unwrap();
        assert!(text.contains("partition 3") && text.contains("20 s ago"), "{text}");
        health.note_oldest(Some((Partition(5), None)), 30_000);
        assert!(health.problem().unwrap().contains("partition 5"));
        health.failed(&LeaderboardError::Replica);
        assert!(health.problem().unwrap().contains("replica"));
        health.published();
        health.note_oldest(Some((Partition(3), Some(29_000))), 30_000);
        assert_eq!(health.problem(), None);
    }
}
