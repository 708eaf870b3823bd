//! Views in the cache Redis, shared by all API nodes.
//!
//! An entry is set only over an older one, by one script, and never deleted because of a write:
//! there would be nothing left that a slow reader's old view could be compared with. The same
//! script numbers the change and tells all nodes.
//!
//! How it fails: every call is bounded; a fill that fails is forgotten, and the entry that should
//! have been replaced ends by its time at the latest.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::Script;
use tagfast_redis::{Redis, RedisError, random_name};
use tagfast_sharding::LogicalShard;

use crate::entry::{Entry, HEADER, NoEntry};

/// How long a call may take: a reader has a database to turn to.
const BUDGET: Duration = Duration::from_millis(50);
/// How long an entry is kept at all.
const HARD: Duration = Duration::from_secs(3600);

/// Sets a view only over an older one; numbers and tells what changed. A write tells also when
/// somebody else has set the same version already: that one may have found nothing to replace, and
/// told nobody.
const FILL: &str = "
local old = redis.call('GETRANGE', KEYS[1], 0, 39)
local answer = 'set'
local tell = ARGV[6] == 'write'
if #old == 40 then
  local before, now = string.sub(old, 1, 20), string.sub(ARGV[1], 1, 20)
  if before > now then return 'kept' end
  if before < now then tell = true
  elseif string.sub(old, 21, 40) >= string.sub(ARGV[1], 21, 40) then answer = 'kept' end
end
if answer == 'set' then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
if tell then
  redis.call('HSETNX', KEYS[2], 'gen', ARGV[4])
  local seq = redis.call('HINCRBY', KEYS[2], 'seq', 1)
  local gen = redis.call('HGET', KEYS[2], 'gen')
  redis.call('PUBLISH', ARGV[3], gen .. ' ' .. seq .. ' ' .. string.sub(ARGV[1], 1, 20) .. ' ' .. ARGV[5])
end
return answer";

/// Deletes an entry if it is still the one that was looked at.
const DELETE: &str = "
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0";

static FILL_SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(FILL));
static DELETE_SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(DELETE));

/// Why an entry is put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Somebody wrote it.
    Write,
    /// Somebody read it.
    Read,
}

/// Views in Redis.
pub(crate) struct Views {
    pub(crate) redis: Arc<Redis>,
    /// Names the numbers of messages in a Redis that has none; with a count, since one that was
    /// emptied twice must not look as if its numbers went on.
    generation: String,
    calls: AtomicU64,
}

/// The channel of a stripe's changes.
pub(crate) fn channel(shard: LogicalShard) -> String {
    format!("tf:i:{:02}", shard.number())
}

/// The key of the numbers of a stripe's messages.
pub(crate) fn numbers(shard: LogicalShard) -> String {
    format!("tf:q:{:02}", shard.number())
}

fn view_key(key: &[u8], shard: LogicalShard) -> Vec<u8> {
    let mut bytes = format!("tf:v:{:02}:", shard.number()).into_bytes();
    // Neither tenants nor types contain a slash.
    bytes.extend(key.iter().map(|byte| if *byte == 0 { b'/' } else { *byte }));
    bytes
}

impl Views {
    pub(crate) fn new(redis: Arc<Redis>) -> Self {
        // Without random numbers the clock must do: only that it is another one than before
        // matters.
        let generation = random_name().unwrap_or_else(|_| {
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default();
            format!("{:x}", now.as_nanos())
        });
        Self { redis, generation, calls: AtomicU64::new(0) }
    }

    /// The entry of a content. Not one that cannot be read: that is deleted when it was damaged,
    /// and left to those who can read it when it is of another program.
    pub(crate) async fn get(
        &self,
        key: &[u8],
        shard: LogicalShard,
    ) -> Result<Option<Entry>, RedisError> {
        let at = view_key(key, shard);
        let asked = at.clone();
        let found: Option<Vec<u8>> = self
            .redis
            .call(BUDGET, async move |mut connection| {
                redis::cmd("GET").arg(asked).query_async(&mut connection).await
            })
            .await?;
        let Some(bytes) = found else { return Ok(None) };
        match Entry::decode(&bytes) {
            Ok(entry) => Ok(Some(entry)),
            Err(NoEntry::UnknownFormat) => {
                metrics::counter!("tagfast_cache_unreadable_total", "reason" => "unknown_format")
                    .increment(1);
                Ok(None)
            }
            Err(NoEntry::Corrupted) => {
                metrics::counter!("tagfast_cache_unreadable_total", "reason" => "corrupted")
                    .increment(1);
                tracing::warn!(key = %String::from_utf8_lossy(&at), "a corrupted cache entry is deleted");
                self.delete_if(at, bytes).await?;
                Ok(None)
            }
        }
    }

    /// Puts an entry in unless a newer one is there.
    pub(crate) async fn fill(
        &self,
        key: &[u8],
        shard: LogicalShard,
        entry: &Entry,
        origin: Origin,
    ) -> Result<(), RedisError> {
        let mut call = FILL_SCRIPT.key(view_key(key, shard));
        call.key(numbers(shard))
            .arg(entry.encode())
            .arg(HARD.as_millis() as u64)
            .arg(channel(shard));
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        call.arg(format!("{}-{number:x}", self.generation)).arg(key).arg(match origin {
            Origin::Write => "write",
            Origin::Read => "read",
        });
        let filled: String = self
            .redis
            .call(BUDGET, async move |mut connection| call.invoke_async(&mut connection).await)
            .await?;
        let result = if filled == "set" { "set" } else { "kept" };
        metrics::counter!("tagfast_cache_fills_total", "result" => result).increment(1);
        Ok(())
    }

    /// Deletes an entry that shows what was lost, if it is still the one that was seen.
    pub(crate) async fn delete_phantom(
        &self,
        key: &[u8],
        shard: LogicalShard,
        seen: &Entry,
    ) -> Result<(), RedisError> {
        let mut header = seen.encode();
        header.truncate(HEADER);
        self.delete_if(view_key(key, shard), header).await
    }

    async fn delete_if(&self, at: Vec<u8>, seen: Vec<u8>) -> Result<(), RedisError> {
        let mut call = DELETE_SCRIPT.key(at);
        call.arg(seen);
        self.redis
            .call(BUDGET, async move |mut connection| {
                call.invoke_async::<i64>(&mut connection).await
            })
            .await?;
        Ok(())
    }
}
