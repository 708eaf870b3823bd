//! Lua scripts of the publisher. Each checks the claim of the partition first (fencing) and changes
//! everything in one step. The order of windows is that of `Window::ALL`; [`keys::expand`] puts the
//! prefixes of the keys in.

use std::sync::LazyLock;

use redis::Script;
use tagfast_redis::keys;

/// Nothing is changed unless the caller still holds the claim of the partition.
const FENCE: &str = "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return redis.error_reply('FENCED another process owns it')
end";

fn fenced(text: &str) -> Script {
    Script::new(&keys::expand(&format!("{FENCE}{text}")))
}

/// Stores counts of a partition, marks the tags and their tenants as dirty.
pub(super) static PUSH_SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    fenced(
        "
local p = ARGV[2]
local windows = {'all', '1h', '24h', '7d'}
for i = 3, #ARGV, 7 do
  local tenant, tag, merge_partition = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  for w = 1, 4 do
    local key = '$partition_counts' .. p .. ':' .. tenant .. ':' .. windows[w]
    local value = ARGV[i + 2 + w]
    if value == '' then redis.call('HDEL', key, tag) else redis.call('HSET', key, tag, value) end
  end
  redis.call('SADD', '$dirty_tags' .. tenant, tag)
  redis.call('SADD', '$tenants_to_merge' .. merge_partition, tenant)
  redis.call('SADD', '$partition_tenants' .. p, tenant)
end
return 1",
    )
});

/// Stores the time through which a partition is pushed or merged.
pub(super) static STAMP_SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    fenced(
        "
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
return 1",
    )
});

/// Takes the dirty tags of a tenant for a merge, those of an interrupted merge included: the time
/// that is stamped after the merge covers all of them. Returns 0 if there are none.
pub(super) static TAKE_DIRTY_SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    fenced(
        "
if redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('SUNIONSTORE', KEYS[3], KEYS[3], KEYS[2])
  redis.call('DEL', KEYS[2])
end
if redis.call('EXISTS', KEYS[3]) == 1 then return 1 end
redis.call('SREM', KEYS[4], ARGV[2])
return 0",
    )
});

/// Stores merged counts and displays on the leaderboards of a tenant.
pub(super) static MERGE_SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    fenced(
        "
local tenant = ARGV[2]
local windows = {'all', '1h', '24h', '7d'}
for i = 3, #ARGV, 6 do
  local tag = ARGV[i]
  for w = 1, 4 do
    local key, sum = '$leaderboard' .. tenant .. ':' .. windows[w], ARGV[i + w]
    if sum == '0' then redis.call('ZREM', key, tag) else redis.call('ZADD', key, sum, tag) end
  end
  if ARGV[i + 1] == '0' then
    redis.call('HDEL', '$display_names' .. tenant, tag)
    redis.call('ZREM', '$tag_names' .. tenant, tag)
  else
    redis.call('HSET', '$display_names' .. tenant, tag, ARGV[i + 5])
    redis.call('ZADD', '$tag_names' .. tenant, 0, tag)
  end
  redis.call('SREM', '$merging_tags' .. tenant, tag)
end
local now = redis.call('TIME')
redis.call('SET', '$leaderboard_version' .. tenant, now[1] .. '.' .. now[2])
return 1",
    )
});
