//! Rebuilds while other processes read and write.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use tagfast_domain::{Epoch, TenantId};
use tagfast_events::{RebuildRequest, Sink};
use tagfast_resilience::{ErrorChain, ManualClock};
use tagfast_search::SearchIndex;
use tagfast_search::conformance::{NOW, event, request};
use tagfast_search_opensearch::{OpenSearchIndex, ReindexError};
use tagfast_store::testing::MemoryStore;
use tagfast_store::{ScanPage, ScanRequest, ShardScanner, StoreError};
use tokio::sync::Semaphore;

use crate::support::{EPOCH, Engine, TEST_TIMEOUT, must, positions};

/// One process rebuilds while another writes: the new index holds the newest state of every
/// content, and no search fails meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_includes_concurrent_writes() {
    let engine = Engine::new().await;
    for chunk in 0..5 {
        let events: Vec<_> = (0..400)
            .map(|n| event("acme", "t", &format!("{}", chunk * 400 + n), 1, NOW, &["old", "all"]))
            .collect();
        events.iter().for_each(|e| engine.shards.store_event(e));
        // The rebuild finds the first chunk in the shards; the index never had it.
        if chunk > 0 {
            engine.index.apply(&engine.records(&events)).await.expect("applied");
        }
    }
    engine.until_visible().await;
    let acme = TenantId::parse("acme").expect("a tenant");
    assert_eq!(engine.index.documents().await.expect("a count"), 1600);
    let rebuilder = engine.reopen();
    let rebuilding =
        tokio::spawn(
            async move { rebuilder.rebuild(RebuildRequest::new(&positions(1), EPOCH)).await },
        );
    let mut round = 0;
    while !rebuilding.is_finished() {
        round += 1;
        let events: Vec<_> = (0..40)
            .map(|n| {
                event(
                    "acme",
                    "t",
                    &format!("{}", (round * 40 + n) % 2000),
                    1 + round,
                    NOW,
                    &["new", "all"],
                )
            })
            .collect();
        events.iter().for_each(|e| engine.shards.store_event(e));
        engine.index.apply(&engine.records(&events)).await.expect("applied");
        engine
            .index
            .search(&acme, &request("all"))
            .await
            .expect("a search is answered all the while");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rebuilding.await.expect("no panic").expect("rebuilt");
    engine.until_visible().await;
    let mut wanted: Vec<(String, u64)> = engine
        .shards
        .documents(&acme)
        .iter()
        .map(|(key, document)| {
            (key.content.content_id.as_str().to_owned(), document.version.packed())
        })
        .collect();
    let mut found = Vec::new();
    let mut page = request("all");
    page.sort = tagfast_search::Sort::Id;
    loop {
        let answer = engine.index.search(&acme, &page).await.expect("answered");
        found.extend(
            answer
                .hits
                .iter()
                .map(|h| (h.content.content_id.as_str().to_owned(), h.version.packed())),
        );
        match answer.next {
            Some(next) => page.after = Some(next),
            None => break,
        }
    }
    wanted.sort();
    found.sort();
    assert_eq!(found.len(), wanted.len());
    assert_eq!(found, wanted);
    let again: Arc<_> = engine.reopen();
    assert_eq!(again.check().await, None, "the new index is usable");
}

/// Processes that start a rebuild at the same time take turns, and each ends with a complete
/// index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_rebuilds_take_turns() {
    let engine = Engine::new().await;
    let events: Vec<_> =
        (0..3000).map(|n| event("acme", "t", &n.to_string(), 1, NOW, &["all"])).collect();
    events.iter().for_each(|e| engine.shards.store_event(e));
    let rebuilds = (0..3).map(|_| {
        let index = engine.reopen();
        tokio::spawn(async move {
            let mut waits = 0;
            // As the consumer runtime does: retry after a failure of the sink.
            while let Err(error) = index.rebuild(RebuildRequest::new(&positions(1), EPOCH)).await {
                let chain = ErrorChain(&error).to_string();
                assert!(chain.contains("another process rebuilds"), "{chain}");
                waits += 1;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            waits
        })
    });
    let mut waited = 0;
    for rebuild in rebuilds.collect::<Vec<_>>() {
        waited += tokio::time::timeout(Duration::from_secs(60), rebuild)
            .await
            .expect("it ends")
            .expect("no panic");
    }
    assert!(waited > 0, "the rebuilds overlapped");
    assert_eq!(engine.index.documents().await.expect("a count"), 3000);
    assert_eq!(engine.index.check().await, None, "one index is served");
}

