//! Pushes counts of the partitions of this process, and adds up the boards of the tenants that are
//! theirs.
//!
//! How it fails: while Redis cannot be reached or refuses, what is to be pushed stays to be pushed;
//! boards keep their age. A crash between two steps repeats the step: values are absolute. A claim
//! that somebody else replaced, or that Redis does not know any more, is made anew with everything,
//! as long as the group still gives the partition to this process.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncTypedCommands, Script};
use tagfast_domain::{TenantId, UnixMillis};
use tagfast_events::Partition;
use tagfast_redis::{Redis, random_name};
use tagfast_resilience::{Background, Stopped};

use super::{StateError, WINDOWS, merging};
use crate::PopularCounts;
use crate::assigned::{Assigned, Push};
use crate::owner::{First, TagCounts, number};

/// Between two pushes.
const EVERY: Duration = Duration::from_secs(1);
/// Tags of one script: more would hold Redis for too long.
const TAGS: usize = 100;
/// Tags that are added up at once.
const MERGED: usize = 200;

const PUSH: &str = "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('FENCED another process owns it') end
local p = ARGV[2]
local windows = {'all', '1h', '24h', '7d'}
for i = 3, #ARGV, 7 do
  local tenant, tag, merging = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  for w = 1, 4 do
    local key, value = 'tf:pc:' .. p .. ':' .. tenant .. ':' .. windows[w], ARGV[i + 2 + w]
    if value == '' then redis.call('HDEL', key, tag) else redis.call('HSET', key, tag, value) end
  end
  redis.call('SADD', 'tf:pd:' .. tenant, tag)
  redis.call('SADD', 'tf:pt:' .. merging, tenant)
  redis.call('SADD', 'tf:pp:' .. p, tenant)
end
return 1";

const STAMP: &str = "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('FENCED another process owns it') end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
return 1";

/// Moves the tags to be added up aside; those of a merge that broke off come first. 0: there is
/// nothing.
const ASIDE: &str = "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('FENCED another process owns it') end
if redis.call('EXISTS', KEYS[3]) == 1 then return 1 end
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('RENAME', KEYS[2], KEYS[3]) return 1 end
redis.call('SREM', KEYS[4], ARGV[2])
return 0";

const MERGE: &str = "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('FENCED another process owns it') end
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
return 1";

/// Keeps the boards of the state Redis up to date with what this process counts.
pub struct BoardWriter(Background);

struct Desk {
    counts: Arc<PopularCounts>,
    redis: Arc<Redis>,
    partitions: u16,
    generation: Option<String>,
    failing: bool,
}

impl BoardWriter {
    /// Starts to push what `counts` counts; they must have been opened with
    /// [`PopularCounts::open_shared`].
    pub fn spawn(counts: Arc<PopularCounts>, redis: Arc<Redis>, partitions: u16) -> Self {
        let mut desk = Desk { counts, redis, partitions, generation: None, failing: false };
        Self(Background::spawn(async move |mut stopped: Stopped| {
            let mut due = tokio::time::interval(EVERY);
            due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    biased;
                    _ = stopped.wait_for(|stop| *stop) => return,
                    _ = due.tick() => {}
                }
                desk.round().await;
            }
        }))
    }

    /// Ends.
    pub async fn stop(&self) {
        if let Err(error) = self.0.stop().await {
            tracing::error!(%error, "the writer of the boards ended badly");
        }
    }
}

