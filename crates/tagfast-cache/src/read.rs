//! A view: from L1, from Redis, from the store, or stale, in this order.
//!
//! | request | L1 and Redis | else |
//! |---|---|---|
//! | eventual | whatever is valid | the nearest node |
//! | session, with a token | what covers the token | a node that is proven to, else the primary |
//! | session, without one | what covers the user's last writes, when those are known | as above; the primary when they are not |
//! | strong | never | the primary |
//!
//! Reads of one content at one time are one read of the store. Who joins a read that was under way
//! checks what it got, and reads again when it is not enough, together with all others who came
//! meanwhile.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{join, join_all};
use metrics::Counter;
use tagfast_domain::{ContentKey, UserId};
use tagfast_resilience::Criticality;
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::{
    CacheUse, Consistency, ConsistencyToken, Degraded, Position, ReadOptions, StoreError,
    TagReader, View,
};
use tokio::time::Instant;

use crate::entry::Entry;
use crate::level1::Found;
use crate::need::{Need, Standing, standing};
use crate::recent::AtLeast;
use crate::store::CachedStore;

/// A read without a deadline ends after this long.
const PATIENCE: Duration = Duration::from_secs(5);

/// What reads may share: of one content, for one purpose.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct FlightKey {
    key: Arc<[u8]>,
    purpose: Purpose,
    criticality: Criticality,
}

/// What the store is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Purpose {
    /// Whatever is nearest.
    Any,
    /// What covers a token, or a user's last writes.
    Covering,
    /// The newest: what must be covered is not known.
    Newest,
}

/// What a read of the store gave.
pub(crate) type Loaded = Result<Arc<View>, Arc<StoreError>>;

/// Counts who answered; looked up once, since every view counts.
pub(crate) struct Answers {
    level1: Counter,
    redis: Counter,
    store: Counter,
    stale: Counter,
}

impl Answers {
    pub(crate) fn new() -> Self {
        let of = |by: &'static str| metrics::counter!("tagfast_cache_reads_total", "answer" => by);
        Self { level1: of("l1"), redis: of("redis"), store: of("store"), stale: of("stale") }
    }
}

/// A content that is asked for.
struct Asked<'a> {
    content: &'a ContentKey,
    key: Vec<u8>,
    hash: ContentHash,
    shard: LogicalShard,
    options: &'a ReadOptions<'a>,
    arrived: Instant,
}

impl<'a> Asked<'a> {
    fn new(content: &'a ContentKey, options: &'a ReadOptions<'a>) -> Self {
        let key = content.to_bytes();
        let hash = ContentHash::of_bytes(&key);
        let shard = LogicalShard::of_hash(hash);
        Self { content, key, hash, shard, options, arrived: Instant::now() }
    }
}

/// What an answer must show; `None`: nobody knows, so the newest.
type Needed = Option<Need>;

const UNKNOWN: Degraded = Degraded { feature: "session", reason: "position_unavailable" };

fn unproven(reason: &'static str) {
    metrics::counter!("tagfast_cache_unproven_total", "reason" => reason).increment(1);
}

impl CachedStore {
    /// What the token says, or nothing; `None` when the user's positions have to be asked for.
    fn told(&self, asked: &Asked<'_>) -> Option<Need> {
        match (asked.options.consistency, asked.options.token) {
            (Consistency::Eventual | Consistency::Strong, _) => Some(Need::default()),
            (Consistency::Session, Some(token)) => Some(Need::of_token(token, asked.hash)),
            (Consistency::Session, None)
                if self.positions.is_none() || asked.options.user.is_none() =>
            {
                Some(Need::default())
            }
            (Consistency::Session, None) => None,
        }
    }

    /// What the user wrote last of these contents.
    async fn positions_of(
        &self,
        content: &ContentKey,
        user: Option<&UserId>,
        hashes: &[ContentHash],
    ) -> Vec<Needed> {
        let (Some(positions), Some(user)) = (&self.positions, user) else {
            return vec![Some(Need::default()); hashes.len()];
        };
        match positions.needs(&content.tenant, user, hashes).await {
            Some(needs) => needs.into_iter().map(Some).collect(),
            None => {
                metrics::counter!("tagfast_cache_positions_unknown_total", "at" => "read")
                    .increment(1);
                vec![None; hashes.len()]
            }
        }
    }

    /// Whether an entry is part of the history and shows what this process wrote.
    fn is_true(&self, asked: &Asked<'_>, entry: &Entry) -> bool {
        match standing(&entry.position, asked.shard, &*self.history) {
            Standing::Valid => {}
            Standing::Phantom => {
                unproven("phantom");
                self.forget_phantom(asked, entry);
                return false;
            }
            Standing::Unknown => {
                unproven("epoch");
                return false;
            }
        }
        let shown = match self.recent.of(asked.hash) {
            None => true,
            Some(AtLeast::Version(version)) => entry.version >= version,
            Some(AtLeast::TheStore) => false,
        };
        if !shown {
            unproven("uncovered");
        }
        shown
    }

