//! Rebuilding while others read and write.

use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::TenantId;
use tagfast_events::Sink;
use tagfast_search::SearchIndex;
use tagfast_search::conformance::{NOW, event, request};

use crate::kit::{EPOCH, Engine, at};

/// One indexer rebuilds, another one goes on writing: in the end the new index has the newest state
/// of everything, and no search failed meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_misses_nothing_that_others_write() {
    let engine = Engine::new().await;
    for chunk in 0..5 {
        let events: Vec<_> = (0..400)
            .map(|n| event("acme", "t", &format!("{}", chunk * 400 + n), 1, NOW, &["old", "all"]))
            .collect();
        events.iter().for_each(|e| engine.shards.put(e));
        // What the shards have and the index lost is found by the rebuild.
        if chunk > 0 {
            engine.index.apply(&engine.records(&events)).await.expect("applied");
        }
    }
    engine.shown().await;
    let acme = TenantId::parse("acme").expect("a tenant");
    assert_eq!(engine.index.documents().await.expect("a count"), 1600);
    let rebuilder = engine.again();
    let rebuilding = tokio::spawn(async move { rebuilder.rebuild(&at(1), EPOCH, &|_| {}).await });
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
        events.iter().for_each(|e| engine.shards.put(e));
        engine.index.apply(&engine.records(&events)).await.expect("applied");
        engine
            .index
            .search(&acme, &request("all"))
            .await
            .expect("a search is answered all the while");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rebuilding.await.expect("no panic").expect("rebuilt");
    engine.shown().await;
    let mut wanted: Vec<(String, u64)> = engine
        .shards
        .all()
        .iter()
        .map(|e| (e.key.content.content_id.as_str().to_owned(), e.version.packed()))
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
    let again: Arc<_> = engine.again();
    again.check().await.expect("the new index is ours");
}

/// Two processes that begin a rebuild at the same time take turns, and both end with an index that
/// has everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_rebuilds_take_turns() {
    let engine = Engine::new().await;
    let events: Vec<_> =
        (0..3000).map(|n| event("acme", "t", &n.to_string(), 1, NOW, &["all"])).collect();
    events.iter().for_each(|e| engine.shards.put(e));
    let rebuilds = (0..3).map(|_| {
        let index = engine.again();
        tokio::spawn(async move {
            let mut waits = 0;
            // As the runtime does: a failure of the sink is asked again.
            while let Err(error) = index.rebuild(&at(1), EPOCH, &|_| {}).await {
                assert!(error.message.contains("another process rebuilds"), "{error}");
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
    assert!(waited > 0, "they met");
    assert_eq!(engine.index.documents().await.expect("a count"), 3000);
    engine.index.check().await.expect("one index is served");
}

/// Tombstones go when no event can be late enough to need them, and not before; contents with tags
/// never do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_old_tombstones_are_swept() {
    let engine = Engine::new().await;
    let old = NOW - 31 * 86_400_000;
    let events = [
        event("acme", "t", "old-tombstone", 2, old, &[]),
        event("acme", "t", "young-tombstone", 2, NOW, &[]),
        event("acme", "t", "old-content", 2, old, &["kept"]),
    ];
    engine.index.apply(&engine.records(&events)).await.expect("applied");
    engine.shown().await;
    let sweeper = engine.again();
    sweeper.advance(&at(1)).await.expect("the first one of a day sweeps");
    let keys: Vec<_> = events.iter().map(|event| event.key.clone()).collect();
    tagfast_testkit::wait_for_condition_async("the sweep", Duration::from_secs(15), || async {
        let known = engine.index.versions(&keys).await.map_err(|e| e.to_string())?;
        let there: Vec<bool> = known.iter().map(Option::is_some).collect();
        if there == [false, true, true] { Ok(()) } else { Err(format!("{there:?}")) }
    })
    .await;
}
