//! Lua scripts of the publisher. Each checks the claim of the partition first (fencing) and changes
//! everything in one step. The order of windows is that of `Window::ALL`.

/// A script that changes nothing unless the caller still holds the claim of the partition.
macro_rules! fenced {
    ($script:literal) => {
        concat!(
            "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return redis.error_reply('FENCED another process owns it')
end",
            $script
        )
    };
}

/// Stores counts of a partition, marks the tags and their tenants as dirty.
pub(super) const PUSH_SCRIPT: &str = fenced!(
    "
local p = ARGV[2]
local windows = {'all', '1h', '24h', '7d'}
for i = 3, #ARGV, 7 do
  local tenant, tag, merge_partition = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  for w = 1, 4 do
    local key, value = 'tf:pc:' .. p .. ':' .. tenant .. ':' .. windows[w], ARGV[i + 2 + w]
    if value == '' then redis.call('HDEL', key, tag) else redis.call('HSET', key, tag, value) end
  end
  redis.call('SADD', 'tf:pd:' .. tenant, tag)
  redis.call('SADD', 'tf:pt:' .. merge_partition, tenant)
  redis.call('SADD', 'tf:pp:' .. p, tenant)
end
return 1"
);

/// Stores the time through which a partition is pushed or merged.
pub(super) const STAMP_SCRIPT: &str = fenced!(
    "
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
return 1"
);

/// Takes the dirty tags of a tenant for a merge; the tags of an interrupted merge come first.
/// Returns 0 if there are none.
pub(super) const TAKE_DIRTY_SCRIPT: &str = fenced!(
    "
if redis.call('EXISTS', KEYS[3]) == 1 then return 1 end
if redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('RENAME', KEYS[2], KEYS[3])
  return 1
end
redis.call('SREM', KEYS[4], ARGV[2])
return 0"
);

/// Stores merged counts and displays on the leaderboards of a tenant.
pub(super) const MERGE_SCRIPT: &str = fenced!(
    "
local tenant = ARGV[2]
local windows = {'all', '1h', '24h', '7d'}
for i = 3, #ARGV, 6 do
  local tag = ARGV[i]
  for w = 1, 4 do
    local key, sum = 'tf:pl:' .. tenant .. ':' .. windows[w], ARGV[i + w]
    if sum == '0' then redis.call('ZREM', key, tag) else redis.call('ZADD', key, sum, tag) end
  end
  if ARGV[i + 1] == '0' then redis.call('HDEL', 'tf:pn:' .. tenant, tag)
  else redis.call('HSET', 'tf:pn:' .. tenant, tag, ARGV[i + 5]) end
  redis.call('SREM', 'tf:pm:' .. tenant, tag)
end
local now = redis.call('TIME')
redis.call('SET', 'tf:pv:' .. tenant, now[1] .. '.' .. now[2])
return 1"
);
