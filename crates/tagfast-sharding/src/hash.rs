//! The hash of a content's identity: it names the content in tokens and picks its shard.
//!
//! XXH3 (frozen since its version 0.8.0) with a fixed seed over `tenant 0 type 0 id`. Golden
//! vectors pin it: a different hash would move every content to a shard where nothing finds it.

use tagfast_domain::ContentKey;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Seed of the hash: "tagfast1" in ASCII. Part of the stored format.
const HASH_SEED: u64 = 0x7461_6766_6173_7431;

/// 64-bit hash of a content's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub u64);

impl ContentHash {
    /// Hashes a content's key.
    pub fn of(key: &ContentKey) -> Self {
        Self::of_bytes(&key.to_bytes())
    }

    /// Hashes a key that is already encoded by [`ContentKey::to_bytes`].
    pub fn of_bytes(key: &[u8]) -> Self {
        Self(xxh3_64_with_seed(key, HASH_SEED))
    }
}
