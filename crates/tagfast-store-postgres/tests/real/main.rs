//! The store on real clusters of three PostgreSQL nodes under Patroni; one stack for all tests of
//! this binary.

mod counterexamples;
mod dead_letters;
mod health;
mod installation;
mod long_transactions;
mod migration;
mod proofs;
mod relaying;
mod retries;
mod suite;
#[path = "../support/mod.rs"]
mod support;
mod synchronous;
mod writes;
