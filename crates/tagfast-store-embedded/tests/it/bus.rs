//! The outbox as a bus: the conformance suite, wake-ups, exact watermarks, idempotent parking,
//! restarts.

use std::time::{Duration, Instant};

use tagfast_events::bus::begin_at;
use tagfast_events::conformance::BusHarness;
use tagfast_events::{BusPosition, BusRecord, ConsumerGroup, Partition, Positions};
use tagfast_resilience::Clock;
use tagfast_store::TagWriter;

use crate::support::{Fixture, NOW, add, key, records, write};

const GROUP: ConsumerGroup = ConsumerGroup("test");

fn after(records: &[BusRecord]) -> Positions {
    let mut positions = Positions::new();
    for r in records {
        positions.insert(
            r.partition,
            BusPosition {
                next: r.offset + 1,
                publisher_epochs: tagfast_events::PublisherEpochs::embedded(r.publisher_epoch.0),
                anchor: None,
            },
        );
    }
    positions
}

#[tokio::test(flavor = "multi_thread")]
async fn records_come_in_order_again_after_a_crash_and_not_again_after_their_position() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let contents: Vec<_> = (0..30).map(|n| key("t", &format!("page {n}"))).collect();
    for round in 0..4 {
        let many = contents.iter().map(|k| add(k, &[&format!("t{round}")])).collect();
        assert!(store.write_many(many).await.iter().all(Result::is_ok));
    }
    let bus = store.bus();
    let first = records(&bus, GROUP, &Positions::new()).await;
    assert_eq!(first.len(), 120, "one event per content and write");
    for n in 0..8 {
        let offsets: Vec<_> =
            first.iter().filter(|r| r.partition == Partition(n)).map(|r| r.offset).collect();
        assert!(offsets.windows(2).all(|w| w[0] < w[1]), "order within a partition: {offsets:?}");
    }
    for content in &contents {
        let bytes = content.to_bytes();
        let versions: Vec<_> = first.iter().filter(|r| r.key == bytes).map(|r| r.version).collect();
        assert!(
            versions.len() == 4 && versions.windows(2).all(|w| w[0] < w[1]),
            "order of a content: {versions:?}"
        );
    }
    // A consumer that crashed before it committed reads the same again, also after a restart of the
    // store.
    assert_eq!(sorted(records(&bus, GROUP, &Positions::new()).await), sorted(first.clone()));
    store.close();
    drop((store, bus));
    let store = fixture.open();
    assert_eq!(
        sorted(records(&store.bus(), GROUP, &Positions::new()).await),
        sorted(first.clone())
    );
    assert_eq!(records(&store.bus(), GROUP, &after(&first)).await, []);
    write(&store, add(&contents[3], &["new"])).await;
    let rest = records(&store.bus(), GROUP, &after(&first)).await;
    assert_eq!(rest.iter().map(|r| r.key.clone()).collect::<Vec<_>>(), [contents[3].to_bytes()]);
}

fn sorted(mut records: Vec<BusRecord>) -> Vec<BusRecord> {
    records.sort_by_key(|r| (r.partition, r.offset));
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_consumer_is_woken_by_the_commit() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let mut consumer =
        begin_at(store.bus().as_ref(), GROUP, &Positions::new()).await.expect("a consumer");
    let started = Instant::now();
    assert!(
        consumer.poll(10, Duration::from_millis(30)).await.expect("idle").into_records().is_empty()
    );
    assert!(started.elapsed() >= Duration::from_millis(30), "an idle poll waits");
    for n in 0..20 {
        let (polled, _) = tokio::join!(consumer.poll(10, Duration::from_secs(30)), async {
            tokio::task::yield_now().await;
            write(&store, add(&key("t", "page"), &[&format!("t{n}")])).await
        });
        assert_eq!(
            polled.expect("records").into_records().len(),
            1,
            "each commit is delivered once"
        );
    }
    // The safety poll comes once a second: twenty of those would be seen in the whole time.
    assert!(started.elapsed() < Duration::from_secs(15), "woken late: {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watermark_of_an_idle_partition_is_now() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let bus = store.bus();
    let consumer = begin_at(bus.as_ref(), GROUP, &Positions::new()).await.expect("a consumer");
    let check = async |next_in_all: u64, now: i64| {
        let watermarks = consumer.watermarks().await.expect("watermarks");
        assert_eq!(watermarks.len(), 8);
        assert!(watermarks.values().flatten().all(|f| f.complete_through == now), "{watermarks:?}");
        assert_eq!(watermarks.values().flatten().map(|f| f.next - 1).sum::<u64>(), next_in_all);
    };
    check(0, NOW).await;
    fixture.clock.advance(60_000);
    check(0, NOW + 60_000).await;
    write(&store, add(&key("t", "page"), &["a"])).await;
    check(1, NOW + 60_000).await;
    let ends = bus.ends().await.expect("ends");
    assert_eq!(ends.values().map(|e| e.next - 1).sum::<u64>(), 1);
}

/// Publishes the suite's events by writing to the store.
struct Harness {
    fixture: Fixture,
    store: std::sync::Arc<tagfast_store_embedded::EmbeddedStore>,
    written: std::sync::atomic::AtomicU64,
}

#[async_trait::async_trait]
impl BusHarness for Harness {
    async fn bus(&self) -> std::sync::Arc<dyn tagfast_events::Bus> {
        self.store.bus()
    }

    async fn publish(&self, contents: &[tagfast_domain::ContentKey]) {
        let many = contents.iter().map(|key| {
            let n = self.written.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            add(key, &[&format!("t{n}")])
        });
        // One at a time: a group commit would make one event of several states.
        for request in many {
            write(&self.store, request).await;
        }
    }

    fn now(&self) -> tagfast_domain::UnixMillis {
        self.fixture.clock.now_ms()
    }
}

impl Harness {
    fn new() -> Self {
        let fixture = Fixture::new();
        let store = fixture.open();
        Self { fixture, store, written: Default::default() }
    }
}

tagfast_events::conformance_suite!(Harness::new());
