//! The store against a real cluster of three PostgreSQL nodes under Patroni, one stack for all tests of this binary.

mod kit;
mod suite;
