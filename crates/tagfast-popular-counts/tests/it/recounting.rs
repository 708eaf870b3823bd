//! A recount under writes finds planted errors and nothing else.

use std::sync::atomic::{AtomicBool, Ordering};

use fastrand::Rng;
use tagfast_events::Sink;
use tagfast_popular::PopularTags;

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
