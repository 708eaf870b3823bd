//! Conformance suites: what every adapter of a port must do, as functions over a harness.
//!
//! Each function is one promise and panics when it is broken.

pub mod bus;
pub mod dead_letters;

pub use bus::BusHarness;
