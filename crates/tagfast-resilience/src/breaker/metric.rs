//! The metrics of breakers, and the values of their labels.

use super::types::BreakerState;
use crate::{define_metrics, label_enum};

label_enum! {
    /// Why a result was ignored.
    pub(crate) enum IgnoredReason {
        /// The caller was cancelled before the call ended.
        Cancelled = "cancelled",
        /// The breaker had changed its state since the call started.
        Late = "late",
    }
}

/// What bounds the label `breaker`.
const BREAKERS: &str = "breakers of the process";

define_metrics! {
    /// The metrics of breakers.
    pub const METRICS;

    /// 1 while calls are refused, 0.5 while a few probes pass. Above 0 for minutes: the dependency
    /// needs help.
    pub(crate) gauge BREAKER_OPEN = "tagfast_breaker_open" { breaker in BREAKERS };

    /// State transitions. Many per minute: the dependency fails partly, or the limits are too
    /// narrow.
    pub(crate) counter BREAKER_TRANSITIONS = "tagfast_breaker_transitions_total" {
        breaker in BREAKERS,
        to: BreakerState,
        reason in "trip and recovery conditions",
    };

    /// Results that a breaker ignored: `cancelled` by their caller, or `late` (they came after a
    /// state change). Many cancelled: callers give up before the dependency answers.
    pub(crate) counter BREAKER_IGNORED = "tagfast_breaker_ignored_total" {
        breaker in BREAKERS,
        why: IgnoredReason,
    };
}
