//! Logical shards: which of the 64 a content belongs to, for ever.
//!
//! The hash is XXH3 (frozen since 0.8.0) with a fixed seed over `tenant 0 type 0 id`; golden
//! vectors pin it, since a changed hash would lose every content behind its shard. Pure: no I/O, no
//! clock. It cannot fail.

mod map;

pub use map::{ClusterIndex, ShardMap, ShardMapError};
use tagfast_domain::ContentKey;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Number of logical shards; fixed for ever.
pub const SHARDS: u8 = 64;

/// "tagfast1" in ASCII; part of the stored format.
const SEED: u64 = 0x7461_6766_6173_7431;

/// A logical shard, 0 to 63.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogicalShard(u8);

impl LogicalShard {
    /// The shard of a content.
    pub fn of(key: &ContentKey) -> Self {
        Self::of_hash(ContentHash::of(key))
    }

    /// The shard of a content whose hash is known already.
    pub fn of_hash(hash: ContentHash) -> Self {
        Self((hash.0 % u64::from(SHARDS)) as u8)
    }

    /// From its number, 0 to 63.
    pub fn from_number(number: u8) -> Option<Self> {
        (number < SHARDS).then_some(Self(number))
    }

    /// Its number, 0 to 63.
    pub fn number(self) -> u8 {
        self.0
    }

    /// All of them, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SHARDS).map(Self)
    }
}

/// 64 bits of a content's identity: names it in tokens and picks its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub u64);

impl ContentHash {
    /// Hashes a content.
    pub fn of(key: &ContentKey) -> Self {
        Self::of_bytes(&key.to_bytes())
    }

    /// Hashes the bytes of [`ContentKey::to_bytes`].
    pub fn of_bytes(key: &[u8]) -> Self {
        Self(xxh3_64_with_seed(key, SEED))
    }
}
