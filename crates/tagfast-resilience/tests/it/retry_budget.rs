//! A retry budget of the simulated clients: retries never multiply the load by more than 1.1.
//!
//! When a dependency is in trouble, the retries of all clients keep it there. So a retry must be
//! deposited: each success deposits a tenth of a retry into a bucket of at most 20. Since the start
//! there are at most 1.1 attempts per call, and in any window at most 20 more.
//!
//! How it fails: a process that has just started has no retry to withdraw.

use std::sync::Arc;

use parking_lot::Mutex;

/// One retry in the unit of the bucket: thousandths.
const RETRY_UNITS: u32 = 1000;

/// Options of a retry budget.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct BudgetOptions {
    /// Retries deposited per success. Too high: retries keep an overloaded dependency down; too
    /// low: callers see short faults.
    pub(crate) deposited: f64,
    /// Capacity of the bucket. Too high: a burst of retries after a quiet time; too low: one
    /// broken connection that many calls share fails most of them.
    pub(crate) max: u32,
}

impl Default for BudgetOptions {
    fn default() -> Self {
        Self { deposited: 0.1, max: 20 }
    }
}

/// A token bucket of retries, shared by all calls to one dependency.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    deposited: u32,
    max: u32,
    /// In thousandths: binary fractions of a tenth do not add up to one.
    left: Mutex<u32>,
}

impl RetryBudget {
    /// An empty bucket.
    pub(crate) fn new(options: BudgetOptions) -> Arc<Self> {
        let deposited = (options.deposited.clamp(0.0, 1.0) * f64::from(RETRY_UNITS)).round() as u32;
        Arc::new(Self {
            deposited,
            max: options.max.saturating_mul(RETRY_UNITS),
            left: Mutex::new(0),
        })
    }

    /// Deposits for a successful call.
    pub(crate) fn succeeded(&self) {
        let mut left = self.left.lock();
        *left = left.saturating_add(self.deposited).min(self.max);
    }

    /// Withdraws one retry; `false` when none is left.
    pub(crate) fn try_withdraw(&self) -> bool {
        let mut left = self.left.lock();
        let rest = left.checked_sub(RETRY_UNITS);
        *left = rest.unwrap_or(*left);
        rest.is_some()
    }

    /// Retries left.
    #[cfg(test)]
    pub(crate) fn left(&self) -> u32 {
        *self.left.lock() / RETRY_UNITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_successes_are_one_retry_and_twenty_retries_are_the_most() {
        let budget = RetryBudget::new(BudgetOptions::default());
        assert!(!budget.try_withdraw(), "the bucket is empty");
        (0..9).for_each(|_| budget.succeeded());
        assert!(!budget.try_withdraw());
        budget.succeeded();
        assert!(budget.try_withdraw() && !budget.try_withdraw());
        (0..10_000).for_each(|_| budget.succeeded());
        assert_eq!(budget.left(), 20);
        assert_eq!((0..100).filter(|_| budget.try_withdraw()).count(), 20);
    }
}
