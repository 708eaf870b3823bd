//! Answers requests from the leaderboards in the state Redis.
//!
//! The first request for a tenant reads the tenant's leaderboards; later requests read them again
//! at most once a second, and only if they changed.
//!
//! How it fails: while Redis cannot be reached, the last good leaderboards answer, marked stale and
//! with their age. Without last good leaderboards, the request fails as unavailable.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use redis::AsyncTypedCommands;
use tagfast_domain::{TagName, TenantId, UnixMillis};
use tagfast_popular::leaderboards::{LEADERBOARD_TAGS_MAX, TYPEAHEAD_TAGS_MAX};
use tagfast_popular::{
    Leaderboard, LeaderboardSnapshot, PopularError, PopularTags, RecountReport, Suggestions,
    TagCount, Window,
};
use tagfast_redis::{Redis, keys};
use tagfast_resilience::task;

use super::error::LeaderboardError;
use super::merge_partition::merge_partition;

/// Minimum interval between reads of a tenant's leaderboards.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// How long Redis is ejected after a failure: no request waits for it meanwhile.
const EJECTION: Duration = Duration::from_secs(1);
/// Maximum number of tenants with cached leaderboards.
const TENANTS_MAX: usize = 1000;

/// The leaderboards of a tenant as last read.
#[derive(Clone)]
struct CachedLeaderboards {
    snapshot: Arc<LeaderboardSnapshot>,
    /// Time of their last change in Redis; `None` if Redis holds none.
    changed_at: Option<String>,
    as_of: UnixMillis,
    read_at: Instant,
}

#[derive(Default)]
struct SnapshotSlot {
    /// `None` until the first read.
    cached: Option<CachedLeaderboards>,
    /// Number of the last request, for eviction.
    last_request: u64,
    /// Held by the request that reads; the others answer from the cache.
    reading: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct SnapshotSlots {
    tenants: HashMap<TenantId, SnapshotSlot>,
    requests: u64,
    /// When Redis failed last; `None` if it never did.
    failed_at: Option<Instant>,
}

/// The leaderboards of all processes, read from the state Redis.
pub struct RedisLeaderboards {
    redis: Arc<Redis>,
    partitions: u16,
    slots: Mutex<SnapshotSlots>,
}

impl RedisLeaderboards {
    /// Creates an empty cache; sends no request. `partitions` is the number of the bus's
    /// partitions.
    pub fn new(redis: Arc<Redis>, partitions: u16) -> Arc<Self> {
        Arc::new(Self { redis, partitions, slots: Mutex::default() })
    }

    /// Returns the cached leaderboards of a tenant, whether Redis is ejected now, and the lock of
    /// the request that reads.
    fn look_up(
        &self,
        tenant: &TenantId,
    ) -> (Option<CachedLeaderboards>, bool, Arc<tokio::sync::Mutex<()>>) {
        let mut slots = self.slots.lock();
        slots.requests += 1;
        let requests = slots.requests;
        if !slots.tenants.contains_key(tenant)
            && slots.tenants.len() >= TENANTS_MAX
            && let Some(oldest) =
                slots.tenants.iter().min_by_key(|(_, s)| s.last_request).map(|(t, _)| t.clone())
        {
            slots.tenants.remove(&oldest);
        }
        let ejected = slots.failed_at.is_some_and(|at| at.elapsed() < EJECTION);
        let slot = slots.tenants.entry(tenant.clone()).or_default();
        slot.last_request = requests;
        (slot.cached.clone(), ejected, Arc::clone(&slot.reading))
    }

    /// Returns the tenant's leaderboards and whether they are stale.
    async fn get(&self, tenant: &TenantId) -> Result<(CachedLeaderboards, bool), PopularError> {
        let (known, ejected, reading) = self.look_up(tenant);
        let fresh = |cached: &CachedLeaderboards| cached.read_at.elapsed() < REFRESH_INTERVAL;
        match &known {
            Some(read) if fresh(read) => return Ok((read.clone(), false)),
            Some(read) if ejected => return Ok((read.clone(), true)),
            None if ejected => {
                return Err(PopularError::unavailable("the state Redis does not answer"));
            }
            Some(_) | None => {}
        }
        let _reading = match (reading.try_lock(), &known) {
            (Ok(reading), _) => reading,
            // Another request reads; the cached leaderboards are hardly older.
            (Err(_), Some(read)) => return Ok((read.clone(), false)),
            (Err(_), None) => reading.lock().await,
        };
        // Another request may have read them meanwhile.
        let (known, ..) = self.look_up(tenant);
        if let Some(read) = known.as_ref().filter(|read| fresh(read)) {
            return Ok((read.clone(), false));
        }
        match self.read(tenant, known.as_ref()).await {
            Ok(read) => {
                if let Some(slot) = self.slots.lock().tenants.get_mut(tenant) {
                    slot.cached = Some(read.clone());
                }
                Ok((read, false))
            }
            Err(error) => {
                self.redis.report_failure();
                self.slots.lock().failed_at = Some(Instant::now());
                match known {
                    Some(read) => Ok((read, true)),
                    None => Err(PopularError::unavailable(error)),
                }
            }
        }
    }

