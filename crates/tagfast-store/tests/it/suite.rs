//! The suite over a store that keeps every promise.

tagfast_store::conformance_suite!(crate::support::MemoryHarness::sound());
