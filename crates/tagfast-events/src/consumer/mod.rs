//! The consumer runtime: one loop per consumer, the same for every sink.
//!
//! The loop decodes records, drops those of a replaced publisher epoch, collapses a batch to the
//! newest version per key, lets the sink apply it, and moves the position only over records that
//! are applied, superseded, dropped or parked.
//!
//! How it fails. A record that can never succeed is parked as a dead letter at once. A record that
//! fails is retried three times with growing delays while other keys go on, then parked. When the
//! sink itself fails, no record is to blame: nothing is parked, no attempt is counted, and the
//! consumer waits and tries again until the sink works. When so many records fail that they cannot
//! be to blame (a dead-letter storm), no more are parked: their partitions wait, and one record per
//! partition is tried again every five seconds. A dead letter that cannot be written holds the
//! consumer's position back. A crash at any point repeats work and loses none.
//!
//! | file | what it does |
//! |---|---|
//! | `runtime` | the handle of a running consumer |
//! | `supervisor` | a consumer with its replay worker, and when it is ready |
//! | `begin` | where a partition begins, or why it is rebuilt |
//! | `engine` | the loop: poll, decode, apply, advance |
//! | `context` | what the loop's parts share: sink behind its breaker, progress, waiting |
//! | `parking` | dead letters, and holding them back in a storm |
//! | `parking_limiter` | when many failures become a storm |
//! | `retry_queue` | failed records that wait for their next attempt |
//! | `replay` | applying dead letters again |
//! | `progress` | read, done, durable, visible positions |
//! | `state` | options, states, requests |

mod begin;
mod context;
mod engine;
mod parking;
mod parking_limiter;
mod progress;
mod replay;
mod retry_queue;
pub(crate) mod runtime;
pub(crate) mod state;
mod supervisor;

pub use runtime::{Consumer, ConsumerStopped};
pub use state::{ConsumerProblem, ConsumerSnapshot, ConsumerState, ReplayOutcome, RuntimeOptions};
pub use supervisor::{ConsumerDependencies, SupervisedConsumer};
