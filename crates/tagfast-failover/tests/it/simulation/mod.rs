//! A simulated cluster around the real state machines: three database nodes with their logs, etcd's
//! keys, and two processes of the service. A schedule is a list of steps in any order; after it the
//! cluster comes to rest, and its state must be explained by one order of the writes.
//!
//! The parts that decide are the real ones: `apply`, `join`, the codec, `mint`,
//! `check_eligibility`, [`tagfast_failover::Acknowledger`], `closing` and `verdict`. Replication,
//! promotion, keys and the loss of a node are the simulation's. Each rule can be replaced by a
//! simpler one, so that the counterexample that needs the rule is seen to fail without it.

mod api;
mod check;
mod cluster;
mod counterexamples;
mod database;
mod random;
mod repair;
mod rules;
mod step;
