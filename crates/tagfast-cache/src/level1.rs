//! L1: views in this process, kept true by numbered messages from Redis.
//!
//! An entry answers only while this process is known to hear of changes ([`Level1::heard`]); else
//! it is kept, and answers only as stale. A message that was missed empties its stripe. What was
//! read before a change and arrives after it is not let in: each stripe remembers what was just
//! changed, and how often it was emptied when a read began.
//!
//! How it fails: without messages for a second it answers nothing; entries heavier than a part of
//! it are not kept.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tagfast_domain::{UnixMillis, Version};
use tagfast_resilience::chance;
use tagfast_sharding::{ContentHash, LogicalShard, SHARDS};
use tokio::time::Instant;

use crate::entry::Entry;

/// How long an entry answers, 20 % up or down.
const KEPT_FOR: Duration = Duration::from_secs(5);
/// How long messages may be silent.
const HEARD_FOR: Duration = Duration::from_secs(1);
/// Places of a stripe's memory of what was just changed.
const CHANGED: usize = 4096;
/// How long a read may be under way while a change of what it reads is remembered.
const CHANGED_FOR: Duration = Duration::from_secs(15);

struct Slot {
    entry: Arc<Entry>,
    until: Instant,
    emptied: u64,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Box<[u8]>, Arc<Slot>> for ByBytes {
    fn weight(&self, key: &Box<[u8]>, slot: &Arc<Slot>) -> u64 {
        key.len() as u64 + slot.entry.weight()
    }
}

/// A place of the memory: contents share it, so it may keep one out that did not change, never let
/// one in that did.
#[derive(Clone, Copy)]
struct Changed {
    version: Version,
    until: Instant,
}

struct Stripe {
    emptied: AtomicU64,
    changed: Mutex<Vec<Option<Changed>>>,
}

/// Which messages a read had heard when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// What L1 has of a content.
pub(crate) enum Found {
    /// It may answer.
    Fresh(Arc<Entry>),
    /// It may answer when nobody else does.
    Old(Arc<Entry>),
}

/// The entries of this process.
pub(crate) struct Level1 {
    cache: Cache<Box<[u8]>, Arc<Slot>, ByBytes>,
    stripes: Vec<Stripe>,
    began: Instant,
    /// Milliseconds since `began` until which changes are known to be heard; `u64::MAX`: there is
    /// nobody to hear.
    heard_until: AtomicU64,
}

impl Level1 {
    /// Of at most `bytes`. Unless it is told of changes (`told`), it relies on the short time that
    /// its entries live.
    pub(crate) fn new(bytes: u64, told: bool) -> Self {
        let entries = usize::try_from(bytes / 800).unwrap_or(usize::MAX).max(16);
        let stripe =
            || Stripe { emptied: AtomicU64::new(0), changed: Mutex::new(vec![None; CHANGED]) };
        Self {
            cache: Cache::with_weighter(entries, bytes, ByBytes),
            stripes: (0..SHARDS).map(|_| stripe()).collect(),
            began: Instant::now(),
            heard_until: AtomicU64::new(if told { 0 } else { u64::MAX }),
        }
    }

    fn stripe(&self, shard: LogicalShard) -> &Stripe {
        &self.stripes[usize::from(shard.number())]
    }

