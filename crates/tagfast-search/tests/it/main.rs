//! The tantivy engine against the suite, its crashes and rebuilds; the query language against its
//! grammar; guarded indices.

mod engine;
mod guarded;
mod language;
mod shards;
mod support;
