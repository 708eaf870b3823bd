//! The port [`History`]: the epochs of each shard's cluster, from memory.
//!
//! How it fails: it does not; what this process does not know is `None`.

use tagfast_domain::EpochId;
use tagfast_sharding::LogicalShard;
use tagfast_store::History;

use crate::store::PostgresStore;

impl History for PostgresStore {
    fn current(&self, shard: LogicalShard) -> Option<EpochId> {
        self.cluster(shard).cluster.history_epoch()
    }

    fn epoch_end(&self, shard: LogicalShard, epoch: EpochId) -> Option<u64> {
        self.cluster(shard).cluster.epoch_end_of(epoch)
    }

    fn is_repair_open(&self, shard: LogicalShard) -> bool {
        self.cluster(shard).cluster.repair.is_open()
    }
}
