//! The conformance suite, then faults that only an embedded engine has: crashes, damaged files, a
//! different epoch.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fastrand::Rng;
use parking_lot::Mutex;
use tagfast_domain::{Document, EpochId};
use tagfast_events::{RebuildRequest, RecordVerdict, Sink, Start};
use tagfast_search::conformance::{self as suite, NOW, SearchHarness, event, request};
use tagfast_search::{SearchError, SearchIndex, Total};
use tagfast_search_tantivy::TantivyOptions;

use crate::support::{EPOCH, Engine, options, positions};

fn full() -> bool {
    cfg!(feature = "full")
}

#[tokio::test]
async fn newest_version_wins_in_every_order() {
    suite::newest_version_wins_in_every_order(&Engine::new().await).await;
}

#[tokio::test]
async fn a_late_event_does_not_resurrect() {
    suite::a_late_event_does_not_resurrect(&Engine::new().await).await;
}

#[tokio::test]
async fn every_spelling_finds_the_same() {
    suite::every_spelling_finds_the_same(&Engine::new().await).await;
}

#[tokio::test]
async fn a_former_name_is_found() {
    suite::a_former_name_is_found(&Engine::new().await).await;
}

#[tokio::test]
async fn random_queries_equal_the_model() {
    suite::random_queries_equal_the_model(
        &Engine::new().await,
        if full() { 10_000 } else { 1_500 },
    )
    .await;
}

#[tokio::test]
async fn errors_have_the_parsers_positions() {
    suite::errors_have_the_parsers_positions(&Engine::new().await).await;
}

#[tokio::test]
async fn equal_timestamps_are_paged_once() {
    suite::equal_timestamps_are_paged_once(&Engine::new().await, 10_001).await;
}

#[tokio::test]
async fn unmoved_contents_are_paged_once_under_writes() {
    suite::unmoved_contents_are_paged_once_under_writes(&Engine::new().await).await;
}

#[tokio::test]
async fn tenants_are_isolated() {
    suite::tenants_are_isolated(&Engine::new().await, if full() { 10_000 } else { 300 }).await;
}

#[tokio::test]
async fn removed_tags_count_nowhere() {
    suite::removed_tags_count_nowhere(&Engine::new().await).await;
}

#[tokio::test]
async fn counts_of_terms_equal_the_model() {
    suite::counts_of_terms_equal_the_model(&Engine::new().await).await;
}

#[tokio::test]
async fn hits_show_the_state() {
    suite::hits_show_the_state(&Engine::new().await).await;
}

