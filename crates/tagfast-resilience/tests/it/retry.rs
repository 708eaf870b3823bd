//! Retries of the simulated clients: backoff, within a retry budget and a deadline.
//!
//! Only errors that the caller calls retryable are retried, and never past the deadline.
//!
//! How it fails: with an empty budget the first error is the result.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_resilience::Backoff;

use crate::deadline::Deadline;
use crate::retry_budget::RetryBudget;

/// Why a call was not retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotRetried {
    /// The error is not retryable.
    NotRetryable,
    /// The policy has no retry left.
    Exhausted,
    /// The budget has no retry left.
    Budget,
    /// The next attempt would begin past the deadline.
    Deadline,
}

impl NotRetried {
    /// The value in messages.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NotRetryable => "not_retryable",
            Self::Exhausted => "exhausted",
            Self::Budget => "budget",
            Self::Deadline => "deadline",
        }
    }
}

/// A call failed in spite of retries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RetryError<E> {
    /// The last attempt failed.
    #[error("attempt {attempts} failed and was not retried ({}): {error}", why.as_str())]
    Failed {
        /// The last error.
        error: E,
        /// Attempts made.
        attempts: u32,
        /// Why there was no further attempt.
        why: NotRetried,
    },
    /// The deadline passed during an attempt.
    #[error("the deadline passed in attempt {attempts}")]
    DeadlineExceeded {
        /// Attempts started; 0: the deadline had passed before.
        attempts: u32,
    },
}

/// Retries calls to one dependency.
#[derive(Debug)]
pub(crate) struct Retry {
    backoff: Backoff,
    budget: Arc<RetryBudget>,
    rng: Mutex<fastrand::Rng>,
}

impl Retry {
    /// Retries as `backoff` says while `budget` allows. `seed` seeds the jitter.
    pub(crate) fn new(backoff: Backoff, budget: Arc<RetryBudget>, seed: u64) -> Self {
        Self { backoff, budget, rng: Mutex::new(fastrand::Rng::with_seed(seed)) }
    }

    /// Makes `call` (with its attempt number, from 0) until it succeeds or may not be retried. No
    /// attempt continues past the deadline, and no attempt that would start past it is waited for.
    pub(crate) async fn run<T, E, F: Future<Output = Result<T, E>>>(
        &self,
        deadline: Deadline,
        retryable: impl Fn(&E) -> bool,
        mut call: impl FnMut(u32) -> F,
    ) -> Result<T, RetryError<E>> {
        let mut attempt = 0;
        loop {
            if deadline.is_over() {
                return Err(RetryError::DeadlineExceeded { attempts: attempt });
            }
            let answer = deadline.run(call(attempt)).await;
            let attempts = attempt + 1;
            let error = match answer {
                Ok(Ok(value)) => {
                    self.budget.succeeded();
                    return Ok(value);
                }
                Ok(Err(error)) => error,
                Err(_) => return Err(RetryError::DeadlineExceeded { attempts }),
            };
            match self.delay(attempt, deadline, retryable(&error)) {
                Ok(delay) => tokio::time::sleep(delay).await,
                Err(why) => return Err(RetryError::Failed { error, attempts, why }),
            }
            attempt += 1;
        }
    }

