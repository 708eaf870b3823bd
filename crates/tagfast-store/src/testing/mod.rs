//! Test support: a conformance-tested store in memory, with faults on request.

mod faults;
mod memory_store;

pub use faults::{BrokenPromise, CallFaults, ReadCall};
pub use memory_store::MemoryStore;
