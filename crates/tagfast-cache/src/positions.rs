//! Where the last writes of each user stand, so that plain clients without tokens read their own
//! writes through any node.
//!
//! Kept in the state Redis for as long as a cache could lag, told before a write is answered, never
//! deleted on success. A Redis that was emptied, restored or replaced has forgotten positions:
//! `tf:gen` says when it began, and until then everything it could have held is over, positions are
//! unknown.
//!
//! How it fails: a position that cannot be stored is told with the write's answer; while positions
//! are unknown, plain reads go to the primary.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::Script;
use tagfast_domain::{EpochId, TenantId, UserId, Version};
use tagfast_redis::{Redis, RedisError};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::Position;

use crate::entry::digits;
use crate::need::Need;
use crate::questions::Questions;

/// How long a call may take.
pub(crate) const BUDGET: Duration = Duration::from_millis(50);
/// Contents of a user that are remembered one by one.
const CONTENTS: usize = 64;

/// Takes in contents and floors; each only grows. When the contents are too many, the floors stand
/// for them. ARGV: time to live, most contents, then five words for each write: content, version,
/// shard, epoch, "xid lsn".
const NOTE: &str = "
local key, most = KEYS[1], tonumber(ARGV[2])
for i = 3, #ARGV, 5 do
  local content, version, shard, epoch, at = ARGV[i], ARGV[i + 1], 'f' .. ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local known = redis.call('HGET', key, content)
  if not known then
    local n = redis.call('HINCRBY', key, 'n', 1)
    if n > most then
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

static NOTE_SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(NOTE));

/// A write to be remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) content: ContentHash,
    pub(crate) version: Version,
    pub(crate) position: Position,
}

/// The positions of all users.
pub(crate) struct Positions {
    questions: Arc<Questions>,
}

fn user_key(tenant: &TenantId, user: &UserId) -> String {
    format!("tf:p:{tenant}/{}", user.as_str())
}

pub(crate) fn content_field(content: ContentHash) -> String {
    format!("c{:016x}", content.0)
}

/// Of the shard's floor; the script puts the letter in front by itself.
pub(crate) fn floor_field(shard: LogicalShard) -> String {
    format!("f{:02}", shard.number())
}

pub(crate) fn position(text: &str) -> Option<Position> {
    let mut parts = text.split(' ');
    let epoch = u128::from_str_radix(parts.next()?, 16).ok()?;
    let (xid, lsn) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(Position { epoch: EpochId(epoch.to_be_bytes()), xid, lsn })
}

impl Positions {
    pub(crate) fn new(redis: Arc<Redis>, kept_for: Duration) -> Self {
        Self { questions: Questions::new(redis, kept_for) }
    }

    /// Where they are kept.
    pub(crate) fn redis(&self) -> &Arc<Redis> {
        self.questions.redis()
    }

    /// Remembers writes of a user. The caller's write is not answered before.
    pub(crate) async fn note(
        &self,
        tenant: &TenantId,
        user: &UserId,
        written: &[Written],
    ) -> Result<(), RedisError> {
        let mut call = NOTE_SCRIPT.key(user_key(tenant, user));
        call.key("tf:gen").arg(self.questions.kept_for.as_millis() as u64).arg(CONTENTS);
        for Written { content, version, position } in written {
            let shard = LogicalShard::of_hash(*content);
            let at = format!("{} {}", digits(position.xid), digits(position.lsn));
            call.arg(content_field(*content)).arg(digits(version.packed()));
            call.arg(format!("{:02}", shard.number())).arg(position.epoch.to_string()).arg(at);
        }
        let generation: String = self
            .redis()
            .call(BUDGET, async move |mut connection| call.invoke_async(&mut connection).await)
            .await?;
        if generation.is_empty() {
            self.questions.renew();
        }
        Ok(())
    }

    /// What each content must show to this user; `None`: nobody knows.
    pub(crate) async fn needs(
        &self,
        tenant: &TenantId,
        user: &UserId,
        contents: &[ContentHash],
    ) -> Option<Vec<Need>> {
        self.questions.ask(user_key(tenant, user), contents).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_written() {
        let at = Position { epoch: EpochId([0xab; 16]), xid: 7, lsn: u64::MAX };
        let text = format!("{} {} {}", at.epoch, digits(at.xid), digits(at.lsn));
        // The script cuts at fixed places.
        assert_eq!(
            (text.len(), &text[33..53], &text[54..74]),
            (74, digits(7).as_str(), digits(u64::MAX).as_str())
        );
        assert_eq!(position(&text), Some(at));
        assert_eq!(position("x"), None);
    }
}
