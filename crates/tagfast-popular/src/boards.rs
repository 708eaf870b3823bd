//! What one tenant's questions are answered from: an immutable snapshot, merged from the
//! partitions' files.
//!
//! A snapshot is made when a tenant is asked about, and made anew at most once a second (less often
//! when making it is dear) after its counts moved. Until the new one is there the old one answers
//! and says how old it is. Only the most recently asked tenants keep one, so memory is bounded.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tagfast_domain::{TagName, TenantId, UnixMillis};

use crate::counts::{CurrentFiles, Files};
use crate::owner::{counted, number};
use crate::{TagCount, Window};

/// Longest ranking kept.
pub(crate) const BOARD_TAGS: usize = 1000;
/// Most tags of a tenant that typeahead knows.
pub(crate) const TYPEAHEAD_TAGS: usize = 100_000;
/// Tenants that keep a snapshot.
const TENANTS: usize = 1000;
/// A snapshot is at least this old before it is made anew.
const REFRESH: Duration = Duration::from_secs(1);

/// One tenant's counts at one moment.
#[derive(Default)]
pub(crate) struct Snapshot {
    boards: HashMap<Window, Vec<TagCount>>,
    /// All tags, most used first.
    ranked: Vec<TagCount>,
    by_name: HashMap<TagName, usize>,
    /// (canonical or lower-case display form, place in `ranked`), sorted by form.
    forms: Vec<(String, usize)>,
    pub(crate) approximate: bool,
}

struct Slot {
    snapshot: Option<Arc<Snapshot>>,
    as_of: UnixMillis,
    dirty: bool,
    refreshing: bool,
    made: Instant,
    cost: Duration,
    /// When reading it began: of two that are made at once the later one stays.
    read_from: Instant,
    used: u64,
}

/// The snapshots of all tenants.
pub(crate) struct Boards {
    slots: Mutex<State>,
    visible: AtomicI64,
}

#[derive(Default)]
struct State {
    slots: HashMap<TenantId, Slot>,
    uses: u64,
}

