//! What this process wrote last, per content: reads of this process must not show less.
//!
//! A cache remembers the [`RequiredVersion`] of each content it wrote; a store of several nodes
//! remembers the [`Position`] of each write, so that clients without a token read their own writes
//! from replicas.
//!
//! Memory is bounded to [`LOCAL_WRITES_MAX`] contents. How it fails: beyond that the oldest
//! contents are evicted. A position that is evicted raises the floor, which then covers every
//! content that is not remembered individually; a required version that is evicted is forgotten
//! before it expires.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_domain::Version;
use tagfast_sharding::ContentHash;
use tokio::time::Instant;

use crate::Position;

/// Maximum contents remembered individually: about 6 MB.
pub const LOCAL_WRITES_MAX: usize = 65_536;

/// What is remembered of a write, and how two writes of one content combine.
pub trait LocalWrite: Copy {
    /// Combines the remembered value with that of a later write. `None` keeps the remembered value
    /// and its expiry.
    fn merge(remembered: Self, later: Self) -> Option<Self>;

    /// The floor after `evicted` was evicted. `None`: evicted values are forgotten.
    fn floor(floor: Option<Self>, evicted: Self) -> Option<Self>;
}

/// What a cache of this process must show of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequiredVersion {
    /// At least this version.
    AtLeast(Version),
    /// The outcome of a write is unknown: no cache can prove that it is new enough, so only the
    /// store may answer.
    OutcomeUnknown,
}

impl LocalWrite for RequiredVersion {
    fn merge(remembered: Self, later: Self) -> Option<Self> {
        match (remembered, later) {
            // A later acknowledgement does not settle a lost one: their order is unknown.
            (Self::OutcomeUnknown, Self::AtLeast(_)) => None,
            (Self::AtLeast(remembered), Self::AtLeast(later)) => {
                Some(Self::AtLeast(remembered.max(later)))
            }
            (_, Self::OutcomeUnknown) => Some(Self::OutcomeUnknown),
        }
    }

    fn floor(_: Option<Self>, _: Self) -> Option<Self> {
        None
    }
}

impl LocalWrite for Position {
    fn merge(_: Self, later: Self) -> Option<Self> {
        Some(later)
    }

    fn floor(floor: Option<Self>, evicted: Self) -> Option<Self> {
        match floor {
            Some(floor) if floor.epoch == evicted.epoch && floor.lsn >= evicted.lsn => Some(floor),
            Some(_) | None => Some(evicted),
        }
    }
}

struct Entry<W> {
    value: W,
    /// Names the entry's newest place in `order`.
    stamp: u64,
    /// `None`: never expires.
    expires: Option<Instant>,
}

struct State<W> {
    entries: HashMap<ContentHash, Entry<W>>,
    /// Oldest first. A place whose stamp is not the entry's is outdated.
    order: VecDeque<(u64, Option<Instant>, ContentHash)>,
    next_stamp: u64,
    floor: Option<W>,
}

/// The last writes of this process, bounded by number and, where a TTL is set, by age.
pub struct LocalWrites<W> {
    ttl: Option<Duration>,
    state: Mutex<State<W>>,
    /// Whether anything was ever recorded: a process that only reads takes no lock.
    is_used: AtomicBool,
}

impl<W> std::fmt::Debug for LocalWrites<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalWrites")
            .field("ttl", &self.ttl)
            .field("contents", &self.state.lock().entries.len())
            .finish_non_exhaustive()
    }
}

impl<W: LocalWrite> LocalWrites<W> {
    /// An empty memory. Entries expire after `ttl`; `None`: never.
    pub fn new(ttl: Option<Duration>) -> Self {
        let state =
            State { entries: HashMap::new(), order: VecDeque::new(), next_stamp: 0, floor: None };
        Self { ttl, state: Mutex::new(state), is_used: AtomicBool::new(false) }
    }

    /// Records a write of `content`.
    pub fn record(&self, content: ContentHash, write: W) {
        let now = Instant::now();
        let expires = self.ttl.map(|ttl| now + ttl);
        let mut state = self.state.lock();
        let remembered = state.entries.get(&content).filter(|entry| !is_over(entry.expires, now));
        let merged = match remembered {
            Some(entry) => W::merge(entry.value, write),
            None => Some(write),
        };
        let Some(value) = merged else { return };
        self.is_used.store(true, Ordering::Release);
        state.next_stamp += 1;
        let stamp = state.next_stamp;
        state.entries.insert(content, Entry { value, stamp, expires });
        state.order.push_back((stamp, expires, content));
        state.evict(now);
    }

