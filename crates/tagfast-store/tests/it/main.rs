//! Tests of what every store shares: sealed strings, tokens, and the conformance suite itself.

mod broken;
mod memory_store;
mod seal;
mod suite;
mod token;
