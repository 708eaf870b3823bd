//! The decorated store: what is kept, and what a write does to it. Reads are in `read.rs`.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{join, join_all};
use tagfast_domain::{ContentKey, Epoch, TenantId, UserId};
use tagfast_redis::Redis;
use tagfast_resilience::{Clock, Flights};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::{
    Degraded, History, Receipt, ReceiptReader, ScanPage, ShardScanner, SharedStore, StoreError,
    TagWriter, Verdict, View, WriteAnswer, WriteRequest,
};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::ear;
use crate::entry::Entry;
use crate::level1::{Level1, spread};
use crate::need::{Standing, standing};
use crate::positions::{Positions, Written};
use crate::read::{Answers, FlightKey, Loaded};
use crate::recent::{AtLeast, Recent};
use crate::views::{Origin, Views};

/// Fills under way beside the reads that caused them.
const FILLS: usize = 256;
/// How often what L1 holds is shown.
const SHOWN: Duration = Duration::from_secs(5);

/// How much is kept and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheOptions {
    /// Memory of L1 in bytes; 0: none. Too high: the process is killed for it; too low: hot views
    /// come from Redis.
    pub l1_bytes: u64,
    /// How long an entry answers as good, 20 % up or down; negative ones half as long. Too high:
    /// readers without a token lag that long when a message and a write-through were lost; too
    /// low: more reads reach the database.
    pub soft_ttl: Duration,
    /// The oldest entry that answers when the store cannot; zero: none does.
    pub stale_if_error: Duration,
    /// How long the store may take while an old entry could answer instead.
    pub stale_after: Duration,
    /// How long the last writes of a user are remembered, at least as long as any cache may lag.
    /// Whole seconds.
    pub positions_for: Duration,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            l1_bytes: 64 << 20,
            soft_ttl: Duration::from_secs(60),
            stale_if_error: Duration::from_secs(3600),
            stale_after: Duration::from_millis(400),
            // Entries live up to 72 s, and one may be filled from a replica that is some seconds
            // behind.
            positions_for: Duration::from_secs(75),
        }
    }
}

/// What a cache is made of.
pub struct CacheParts {
    /// The store behind it.
    pub store: SharedStore,
    /// What that store knows of its past.
    pub history: Arc<dyn History>,
    /// Views of all nodes; without it only L1 keeps any, and other nodes' writes are seen when
    /// entries end.
    pub views: Option<Arc<Redis>>,
    /// Positions of last writes; without it plain clients read their own writes through the node
    /// that took them.
    pub positions: Option<Arc<Redis>>,
    /// The date.
    pub clock: Arc<dyn Clock>,
}

/// How the caches stand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CacheStatus {
    /// Bytes in L1, about.
    pub l1_bytes: u64,
    /// Views in L1.
    pub l1_entries: usize,
    /// Whether L1 may answer.
    pub l1_answers: bool,
    /// Features that are worse than they should be: (feature, reason).
    pub degraded: Vec<(&'static str, String)>,
}

/// A store behind caches.
pub struct CachedStore {
    pub(crate) store: SharedStore,
    pub(crate) history: Arc<dyn History>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) options: CacheOptions,
    pub(crate) level1: Option<Arc<Level1>>,
    pub(crate) views: Option<Arc<Views>>,
    pub(crate) positions: Option<Positions>,
    pub(crate) recent: Recent,
    pub(crate) flights: Arc<Flights<FlightKey, Loaded>>,
    pub(crate) answers: Answers,
    fills: Arc<Semaphore>,
    tasks: Vec<JoinHandle<()>>,
    me: Weak<Self>,
}

impl Drop for CachedStore {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl CachedStore {
    /// Puts caches in front of a store. Needs a tokio runtime.
    pub fn start(parts: CacheParts, options: CacheOptions) -> Arc<Self> {
        let told = parts.views.is_some();
        let level1 = (options.l1_bytes > 0).then(|| Arc::new(Level1::new(options.l1_bytes, told)));
        let views = parts.views.map(|redis| Arc::new(Views::new(redis)));
        let mut tasks = Vec::new();
        if let Some(level1) = &level1 {
            if let Some(views) = &views {
                let (views, clock) = (Arc::clone(views), Arc::clone(&parts.clock));
                tasks.push(tokio::spawn(ear::listen(views, Arc::downgrade(level1), clock)));
            }
            tasks.push(tokio::spawn(show(Arc::downgrade(level1))));
        }
        Arc::new_cyclic(|me| Self {
            store: parts.store,
            history: parts.history,
            clock: parts.clock,
            level1,
            views,
            positions: parts.positions.map(|redis| Positions::new(redis, options.positions_for)),
            recent: Recent::new(options.positions_for),
            flights: Flights::new(),
            answers: Answers::new(),
            fills: Arc::new(Semaphore::new(FILLS)),
            tasks,
            options,
            me: Weak::clone(me),
        })
    }

