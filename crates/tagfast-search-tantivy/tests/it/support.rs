//! An index in a temporary directory, driven as the consumer runtime drives it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tagfast_domain::{EpochId, TaggingsEvent};
use tagfast_events::{BusPosition, Partition, Positions, RebuildRequest, Sink, SinkRecord, Start};
use tagfast_resilience::ManualClock;
use tagfast_search::SearchIndex;
use tagfast_search::conformance::{NOW, SearchHarness};
use tagfast_search_tantivy::{TantivyIndex, TantivyOptions};
use tagfast_store::ShardScanner;
use tagfast_store::testing::MemoryStore;

pub(crate) const EPOCH: EpochId = EpochId([7; 16]);

pub(crate) struct Engine {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) index: Arc<TantivyIndex>,
    pub(crate) shards: Arc<MemoryStore>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) offset: Mutex<u64>,
    options: TantivyOptions,
}

pub(crate) fn options() -> TantivyOptions {
    TantivyOptions {
        writer_bytes: 15 << 20,
        commit_after: Duration::ZERO,
        commit_after_busy: Duration::ZERO,
        ..TantivyOptions::default()
    }
}

pub(crate) fn positions(next: u64) -> Positions {
    Positions::from([(
        Partition(0),
        BusPosition {
            next,
            publisher_epochs: tagfast_events::PublisherEpochs::embedded(1),
            anchor: None,
        },
    )])
}

impl Engine {
    pub(crate) async fn new() -> Self {
        Self::with(options()).await
    }

    pub(crate) async fn with(options: TantivyOptions) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let clock = Arc::new(ManualClock::new(NOW));
        let shards = MemoryStore::new(Arc::<ManualClock>::clone(&clock));
        let index = open(dir.path().to_owned(), &options, &shards, &clock);
        let engine = Self { dir, index, shards, clock, offset: Mutex::new(1), options };
        engine.rebuild_if_requested().await;
        engine
    }

    /// Crashes: drops the index without a commit and opens it again.
    pub(crate) fn crash(&mut self) {
        // The old writer must release its lock first.
        let placeholder = tempfile::tempdir().expect("a temporary directory");
        self.index = open(placeholder.path().to_owned(), &self.options, &self.shards, &self.clock);
        self.index = open(self.dir.path().to_owned(), &self.options, &self.shards, &self.clock);
    }

    /// Directories of all generations.
    pub(crate) fn generations(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.path()).expect("readable").filter_map(Result::ok);
        entries.map(|e| e.path()).filter(|p| p.is_dir()).collect()
    }

    /// Directory of the only generation.
    pub(crate) fn generation(&self) -> PathBuf {
        let mut generations = self.generations();
        assert_eq!(generations.len(), 1, "{generations:?}");
        generations.remove(0)
    }

    pub(crate) async fn rebuild_if_requested(&self) -> Option<&'static str> {
        match self.index.start(EPOCH, &[]).await.expect("the sink starts") {
            Start::From(_) => None,
            Start::Committed => unreachable!("the index keeps its own position"),
            Start::Rebuild(reason) => {
                let next = *self.offset.lock();
                self.index
                    .rebuild(RebuildRequest::new(&positions(next), EPOCH))
                    .await
                    .expect("the rebuild ends");
                Some(reason)
            }
        }
    }

    pub(crate) fn records(&self, events: &[TaggingsEvent]) -> Vec<SinkRecord> {
        let mut offset = self.offset.lock();
        events
            .iter()
            .map(|event| {
                *offset += 1;
                SinkRecord {
                    partition: Partition(0),
                    offset: *offset - 1,
                    event: Arc::new(event.clone()),
                }
            })
            .collect()
    }
}

fn open(
    dir: PathBuf,
    options: &TantivyOptions,
    shards: &Arc<MemoryStore>,
    clock: &Arc<ManualClock>,
) -> Arc<TantivyIndex> {
    let scanner: Arc<dyn ShardScanner> = Arc::<MemoryStore>::clone(shards);
    TantivyIndex::open(dir, options.clone(), scanner, Arc::<ManualClock>::clone(clock))
        .expect("the index opens")
}

#[async_trait]
impl SearchHarness for Engine {
    fn index(&self) -> Arc<dyn SearchIndex> {
        Arc::<TantivyIndex>::clone(&self.index)
    }

    async fn apply(&self, events: &[TaggingsEvent]) {
        events.iter().for_each(|e| self.shards.store_event(e));
        let records = self.records(events);
        self.index.apply(&records).await.expect("the sink applies");
    }

    async fn visible(&self) {
        let next = *self.offset.lock();
        let durable = self.index.advance(&positions(next)).await.expect("the sink advances");
        assert_eq!(durable, positions(next), "with no delay everything is committed at once");
    }

    async fn later(&self, ms: i64) {
        self.clock.advance(ms);
        self.visible().await;
    }
}
