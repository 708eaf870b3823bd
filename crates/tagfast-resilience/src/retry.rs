//! Trying again, within a budget: retries never multiply the load by more than 1.1.
//!
//! When a dependency is in trouble, everybody's retries are what keeps it there. So a retry has to
//! be earned: each success puts a tenth of a retry into a bucket of at most twenty. Since the start
//! there are at most 1.1 attempts for each call, and in any window at most 1.1 for each call and
//! twenty more. Only what the caller calls retryable is tried again, and never past the deadline.
//!
//! How it fails: with the bucket empty the first error is the answer. A process that has just begun
//! has earned no retry yet.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::jitter::Jitter;

/// A retry, in the parts that successes earn.
const RETRY: u32 = 1000;

/// What retries may add.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BudgetOptions {
    /// Retries earned by a success. Too high: retries keep an overloaded dependency down; too low:
    /// a short fault is seen by callers.
    pub earned: f64,
    /// Retries that are kept at most. Too high: a burst of retries after a quiet time; too low: a
    /// broken connection that many calls shared fails most of them.
    pub most: u32,
}

impl Default for BudgetOptions {
    fn default() -> Self {
        Self { earned: 0.1, most: 20 }
    }
}

/// Retries that may be made, shared by all calls to one dependency.
#[derive(Debug)]
pub struct RetryBudget {
    earned: u32,
    most: u32,
    /// In thousandths: tenths do not add up to one as fractions.
    left: Mutex<u32>,
}

impl RetryBudget {
    /// An empty one.
    pub fn new(options: BudgetOptions) -> Arc<Self> {
        let earned = (options.earned.clamp(0.0, 1.0) * f64::from(RETRY)).round() as u32;
        Arc::new(Self { earned, most: options.most.saturating_mul(RETRY), left: Mutex::new(0) })
    }

    /// A call succeeded.
    pub fn succeeded(&self) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.saturating_add(self.earned).min(self.most);
    }

    /// Leave for one retry; `false` when none is left.
    pub fn try_spend(&self) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = left.checked_sub(RETRY);
        *left = rest.unwrap_or(*left);
        rest.is_some()
    }

    /// Retries that are left.
    pub fn left(&self) -> u32 {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) / RETRY
    }
}

/// Why a call was not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRetry {
    /// The error is none that a retry helps with.
    NotRetryable,
    /// The policy has no retry left.
    Exhausted,
    /// The budget has no retry left.
    Budget,
    /// The next attempt would begin past the deadline.
    Deadline,
}

impl NoRetry {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotRetryable => "not_retryable",
            Self::Exhausted => "exhausted",
            Self::Budget => "budget",
            Self::Deadline => "deadline",
        }
    }
}

/// A call did not succeed, whatever was tried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RetryError<E> {
    /// The last attempt failed.
    #[error("attempt {attempts} failed and no other was made ({}): {error}", why.as_str())]
    Failed {
        /// Its error.
        error: E,
        /// Attempts made.
        attempts: u32,
        /// Why there was none after it.
        why: NoRetry,
    },
    /// The deadline passed while an attempt was under way.
    #[error("the deadline passed in attempt {attempts}")]
    Late {
        /// Attempts begun; 0 when the deadline had passed before.
        attempts: u32,
    },
}

/// How calls to one dependency are tried again.
#[derive(Debug)]
pub struct Retry {
    backoff: Backoff,
    budget: Arc<RetryBudget>,
    jitter: Mutex<Jitter>,
}

impl Retry {
    /// Tries again as `backoff` says while `budget` allows. `seed` spreads the delays; 0: drawn by
    /// chance.
    pub fn new(backoff: Backoff, budget: Arc<RetryBudget>, seed: u64) -> Self {
        Self { backoff, budget, jitter: Mutex::new(Jitter::new(seed)) }
    }

    /// Makes `call` (with the number of its attempt, from 0) until it succeeds or nothing speaks
    /// for another attempt. No attempt goes on past the deadline, and none is waited for that
    /// would begin past it.
    pub async fn run<T, E, F: Future<Output = Result<T, E>>>(
        &self,
        deadline: Deadline,
        retryable: impl Fn(&E) -> bool,
        mut call: impl FnMut(u32) -> F,
    ) -> Result<T, RetryError<E>> {
        let mut attempt = 0;
        loop {
            if deadline.is_over() {
                return Err(RetryError::Late { attempts: attempt });
            }
            let answer = deadline.run(call(attempt)).await;
            let attempts = attempt + 1;
            let error = match answer {
                Ok(Ok(value)) => {
                    self.budget.succeeded();
                    return Ok(value);
                }
                Ok(Err(error)) => error,
                Err(_) => return Err(RetryError::Late { attempts }),
            };
            match self.delay(attempt, deadline, retryable(&error)) {
                Ok(delay) => tokio::time::sleep(delay).await,
                Err(why) => return Err(RetryError::Failed { error, attempts, why }),
            }
            attempt += 1;
        }
    }

