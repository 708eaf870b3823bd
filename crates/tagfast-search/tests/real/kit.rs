//! One server for the binary, an index of its own for each test.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{EpochId, TaggingsEvent};
use tagfast_events::{BusPosition, Emits, Partition, Positions, Sink, SinkRecord, Start};
use tagfast_resilience::{Clock, ManualClock};
use tagfast_search::conformance::{NOW, SearchHarness};
use tagfast_search::{OpenSearchIndex, OpenSearchOptions, SearchIndex};
use tagfast_store::ShardScanner;
use tagfast_testkit::stack::{SharedStack, Stack, StackOptions};
use tagfast_testkit::wait_for_condition_async;
use tokio::sync::{RwLock, RwLockReadGuard};

use crate::kit::shards::Shards;

#[path = "../it/shards.rs"]
pub(crate) mod shards;

pub(crate) const EPOCH: EpochId = EpochId([7; 16]);
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The stack, started by whoever comes first.
pub(crate) fn stack() -> MutexGuard<'static, Stack> {
    static SHARED: SharedStack = SharedStack::new();
    SHARED.get(|base| StackOptions { opensearch: true, ..base })
}

/// The server's URL, behind the fault proxy.
pub(crate) async fn url() -> String {
    static URL: OnceLock<String> = OnceLock::new();
    let url = || {
        URL.get_or_init(|| stack().info().opensearch.as_ref().expect("OpenSearch").url.clone())
            .clone()
    };
    tokio::task::spawn_blocking(url).await.expect("the stack comes up")
}

/// Held by tests that need a server that works; whoever breaks it waits for them.
pub(crate) static SERVER: RwLock<()> = RwLock::const_new(());

pub(crate) struct Engine {
    pub(crate) index: Arc<OpenSearchIndex>,
    pub(crate) shards: Arc<Shards>,
    pub(crate) options: OpenSearchOptions,
    clock: Arc<ManualClock>,
    offset: AtomicU64,
    _quiet: Option<RwLockReadGuard<'static, ()>>,
}

pub(crate) async fn options() -> OpenSearchOptions {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let alias = format!("test{}-content", NEXT.fetch_add(1, Ordering::Relaxed));
    OpenSearchOptions { url: url().await, alias, shards: 2 }
}

pub(crate) fn at(next: u64) -> Positions {
    Positions::from([(Partition(0), BusPosition { next, emits: Emits::embedded(1) })])
}

pub(crate) fn open(
    options: &OpenSearchOptions,
    shards: &Arc<Shards>,
    clock: &Arc<ManualClock>,
) -> Arc<OpenSearchIndex> {
    let (scanner, clock) =
        (Arc::clone(shards) as Arc<dyn ShardScanner>, Arc::clone(clock) as Arc<dyn Clock>);
    OpenSearchIndex::new(options.clone(), scanner, clock).expect("the client is made")
}

impl Engine {
    /// An empty index on a server that nobody breaks meanwhile.
    pub(crate) async fn new() -> Self {
        let quiet = SERVER.read().await;
        Self { _quiet: Some(quiet), ..Self::unprotected().await }
    }

    pub(crate) async fn unprotected() -> Self {
        let (options, shards, clock) =
            (options().await, Arc::default(), Arc::new(ManualClock::new(NOW)));
        let index = open(&options, &shards, &clock);
        assert_eq!(
            index.start(EPOCH, &[]).await.expect("it starts"),
            Start::Rebuild("there is no index yet")
        );
        index.rebuild(&at(1), EPOCH, &|_| {}).await.expect("an empty index");
        assert_eq!(index.start(EPOCH, &[]).await.expect("it starts"), Start::Committed);
        Self { index, shards, options, clock, offset: AtomicU64::new(1), _quiet: None }
    }

    pub(crate) fn again(&self) -> Arc<OpenSearchIndex> {
        open(&self.options, &self.shards, &self.clock)
    }

    pub(crate) fn records(&self, events: &[TaggingsEvent]) -> Vec<SinkRecord> {
        let record = |event: &TaggingsEvent| SinkRecord {
            partition: Partition(0),
            offset: self.offset.fetch_add(1, Ordering::SeqCst),
            event: Arc::new(event.clone()),
        };
        events.iter().map(record).collect()
    }

    /// Until everything that was written is visible.
    pub(crate) async fn shown(&self) {
        let done = at(self.offset.load(Ordering::SeqCst));
        wait_for_condition_async("a refresh", PATIENCE, || async {
            let visible = self.index.advance(&done).await.map_err(|e| e.to_string())?;
            if visible == done { Ok(()) } else { Err(format!("{visible:?}")) }
        })
        .await;
    }
}

#[async_trait]
impl SearchHarness for Engine {
    fn index(&self) -> Arc<dyn SearchIndex> {
        Arc::clone(&self.index) as _
    }

    async fn apply(&self, events: &[TaggingsEvent]) {
        events.iter().for_each(|e| self.shards.put(e));
        // The runtime hands over at most one record of a key.
        let mut keys = std::collections::BTreeMap::new();
        events.iter().for_each(|e| {
            let newest = keys.entry(&e.key).or_insert(e);
            if newest.version < e.version {
                *newest = e;
            }
        });
        let newest: Vec<TaggingsEvent> = keys.into_values().cloned().collect();
        self.index.apply(&self.records(&newest)).await.expect("the sink applies");
    }

    async fn visible(&self) {
        self.shown().await;
    }

    async fn later(&self, ms: i64) {
        self.clock.advance(ms);
        self.shown().await;
    }
}
