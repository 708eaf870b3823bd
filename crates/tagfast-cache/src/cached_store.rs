//! The cached store: its layers, its options, and what reads and writes share. The reads are in
//! `read_path.rs`, the writes in `write_path.rs`.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use metrics::Counter;
use tagfast_domain::{Epoch, EpochId};
use tagfast_redis::Redis;
use tagfast_resilience::task::{BackgroundTask, StopSignal, TaskTracker};
use tagfast_resilience::{Clock, Criticality, SingleFlight, counter, gauge, jittered};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::{
    History, LocalWrites, Receipt, ReceiptReader, RequiredVersion, ScanPage, ScanRequest,
    ShardScanner, SharedStore, StoreError, Verdict, View,
};
use tokio::sync::Semaphore;

use crate::entry::Entry;
use crate::freshness::{Lineage, lineage};
use crate::invalidation::subscribe_invalidations;
use crate::local_cache::{FillLease, LocalCache};
use crate::metric::{AnsweredBy, FILLS, FillResult, L1_BYTES, READS};
use crate::redis_cache::{FillOrigin, RedisCache};
use crate::session_positions::SessionPositions;

/// Fills of Redis in flight beside the reads that caused them.
const FILLS_IN_FLIGHT_MAX: usize = 256;
/// Interval at which the size of the local cache is reported.
const SIZE_REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Sizes and times of the caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheOptions {
    /// Memory of the local cache (L1) in bytes; 0 disables it. Too high: the process runs out of
    /// memory; too low: hot views come from Redis.
    pub l1_bytes: u64,
    /// How old an entry that answers as fresh may be, +-20 %; one without tags half as old. Too
    /// high: readers without a token lag that long when an invalidation and a write-through were
    /// lost; too low: more reads reach the database.
    pub soft_ttl: Duration,
    /// Maximum age of an entry that answers while the store cannot; zero disables stale answers.
    pub stale_if_error: Duration,
    /// How long a read waits for the store before a stale entry answers instead.
    pub stale_after: Duration,
    /// How long the last writes of a user are remembered, in whole seconds. Must be longer than
    /// any cache entry can lag.
    pub positions_ttl: Duration,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            l1_bytes: 64 << 20,
            soft_ttl: Duration::from_secs(60),
            stale_if_error: Duration::from_secs(3600),
            stale_after: Duration::from_millis(400),
            // Entries that answer as fresh are up to 72 s old.
            positions_ttl: Duration::from_secs(75),
        }
    }
}

/// What a cached store is built from.
pub struct CacheDependencies {
    /// The store behind the caches.
    pub store: SharedStore,
    /// The epochs of that store.
    pub history: Arc<dyn History>,
    /// The cache Redis. With `None` only the local cache keeps views, and writes of other nodes
    /// become visible when its entries expire.
    pub views: Option<Arc<Redis>>,
    /// The state Redis. With `None` a client without a token reads its own writes only through the
    /// node that made them.
    pub positions: Option<Arc<Redis>>,
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
}

/// State of the caches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CacheStatus {
    /// Size of the local cache in bytes, approximate.
    pub l1_bytes: u64,
    /// Views in the local cache.
    pub l1_entries: usize,
    /// Whether the local cache may answer: it exists and is in sync with invalidations.
    pub l1_in_sync: bool,
    /// Degraded features: (feature, reason).
    pub degraded: Vec<(&'static str, String)>,
}

/// What concurrent reads may share one read of the store for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LoadKey {
    pub(crate) key: Arc<[u8]>,
    pub(crate) kind: LoadKind,
    pub(crate) criticality: Criticality,
}

/// What a read requests from the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum LoadKind {
    /// Any state, from the nearest node.
    Any,
    /// A state that covers a token or the user's session positions.
    Covering,
    /// The newest state, because what must be covered is unknown.
    Newest,
}

/// A view of the store, or of the local cache.
pub(crate) struct Loaded {
    pub(crate) view: View,
    /// It was read while a repair was open.
    pub(crate) may_lack_repair: bool,
}

/// Result of a read of the store, as all its callers share it.
pub(crate) type LoadResult = Result<Arc<Loaded>, Arc<StoreError>>;

