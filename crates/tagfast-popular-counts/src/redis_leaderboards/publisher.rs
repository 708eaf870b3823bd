//! Pushes the counts of this process's partitions to Redis, and merges the leaderboards of the
//! tenants that belong to these partitions.
//!
//! How it fails: while Redis cannot be reached or refuses writes, pending pushes are kept and the
//! leaderboards keep their age. A crash between two steps repeats the step: counts are absolute. If
//! another process replaced a claim, or Redis lost it, this process claims the partition again and
//! pushes all of its counts, as long as the consumer group assigns the partition to it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use redis::AsyncTypedCommands;
use redis::aio::MultiplexedConnection;
use tagfast_domain::{TenantId, UnixMillis};
use tagfast_events::Partition;
use tagfast_popular::Window;
use tagfast_redis::{Redis, keys, random_name};
use tagfast_resilience::task::{self, BackgroundTask, StopSignal};
use tagfast_resilience::{OutageLog, gauge};
use tokio::time::MissedTickBehavior;

use super::error::LeaderboardError;
use super::merge_partition::merge_partition;
use super::publisher_health::PublisherHealth;
use super::scripts::{MERGE_SCRIPT, PUSH_SCRIPT, STAMP_SCRIPT, TAKE_DIRTY_SCRIPT};
use crate::counts::PopularCounts;
use crate::metrics::LEADERBOARDS_UP;
use crate::owned_partitions::{OwnedPartitions, PendingPush};
use crate::partition_file::{First, TagCounts};

/// Interval between pushes.
const PUSH_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of tags per script call: more would block Redis for too long.
const PUSH_BATCH_MAX: usize = 100;
/// Maximum number of tags merged per script call.
const MERGE_BATCH_MAX: usize = 200;

/// Keeps the leaderboards in the state Redis up to date with the counts of this process. Dropping
/// it ends the publishing.
pub struct LeaderboardPublisher {
    task: BackgroundTask,
    health: Arc<PublisherHealth>,
}

struct Publisher {
    counts: Arc<PopularCounts>,
    redis: Arc<Redis>,
    /// Number of the bus's partitions.
    partitions: u16,
    /// Identity of the Redis that holds the claims; `None` before the first round.
    generation: Option<String>,
    outage: OutageLog,
    health: Arc<PublisherHealth>,
}

impl LeaderboardPublisher {
    /// Starts to publish `counts`, which must be opened with [`PopularCounts::open_shared`].
    /// `partitions` is the number of the bus's partitions.
    pub fn spawn(counts: Arc<PopularCounts>, redis: Arc<Redis>, partitions: u16) -> Self {
        let outage = OutageLog::new("writing the leaderboards");
        let health = Arc::new(PublisherHealth::new());
        let mut publisher = Publisher {
            counts,
            redis,
            partitions,
            generation: None,
            outage,
            health: Arc::clone(&health),
        };
        let task = BackgroundTask::spawn("leaderboards", async move |stop: StopSignal| {
            let mut due = tokio::time::interval(PUSH_INTERVAL);
            due.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    _ = due.tick() => {}
                }
                publisher.round().await;
            }
        });
        Self { task, health }
    }

    /// Why the leaderboards are not up to date with the counts of all processes; `None` while they
    /// are.
    pub fn problem(&self) -> Option<String> {
        self.health.problem()
    }

    /// Ends the publishing and waits for its task.
    pub async fn stop(&self) {
        // The task logs its own panic.
        let _ = self.task.stop().await;
    }
}

impl Publisher {
    async fn round(&mut self) {
        match self.publish().await {
            Ok(()) => {
                gauge!(LEADERBOARDS_UP).set(1.0);
                self.health.published();
                self.outage.recovered();
            }
            Err(error) => {
                gauge!(LEADERBOARDS_UP).set(0.0);
                self.health.failed(&error);
                self.redis.report_failure();
                self.outage.failed(&error);
            }
        }
    }

    async fn publish(&mut self) -> Result<(), LeaderboardError> {
        let counts = Arc::clone(&self.counts);
        let Some(owned) = &counts.owned else { return Ok(()) };
        let generation = self.redis.generation().await?;
        if self.generation.as_ref() != Some(&generation) {
            owned.unclaim_all();
            self.generation = Some(generation);
        }
        let mut connection = self.redis.connection()?;
        let pushes = owned.take_pushes();
        for (n, push) in pushes.iter().enumerate() {
            match self.push(&mut connection, owned, push).await {
                Ok(()) => {}
                Err(LeaderboardError::Fenced) => {
                    tracing::warn!(
                        partition = push.partition.0,
                        "another process claimed a partition of the counts"
                    );
                    owned.unclaim(push.partition);
                }
                Err(error) => {
                    pushes[n..].iter().for_each(|push| owned.requeue_push(push));
                    return Err(error);
                }
            }
        }
        let mut oldest = None;
        for partition in owned.partitions() {
            let Some(claim) = owned.claim(partition) else { continue };
            match self.merge(&mut connection, partition, &claim).await {
                Ok(found) => oldest = Some(found),
                Err(LeaderboardError::Fenced) => owned.unclaim(partition),
                Err(error) => return Err(error),
            }
        }
        self.health.note_oldest(oldest, counts.clock.now_ms());
        owned.published(&pushes);
        Ok(())
    }

