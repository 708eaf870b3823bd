//! Leaderboards of one tenant, as an immutable snapshot, and the cache of these snapshots.
//!
//! The cache reads a snapshot on the first request for a tenant, and reads it again at most once a
//! second (less often when merging is expensive) after the tenant's counts changed. Until then the
//! old snapshot answers and says how old it is. Only the most recently requested tenants keep one,
//! so memory is bounded.
//!
//! How it fails: if reading fails, the old snapshot answers; without an old one the request fails
//! as unavailable.

use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tagfast_domain::{TagName, TenantId, UnixMillis};
use tagfast_resilience::ErrorChain;
use tagfast_resilience::task::TaskTracker;

use crate::port::{PopularError, TagCount, Window};

/// Maximum number of tags on a leaderboard.
pub const LEADERBOARD_TAGS_MAX: usize = 1000;
/// Maximum number of a tenant's tags that typeahead knows.
pub const TYPEAHEAD_TAGS_MAX: usize = 100_000;
/// Maximum number of tenants with a cached snapshot.
const TENANTS_MAX: usize = 1000;
/// Minimum age of a snapshot before it is read again.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// Leaderboards and typeahead of one tenant at one moment.
#[derive(Default)]
pub struct LeaderboardSnapshot {
    leaderboards: HashMap<Window, Vec<TagCount>>,
    /// All tags, most used first.
    ranked: Vec<TagCount>,
    by_name: HashMap<TagName, usize>,
    /// (canonical or lower-case display form, index in `ranked`), sorted by form.
    forms: Vec<(String, usize)>,
    approximate: bool,
}

/// The cached snapshot of a tenant.
struct SnapshotSlot {
    /// `None` until the first snapshot is read.
    snapshot: Option<Arc<LeaderboardSnapshot>>,
    as_of: UnixMillis,
    /// Whether counts changed since reading the snapshot began.
    dirty: bool,
    refreshing: bool,
    /// When the snapshot was complete.
    read_at: Instant,
    /// How long reading took.
    cost: Duration,
    /// When reading began: of two concurrent reads, the later one stays.
    read_from: Instant,
    /// Number of the last request, for eviction.
    last_request: u64,
}

#[derive(Default)]
struct SnapshotSlots {
    tenants: HashMap<TenantId, SnapshotSlot>,
    requests: u64,
}

type CachedSnapshot = (Arc<LeaderboardSnapshot>, UnixMillis);

/// What the cache knows when a request arrives.
struct Lookup {
    cached: Option<CachedSnapshot>,
    /// Whether this request must read a new snapshot.
    refresh: bool,
    /// Whether the cached snapshot is too old to answer before the new one is read.
    expired: bool,
}

/// Snapshots of the most recently requested tenants.
pub struct LeaderboardCache {
    slots: Mutex<SnapshotSlots>,
    visible: AtomicI64,
    /// Reads of snapshots.
    reads: TaskTracker,
}

