//! Counting: every state counts, and none counts twice.

use fastrand::Rng;
use tagfast_domain::{EpochId, TagName};
use tagfast_events::{RebuildRequest, Sink, Start};
use tagfast_popular::{PopularTags, Window};
use tagfast_resilience::Clock;

use crate::support::{Counting, EPOCH, START, event, positions};

const SPELLINGS: [&str; 9] =
    ["UI", "ui", "Ｕｉ", "Backend", "backend", "api", "API", "日本語", "c++"];

fn many(default: u64) -> u64 {
    if cfg!(feature = "full") { default * 10 } else { default }
}

/// Duplicates, reordering and crashes do not change the counts.
#[tokio::test]
async fn duplicates_reorder_and_crashes_change_nothing() {
    let mut rng = Rng::with_seed(1);
    let mut counting = Counting::new().await;
    let mut events = Vec::new();
    for n in 0..many(10_000) {
        let tags: Vec<_> = (0..rng.u64(..5))
            .map(|_| (SPELLINGS[rng.u64(..9) as usize], START - rng.u64(..9 * 86_400_000) as i64))
            .collect();
        let tenant = ["a", "b"][rng.u64(..2) as usize];
        events.push(event(tenant, &format!("c{}", rng.u64(..200)), n + 1, START, &tags));
    }
    counting.write(&events);
    let mut deliveries: Vec<usize> = (0..events.len()).collect();
    deliveries.extend((0..events.len() * 3 / 10).map(|_| rng.u64(..events.len() as u64) as usize));
    for n in (1..deliveries.len()).rev() {
        deliveries.swap(n, rng.u64(..n as u64 + 1) as usize);
    }
    let crashes: Vec<usize> =
        (0..5).map(|_| rng.u64(..deliveries.len() as u64) as usize / 500).collect();
    for (n, chunk) in deliveries.chunks(500).enumerate() {
        // One event per key and batch, as the runtime collapses them.
        let mut batch = std::collections::BTreeMap::new();
        for place in chunk {
            let e = &events[*place];
            let known = batch.entry(e.key.clone()).or_insert(e);
            if known.version < e.version {
                *known = e;
            }
        }
        let batch: Vec<_> = batch.into_values().cloned().collect();
        counting.deliver(&batch).await;
        if crashes.contains(&n) {
            counting.crash().await;
        }
    }
    for tenant in ["a", "b"] {
        counting.assert_equals_the_model(tenant).await;
    }
}

/// Windows equal the model at random times of eight days.
#[tokio::test]
async fn windows_follow_the_clock() {
    let mut rng = Rng::with_seed(4);
    let counting = Counting::new().await;
    let instants = many(20);
    for n in 0..instants {
        counting.clock.advance(rng.u64(..8 * 86_400_000 * 2 / instants) as i64);
        let now = counting.now();
        let events: Vec<_> = (0..5)
            .map(|k| {
                let tags: Vec<_> = (0..3)
                    .map(|_| {
                        (SPELLINGS[rng.u64(..9) as usize], now - rng.u64(..3 * 3_600_000) as i64)
                    })
                    .collect();
                event("w", &format!("c{}", rng.u64(..50)), n * 10 + k + 1, now, &tags)
            })
            .collect();
        for e in &events {
            counting.write(std::slice::from_ref(e));
            counting.deliver(std::slice::from_ref(e)).await;
        }
        counting.assert_equals_the_model("w").await;
    }
    counting.clock.advance(9 * 86_400_000);
    for window in [Window::Hour, Window::Day, Window::Week] {
        assert!(
            counting.leaderboard("w", window).await.is_empty(),
            "an empty window holds nothing"
        );
    }
}

#[tokio::test]
async fn a_bucket_leaves_its_window_exactly_once() {
    let counting = Counting::new().await;
    let e = event("x", "1", 1, START, &[("ui", START)]);
    counting.write(std::slice::from_ref(&e));
    counting.deliver(&[e]).await;
    counting.clock.advance(59 * 60_000 + 59_999);
    assert_eq!(
        counting.leaderboard("x", Window::Hour).await.len(),
        1,
        "it still counts in its sixtieth minute"
    );
    counting.clock.advance(1);
    assert!(counting.leaderboard("x", Window::Hour).await.is_empty());
    assert_eq!(counting.leaderboard("x", Window::Day).await.len(), 1);
    // A late event of an expired bucket does not count in that window, and its removal subtracts
    // nothing.
    let late = event("x", "2", 1, START, &[("ui", START)]);
    counting.write(std::slice::from_ref(&late));
    counting.deliver(&[late]).await;
    counting.assert_equals_the_model("x").await;
    let removed = event("x", "2", 2, START, &[]);
    counting.write(std::slice::from_ref(&removed));
    counting.deliver(&[removed]).await;
    counting.assert_equals_the_model("x").await;
    // A clock that steps back brings nothing back.
    counting.clock.advance(-3_600_000);
    assert!(counting.leaderboard("x", Window::Hour).await.is_empty());
}

/// The display is the spelling with the smallest (time, bytes) among live taggings.
#[tokio::test]
async fn displays_equal_the_model() {
    let mut rng = Rng::with_seed(9);
    let counting = Counting::new().await;
    for n in 0..many(400) {
        let at = START + rng.u64(..20) as i64;
        let tags: Vec<_> = if rng.u64(..3) == 0 {
            vec![]
        } else {
            vec![(["UI", "ui", "Ui"][rng.u64(..3) as usize], at)]
        };
        let e = event("d", &format!("c{}", rng.u64(..6)), n + 1, START, &tags);
        counting.write(std::slice::from_ref(&e));
        counting.deliver(&[e]).await;
        if n % 10 == 0 {
            counting.assert_equals_the_model("d").await;
        }
    }
    counting.assert_equals_the_model("d").await;
}

