//! The local cache (L1): views in this process, kept current by invalidations from Redis.
//!
//! An entry may answer only while the cache is *in sync*: every invalidation published until a
//! moment at most [`SYNC_LEASE`] ago is known to have arrived ([`LocalCache::mark_in_sync`]). Out
//! of sync, entries are kept but answer only as stale. The cache is divided into one stripe per
//! logical shard; after a lost invalidation the whole stripe expires.
//!
//! A slow reader must not put an old view over a newer one. Each stripe therefore remembers recent
//! invalidations, and a fill carries a lease ([`FillLease`], as in memcached) that was taken before
//! the read: the fill is refused when the stripe was invalidated since, or the content has changed.
//!
//! How it fails: without messages for [`SYNC_LEASE`] nothing answers; an entry heavier than the
//! cache admits is not kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tagfast_domain::{UnixMillis, Version};
use tagfast_resilience::jittered;
use tagfast_sharding::{ContentHash, LogicalShard, SHARDS};
use tokio::time::Instant;

use crate::entry::Entry;

/// How long an entry answers, +-20 %. Short, because it bounds the staleness when invalidations
/// are not available at all.
const LOCAL_TTL: Duration = Duration::from_secs(5);
/// How long the cache stays in sync after the last proof of it.
const SYNC_LEASE: Duration = Duration::from_secs(1);
/// Slots for recent invalidations in each stripe.
const INVALIDATION_SLOTS: usize = 4096;
/// How long an invalidation is remembered. A read of the store must not take longer.
const INVALIDATION_MEMORY: Duration = Duration::from_secs(15);
/// Typical weight of an entry in bytes, to size the cache's tables.
const TYPICAL_ENTRY_BYTES: u64 = 800;

struct CachedEntry {
    entry: Arc<Entry>,
    expires_at: Instant,
    /// Generation of the stripe when the entry was read.
    generation: u64,
}

#[derive(Clone)]
struct WeightInBytes;

impl Weighter<Box<[u8]>, Arc<CachedEntry>> for WeightInBytes {
    fn weight(&self, key: &Box<[u8]>, cached: &Arc<CachedEntry>) -> u64 {
        key.len() as u64 + cached.entry.weight()
    }
}

/// A recent invalidation. Contents whose hashes collide share a slot: that may refuse a fill that
/// was current, but never admits one that is not.
#[derive(Clone, Copy)]
struct RecentInvalidation {
    version: Version,
    expires_at: Instant,
}

type RecentInvalidations = Vec<Option<RecentInvalidation>>;

struct Stripe {
    /// Incremented when the whole stripe is invalidated.
    generation: AtomicU64,
    recent: Mutex<RecentInvalidations>,
}

/// Permission to fill the cache with a view that is read from now on. Holds the generation of the
/// stripe when it was issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FillLease(u64);

/// What the cache holds of a content.
pub(crate) enum CacheLookup {
    /// The entry may answer.
    Fresh(Arc<Entry>),
    /// The entry may answer only as stale.
    Expired(Arc<Entry>),
}

/// The views cached in this process.
pub(crate) struct LocalCache {
    cache: Cache<Box<[u8]>, Arc<CachedEntry>, WeightInBytes>,
    stripes: Vec<Stripe>,
    started: Instant,
    /// Milliseconds after `started` until which the cache is in sync; `u64::MAX` without a source
    /// of invalidations.
    in_sync_until: AtomicU64,
}

impl LocalCache {
    /// A cache of at most `bytes_max` bytes. With `subscribed`, it answers only while it is in sync
    /// with invalidations; without, entries answer until [`LOCAL_TTL`].
    pub(crate) fn new(bytes_max: u64, subscribed: bool) -> Self {
        let entries = usize::try_from(bytes_max / TYPICAL_ENTRY_BYTES).unwrap_or(usize::MAX);
        let stripe = || Stripe {
            generation: AtomicU64::new(0),
            recent: Mutex::new(vec![None; INVALIDATION_SLOTS]),
        };
        Self {
            cache: Cache::with_weighter(entries.max(16), bytes_max, WeightInBytes),
            stripes: (0..SHARDS).map(|_| stripe()).collect(),
            started: Instant::now(),
            in_sync_until: AtomicU64::new(if subscribed { 0 } else { u64::MAX }),
        }
    }

    fn stripe(&self, shard: LogicalShard) -> &Stripe {
        &self.stripes[usize::from(shard.number())]
    }

    fn elapsed_ms(&self, at: Instant) -> u64 {
        let elapsed = at.saturating_duration_since(self.started);
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }

    /// Every invalidation published before `proven_at` has been applied.
    pub(crate) fn mark_in_sync(&self, proven_at: Instant) {
        self.in_sync_until.store(self.elapsed_ms(proven_at + SYNC_LEASE), Ordering::Release);
    }

    /// Invalidations may be lost from now on.
    pub(crate) fn mark_out_of_sync(&self) {
        self.in_sync_until.store(0, Ordering::Release);
    }