    /// Itself, for work that goes on without its caller.
    pub(crate) fn shared(&self) -> Option<Arc<Self>> {
        self.me.upgrade()
    }

    /// How the caches stand.
    pub fn status(&self) -> CacheStatus {
        let (l1_bytes, l1_entries) = self.level1.as_ref().map_or((0, 0), |level1| level1.size());
        let of = |feature, redis: Option<&Arc<Redis>>| {
            let why = redis.and_then(|redis| redis.problem().or_else(|| redis.warning()));
            why.map(|why| (feature, why))
        };
        let cache = of("cache", self.views.as_ref().map(|views| &views.redis));
        let positions = of("positions", self.positions.as_ref().map(Positions::redis));
        CacheStatus {
            l1_bytes,
            l1_entries,
            l1_answers: self.level1.as_ref().is_some_and(|level1| level1.hears()),
            degraded: cache.into_iter().chain(positions).collect(),
        }
    }

    /// What is kept of a view, if it may be: what was promised and is not there, or what may be
    /// lost, is not.
    pub(crate) fn entry(&self, view: &View, shard: LogicalShard) -> Option<Arc<Entry>> {
        let whole = view.degraded.is_empty() && !view.stale;
        if !whole || standing(&view.position, shard, &*self.history) != Standing::Valid {
            return None;
        }
        let kept_for =
            if view.tags.is_empty() { self.options.soft_ttl / 2 } else { self.options.soft_ttl };
        let kept_for = spread(kept_for);
        let now = self.clock.now_ms();
        let soft_until =
            now.saturating_add(i64::try_from(kept_for.as_millis()).unwrap_or(i64::MAX));
        Some(Arc::new(Entry::of(view, now, soft_until)))
    }

    /// Puts an entry that was read into Redis, beside whoever read it.
    pub(crate) fn fill_later(&self, key: &Arc<[u8]>, shard: LogicalShard, entry: &Arc<Entry>) {
        let Some(views) = self.views.clone() else { return };
        let Ok(permit) = Arc::clone(&self.fills).try_acquire_owned() else {
            metrics::counter!("tagfast_cache_fills_total", "result" => "dropped").increment(1);
            return;
        };
        let (key, entry) = (Arc::clone(key), Arc::clone(entry));
        tokio::spawn(async move {
            if views.fill(&key, shard, &entry, Origin::Read).await.is_err() {
                metrics::counter!("tagfast_cache_fills_total", "result" => "failed").increment(1);
            }
            drop(permit);
        });
    }

    /// What a finished write does to the caches, before it is answered.
    async fn written(&self, key: &ContentKey, result: &Result<WriteAnswer, StoreError>) {
        let bytes = key.to_bytes();
        let hash = ContentHash::of_bytes(&bytes);
        let shard = LogicalShard::of_hash(hash);
        let answer = match result {
            Ok(answer) => answer,
            Err(error) => {
                if error.is_outcome_unknown() {
                    self.recent.note(hash, AtLeast::TheStore);
                    if let Some(level1) = &self.level1 {
                        level1.drop_one(&bytes, shard);
                    }
                }
                return;
            }
        };
        self.recent.note(hash, AtLeast::Version(answer.version));
        let ticket = self.level1.as_ref().map(|level1| level1.ticket(shard));
        if let Some(level1) = &self.level1 {
            level1.is_changed(&bytes, answer.version);
        }
        let Some(entry) = answer.view.as_ref().and_then(|view| self.entry(view, shard)) else {
            return;
        };
        let filled = match &self.views {
            Some(views) => views.fill(&bytes, shard, &entry, Origin::Write).await,
            None => Ok(()),
        };
        match (filled, &self.level1, ticket) {
            (Ok(()), Some(level1), Some(ticket)) => {
                level1.put(&bytes, hash, entry, ticket, self.options.soft_ttl)
            }
            // Redis may show less than was written; `recent` keeps this process from believing it.
            (Err(error), level1, _) => {
                metrics::counter!("tagfast_cache_fills_total", "result" => "failed").increment(1);
                tracing::debug!(%error, "a write was not written through");
                if let Some(level1) = level1 {
                    level1.drop_one(&bytes, shard);
                }
            }
            (Ok(()), None, _) | (Ok(()), _, None) => {}
        }
    }

