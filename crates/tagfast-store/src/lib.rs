//! The ports of a store and everything that two stores share: consistency, tokens, errors, the
//! conformance suite.
//!
//! A caller asks by intent (view this content, at least as new as this token; apply this write) and
//! never sees a connection, a file or a role. Adapters fill the ports; decorators (cache,
//! observation) wrap them.
//!
//! How it fails: with a [`StoreError`] that says whether trying again can help and after how long.

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod error;
pub mod ports;
pub mod queue;
pub mod seal;
pub mod token;

pub use error::StoreError;
pub use ports::{
    CacheUse, Consistency, Degraded, Durability, History, ReadOptions, ReceiptReader, ScanPage,
    ShardScanner, SharedStore, Source, TagReader, TagStore, TagWriter, Verdict, View, WriteAnswer,
    WriteRequest,
};
pub use seal::{SealError, SealKind, Sealer};
pub use token::{ConsistencyToken, Position, Receipt};