    fn forget_phantom(&self, asked: &Asked<'_>, entry: &Entry) {
        if let Some(level1) = &self.level1 {
            level1.drop_one(&asked.key, asked.shard);
        }
        if let Some(views) = self.views.clone() {
            let (key, shard, entry) = (asked.key.clone(), asked.shard, entry.clone());
            tokio::spawn(async move {
                if let Err(error) = views.delete_phantom(&key, shard, &entry).await {
                    tracing::debug!(%error, "an entry that shows what was lost stays until it ends; nobody is shown it");
                }
            });
        }
    }

    fn is_met(&self, asked: &Asked<'_>, need: &Need, entry: &Entry) -> bool {
        let met = need.is_met(entry.into(), asked.shard, &*self.history);
        if !met {
            unproven("uncovered");
        }
        met
    }

    /// The answer of a fresh entry of L1, if it shows what must be shown.
    fn hit(&self, asked: &Asked<'_>, needed: &Needed, entry: &Entry) -> Option<View> {
        needed.as_ref().filter(|need| self.is_met(asked, need, entry))?;
        self.answers.level1.increment(1);
        Some(entry.view(CacheUse::Hit("l1")))
    }

    /// Answers one content. `need` is what a token says; without it the user's positions are asked
    /// for beside Redis.
    async fn answer(&self, asked: &Asked<'_>, known: Option<Needed>) -> Result<View, StoreError> {
        // An entry that may answer when the store does not.
        let mut spare: Option<(Arc<Entry>, &'static str)> = None;
        let mut first = None;
        if let Some(level1) = &self.level1 {
            match level1.get(&asked.key, asked.shard) {
                Some(Found::Fresh(entry)) if self.is_true(asked, &entry) => first = Some(entry),
                Some(Found::Old(entry)) if self.is_true(asked, &entry) => {
                    spare = Some((entry, "l1"))
                }
                Some(Found::Fresh(_) | Found::Old(_)) | None => {}
            }
        }
        if let (Some(needed), Some(entry)) = (&known, &first)
            && let Some(view) = self.hit(asked, needed, entry)
        {
            return Ok(view);
        }
        let ticket = self.level1.as_ref().map(|level1| level1.ticket(asked.shard));
        let (needed, second) = match known {
            Some(needed) => (needed, self.ask_redis(asked).await),
            None => {
                let hashes = [asked.hash];
                let positions = self.positions_of(asked.content, asked.options.user, &hashes);
                let second =
                    async { if first.is_none() { self.ask_redis(asked).await } else { None } };
                let (mut needs, second) = join(positions, second).await;
                (needs.pop().flatten(), second)
            }
        };
        if let Some(entry) = &first
            && let Some(view) = self.hit(asked, &needed, entry)
        {
            return Ok(view);
        }
        if let Some(entry) = second {
            let left = entry.soft_until.saturating_sub(self.clock.now_ms());
            match &needed {
                Some(need) if left > 0 && self.is_met(asked, need, &entry) => {
                    if let (Some(level1), Some(ticket)) = (&self.level1, ticket) {
                        let left = Duration::from_millis(left.unsigned_abs());
                        level1.put(&asked.key, asked.hash, Arc::clone(&entry), ticket, left);
                    }
                    self.answers.redis.increment(1);
                    return Ok(entry.view(CacheUse::Hit("redis")));
                }
                Some(_) | None => {
                    if left <= 0 {
                        unproven("expired");
                    }
                    if spare.as_ref().is_none_or(|(spare, _)| entry.is_newer_than(spare)) {
                        spare = Some((entry, "redis"));
                    }
                }
            }
        }
        let spare = first.map(|entry| (entry, "l1")).or(spare);
        self.ask_store(asked, needed, spare).await
    }

    /// The entry in Redis that is part of the history.
    async fn ask_redis(&self, asked: &Asked<'_>) -> Option<Arc<Entry>> {
        let entry = self.views.as_ref()?.get(&asked.key, asked.shard).await.ok()??;
        self.is_true(asked, &entry).then(|| Arc::new(entry))
    }

    /// Reads the store; when it cannot answer, or is slow, an entry that shows what must be shown
    /// answers as stale.
    async fn ask_store(
        &self,
        asked: &Asked<'_>,
        needed: Needed,
        spare: Option<(Arc<Entry>, &'static str)>,
    ) -> Result<View, StoreError> {
        let stale = spare.and_then(|(entry, layer)| self.stale(asked, &needed, &entry, layer));
        let load = self.load(asked, &needed);
        let loaded = match &stale {
            None => load.await,
            // The read goes on without this caller and fills the caches.
            Some(_) => match tokio::time::timeout(self.options.stale_after, load).await {
                Ok(loaded) => loaded,
                Err(_) => {
                    Err(StoreError::Deadline { waiting_for: "the store", outcome_unknown: false })
                }
            },
        };
        match (loaded, stale) {
            // Whoever takes nothing old does not take what may be.
            (Ok(view), _)
                if asked.options.max_stale == Some(Duration::ZERO) && !view.degraded.is_empty() =>
            {
                let reason = "only an answer that may be old is to be had";
                Err(StoreError::Unavailable {
                    reason,
                    outcome_unknown: false,
                    retry_after: Duration::from_secs(1),
                })
            }
            (Ok(mut view), _) => {
                // A replica's answer while the newest was asked for.
                if needed.is_none()
                    && !view.degraded.is_empty()
                    && !view.degraded.contains(&UNKNOWN)
                {
                    view.degraded.push(UNKNOWN);
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

    /// The stale answer that an entry gives, if it may give one.
    fn stale(
        &self,
        asked: &Asked<'_>,
        needed: &Needed,
        entry: &Entry,
        layer: &'static str,
    ) -> Option<View> {
        let limit =
            self.options.stale_if_error.min(asked.options.max_stale.unwrap_or(Duration::MAX));
        let age =
            u128::from(self.clock.now_ms().saturating_sub(entry.read_at).max(0).unsigned_abs());
        if limit.is_zero() || age > limit.as_millis() {
            return None;
        }
        let need = needed.unwrap_or_default();
        if !need.is_met(entry.into(), asked.shard, &*self.history) {
            return None;
        }
        let mut view = entry.view(CacheUse::Stale(layer));
        if needed.is_none() {
            view.degraded.push(UNKNOWN);
        }
        Some(view)
    }

    /// Reads the store once for all who ask now.
    async fn load(&self, asked: &Asked<'_>, needed: &Needed) -> Result<View, StoreError> {
        let purpose = match needed {
            None => Purpose::Newest,
            // A full token covers other contents of the shard, too: the store proves that by its
            // own means.
            Some(need) if need.is_none() && asked.options.token.is_none() => Purpose::Any,
            Some(_) if asked.options.consistency == Consistency::Eventual => Purpose::Any,
            Some(_) => Purpose::Covering,
        };
        let bytes: Arc<[u8]> = asked.key.as_slice().into();
        let key =
            FlightKey { key: Arc::clone(&bytes), purpose, criticality: asked.options.criticality };
        let deadline = asked.options.deadline.unwrap_or(asked.arrived + PATIENCE);
        let fly = async |not_before| {
            let work = || self.work(asked, Arc::clone(&bytes), needed, purpose, deadline);
            let flown = self.flights.fly(key.clone(), not_before, work);
            let late = || StoreError::Deadline { waiting_for: "the store", outcome_unknown: false };
            let lost = |error| StoreError::Internal(Box::new(error));
            let flown = tokio::time::timeout_at(deadline, flown)
                .await
                .map_err(|_| late())?
                .map_err(lost)?;
            Ok::<_, StoreError>((flown.value, flown.collapsed))
        };
        let (mut loaded, mut collapsed) = fly(None).await?;
        if collapsed && !self.is_enough(asked, needed, purpose, &loaded) {
            (loaded, collapsed) = fly(Some(asked.arrived)).await?;
        }
        match loaded {
            Ok(view) => {
                let mut view = View::clone(&view);
                view.cache = CacheUse::Miss { collapsed };
                Ok(view)
            }
            Err(error) => Err(error.share()),
        }
    }

    /// Whether what another caller had begun to read shows what this one must see.
    fn is_enough(
        &self,
        asked: &Asked<'_>,
        needed: &Needed,
        purpose: Purpose,
        loaded: &Loaded,
    ) -> bool {
        let Ok(view) = loaded else { return true };
        match (purpose, needed) {
            (Purpose::Any, _) => true,
            // It may have been read before this caller's last write.
            (Purpose::Newest, _) | (Purpose::Covering, None) => false,
            (Purpose::Covering, Some(need)) => {
                // What one token could not be shown, another one's answer does not tell of.
                let floor_of_token =
                    asked.options.token.is_some_and(|t| t.floors.contains_key(&asked.shard));
                let version_known = need.version.is_some();
                view.degraded.is_empty()
                    && (version_known || !floor_of_token)
                    && need.is_met((&**view).into(), asked.shard, &*self.history)
            }
        }
    }

    /// A read of the store that fills the caches, as a task of its own.
    fn work(
        &self,
        asked: &Asked<'_>,
        key: Arc<[u8]>,
        needed: &Needed,
        purpose: Purpose,
        deadline: Instant,
    ) -> impl Future<Output = Loaded> + Send + 'static {
        let me = self.shared();
        let (content, hash) = (asked.content.clone(), asked.hash);
        let token = match (purpose, asked.options.token, needed) {
            (Purpose::Covering, Some(token), _) => Some(token.clone()),
            (Purpose::Covering, None, Some(need)) => Some(token_of(hash, need)),
            (Purpose::Covering, None, None) | (Purpose::Any | Purpose::Newest, _, _) => None,
        };
        let consistency =
            if purpose == Purpose::Any { Consistency::Eventual } else { Consistency::Session };
        let consistency = match asked.options.consistency {
            // A session without anything to show is one to the store, too: it remembers this
            // process's writes.
            Consistency::Session => Consistency::Session,
            Consistency::Eventual | Consistency::Strong => consistency,
        };
        let (user, criticality) = (asked.options.user.cloned(), asked.options.criticality);
        let (needed, has_token) = (*needed, asked.options.token.is_some());
        async move {
            let Some(me) = me else {
                return Err(Arc::new(StoreError::Unavailable {
                    reason: "the service is shutting down",
                    outcome_unknown: false,
                    retry_after: Duration::from_secs(1),
                }));
            };
            let shard = LogicalShard::of_hash(hash);
            let ticket = me.level1.as_ref().map(|level1| level1.ticket(shard));
            let options = ReadOptions {
                consistency,
                token: token.as_ref(),
                deadline: Some(deadline),
                user: user.as_ref(),
                primary_first: purpose == Purpose::Newest,
                criticality,
                // What a client's token names it is shown or refused, never something older, even
                // if it is marked.
                max_stale: has_token.then_some(Duration::ZERO),
            };
            // Another read may have ended between this caller's look at L1 and this one's
            // beginning. It filled L1 before it ended.
            let asked = Asked::new(&content, &options);
            if let (Some(need), Some(level1)) = (&needed, &me.level1)
                && let Some(Found::Fresh(entry)) = level1.get(&asked.key, shard)
                && me.is_true(&asked, &entry)
                && me.is_met(&asked, need, &entry)
            {
                return Ok(Arc::new(entry.view(CacheUse::Hit("l1"))));
            }
            let view = me.store.view(&content, &options).await.map_err(Arc::new)?;
            if let Some(entry) = me.entry(&view, shard) {
                if let (Some(level1), Some(ticket)) = (&me.level1, ticket) {
                    level1.put(&key, hash, Arc::clone(&entry), ticket, me.options.soft_ttl);
                }
                me.fill_later(&key, shard, &entry);
            }
            Ok(Arc::new(view))
        }
    }
}

/// What a user's positions say, as a token that a store understands.
fn token_of(hash: ContentHash, need: &Need) -> ConsistencyToken {
    let mut token = ConsistencyToken::default();
    token.pairs.extend(need.version.map(|version| (hash, version)));
    let floor: Option<Position> = need.floor;
    token.floors.extend(floor.map(|floor| (LogicalShard::of_hash(hash), floor)));
    token
}

#[async_trait]
impl TagReader for CachedStore {
    async fn view(&self, key: &ContentKey, options: &ReadOptions<'_>) -> Result<View, StoreError> {
        if options.consistency == Consistency::Strong {
            return self.store.view(key, options).await;
        }
        let asked = Asked::new(key, options);
        self.answer(&asked, self.told(&asked).map(Some)).await
    }

    async fn view_many(
        &self,
        keys: &[ContentKey],
        options: &ReadOptions<'_>,
    ) -> Vec<Result<View, StoreError>> {
        if options.consistency == Consistency::Strong {
            return self.store.view_many(keys, options).await;
        }
        let asked: Vec<Asked<'_>> = keys.iter().map(|key| Asked::new(key, options)).collect();
        let Some(one) = asked.first() else { return Vec::new() };
        let needs: Vec<Option<Needed>> = match self.told(one) {
            Some(_) => asked.iter().map(|asked| self.told(asked).map(Some)).collect(),
            None => {
                let hashes: Vec<ContentHash> = asked.iter().map(|asked| asked.hash).collect();
                self.positions_of(one.content, options.user, &hashes)
                    .await
                    .into_iter()
                    .map(Some)
                    .collect()
            }
        };
        join_all(asked.iter().zip(needs).map(|(asked, need)| self.answer(asked, need))).await
    }
}
