//! The tantivy engine against the suite, its crashes and rebuilds; the query language against its grammar.

mod engine;
mod language;
mod shards;
mod support;
