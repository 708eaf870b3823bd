//! The deadline of a simulated client's call, passed down to its parts.
//!
//! Timeouts add up: three calls of 1 s each take 3 s. A deadline does not: each part of the work
//! gets the remaining time and may only shorten it. It is an instant of tokio's time, so tests with
//! paused time do not wait.
//!
//! How it fails: work under a passed deadline is dropped; work started on another machine continues
//! there.

use std::time::Duration;

use tokio::time::Instant;

/// Stands for durations that an instant cannot express.
const FAR_FUTURE: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// The deadline passed before the work was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed before the work was done")]
pub(crate) struct DeadlineExceeded;

/// When a result becomes useless. Ordered: smaller is earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    /// `duration` from now; at most a year.
    pub(crate) fn after(duration: Duration) -> Self {
        Self(Instant::now() + duration.min(FAR_FUTURE))
    }

    /// At that instant.
    pub(crate) fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// The deadline of a part of the work: `duration` from now, but never later than this one.
    pub(crate) fn child(self, duration: Duration) -> Self {
        self.min(Self::after(duration))
    }

    /// The remaining time; zero when it has passed.
    pub(crate) fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether it has passed.
    pub(crate) fn is_over(self) -> bool {
        self.remaining().is_zero()
    }

    /// The result of `work`, or [`DeadlineExceeded`] when the deadline passes first; then `work` is
    /// dropped. Past the deadline no work is started.
    pub(crate) async fn run<F: Future>(self, work: F) -> Result<F::Output, DeadlineExceeded> {
        if self.is_over() {
            return Err(DeadlineExceeded);
        }
        tokio::time::timeout_at(self.0, work).await.map_err(|_| DeadlineExceeded)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use proptest::prelude::*;
    use tokio::time::{advance, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ends_overdue_work_in_time() {
        let began = Instant::now();
        let deadline = Deadline::after(Duration::from_millis(100));
        assert_eq!(deadline.run(async { 7 }).await, Ok(7));
        assert_eq!(deadline.run(sleep(Duration::from_millis(40))).await, Ok(()));
        assert_eq!(deadline.remaining(), Duration::from_millis(60));
        assert_eq!(deadline.run(pending::<()>()).await, Err(DeadlineExceeded));
        // tokio's timers are exact to a millisecond.
        assert!(began.elapsed() <= Duration::from_millis(101), "{:?}", began.elapsed());
        assert!(deadline.is_over() && deadline.remaining().is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn past_it_no_work_is_started() {
        let deadline = Deadline::at(Instant::now());
        let mut begun = false;
        assert_eq!(deadline.run(async { begun = true }).await, Err(DeadlineExceeded));
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
