//! Answers requests from the leaderboards in the state Redis.
//!
//! The first request for a tenant reads the tenant's leaderboards; later requests read them again
//! at most once a second, and only if they changed. All requests that need them at the same time
//! share one read, which ends when the last of them leaves. Only the most used tags are read, so
//! memory is bounded; what they lack (rare tags, the list of all tags) is read from Redis by name.
//!
//! How it fails: while Redis cannot be reached, the last good leaderboards answer, marked stale and
//! with their age. Without last good leaderboards, the request fails as unavailable; so does the
//! list of all tags, which has no last good answer.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use redis::AsyncTypedCommands;
use redis::aio::MultiplexedConnection;
use tagfast_domain::{TagName, TenantId, UnixMillis};
use tagfast_popular::leaderboards::{LEADERBOARD_TAGS_MAX, TYPEAHEAD_TAGS_MAX};
use tagfast_popular::{
    Leaderboard, LeaderboardSnapshot, PopularError, PopularTags, RecountProgress, RecountReport,
    SnapshotBuilder, Suggestions, TagCount, TagPage, TagUse, Window,
};
use tagfast_redis::{Redis, keys};
use tagfast_resilience::task::{self, StopSignal};
use tagfast_resilience::{SharedError, SingleFlight};
use tokio::sync::Semaphore;

use super::error::LeaderboardError;
use super::merge_partition::merge_partition;
use super::publisher_health::NAMED_AGE_MS;

/// Minimum interval between reads of a tenant's leaderboards.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// How long an older state of Redis is not shown: its owners fill it again meanwhile. Longer only
/// when a clock was put back, which makes newer states look older.
const REFILL_TIME_MAX: Duration = Duration::from_secs(10);
/// How long after a request its leaderboards count for [`RedisLeaderboards::problem`].
const LATELY: Duration = Duration::from_secs(5);
/// How long Redis is ejected after a failure: no request waits for it meanwhile.
const EJECTION: Duration = Duration::from_secs(1);
/// Maximum number of tenants with cached leaderboards.
const TENANTS_MAX: usize = 1000;
/// Maximum memory of all cached leaderboards, in bytes. The newest ones stay even if larger.
const CACHE_BYTES_MAX: usize = 256 << 20;
/// Leaderboards that are read at once. More would take memory from requests.
const READS_MAX: usize = 2;
/// Displays that are read by one command: more would block Redis for too long.
const DISPLAYS_PER_COMMAND: usize = 1000;

/// The leaderboards of a tenant as last read.
#[derive(Clone)]
struct CachedLeaderboards {
    snapshot: Arc<LeaderboardSnapshot>,
    /// Time of their last change in Redis; `None` if Redis holds none.
    changed_at: Option<String>,
    as_of: UnixMillis,
    read_at: Instant,
    /// Since when Redis holds less than this; `None` if it does not.
    ahead_since: Option<Instant>,
}

#[derive(Default)]
struct SnapshotSlot {
    /// `None` until the first read.
    cached: Option<CachedLeaderboards>,
    /// Number of the last request, for eviction.
    last_request: u64,
}

#[derive(Default)]
struct SnapshotSlots {
    tenants: HashMap<TenantId, SnapshotSlot>,
    requests: u64,
    /// When Redis failed last; `None` if it never did.
    failed_at: Option<Instant>,
}

impl SnapshotSlots {
    /// Removes what was not requested for longest, but not `newest`, until the rest fits.
    fn evict_beyond(&mut self, tenants: usize, bytes: usize, newest: &TenantId) {
        let size = |slot: &SnapshotSlot| slot.cached.as_ref().map_or(0, |c| c.snapshot.bytes());
        let mut sum: usize = self.tenants.values().map(size).sum();
        while self.tenants.len() > tenants || sum > bytes {
            let others = self.tenants.iter().filter(|(tenant, _)| *tenant != newest);
            let oldest = others.min_by_key(|(_, slot)| slot.last_request);
            let Some((oldest, freed)) = oldest.map(|(t, slot)| (t.clone(), size(slot))) else {
                return;
            };
            self.tenants.remove(&oldest);
            sum -= freed;
        }
    }
}

/// The leaderboards of all processes, read from the state Redis.
pub struct RedisLeaderboards {
    reader: Arc<LeaderboardReader>,
    /// Reads of leaderboards: one for each tenant.
    reads: Arc<SingleFlight<TenantId, Result<CachedLeaderboards, SharedError>>>,
}