#[tokio::test]
async fn typeahead_finds_canonical_and_display_forms_by_use() {
    let counting = Counting::new().await;
    let events = [
        event("s", "1", 1, START, &[("Machine Learning", START), ("machinery", START)]),
        event("s", "2", 1, START, &[("machinery", START), ("Ärger", START)]),
        event("s", "3", 1, START, &[("ＭＡＣ", START)]),
        event("other", "1", 1, START, &[("machete", START)]),
    ];
    counting.deliver(&events).await;
    let tenant = "s".parse().expect("valid");
    let suggest = async |prefix: &str| -> Vec<String> {
        let found = counting.counts.suggest(&tenant, prefix, 20).await.expect("answers");
        found.tags.iter().map(|t| t.tag.display.to_string()).collect()
    };
    assert_eq!(suggest("MACH").await, ["machinery", "Machine Learning"]);
    assert_eq!(suggest("machine l").await, ["Machine Learning"], "the display form");
    assert_eq!(suggest("machine-l").await, ["Machine Learning"], "the canonical form");
    assert_eq!(suggest("är").await, ["Ärger"]);
    assert_eq!(suggest("mac").await.len(), 3, "full width is found by its canonical form");
    assert!(suggest("machet").await.is_empty(), "another tenant's tags are not suggested");
    let name = TagName::parse("MACHINERY").expect("valid");
    let used = counting.counts.count(&tenant, &name).await.expect("answers");
    let count = used.tag.expect("counted");
    assert_eq!((count.count, &*count.display), (2, "machinery"));
    let unknown = TagName::parse("unknown").expect("valid");
    assert_eq!(counting.counts.count(&tenant, &unknown).await.expect("answers").tag, None);
    let shown = counting.counts.displays(&tenant, &[name, unknown]).await.expect("answers");
    assert_eq!(shown.iter().map(|d| &**d).collect::<Vec<_>>(), ["machinery", "unknown"]);
}

#[tokio::test]
async fn a_different_epoch_is_rebuilt_from_the_shards() {
    let counting = Counting::new().await;
    let lost = event("e", "1", 9, START, &[("lost", START)]);
    counting.deliver(&[lost]).await;
    counting.write(&[event("e", "1", 5, START, &[("kept", START)])]);
    let other = EpochId([8; 16]);
    assert!(matches!(counting.counts.start(other, &[]).await, Ok(Start::Rebuild(_))));
    counting.counts.rebuild(RebuildRequest::new(&positions(50), other)).await.expect("rebuilds");
    let start = counting.counts.start(other, &[]).await;
    assert!(matches!(start, Ok(Start::From(from)) if from == positions(50)));
    counting.assert_equals_the_model("e").await;
}

#[tokio::test]
async fn a_position_survives_and_a_damaged_file_is_rebuilt() {
    let mut counting = Counting::new().await;
    let e = event("p", "1", 1, START, &[("x", START)]);
    counting.write(std::slice::from_ref(&e));
    counting.deliver(&[e]).await;
    let durable = counting.counts.advance(&positions(7)).await.expect("advances");
    assert_eq!(durable, positions(7));
    assert_eq!(counting.crash().await, positions(7));
    counting.counts.close().await.expect("closes");
    let generation =
        tagfast_resilience::generation::current(counting.dir.path()).expect("a generation");
    std::fs::write(
        generation.join("popular-3.sqlite"),
        b"this is no database at all, despite the name of the file",
    )
    .expect("writable");
    let _ = std::fs::remove_file(generation.join("popular-3.sqlite-wal"));
    let reopened = Counting { counts: reopen(&counting), ..counting };
    assert!(matches!(reopened.counts.start(EPOCH, &[]).await, Ok(Start::Rebuild(_))));
    let tenant = "p".parse().expect("valid");
    assert!(
        reopened.counts.popular(&tenant, Window::All, 5).await.is_err(),
        "missing counts are not an empty leaderboard"
    );
    reopened.counts.rebuild(RebuildRequest::new(&positions(7), EPOCH)).await.expect("rebuilds");
    reopened.assert_equals_the_model("p").await;
}

fn reopen(counting: &Counting) -> std::sync::Arc<tagfast_popular_counts::PopularCounts> {
    let scanner: std::sync::Arc<dyn tagfast_store::ShardScanner> = counting.shards.clone();
    let clock: std::sync::Arc<dyn Clock> = counting.clock.clone();
    tagfast_popular_counts::PopularCounts::open(counting.dir.path().to_owned(), scanner, clock)
        .expect("opens")
}

/// A leaderboard says how old it is; an unchanged one is as new as the visible writes.
#[tokio::test]
async fn leaderboards_are_as_new_as_the_visible_writes() {
    let counting = Counting::new().await;
    let tenant = "v".parse().expect("valid");
    counting.visible_through(START);
    assert_eq!(
        counting.counts.popular(&tenant, Window::All, 5).await.expect("answers").as_of,
        START
    );
    let tag = TagName::parse("any").expect("valid");
    let used = counting.counts.count(&tenant, &tag).await.expect("answers");
    assert_eq!((used.tag, used.as_of), (None, START), "a count says how old it is, too");
    counting.visible_through(START + 500);
    assert_eq!(
        counting.counts.popular(&tenant, Window::All, 5).await.expect("answers").as_of,
        START + 500
    );
}
