//! The cache of leaderboard snapshots.
//!
//! The cache reads a snapshot on the first request for a tenant, and reads it again at most once a
//! second (less often when reading is expensive) after the tenant's counts changed. Until then the
//! old snapshot answers and says how old it is. All callers that need a tenant's first snapshot
//! share one read, which ends when the last of them leaves; few tenants are read at once, and only
//! the most recently requested ones keep a snapshot, so memory is bounded.
//!
//! How it fails: if reading fails, the old snapshot answers; without an old one the request fails
//! as unavailable.

use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tagfast_domain::{TenantId, UnixMillis};
use tagfast_resilience::task::{self, StopSignal};
use tagfast_resilience::{ErrorChain, SharedError, SingleFlight};
use tokio::sync::Semaphore;

use crate::leaderboard_snapshot::LeaderboardSnapshot;
pub use crate::leaderboard_snapshot::{LEADERBOARD_TAGS_MAX, TYPEAHEAD_TAGS_MAX};
use crate::port::PopularError;

/// Maximum number of tenants with a cached snapshot.
const TENANTS_MAX: usize = 1000;
/// Maximum memory of all cached snapshots, in bytes. The newest one stays even if it is larger.
const SNAPSHOT_BYTES_MAX: usize = 256 << 20;
/// Snapshots that are read at once. More would take memory and disk from requests.
const READS_MAX: usize = 2;
/// Minimum age of a snapshot before it is read again.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// The cached snapshot of a tenant.
struct SnapshotSlot {
    /// `None` until the first snapshot is read.
    snapshot: Option<Arc<LeaderboardSnapshot>>,
    as_of: UnixMillis,
    /// Whether counts changed since reading the snapshot began.
    dirty: bool,
    /// When the snapshot was complete, or reading it failed.
    read_at: Instant,
    /// How long reading took.
    cost: Duration,
    /// Number of the last request, for eviction.
    last_request: u64,
}

#[derive(Default)]
struct SnapshotSlots {
    tenants: HashMap<TenantId, SnapshotSlot>,
    requests: u64,
}

/// A snapshot and the time (Unix ms) before which every write is in it.
type CachedSnapshot = (Arc<LeaderboardSnapshot>, UnixMillis);

/// What the cache knows when a request arrives.
enum Lookup {
    /// This snapshot is new enough.
    Fresh(CachedSnapshot),
    /// This snapshot answers, and a new one is due.
    Due(CachedSnapshot),
    /// A tenant without requests for a long time would get a snapshot of that age: this one answers
    /// only if reading a new one fails.
    Expired(CachedSnapshot),
    /// There is no snapshot.
    Missing,
}

/// Snapshots of the most recently requested tenants.
pub struct LeaderboardCache {
    slots: Mutex<SnapshotSlots>,
    visible: AtomicI64,
    /// Reads of snapshots: one for each tenant.
    reads: Arc<SingleFlight<TenantId, Result<CachedSnapshot, SharedError>>>,
    permits: Semaphore,
}

