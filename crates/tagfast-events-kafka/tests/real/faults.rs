//! A broker that freezes, dies, comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tagfast_domain::EpochOrdinal;
use tagfast_events::ConsumerGroup;
use tagfast_events::conformance::MemorySink;
use tagfast_resilience::task::{self, TaskTracker};
use tagfast_testkit::stack::Fault;
use tagfast_testkit::wait_for_condition_async;

use crate::support::{self, CLUSTER, consume, event, version_of};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

async fn fault(fault: Fault) {
    task::blocking(move || support::stack().fault(fault, "kafka"))
        .await
        .expect("no panic")
        .expect("the fault");
}

/// Publishes as a relay does: unacknowledged events are published again.
struct Relay {
    acknowledged: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Relay {
    fn start(publisher: tagfast_events_kafka::Publisher) -> Self {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let reported = Arc::clone(&acknowledged);
        let task = TaskTracker::new().spawn(async move {
            for version in 1.. {
                let events: Vec<_> = (0..50).map(|n| event(&format!("c{n}"), version, 1)).collect();
                while publisher.publish(CLUSTER, &events, 0).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                reported.store(version, Ordering::SeqCst);
                publisher.heartbeat(CLUSTER, EpochOrdinal(1), support::now(), 0).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { acknowledged, task }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    async fn goes_on(&self) {
        let known = self.acknowledged();
        wait_for_condition_async("an acknowledgement", TEST_TIMEOUT, || async {
            if self.acknowledged() > known { Ok(()) } else { Err("none yet") }
        })
        .await;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn through(breaking: &[Fault], healing: &[Fault]) {
    let _alone = support::BROKER.write().await;
    let (_, bus) = support::unprotected().await;
    let sink = MemorySink::new(ConsumerGroup::INDEXER);
    let consumer = consume(&bus, &sink);
    let relay = Relay::start(bus.publisher());
    relay.goes_on().await;
    wait_for_condition_async("consuming", TEST_TIMEOUT, || async {
        if version_of(&sink, "c1").is_some() { Ok(()) } else { Err("nothing came") }
    })
    .await;
    // Before its first proof it is unknown, and stays so while the broker is away.
    wait_for_condition_async("the lag is known", TEST_TIMEOUT, || async {
        consumer.status().lag_seconds.map(drop).ok_or("unknown")
    })
    .await;
    for breaking in breaking {
        fault(*breaking).await;
    }
    let broken_at = support::now();
    // During the fault the lag grows with the time since it began.
    wait_for_condition_async("the lag grows", TEST_TIMEOUT, || async {
        let lag = consumer.status().lag_seconds;
        if lag >= Some(6.0) { Ok(()) } else { Err(format!("{lag:?}")) }
    })
    .await;
    let since = (support::now() - broken_at) as f64 / 1000.0;
    let lag = consumer.status().lag_seconds.expect("it was proven before");
    assert!((lag - since).abs() <= 2.5, "a lag of {lag} s after {since} s");
    for healing in healing {
        fault(*healing).await;
    }
    relay.goes_on().await;
    let last = relay.acknowledged();
    wait_for_condition_async("everything acknowledged is applied", TEST_TIMEOUT, || async {
        let behind: Vec<u64> =
            (0..50).filter(|n| version_of(&sink, &format!("c{n}")) < Some(last)).collect();
        if behind.is_empty() { Ok(()) } else { Err(format!("{behind:?} are behind {last}")) }
    })
    .await;
    wait_for_condition_async("the lag is small again", TEST_TIMEOUT, || async {
        let lag = consumer.status().lag_seconds;
        if lag.is_some_and(|lag| lag < 2.5) { Ok(()) } else { Err(format!("{lag:?}")) }
    })
    .await;
    assert_eq!(consumer.status().parked, 0, "no record is to blame for an outage");
    assert_eq!(sink.rebuilds(), 0);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_stands_still() {
    through(&[Fault::Freeze], &[Fault::Thaw]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_is_killed_and_comes_back() {
    // Stopped first: what it has not on disk is lost, as with its machine.
    through(&[Fault::Freeze, Fault::Kill], &[Fault::Restart]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_cannot_be_reached() {
    through(&[Fault::Cut], &[Fault::Heal]).await;
}
