//! Conformance suites: what every adapter of a port must do, as functions over a harness.
//!
//! Each function is one promise and panics when it is broken. [`MemorySink`] is a sink for tests of
//! buses and consumers.

pub mod bus;
pub mod dead_letters;
mod memory_sink;

pub use bus::BusHarness;
pub use memory_sink::MemorySink;
