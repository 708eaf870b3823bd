//! The 64 logical shards. A content's shard never changes; the cluster that owns a shard may.

use tagfast_domain::ContentKey;

use crate::hash::ContentHash;

/// Number of logical shards. Part of the stored format: it must never change.
pub const SHARDS: u8 = 64;

/// A logical shard, numbered 0 to 63.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogicalShard(u8);

impl LogicalShard {
    /// The shard of a content.
    pub fn of(key: &ContentKey) -> Self {
        Self::of_hash(ContentHash::of(key))
    }

    /// The shard of a content whose hash the caller already has.
    pub fn of_hash(hash: ContentHash) -> Self {
        Self((hash.0 % u64::from(SHARDS)) as u8)
    }

    /// The shard with this number; `None` above 63.
    pub fn from_number(number: u8) -> Option<Self> {
        (number < SHARDS).then_some(Self(number))
    }

    /// Shard number, 0 to 63.
    pub fn number(self) -> u8 {
        self.0
    }

    /// All shards in ascending order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SHARDS).map(Self)
    }
}