/// After a crash at any step, reading on from the committed position gives the newest states.
#[tokio::test]
async fn a_crash_at_any_step_loses_nothing() {
    let mut rng = Rng::with_seed(10);
    let mut engine = Engine::new().await;
    let mut log = Vec::new();
    for round in 0..60u64 {
        let id = format!("c{}", rng.u64(..8));
        let tags = [["a", "b"], ["b", "c"], ["c", "d"]][rng.u64(..3) as usize];
        let e = event("crash", "t", &id, round + 1, round as i64, &tags);
        engine.shards.store_event(&e);
        log.extend(engine.records(std::slice::from_ref(&e)));
        let applied = rng.u64(..4) > 0;
        if applied {
            engine.index.apply(&log[log.len() - 1..]).await.expect("applies");
            if rng.u64(..2) == 0 {
                engine.visible().await;
            }
        }
        if rng.u64(..3) == 0 || !applied {
            engine.crash();
            assert_eq!(engine.rebuild_if_requested().await, None, "a crash needs no rebuild");
            let Start::From(from) = engine.index.start(EPOCH, &[]).await.expect("starts") else {
                panic!("no rebuild")
            };
            let next = from.values().next().map_or(0, |p| p.next);
            // The consumer reads every uncommitted record again, and some committed ones.
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
    let hits = engine
        .index
        .search(&"crash".parse().expect("valid"), &request("a OR b OR c OR d"))
        .await
        .expect("answers");
    let found: std::collections::BTreeMap<_, _> =
        hits.hits.iter().map(|h| (h.content.content_id.as_str().to_owned(), h.version)).collect();
    assert_eq!(found, newest);
}

#[tokio::test]
async fn a_different_epoch_requests_a_rebuild_while_the_old_index_answers() {
    let engine = Engine::new().await;
    engine.apply(&[event("e", "t", "1", 1, 1, &["x"])]).await;
    engine.visible().await;
    let other = EpochId([8; 16]);
    assert!(matches!(engine.index.start(other, &[]).await, Ok(Start::Rebuild(_))));
    let tenant = "e".parse().expect("valid");
    assert_eq!(
        engine.index.search(&tenant, &request("x")).await.expect("still answers").hits.len(),
        1
    );
    engine.index.rebuild(RebuildRequest::new(&positions(1), other)).await.expect("rebuilds");
    assert!(matches!(engine.index.start(other, &[]).await, Ok(Start::From(_))));
    assert_eq!(engine.index.search(&tenant, &request("x")).await.expect("answers").hits.len(), 1);
    assert_eq!(engine.index.documents().await.expect("counts"), 1);
}

type Damage = fn(&Path);

fn files(generation: &Path, wanted: fn(&str) -> bool) -> Vec<PathBuf> {
    let all =
        std::fs::read_dir(generation).expect("readable").filter_map(Result::ok).map(|e| e.path());
    all.filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(wanted)).collect()
}

fn of_a_segment(name: &str) -> bool {
    [".store", ".fast", ".term", ".idx"].iter().any(|end| name.ends_with(end))
}

const DAMAGES: [(&str, Damage); 7] = [
    ("halves", |g| {
        for file in files(g, of_a_segment) {
            let bytes = std::fs::read(&file).expect("readable");
            std::fs::write(&file, &bytes[..bytes.len() / 2]).expect("writable");
        }
    }),
    ("a flipped bit", |g| {
        let file = files(g, |n| n.ends_with(".fast")).remove(0);
        let mut bytes = std::fs::read(&file).expect("readable");
        let middle = bytes.len() / 3;
        bytes[middle] ^= 4;
        std::fs::write(&file, bytes).expect("writable");
    }),
    ("missing files", |g| {
        files(g, of_a_segment).iter().for_each(|f| std::fs::remove_file(f).expect("removed"))
    }),
    ("empty files", |g| {
        files(g, of_a_segment).iter().for_each(|f| std::fs::write(f, "").expect("writable"))
    }),
    ("no list of segments", |g| std::fs::remove_file(g.join("meta.json")).expect("removed")),
    ("a torn list of segments", |g| {
        std::fs::write(g.join("meta.json"), "{\"segments\": [").expect("writable")
    }),
    ("a different format", |g| {
        let path = g.join("meta.json");
        let meta = std::fs::read_to_string(&path).expect("readable");
        let other = meta.replace("\\\"format\\\":1", "\\\"format\\\":9");
        assert_ne!(meta, other, "the format is part of the payload");
        std::fs::write(&path, other).expect("writable");
    }),
];

#[tokio::test]
async fn a_damaged_index_is_unavailable_until_it_is_rebuilt() {
    for (what, damage) in DAMAGES {
        let mut engine = Engine::new().await;
        engine.apply(&[event("d", "t", "1", 1, NOW, &["x"])]).await;
        engine.visible().await;
        engine.index.close().await.expect("closes");
        damage(&engine.generation());
        engine.crash();
        let tenant = "d".parse().expect("valid");
        let unavailable = engine.index.search(&tenant, &request("x")).await;
        assert!(
            matches!(unavailable, Err(SearchError::Unavailable(_))),
            "{what}: no empty page: {unavailable:?}"
        );
        assert!(engine.rebuild_if_requested().await.is_some(), "{what}");
        assert_eq!(
            engine.index.search(&tenant, &request("x")).await.expect("answers").hits.len(),
            1,
            "{what}"
        );
        assert_eq!(engine.generations().len(), 1, "{what}: the damaged one is removed");
    }
}

#[tokio::test]
async fn a_pointer_to_nothing_is_a_missing_index() {
    for pointer in ["", "generation-404", "nonsense"] {
        let mut engine = Engine::new().await;
        engine.apply(&[event("d", "t", "1", 1, NOW, &["x"])]).await;
        engine.index.close().await.expect("closes");
        std::fs::write(engine.dir.path().join("CURRENT"), pointer).expect("writable");
        engine.crash();
        assert!(engine.rebuild_if_requested().await.is_some(), "{pointer}");
        assert_eq!(engine.index.documents().await.expect("counts"), 1);
        assert_eq!(engine.generations().len(), 1, "{pointer}");
    }
}

#[tokio::test]
async fn tombstones_are_kept_for_thirty_days_and_do_not_count() {
    const DAY: i64 = 86_400_000;
    let engine = Engine::new().await;
    engine.apply(&[event("g", "t", "1", 9, NOW, &["x"]), event("g", "t", "2", 9, NOW, &[])]).await;
    engine.visible().await;
    assert_eq!(engine.index.documents().await.expect("counts"), 1);
    let verdict = async |version| {
        let late = event("g", "t", "2", version, NOW, &["x"]);
        engine.index.apply(&engine.records(&[late])).await.expect("applies")
    };
    engine.later(29 * DAY).await;
    assert_eq!(verdict(5).await, [RecordVerdict::Superseded]);
    engine.later(2 * DAY).await;
    // The sweep's deletion is part of the next commit.
    engine.apply(&[event("g", "t", "3", 9, NOW, &["x"])]).await;
    engine.visible().await;
    assert_eq!(
        verdict(5).await,
        [RecordVerdict::Applied],
        "after thirty days the tombstone is gone"
    );
    engine.visible().await;
    assert_eq!(
        engine.index.documents().await.expect("counts"),
        3,
        "contents with tags are never swept"
    );
}

/// Positions and contents are one commit: the positions that `advance` returns survive a crash.
#[tokio::test]
async fn a_position_is_returned_only_after_its_commit() {
    let mut engine = Engine::with(TantivyOptions {
        commit_after: Duration::from_secs(3600),
        commit_after_busy: Duration::from_secs(3600),
        ..options()
    })
    .await;
    let records = engine.records(&[event("pos", "t", "1", 1, NOW, &["x"])]);
    engine.index.apply(&records).await.expect("applies");
    let before = positions(1);
    assert_eq!(engine.index.advance(&positions(2)).await.expect("advances"), before, "not due yet");
    let tenant = "pos".parse().expect("valid");
    assert!(engine.index.search(&tenant, &request("x")).await.expect("answers").hits.is_empty());
    engine.crash();
    assert_eq!(engine.index.start(EPOCH, &[]).await.expect("starts"), Start::From(before.clone()));
    engine.index.apply(&records).await.expect("applies");
    assert_eq!(engine.index.advance(&positions(2)).await.expect("advances"), before, "not due yet");
    engine.index.close().await.expect("closes");
    engine.crash();
    assert_eq!(engine.index.start(EPOCH, &[]).await.expect("starts"), Start::From(positions(2)));
    let found = engine.index.search(&tenant, &request("x")).await.expect("answers").hits.len();
    assert_eq!(found, 1, "closing commits what was applied");
    // A superseded record moves the position too, which `advance` returns once it is durable.
    let again = engine.index.apply(&records).await.expect("applies");
    assert_eq!(again, [RecordVerdict::Superseded]);
    assert_eq!(engine.index.advance(&positions(3)).await.expect("advances"), positions(2));
}

#[tokio::test]
async fn many_changes_are_committed_before_their_time() {
    let hour = Duration::from_secs(3600);
    let engine = Engine::with(TantivyOptions {
        commit_after: hour,
        commit_after_busy: hour,
        commit_documents: 10,
        ..options()
    })
    .await;
    let events: Vec<_> =
        (0..10).map(|n| event("many", "t", &n.to_string(), 1, NOW, &["x"])).collect();
    engine.apply(&events[..9]).await;
    assert_eq!(engine.index.advance(&positions(10)).await.expect("advances"), positions(1));
    engine.apply(&events[9..]).await;
    assert_eq!(engine.index.advance(&positions(11)).await.expect("advances"), positions(11));
}

/// The volume disappears under the index and comes back: no applied state is lost.
#[tokio::test]
async fn the_next_commit_includes_what_a_failed_one_did_not() {
    let engine = Engine::new().await;
    engine
        .apply(&[event("f", "t", "1", 1, NOW, &["x"]), event("f", "t", "2", 1, NOW, &["x"])])
        .await;
    engine.visible().await;
    let generation = engine.generation();
    let outside = tempfile::tempdir().expect("a temporary directory");
    let away = outside.path().join("away");
    engine.apply(&[event("f", "t", "2", 2, NOW, &["y"])]).await;
    std::fs::rename(&generation, &away).expect("moved away");
    for _ in 0..3 {
        assert!(engine.index.advance(&positions(99)).await.is_err(), "nothing can be written");
    }
    let tenant = "f".parse().expect("valid");
    let total =
        async |text: &str| engine.index.search(&tenant, &request(text)).await.map(|p| p.hits.len());
    assert_eq!(total("x").await.expect("searches go on"), 2);
    std::fs::rename(&away, &generation).expect("moved back");
    engine.apply(&[event("f", "t", "3", 1, NOW, &["x"])]).await;
    engine.visible().await;
    assert_eq!(total("x").await.expect("answers"), 2);
    assert_eq!(total("y").await.expect("answers"), 1);
}

/// A rebuild with pending records and running searches: the new generation equals the shards, and
/// the old one is removed.
#[tokio::test]
async fn a_rebuild_equals_the_shards_and_searches_go_on() {
    let engine = Engine::new().await;
    let mut rng = Rng::with_seed(3);
    for n in 0..2_500u64 {
        let id = rng.u64(..2_200).to_string();
        let tags: &[&str] =
            if rng.u64(..9) == 0 { &[] } else { &["all", ["even", "odd"][(n % 2) as usize]] };
        engine.shards.store_event(&event("r", "t", &id, n + 1, NOW + n as i64, tags));
    }
    engine.apply(&[event("r", "t", "0", 9_999, NOW, &["all", "old"])]).await;
    engine.visible().await;
    // Applied but never committed: the rebuild copies it from the shards.
    engine.apply(&[event("r", "t", "1", 9_999, NOW, &["all", "waiting"])]).await;
    let before = engine.generation();
    let tenant: tagfast_domain::TenantId = "r".parse().expect("valid");
    let reached = Mutex::new(Vec::new());
    let progress = |n| reached.lock().push(n);
    let from = positions(77);
    let (rebuilt, found) = tokio::join!(
        engine.index.rebuild(RebuildRequest { from: &from, epoch: EPOCH, progress: &progress }),
        async { engine.index.search(&tenant, &request("old")).await.map(|p| p.hits.len()) }
    );
    rebuilt.expect("the rebuild ends");
    assert_eq!(found.expect("the old generation serves"), 1);
    assert!(reached.lock().windows(2).all(|w| w[0] <= w[1]));
    assert_ne!(engine.generation(), before, "the old generation is removed");
    let documents = engine.shards.documents(&tenant);
    for tag in ["all", "even", "odd", "old", "waiting", "gone"] {
        let has_tag = |document: &Document| document.live().any(|t| t.name.as_str() == tag);
        let expected = documents.iter().filter(|(_, document)| has_tag(document)).count() as u64;
        let page = engine.index.search(&tenant, &request(tag)).await.expect("answers");
        assert_eq!(page.total, Total::Exactly(expected), "{tag}");
    }
    assert_eq!(engine.index.start(EPOCH, &[]).await.expect("starts"), Start::From(from));
    // The rebuild copied a tombstone: older states stay out.
    let mut gone = documents.iter().filter(|(_, document)| document.live().next().is_none());
    let (gone, _) = gone.next().expect("some contents have no tags");
    let late = event("r", "t", gone.content.content_id.as_str(), 1, NOW, &["all"]);
    let verdicts = engine.index.apply(&engine.records(&[late])).await.expect("applies");
    assert_eq!(verdicts, [RecordVerdict::Superseded]);
}

#[tokio::test]
async fn an_abandoned_rebuild_leaves_the_old_generation_and_nothing_else() {
    let engine = Engine::new().await;
    engine.apply(&[event("ab", "t", "1", 1, NOW, &["x"])]).await;
    engine.visible().await;
    let before = engine.generation();
    // The rebuild is dropped at its first page.
    let (started, copying) = tokio::sync::oneshot::channel();
    let started = Mutex::new(Some(started));
    let progress = |_| {
        if let Some(started) = started.lock().take() {
            let _ = started.send(());
        }
    };
    let from = positions(5);
    tokio::select! {
        biased;
        _ = copying => {}
        _ = engine.index.rebuild(RebuildRequest { from: &from, epoch: EPOCH, progress: &progress }) => panic!("the first page comes first"),
    }
    assert_eq!(engine.generation(), before);
    engine.apply(&[event("ab", "t", "2", 1, NOW, &["x"])]).await;
    engine.visible().await;
    let tenant = "ab".parse().expect("valid");
    assert_eq!(engine.index.search(&tenant, &request("x")).await.expect("answers").hits.len(), 2);
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
    assert!(
        matches!(refused, Err(SearchError::PrefixTooBroad { allowed: 1024, .. })),
        "{refused:?}"
    );
    assert_eq!(
        engine.index.search(&tenant, &request("prefix10*")).await.expect("answers").total,
        Total::Exactly(3)
    );
}
