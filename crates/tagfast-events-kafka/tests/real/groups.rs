//! Members that come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tagfast_events::ConsumerGroup;
use tagfast_events::conformance::MemorySink;
use tagfast_resilience::task::TaskTracker;
use tagfast_testkit::wait_for_condition_async;

use crate::support::{self, CLUSTER, consume, event, version_of};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Members join and leave, some without a close, while events flow: in the end every content has
/// its newest state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_and_nothing_is_lost() {
    const CONTENTS: u64 = 60;
    let (options, bus, _quiet) = support::fresh().await;
    // As an index: one for all members.
    let sink = MemorySink::new(ConsumerGroup::INDEXER);
    let publisher = Arc::new(bus.publisher());
    let writer = TaskTracker::new().spawn({
        let publisher = Arc::clone(&publisher);
        async move {
            for version in 1..=80 {
                let events: Vec<_> =
                    (0..CONTENTS).map(|n| event(&format!("c{n}"), version, 1)).collect();
                publisher.publish(CLUSTER, &events, 0).await.expect("published");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
    let steady = consume(&bus, &sink);
    for round in 0..6 {
        let member = consume(&support::bus(&options).await, &sink);
        let applied = sink.applied();
        wait_for_condition_async("events flow", TEST_TIMEOUT, || async {
            let more = sink.applied() - applied;
            if more >= 2 * CONTENTS { Ok(()) } else { Err(format!("{more} applied")) }
        })
        .await;
        if round % 2 == 0 {
            member.stop().await;
        } else {
            drop(member);
        }
    }
    writer.await.expect("no panic");
    wait_for_condition_async("the newest state of every content", TEST_TIMEOUT, || async {
        let behind: Vec<u64> =
            (0..CONTENTS).filter(|n| version_of(&sink, &format!("c{n}")) != Some(80)).collect();
        if behind.is_empty() { Ok(()) } else { Err(format!("{behind:?} are behind")) }
    })
    .await;
    steady.stop().await;
}

/// Two members share the partitions, and one that leaves hands its partitions over at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_share_and_hand_over() {
    let (options, bus, _quiet) = support::fresh().await;
    let (first, second) =
        (MemorySink::new(ConsumerGroup::INDEXER), MemorySink::new(ConsumerGroup::INDEXER));
    let publisher = bus.publisher();
    let one = consume(&bus, &first);
    let other = consume(&support::bus(&options).await, &second);
    let versions = AtomicU64::new(0);
    let publish = async || {
        let version = versions.fetch_add(1, Ordering::Relaxed) + 1;
        let events: Vec<_> = (0..200).map(|n| event(&format!("c{n}"), version, 1)).collect();
        publisher.publish(CLUSTER, &events, 0).await.expect("published");
        version
    };
    let at = |sink: &MemorySink, version| {
        sink.newest().values().filter(|v| v.packed() == version).count()
    };
    wait_for_condition_async("both have their part", TEST_TIMEOUT, || async {
        let version = publish().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (one, other) = (at(&first, version), at(&second, version));
        if one > 0 && other > 0 && one + other == 200 {
            Ok(())
        } else {
            Err(format!("{one} and {other} of 200"))
        }
    })
    .await;
    other.stop().await;
    let version = publish().await;
    // Sooner than a member that says nothing is given up (10 s).
    wait_for_condition_async("the one that stays has all", Duration::from_secs(6), || async {
        let one = at(&first, version);
        if one == 200 { Ok(()) } else { Err(format!("{one} of 200")) }
    })
    .await;
    one.stop().await;
}
