//! Development only: what tests of the running program share.
//!
//! - [`wait`]: wait for a condition with a bound, instead of sleeping and hoping.
//! - [`process`]: the program as a child process that is killed, frozen, stopped, and never
//!   outlives its test.
//! - [`http`]: a small blocking client that never retries a write behind the test's back.
//! - `stack` (a feature): the real cluster from plain processes, and faults on request.
//! - [`own_writes`]: clients that look for their own writes through another node, while servers
//!   fail.
//! - `sentinel` (with the same feature): Redis servers of a test alone, also behind Sentinel.
//! - [`history`]: checks what clients were told against what is there in the end.
//!
//! It knows no crate of the service: a test that went through the service's own types could not see
//! a wrong wire format.

pub mod history;
pub mod http;
pub mod own_writes;
pub mod process;
#[cfg(feature = "stack")]
pub mod sentinel;
#[cfg(feature = "stack")]
pub mod stack;
pub mod wait;

pub use history::Outcome;
pub use history::set::SetHistory;
pub use http::{Answer, Client};
pub use own_writes::{OwnWrites, OwnWritesSeen};
pub use process::{ServerOptions, ServerProcess};
pub use wait::wait_for_condition;
#[cfg(feature = "async")]
pub use wait::wait_for_condition_async;
