//! Tests of the state machines of a failover: each one against a simple reference, and all of them
//! together in a simulated cluster.

mod acknowledger;
mod coverage;
mod decisions;
mod journal;
mod journal_copy;
mod simulation;
mod support;
