//! The embedded search engine, on tantivy.
//!
//! Terms carry their tenant (`tenant 0 tag`), so that no query can reach another tenant's contents
//! and an AND of two tags reads two posting lists. One writer lives as long as the index; contents
//! and positions are one commit. tantivy has no versions, so the writer checks each state against
//! the uncommitted states and then the index, and applies it only if it is newer.
//!
//! How it fails: the consumer rebuilds an index from the shards if its directory cannot be read or
//! has a different format or epoch; meanwhile searches fail as unavailable. After a crash the
//! consumer applies the uncommitted records again.

mod engine;
mod error;
mod index_writer;
mod metrics;
mod options;
mod query_plan;
mod schema;
mod search_snapshot;
mod sink;

pub use engine::TantivyIndex;
pub use metrics::METRICS;
pub use options::TantivyOptions;