    /// What a read of `content` must show; `None`: no requirement.
    pub fn get(&self, content: ContentHash) -> Option<W> {
        if !self.is_used.load(Ordering::Acquire) {
            return None;
        }
        let state = self.state.lock();
        match state.entries.get(&content) {
            Some(entry) if !is_over(entry.expires, Instant::now()) => Some(entry.value),
            Some(_) | None => state.floor,
        }
    }
}

fn is_over(expires: Option<Instant>, now: Instant) -> bool {
    expires.is_some_and(|at| at <= now)
}

impl<W: LocalWrite> State<W> {
    /// Removes expired entries and, beyond the bounds, the oldest ones.
    fn evict(&mut self, now: Instant) {
        while let Some((stamp, expires, content)) = self.order.front().copied() {
            let expired = is_over(expires, now);
            let over_bound =
                self.entries.len() > LOCAL_WRITES_MAX || self.order.len() > 2 * LOCAL_WRITES_MAX;
            if !expired && !over_bound {
                break;
            }
            self.order.pop_front();
            if self.entries.get(&content).is_none_or(|entry| entry.stamp != stamp) {
                continue;
            }
            if let Some(entry) = self.entries.remove(&content)
                && !expired
            {
                self.floor = W::floor(self.floor, entry.value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tagfast_domain::EpochId;

    const TTL: Duration = Duration::from_secs(30);

    fn version(n: u64) -> RequiredVersion {
        RequiredVersion::AtLeast(Version::from_packed(n).expect("63 bits"))
    }

    fn position(lsn: u64) -> Position {
        Position { epoch: EpochId([1; 16]), xid: 0, lsn }
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_version_counts_until_it_expires() {
        let writes = LocalWrites::new(Some(TTL));
        let content = ContentHash(1);
        assert_eq!(writes.get(content), None);
        writes.record(content, version(7));
        writes.record(content, version(5));
        assert_eq!(writes.get(content), Some(version(7)), "acknowledgements arrive in any order");
        tokio::time::advance(Duration::from_secs(29)).await;
        writes.record(content, RequiredVersion::OutcomeUnknown);
        writes.record(content, version(9));
        assert_eq!(writes.get(content), Some(RequiredVersion::OutcomeUnknown));
        tokio::time::advance(TTL).await;
        assert_eq!(writes.get(content), None);
        writes.record(content, version(9));
        assert_eq!(writes.get(content), Some(version(9)));
    }

    #[tokio::test(start_paused = true)]
    async fn versions_are_bounded_and_expired_ones_are_removed() {
        let writes = LocalWrites::new(Some(TTL));
        for n in 0..2 * LOCAL_WRITES_MAX as u64 {
            writes.record(ContentHash(n), version(1));
        }
        assert!(
            writes.state.lock().entries.len() <= LOCAL_WRITES_MAX
                && writes.state.lock().order.len() <= LOCAL_WRITES_MAX
        );
        assert_eq!(writes.get(ContentHash(0)), None, "an evicted version is forgotten");
        tokio::time::advance(TTL + Duration::from_secs(1)).await;
        writes.record(ContentHash(0), version(1));
        assert_eq!(writes.state.lock().entries.len(), 1, "expired writes are removed");
    }

    #[test]
    fn an_evicted_position_raises_the_floor() {
        let writes = LocalWrites::new(None);
        assert_eq!(writes.get(ContentHash(0)), None);
        for n in 0..=LOCAL_WRITES_MAX as u64 {
            writes.record(ContentHash(n), position(n + 1));
        }
        assert_eq!(writes.get(ContentHash(0)), Some(position(1)), "the first one is the floor");
        assert_eq!(writes.get(ContentHash(7)), Some(position(8)));
        assert_eq!(writes.get(ContentHash(1 << 40)), Some(position(1)));
    }

    #[test]
    fn the_newest_position_of_a_content_counts() {
        let writes = LocalWrites::new(None);
        writes.record(ContentHash(1), position(1));
        writes.record(ContentHash(1), position(9));
        assert_eq!(writes.get(ContentHash(1)), Some(position(9)));
    }

    #[test]
    fn one_content_written_without_end_stays_bounded() {
        let writes = LocalWrites::new(None);
        for n in 0..3 * LOCAL_WRITES_MAX as u64 {
            writes.record(ContentHash(1), position(n));
        }
        assert!(writes.state.lock().order.len() <= 2 * LOCAL_WRITES_MAX);
        assert_eq!(writes.get(ContentHash(1)), Some(position(3 * LOCAL_WRITES_MAX as u64 - 1)));
    }
}
