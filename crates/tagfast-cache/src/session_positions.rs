//! Session positions: the last writes of each user, so that a client without a token reads its own
//! writes through any node.
//!
//! The positions are in the state Redis, written before the write is acknowledged, never deleted,
//! and kept for longer than any cache entry can lag. A Redis that was emptied, restored or replaced
//! may have lost positions: its generation (`tf:gen`) says since when it holds them, and until it
//! has held them for their TTL, positions count as unknown.
//!
//! How it fails: when a position cannot be stored, the write's answer says so; while positions are
//! unknown, reads without a token go to the primary.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::Script;
use tagfast_domain::{TenantId, UserId, Version};
use tagfast_redis::{Redis, RedisError, keys};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::Position;

use crate::entry::digits;
use crate::freshness::FreshnessRequirement;
use crate::position_batcher::{PositionBatcher, REDIS_TIMEOUT};
use crate::position_fields::{content_field, encode_progress};

/// Contents of a user whose versions are remembered one by one.
const CONTENTS_PER_USER_MAX: usize = 64;

/// Records writes. Versions and floors only grow. Above the maximum number of contents, their
/// versions are dropped and the floors stand for them. Returns the generation, or an empty text.
///
/// KEYS: positions of the user, generation. ARGV: TTL in ms, maximum number of contents, then five
/// for each write: content, version, shard, epoch, "xid lsn".
const RECORD_LUA: &str = "
local key, max = KEYS[1], tonumber(ARGV[2])
for i = 3, #ARGV, 5 do
  local content, version, shard, epoch, at = ARGV[i], ARGV[i + 1], 'f' .. ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local known = redis.call('HGET', key, content)
  if not known then
    local n = redis.call('HINCRBY', key, 'n', 1)
    if n > max then
      for _, field in ipairs(redis.call('HKEYS', key)) do
        if string.sub(field, 1, 1) == 'c' then redis.call('HDEL', key, field) end
      end
      redis.call('HSET', key, 'n', 1, 'full', 1)
    end
  end
  if not known or known < version then redis.call('HSET', key, content, version) end
  local floor = redis.call('HGET', key, shard)
  if floor and string.sub(floor, 1, 32) == epoch then
    local xid, lsn = string.sub(floor, 34, 53), string.sub(floor, 55, 74)
    if xid < string.sub(at, 1, 20) then xid = string.sub(at, 1, 20) end
    if lsn < string.sub(at, 22, 41) then lsn = string.sub(at, 22, 41) end
    at = xid .. ' ' .. lsn
  end
  redis.call('HSET', key, shard, epoch .. ' ' .. at)
end
redis.call('PEXPIRE', key, ARGV[1])
return redis.call('GET', KEYS[2]) or ''";

static RECORD_SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(RECORD_LUA));

/// A write of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PositionRecord {
    pub(crate) content: ContentHash,
    pub(crate) version: Version,
    pub(crate) position: Position,
}

/// The session positions of all users.
pub(crate) struct SessionPositions {
    batcher: Arc<PositionBatcher>,
}

impl SessionPositions {
    /// Keeps each position for `ttl`.
    pub(crate) fn new(redis: Arc<Redis>, ttl: Duration) -> Self {
        Self { batcher: PositionBatcher::new(redis, ttl) }
    }

    /// The state Redis.
    pub(crate) fn redis(&self) -> &Arc<Redis> {
        self.batcher.redis()
    }

    /// Waits until no lookup is in flight. Later lookups still work.
    pub(crate) async fn stop(&self) {
        self.batcher.stop().await;
    }

    /// Records writes of a user. The caller must not acknowledge them before this returns.
    ///
    /// # Errors
    /// Any [`RedisError`]: the positions may not be stored.
    pub(crate) async fn record(
        &self,
        tenant: &TenantId,
        user: &UserId,
        writes: &[PositionRecord],
    ) -> Result<(), RedisError> {
        let mut call = RECORD_SCRIPT.key(keys::positions(tenant.as_str(), user.as_str()));
        call.key(keys::GENERATION)
            .arg(self.batcher.ttl.as_millis() as u64)
            .arg(CONTENTS_PER_USER_MAX);
        for PositionRecord { content, version, position } in writes {
            let shard = LogicalShard::of_hash(*content);
            call.arg(content_field(*content))
                .arg(digits(version.packed()))
                .arg(format!("{:02}", shard.number()))
                .arg(position.epoch.to_string())
                .arg(encode_progress(position));
        }
        let generation: String = self
            .redis()
            .call(REDIS_TIMEOUT, async move |mut connection| {
                call.invoke_async(&mut connection).await
            })
            .await?;
        if generation.is_empty() {
            self.batcher.renew_generation();
        }
        Ok(())
    }

    /// What each content must show to this user; `None` while positions are unknown.
    pub(crate) async fn requirements(
        &self,
        tenant: &TenantId,
        user: &UserId,
        contents: &[ContentHash],
    ) -> Option<Vec<FreshnessRequirement>> {
        let key = keys::positions(tenant.as_str(), user.as_str());
        self.batcher.lookup(key, contents).await.ok().flatten()
    }
}
