//! A recount under writes finds planted errors and nothing else.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fastrand::Rng;
use tagfast_domain::ContentKey;
use tagfast_events::Sink;
use tagfast_popular::{PopularTags, RecountProgress};
use tagfast_resilience::task::StopSignal;
use tagfast_sharding::LogicalShard;

use crate::support::{Counting, START, event, positions};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_false_drift_while_writes_go_on() {
    let counting = Counting::new().await;
    let done = AtomicBool::new(false);
    let write = async {
        let mut rng = Rng::with_seed(5);
        let mut version = 0;
        while !done.load(Ordering::Relaxed) {
            version += 1;
            let tags = [("a", START), ("b", START), ("c", START)];
            let tags = &tags[..rng.u64(..4) as usize];
            let e = event("r", &format!("c{}", rng.u64(..300)), version, counting.now(), tags);
            // The shard first, the event later: in between, a recount sees the event in flight.
            counting.write(std::slice::from_ref(&e));
            tokio::task::yield_now().await;
            counting.deliver(&[e]).await;
            counting.clock.advance(1);
            counting.visible_through(counting.now() - 1);
        }
    };
    let recount = async {
        for _ in 0..5 {
            let report = counting.counts.recount(false, &|_| {}).await.expect("recounts");
            assert_eq!((report.drifted_contents, report.drifted_counts), (0, 0), "{report:?}");
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(write, recount);
}

#[tokio::test]
async fn planted_errors_are_found_and_repaired() {
    let counting = Counting::new().await;
    let events: Vec<_> = (0..100)
        .map(|n| event("r", &format!("c{n}"), n + 1, START, &[("a", START), ("b", START)]))
        .collect();
    counting.write(&events);
    counting.deliver(&events).await;
    counting.visible_through(i64::MAX);
    // Six contents whose state is wrong at the right version, one state without a content.
    let wrong: Vec<_> =
        (0..6).map(|n| event("r", &format!("w{n}"), 1000 + n, START, &[("a", START)])).collect();
    counting.deliver(&wrong).await;
    let right: Vec<_> =
        (0..6).map(|n| event("r", &format!("w{n}"), 1000 + n, START, &[("z", START)])).collect();
    counting.write(&right);
    counting.deliver(&[event("r", "nowhere", 5, START, &[("a", START)])]).await;
    counting.counts.advance(&positions(1)).await.expect("advances");
    // Three sums that are not the sums of their states.
    let generation =
        tagfast_resilience::generation::current(counting.dir.path()).expect("a generation");
    for n in 0..3 {
        let conn = rusqlite::Connection::open(generation.join(format!("popular-{n}.sqlite")))
            .expect("opens");
        let changed = conn
            .execute("UPDATE pop_count SET n0 = n0 + 5 WHERE tag = 'b'", [])
            .expect("the sum can be changed");
        assert_eq!(changed, 1, "every partition has the tag");
    }
    let report = counting.counts.recount(false, &|_| {}).await.expect("recounts");
    assert_eq!(
        (report.contents, report.drifted_contents, report.drifted_counts),
        (106, 7, 3),
        "{report:?}"
    );
    assert!(!report.repaired);
    let repaired = counting.counts.recount(true, &|_| {}).await.expect("recounts");
    assert_eq!((repaired.drifted_contents, repaired.repaired), (7, true));
    let clean = counting.counts.recount(false, &|_| {}).await.expect("recounts");
    assert_eq!((clean.drifted_contents, clean.drifted_counts), (0, 0), "{clean:?}");
    counting.assert_equals_the_model("r").await;
}

/// An event that never arrives (parked, for example) is drift once every earlier write is counted,
/// and a recount repairs it.
#[tokio::test]
async fn a_missing_event_is_drift_and_not_in_flight_forever() {
    let counting = Counting::new().await;
    counting.write(&[event("m", "1", 1, START, &[("a", START)])]);
    counting.visible_through(i64::MAX);
    let report = counting.counts.recount(true, &|_| {}).await.expect("recounts");
    assert_eq!(report.drifted_contents, 1, "{report:?}");
    counting.assert_equals_the_model("m").await;
}

/// Contents of one shard, more than a page has, and as many of all shards.
fn contents() -> Vec<String> {
    let first = |id: &String| {
        let key = ContentKey::parse("p", "t", id).expect("a valid key");
        LogicalShard::of(&key).number() == 0
    };
    let of_one_shard = (0..).map(|n| format!("one-{n}")).filter(first).take(1_100);
    of_one_shard.chain((0..600).map(|n| format!("all-{n}"))).collect()
}

/// Every kind of error at random places of several pages, among contents that are in flight: what
/// was planted is found, all of it and nothing else, and repaired.
#[tokio::test]
async fn random_drift_is_found_and_repaired_exactly() {
    let all = contents();
    for seed in 0..4 {
        let (counting, mut rng) = (Counting::new().await, Rng::with_seed(seed));
        let mut version = 0;
        let mut state = |rng: &mut Rng, id: &str| {
            version += 1;
            let tags = [("a", START), ("b", START + 1), ("c", START + 2), ("d", START)];
            event("p", id, version, START, &tags[rng.usize(..3)..][..rng.usize(1..=2)])
        };
        let mut planted = 0;
        let (mut shard, mut counted) = (Vec::new(), Vec::new());
        for id in &all {
            let real = state(&mut rng, id);
            match rng.u8(..40) {
                // Never written, and counted.
                0 => {
                    counted.push(real);
                    planted += 1;
                }
                // Written, and its event is lost.
                1 => {
                    shard.push(real);
                    planted += 1;
                }
                // Different tags at the same version.
                2 => {
                    let mut wrong = real.clone();
                    wrong.tags.truncate(wrong.tags.len() - 1);
                    counted.push(wrong);
                    shard.push(real);
                    planted += 1;
                }
                // An older state is counted, a newer one is written.
                3 => {
                    counted.push(real);
                    shard.push(state(&mut rng, id));
                    planted += 1;
                }
                // Counted is newer than a page of the shard: no drift.
                4 => {
                    counted.push(state(&mut rng, id));
                    shard.push(real);
                }
                _ => {
                    counted.push(real.clone());
                    shard.push(real);
                }
            }
        }
        counting.write(&shard);
        counting.deliver(&counted).await;
        counting.visible_through(i64::MAX);
        let done = AtomicU64::new(0);
        let report = counting
            .counts
            .recount(true, &|progress: RecountProgress| {
                assert!(progress.done <= progress.total, "{progress:?}");
                let before = done.swap(progress.done, Ordering::SeqCst);
                assert!(before <= progress.done, "progress goes on");
            })
            .await
            .expect("recounts");
        assert_eq!(
            (report.contents, report.drifted_contents),
            (shard.len() as u64, planted),
            "seed {seed}"
        );
        assert_eq!(done.into_inner(), shard.len() as u64, "seed {seed}");
        let clean = counting.counts.recount(false, &|_| {}).await.expect("recounts");
        assert_eq!((clean.drifted_contents, clean.drifted_counts), (0, 0), "{seed}: {clean:?}");
    }
}

/// A recount that is dropped in its middle keeps what it repaired, and the next one does the rest.
#[tokio::test]
async fn a_recount_that_is_interrupted_goes_on_later() {
    let counting = Counting::new().await;
    let all = contents();
    let events: Vec<_> = all
        .iter()
        .enumerate()
        .map(|(n, id)| event("p", id, n as u64 + 1, START, &[("a", START)]))
        .collect();
    counting.write(&events);
    let wrong: Vec<_> = events
        .iter()
        .map(|real| {
            let mut wrong = real.clone();
            wrong.tags.clear();
            wrong
        })
        .collect();
    counting.deliver(&wrong).await;
    counting.visible_through(i64::MAX);
    let interrupted = StopSignal::new();
    let progress = |progress: RecountProgress| {
        if progress.done > 200 {
            interrupted.cancel();
        }
    };
    let ended = interrupted.run_until_cancelled(counting.counts.recount(true, &progress)).await;
    assert!(ended.is_none(), "{ended:?}");
    let rest = counting.counts.recount(true, &|_| {}).await.expect("recounts");
    let all = events.len() as u64;
    assert!((1..=all - 200).contains(&rest.drifted_contents), "of {all}: {rest:?}");
    counting.assert_equals_the_model("p").await;
}