impl LeaderboardCache {
    /// Creates an empty cache.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            slots: Mutex::default(),
            visible: AtomicI64::new(0),
            reads: SingleFlight::new(),
            permits: Semaphore::new(READS_MAX),
        })
    }

    /// Waits at shutdown until no snapshot is being read.
    pub async fn wait_until_idle(&self) {
        self.reads.wait_until_idle().await;
    }

    /// Notes that every write committed before `at` (Unix ms) is counted. An earlier time than
    /// before means that the one before said too much.
    pub fn visible_through(&self, at: UnixMillis) {
        self.visible.store(at, Ordering::Release);
    }

    /// Every write committed before this time (Unix ms) is counted.
    pub fn visible(&self) -> UnixMillis {
        self.visible.load(Ordering::Acquire)
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
    /// `read` reads a snapshot; it runs on the blocking pool and must end soon after its
    /// [`StopSignal`], with any result.
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
        R: FnOnce(&TenantId, &StopSignal) -> Result<LeaderboardSnapshot, E> + Send + 'static,
        E: Error + Send + Sync + 'static,
    {
        let (cache, of_tenant) = (Arc::clone(self), tenant.clone());
        let refresh = move || async move { cache.refresh(&of_tenant, read).await };
        let last_resort = match self.look_up(tenant) {
            Lookup::Fresh(cached) => return Ok(cached),
            Lookup::Due(cached) => {
                // The next request gets the new snapshot.
                self.reads.start(tenant.clone(), refresh);
                return Ok(cached);
            }
            Lookup::Expired(cached) => Some(cached),
            Lookup::Missing => None,
        };
        match self.reads.run_while_wanted(tenant.clone(), refresh).await {
            Ok(shared) => {
                shared.value.or_else(|error| last_resort.ok_or(error)).map_err(Into::into)
            }
            Err(lost) => last_resort.ok_or_else(|| PopularError::unavailable(lost)),
        }
    }

    fn look_up(&self, tenant: &TenantId) -> Lookup {
        let mut slots = self.slots.lock();
        slots.requests += 1;
        let requests = slots.requests;
        let visible = self.visible();
        let Some(slot) = slots.tenants.get_mut(tenant) else {
            slots.make_room();
            // Exists before reading begins, so that changes meanwhile are noted.
            let slot = SnapshotSlot {
                snapshot: None,
                as_of: 0,
                dirty: true,
                read_at: Instant::now(),
                cost: Duration::ZERO,
                last_request: requests,
            };
            slots.tenants.insert(tenant.clone(), slot);
            return Lookup::Missing;
        };
        slot.last_request = requests;
        let Some(snapshot) = &slot.snapshot else { return Lookup::Missing };
        if !slot.dirty {
            // No count changed since the snapshot was read: it is as new as the counts.
            slot.as_of = slot.as_of.max(visible);
        }
        let cached = (Arc::clone(snapshot), slot.as_of);
        let (interval, age) = (REFRESH_INTERVAL.max(slot.cost * 10), slot.read_at.elapsed());
        match (slot.dirty, age) {
            (true, age) if age >= interval * 2 => Lookup::Expired(cached),
            (true, age) if age >= interval => Lookup::Due(cached),
            (true | false, _) => Lookup::Fresh(cached),
        }
    }

    async fn refresh<R, E>(
        self: Arc<Self>,
        tenant: &TenantId,
        read: R,
    ) -> Result<CachedSnapshot, SharedError>
    where
        R: FnOnce(&TenantId, &StopSignal) -> Result<LeaderboardSnapshot, E> + Send + 'static,
        E: Error + Send + Sync + 'static,
    {
        let _permit = self.permits.acquire().await.map_err(SharedError::new)?;
        let (cache, of_tenant) = (Arc::clone(&self), tenant.clone());
        let work = move |stop: &StopSignal| cache.read(&of_tenant, stop, read);
        task::blocking_while_wanted(work).await.map_err(SharedError::new)?
    }

    fn read<E: Error + Send + Sync + 'static>(
        &self,
        tenant: &TenantId,
        stop: &StopSignal,
        read: impl FnOnce(&TenantId, &StopSignal) -> Result<LeaderboardSnapshot, E>,
    ) -> Result<CachedSnapshot, SharedError> {
        let started = Instant::now();
        let as_of = self.visible();
        if let Some(slot) = self.slots.lock().tenants.get_mut(tenant) {
            // Cleared before the read: a change during the read marks the slot again.
            slot.dirty = false;
        }
        let read = read(tenant, stop);
        let mut slots = self.slots.lock();
        let slot = slots.tenants.get_mut(tenant);
        if stop.is_cancelled() {
            // No caller waits any more, and the snapshot may be incomplete.
            slot.into_iter().for_each(|slot| slot.dirty = true);
            return Err(SharedError::new("no caller waits for the snapshot any more"));
        }
        match read {
            Ok(snapshot) => {
                let snapshot = Arc::new(snapshot);
                if let Some(slot) = slot {
                    slot.snapshot = Some(Arc::clone(&snapshot));
                    slot.as_of = as_of;
                    slot.read_at = Instant::now();
                    slot.cost = started.elapsed();
                    slots.evict_beyond(SNAPSHOT_BYTES_MAX, tenant);
                }
                Ok((snapshot, as_of))
            }
            Err(error) => {
                let mut hidden = false;
                if let Some(slot) = slot {
                    slot.dirty = true;
                    slot.read_at = Instant::now();
                    hidden = slot.snapshot.is_some();
                }
                drop(slots);
                // An older snapshot answers, so the caller does not see the error.
                if hidden {
                    let error = ErrorChain(&error);
                    tracing::warn!(%tenant, %error, "popular tags could not be read");
                }
                Err(SharedError::new(error))
            }
        }
    }
}

impl SnapshotSlots {
    fn oldest(&self) -> Option<TenantId> {
        self.tenants.iter().min_by_key(|(_, s)| s.last_request).map(|(t, _)| t.clone())
    }

    fn make_room(&mut self) {
        if self.tenants.len() >= TENANTS_MAX
            && let Some(oldest) = self.oldest()
        {
            self.tenants.remove(&oldest);
        }
    }

    /// Removes the snapshots that were not requested for longest, until the others fit; `newest`
    /// stays.
    fn evict_beyond(&mut self, max_bytes: usize, newest: &TenantId) {
        let bytes = |slot: &SnapshotSlot| slot.snapshot.as_ref().map_or(0, |s| s.bytes());
        let mut sum: usize = self.tenants.values().map(bytes).sum();
        if sum <= max_bytes {
            return;
        }
        let mut by_request: Vec<(u64, usize, TenantId)> = self
            .tenants
            .iter()
            .filter(|(tenant, slot)| *tenant != newest && slot.snapshot.is_some())
            .map(|(tenant, slot)| (slot.last_request, bytes(slot), tenant.clone()))
            .collect();
        by_request.sort_unstable();
        for (_, freed, tenant) in by_request {
            if sum <= max_bytes {
                return;
            }
            self.tenants.remove(&tenant);
            sum -= freed;
        }
    }
}

#[cfg(test)]
mod tests;
