//! The suite on a store that keeps every promise.

tagfast_store::conformance_suite!(crate::memory_store::MemoryHarness::sound());
