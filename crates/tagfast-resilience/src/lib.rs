//! Overload protection and fault isolation: mechanisms without business words. No test waits in
//! real time.
//!
//! | mechanism | question it answers |
//! |---|---|
//! | [`Bulkhead`] | how many callers one dependency may hold |
//! | [`Breaker`] | whether calling the dependency is worthwhile at all |
//! | [`Limiter`] | how many calls the dependency carries now, and which are shed first ([`Criticality`]) |
//! | [`SingleFlight`] | which callers may share one call |
//! | [`Backoff`] | whether and when to retry |
//! | [`FailureWatch`] | which share of calls fails lately, and why |
//!
//! Around a call they are applied in this order: bulkhead, breaker, limiter. `tests/it` simulates
//! an overload with them, including clients with deadlines and a retry budget.
//!
//! Besides: background tasks ([`task`]), outage logging ([`OutageLog`]), error chains
//! ([`ErrorChain`]), metric definitions ([`metric`]), generations of derived data ([`generation`]),
//! secrets that no output shows ([`secret`]), credentials that change while the process runs
//! ([`credential`]), files of one owner ([`private_files`]), and which hosts are this machine
//! ([`is_loopback_host`]).
//! Code that waits uses tokio's time (paused in tests); decisions take an injected
//! [`Now`](breaker::Now); code that needs the wall time takes a [`Clock`].

pub mod backoff;
pub mod breaker;
pub mod breaker_registry;
pub mod bulkhead;
pub mod clock;
pub mod credential;
pub mod criticality;
mod error_chain;
pub mod failure_watch;
pub mod generation;
mod jitter;
pub mod limiter;
mod loopback;
pub mod metric;
mod outage_log;
pub mod private_files;
pub mod secret;
pub mod single_flight;
pub mod task;

pub use backoff::Backoff;
pub use breaker::{
    Breaker, BreakerOptions, BreakerSnapshot, BreakerState, Permit, Refused, Transition,
};
pub use breaker_registry::{BreakerEvent, Breakers};
pub use bulkhead::{Bulkhead, BulkheadFull, BulkheadOptions, BulkheadPermit, BulkheadSnapshot};
pub use clock::{Clock, ManualClock, SystemClock};
pub use credential::{Credential, CredentialVersion};
pub use criticality::Criticality;
pub use error_chain::{BoxError, ErrorChain, SharedError};
pub use failure_watch::{CauseChange, FailureWatch, OngoingCause, OutcomeCounts, OutcomeTotals};
pub use jitter::{jittered, jittered_retry_after};
pub use limiter::{
    ByCriticality, InFlight, LimitExceeded, Limiter, LimiterOptions, LimiterSnapshot, ShedReason,
};
pub use loopback::is_loopback_host;
pub use metric::{Bounded, LabelDef, LabelEnum, LabelValues, MetricDef, MetricKind};
pub use outage_log::OutageLog;
pub use secret::{Address, Secret};
pub use single_flight::{LeaderLost, SharedResult, SingleFlight};
pub use task::{BackgroundTask, StopSignal, TaskGroup};