    fn since(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    /// Everything published before `sent` was heard.
    pub(crate) fn heard(&self, sent: Instant) {
        self.heard_until.store(self.since(sent + HEARD_FOR), Ordering::Release);
    }

    /// Messages may have been missed from now on.
    pub(crate) fn deaf(&self) {
        self.heard_until.store(0, Ordering::Release);
    }

    /// Whether it may answer.
    pub(crate) fn hears(&self) -> bool {
        self.since(Instant::now()) < self.heard_until.load(Ordering::Acquire)
    }

    /// To be taken before whatever is to be put in is read.
    pub(crate) fn ticket(&self, shard: LogicalShard) -> Ticket {
        Ticket(self.stripe(shard).emptied.load(Ordering::Acquire))
    }

    /// What is kept of a content.
    pub(crate) fn get(&self, key: &[u8], shard: LogicalShard) -> Option<Found> {
        let slot = self.cache.get(key)?;
        let entry = Arc::clone(&slot.entry);
        let fresh =
            slot.until > Instant::now() && slot.emptied == self.ticket(shard).0 && self.hears();
        Some(if fresh { Found::Fresh(entry) } else { Found::Old(entry) })
    }

    /// Keeps an entry unless a newer one is there or was heard of.
    pub(crate) fn put(
        &self,
        key: &[u8],
        hash: ContentHash,
        entry: Arc<Entry>,
        ticket: Ticket,
        soft: Duration,
    ) {
        let shard = LogicalShard::of_hash(hash);
        let now = Instant::now();
        let changed = self.changed(shard);
        if ticket != self.ticket(shard) {
            return;
        }
        let known = changed.get(place(hash)).copied().flatten().filter(|known| known.until > now);
        if known.is_some_and(|known| entry.version < known.version) {
            return;
        }
        // The same one is put in again: that it was just read from Redis says that it is still the
        // newest there.
        if let Some(there) = self.cache.peek(key)
            && there.emptied == ticket.0
            && there.entry.is_newer_than(&entry)
        {
            return;
        }
        let until = now + spread(KEPT_FOR).min(soft);
        self.cache.insert(key.into(), Arc::new(Slot { entry, until, emptied: ticket.0 }));
    }

    /// A content has a newer version.
    pub(crate) fn is_changed(&self, key: &[u8], version: Version) {
        let hash = ContentHash::of_bytes(key);
        let mut changed = self.changed(LogicalShard::of_hash(hash));
        let now = Instant::now();
        if let Some(place) = changed.get_mut(place(hash)) {
            let before = place
                .filter(|before| before.until > now)
                .map_or(version, |before| before.version.max(version));
            *place = Some(Changed { version: before, until: now + CHANGED_FOR });
        }
        self.cache.remove_if(key, |slot| slot.entry.version < version);
    }

    /// Something may be wrong with a content: nothing that is kept of it answers.
    pub(crate) fn drop_one(&self, key: &[u8], shard: LogicalShard) {
        let _order = self.changed(shard);
        self.cache.remove(key);
    }

    /// A change may have been missed: nothing that is kept of the stripe answers as good any more.
    pub(crate) fn empty(&self, shard: LogicalShard) {
        let _order = self.changed(shard);
        self.stripe(shard).emptied.fetch_add(1, Ordering::AcqRel);
    }

    /// What was read at or after a moment and would still answer if it were in Redis.
    pub(crate) fn read_since(
        &self,
        since: UnixMillis,
        now: UnixMillis,
    ) -> Vec<(Box<[u8]>, Arc<Entry>)> {
        let known = self.cache.iter().map(|(key, slot)| (key, Arc::clone(&slot.entry)));
        known.filter(|(_, entry)| entry.read_at >= since && entry.soft_until > now).collect()
    }

    /// The lock under which a stripe's entries change.
    fn changed(&self, shard: LogicalShard) -> MutexGuard<'_, Vec<Option<Changed>>> {
        self.stripe(shard).changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes and entries.
    pub(crate) fn size(&self) -> (u64, usize) {
        (self.cache.weight(), self.cache.len())
    }
}

/// A time, 20 % up or down, so that what came together does not go together.
pub(crate) fn spread(time: Duration) -> Duration {
    time.mul_f64(0.8 + 0.4 * chance())
}

fn place(hash: ContentHash) -> usize {
    // Other bits than those that chose the stripe.
    (hash.0 >> 20) as usize % CHANGED
}

#[cfg(test)]
mod tests {
    use tagfast_domain::EpochId;
    use tagfast_store::Position;

    use super::*;

    const SOFT: Duration = Duration::from_secs(60);

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

    fn put(level1: &Level1, key: &[u8], version: u64) {
        let (hash, shard) = of(key);
        level1.put(key, hash, entry(version), level1.ticket(shard), SOFT);
    }

    /// The version, and whether it may answer.
    fn got(level1: &Level1, key: &[u8]) -> Option<(u64, bool)> {
        level1.get(key, of(key).1).map(|found| match found {
            Found::Fresh(entry) => (entry.version.packed(), true),
            Found::Old(entry) => (entry.version.packed(), false),
        })
    }