    /// How long to wait before the attempt after `attempt`; it is paid for then.
    fn delay(
        &self,
        attempt: u32,
        deadline: Deadline,
        retryable: bool,
    ) -> Result<Duration, NoRetry> {
        if !retryable {
            return Err(NoRetry::NotRetryable);
        }
        let random = self.jitter.lock().unwrap_or_else(PoisonError::into_inner).next();
        let delay = self.backoff.delay(attempt, random).ok_or(NoRetry::Exhausted)?;
        if delay >= deadline.remaining() {
            return Err(NoRetry::Deadline);
        }
        // Last: what is not made is not paid for.
        if self.budget.try_spend() { Ok(delay) } else { Err(NoRetry::Budget) }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;
    use tokio::time::{Instant, sleep};

    use super::*;

    const BACKOFF: Backoff = Backoff {
        retries: 3,
        base: Duration::from_millis(100),
        factor: 2,
        cap: Duration::from_secs(1),
    };

    fn earned(retries: u32) -> Arc<RetryBudget> {
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

    #[test]
    fn ten_successes_are_one_retry_and_twenty_retries_are_kept() {
        let budget = RetryBudget::new(BudgetOptions::default());
        assert!(!budget.try_spend(), "nothing is earned yet");
        (0..9).for_each(|_| budget.succeeded());
        assert!(!budget.try_spend());
        budget.succeeded();
        assert!(budget.try_spend() && !budget.try_spend());
        (0..10_000).for_each(|_| budget.succeeded());
        assert_eq!(budget.left(), 20);
        assert_eq!((0..100).filter(|_| budget.try_spend()).count(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn it_tries_again_what_may_succeed_with_growing_delays() {
        let retry = Retry::new(BACKOFF, earned(5), 7);
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
            failed("wrong", 1, NoRetry::NotRetryable)
        );
        assert_eq!(retry.budget.left(), 3);
        assert_eq!(
            run(&retry, deadline, &[Err("broken"); 9]).await,
            failed("broken", 4, NoRetry::Exhausted)
        );
        assert_eq!(
            run(&retry, deadline, &[Err("broken"); 9]).await,
            failed("broken", 1, NoRetry::Budget)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn it_never_goes_on_past_the_deadline() {
        let retry = Retry::new(BACKOFF, earned(20), 7);
        let began = Instant::now();
        let deadline = Deadline::after(Duration::from_millis(40));
        let answer = run(&retry, deadline, &[Err("broken"); 9]).await;
        assert_eq!(
            answer,
            Err(RetryError::Failed { error: "broken", attempts: 1, why: NoRetry::Deadline })
        );
        assert_eq!(retry.budget.left(), 20, "what is not made is not paid for");
        assert!(began.elapsed().is_zero(), "it does not wait for what cannot be");
        let hangs = retry
            .run(
                deadline,
                |_: &&str| true,
                async |_| std::future::pending::<Result<u32, &str>>().await,
            )
            .await;
        assert_eq!(hangs, Err(RetryError::Late { attempts: 1 }));
        let begun = Cell::new(false);
        let late = retry.run(
            deadline,
            |_: &&str| true,
            async |_| {
                begun.set(true);
                Ok::<u32, &str>(1)
            },
        );
        assert_eq!(late.await, Err(RetryError::Late { attempts: 0 }));
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
        /// Attempts are at most 1.1 of the calls since the start, and at most twenty more than that in any window.
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
                            log.lock().unwrap().push((began.elapsed(), attempt == 0));
                            async move {
                                sleep(Duration::from_millis(5)).await;
                                if works >> attempt & 1 == 1 { Ok(()) } else { Err(()) }
                            }
                        }).await;
                    });
                }
                under_way.join_all().await;
                std::mem::take(&mut *log.lock().unwrap())
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
                // A success of the window may be of a call that began before it: those were under way.
                let before = attempts[..oldest].iter().filter(|(at, _)| *at + Duration::from_secs(5) > attempts[oldest].0);
                let before = before.filter(|(_, first)| *first).count() as f64;
                prop_assert!(all <= 1.1 * f64::from(firsts) + 0.1 * before + 20.0, "{all} attempts of {firsts} calls");
            }
        }
    }
}