    /// The delay before the attempt after `attempt`, withdrawn from the budget.
    fn delay(
        &self,
        attempt: u32,
        deadline: Deadline,
        retryable: bool,
    ) -> Result<Duration, NotRetried> {
        if !retryable {
            return Err(NotRetried::NotRetryable);
        }
        let random = self.rng.lock().f64();
        let delay = self.backoff.delay(attempt, random).ok_or(NotRetried::Exhausted)?;
        if delay >= deadline.remaining() {
            return Err(NotRetried::Deadline);
        }
        // Last: an attempt that is not made is not withdrawn.
        if self.budget.try_withdraw() { Ok(delay) } else { Err(NotRetried::Budget) }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::retry_budget::BudgetOptions;

    const BACKOFF: Backoff = Backoff {
        retries: 3,
        base: Duration::from_millis(100),
        factor: 2,
        cap: Duration::from_secs(1),
    };

    fn deposited(retries: u32) -> Arc<RetryBudget> {
        let budget = RetryBudget::new(BudgetOptions::default());
        (0..retries * 10).for_each(|_| budget.succeeded());
        budget
    }

    async fn run(
        retry: &Retry,
        deadline: Deadline,
        answers: &[Result<u32, &'static str>],
    ) -> Result<u32, RetryError<&'static str>> {
        retry
            .run(deadline, |error| *error == "broken", async |attempt| answers[attempt as usize])
            .await
    }

    #[tokio::test(start_paused = true)]
    async fn retryable_calls_are_retried_with_growing_delays() {
        let retry = Retry::new(BACKOFF, deposited(5), 7);
        let (began, deadline) = (Instant::now(), Deadline::after(Duration::from_secs(10)));
        assert_eq!(run(&retry, deadline, &[Err("broken"), Err("broken"), Ok(7)]).await, Ok(7));
        let waited = began.elapsed();
        assert!(
            (Duration::from_millis(150)..Duration::from_millis(460)).contains(&waited),
            "{waited:?}"
        );
        assert_eq!(retry.budget.left(), 3);
        let failed = |error, attempts, why| Err(RetryError::Failed { error, attempts, why });
        assert_eq!(
            run(&retry, deadline, &[Err("wrong")]).await,
            failed("wrong", 1, NotRetried::NotRetryable)
        );
        assert_eq!(retry.budget.left(), 3);
        assert_eq!(
            run(&retry, deadline, &[Err("broken"); 9]).await,
            failed("broken", 4, NotRetried::Exhausted)
        );
        assert_eq!(
            run(&retry, deadline, &[Err("broken"); 9]).await,
            failed("broken", 1, NotRetried::Budget)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_attempt_continues_past_the_deadline() {
        let retry = Retry::new(BACKOFF, deposited(20), 7);
        let began = Instant::now();
        let deadline = Deadline::after(Duration::from_millis(40));
        let answer = run(&retry, deadline, &[Err("broken"); 9]).await;
        assert_eq!(
            answer,
            Err(RetryError::Failed { error: "broken", attempts: 1, why: NotRetried::Deadline })
        );
        assert_eq!(retry.budget.left(), 20, "an attempt that is not made is not withdrawn");
        assert!(began.elapsed().is_zero(), "it does not wait for an attempt that cannot be");
        let hangs = retry
            .run(
                deadline,
                |_: &&str| true,
                async |_| std::future::pending::<Result<u32, &str>>().await,
            )
            .await;
        assert_eq!(hangs, Err(RetryError::DeadlineExceeded { attempts: 1 }));
        let begun = Cell::new(false);
        let late = retry.run(
            deadline,
            |_: &&str| true,
            async |_| {
                begun.set(true);
                Ok::<u32, &str>(1)
            },
        );
        assert_eq!(late.await, Err(RetryError::DeadlineExceeded { attempts: 0 }));
        assert!(!begun.get());
    }

    /// A call of a schedule: when it begins, and which of its attempts would succeed (a bit each).
    fn schedule() -> impl Strategy<Value = Vec<(u64, u8)>> {
        let all_fail = (0u64..200, Just(0u8));
        let all_work = (0u64..200, Just(0xffu8));
        let any = (0u64..200, any::<u8>());
        let phase = prop_oneof![
            proptest::collection::vec(all_fail, 1..200),
            proptest::collection::vec(all_work, 1..400),
            proptest::collection::vec(any, 1..200),
        ];
        proptest::collection::vec(phase, 1..6)
            .prop_map(|phases| phases.into_iter().flatten().collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
        /// Attempts are at most 1.1 of the calls since the start, and at most twenty more than that
        /// in any window.
        #[test]
        fn retries_never_multiply_the_load_by_more_than_1_1(calls in schedule(), window in 1u64..5000) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let attempts: Vec<(Duration, bool)> = runtime.block_on(async {
                let retry = Arc::new(Retry::new(BACKOFF, RetryBudget::new(BudgetOptions::default()), 7));
                let began = Instant::now();
                let log = Arc::new(Mutex::new(Vec::new()));
                let mut under_way = tokio::task::JoinSet::new();
                for (pause, works) in calls {
                    sleep(Duration::from_millis(pause / 10)).await;
                    let (retry, log) = (Arc::clone(&retry), Arc::clone(&log));
                    under_way.spawn(async move {
                        let _ = retry.run(Deadline::after(Duration::from_secs(5)), |_: &()| true, |attempt| {
                            log.lock().push((began.elapsed(), attempt == 0));
                            async move {
                                sleep(Duration::from_millis(5)).await;
                                if works >> attempt & 1 == 1 { Ok(()) } else { Err(()) }
                            }
                        }).await;
                    });
                }
                under_way.join_all().await;
                std::mem::take(&mut *log.lock())
            });
            let mut calls = 0u32;
            for (n, (_, first)) in attempts.iter().enumerate() {
                calls += u32::from(*first);
                prop_assert!((n + 1) as f64 <= 1.1 * f64::from(calls), "{} attempts of {calls} calls", n + 1);
            }
            let window = Duration::from_millis(window);
            let mut oldest = 0;
            let mut firsts = 0u32;
            for (n, (at, first)) in attempts.iter().enumerate() {
                firsts += u32::from(*first);
                while attempts[oldest].0 + window <= *at {
                    firsts -= u32::from(attempts[oldest].1);
                    oldest += 1;
                }
                let all = (n + 1 - oldest) as f64;
                // A success of the window may be of a call that began before it: those were under
                // way.
                let before = attempts[..oldest].iter().filter(|(at, _)| *at + Duration::from_secs(5) > attempts[oldest].0);
                let before = before.filter(|(_, first)| *first).count() as f64;
                prop_assert!(all <= 1.1 * f64::from(firsts) + 0.1 * before + 20.0, "{all} attempts of {firsts} calls");
            }
        }
    }
}