struct LeaderboardReader {
    redis: Arc<Redis>,
    partitions: u16,
    slots: Mutex<SnapshotSlots>,
    permits: Semaphore,
}

impl RedisLeaderboards {
    /// Creates an empty cache; sends no request. `partitions` is the number of the bus's
    /// partitions.
    pub fn new(redis: Arc<Redis>, partitions: u16) -> Arc<Self> {
        let (slots, permits) = (Mutex::default(), Semaphore::new(READS_MAX));
        let reader = Arc::new(LeaderboardReader { redis, partitions, slots, permits });
        Arc::new(Self { reader, reads: SingleFlight::new() })
    }

    /// Why the leaderboards that were read lately are old at `now` (Unix ms); `None` while they are
    /// not, or none were read.
    pub fn problem(&self, now: UnixMillis) -> Option<String> {
        let slots = self.reader.slots.lock();
        let cached = slots.tenants.values().filter_map(|slot| slot.cached.as_ref());
        let read_lately = cached.filter(|read| read.read_at.elapsed() < LATELY);
        let age_ms = now.saturating_sub(read_lately.map(|read| read.as_of).min()?);
        (age_ms > NAMED_AGE_MS).then(|| {
            format!(
                "the leaderboards are as of {} s ago: look at the processes with the role analytics",
                age_ms / 1000
            )
        })
    }

    /// Returns the tenant's leaderboards and whether they are stale.
    async fn get(&self, tenant: &TenantId) -> Result<(CachedLeaderboards, bool), PopularError> {
        let (known, ejected) = self.reader.look_up(tenant);
        match &known {
            Some(read) if read.read_at.elapsed() < REFRESH_INTERVAL => {
                return Ok((read.clone(), false));
            }
            Some(read) if ejected => return Ok((read.clone(), true)),
            None if ejected => {
                return Err(PopularError::unavailable("the state Redis does not answer"));
            }
            // Another request reads; the cached leaderboards are hardly older.
            Some(read) if self.reads.is_in_progress(tenant) => return Ok((read.clone(), false)),
            Some(_) | None => {}
        }
        let (reader, of_tenant) = (Arc::clone(&self.reader), tenant.clone());
        let read = move || async move { reader.refresh(&of_tenant).await };
        let shared = self.reads.run_while_wanted(tenant.clone(), read).await;
        match shared.map_err(SharedError::new).and_then(|shared| shared.value) {
            Ok(read) => Ok((read, false)),
            Err(error) => known.map(|read| (read, true)).ok_or_else(|| error.into()),
        }
    }
}

impl LeaderboardReader {
    /// Returns the cached leaderboards of a tenant, and whether Redis is ejected now.
    fn look_up(&self, tenant: &TenantId) -> (Option<CachedLeaderboards>, bool) {
        let mut slots = self.slots.lock();
        slots.requests += 1;
        let requests = slots.requests;
        let ejected = slots.failed_at.is_some_and(|at| at.elapsed() < EJECTION);
        let slot = slots.tenants.entry(tenant.clone()).or_default();
        slot.last_request = requests;
        let cached = slot.cached.clone();
        if slots.tenants.len() > TENANTS_MAX {
            slots.evict_beyond(TENANTS_MAX, usize::MAX, tenant);
        }
        (cached, ejected)
    }

    async fn refresh(&self, tenant: &TenantId) -> Result<CachedLeaderboards, SharedError> {
        let _permit = self.permits.acquire().await.map_err(SharedError::new)?;
        let known = self.slots.lock().tenants.get(tenant).and_then(|slot| slot.cached.clone());
        match self.read(tenant, known.as_ref()).await {
            Ok(read) => {
                let mut slots = self.slots.lock();
                if let Some(slot) = slots.tenants.get_mut(tenant) {
                    slot.cached = Some(read.clone());
                    slots.evict_beyond(TENANTS_MAX, CACHE_BYTES_MAX, tenant);
                }
                Ok(read)
            }
            Err(error) => Err(SharedError::new(self.failed(error))),
        }
    }

    /// Notes that Redis does not answer, so that no request waits for it for a while.
    fn failed(&self, error: LeaderboardError) -> LeaderboardError {
        self.redis.report_failure();
        self.slots.lock().failed_at = Some(Instant::now());
        error
    }

