//! The options, states and observable values of a breaker.

use std::time::Duration;

use crate::label_enum;
use crate::metric::LabelEnum;

/// When a breaker opens and for how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerOptions {
    /// Minimum calls in the window before their shares count. Too high: the breaker opens late;
    /// too low: one failed call opens it.
    pub min_calls: u32,
    /// The breaker opens when at least this share of calls failed; 0: with the first failure.
    pub failed_share: f64,
    /// The breaker opens when at least this share of calls failed or was slow; above 1: never.
    pub failed_or_slow_share: f64,
    /// A call that takes at least this long is slow.
    pub slow_after: Duration,
    /// Unfinished calls that are already slow, with no success for `slow_after`, that open the
    /// breaker; 0: never.
    pub stalled_calls: u32,
    /// The first open time; it doubles with every opening. Jittered to 50 % to 100 %.
    pub open_first: Duration,
    /// Maximum open time.
    pub open_cap: Duration,
    /// After this long closed, the open time restarts at `open_first`.
    pub reset_after: Duration,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        Self {
            min_calls: 20,
            failed_share: 0.5,
            failed_or_slow_share: 0.6,
            slow_after: Duration::from_millis(500),
            stalled_calls: 20,
            open_first: Duration::from_millis(500),
            open_cap: Duration::from_secs(10),
            reset_after: Duration::from_secs(30),
        }
    }
}

label_enum! {
    /// The state of a breaker.
    pub enum BreakerState {
        /// Calls pass.
        Closed = "closed",
        /// Calls are refused.
        Open = "open",
        /// A few probes pass.
        HalfOpen = "half_open",
        /// An operator forced it open: calls are refused until released.
        ForcedOpen = "forced_open",
        /// An operator forced it closed: calls pass until released.
        ForcedClosed = "forced_closed",
    }
}

impl BreakerState {
    /// The stable value in metrics, logs and responses.
    pub fn as_str(self) -> &'static str {
        LabelEnum::as_str(self)
    }
}

/// A state transition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// Name of the breaker.
    pub name: String,
    /// The state before.
    pub from: BreakerState,
    /// The state after.
    pub to: BreakerState,
    /// The trip or recovery condition.
    pub reason: &'static str,
    /// Number of transitions so far.
    pub generation: u64,
}

/// The observable state of a breaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerSnapshot {
    /// Name of the breaker.
    pub name: String,
    /// The state.
    pub state: BreakerState,
    /// The reason of the last transition; `start` before the first.
    pub reason: &'static str,
    /// Time since the last transition.
    pub since: Duration,
    /// Number of transitions so far.
    pub generation: u64,
    /// Calls in the window that succeeded in time.
    pub ok: u32,
    /// Calls in the window that failed.
    pub failed: u32,
    /// Calls in the window that succeeded slowly.
    pub slow: u32,
    /// Permits dropped without a result since the start. They count neither way.
    pub cancelled: u64,
    /// Results of an earlier generation since the start. They are ignored.
    pub late: u64,
}

/// The breaker refused a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the breaker is open")]
pub struct Refused {
    /// When the caller should retry.
    pub retry_after: Duration,
}
