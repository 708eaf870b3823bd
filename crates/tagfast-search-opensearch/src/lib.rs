//! The search engine of clusters, on OpenSearch, with the same rules as the embedded engine.
//!
//! Every content has one document, also a content without tags: a tombstone keeps the version, so
//! that a late event cannot bring the content back (OpenSearch forgets the version of a deleted id
//! after a minute). Writes carry their version, and the server refuses older ones. The index of a
//! generation (`tagfast-content-v1`, ...) is read and written through an alias; while a rebuild
//! fills the next generation, every indexer writes to both.
//!
//! How it fails: if the server is away, overloaded, red or short of shards, a search fails as
//! unavailable, never with an empty page, and the indexer waits without blaming a record. A record
//! that the server refuses is poison; a batch that it refuses as a whole is halved until the record
//! is alone.

mod bulk;
mod client;
mod engine;
mod error;
mod facts;
mod index;
mod index_state;
mod index_watch;
mod item_class;
mod query;
mod rebuild;
mod rebuild_lock;
mod shared_progress;
mod sink;
mod write_progress;

pub use client::{OpenSearchLogin, OpenSearchOptions};
pub use engine::OpenSearchIndex;
pub use error::{OpenSearchError, ReindexError, RequestError};
pub use item_class::{ItemClass, classify_item};
pub use rebuild::IndexKeeper;
pub use shared_progress::SharedProgress;
