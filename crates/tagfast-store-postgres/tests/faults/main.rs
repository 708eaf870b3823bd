//! Faults of real servers under load. One stack of two clusters for all tests; they take turns.

#[path = "../real/kit.rs"]
#[expect(dead_code, reason = "shared with the conformance tests, which use other parts")]
mod kit;
mod load;
mod reigns;
mod scenarios;
mod shield;
mod silence;
#[path = "../real/writes.rs"]
mod writes;