impl Desk {
    async fn round(&mut self) {
        match self.work().await {
            Ok(()) => {
                metrics::gauge!("tagfast_popular_boards_up").set(1.0);
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the boards are written again");
                }
            }
            Err(error) => {
                metrics::gauge!("tagfast_popular_boards_up").set(0.0);
                self.redis.failed();
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, "the boards are not written for now");
                }
            }
        }
    }

    async fn work(&mut self) -> Result<(), StateError> {
        let counts = Arc::clone(&self.counts);
        let Some(assigned) = &counts.assigned else { return Ok(()) };
        let generation = self.redis.generation().await?;
        if self.generation.as_ref() != Some(&generation) {
            assigned.unclaim_all();
            self.generation = Some(generation);
        }
        let mut connection = self.redis.connection()?;
        let pushes = assigned.take();
        for (n, push) in pushes.iter().enumerate() {
            match self.push(&mut connection, assigned, push).await {
                Ok(()) => {}
                Err(StateError::Fenced) => {
                    tracing::warn!(
                        partition = push.partition.0,
                        "another process claimed a partition of the counts"
                    );
                    assigned.unclaimed(push.partition);
                }
                Err(error) => {
                    pushes[n..].iter().for_each(|push| assigned.give_back(push));
                    return Err(error);
                }
            }
        }
        for partition in assigned.partitions() {
            let Some(claim) = assigned.claim(partition) else { continue };
            match self.merge(&mut connection, partition, &claim).await {
                Ok(()) => {}
                Err(StateError::Fenced) => assigned.unclaimed(partition),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn push(
        &self,
        connection: &mut MultiplexedConnection,
        assigned: &Assigned,
        push: &Push,
    ) -> Result<(), StateError> {
        let partition = push.partition;
        let owner = format!("tf:po:{}", partition.0);
        let claim = match &push.claim {
            Some(claim) => claim.clone(),
            None => {
                let claim =
                    random_name().map_err(|error| StateError::Unavailable(error.to_string()))?;
                AsyncTypedCommands::set(connection, &owner, &claim).await?;
                assigned.claimed(partition, &claim);
                claim
            }
        };
        let mut tags = push.tags.clone();
        if push.everything {
            let (counts, at) = (Arc::clone(&self.counts), partition);
            tags.extend(
                read(move || {
                    counts
                        .files()
                        .of_partition(at)
                        .map_or_else(|| Ok(Default::default()), |f| f.tags())
                })
                .await?,
            );
            // What is there and not counted any more is taken away.
            let tenants: BTreeSet<String> =
                AsyncTypedCommands::smembers(connection, format!("tf:pp:{}", partition.0))
                    .await?
                    .into_iter()
                    .collect();
            for tenant in tenants {
                let key = format!("tf:pc:{}:{tenant}:all", partition.0);
                let there: Vec<String> = AsyncTypedCommands::hkeys(connection, &key).await?;
                if let Ok(tenant) = tenant.parse::<TenantId>() {
                    tags.extend(there.into_iter().map(|tag| (tenant.clone(), tag)));
                }
            }
        }
        let (counts, at) = (Arc::clone(&self.counts), partition);
        let counted = read(move || {
            counts
                .files()
                .of_partition(at)
                .map_or_else(|| Ok(Vec::new()), |file| file.counts(&tags))
        })
        .await?;
        let script = Script::new(PUSH);
        for piece in counted.chunks(TAGS) {
            let mut call = script.key(&owner);
            call.arg(&claim).arg(partition.0);
            for counts in piece {
                call.arg(counts.tenant.as_str())
                    .arg(&counts.tag)
                    .arg(merging(&counts.tenant, self.partitions).0);
                WINDOWS.iter().for_each(|window| {
                    call.arg(value(counts, number(*window)));
                });
            }
            call.invoke_async::<i64>(connection).await?;
        }
        stamp(connection, &owner, &claim, "tf:pa", partition, push.visible).await
    }

    /// Adds up the boards that the owner of a partition has to.
    async fn merge(
        &self,
        connection: &mut MultiplexedConnection,
        partition: Partition,
        claim: &str,
    ) -> Result<(), StateError> {
        // Read first: what is pushed meanwhile may miss on the boards.
        let pushed: HashMap<String, String> =
            AsyncTypedCommands::hgetall(connection, "tf:pa").await?;
        let owner = format!("tf:po:{}", partition.0);
        let waiting = format!("tf:pt:{}", partition.0);
        let tenants: BTreeSet<String> =
            AsyncTypedCommands::smembers(connection, &waiting).await?.into_iter().collect();
        for tenant in tenants {
            let (dirty, aside) = (format!("tf:pd:{tenant}"), format!("tf:pm:{tenant}"));
            let script = Script::new(ASIDE);
            let mut call = script.key(&owner);
            call.key(&dirty).key(&aside).key(&waiting).arg(claim).arg(&tenant);
            if call.invoke_async::<i64>(connection).await? == 1 {
                let tags: Vec<String> =
                    AsyncTypedCommands::smembers(connection, &aside).await?.into_iter().collect();
                for piece in tags.chunks(MERGED) {
                    self.add_up(connection, &owner, claim, &tenant, piece).await?;
                }
            }
        }
        let through: Vec<UnixMillis> = pushed.values().filter_map(|at| at.parse().ok()).collect();
        match through.iter().min() {
            Some(oldest) if through.len() == usize::from(self.partitions) => {
                stamp(connection, &owner, claim, "tf:pw", partition, *oldest).await
            }
            // Some partition has not been pushed yet: the boards keep the age they have.
            _ => Ok(()),
        }
    }

    async fn add_up(
        &self,
        connection: &mut MultiplexedConnection,
        owner: &str,
        claim: &str,
        tenant: &str,
        tags: &[String],
    ) -> Result<(), StateError> {
        let mut pipe = redis::pipe();
        for partition in 0..self.partitions {
            for window in WINDOWS {
                pipe.cmd("HMGET")
                    .arg(format!("tf:pc:{partition}:{tenant}:{}", window.as_str()))
                    .arg(tags);
            }
        }
        let rows: Vec<Vec<Option<String>>> = pipe.query_async(connection).await?;
        let mut sums: BTreeMap<&str, ([u64; 4], First)> = BTreeMap::new();
        for (n, row) in rows.iter().enumerate() {
            for (tag, value) in tags.iter().zip(row) {
                let sum = sums.entry(tag).or_default();
                let Some((count, first)) = value.as_deref().and_then(parsed) else { continue };
                sum.0[n % 4] += count;
                if let Some(first) = first
                    && sum.1.as_ref().is_none_or(|known| first < *known)
                {
                    sum.1 = Some(first);
                }
            }
        }
        let script = Script::new(MERGE);
        let mut call = script.key(owner);
        call.arg(claim).arg(tenant);
        for (tag, (counts, first)) in &sums {
            call.arg(*tag);
            counts.iter().for_each(|count| {
                call.arg(*count);
            });
            call.arg(first.as_ref().map_or(*tag, |(_, display)| display.as_str()));
        }
        call.invoke_async::<i64>(connection).await?;
        Ok(())
    }
}

async fn read<T: Send + 'static>(
    work: impl FnOnce() -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, StateError> {
    let failed =
        |error: String| StateError::Unavailable(format!("the counts cannot be read: {error}"));
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| failed(e.to_string()))?
        .map_err(|e| failed(e.to_string()))
}

async fn stamp(
    connection: &mut MultiplexedConnection,
    owner: &str,
    claim: &str,
    key: &str,
    partition: Partition,
    at: UnixMillis,
) -> Result<(), StateError> {
    let script = Script::new(STAMP);
    let mut call = script.key(owner);
    call.key(key).arg(claim).arg(partition.0).arg(at).invoke_async::<i64>(connection).await?;
    Ok(())
}

/// `count`, of all time `count first_at spelling`; nothing for none.
fn value(counts: &TagCounts, window: usize) -> String {
    match (counts.windows[window], window, &counts.first) {
        (0, ..) => String::new(),
        (count, 0, Some((at, display))) => format!("{count} {at} {display}"),
        (count, ..) => count.to_string(),
    }
}

fn parsed(value: &str) -> Option<(u64, First)> {
    let mut parts = value.splitn(3, ' ');
    let count = parts.next()?.parse().ok()?;
    let first = parts.next().and_then(|at| at.parse().ok()).zip(parts.next().map(str::to_owned));
    Some((count, first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_they_were() {
        let tenant: TenantId = "t".parse().unwrap();
        let first = Some((-5, "Two Words".to_owned()));
        let counts =
            TagCounts { tenant, tag: "x".to_owned(), windows: [7, 0, 3, 1], first: first.clone() };
        assert_eq!(parsed(&value(&counts, 0)), Some((7, first)));
        assert_eq!(parsed(&value(&counts, 2)), Some((3, None)));
        assert_eq!(value(&counts, 1), "");
        assert_eq!(parsed("garbage"), None);
    }
}
