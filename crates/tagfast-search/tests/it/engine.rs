//! The suite, then what only an embedded engine can suffer: crashes, damage, another epoch.

use tagfast_domain::EpochId;
use tagfast_events::{Sink, Start};
use tagfast_search::conformance::{self as suite, Numbers, SearchHarness, event, request};
use tagfast_search::{SearchError, SearchIndex};

use crate::support::{EPOCH, Engine, positions};

fn full() -> bool {
    std::env::var_os("TAGFAST_FULL").is_some()
}

#[tokio::test]
async fn s1_newest_version_wins_in_every_order() {
    suite::newest_version_wins_in_every_order(&Engine::new().await).await;
}

#[tokio::test]
async fn s2_a_late_event_does_not_resurrect() {
    suite::a_late_event_does_not_resurrect(&Engine::new().await).await;
}

#[tokio::test]
async fn s3_every_spelling_finds_the_same() {
    suite::every_spelling_finds_the_same(&Engine::new().await).await;
}

#[tokio::test]
async fn s4_s8_random_queries_equal_the_model() {
    suite::random_queries_equal_the_model(&Engine::new().await, if full() { 10_000 } else { 400 }).await;
}

#[tokio::test]
async fn s6_equal_timestamps_are_paged_once() {
    suite::equal_timestamps_are_paged_once(&Engine::new().await, 10_001).await;
}

#[tokio::test]
async fn s7_unmoved_contents_are_paged_once_under_writes() {
    suite::unmoved_contents_are_paged_once_under_writes(&Engine::new().await).await;
}

#[tokio::test]
async fn s9_tenants_are_isolated() {
    suite::tenants_are_isolated(&Engine::new().await, if full() { 10_000 } else { 300 }).await;
}

#[tokio::test]
async fn hits_show_the_state() {
    suite::hits_show_the_state(&Engine::new().await).await;
}

/// S10: a crash after any step, then reading on from the committed position: equal to the model.
#[tokio::test]
async fn s10_a_crash_at_any_step_loses_nothing() {
    let mut numbers = Numbers(10);
    let mut engine = Engine::new().await;
    let mut log = Vec::new();
    for round in 0..60u64 {
        let id = format!("c{}", numbers.below(8));
        let tags = [["a", "b"], ["b", "c"], ["c", "d"]][numbers.below(3) as usize];
        let e = event("s10", "t", &id, round + 1, round as i64, &tags);
        engine.shards.put(&e);
        log.extend(engine.records(std::slice::from_ref(&e)));
        let applied = numbers.below(4) > 0;
        if applied {
            engine.index.apply(&log[log.len() - 1..]).await.expect("applies");
            if numbers.below(2) == 0 {
                engine.visible().await;
            }
        }
        if numbers.below(3) == 0 || !applied {
            engine.crash();
            assert_eq!(engine.rebuild_if_asked().await, None, "a crash needs no rebuild");
            let Start::From(from) = engine.index.start(EPOCH).await.expect("starts") else { panic!("no rebuild") };
            let next = from.values().next().map_or(0, |p| p.next);
            // What is read again is everything that was not committed, and some that was.
            for record in log.iter().filter(|r| r.offset + 2 >= next) {
                engine.index.apply(std::slice::from_ref(record)).await.expect("applies");
            }
        }
    }
    engine.visible().await;
    let mut newest = std::collections::BTreeMap::new();
    log.iter().for_each(|r| {
        newest.insert(r.event.key.content.content_id.as_str().to_owned(), r.event.version);
    });
    let hits =
        engine.index.search(&"s10".parse().expect("valid"), &request("a OR b OR c OR d")).await.expect("answers");
    let found: std::collections::BTreeMap<_, _> =
        hits.hits.iter().map(|h| (h.content.content_id.as_str().to_owned(), h.version)).collect();
    assert_eq!(found, newest);
}

#[tokio::test]
async fn another_epoch_asks_for_a_rebuild_and_old_answers_go_on() {
    let engine = Engine::new().await;
    engine.apply(&[event("e", "t", "1", 1, 1, &["x"])]).await;
    engine.visible().await;
    let other = EpochId([8; 16]);
    assert!(matches!(engine.index.start(other).await, Ok(Start::Rebuild(_))));
    let tenant = "e".parse().expect("valid");
    assert_eq!(engine.index.search(&tenant, &request("x")).await.expect("still answers").hits.len(), 1);
    engine.index.rebuild(&positions(1), other, &|_| {}).await.expect("rebuilds");
    assert!(matches!(engine.index.start(other).await, Ok(Start::From(_))));
    assert_eq!(engine.index.search(&tenant, &request("x")).await.expect("answers").hits.len(), 1);
    assert_eq!(engine.index.documents().await.expect("counts"), 1);
}

#[tokio::test]
async fn a_damaged_index_is_rebuilt_and_says_so_meanwhile() {
    let mut engine = Engine::new().await;
    engine.apply(&[event("d", "t", "1", 1, 1, &["x"])]).await;
    engine.visible().await;
    engine.index.close().await.expect("closes");
    let generation = std::fs::read_dir(engine.dir.path())
        .expect("readable")
        .filter_map(Result::ok)
        .find(|e| e.path().is_dir())
        .expect("a generation");
    for file in std::fs::read_dir(generation.path()).expect("readable").filter_map(Result::ok) {
        if file.path().extension().is_some_and(|e| e == "store" || e == "fast" || e == "term") {
            let bytes = std::fs::read(file.path()).expect("readable");
            std::fs::write(file.path(), &bytes[..bytes.len() / 2]).expect("writable");
        }
    }
    engine.crash();
    let tenant = "d".parse().expect("valid");
    let unavailable = engine.index.search(&tenant, &request("x")).await;
    assert!(matches!(unavailable, Err(SearchError::Unavailable(_))), "never an empty page: {unavailable:?}");
    assert!(engine.rebuild_if_asked().await.is_some());
    assert_eq!(engine.index.search(&tenant, &request("x")).await.expect("answers").hits.len(), 1);
}

#[tokio::test]
async fn old_tombstones_do_not_count_as_documents() {
    let engine = Engine::new().await;
    engine.apply(&[event("g", "t", "1", 1, 1, &["x"]), event("g", "t", "2", 1, 1, &[])]).await;
    engine.visible().await;
    assert_eq!(engine.index.documents().await.expect("counts"), 1);
}

#[tokio::test]
async fn a_prefix_that_is_too_broad_is_refused_by_name() {
    let engine = Engine::new().await;
    let tags: Vec<String> = (0..1100).map(|n| format!("prefix{n}")).collect();
    for (n, chunk) in tags.chunks(100).enumerate() {
        let chunk: Vec<&str> = chunk.iter().map(String::as_str).collect();
        engine.apply(&[event("p", "t", &n.to_string(), 1, 1, &chunk)]).await;
    }
    engine.visible().await;
    let tenant = "p".parse().expect("valid");
    let refused = engine.index.search(&tenant, &request("prefix*")).await;
    assert!(matches!(refused, Err(SearchError::PrefixTooBroad { allowed: 1024, .. })), "{refused:?}");
    assert_eq!(
        engine.index.search(&tenant, &request("prefix10*")).await.expect("answers").total,
        tagfast_search::Total::Exactly(3)
    );
}
