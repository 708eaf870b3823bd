//! Caches in front of a store: views in this process (L1), views in Redis, the session positions
//! of users, and stale answers while the store is down.
//!
//! [`CachedStore`] decorates a store and is a store itself: it keeps the same promises, and the
//! same conformance suite runs with every layer on or off. A cache entry answers a read only with
//! evidence for three things: the entry belongs to the current history (its epoch and log
//! position), it is fresh enough for this client (version or transactions), and an invalidation of
//! it would have arrived.
//!
//! How it fails: towards the store. A read that the caches cannot prove goes to the store, once for
//! all callers who ask at the same time. When the store cannot answer, an entry that is fresh
//! enough for the client answers, marked as stale; never for
//! [`Consistency::Strong`](tagfast_store::Consistency::Strong), never against a newer token, never
//! older than [`CacheOptions::stale_if_error`].

mod cached_store;
mod entry;
mod freshness;
mod invalidation;
mod local_cache;
mod metric;
mod position_batcher;
mod position_fields;
mod read_path;
mod redis_cache;
mod session_positions;
mod write_path;

pub use cached_store::{CacheDependencies, CacheOptions, CacheStatus, CachedStore};
pub use entry::{Entry, EntryDecodeError};
pub use metric::METRICS;