impl LeaderboardCache {
    /// Creates an empty cache.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            slots: Mutex::default(),
            visible: AtomicI64::new(0),
            reads: TaskTracker::new(),
        })
    }

    /// Waits at shutdown until no snapshot is being read.
    pub async fn wait_until_idle(&self) {
        self.reads.close();
        self.reads.wait().await;
    }

    /// Notes that every write committed before `at` (Unix ms) is counted.
    pub fn visible_through(&self, at: UnixMillis) {
        self.visible.fetch_max(at, Ordering::AcqRel);
    }

    /// Notes that counts of these tenants changed.
    pub fn mark_dirty(&self, tenants: &BTreeSet<TenantId>) {
        let mut slots = self.slots.lock();
        for tenant in tenants {
            if let Some(slot) = slots.tenants.get_mut(tenant) {
                slot.dirty = true;
            }
        }
    }

    /// Notes that counts of every tenant may have changed.
    pub fn mark_all_dirty(&self) {
        self.slots.lock().tenants.values_mut().for_each(|slot| slot.dirty = true);
    }

    /// Returns the tenant's snapshot and the time (Unix ms) before which every write is in it.
    /// `read` reads a snapshot; it runs on the blocking pool.
    ///
    /// # Errors
    ///
    /// [`PopularError::Unavailable`] if `read` fails and no older snapshot is cached.
    pub async fn get<R, E>(
        self: &Arc<Self>,
        tenant: &TenantId,
        read: R,
    ) -> Result<CachedSnapshot, PopularError>
    where
        R: FnOnce(&TenantId) -> Result<LeaderboardSnapshot, E> + Send + 'static,
        E: Error + Send + Sync + 'static,
    {
        let Lookup { cached, refresh, expired } = self.look_up(tenant);
        if let Some(cached) = &cached
            && !refresh
        {
            return Ok(cached.clone());
        }
        // If another caller reads the first snapshot, it is read twice: rare and harmless.
        let (cache, of_tenant) = (Arc::clone(self), tenant.clone());
        let fresh = self.reads.spawn_blocking(move || cache.refresh(&of_tenant, read));
        match cached {
            // The next request gets the new snapshot.
            Some(cached) if !expired => Ok(cached),
            // A tenant without requests for a long time would get a snapshot of that age, so this
            // request waits. If reading fails, the old snapshot still answers.
            Some(cached) => Ok(fresh.await.ok().and_then(Result::ok).unwrap_or(cached)),
            None => fresh.await.map_err(PopularError::unavailable)?,
        }
    }

    fn look_up(&self, tenant: &TenantId) -> Lookup {
        let mut slots = self.slots.lock();
        slots.requests += 1;
        let requests = slots.requests;
        let visible = self.visible.load(Ordering::Acquire);
        let Some(slot) = slots.tenants.get_mut(tenant) else {
            slots.evict_oldest();
            let slot = SnapshotSlot {
                snapshot: None,
                as_of: 0,
                dirty: true,
                refreshing: true,
                read_at: Instant::now(),
                cost: Duration::ZERO,
                read_from: Instant::now(),
                last_request: requests,
            };
            slots.tenants.insert(tenant.clone(), slot);
            return Lookup { cached: None, refresh: true, expired: true };
        };
        slot.last_request = requests;
        if !slot.dirty {
            // No count changed since the snapshot was read: it is as new as the counts.
            slot.as_of = slot.as_of.max(visible);
        }
        let interval = REFRESH_INTERVAL.max(slot.cost * 10);
        let due = slot.read_at.elapsed() >= interval;
        let expired = slot.read_at.elapsed() >= interval * 2;
        let refresh = slot.dirty && due && !slot.refreshing;
        slot.refreshing |= refresh;
        let cached = slot.snapshot.as_ref().map(|s| (Arc::clone(s), slot.as_of));
        Lookup { cached, refresh, expired }
    }

    fn refresh<E: Error + Send + Sync + 'static>(
        &self,
        tenant: &TenantId,
        read: impl FnOnce(&TenantId) -> Result<LeaderboardSnapshot, E>,
    ) -> Result<CachedSnapshot, PopularError> {
        let started = Instant::now();
        let as_of = self.visible.load(Ordering::Acquire);
        if let Some(slot) = self.slots.lock().tenants.get_mut(tenant) {
            // Cleared before the read: a change during the read marks the slot again.
            slot.dirty = false;
        }
        let read = read(tenant);
        let mut slots = self.slots.lock();
        let slot = slots.tenants.get_mut(tenant);
        match read {
            Ok(snapshot) => {
                let snapshot = Arc::new(snapshot);
                if let Some(slot) = slot.filter(|s| s.snapshot.is_none() || s.read_from <= started)
                {
                    slot.read_from = started;
                    slot.snapshot = Some(Arc::clone(&snapshot));
                    slot.as_of = as_of;
                    slot.read_at = Instant::now();
                    slot.cost = started.elapsed();
                    slot.refreshing = false;
                }
                Ok((snapshot, as_of))
            }
            Err(error) => {
                let mut hidden = false;
                if let Some(slot) = slot {
                    slot.dirty = true;
                    slot.refreshing = false;
                    slot.read_at = Instant::now();
                    hidden = slot.snapshot.is_some();
                }
                drop(slots);
                // An older snapshot answers, so the caller does not see the error.
                if hidden {
                    let error = ErrorChain(&error);
                    tracing::warn!(%tenant, %error, "popular tags could not be read");
                }
                Err(PopularError::unavailable(error))
            }
        }
    }
}

impl SnapshotSlots {
    fn evict_oldest(&mut self) {
        if self.tenants.len() >= TENANTS_MAX
            && let Some(oldest) =
                self.tenants.iter().min_by_key(|(_, s)| s.last_request).map(|(t, _)| t.clone())
        {
            self.tenants.remove(&oldest);
        }
    }
}