    async fn read(
        &self,
        tenant: &TenantId,
        known: Option<&CachedLeaderboards>,
    ) -> Result<CachedLeaderboards, LeaderboardError> {
        let read_at = Instant::now();
        let mut connection = self.redis.connection()?;
        // `as_of` is read before the leaderboards, which can only be newer than it claims.
        let as_of = self.merged_through(&mut connection, tenant).await?;
        let changed_at =
            AsyncTypedCommands::get(&mut connection, keys::leaderboard_version(tenant.as_str()))
                .await?;
        if let Some(known) = known {
            // A Redis that was emptied, or restored from an older copy, is filled again within
            // seconds. Until then what was read before answers, and gets older.
            let ahead_since = known.ahead_since.unwrap_or(read_at);
            if as_of < known.as_of && read_at.duration_since(ahead_since) < REFILL_TIME_MAX {
                let ahead_since = Some(ahead_since);
                return Ok(CachedLeaderboards { read_at, ahead_since, ..known.clone() });
            }
            if known.changed_at == changed_at && as_of >= known.as_of {
                return Ok(CachedLeaderboards {
                    as_of,
                    read_at,
                    ahead_since: None,
                    ..known.clone()
                });
            }
        }
        let mut pipe = redis::pipe();
        for window in Window::ALL {
            let max = match window {
                Window::All => TYPEAHEAD_TAGS_MAX,
                Window::Hour | Window::Day | Window::Week => LEADERBOARD_TAGS_MAX,
            };
            let key = keys::leaderboard(tenant.as_str(), window.as_str());
            // One more than are kept: whether there are more.
            pipe.cmd("ZREVRANGE").arg(key).arg(0).arg(max).arg("WITHSCORES");
        }
        let scores: Vec<Vec<(String, f64)>> = pipe.query_async(&mut connection).await?;
        let names: BTreeSet<String> = scores.iter().flatten().map(|(tag, _)| tag.clone()).collect();
        let names: Vec<String> = names.into_iter().collect();
        let displays = displays(&mut connection, tenant, &names).await?;
        let snapshot = task::blocking_while_wanted(move |stop| {
            build_snapshot(&names, &displays, &scores, stop)
        });
        let snapshot = Arc::new(snapshot.await?);
        Ok(CachedLeaderboards { snapshot, changed_at, as_of, read_at, ahead_since: None })
    }

    /// Every write committed before this time (Unix ms) is on the tenant's leaderboards.
    async fn merged_through(
        &self,
        connection: &mut MultiplexedConnection,
        tenant: &TenantId,
    ) -> Result<UnixMillis, LeaderboardError> {
        let partition = merge_partition(tenant, self.partitions).0.to_string();
        let through = AsyncTypedCommands::hget(connection, keys::MERGED_THROUGH, partition).await?;
        Ok(through.and_then(|at| at.parse().ok()).unwrap_or(0))
    }

    /// Reads counts over all time and displays by name, in the same order; `None` for a tag that no
    /// content carries.
    async fn counts_of(
        &self,
        tenant: &TenantId,
        names: &[String],
    ) -> Result<Vec<Option<TagCount>>, LeaderboardError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.redis.connection()?;
        let mut scores = redis::cmd("ZMSCORE");
        scores.arg(keys::leaderboard(tenant.as_str(), Window::All.as_str())).arg(names);
        let scores: Vec<Option<f64>> = scores.query_async(&mut connection).await?;
        let displays = displays(&mut connection, tenant, names).await?;
        let rows = names.iter().zip(scores).zip(displays);
        Ok(rows
            .map(|((name, score), display)| {
                let tag = TagName::from_canonical(name);
                let display = display.map_or_else(|| tag.shared(), Into::into);
                let count = score.unwrap_or(0.0) as u64;
                (count > 0).then_some(TagCount { tag, display, count })
            })
            .collect())
    }

    async fn list(
        &self,
        tenant: &TenantId,
        after: Option<&TagName>,
        limit: usize,
    ) -> Result<TagPage, LeaderboardError> {
        let mut connection = self.redis.connection()?;
        // Before the tags, which can only be newer than it claims.
        let as_of = self.merged_through(&mut connection, tenant).await?;
        let from = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
        let mut names = redis::cmd("ZRANGEBYLEX");
        names.arg(keys::tag_names(tenant.as_str())).arg(from).arg("+");
        names.arg("LIMIT").arg(0).arg(limit + 1);
        let mut names: Vec<String> = names.query_async(&mut connection).await?;
        let more = names.len() > limit;
        names.truncate(limit);
        let tags = self.counts_of(tenant, &names).await?.into_iter().flatten().collect();
        let next = names.last().filter(|_| more).map(|name| TagName::from_canonical(name));
        Ok(TagPage { tags, next, as_of })
    }
}

