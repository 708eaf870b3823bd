//! Background work, breaker, clock, backoff, generations of derived data and metric definitions: no business words, nothing that waits in real time in a test.
//!
//! Code that waits uses tokio's time (paused in tests); code that needs the date takes a [`Clock`].

pub mod background;
pub mod backoff;
pub mod breaker;
pub mod breakers;
pub mod bulkhead;
pub mod clock;
pub mod criticality;
pub mod deadline;
pub mod flights;
pub mod generation;
mod jitter;
pub mod limiter;
pub mod metric;
pub mod retry;

pub use background::{Background, Stopped};
pub use backoff::Backoff;
pub use breaker::{Breaker, BreakerLook, BreakerOptions, BreakerState, Permit, Refused, Transition};
pub use breakers::{BreakerEvent, Breakers};
pub use bulkhead::{Bulkhead, BulkheadFull, BulkheadLook, BulkheadOptions, Place};
pub use clock::{Clock, ManualClock, SystemClock};
pub use criticality::Criticality;
pub use deadline::{Deadline, Late};
pub use flights::{FlightLost, Flights, Flown};
pub use limiter::{ByCriticality, InFlight, Limiter, LimiterLook, LimiterOptions, Shed, ShedReason};
pub use metric::{MetricDef, MetricKind};
pub use retry::{BudgetOptions, NoRetry, Retry, RetryBudget, RetryError};
