//! The shield in front of a store: views in process (L1) and in Redis, positions of last writes,
//! stale answers when nothing else is to be had.
//!
//! [`CachedStore`] decorates a store and is one: what it answers keeps the same promises, which the
//! same conformance suite shows with every layer on or off. An entry answers only what it can
//! prove: that it is part of the history (its epoch and log position), that it shows what this
//! client wrote or saw (version, transactions), and that changes of it would have been heard.
//!
//! How it fails: towards the store. Whatever a cache cannot prove is read from the store, once for
//! all who ask at the same time. When the store cannot answer, an entry that shows what the client
//! must see is answered marked as stale; never for
//! [`Consistency::Strong`](tagfast_store::Consistency::Strong), never against a newer token, never
//! older than [`CacheOptions::stale_if_error`].

mod ear;
mod entry;
mod level1;
mod metric;
mod need;
mod positions;
mod questions;
mod read;
mod recent;
mod store;
mod views;

pub use entry::{Entry, NoEntry};
pub use metric::METRICS;
pub use store::{CacheOptions, CacheParts, CacheStatus, CachedStore};