/// Reads the displays of tags in the same order; `None` for an unknown tag.
async fn displays(
    connection: &mut MultiplexedConnection,
    tenant: &TenantId,
    names: &[String],
) -> Result<Vec<Option<String>>, LeaderboardError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipe = redis::pipe();
    for names in names.chunks(DISPLAYS_PER_COMMAND) {
        pipe.cmd("HMGET").arg(keys::display_names(tenant.as_str())).arg(names);
    }
    let found: Vec<Vec<Option<String>>> = pipe.query_async(connection).await?;
    Ok(found.into_iter().flatten().collect())
}

/// Ranks what was read; `names` are the tags of all windows. Incomplete after the stop signal.
fn build_snapshot(
    names: &[String],
    displays: &[Option<String>],
    scores: &[Vec<(String, f64)>],
    stop: &StopSignal,
) -> LeaderboardSnapshot {
    let mut counts = vec![[0; 4]; names.len()];
    for (window, scores) in scores.iter().enumerate().take(Window::ALL.len()) {
        for (tag, score) in scores {
            if let Ok(at) = names.binary_search(tag) {
                counts[at][window] = *score as u64;
            }
        }
    }
    let mut builder = SnapshotBuilder::default();
    for ((name, display), counts) in names.iter().zip(displays).zip(counts) {
        if stop.is_cancelled() {
            break;
        }
        builder.add(name, display.as_deref(), counts);
    }
    builder.finish()
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
        typed: &str,
        limit: usize,
    ) -> Result<Suggestions, PopularError> {
        let (read, stale) = self.get(tenant).await?;
        let approximate = read.snapshot.is_approximate();
        let tags = read.snapshot.suggest(typed, limit).await?;
        Ok(Suggestions { tags, approximate, as_of: read.as_of, stale })
    }

    async fn list(
        &self,
        tenant: &TenantId,
        after: Option<&TagName>,
        limit: usize,
    ) -> Result<TagPage, PopularError> {
        let (_, ejected) = self.reader.look_up(tenant);
        if ejected {
            return Err(PopularError::unavailable("the state Redis does not answer"));
        }
        let page = self.reader.list(tenant, after, limit).await;
        page.map_err(|error| PopularError::unavailable(self.reader.failed(error)))
    }

    async fn count(&self, tenant: &TenantId, tag: &TagName) -> Result<TagUse, PopularError> {
        let (read, stale) = self.get(tenant).await?;
        let mut found = read.snapshot.count(tag).cloned();
        if found.is_none() && read.snapshot.is_approximate() && !stale {
            let counts = self.reader.counts_of(tenant, &[tag.as_str().to_owned()]).await;
            let counts =
                counts.map_err(|error| PopularError::unavailable(self.reader.failed(error)))?;
            found = counts.into_iter().flatten().next();
        }
        // What was read by name is not older than the leaderboards.
        Ok(TagUse { tag: found, as_of: read.as_of, stale })
    }

    async fn displays(
        &self,
        tenant: &TenantId,
        tags: &[TagName],
    ) -> Result<Vec<Arc<str>>, PopularError> {
        let (read, stale) = self.get(tenant).await?;
        let known = |tag: &TagName| read.snapshot.count(tag).map(|t| Arc::clone(&t.display));
        let mut shown: HashMap<&TagName, Arc<str>> =
            tags.iter().filter_map(|tag| Some((tag, known(tag)?))).collect();
        let rare: Vec<&TagName> = tags.iter().filter(|tag| !shown.contains_key(tag)).collect();
        if read.snapshot.is_approximate() && !stale && !rare.is_empty() {
            let names: Vec<String> = rare.iter().map(|tag| tag.as_str().to_owned()).collect();
            let found = self.reader.counts_of(tenant, &names).await;
            let found =
                found.map_err(|error| PopularError::unavailable(self.reader.failed(error)))?;
            let found = rare.into_iter().zip(found);
            shown.extend(found.filter_map(|(tag, count)| Some((tag, count?.display))));
        }
        Ok(tags.iter().map(|tag| shown.get(tag).map_or_else(|| tag.shared(), Arc::clone)).collect())
    }

    async fn recount(
        &self,
        _: bool,
        _: &(dyn Fn(RecountProgress) + Send + Sync),
    ) -> Result<RecountReport, PopularError> {
        Err(PopularError::unavailable(
            "this process counts nothing; ask one with the role analytics",
        ))
    }
}