    /// Whether entries may answer.
    pub(crate) fn is_in_sync(&self) -> bool {
        self.elapsed_ms(Instant::now()) < self.in_sync_until.load(Ordering::Acquire)
    }

    /// A lease for a fill. The caller must take it before it reads what it will fill in.
    pub(crate) fn fill_lease(&self, shard: LogicalShard) -> FillLease {
        FillLease(self.stripe(shard).generation.load(Ordering::Acquire))
    }

    /// The entry of a content; `None` when there is none.
    pub(crate) fn get(&self, key: &[u8], shard: LogicalShard) -> Option<CacheLookup> {
        let cached = self.cache.get(key)?;
        let entry = Arc::clone(&cached.entry);
        let fresh = cached.expires_at > Instant::now()
            && cached.generation == self.fill_lease(shard).0
            && self.is_in_sync();
        Some(if fresh { CacheLookup::Fresh(entry) } else { CacheLookup::Expired(entry) })
    }

    /// Caches an entry for at most `ttl_max`, unless a newer one is cached or the content was
    /// invalidated since the lease was taken.
    pub(crate) fn put(
        &self,
        key: &[u8],
        hash: ContentHash,
        entry: Arc<Entry>,
        lease: FillLease,
        ttl_max: Duration,
    ) {
        let shard = LogicalShard::of_hash(hash);
        let now = Instant::now();
        let recent = self.lock_stripe(shard);
        if lease != self.fill_lease(shard) {
            return;
        }
        let invalidation = recent.get(slot_of(hash)).copied().flatten();
        if invalidation.is_some_and(|i| i.expires_at > now && entry.version < i.version) {
            return;
        }
        // An equal entry replaces the cached one: it was just read from Redis, so it is still the
        // newest there.
        if let Some(cached) = self.cache.peek(key)
            && cached.generation == lease.0
            && cached.entry.is_newer_than(&entry)
        {
            return;
        }
        let expires_at = now + jittered(LOCAL_TTL).min(ttl_max);
        let cached = CachedEntry { entry, expires_at, generation: lease.0 };
        self.cache.insert(key.into(), Arc::new(cached));
    }

    /// A content has this version now: evicts an older entry and refuses older fills for
    /// [`INVALIDATION_MEMORY`].
    pub(crate) fn invalidate(&self, key: &[u8], version: Version) {
        let hash = ContentHash::of_bytes(key);
        let mut recent = self.lock_stripe(LogicalShard::of_hash(hash));
        let now = Instant::now();
        if let Some(slot) = recent.get_mut(slot_of(hash)) {
            let newest = slot
                .filter(|before| before.expires_at > now)
                .map_or(version, |before| before.version.max(version));
            let expires_at = now + INVALIDATION_MEMORY;
            *slot = Some(RecentInvalidation { version: newest, expires_at });
        }
        self.cache.remove_if(key, |cached| cached.entry.version < version);
    }

    /// Removes a content's entry, whatever its version.
    pub(crate) fn evict(&self, key: &[u8], shard: LogicalShard) {
        let _ordered_with_fills = self.lock_stripe(shard);
        self.cache.remove(key);
    }

    /// An invalidation of this stripe may have been lost: all its entries expire, and fills with
    /// an earlier lease are refused.
    pub(crate) fn invalidate_stripe(&self, shard: LogicalShard) {
        let _ordered_with_fills = self.lock_stripe(shard);
        self.stripe(shard).generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Entries that were read at `since` or later and would still answer from Redis at `now`.
    pub(crate) fn read_since(
        &self,
        since: UnixMillis,
        now: UnixMillis,
    ) -> Vec<(Box<[u8]>, Arc<Entry>)> {
        let entries = self.cache.iter().map(|(key, cached)| (key, Arc::clone(&cached.entry)));
        entries.filter(|(_, entry)| entry.read_at >= since && entry.soft_until > now).collect()
    }

    /// Holds the lock under which entries of a stripe change.
    fn lock_stripe(&self, shard: LogicalShard) -> MutexGuard<'_, RecentInvalidations> {
        self.stripe(shard).recent.lock()
    }

    /// Size in bytes (approximate) and number of entries.
    pub(crate) fn size(&self) -> (u64, usize) {
        (self.cache.weight(), self.cache.len())
    }
}

fn slot_of(hash: ContentHash) -> usize {
    // Different bits than those that choose the stripe.
    (hash.0 >> 20) as usize % INVALIDATION_SLOTS
}

#[cfg(test)]
mod tests {
    use tagfast_domain::EpochId;
    use tagfast_store::Position;

    use super::*;

    const SOFT_TTL: Duration = Duration::from_secs(60);

    fn entry(version: u64) -> Arc<Entry> {
        Arc::new(Entry {
            version: Version::from_packed(version).unwrap(),
            tags: Vec::new(),
            position: Position { epoch: EpochId([1; 16]), xid: 0, lsn: 0 },
            xmin: 0,
            as_of: 0,
            read_at: 0,
            soft_until: 0,
        })
    }