    async fn push(
        &self,
        connection: &mut MultiplexedConnection,
        owned: &OwnedPartitions,
        push: &PendingPush,
    ) -> Result<(), LeaderboardError> {
        let partition = push.partition;
        let owner = keys::partition_claim(partition.0);
        let claim = match &push.claim {
            Some(claim) => claim.clone(),
            None => {
                let claim = random_name()?;
                AsyncTypedCommands::set(connection, &owner, &claim).await?;
                owned.claimed(partition, &claim);
                claim
            }
        };
        let mut tags = push.tags.clone();
        if push.all_dirty {
            let (counts, at) = (Arc::clone(&self.counts), partition);
            tags.extend(
                read_counts(move || {
                    counts
                        .files()
                        .of_partition(at)
                        .map_or_else(|| Ok(Default::default()), |f| f.tags())
                })
                .await?,
            );
            // Includes the tags that Redis holds and that are no longer counted: their count is 0.
            let tenants: BTreeSet<String> =
                AsyncTypedCommands::smembers(connection, keys::partition_tenants(partition.0))
                    .await?
                    .into_iter()
                    .collect();
            for tenant in tenants {
                let key = keys::partition_counts(partition.0, &tenant, Window::All.as_str());
                let there: Vec<String> = AsyncTypedCommands::hkeys(connection, &key).await?;
                if let Ok(tenant) = tenant.parse::<TenantId>() {
                    tags.extend(there.into_iter().map(|tag| (tenant.clone(), tag)));
                }
            }
        }
        let (counts, at) = (Arc::clone(&self.counts), partition);
        let counted = read_counts(move || {
            counts
                .files()
                .of_partition(at)
                .map_or_else(|| Ok(Vec::new()), |file| file.counts(&tags))
        })
        .await?;
        for batch in counted.chunks(PUSH_BATCH_MAX) {
            let mut call = PUSH_SCRIPT.key(&owner);
            call.arg(&claim).arg(partition.0);
            for counts in batch {
                call.arg(counts.tenant.as_str())
                    .arg(&counts.tag)
                    .arg(merge_partition(&counts.tenant, self.partitions).0);
                for window in Window::ALL {
                    call.arg(encode_count(counts, window));
                }
            }
            call.invoke_async::<i64>(connection).await?;
        }
        stamp(connection, &owner, &claim, keys::PUSHED_THROUGH, partition, push.visible).await
    }

    /// Merges the leaderboards of the tenants whose merge partition is this one. Returns the
    /// partition with the oldest counts, as [`oldest_push`].
    async fn merge(
        &self,
        connection: &mut MultiplexedConnection,
        partition: Partition,
        claim: &str,
    ) -> Result<(Partition, Option<UnixMillis>), LeaderboardError> {
        // Read first: the leaderboards may lack counts that are pushed meanwhile.
        let pushed: HashMap<String, String> =
            AsyncTypedCommands::hgetall(connection, keys::PUSHED_THROUGH).await?;
        let owner = keys::partition_claim(partition.0);
        let dirty_tenants = keys::tenants_to_merge(partition.0);
        let tenants: BTreeSet<String> =
            AsyncTypedCommands::smembers(connection, &dirty_tenants).await?.into_iter().collect();
        for tenant in tenants {
            let (dirty, merging) = (keys::dirty_tags(&tenant), keys::merging_tags(&tenant));
            let mut call = TAKE_DIRTY_SCRIPT.key(&owner);
            call.key(&dirty).key(&merging).key(&dirty_tenants).arg(claim).arg(&tenant);
            if call.invoke_async::<i64>(connection).await? == 1 {
                let tags: Vec<String> =
                    AsyncTypedCommands::smembers(connection, &merging).await?.into_iter().collect();
                for batch in tags.chunks(MERGE_BATCH_MAX) {
                    self.merge_tags(connection, &owner, claim, &tenant, batch).await?;
                }
            }
        }
        let oldest = oldest_push(&pushed, self.partitions);
        // While a partition is not pushed yet, the leaderboards keep their age.
        if let (_, Some(at)) = oldest {
            stamp(connection, &owner, claim, keys::MERGED_THROUGH, partition, at).await?;
        }
        Ok(oldest)
    }

