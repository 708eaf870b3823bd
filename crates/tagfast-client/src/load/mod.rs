//! The load generator of `tagfast bench`.
//!
//! | module | what it holds |
//! |---|---|
//! | `run` | open loop and closed loop, threads, the measured period |
//! | `workload` | the mix of calls, contents and queries, and the bytes of each request |
//! | `distributions` | the Zipf distribution |
//! | `connection` | a minimal HTTP/1.1 client |
//! | `cleanup` | removes what the measurement wrote |
//! | `report` | latencies, statuses and failures |

mod cleanup;
mod connection;
mod distributions;
mod report;
mod run;
mod workload;

pub use connection::{Answer, Connection};
pub use run::run;
pub use workload::{RequestKind, Workload};
