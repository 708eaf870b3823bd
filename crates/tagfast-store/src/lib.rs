//! The ports of a store and everything that stores share: consistency tokens, errors, the
//! group-commit fold, the fair queue, the conformance suite.
//!
//! A caller states an intent (view this content, at least as recent as this token; apply this
//! write) and never sees a connection, a file or a database role. Adapters implement the ports;
//! decorators (cache, observation) wrap them.
//!
//! How it fails: with a [`StoreError`] that says whether a retry can help and after how long.

pub mod clusters;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod error;
pub mod failovers;
pub mod fair_queue;
pub mod history;
pub mod key_memory;
pub mod local_writes;
pub mod metric;
pub mod options;
pub mod ports;
pub mod seal;
#[cfg(feature = "testing")]
pub mod testing;
pub mod token;
pub mod write_batch;

pub use clusters::{
    ClusterEpoch, ClusterGuard, ClusterMember, ClusterReader, ClusterReport, ClusterWarning,
    FailingCallsReport, JournalReport, LaneReport, MemberRole, OutboxReport,
};
pub use error::StoreError;
pub use failovers::{
    FailoverCursor, FailoverObserver, FailoverReader, FailoverReport, FailoverTimes, FailoverWrite,
    FailoverWritesRequest, IncompleteLog, NodeRepair, VerdictCounts, VerdictKind,
};
pub use history::{History, RepairWatch};
pub use key_memory::KeyMemory;
pub use local_writes::{LocalWrites, RequiredVersion};
pub use options::{Consistency, Durability, ReadOptions};
pub use ports::{
    CacheUse, Degraded, LostReason, REPAIR_PENDING, ReceiptReader, ReplicaCount, ScanPage,
    ScanRequest, ShardScanner, SharedStore, Source, TagReader, TagStore, TagWriter, Verdict, View,
    WRITE_LOST, WriteAnswer, WriteRequest,
};
pub use seal::{SealError, SealKeys, SealKind, Sealer};
pub use token::{ConsistencyToken, Position, Receipt};
pub use write_batch::{CommitContext, WriteBatch, stored_key};
