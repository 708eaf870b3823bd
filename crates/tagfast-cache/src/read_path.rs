//! The read path: a view comes from the local cache (L1), from Redis, from the store, or is stale,
//! in this order.
//!
//! | consistency | L1 and Redis answer with | otherwise the store reads from |
//! |---|---|---|
//! | eventual | any fresh entry | the nearest node |
//! | session, with a token | an entry that covers the token | a node that provably covers it, else the primary |
//! | session, without a token | an entry that covers the user's session positions | as above; the primary while positions are unknown |
//! | strong | nothing | the primary |
//!
//! Concurrent reads of one content share one read of the store (single-flight). A caller that joins
//! a read in flight checks its result, which may predate what the caller must see. If it does, the
//! caller reads once more, together with all callers that arrived meanwhile.
//!
//! How it fails: when the store fails or takes longer than [`stale_after`], an entry that is not
//! fresh but meets the client's requirement answers, marked as stale; so does one that is newer
//! than the stale view that the store has. Without such an entry the store's error is returned.
//! While session positions are unknown, answers that may miss the user's writes are marked with
//! `session: position_unavailable`.
//!
//! [`stale_after`]: crate::CacheOptions::stale_after

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{join, join_all};
use tagfast_domain::{ContentKey, UserId};
use tagfast_resilience::{ErrorChain, counter, jittered_retry_after};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::{
    CacheUse, Consistency, ConsistencyToken, Degraded, REPAIR_PENDING, ReadOptions,
    RequiredVersion, StoreError, TagReader, View,
};
use tokio::time::Instant;

use crate::cached_store::{CachedStore, LoadKey, LoadKind, LoadResult, Loaded};
use crate::entry::Entry;
use crate::freshness::{FreshnessRequirement, Lineage, lineage};
use crate::local_cache::CacheLookup;
use crate::metric::{POSITIONS_UNKNOWN, RequestKind, UNPROVEN, Unproven};

/// Timeout of a read whose caller set no deadline.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// One content of a request.
struct ReadContext<'a> {
    content: &'a ContentKey,
    /// The encoded content key.
    key: Vec<u8>,
    hash: ContentHash,
    shard: LogicalShard,
    options: &'a ReadOptions<'a>,
    arrived_at: Instant,
}

impl<'a> ReadContext<'a> {
    fn new(content: &'a ContentKey, options: &'a ReadOptions<'a>) -> Self {
        let key = content.to_bytes();
        let hash = ContentHash::of_bytes(&key);
        let shard = LogicalShard::of_hash(hash);
        Self { content, key, hash, shard, options, arrived_at: Instant::now() }
    }
}

/// What an answer must show; `None` while that is unknown, so that only the newest state will do.
type Requirement = Option<FreshnessRequirement>;

