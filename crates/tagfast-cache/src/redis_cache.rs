//! Views in the cache Redis, shared by all API nodes.
//!
//! A fill replaces only an older entry, decided by one script, and a write never deletes an entry:
//! the entry's version is what an old view from a slow reader is compared with. The same script
//! assigns the change the next sequence number of its stripe and publishes the invalidation.
//!
//! How it fails: every call has a timeout. A fill that fails is not retried; the entry that it
//! should have replaced expires at its TTL at the latest.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::Script;
use tagfast_redis::{Redis, RedisError, keys, random_name};
use tagfast_resilience::counter;
use tagfast_sharding::LogicalShard;

use crate::entry::{Entry, EntryDecodeError, HEADER_BYTES};
use crate::metric::{FILLS, FillResult, UNREADABLE, Unreadable};

/// Timeout of a call. Short, because a reader can turn to the database instead.
const REDIS_TIMEOUT: Duration = Duration::from_millis(50);
/// TTL of an entry in Redis, far longer than it answers as fresh: it may still answer as stale.
const REDIS_TTL: Duration = Duration::from_secs(3600);

/// Sets an entry unless the stored one is newer, and publishes an invalidation when the version
/// grew. A write publishes also when the same version is already stored: a reader may have filled
/// it into an empty key, which publishes nothing.
///
/// KEYS: entry, sequence of the stripe. ARGV: entry, TTL in ms, channel, name for a new generation,
/// content key, `write` or `read`.
const FILL_LUA: &str = "
local old = redis.call('GETRANGE', KEYS[1], 0, 39)
local result = 'set'
local publish = ARGV[6] == 'write'
if #old == 40 then
  local before, now = string.sub(old, 1, 20), string.sub(ARGV[1], 1, 20)
  if before > now then return 'kept' end
  if before < now then publish = true
  elseif string.sub(old, 21, 40) >= string.sub(ARGV[1], 21, 40) then result = 'kept' end
end
if result == 'set' then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
if publish then
  redis.call('HSETNX', KEYS[2], 'gen', ARGV[4])
  local seq = redis.call('HINCRBY', KEYS[2], 'seq', 1)
  local gen = redis.call('HGET', KEYS[2], 'gen')
  redis.call('PUBLISH', ARGV[3], gen .. ' ' .. seq .. ' ' .. string.sub(ARGV[1], 1, 20) .. ' ' .. ARGV[5])
end
return result";

/// Deletes an entry if it still begins with these bytes.
const DELETE_LUA: &str = "
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0";

static FILL_SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(FILL_LUA));
static DELETE_SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(DELETE_LUA));

/// What caused a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FillOrigin {
    /// A write: the entry is its result.
    Write,
    /// A read of the store.
    Read,
}

/// The views in Redis.
pub(crate) struct RedisCache {
    pub(crate) redis: Arc<Redis>,
    /// Prefix of the generations that this process assigns to sequences of an empty Redis.
    generation: String,
    /// Suffix of the next generation: a Redis that is emptied twice must get two.
    generations: AtomicU64,
}

impl RedisCache {
    pub(crate) fn new(redis: Arc<Redis>) -> Self {
        // Without random bytes the clock serves: the name only has to differ from earlier ones.
        let generation = random_name().unwrap_or_else(|_| {
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default();
            format!("{:x}", now.as_nanos())
        });
        Self { redis, generation, generations: AtomicU64::new(0) }
    }

    /// The entry of a content; `None` when there is none that can be decoded. A corrupted entry is
    /// deleted. An entry of an unknown format is left for the program version that wrote it.
    ///
    /// # Errors
    /// Any [`RedisError`].
    pub(crate) async fn get(
        &self,
        key: &[u8],
        shard: LogicalShard,
    ) -> Result<Option<Entry>, RedisError> {
        let redis_key = keys::view(shard.number(), key);
        let requested = redis_key.clone();
        let stored: Option<Vec<u8>> = self
            .redis
            .call(REDIS_TIMEOUT, async move |mut connection| {
                redis::cmd("GET").arg(requested).query_async(&mut connection).await
            })
            .await?;
        let Some(bytes) = stored else { return Ok(None) };
        match Entry::decode(&bytes) {
            Ok(entry) => Ok(Some(entry)),
            Err(EntryDecodeError::UnknownFormat) => {
                counter!(UNREADABLE, "reason" => Unreadable::UnknownFormat).increment(1);
                Ok(None)
            }
            Err(EntryDecodeError::Corrupted) => {
                counter!(UNREADABLE, "reason" => Unreadable::Corrupted).increment(1);
                let key = String::from_utf8_lossy(&redis_key);
                tracing::warn!(%key, "deleting a corrupted cache entry");
                self.delete_if(redis_key, bytes).await?;
                Ok(None)
            }
        }
    }

    /// Stores an entry unless a newer one is stored.
    ///
    /// # Errors
    /// Any [`RedisError`].
    pub(crate) async fn fill(
        &self,
        key: &[u8],
        shard: LogicalShard,
        entry: &Entry,
        origin: FillOrigin,
    ) -> Result<(), RedisError> {
        let mut call = FILL_SCRIPT.key(keys::view(shard.number(), key));
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        call.key(keys::sequence(shard.number()))
            .arg(entry.encode())
            .arg(REDIS_TTL.as_millis() as u64)
            .arg(keys::invalidation_channel(shard.number()))
            .arg(format!("{}-{generation:x}", self.generation))
            .arg(key)
            .arg(match origin {
                FillOrigin::Write => "write",
                FillOrigin::Read => "read",
            });
        let filled: String = self
            .redis
            .call(REDIS_TIMEOUT, async move |mut connection| {
                call.invoke_async(&mut connection).await
            })
            .await?;
        let result = if filled == "set" { FillResult::Set } else { FillResult::Kept };
        counter!(FILLS, "result" => result).increment(1);
        Ok(())
    }

    /// Deletes an entry that is not part of the current history, unless it was replaced meanwhile.
    ///
    /// # Errors
    /// Any [`RedisError`].
    pub(crate) async fn delete_diverged(
        &self,
        key: &[u8],
        shard: LogicalShard,
        diverged: &Entry,
    ) -> Result<(), RedisError> {
        let mut header = diverged.encode();
        header.truncate(HEADER_BYTES);
        self.delete_if(keys::view(shard.number(), key), header).await
    }

    async fn delete_if(&self, redis_key: Vec<u8>, prefix: Vec<u8>) -> Result<(), RedisError> {
        let mut call = DELETE_SCRIPT.key(redis_key);
        call.arg(prefix);
        self.redis
            .call(REDIS_TIMEOUT, async move |mut connection| {
                call.invoke_async::<i64>(&mut connection).await
            })
            .await?;
        Ok(())
    }
}