    async fn read(
        &self,
        tenant: &TenantId,
        known: Option<&CachedLeaderboards>,
    ) -> Result<CachedLeaderboards, LeaderboardError> {
        let read_at = Instant::now();
        let mut connection = self.redis.connection()?;
        // `as_of` is read before the leaderboards, which can only be newer than it claims.
        let partition = merge_partition(tenant, self.partitions).0.to_string();
        let through =
            AsyncTypedCommands::hget(&mut connection, keys::MERGED_THROUGH, partition).await?;
        let changed_at =
            AsyncTypedCommands::get(&mut connection, keys::leaderboard_version(tenant.as_str()))
                .await?;
        // A Redis that was just emptied holds no time; `as_of` never goes back.
        let known_as_of = known.map_or(0, |read| read.as_of);
        let as_of = through.and_then(|at| at.parse().ok()).unwrap_or(0).max(known_as_of);
        if let Some(known) = known
            && (known.changed_at == changed_at || changed_at.is_none())
        {
            return Ok(CachedLeaderboards { as_of, read_at, ..known.clone() });
        }
        let mut pipe = redis::pipe();
        for window in Window::ALL {
            let max = match window {
                Window::All => TYPEAHEAD_TAGS_MAX,
                Window::Hour | Window::Day | Window::Week => LEADERBOARD_TAGS_MAX,
            };
            let key = keys::leaderboard(tenant.as_str(), window.as_str());
            pipe.cmd("ZREVRANGE").arg(key).arg(0).arg(max).arg("WITHSCORES");
        }
        pipe.cmd("HGETALL").arg(keys::display_names(tenant.as_str()));
        type Scores = Vec<(String, f64)>;
        let (all, hour, day, week, displays): (
            Scores,
            Scores,
            Scores,
            Scores,
            HashMap<String, String>,
        ) = pipe.query_async(&mut connection).await?;
        let ranked = task::blocking(move || {
            let mut counts: HashMap<String, [u64; 4]> = HashMap::new();
            for (n, scores) in [all, hour, day, week].into_iter().enumerate() {
                for (tag, score) in scores {
                    counts.entry(tag).or_default()[n] = score as u64;
                }
            }
            LeaderboardSnapshot::rank(counts.into_iter().map(|(tag, counts)| {
                let display = displays.get(&tag).cloned();
                (tag, display, counts)
            }))
        });
        let snapshot = Arc::new(ranked.await?);
        Ok(CachedLeaderboards { snapshot, changed_at, as_of, read_at })
    }
}

#[async_trait]
impl PopularTags for RedisLeaderboards {
    async fn popular(
        &self,
        tenant: &TenantId,
        window: Window,
        limit: usize,
    ) -> Result<Leaderboard, PopularError> {
        let (read, stale) = self.get(tenant).await?;
        let tags = read.snapshot.leaderboard(window, limit);
        Ok(Leaderboard { tags, as_of: read.as_of, stale })
    }

    async fn suggest(
        &self,
        tenant: &TenantId,
        prefix: &str,
        limit: usize,
    ) -> Result<Suggestions, PopularError> {
        let (read, stale) = self.get(tenant).await?;
        let tags = read.snapshot.suggest(prefix, limit);
        let approximate = read.snapshot.is_approximate();
        Ok(Suggestions { tags, approximate, as_of: read.as_of, stale })
    }

    async fn count(
        &self,
        tenant: &TenantId,
        tag: &TagName,
    ) -> Result<Option<TagCount>, PopularError> {
        Ok(self.get(tenant).await?.0.snapshot.count(tag).cloned())
    }

    async fn displays(
        &self,
        tenant: &TenantId,
        tags: &[TagName],
    ) -> Result<Vec<Arc<str>>, PopularError> {
        let (read, _) = self.get(tenant).await?;
        Ok(read.snapshot.displays(tags))
    }

    async fn recount(
        &self,
        _: bool,
        _: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<RecountReport, PopularError> {
        Err(PopularError::unavailable(
            "this process counts nothing; ask one with the role analytics",
        ))
    }
}
