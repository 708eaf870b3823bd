//! The store against a real cluster of three PostgreSQL nodes under Patroni, one stack for all
//! tests of this binary.

mod installation;
#[expect(dead_code, reason = "the fault tests use other parts")]
mod kit;
mod letters;
mod proofs;
mod relaying;
mod suite;
mod writes;
