//! A time by which an answer is worth something, handed down from the caller to whatever it waits
//! for.
//!
//! Timeouts add up: three calls of a second each are three seconds. A deadline does not: each part
//! of the work gets what is left, and may only make it shorter. It is an instant of tokio's time,
//! so tests with paused time do not wait.
//!
//! How it fails: what runs under it is dropped when it has passed; work that another machine has
//! begun goes on there.

use std::time::Duration;

use tokio::time::Instant;

/// Longer than anybody waits: stands for times that cannot be told as an instant.
const FAR: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// The deadline passed before there was an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed before there was an answer")]
pub struct Late;

/// When an answer is worth nothing any more. Ordered: what is less is earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(Instant);

impl Deadline {
    /// So long from now; at most a year.
    pub fn after(duration: Duration) -> Self {
        Self(Instant::now() + duration.min(FAR))
    }

    /// At that instant.
    pub fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// One for a part of the work: so long from now, but never later than this one.
    pub fn child(self, duration: Duration) -> Self {
        self.min(Self::after(duration))
    }

    /// The instant.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// What is left; zero when it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether it has passed.
    pub fn is_over(self) -> bool {
        self.remaining().is_zero()
    }

    /// The answer of `work`, or [`Late`] when the deadline passes first; then `work` is dropped.
    /// Past the deadline nothing is begun.
    pub async fn run<F: Future>(self, work: F) -> Result<F::Output, Late> {
        if self.is_over() {
            return Err(Late);
        }
        tokio::time::timeout_at(self.0, work).await.map_err(|_| Late)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use proptest::prelude::*;
    use tokio::time::{advance, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ends_what_takes_too_long_at_its_time() {
        let began = Instant::now();
        let deadline = Deadline::after(Duration::from_millis(100));
        assert_eq!(deadline.run(async { 7 }).await, Ok(7));
        assert_eq!(deadline.run(sleep(Duration::from_millis(40))).await, Ok(()));
        assert_eq!(deadline.remaining(), Duration::from_millis(60));
        assert_eq!(deadline.run(pending::<()>()).await, Err(Late));
        // tokio's timers are exact to a millisecond.
        assert!(began.elapsed() <= Duration::from_millis(101), "{:?}", began.elapsed());
        assert!(deadline.is_over() && deadline.remaining().is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn past_it_nothing_is_begun() {
        let deadline = Deadline::at(Instant::now());
        let mut begun = false;
        assert_eq!(deadline.run(async { begun = true }).await, Err(Late));
        assert!(!begun);
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_time_is_no_overflow() {
        let deadline = Deadline::after(Duration::MAX);
        assert!(deadline.remaining() > Duration::from_secs(1_000_000));
        assert_eq!(deadline.child(Duration::MAX), deadline);
    }

    proptest! {
        #[test]
        fn a_child_is_never_later_than_its_parent(parts in proptest::collection::vec((0u64..5000, 0u64..1000), 1..20)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let mut parent = Deadline::after(Duration::from_millis(2000));
                for (part, passes) in parts {
                    let child = parent.child(Duration::from_millis(part));
                    assert!(child <= parent && child.remaining() <= Duration::from_millis(part));
                    advance(Duration::from_millis(passes)).await;
                    parent = child;
                }
            });
        }
    }
}
