//! Counts in a temporary directory, driven as the consumer runtime drives them, beside a model.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tagfast_domain::{
    ContentKey, Epoch, EpochId, EpochOrdinal, Tag, Tagging, TaggingsEvent, TenantId, UnixMillis,
    UserId, Version,
};
use tagfast_events::{BusPosition, Partition, Positions, Sink, SinkRecord, Start, Visible};
use tagfast_popular::{PopularCounts, PopularTags, Window};
use tagfast_resilience::{Clock, ManualClock};
use tagfast_sharding::LogicalShard;
use tagfast_store::conformance::scan_states;
use tagfast_store::{ScanPage, ShardScanner, StoreError};

use crate::model::Model;

pub(crate) const EPOCH: EpochId = EpochId([7; 16]);
/// 2027-01-15T08:00:00Z, the beginning of a minute and of an hour.
pub(crate) const START: UnixMillis = 1_800_000_000_000;
pub(crate) const PARTITIONS: u16 = 8;

/// The shards, as the model of everything written.
#[derive(Default)]
pub(crate) struct Shards(pub(crate) Mutex<Model>);

#[async_trait]
impl ShardScanner for Shards {
    async fn scan(
        &self,
        shard: LogicalShard,
        tenant: Option<&TenantId>,
        after: Option<&ContentKey>,
        limit: usize,
    ) -> Result<ScanPage, StoreError> {
        let model = self.0.lock().expect("not poisoned");
        Ok(scan_states(model.states(), shard, tenant, after, limit))
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        Ok(Epoch { id: EPOCH, ordinal: EpochOrdinal(START.unsigned_abs()) })
    }
}

pub(crate) struct Counting {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) counts: Arc<PopularCounts>,
    pub(crate) shards: Arc<Shards>,
    pub(crate) clock: Arc<ManualClock>,
}

/// The event of a state whose tags were all added at `at`, unless they say otherwise.
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
            taggings.push(Tagging {
                name: tag.name,
                display: tag.display,
                user: UserId::parse("u").expect("a valid user"),
                at: *added_at,
                ord: Version::NONE,
                present: true,
            });
        }
    }
    taggings.sort_by(|a, b| a.name.cmp(&b.name));
    let version = Version::from_packed(version).expect("fits");
    TaggingsEvent { key, version, at, emit: EpochOrdinal(1), tags: taggings, changes: Vec::new() }
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
        .map(|p| (Partition(p), BusPosition { next, emits: tagfast_events::Emits::embedded(1) }))
        .collect()
}

impl Counting {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (shards, clock) = (Arc::new(Shards::default()), Arc::new(ManualClock::new(START)));
        let counts = open(&dir, &shards, &clock);
        let counting = Self { dir, counts, shards, clock };
        assert!(
            matches!(counting.counts.start(EPOCH, &[]).await, Ok(Start::Rebuild(_))),
            "a new directory is rebuilt"
        );
        counting.counts.rebuild(&positions(1), EPOCH, &|_| {}).await.expect("rebuilds");
        counting
    }

    /// Drops it as a crash would and opens it again; returns where reading goes on.
    pub(crate) async fn crash(&mut self) -> Positions {
        self.counts = open(&self.dir, &self.shards, &self.clock);
        match self.counts.start(EPOCH, &[]).await.expect("starts") {
            Start::From(from) => from,
            Start::Committed => unreachable!("the counts keep their own positions"),
            Start::Rebuild(reason) => panic!("a crash needs no rebuild: {reason}"),
        }
    }

    /// Tells the counts that everything committed before a moment was brought to them.
    pub(crate) fn visible_through(&self, at: UnixMillis) {
        let partitions = (0..PARTITIONS).map(|p| (Partition(p), at)).collect();
        self.counts.visible(&Visible { partitions, complete: true });
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.clock.now_ms()
    }

    /// Writes to the shards only.
    pub(crate) fn write(&self, events: &[TaggingsEvent]) {
        let mut model = self.shards.0.lock().expect("not poisoned");
        events.iter().for_each(|e| model.see(e));
    }

    /// Brings events to the counts.
    pub(crate) async fn deliver(&self, events: &[TaggingsEvent]) {
        self.counts.apply(&records(events)).await.expect("applies");
    }

    /// The board, from a snapshot that is surely new.
    pub(crate) async fn board(&self, tenant: &str, window: Window) -> Vec<(String, String, u64)> {
        self.counts.advance(&positions(1)).await.expect("advances");
        let fresh = open(&self.dir, &self.shards, &self.clock);
        let tenant = tenant.parse().expect("a valid tenant");
        let board = fresh.popular(&tenant, window, 1000).await.expect("answers");
        board
            .tags
            .iter()
            .map(|t| (t.tag.as_str().to_owned(), t.display.to_string(), t.count))
            .collect()
    }

    pub(crate) async fn assert_equals_the_model(&self, tenant: &str) {
        for window in Window::ALL {
            let expected =
                self.shards.0.lock().expect("not poisoned").board(tenant, window, self.now());
            assert_eq!(
                self.board(tenant, window).await,
                expected,
                "{} of {tenant}",
                window.as_str()
            );
        }
    }
}

fn open(
    dir: &tempfile::TempDir,
    shards: &Arc<Shards>,
    clock: &Arc<ManualClock>,
) -> Arc<PopularCounts> {
    let scanner: Arc<dyn ShardScanner> = Arc::<Shards>::clone(shards);
    PopularCounts::open(dir.path().to_owned(), scanner, Arc::<ManualClock>::clone(clock))
        .expect("opens")
}

/// A reproducible stream of numbers (splitmix64).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n.max(1)
    }
}