    fn of(key: &[u8]) -> (ContentHash, LogicalShard) {
        let hash = ContentHash::of_bytes(key);
        (hash, LogicalShard::of_hash(hash))
    }

    fn put(cache: &LocalCache, key: &[u8], version: u64) {
        let (hash, shard) = of(key);
        cache.put(key, hash, entry(version), cache.fill_lease(shard), SOFT_TTL);
    }

    /// The cached version, and whether the entry may answer.
    fn got(cache: &LocalCache, key: &[u8]) -> Option<(u64, bool)> {
        cache.get(key, of(key).1).map(|lookup| match lookup {
            CacheLookup::Fresh(entry) => (entry.version.packed(), true),
            CacheLookup::Expired(entry) => (entry.version.packed(), false),
        })
    }

    fn in_sync() -> LocalCache {
        let cache = LocalCache::new(1 << 20, true);
        cache.mark_in_sync(Instant::now());
        cache
    }

    #[tokio::test(start_paused = true)]
    async fn an_invalidation_evicts_older_entries_only() {
        let cache = in_sync();
        put(&cache, b"a", 5);
        cache.invalidate(b"a", Version::from_packed(5).unwrap());
        assert_eq!(got(&cache, b"a"), Some((5, true)), "the echo of the write that filled it");
        cache.invalidate(b"a", Version::from_packed(6).unwrap());
        assert_eq!(got(&cache, b"a"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_view_read_before_a_change_does_not_fill_after_it() {
        let cache = in_sync();
        cache.invalidate(b"a", Version::from_packed(8).unwrap());
        put(&cache, b"a", 7);
        assert_eq!(got(&cache, b"a"), None);
        put(&cache, b"a", 8);
        assert_eq!(got(&cache, b"a"), Some((8, true)));
        put(&cache, b"a", 7);
        assert_eq!(got(&cache, b"a"), Some((8, true)), "never backwards");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_invalidation_expires_its_stripe_and_refuses_fills_in_flight() {
        let cache = in_sync();
        let (hash, shard) = of(b"a");
        let other = (0u32..).map(|n| n.to_be_bytes()).find(|key| of(key).1 != shard).unwrap();
        put(&cache, b"a", 5);
        put(&cache, &other, 5);
        let before = cache.fill_lease(shard);
        cache.invalidate_stripe(shard);
        assert_eq!(got(&cache, b"a"), Some((5, false)), "it may still answer as stale");
        assert_eq!(got(&cache, &other), Some((5, true)));
        cache.put(b"a", hash, entry(9), before, SOFT_TTL);
        assert_eq!(got(&cache, b"a"), Some((5, false)));
        put(&cache, b"a", 5);
        assert_eq!(got(&cache, b"a"), Some((5, true)), "read again");
    }

    #[tokio::test(start_paused = true)]
    async fn without_messages_entries_answer_for_a_second() {
        let cache = in_sync();
        put(&cache, b"a", 5);
        tokio::time::advance(Duration::from_millis(999)).await;
        assert_eq!(got(&cache, b"a"), Some((5, true)));
        tokio::time::advance(Duration::from_millis(2)).await;
        assert_eq!(got(&cache, b"a"), Some((5, false)));
        cache.mark_in_sync(Instant::now());
        assert_eq!(got(&cache, b"a"), Some((5, true)), "no invalidation was lost");
        cache.mark_out_of_sync();
        assert!(!cache.is_in_sync());
    }

    #[tokio::test(start_paused = true)]
    async fn entries_answer_for_about_five_seconds_and_never_past_their_maximum() {
        let cache = LocalCache::new(1 << 20, false);
        put(&cache, b"a", 5);
        let (hash, shard) = of(b"b");
        cache.put(b"b", hash, entry(5), cache.fill_lease(shard), Duration::from_secs(1));
        tokio::time::advance(Duration::from_millis(1001)).await;
        assert_eq!((got(&cache, b"a"), got(&cache, b"b")), (Some((5, true)), Some((5, false))));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(got(&cache, b"a"), Some((5, false)));
        put(&cache, b"a", 5);
        assert_eq!(got(&cache, b"a"), Some((5, true)), "an equal entry, read again");
    }

    #[test]
    fn ttls_are_jittered_by_a_fifth() {
        let times: Vec<f64> =
            (0..1000).map(|_| jittered(Duration::from_secs(10)).as_secs_f64()).collect();
        let (min, max) = times.iter().fold((f64::MAX, 0.0f64), |(a, b), t| (a.min(*t), b.max(*t)));
        assert!((8.0..8.2).contains(&min) && (11.8..=12.0).contains(&max), "{min} {max}");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let cache = LocalCache::new(64 << 10, false);
        for n in 0..10_000u32 {
            put(&cache, &n.to_be_bytes(), 1);
        }
        let (bytes, entries) = cache.size();
        assert!(bytes <= 64 << 10 && entries > 50, "{bytes} bytes, {entries} entries");
    }
}