impl Boards {
    pub(crate) fn new() -> Self {
        Self { slots: Mutex::new(State::default()), visible: AtomicI64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything committed before `at` is in the files.
    pub(crate) fn visible_through(&self, at: UnixMillis) {
        self.visible.fetch_max(at, Ordering::AcqRel);
    }

    /// Counts of these tenants moved.
    pub(crate) fn mark(&self, tenants: &BTreeSet<TenantId>) {
        let mut state = self.lock();
        for tenant in tenants {
            if let Some(slot) = state.slots.get_mut(tenant) {
                slot.dirty = true;
            }
        }
    }

    /// Counts of every tenant may have moved.
    pub(crate) fn mark_all(&self) {
        self.lock().slots.values_mut().for_each(|slot| slot.dirty = true);
    }

    /// The tenant's snapshot and the moment before which everything is in it.
    pub(crate) async fn get(
        self: &Arc<Self>,
        files: &CurrentFiles,
        tenant: &TenantId,
    ) -> Result<(Arc<Snapshot>, UnixMillis), String> {
        let (ready, refresh, old) = self.look(tenant);
        if refresh {
            let (boards, files, tenant) = (Arc::clone(self), Arc::clone(files), tenant.clone());
            let work = tokio::task::spawn_blocking(move || boards.refresh(&files, &tenant));
            // A tenant nobody asked about for long would be answered from that time: it waits once.
            // If reading fails, the old one still answers.
            match &ready {
                None => return work.await.map_err(|e| e.to_string())?,
                Some(_) if old => {
                    if let Ok(Ok(fresh)) = work.await {
                        return Ok(fresh);
                    }
                }
                Some(_) => {}
            }
        }
        match ready {
            Some(ready) => Ok(ready),
            // Another caller is making the first snapshot; making it twice is rare and harmless.
            None => {
                let (boards, files, tenant) = (Arc::clone(self), Arc::clone(files), tenant.clone());
                tokio::task::spawn_blocking(move || boards.refresh(&files, &tenant))
                    .await
                    .map_err(|e| e.to_string())?
            }
        }
    }

    /// The snapshot, whether the caller is to refresh it, and whether it is too old to answer from
    /// meanwhile.
    fn look(&self, tenant: &TenantId) -> (Option<(Arc<Snapshot>, UnixMillis)>, bool, bool) {
        let mut state = self.lock();
        state.uses += 1;
        let uses = state.uses;
        if !state.slots.contains_key(tenant) {
            state.make_room();
            let slot = Slot {
                snapshot: None,
                as_of: 0,
                dirty: true,
                refreshing: true,
                made: Instant::now(),
                cost: Duration::ZERO,
                read_from: Instant::now(),
                used: uses,
            };
            state.slots.insert(tenant.clone(), slot);
            return (None, true, true);
        }
        let visible = self.visible.load(Ordering::Acquire);
        let Some(slot) = state.slots.get_mut(tenant) else { return (None, true, true) };
        slot.used = uses;
        if !slot.dirty {
            // Nothing moved since it was made: it is as new as the files.
            slot.as_of = slot.as_of.max(visible);
        }
        let every = REFRESH.max(slot.cost * 10);
        let due = slot.made.elapsed() >= every;
        let old = slot.made.elapsed() >= every * 2;
        let refresh = slot.dirty && due && !slot.refreshing;
        slot.refreshing |= refresh;
        (slot.snapshot.as_ref().map(|s| (Arc::clone(s), slot.as_of)), refresh, old)
    }

    fn refresh(
        &self,
        files: &CurrentFiles,
        tenant: &TenantId,
    ) -> Result<(Arc<Snapshot>, UnixMillis), String> {
        let started = Instant::now();
        let as_of = self.visible.load(Ordering::Acquire);
        if let Some(slot) = self.lock().slots.get_mut(tenant) {
            // Before the read: a change during it marks the slot again.
            slot.dirty = false;
        }
        // After the mark is cleared: files that are swapped from now on set it again.
        let files = Arc::clone(&files.read().unwrap_or_else(PoisonError::into_inner));
        let made = Snapshot::read(&files, tenant);
        let mut state = self.lock();
        let slot = state.slots.get_mut(tenant);
        match made {
            Ok(snapshot) => {
                let snapshot = Arc::new(snapshot);
                if let Some(slot) = slot.filter(|s| s.snapshot.is_none() || s.read_from <= started)
                {
                    slot.read_from = started;
                    slot.snapshot = Some(Arc::clone(&snapshot));
                    slot.as_of = as_of;
                    slot.made = Instant::now();
                    slot.cost = started.elapsed();
                    slot.refreshing = false;
                }
                Ok((snapshot, as_of))
            }
            Err(error) => {
                if let Some(slot) = slot {
                    slot.dirty = true;
                    slot.refreshing = false;
                    slot.made = Instant::now();
                }
                tracing::warn!(%tenant, %error, "popular tags could not be read");
                Err(error.to_string())
            }
        }
    }
}

impl State {
    fn make_room(&mut self) {
        if self.slots.len() >= TENANTS
            && let Some(oldest) =
                self.slots.iter().min_by_key(|(_, s)| s.used).map(|(t, _)| t.clone())
        {
            self.slots.remove(&oldest);
        }
    }
}

#[derive(Default)]
struct Merged {
    counts: [u64; 4],
    first: Option<(UnixMillis, String)>,
}

impl Snapshot {
    fn read(files: &Files, tenant: &TenantId) -> rusqlite::Result<Self> {
        let mut merged: HashMap<String, Merged> = HashMap::new();
        for file in files.all() {
            file.read(|conn| {
                let mut select = conn.prepare_cached(
                    "SELECT tag, n0, n1, n2, n3, first_at, first_display FROM pop_count WHERE tenant = ?1",
                )?;
                let mut rows = select.query([tenant.as_str()])?;
                while let Some(row) = rows.next()? {
                    let tag = merged.entry(row.get(0)?).or_default();
                    let (counts, first) = counted(row, 1)?;
                    tag.counts.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
                    if let Some(first) = first
                        && tag.first.as_ref().is_none_or(|known| first < *known)
                    {
                        tag.first = Some(first);
                    }
                }
                Ok(())
            })?;
        }
        Ok(Self::of(
            merged.into_iter().map(|(tag, m)| (tag, m.first.map(|(_, display)| display), m.counts)),
        ))
    }

    /// Ranks tags with their spelling and their counts, by the windows' numbers.
    pub(crate) fn of(tags: impl Iterator<Item = (String, Option<String>, [u64; 4])>) -> Self {
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
        let mut boards = HashMap::new();
        let mut ranked = Vec::new();
        for window in Window::ALL {
            let n = number(window);
            rows.sort_unstable_by(|a, b| b.2[n].cmp(&a.2[n]).then_with(|| a.0.cmp(&b.0)));
            let used = rows.iter().take_while(|r| r.2[n] > 0);
            let list = |(tag, display, counts): &(TagName, Arc<str>, [u64; 4])| TagCount {
                tag: tag.clone(),
                display: Arc::clone(display),
                count: counts[n],
            };
            boards.insert(window, used.clone().take(BOARD_TAGS).map(list).collect());
            if window == Window::All {
                ranked = used.map(list).collect();
            }
        }
        let approximate = ranked.len() > TYPEAHEAD_TAGS;
        let mut forms = Vec::with_capacity(ranked.len());
        for (n, tag) in ranked.iter().take(TYPEAHEAD_TAGS).enumerate() {
            forms.push((tag.tag.as_str().to_owned(), n));
            let shown = tag.display.to_lowercase();
            if shown != tag.tag.as_str() {
                forms.push((shown, n));
            }
        }
        forms.sort_unstable();
        let by_name = ranked.iter().enumerate().map(|(n, t)| (t.tag.clone(), n)).collect();
        Self { boards, ranked, by_name, forms, approximate }
    }

    pub(crate) fn board(&self, window: Window, limit: usize) -> Vec<TagCount> {
        self.boards.get(&window).map_or_else(Vec::new, |b| b.iter().take(limit).cloned().collect())
    }

    pub(crate) fn count(&self, tag: &TagName) -> Option<&TagCount> {
        self.by_name.get(tag).and_then(|n| self.ranked.get(*n))
    }

    /// Tags with a form that begins with one of the prefixes, most used first.
    pub(crate) fn suggest(&self, prefixes: &[String], limit: usize) -> Vec<TagCount> {
        if prefixes.iter().any(String::is_empty) {
            return self.ranked.iter().take(limit).cloned().collect();
        }
        let mut places = BTreeSet::new();
        for prefix in prefixes {
            let start = self.forms.partition_point(|(form, _)| form.as_str() < prefix.as_str());
            let matching = self.forms[start..]
                .iter()
                .take_while(|(form, _)| form.starts_with(prefix.as_str()));
            // `ranked` is ordered by use: a smaller place is a more used tag.
            places.extend(matching.map(|(_, n)| *n));
        }
        places.into_iter().take(limit).filter_map(|n| self.ranked.get(n)).cloned().collect()
    }
}
