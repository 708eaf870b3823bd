//! Counts in a temporary directory, driven as the consumer runtime drives them, beside a model.

use std::sync::Arc;

use tagfast_domain::{
    ContentKey, EpochId, EpochOrdinal, Tag, Tagging, TaggingsEvent, TenantId, UnixMillis, UserId,
    Version,
};
use tagfast_events::{
    BusPosition, Partition, Positions, RebuildRequest, Sink, SinkRecord, Start, VisibleThrough,
};
use tagfast_popular::{PopularTags, TagCount, Window};
use tagfast_popular_counts::PopularCounts;
use tagfast_resilience::{Clock, ManualClock};
use tagfast_sharding::LogicalShard;
use tagfast_store::ShardScanner;
use tagfast_store::testing::MemoryStore;

use crate::model;

pub(crate) const EPOCH: EpochId = EpochId([7; 16]);
/// 2027-01-15T08:00:00Z, the beginning of a minute and of an hour.
pub(crate) const START: UnixMillis = 1_800_000_000_000;
pub(crate) const PARTITIONS: u16 = 8;

pub(crate) struct Counting {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) counts: Arc<PopularCounts>,
    pub(crate) shards: Arc<MemoryStore>,
    pub(crate) clock: Arc<ManualClock>,
}

/// Builds the event of a state; each tag has its own time (Unix ms).
pub(crate) fn event(
    tenant: &str,
    id: &str,
    version: u64,
    at: UnixMillis,
    tags: &[(&str, UnixMillis)],
) -> TaggingsEvent {
    let key = ContentKey::parse(tenant, "t", id).expect("a valid key");
    let mut taggings: Vec<Tagging> = Vec::new();
    for (text, added_at) in tags {
        let tag = Tag::parse(text).expect("a valid tag");
        if !taggings.iter().any(|t| t.name == tag.name) {
            taggings.push(Tagging::of(
                tag,
                UserId::parse("u").expect("a valid user"),
                *added_at,
                Version::NONE,
            ));
        }
    }
    taggings.sort_by(|a, b| a.name.cmp(&b.name));
    let version = Version::from_packed(version).expect("fits");
    TaggingsEvent {
        key,
        version,
        at,
        publisher_epoch: EpochOrdinal(1),
        tags: taggings,
        changes: Vec::new(),
    }
}

pub(crate) fn records(events: &[TaggingsEvent]) -> Vec<SinkRecord> {
    let partition =
        |e: &TaggingsEvent| Partition(u16::from(LogicalShard::of(&e.key).number()) % PARTITIONS);
    events
        .iter()
        .map(|e| SinkRecord { partition: partition(e), offset: 1, event: Arc::new(e.clone()) })
        .collect()
}

pub(crate) fn positions(next: u64) -> Positions {
    (0..PARTITIONS)
        .map(|p| {
            (
                Partition(p),
                BusPosition {
                    next,
                    publisher_epochs: tagfast_events::PublisherEpochs::embedded(1),
                    anchor: None,
                },
            )
        })
        .collect()
}

impl Counting {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let clock = Arc::new(ManualClock::new(START));
        let shards = MemoryStore::new(Arc::<ManualClock>::clone(&clock));
        let counts = open(&dir, &shards, &clock);
        let counting = Self { dir, counts, shards, clock };
        assert!(
            matches!(counting.counts.start(EPOCH, &[]).await, Ok(Start::Rebuild(_))),
            "a new directory is rebuilt"
        );
        counting.counts.rebuild(RebuildRequest::new(&positions(1), EPOCH)).await.expect("rebuilds");
        counting
    }

    /// Crashes: drops the counts and opens them again; returns the positions to read on from.
    pub(crate) async fn crash(&mut self) -> Positions {
        self.counts = open(&self.dir, &self.shards, &self.clock);
        match self.counts.start(EPOCH, &[]).await.expect("starts") {
            Start::From(from) => from,
            Start::Committed => unreachable!("the counts keep their own positions"),
            Start::Rebuild(reason) => panic!("a crash needs no rebuild: {reason}"),
        }
    }

    /// Tells the counts that every write committed before `at` (Unix ms) is delivered.
    pub(crate) fn visible_through(&self, at: UnixMillis) {
        let partitions = (0..PARTITIONS).map(|p| (Partition(p), at)).collect();
        self.counts.visible(&VisibleThrough { partitions, complete: true });
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.clock.now_ms()
    }

    /// Writes to the shards only.
    pub(crate) fn write(&self, events: &[TaggingsEvent]) {
        events.iter().for_each(|e| self.shards.store_event(e));
    }

    /// Delivers events to the counts.
    pub(crate) async fn deliver(&self, events: &[TaggingsEvent]) {
        self.counts.apply(&records(events)).await.expect("applies");
    }

    /// The leaderboard, from a fresh snapshot.
    pub(crate) async fn leaderboard(
        &self,
        tenant: &str,
        window: Window,
    ) -> Vec<(String, String, u64)> {
        self.counts.advance(&positions(1)).await.expect("advances");
        let fresh = open(&self.dir, &self.shards, &self.clock);
        let tenant = tenant.parse().expect("a valid tenant");
        let leaderboard = fresh.popular(&tenant, window, 1000).await.expect("answers");
        leaderboard
            .tags
            .iter()
            .map(|t| (t.tag.as_str().to_owned(), t.display.to_string(), t.count))
            .collect()
    }

    pub(crate) async fn assert_equals_the_model(&self, tenant: &str) {
        let id = tenant.parse().expect("a valid tenant");
        for window in Window::ALL {
            let expected = model::leaderboard(&self.shards, &id, window, self.now());
            assert_eq!(
                self.leaderboard(tenant, window).await,
                expected,
                "{} of {tenant}",
                window.as_str()
            );
        }
        let mut expected = model::leaderboard(&self.shards, &id, Window::All, self.now());
        expected.sort();
        assert_eq!(all_tags(&*self.counts, &id, 3).await, expected, "all tags of {tenant}");
    }

    /// The SQLite files of the counts.
    pub(crate) fn databases(&self) -> Vec<std::path::PathBuf> {
        let current = tagfast_resilience::generation::current(self.dir.path());
        let current = current.expect("a generation");
        (0..PARTITIONS).map(|n| current.join(format!("popular-{n}.sqlite"))).collect()
    }
}

/// Lists all tags in pages: (tag, display, count).
pub(crate) async fn all_tags(
    counts: &dyn PopularTags,
    tenant: &TenantId,
    limit: usize,
) -> Vec<(String, String, u64)> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = counts.list(tenant, after.as_ref(), limit).await.expect("a page");
        assert!(page.tags.len() <= limit, "{page:?}");
        let row = |t: &TagCount| (t.tag.as_str().to_owned(), t.display.to_string(), t.count);
        all.extend(page.tags.iter().map(row));
        after = page.next;
        if after.is_none() {
            return all;
        }
    }
}

fn open(
    dir: &tempfile::TempDir,
    shards: &Arc<MemoryStore>,
    clock: &Arc<ManualClock>,
) -> Arc<PopularCounts> {
    let scanner: Arc<dyn ShardScanner> = Arc::<MemoryStore>::clone(shards);
    PopularCounts::open(dir.path().to_owned(), scanner, Arc::<ManualClock>::clone(clock))
        .expect("opens")
}