/// An entry that may answer as stale, and the layer that it comes from.
type StaleCandidate = (Arc<Entry>, &'static str);

const POSITION_UNAVAILABLE: Degraded =
    Degraded { feature: "session", reason: "position_unavailable" };

fn count_unproven(reason: Unproven) {
    counter!(UNPROVEN, "reason" => reason).increment(1);
}

fn store_timeout() -> StoreError {
    StoreError::Deadline { waiting_for: "the store", outcome_unknown: false }
}

impl CachedStore {
    /// Marks a view that may lack what a failover lost.
    fn mark_repair(
        &self,
        read: &ReadContext<'_>,
        answer: Result<View, StoreError>,
    ) -> Result<View, StoreError> {
        let mut view = answer?;
        let is_marked = view.degraded.contains(&REPAIR_PENDING);
        if !is_marked && self.history.is_repair_open(read.shard) {
            view.degraded.push(REPAIR_PENDING);
        }
        Ok(view)
    }

    /// The requirement that the request itself states; `None` when the user's session positions
    /// must be looked up.
    fn requirement_from_request(&self, read: &ReadContext<'_>) -> Option<FreshnessRequirement> {
        match (read.options.consistency, read.options.token) {
            (Consistency::Eventual | Consistency::Strong, _) => Some(Default::default()),
            (Consistency::Session, Some(token)) => {
                Some(FreshnessRequirement::from_token(token, read.hash))
            }
            (Consistency::Session, None)
                if self.positions.is_none() || read.options.user.is_none() =>
            {
                Some(Default::default())
            }
            (Consistency::Session, None) => None,
        }
    }

    /// The requirements that follow from the user's session positions.
    async fn requirements_from_positions(
        &self,
        content: &ContentKey,
        user: Option<&UserId>,
        hashes: &[ContentHash],
    ) -> Vec<Requirement> {
        let (Some(positions), Some(user)) = (&self.positions, user) else {
            return vec![Some(FreshnessRequirement::default()); hashes.len()];
        };
        match positions.requirements(&content.tenant, user, hashes).await {
            Some(requirements) => requirements.into_iter().map(Some).collect(),
            None => {
                counter!(POSITIONS_UNKNOWN, "at" => RequestKind::Read).increment(1);
                vec![None; hashes.len()]
            }
        }
    }

    /// Whether an entry belongs to the current history and shows the writes of this process. An
    /// entry that does not may not answer, not even as stale.
    fn is_valid(&self, read: &ReadContext<'_>, entry: &Entry) -> bool {
        match lineage(&entry.position, read.shard, &*self.history) {
            Lineage::Current => {}
            Lineage::Diverged => {
                count_unproven(Unproven::Diverged);
                self.evict_diverged(read, entry);
                return false;
            }
            Lineage::UnknownEpoch => {
                count_unproven(Unproven::UnknownEpoch);
                return false;
            }
        }
        let shows_local_writes = match self.local_writes.get(read.hash) {
            None => true,
            Some(RequiredVersion::AtLeast(version)) => entry.version >= version,
            Some(RequiredVersion::OutcomeUnknown) => false,
        };
        if !shows_local_writes {
            count_unproven(Unproven::TooOld);
        }
        shows_local_writes
    }

    /// Removes an entry that a failover left behind, from Redis in the background.
    fn evict_diverged(&self, read: &ReadContext<'_>, entry: &Entry) {
        if let Some(local) = &self.local_cache {
            local.evict(&read.key, read.shard);
        }
        if let Some(redis) = self.redis_cache.clone() {
            let (key, shard, entry) = (read.key.clone(), read.shard, entry.clone());
            self.tasks.spawn(async move {
                if let Err(error) = redis.delete_diverged(&key, shard, &entry).await {
                    let error = ErrorChain(&error);
                    // It is never answered; it only stays until its TTL.
                    tracing::debug!(error = %error, "a diverged entry was not deleted from Redis");
                }
            });
        }
    }

    fn meets(
        &self,
        read: &ReadContext<'_>,
        requirement: &FreshnessRequirement,
        entry: &Entry,
    ) -> bool {
        let met = requirement.is_met(entry.into(), read.shard, &*self.history);
        if !met {
            count_unproven(Unproven::TooOld);
        }
        met
    }

    /// The answer of a fresh local entry; `None` when it does not meet the requirement.
    fn local_hit(
        &self,
        read: &ReadContext<'_>,
        requirement: &Requirement,
        entry: &Entry,
    ) -> Option<View> {
        requirement.as_ref().filter(|requirement| self.meets(read, requirement, entry))?;
        self.answers.l1.increment(1);
        Some(entry.view(CacheUse::Hit("l1")))
    }

    /// Answers one content. With `known`, the requirement is settled; without, the user's session
    /// positions are looked up while the view is read from Redis.
    async fn answer(
        &self,
        read: &ReadContext<'_>,
        known: Option<Requirement>,
    ) -> Result<View, StoreError> {
        let mut stale_candidate: Option<StaleCandidate> = None;
        let mut local_entry = None;
        if let Some(local) = &self.local_cache {
            match local.get(&read.key, read.shard) {
                Some(CacheLookup::Fresh(entry)) if self.is_valid(read, &entry) => {
                    local_entry = Some(entry);
                }
                Some(CacheLookup::Expired(entry)) if self.is_valid(read, &entry) => {
                    stale_candidate = Some((entry, "l1"));
                }
                Some(CacheLookup::Fresh(_) | CacheLookup::Expired(_)) | None => {}
            }
        }
        if let (Some(requirement), Some(entry)) = (&known, &local_entry)
            && let Some(view) = self.local_hit(read, requirement, entry)
        {
            return Ok(view);
        }
        let lease = self.local_cache.as_ref().map(|local| local.fill_lease(read.shard));
        let (requirement, redis_entry) = match known {
            Some(requirement) => (requirement, self.read_redis(read).await),
            None => {
                let hashes = [read.hash];
                let positions =
                    self.requirements_from_positions(read.content, read.options.user, &hashes);
                let entry = async {
                    if local_entry.is_none() { self.read_redis(read).await } else { None }
                };
                let (mut requirements, entry) = join(positions, entry).await;
                (requirements.pop().flatten(), entry)
            }
        };
        if let Some(entry) = &local_entry
            && let Some(view) = self.local_hit(read, &requirement, entry)
        {
            return Ok(view);
        }
        if let Some(entry) = redis_entry {
            let is_fresh = entry.fresh_for(self.clock.now_ms()).is_some();
            match &requirement {
                Some(requirement) if is_fresh && self.meets(read, requirement, &entry) => {
                    if let (Some(local), Some(lease)) = (&self.local_cache, lease) {
                        self.fill_local(local, &read.key, read.hash, Arc::clone(&entry), lease);
                    }
                    self.answers.redis.increment(1);
                    return Ok(entry.view(CacheUse::Hit("redis")));
                }
                Some(_) | None => {
                    if !is_fresh {
                        count_unproven(Unproven::Expired);
                    }
                    if stale_candidate.as_ref().is_none_or(|(other, _)| entry.is_newer_than(other))
                    {
                        stale_candidate = Some((entry, "redis"));
                    }
                }
            }
        }
        let stale_candidate = local_entry.map(|entry| (entry, "l1")).or(stale_candidate);
        self.read_store(read, requirement, stale_candidate).await
    }

    /// The valid entry in Redis; `None` also when Redis does not answer.
    async fn read_redis(&self, read: &ReadContext<'_>) -> Option<Arc<Entry>> {
        let entry = self.redis_cache.as_ref()?.get(&read.key, read.shard).await.ok()??;
        self.is_valid(read, &entry).then(|| Arc::new(entry))
    }

    /// Reads the store. When it fails or is slow, the candidate answers as stale if it meets the
    /// requirement.
    async fn read_store(
        &self,
        read: &ReadContext<'_>,
        requirement: Requirement,
        candidate: Option<StaleCandidate>,
    ) -> Result<View, StoreError> {
        let stale =
            candidate.and_then(|(entry, layer)| self.stale_view(read, &requirement, &entry, layer));
        let load = self.load(read, &requirement);
        let loaded = match &stale {
            None => load.await,
            // After the timeout the read goes on without this caller and fills the caches.
            Some(_) => tokio::time::timeout(self.options.stale_after, load)
                .await
                .unwrap_or_else(|_| Err(store_timeout())),
        };
        let may_lack_repair = matches!(loaded, Ok((_, true)));
        match (loaded.map(|(view, _)| view), stale) {
            // Of two stale views the newer one.
            (Ok(view), Some(cached))
                if view.stale && (cached.version, cached.as_of) > (view.version, view.as_of) =>
            {
                self.answers.stale.increment(1);
                Ok(cached)
            }
            (Ok(view), _) if !self.is_accepted(read, &view) => Err(StoreError::Unavailable {
                reason: "only a view that may be old is available",
                outcome_unknown: false,
                retry_after: jittered_retry_after(),
            }),
            (Ok(mut view), _) => {
                // The newest state was required and a replica answered.
                if requirement.is_none()
                    && !view.degraded.is_empty()
                    && !view.degraded.contains(&POSITION_UNAVAILABLE)
                {
                    view.degraded.push(POSITION_UNAVAILABLE);
                }
                if may_lack_repair {
                    view.degraded.push(REPAIR_PENDING);
                }
                self.answers.store.increment(1);
                Ok(view)
            }
            (Err(error), Some(view)) if error.is_retryable() => {
                self.answers.stale.increment(1);
                Ok(view)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Whether the client accepts the age of a view of the store. One that accepts no stale view
    /// does not get one that may lack something either.
    fn is_accepted(&self, read: &ReadContext<'_>, view: &View) -> bool {
        let Some(max) = read.options.max_stale else { return true };
        if max.is_zero() {
            return !view.stale && view.degraded.is_empty();
        }
        !view.is_stale_beyond(max, self.clock.now_ms())
    }

    /// The stale answer of an entry; `None` when it is too old for the service or the client, or
    /// does not meet the requirement.
    fn stale_view(
        &self,
        read: &ReadContext<'_>,
        requirement: &Requirement,
        entry: &Entry,
        layer: &'static str,
    ) -> Option<View> {
        let age_max =
            self.options.stale_if_error.min(read.options.max_stale.unwrap_or(Duration::MAX));
        let age_ms = entry.age_ms(self.clock.now_ms());
        if age_max.is_zero() || u128::from(age_ms) > age_max.as_millis() {
            return None;
        }
        let known = requirement.unwrap_or_default();
        if !known.is_met(entry.into(), read.shard, &*self.history) {
            return None;
        }
        let mut view = entry.view(CacheUse::Stale(layer));
        if requirement.is_none() {
            view.degraded.push(POSITION_UNAVAILABLE);
        }
        Some(view)
    }

    /// Reads the store, together with all callers that need the same. Also returns whether the view
    /// may lack what a repair brings back.
    async fn load(
        &self,
        read: &ReadContext<'_>,
        requirement: &Requirement,
    ) -> Result<(View, bool), StoreError> {
        let kind = match requirement {
            None => LoadKind::Newest,
            // With a token, the store must also prove its floors, which cover other contents.
            Some(requirement) if requirement.is_unconstrained() && read.options.token.is_none() => {
                LoadKind::Any
            }
            Some(_) if read.options.consistency == Consistency::Eventual => LoadKind::Any,
            Some(_) => LoadKind::Covering,
        };
        let key: Arc<[u8]> = read.key.as_slice().into();
        let load_key =
            LoadKey { key: Arc::clone(&key), kind, criticality: read.options.criticality };
        let deadline = read.options.deadline.unwrap_or(read.arrived_at + DEFAULT_TIMEOUT);
        let run = async |not_before| {
            let work = || self.load_work(read, Arc::clone(&key), requirement, kind, deadline);
            let shared = self.loads.run(load_key.clone(), not_before, work);
            let shared = tokio::time::timeout_at(deadline, shared)
                .await
                .map_err(|_| store_timeout())?
                .map_err(|lost| StoreError::Internal(Box::new(lost)))?;
            Ok::<_, StoreError>((shared.value, shared.collapsed))
        };
        let (mut loaded, mut collapsed) = run(None).await?;
        if collapsed && !self.is_sufficient(read, requirement, kind, &loaded) {
            (loaded, collapsed) = run(Some(read.arrived_at)).await?;
        }
        match loaded {
            Ok(loaded) => {
                let mut view = loaded.view.clone();
                view.cache = CacheUse::Miss { collapsed };
                Ok((view, loaded.may_lack_repair))
            }
            Err(error) => Err(error.share()),
        }
    }

    /// Whether the result of a read that another caller started shows what this caller must see.
    fn is_sufficient(
        &self,
        read: &ReadContext<'_>,
        requirement: &Requirement,
        kind: LoadKind,
        loaded: &LoadResult,
    ) -> bool {
        let Ok(Loaded { view, .. }) = loaded.as_deref() else { return true };
        match (kind, requirement) {
            (LoadKind::Any, _) => true,
            // The read may have started before this caller's last write.
            (LoadKind::Newest, _) | (LoadKind::Covering, None) => false,
            (LoadKind::Covering, Some(requirement)) => {
                // The store checked the floors of the other caller's token, not of this one's.
                let has_floor =
                    read.options.token.is_some_and(|t| t.floors.contains_key(&read.shard));
                view.degraded.is_empty()
                    && (requirement.version.is_some() || !has_floor)
                    && requirement.is_met(view.into(), read.shard, &*self.history)
            }
        }
    }

    /// A read of the store that fills the caches, independent of its caller.
    fn load_work(
        &self,
        read: &ReadContext<'_>,
        key: Arc<[u8]>,
        requirement: &Requirement,
        kind: LoadKind,
        deadline: Instant,
    ) -> impl Future<Output = LoadResult> + Send + 'static {
        let this = self.shared();
        let (content, hash) = (read.content.clone(), read.hash);
        let token = match (kind, read.options.token, requirement) {
            (LoadKind::Covering, Some(token), _) => Some(token.clone()),
            (LoadKind::Covering, None, Some(requirement)) => Some(token_of(hash, requirement)),
            (LoadKind::Covering, None, None) | (LoadKind::Any | LoadKind::Newest, _, _) => None,
        };
        let consistency = match (read.options.consistency, kind) {
            // Also without a requirement: in a session the store covers this process's writes.
            (Consistency::Session, _) => Consistency::Session,
            (Consistency::Eventual | Consistency::Strong, LoadKind::Any) => Consistency::Eventual,
            (Consistency::Eventual | Consistency::Strong, _) => Consistency::Session,
        };
        let (user, criticality) = (read.options.user.cloned(), read.options.criticality);
        let (requirement, has_token) = (*requirement, read.options.token.is_some());
        async move {
            let Some(this) = this else {
                return Err(Arc::new(StoreError::Unavailable {
                    reason: "the service is shutting down",
                    outcome_unknown: false,
                    retry_after: jittered_retry_after(),
                }));
            };
            let shard = LogicalShard::of_hash(hash);
            let lease = this.local_cache.as_ref().map(|local| local.fill_lease(shard));
            let options = ReadOptions {
                consistency,
                token: token.as_ref(),
                deadline: Some(deadline),
                user: user.as_ref(),
                primary_first: kind == LoadKind::Newest,
                criticality,
                // A token is covered or the read is refused; a marked older view is not enough.
                max_stale: has_token.then_some(Duration::ZERO),
            };
            // Another load may have ended, and filled the local cache, after the caller looked
            // there and before this load started.
            let read = ReadContext::new(&content, &options);
            if let (Some(requirement), Some(local)) = (&requirement, &this.local_cache)
                && let Some(CacheLookup::Fresh(entry)) = local.get(&read.key, shard)
                && this.is_valid(&read, &entry)
                && this.meets(&read, requirement, &entry)
            {
                let view = entry.view(CacheUse::Hit("l1"));
                return Ok(Arc::new(Loaded { view, may_lack_repair: false }));
            }
            let mut view = this.store.view(&content, &options).await.map_err(Arc::new)?;
            // The mark stays with the answer, and is no reason to read again.
            let may_lack_repair = view.degraded.contains(&REPAIR_PENDING);
            view.degraded.retain(|degraded| *degraded != REPAIR_PENDING);
            if let Some(entry) = this.entry(&view, shard, may_lack_repair) {
                if let (Some(local), Some(lease)) = (&this.local_cache, lease) {
                    this.fill_local(local, &key, hash, Arc::clone(&entry), lease);
                }
                this.fill_in_background(&key, shard, &entry);
            }
            Ok(Arc::new(Loaded { view, may_lack_repair }))
        }
    }
}

/// A requirement as a token that the store understands.
fn token_of(content: ContentHash, requirement: &FreshnessRequirement) -> ConsistencyToken {
    let mut token = ConsistencyToken::default();
    token.pairs.extend(requirement.version.map(|version| (content, version)));
    let shard = LogicalShard::of_hash(content);
    token.floors.extend(requirement.floor.map(|floor| (shard, floor)));
    token
}

#[async_trait]
impl TagReader for CachedStore {
    async fn view(&self, key: &ContentKey, options: &ReadOptions<'_>) -> Result<View, StoreError> {
        if options.consistency == Consistency::Strong {
            return self.store.view(key, options).await;
        }
        let read = ReadContext::new(key, options);
        let answer = self.answer(&read, self.requirement_from_request(&read).map(Some)).await;
        self.mark_repair(&read, answer)
    }

    async fn view_many(
        &self,
        keys: &[ContentKey],
        options: &ReadOptions<'_>,
    ) -> Vec<Result<View, StoreError>> {
        if options.consistency == Consistency::Strong {
            return self.store.view_many(keys, options).await;
        }
        let reads: Vec<_> = keys.iter().map(|key| ReadContext::new(key, options)).collect();
        let Some(first) = reads.first() else { return Vec::new() };
        // All contents of a request have the same tenant, user and kind of requirement.
        let requirements: Vec<Requirement> = match self.requirement_from_request(first) {
            Some(_) => reads.iter().map(|read| self.requirement_from_request(read)).collect(),
            None => {
                let hashes: Vec<ContentHash> = reads.iter().map(|read| read.hash).collect();
                self.requirements_from_positions(first.content, options.user, &hashes).await
            }
        };
        let answers = reads.iter().zip(requirements).map(async |(read, requirement)| {
            let answer = self.answer(read, Some(requirement)).await;
            self.mark_repair(read, answer)
        });
        join_all(answers).await
    }
}
