//! The tantivy engine against the conformance suite, crashes, damage and rebuilds.

mod engine;
mod support;