/// Counters of reads by who answered, resolved once because every view counts.
pub(crate) struct AnswerCounters {
    pub(crate) l1: Counter,
    pub(crate) redis: Counter,
    pub(crate) store: Counter,
    pub(crate) stale: Counter,
}

impl AnswerCounters {
    fn new() -> Self {
        let of = |answer| counter!(READS, "answer" => answer);
        Self {
            l1: of(AnsweredBy::L1),
            redis: of(AnsweredBy::Redis),
            store: of(AnsweredBy::Store),
            stale: of(AnsweredBy::Stale),
        }
    }
}

/// A store behind caches.
pub struct CachedStore {
    pub(crate) store: SharedStore,
    pub(crate) history: Arc<dyn History>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) options: CacheOptions,
    pub(crate) local_cache: Option<Arc<LocalCache>>,
    pub(crate) redis_cache: Option<Arc<RedisCache>>,
    pub(crate) positions: Option<SessionPositions>,
    pub(crate) local_writes: LocalWrites<RequiredVersion>,
    pub(crate) loads: Arc<SingleFlight<LoadKey, LoadResult>>,
    pub(crate) answers: AnswerCounters,
    /// Short tasks beside the requests that started them: fills and deletions in Redis.
    pub(crate) tasks: TaskTracker,
    fills: Arc<Semaphore>,
    background: Vec<BackgroundTask>,
    this: Weak<Self>,
}

impl CachedStore {
    /// Puts caches in front of a store. Needs a tokio runtime.
    pub fn start(dependencies: CacheDependencies, options: CacheOptions) -> Arc<Self> {
        let CacheDependencies { store, history, views, positions, clock } = dependencies;
        let local_cache = (options.l1_bytes > 0)
            .then(|| Arc::new(LocalCache::new(options.l1_bytes, views.is_some())));
        let redis_cache = views.map(|redis| Arc::new(RedisCache::new(redis)));
        let mut background = Vec::new();
        if let Some(local) = &local_cache {
            if let Some(redis) = &redis_cache {
                let (redis, local) = (Arc::clone(redis), Arc::clone(local));
                let clock = Arc::clone(&clock);
                background.push(BackgroundTask::spawn("cache-invalidation", move |stop| {
                    subscribe_invalidations(redis, local, clock, stop)
                }));
            }
            let local = Arc::clone(local);
            let report = move |stop| report_size(local, stop);
            background.push(BackgroundTask::spawn("cache-size", report));
        }
        Arc::new_cyclic(|this| Self {
            store,
            history,
            clock,
            local_cache,
            redis_cache,
            positions: positions.map(|redis| SessionPositions::new(redis, options.positions_ttl)),
            local_writes: LocalWrites::new(Some(options.positions_ttl)),
            loads: SingleFlight::new(),
            answers: AnswerCounters::new(),
            tasks: TaskTracker::new(),
            fills: Arc::new(Semaphore::new(FILLS_IN_FLIGHT_MAX)),
            background,
            options,
            this: Weak::clone(this),
        })
    }

    /// Ends the background tasks and waits for them, for loads and for fills in flight. Reads and
    /// writes still work; the local cache falls out of sync and no longer answers.
    pub async fn stop(&self) {
        for task in &self.background {
            // A panic was logged when the task was joined.
            let _ = task.stop().await;
        }
        self.loads.wait_until_idle().await;
        self.tasks.close();
        self.tasks.wait().await;
        if let Some(positions) = &self.positions {
            positions.stop().await;
        }
    }

    /// This store, for work that outlives its caller; `None` while it is being dropped.
    pub(crate) fn shared(&self) -> Option<Arc<Self>> {
        self.this.upgrade()
    }

    /// State of the caches.
    pub fn status(&self) -> CacheStatus {
        let local = self.local_cache.as_ref();
        let (l1_bytes, l1_entries) = local.map_or((0, 0), |local| local.size());
        let degraded = |feature, redis: Option<&Arc<Redis>>| {
            let reason = redis.and_then(|redis| redis.problem().or_else(|| redis.warning()));
            reason.map(|reason| (feature, reason))
        };
        let cache = degraded("cache", self.redis_cache.as_ref().map(|cache| &cache.redis));
        let positions = self.positions.as_ref().map(SessionPositions::redis);
        CacheStatus {
            l1_bytes,
            l1_entries,
            l1_in_sync: local.is_some_and(|local| local.is_in_sync()),
            degraded: cache.into_iter().chain(degraded("positions", positions)).collect(),
        }
    }

