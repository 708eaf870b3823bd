//! What keeps a service up when a part of it is gone: no business words, nothing that waits in real
//! time in a test.
//!
//! | part | it answers |
//! |---|---|
//! | [`Deadline`] | by when an answer is worth something; outermost, handed down |
//! | [`Bulkhead`] | how many callers one dependency may hold |
//! | [`Breaker`] | whether it is worth calling at all |
//! | [`Limiter`] | how many calls it carries now, and whose come first ([`Criticality`]) |
//! | [`Flights`] | who may share one call |
//! | [`Retry`], [`Backoff`] | whether and when to try again, within a budget |
//!
//! Around a call they stand in this order: deadline, bulkhead, breaker, limiter. `tests/it`
//! simulates an overload with them. Beside them: background work, generations of derived data,
//! metric definitions. Code that waits uses tokio's time (paused in tests); decisions take an
//! injected [`Now`](breaker::Now); code that needs the date takes a [`Clock`].

pub mod background;
pub mod backoff;
pub mod breaker;
pub mod breakers;
pub mod bulkhead;
pub mod clock;
pub mod criticality;
pub mod deadline;
mod error_chain;
pub mod flights;
pub mod generation;
mod jitter;
pub mod limiter;
pub mod metric;
mod outage_log;
pub mod retry;
pub mod task;

pub use background::{Background, Stopped};
pub use backoff::Backoff;
pub use breaker::{
    Breaker, BreakerLook, BreakerOptions, BreakerState, Permit, Refused, Transition,
};
pub use breakers::{BreakerEvent, Breakers};
pub use bulkhead::{Bulkhead, BulkheadFull, BulkheadLook, BulkheadOptions, Place};
pub use clock::{Clock, ManualClock, SystemClock};
pub use criticality::Criticality;
pub use deadline::{Deadline, Late};
pub use error_chain::ErrorChain;
pub use flights::{FlightLost, Flights, Flown};
pub use jitter::{chance, comes_back, jittered_retry_after};
pub use limiter::{
    ByCriticality, InFlight, Limiter, LimiterLook, LimiterOptions, Shed, ShedReason,
};
pub use metric::{Bounded, LabelDef, LabelEnum, LabelValues, MetricDef, MetricKind};
pub use outage_log::OutageLog;
pub use retry::{BudgetOptions, NoRetry, Retry, RetryBudget, RetryError};