    /// Remembers the writes of a user. False: plain reads through other nodes may not show them.
    async fn remember(&self, tenant: &TenantId, user: &UserId, written: &[Written]) -> bool {
        let Some(positions) = self.positions.as_ref().filter(|_| !written.is_empty()) else {
            return true;
        };
        match positions.note(tenant, user, written).await {
            Ok(()) => true,
            Err(error) => {
                metrics::counter!("tagfast_cache_positions_unknown_total", "at" => "write")
                    .increment(1);
                tracing::debug!(%error, "a position was not stored");
                false
            }
        }
    }
}

/// Shows what L1 holds.
async fn show(level1: Weak<Level1>) {
    loop {
        match level1.upgrade() {
            Some(level1) => metrics::gauge!("tagfast_cache_l1_bytes").set(level1.size().0 as f64),
            None => return,
        }
        tokio::time::sleep(SHOWN).await;
    }
}

const NOT_STORED: Degraded = Degraded { feature: "session", reason: "position_not_stored" };

fn of_answer(key: &ContentKey, answer: &WriteAnswer) -> Written {
    Written {
        content: ContentHash::of(key),
        version: answer.version,
        position: answer.receipt.position,
    }
}

#[async_trait]
impl TagWriter for CachedStore {
    async fn write(&self, request: WriteRequest) -> Result<WriteAnswer, StoreError> {
        let (key, user) = (request.write.key.clone(), request.write.user.clone());
        let mut result = self.store.write(request).await;
        let written = result.as_ref().ok().map(|answer| of_answer(&key, answer));
        let ((), remembered) = join(
            self.written(&key, &result),
            self.remember(&key.tenant, &user, written.as_slice()),
        )
        .await;
        if let (Ok(answer), false) = (&mut result, remembered) {
            answer.degraded.push(NOT_STORED);
        }
        result
    }

    async fn write_many(
        &self,
        requests: Vec<WriteRequest>,
    ) -> Vec<Result<WriteAnswer, StoreError>> {
        let of: Vec<(ContentKey, UserId)> = requests
            .iter()
            .map(|request| (request.write.key.clone(), request.write.user.clone()))
            .collect();
        let mut results = self.store.write_many(requests).await;
        let told =
            join_all(of.iter().zip(&results).map(|((key, _), result)| self.written(key, result)));
        // Usually one user of one tenant.
        let mut users: Vec<(&TenantId, &UserId, Vec<Written>)> = Vec::new();
        for ((key, user), result) in of.iter().zip(&results) {
            let Ok(answer) = result else { continue };
            let written = of_answer(key, answer);
            match users.iter_mut().find(|(t, u, _)| *t == &key.tenant && *u == user) {
                Some((_, _, all)) => all.push(written),
                None => users.push((&key.tenant, user, vec![written])),
            }
        }
        let remembered =
            join_all(users.iter().map(async |(t, u, w)| (*t, *u, self.remember(t, u, w).await)));
        let (_, remembered) = join(told, remembered).await;
        for ((key, user), result) in of.iter().zip(&mut results) {
            let lost =
                remembered.iter().any(|(t, u, stored)| *t == &key.tenant && *u == user && !stored);
            if let (Ok(answer), true) = (result, lost) {
                answer.degraded.push(NOT_STORED);
            }
        }
        results
    }
}

#[async_trait]
impl ShardScanner for CachedStore {
    async fn scan(
        &self,
        shard: LogicalShard,
        tenant: Option<&TenantId>,
        after: Option<&ContentKey>,
        limit: usize,
    ) -> Result<ScanPage, StoreError> {
        self.store.scan(shard, tenant, after, limit).await
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        self.store.epoch().await
    }
}

#[async_trait]
impl ReceiptReader for CachedStore {
    async fn verdict(&self, receipt: &Receipt) -> Result<Verdict, StoreError> {
        self.store.verdict(receipt).await
    }
}