    fn heard() -> Level1 {
        let level1 = Level1::new(1 << 20, true);
        level1.heard(Instant::now());
        level1
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_drops_what_is_older_and_keeps_the_rest() {
        let level1 = heard();
        put(&level1, b"a", 5);
        level1.is_changed(b"a", Version::from_packed(5).unwrap());
        assert_eq!(got(&level1, b"a"), Some((5, true)), "its own echo");
        level1.is_changed(b"a", Version::from_packed(6).unwrap());
        assert_eq!(got(&level1, b"a"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_before_a_change_does_not_come_in_after_it() {
        let level1 = heard();
        level1.is_changed(b"a", Version::from_packed(8).unwrap());
        put(&level1, b"a", 7);
        assert_eq!(got(&level1, b"a"), None);
        put(&level1, b"a", 8);
        assert_eq!(got(&level1, b"a"), Some((8, true)));
        put(&level1, b"a", 7);
        assert_eq!(got(&level1, b"a"), Some((8, true)), "never backwards");
    }

    #[tokio::test(start_paused = true)]
    async fn a_missed_message_empties_its_stripe_and_refuses_what_is_on_its_way() {
        let level1 = heard();
        let (hash, shard) = of(b"a");
        let other = (0u32..).map(|n| n.to_be_bytes()).find(|key| of(key).1 != shard).unwrap();
        put(&level1, b"a", 5);
        put(&level1, &other, 5);
        let before = level1.ticket(shard);
        level1.empty(shard);
        assert_eq!(got(&level1, b"a"), Some((5, false)), "it still answers as stale");
        assert_eq!(got(&level1, &other), Some((5, true)));
        level1.put(b"a", hash, entry(9), before, SOFT);
        assert_eq!(got(&level1, b"a"), Some((5, false)));
        put(&level1, b"a", 5);
        assert_eq!(got(&level1, b"a"), Some((5, true)), "read anew");
    }

    #[tokio::test(start_paused = true)]
    async fn without_messages_it_answers_for_a_second() {
        let level1 = heard();
        put(&level1, b"a", 5);
        tokio::time::advance(Duration::from_millis(999)).await;
        assert_eq!(got(&level1, b"a"), Some((5, true)));
        tokio::time::advance(Duration::from_millis(2)).await;
        assert_eq!(got(&level1, b"a"), Some((5, false)));
        level1.heard(Instant::now());
        assert_eq!(got(&level1, b"a"), Some((5, true)), "nothing was missed");
        level1.deaf();
        assert!(!level1.hears());
    }

    #[tokio::test(start_paused = true)]
    async fn entries_live_about_five_seconds_and_never_past_their_soft_end() {
        let level1 = Level1::new(1 << 20, false);
        put(&level1, b"a", 5);
        let (hash, shard) = of(b"b");
        level1.put(b"b", hash, entry(5), level1.ticket(shard), Duration::from_secs(1));
        tokio::time::advance(Duration::from_millis(1001)).await;
        assert_eq!((got(&level1, b"a"), got(&level1, b"b")), (Some((5, true)), Some((5, false))));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(got(&level1, b"a"), Some((5, false)));
        put(&level1, b"a", 5);
        assert_eq!(got(&level1, b"a"), Some((5, true)), "the same one, read again");
    }

    #[test]
    fn times_are_spread_by_a_fifth() {
        let times: Vec<f64> =
            (0..1000).map(|_| spread(Duration::from_secs(10)).as_secs_f64()).collect();
        let (least, most) =
            times.iter().fold((f64::MAX, 0.0f64), |(a, b), t| (a.min(*t), b.max(*t)));
        assert!((8.0..8.2).contains(&least) && (11.8..=12.0).contains(&most), "{least} {most}");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let level1 = Level1::new(64 << 10, false);
        for n in 0..10_000u32 {
            put(&level1, &n.to_be_bytes(), 1);
        }
        let (bytes, entries) = level1.size();
        assert!(bytes <= 64 << 10 && entries > 50, "{bytes} bytes, {entries} entries");
    }
}