impl LeaderboardSnapshot {
    /// Ranks tags by their counts, which are in the order of [`Window::ALL`]. Each item is a
    /// canonical name, its display (`None` if unknown) and its counts.
    pub fn rank(tags: impl Iterator<Item = (String, Option<String>, [u64; 4])>) -> Self {
        let mut rows: Vec<(TagName, Arc<str>, [u64; 4])> = tags
            .map(|(tag, display, counts)| {
                let name = TagName::from_canonical(&tag);
                let display = match display {
                    Some(display) if display != tag => display.into(),
                    Some(_) | None => name.shared(),
                };
                (name, display, counts)
            })
            .collect();
        let mut leaderboards = HashMap::new();
        let mut ranked = Vec::new();
        for window in Window::ALL {
            let n = window.index();
            rows.sort_unstable_by(|a, b| b.2[n].cmp(&a.2[n]).then_with(|| a.0.cmp(&b.0)));
            let used = rows.iter().take_while(|r| r.2[n] > 0);
            let list = |(tag, display, counts): &(TagName, Arc<str>, [u64; 4])| TagCount {
                tag: tag.clone(),
                display: Arc::clone(display),
                count: counts[n],
            };
            leaderboards
                .insert(window, used.clone().take(LEADERBOARD_TAGS_MAX).map(list).collect());
            if window == Window::All {
                ranked = used.map(list).collect();
            }
        }
        let approximate = ranked.len() > TYPEAHEAD_TAGS_MAX;
        let mut forms = Vec::with_capacity(ranked.len());
        for (n, tag) in ranked.iter().take(TYPEAHEAD_TAGS_MAX).enumerate() {
            forms.push((tag.tag.as_str().to_owned(), n));
            let shown = tag.display.to_lowercase();
            if shown != tag.tag.as_str() {
                forms.push((shown, n));
            }
        }
        forms.sort_unstable();
        let by_name = ranked.iter().enumerate().map(|(n, t)| (t.tag.clone(), n)).collect();
        Self { leaderboards, ranked, by_name, forms, approximate }
    }

    /// Whether typeahead may miss rarely used tags.
    pub fn is_approximate(&self) -> bool {
        self.approximate
    }

    /// The most used tags of a window, at most [`LEADERBOARD_TAGS_MAX`].
    pub fn leaderboard(&self, window: Window, limit: usize) -> Vec<TagCount> {
        self.leaderboards
            .get(&window)
            .map_or_else(Vec::new, |b| b.iter().take(limit).cloned().collect())
    }

    /// Count of a tag over all time; `None` if no content carries it.
    pub fn count(&self, tag: &TagName) -> Option<&TagCount> {
        self.by_name.get(tag).and_then(|n| self.ranked.get(*n))
    }

    /// Displays of tags in the same order; the canonical name for an unknown tag.
    pub fn displays(&self, tags: &[TagName]) -> Vec<Arc<str>> {
        let display = |tag: &TagName| {
            self.count(tag).map_or_else(|| tag.shared(), |count| Arc::clone(&count.display))
        };
        tags.iter().map(display).collect()
    }

    /// Tags with a form that begins with the typed text, most used first.
    pub fn suggest(&self, typed: &str, limit: usize) -> Vec<TagCount> {
        let prefixes = prefixes(typed);
        if prefixes.iter().any(String::is_empty) {
            return self.ranked.iter().take(limit).cloned().collect();
        }
        let mut indices = BTreeSet::new();
        for prefix in prefixes {
            let start = self.forms.partition_point(|(form, _)| form.as_str() < prefix.as_str());
            let matching = self.forms[start..]
                .iter()
                .take_while(|(form, _)| form.starts_with(prefix.as_str()));
            // `ranked` is ordered by use: a smaller index is a more used tag.
            indices.extend(matching.map(|(_, n)| *n));
        }
        indices.into_iter().take(limit).filter_map(|n| self.ranked.get(n)).cloned().collect()
    }
}

/// Forms that the typed text may begin. The text need not be a complete tag; it may end in a blank
/// or be empty.
fn prefixes(typed: &str) -> Vec<String> {
    let mut prefixes = vec![typed.trim_start().to_lowercase()];
    if let Ok(canonical) = TagName::parse(typed)
        && canonical.as_str() != prefixes[0]
    {
        prefixes.push(canonical.as_str().to_owned());
    }
    prefixes
}