/// The sweep removes a tombstone only after its retention, and never a content with tags.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_expired_tombstones_are_swept() {
    let engine = Engine::new().await;
    let old = NOW - 31 * 86_400_000;
    let events = [
        event("acme", "t", "old-tombstone", 2, old, &[]),
        event("acme", "t", "young-tombstone", 2, NOW, &[]),
        event("acme", "t", "old-content", 2, old, &["kept"]),
    ];
    engine.index.apply(&engine.records(&events)).await.expect("applied");
    engine.until_visible().await;
    let sweeper = engine.reopen();
    sweeper.advance(&positions(1)).await.expect("the first advance of a day sweeps");
    let keys: Vec<_> = events.iter().map(|event| event.key.clone()).collect();
    tagfast_testkit::wait_for_condition_async("the sweep", Duration::from_secs(15), || async {
        let known = engine.index.versions(&keys).await.map_err(|e| e.to_string())?;
        let there: Vec<bool> = known.iter().map(Option::is_some).collect();
        if there == [false, true, true] { Ok(()) } else { Err(format!("{there:?}")) }
    })
    .await;
}

/// A scanner that stops before its first page until the test lets it go on.
struct Gate {
    shards: Arc<MemoryStore>,
    reached: Semaphore,
    open: Semaphore,
}

#[async_trait]
impl ShardScanner for Gate {
    async fn scan(&self, request: ScanRequest<'_>) -> Result<ScanPage, StoreError> {
        self.reached.add_permits(1);
        self.open.acquire().await.expect("never closed").forget();
        self.open.add_permits(1);
        self.shards.scan(request).await
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        self.shards.epoch().await
    }
}

/// Whatever an operator does to the index that is filled ends the rebuild, the old index serves on,
/// and the next rebuild succeeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_notices_what_is_done_to_its_index() {
    for fault in ["deleted", "created again", "alias removed", "closed", "read-only", "altered"] {
        let engine = Engine::new().await;
        let events: Vec<_> =
            (0..50).map(|n| event("acme", "t", &n.to_string(), 1, NOW, &["all"])).collect();
        events.iter().for_each(|e| engine.shards.store_event(e));
        engine.index.apply(&engine.records(&events)).await.expect("applied");
        engine.until_visible().await;
        let gate = Arc::new(Gate {
            shards: Arc::clone(&engine.shards),
            reached: Semaphore::new(0),
            open: Semaphore::new(0),
        });
        let clock = Arc::new(ManualClock::new(NOW));
        let index = OpenSearchIndex::new(engine.options.clone(), Arc::clone(&gate) as _, clock)
            .expect("the client is made");
        let rebuilding = {
            let index = Arc::clone(&index);
            tokio::spawn(async move { index.reindex().await })
        };
        gate.reached.acquire().await.expect("never closed").forget();
        let next = format!("{}-next", engine.options.alias);
        let answer = must("GET", &next, None).await;
        let name = answer.as_object().and_then(|all| all.keys().next()).expect("an index");
        let recreated = json!({
            "aliases": {&next: {}}, "mappings": answer[name]["mappings"],
        });
        match fault {
            "deleted" => drop(must("DELETE", name, None).await),
            "created again" => {
                must("DELETE", name, None).await;
                must("PUT", name, Some(recreated)).await;
            }
            "alias removed" => {
                let remove = json!({"actions": [{"remove": {"index": name, "alias": next}}]});
                must("POST", "_aliases", Some(remove)).await;
            }
            "closed" => drop(must("POST", &format!("{name}/_close"), None).await),
            "read-only" => {
                let block = json!({"index.blocks.write": true});
                must("PUT", &format!("{name}/_settings"), Some(block)).await;
            }
            "altered" => {
                let dynamic = json!({"dynamic": "true"});
                must("PUT", &format!("{name}/_mapping"), Some(dynamic)).await;
            }
            other => panic!("{other}"),
        }
        gate.open.add_permits(1);
        let rebuilt = tokio::time::timeout(TEST_TIMEOUT, rebuilding).await.expect("it ends");
        assert!(rebuilt.expect("no panic").is_err(), "{fault}");
        let acme = TenantId::parse("acme").expect("a tenant");
        let page = engine.index.search(&acme, &request("all")).await.expect("answered");
        assert_eq!(page.hits.len(), 50, "{fault}");
        assert_eq!(engine.index.reindex().await.expect(fault), 50);
        let page = engine.index.search(&acme, &request("all")).await.expect("answered");
        assert_eq!(page.hits.len(), 50, "{fault}");
    }
}

/// A second rebuild of the same process is refused, and says how far the first one is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_rebuilds_once_at_a_time() {
    let engine = Engine::new().await;
    let gate = Arc::new(Gate {
        shards: Arc::clone(&engine.shards),
        reached: Semaphore::new(0),
        open: Semaphore::new(0),
    });
    let clock = Arc::new(ManualClock::new(NOW));
    let index = OpenSearchIndex::new(engine.options.clone(), Arc::clone(&gate) as _, clock)
        .expect("the client is made");
    let first = {
        let index = Arc::clone(&index);
        tokio::spawn(async move { index.reindex().await })
    };
    gate.reached.acquire().await.expect("never closed").forget();
    let second = index.reindex().await;
    assert!(matches!(second, Err(ReindexError::AlreadyRunning { copied: 0 })), "{second:?}");
    assert_eq!(index.rebuilding(), Some(0));
    gate.open.add_permits(1);
    first.await.expect("no panic").expect("rebuilt");
    assert_eq!(index.rebuilding(), None);
}
