//! Sharding: which of the 64 logical shards a content belongs to, and which cluster owns a shard.
//!
//! Pure: no I/O and no clock. Hashing cannot fail; an invalid shard map is refused when it is
//! built.

mod hash;
mod logical_shard;
mod shard_map;

pub use hash::ContentHash;
pub use logical_shard::{LogicalShard, SHARDS};
pub use shard_map::{ClusterIndex, ShardMap, ShardMapError};
