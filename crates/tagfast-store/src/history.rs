//! What a process knows of the epochs of a store.
//!
//! How it fails: it does not; what is not known is `None`.

use tagfast_domain::EpochId;
use tagfast_sharding::LogicalShard;

/// The epochs of a store's history. Asked for every cache entry, so it must answer from memory.
pub trait History: Send + Sync {
    /// The current epoch of a shard; `None` while it is unknown.
    fn current(&self, shard: LogicalShard) -> Option<EpochId>;

    /// The epoch end: the log position up to which `epoch` is part of the current history of a
    /// shard. `u64::MAX`: all of it (the current epoch); 0: nothing. `None`: this process does not
    /// know the epoch; it may be a newer one.
    fn epoch_end(&self, shard: LogicalShard, epoch: EpochId) -> Option<u64>;

    /// Whether views of a shard may lack acknowledged writes of before a failover, because their
    /// repair is not closed. Such views are marked with [`REPAIR_PENDING`](crate::REPAIR_PENDING).
    fn is_repair_open(&self, _shard: LogicalShard) -> bool {
        false
    }
}
