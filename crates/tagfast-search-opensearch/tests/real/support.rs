//! One server for the test binary, and an index of its own for each test.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::MutexGuard;
use serde_json::Value;
use tagfast_domain::{EpochId, TaggingsEvent};
use tagfast_events::{
    BusPosition, Partition, Positions, PublisherEpochs, RebuildRequest, Sink, SinkRecord, Start,
};
use tagfast_resilience::{Clock, ManualClock};
use tagfast_search::SearchIndex;
use tagfast_search::conformance::{NOW, SearchHarness};
use tagfast_search_opensearch::{OpenSearchIndex, OpenSearchOptions};
use tagfast_store::ShardScanner;
use tagfast_store::testing::MemoryStore;
use tagfast_testkit::stack::{SharedStack, Stack, StackOptions};
use tagfast_testkit::wait_for_condition_async;
use tokio::sync::{RwLock, RwLockReadGuard};

pub(crate) const EPOCH: EpochId = EpochId([7; 16]);
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A problem must be named within this time.
pub(crate) const NAMED_WITHIN: Duration = Duration::from_secs(5);

/// The stack, which the first test starts.
pub(crate) fn stack() -> MutexGuard<'static, Stack> {
    static SHARED: SharedStack = SharedStack::new();
    SHARED.get(|base| StackOptions { opensearch: true, ..base })
}

/// URL of the server behind the fault proxy.
pub(crate) async fn url() -> String {
    static URL: OnceLock<String> = OnceLock::new();
    let url = || {
        URL.get_or_init(|| stack().info().opensearch.as_ref().expect("OpenSearch").url.clone())
            .clone()
    };
    tokio::task::spawn_blocking(url).await.expect("the stack comes up")
}

/// Sends a request that only a test sends; returns status and body.
pub(crate) async fn send(method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
    let mut request = reqwest::Client::new().request(method, format!("{}/{path}", url().await));
    if let Some(body) = body {
        // A batch is a list of lines.
        let lines = match body.as_array() {
            Some(lines) => lines.iter().map(|line| format!("{line}\n")).collect(),
            None => body.to_string(),
        };
        request = request.header("content-type", "application/json").body(lines);
    }
    let answer = request.send().await.expect("an answer");
    let status = answer.status().as_u16();
    (status, serde_json::from_slice(&answer.bytes().await.expect("a body")).unwrap_or_default())
}

/// Sends a request that must succeed.
pub(crate) async fn must(method: &str, path: &str, body: Option<Value>) -> Value {
    let (status, answer) = send(method, path, body).await;
    assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
    answer
}

/// Deletes the files of an index's shards: it is red from then on.
pub(crate) async fn delete_shards(index: &str) {
    let nodes = must("GET", "_nodes/_local/stats/fs", None).await;
    let node = nodes["nodes"].as_object().and_then(|all| all.values().next()).expect("a node");
    let data = PathBuf::from(node["fs"]["data"][0]["path"].as_str().expect("a path"));
    let settings = must("GET", &format!("{index}/_settings"), None).await;
    let uuid = settings[index]["settings"]["index"]["uuid"].as_str().expect("a uuid");
    must("POST", &format!("{index}/_close"), None).await;
    for shard in ["0", "1"] {
        let folder = data.join("indices").join(uuid).join(shard);
        std::fs::remove_dir_all(folder).expect("removed");
    }
    must("POST", &format!("{index}/_open?wait_for_active_shards=0"), None).await;
}

/// Tests that need a working server hold it for reading; a test that breaks the server holds it
/// for writing.
pub(crate) static SERVER: RwLock<()> = RwLock::const_new(());

pub(crate) struct Engine {
    pub(crate) index: Arc<OpenSearchIndex>,
    pub(crate) shards: Arc<MemoryStore>,
    pub(crate) options: OpenSearchOptions,
    clock: Arc<ManualClock>,
    offset: AtomicU64,
    _server: Option<RwLockReadGuard<'static, ()>>,
}

pub(crate) async fn options() -> OpenSearchOptions {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let alias = format!("test{}-content", NEXT.fetch_add(1, Ordering::Relaxed));
    OpenSearchOptions { url: url().await.into(), login: None, alias, shards: 2 }
}

pub(crate) fn positions(next: u64) -> Positions {
    Positions::from([(
        Partition(0),
        BusPosition { next, publisher_epochs: PublisherEpochs::embedded(1), anchor: None },
    )])
}

pub(crate) fn open(
    options: &OpenSearchOptions,
    shards: &Arc<MemoryStore>,
    clock: &Arc<ManualClock>,
) -> Arc<OpenSearchIndex> {
    let (scanner, clock) =
        (Arc::clone(shards) as Arc<dyn ShardScanner>, Arc::clone(clock) as Arc<dyn Clock>);
    OpenSearchIndex::new(options.clone(), scanner, clock).expect("the client is made")
}

impl Engine {
    /// An empty index on a server that no other test breaks meanwhile.
    pub(crate) async fn new() -> Self {
        let server = SERVER.read().await;
        Self { _server: Some(server), ..Self::unprotected().await }
    }

    /// An empty index whose server another test may break meanwhile.
    pub(crate) async fn unprotected() -> Self {
        let (options, clock) = (options().await, Arc::new(ManualClock::new(NOW)));
        let shards = MemoryStore::new(Arc::clone(&clock) as Arc<dyn Clock>);
        let index = open(&options, &shards, &clock);
        assert_eq!(
            index.start(EPOCH, &[]).await.expect("it starts"),
            Start::Rebuild("there is no index yet")
        );
        index.rebuild(RebuildRequest::new(&positions(1), EPOCH)).await.expect("an empty index");
        assert_eq!(index.start(EPOCH, &[]).await.expect("it starts"), Start::Committed);
        Self { index, shards, options, clock, offset: AtomicU64::new(1), _server: None }
    }

    pub(crate) fn reopen(&self) -> Arc<OpenSearchIndex> {
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

    /// Waits until everything written is visible.
    pub(crate) async fn until_visible(&self) {
        let done = positions(self.offset.load(Ordering::SeqCst));
        wait_for_condition_async("a refresh", TEST_TIMEOUT, || async {
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
        events.iter().for_each(|e| self.shards.store_event(e));
        // The runtime passes at most one record per key.
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
        self.until_visible().await;
    }

    async fn later(&self, ms: i64) {
        self.clock.advance(ms);
        self.until_visible().await;
    }
}
