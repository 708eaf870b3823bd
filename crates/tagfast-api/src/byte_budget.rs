//! The budget of bytes in flight: what request bodies and answers may hold in memory, over all
//! connections of the process.
//!
//! A holder takes bytes before it allocates them and gives them back when they are dropped: a
//! request body with its request, an answer when its last byte is written or its connection ends.
//! A quarter of the budget is reserved for holders of at most [`SMALL_BYTES_MAX`], so that a few
//! large answers that no client reads do not keep the ordinary calls out.
//!
//! How it fails: a holder that gets no bytes is refused with 503 `overloaded`; nothing waits. The
//! answer of a change is counted and never refused, because the change has happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::Gauge;
use tagfast_resilience::{counter, gauge, jittered_retry_after};

use crate::metric::{HTTP_BYTES_IN_FLIGHT, HTTP_BYTES_REFUSED, Held};
use crate::problem::{Code, Problem};

/// Largest holder that may use the reserved quarter, in bytes.
const SMALL_BYTES_MAX: u64 = 256 * 1024;
/// Name of the limit in problems.
const LIMIT_NAME: &str = "in_flight_bytes";

/// The budget; its clones share the bytes.
#[derive(Clone)]
pub struct ByteBudget(Arc<Budget>);

struct Budget {
    limit: u64,
    used: AtomicU64,
    gauge: Gauge,
}

impl ByteBudget {
    /// A budget of `limit` bytes, of which nothing is in use.
    pub fn new(limit: u64) -> Self {
        let gauge = gauge!(HTTP_BYTES_IN_FLIGHT);
        Self(Arc::new(Budget { limit, used: AtomicU64::new(0), gauge }))
    }

    /// Bytes in flight.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Whether more than half of the budget is in use: a peer that makes no progress is then given
    /// up early.
    pub(crate) fn is_scarce(&self) -> bool {
        self.used() > self.0.limit / 2
    }

    /// A holder without bytes.
    pub(crate) fn holder(&self, what: Held) -> HeldBytes {
        HeldBytes { budget: self.clone(), what, bytes: 0 }
    }
}

/// Bytes that are taken from the budget; dropping it gives them back.
pub(crate) struct HeldBytes {
    budget: ByteBudget,
    what: Held,
    bytes: u64,
}

impl HeldBytes {
    /// Takes `more` bytes; at an error nothing has changed.
    pub(crate) fn grow(&mut self, more: usize) -> Result<(), Problem> {
        let Budget { limit, used, gauge } = &*self.budget.0;
        let (more, limit) = (more as u64, *limit);
        let wanted = self.bytes.saturating_add(more);
        let share = if wanted <= SMALL_BYTES_MAX { limit } else { limit - limit / 4 };
        let take = |used: u64| used.checked_add(more).filter(|total| *total <= share);
        match used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => {
                self.bytes = wanted;
                gauge.increment(more as f64);
                Ok(())
            }
            Err(used) => {
                counter!(HTTP_BYTES_REFUSED, "what" => self.what).increment(1);
                Err(self.refusal(wanted, share, used.saturating_add(more)))
            }
        }
    }

    fn refusal(&self, wanted: u64, share: u64, total: u64) -> Problem {
        if wanted > share && self.what == Held::Answer {
            let detail = format!("the answer has more than {share} bytes");
            return Problem::new(Code::AnswerTooLarge, detail).limit(LIMIT_NAME, share, wanted);
        }
        let detail = "requests and answers in flight hold all the memory that they may";
        Problem::new(Code::Overloaded, detail)
            .limit(LIMIT_NAME, share, total)
            .retry_after(jittered_retry_after())
    }

    /// Takes `more` bytes also beyond the budget: for an answer that must be given.
    pub(crate) fn grow_always(&mut self, more: usize) {
        let Budget { used, gauge, .. } = &*self.budget.0;
        used.fetch_add(more as u64, Ordering::Relaxed);
        gauge.increment(more as f64);
        self.bytes += more as u64;
    }

    /// Gives back all but `rest` bytes.
    pub(crate) fn shrink_to(&mut self, rest: usize) {
        let less = self.bytes.saturating_sub(rest as u64);
        let Budget { used, gauge, .. } = &*self.budget.0;
        used.fetch_sub(less, Ordering::Relaxed);
        gauge.decrement(less as f64);
        self.bytes -= less;
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u64 = 4 * SMALL_BYTES_MAX;

    #[test]
    fn large_holders_leave_a_quarter_to_small_ones() {
        let budget = ByteBudget::new(LIMIT);
        let mut large = budget.holder(Held::Answer);
        large.grow(LIMIT as usize / 4 * 3).unwrap();
        assert_eq!(large.grow(1).unwrap_err().code(), Code::AnswerTooLarge);
        let mut other = budget.holder(Held::Answer);
        other.grow(SMALL_BYTES_MAX as usize).unwrap();
        assert_eq!(budget.used(), LIMIT);
        assert_eq!(budget.holder(Held::Answer).grow(1).unwrap_err().code(), Code::Overloaded);
        drop(other);
        let mut other = budget.holder(Held::Request);
        let refused = other.grow(SMALL_BYTES_MAX as usize + 1).unwrap_err();
        assert_eq!(refused.code(), Code::Overloaded);
        other.grow_always(LIMIT as usize);
        assert!(budget.is_scarce());
        drop((other, large));
        assert_eq!(budget.used(), 0);
        assert!(!budget.is_scarce());
    }

    #[test]
    fn the_budget_is_exact_under_concurrency() {
        let budget = ByteBudget::new(LIMIT);
        std::thread::scope(|scope| {
            for seed in 0..8 {
                let budget = budget.clone();
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed);
                    for _ in 0..2_000 {
                        let mut holder = budget.holder(Held::Answer);
                        for _ in 0..4 {
                            let _ = holder.grow(random.usize(..SMALL_BYTES_MAX as usize));
                            assert!(budget.used() <= LIMIT);
                        }
                        holder.shrink_to(random.usize(..SMALL_BYTES_MAX as usize));
                    }
                });
            }
        });
        assert_eq!(budget.used(), 0);
    }

    proptest! {
        #[test]
        fn what_is_taken_is_given_back(
            steps in proptest::collection::vec((0..3_u8, 0..LIMIT as usize), 0..40),
        ) {
            let budget = ByteBudget::new(LIMIT);
            let mut holder = budget.holder(Held::Request);
            for (step, bytes) in steps {
                match step {
                    0 => drop(holder.grow(bytes)),
                    1 => holder.grow_always(bytes),
                    _ => holder.shrink_to(bytes),
                }
                prop_assert_eq!(budget.used(), holder.bytes);
            }
            drop(holder);
            prop_assert_eq!(budget.used(), 0);
        }
    }
}
