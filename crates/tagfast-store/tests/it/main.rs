//! Tests of everything that stores share: sealed strings, tokens, the group-commit fold, the store
//! in memory, and the conformance suite itself.

mod broken;
mod memory_store;
mod seal;
mod suite;
mod support;
mod token;
mod write_batch;