    async fn merge_tags(
        &self,
        connection: &mut MultiplexedConnection,
        owner: &str,
        claim: &str,
        tenant: &str,
        tags: &[String],
    ) -> Result<(), LeaderboardError> {
        let mut pipe = redis::pipe();
        for partition in 0..self.partitions {
            for window in Window::ALL {
                pipe.cmd("HMGET")
                    .arg(keys::partition_counts(partition, tenant, window.as_str()))
                    .arg(tags);
            }
        }
        let rows: Vec<Vec<Option<String>>> = pipe.query_async(connection).await?;
        let mut sums: BTreeMap<&str, ([u64; 4], First)> = BTreeMap::new();
        for (n, row) in rows.iter().enumerate() {
            for (tag, value) in tags.iter().zip(row) {
                let sum = sums.entry(tag).or_default();
                let Some((count, first)) = value.as_deref().and_then(decode_count) else {
                    continue;
                };
                sum.0[n % Window::ALL.len()] += count;
                if let Some(first) = first
                    && sum.1.as_ref().is_none_or(|known| first < *known)
                {
                    sum.1 = Some(first);
                }
            }
        }
        let mut call = MERGE_SCRIPT.key(owner);
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

/// The partition whose counts were pushed through the oldest time, and that time; `None` if one was
/// never pushed. Partitions that the bus does not have (their number was a different one) count
/// nothing.
fn oldest_push(
    pushed: &HashMap<String, String>,
    partitions: u16,
) -> (Partition, Option<UnixMillis>) {
    let through = |n: u16| pushed.get(&n.to_string()).and_then(|at| at.parse().ok());
    let all = (0..partitions).map(|n| (Partition(n), through(n)));
    all.min_by_key(|(_, at)| *at).unwrap_or((Partition(0), None))
}

async fn read_counts<T: Send + 'static>(
    work: impl FnOnce() -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, LeaderboardError> {
    Ok(task::blocking(work).await??)
}

async fn stamp(
    connection: &mut MultiplexedConnection,
    owner: &str,
    claim: &str,
    key: &str,
    partition: Partition,
    at: UnixMillis,
) -> Result<(), LeaderboardError> {
    let mut call = STAMP_SCRIPT.key(owner);
    call.key(key).arg(claim).arg(partition.0).arg(at).invoke_async::<i64>(connection).await?;
    Ok(())
}

/// Encodes `count`, for all time `count first_at spelling`; empty if the count is 0.
fn encode_count(counts: &TagCounts, window: Window) -> String {
    match (counts.windows[window.index()], window, &counts.first) {
        (0, ..) => String::new(),
        (count, Window::All, Some((at, display))) => format!("{count} {at} {display}"),
        (count, ..) => count.to_string(),
    }
}

/// Decodes an encoded count; `None` if it is malformed.
fn decode_count(value: &str) -> Option<(u64, First)> {
    let mut parts = value.splitn(3, ' ');
    let count = parts.next()?.parse().ok()?;
    let first = parts.next().and_then(|at| at.parse().ok()).zip(parts.next().map(str::to_owned));
    Some((count, first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_of_the_bus_and_no_other_decides_how_far_the_leaderboards_are() {
        let mut pushed: HashMap<String, String> =
            [("0", "70"), ("1", "50"), ("2", "60")].map(|(p, at)| (p.into(), at.into())).into();
        assert_eq!(oldest_push(&pushed, 3), (Partition(1), Some(50)));
        assert_eq!(oldest_push(&pushed, 4), (Partition(3), None), "never pushed");
        // Left by a time when there were more partitions.
        pushed.insert("3".to_owned(), "1".to_owned());
        assert_eq!(oldest_push(&pushed, 3), (Partition(1), Some(50)));
    }

    #[test]
    fn encoded_counts_are_decoded_unchanged() {
        let tenant: TenantId = "t".parse().unwrap();
        let first = Some((-5, "Two Words".to_owned()));
        let counts =
            TagCounts { tenant, tag: "x".to_owned(), windows: [7, 0, 3, 1], first: first.clone() };
        assert_eq!(decode_count(&encode_count(&counts, Window::All)), Some((7, first)));
        assert_eq!(decode_count(&encode_count(&counts, Window::Day)), Some((3, None)));
        assert_eq!(encode_count(&counts, Window::Hour), "");
        assert_eq!(decode_count("garbage"), None);
    }
}
