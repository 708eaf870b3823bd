//! Development only: shared by tests that run the program and real servers.
//!
//! - [`wait`]: waits for a condition with a timeout, instead of sleeping.
//! - [`process`]: the program as a child process that can be killed, frozen and stopped, and that
//!   never outlives its test.
//! - [`http`]: a small blocking HTTP client that never retries a write on its own.
//! - `stack` (a feature): a real cluster from plain processes, with faults on request.
//! - [`read_your_writes`]: clients that read their own writes through another node while servers
//!   fail.
//! - `sentinel` (with the same feature): Redis servers for one test, also behind Sentinel.
//! - [`history`]: checks clients' answers against the final state.
//!
//! The crate depends on no crate of the service: a test that used the service's own types could not
//! detect a wrong wire format.

pub mod history;
pub mod http;
pub mod process;
pub mod read_your_writes;
#[cfg(feature = "stack")]
pub mod sentinel;
#[cfg(feature = "stack")]
pub mod stack;
pub mod wait;

pub use history::Outcome;
pub use history::set::SetHistory;
pub use http::{Answer, Client};
pub use process::{ServerOptions, ServerProcess};
pub use read_your_writes::{ReadYourWritesClients, ReadYourWritesReport};
pub use wait::wait_for_condition;
#[cfg(feature = "async")]
pub use wait::wait_for_condition_async;