    /// The entry to cache for a view; `None` for a view that must not be cached: it is degraded or
    /// stale, or not certain to belong to the current history. That of a view that may lack what a
    /// repair brings back is never fresh: no one tells the caches what the repair writes. It makes
    /// older entries give way, and can answer as stale.
    pub(crate) fn entry(
        &self,
        view: &View,
        shard: LogicalShard,
        may_lack_repair: bool,
    ) -> Option<Arc<Entry>> {
        let complete = view.degraded.is_empty() && !view.stale;
        if !complete || lineage(&view.position, shard, &*self.history) != Lineage::Current {
            return None;
        }
        let soft_ttl = if may_lack_repair { Duration::ZERO } else { self.options.soft_ttl };
        let ttl = jittered(if view.tags.is_empty() { soft_ttl / 2 } else { soft_ttl });
        let now = self.clock.now_ms();
        // Not from now on: a replica may have been read that is some seconds behind.
        let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        let soft_until = view.as_of.min(now).saturating_add(ttl);
        Some(Arc::new(Entry::of(view, now, soft_until)))
    }

    /// Puts an entry into the local cache, for as long as it is fresh.
    pub(crate) fn fill_local(
        &self,
        local: &LocalCache,
        key: &[u8],
        hash: ContentHash,
        entry: Arc<Entry>,
        lease: FillLease,
    ) {
        if let Some(ttl) = entry.fresh_for(self.clock.now_ms()) {
            local.put(key, hash, entry, lease, ttl);
        }
    }

    /// Writes an entry that was read to Redis, in the background.
    pub(crate) fn fill_in_background(
        &self,
        key: &Arc<[u8]>,
        shard: LogicalShard,
        entry: &Arc<Entry>,
    ) {
        let Some(redis_cache) = self.redis_cache.clone() else { return };
        let Ok(permit) = Arc::clone(&self.fills).try_acquire_owned() else {
            counter!(FILLS, "result" => FillResult::Dropped).increment(1);
            return;
        };
        let (key, entry) = (Arc::clone(key), Arc::clone(entry));
        self.tasks.spawn(async move {
            if redis_cache.fill(&key, shard, &entry, FillOrigin::Read).await.is_err() {
                counter!(FILLS, "result" => FillResult::Failed).increment(1);
            }
            drop(permit);
        });
    }
}

/// Reports the size of the local cache until `stop`.
async fn report_size(local_cache: Arc<LocalCache>, stop: StopSignal) {
    let report = async {
        loop {
            gauge!(L1_BYTES).set(local_cache.size().0 as f64);
            tokio::time::sleep(SIZE_REPORT_INTERVAL).await;
        }
    };
    let _: Option<()> = stop.run_until_cancelled(report).await;
}

#[async_trait]
impl ShardScanner for CachedStore {
    async fn scan(&self, request: ScanRequest<'_>) -> Result<ScanPage, StoreError> {
        self.store.scan(request).await
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        self.store.epoch().await
    }
}

impl History for CachedStore {
    fn current(&self, shard: LogicalShard) -> Option<EpochId> {
        self.history.current(shard)
    }

    fn epoch_end(&self, shard: LogicalShard, epoch: EpochId) -> Option<u64> {
        self.history.epoch_end(shard, epoch)
    }

    fn is_repair_open(&self, shard: LogicalShard) -> bool {
        self.history.is_repair_open(shard)
    }
}

#[async_trait]
impl ReceiptReader for CachedStore {
    async fn verdict(&self, receipt: &Receipt) -> Result<Verdict, StoreError> {
        self.store.verdict(receipt).await
    }

    async fn verdicts(&self, receipts: &[Receipt]) -> Vec<Result<Verdict, StoreError>> {
        self.store.verdicts(receipts).await
    }
}
