//! The bus conformance suite.
//!
//! In embedded mode the outbox is the bus, in a cluster Kafka is; a consumer must not see a
//! difference. Each promise uses a group and a tenant of its own, so that they can share one bus.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, TaggingsEvent, UnixMillis, Version};
use tokio::time::Instant;

use crate::bus::{
    Bus, BusConsumer, BusPosition, BusRecord, ConsumerGroup, Continuity, Partition, PollResult,
    Positions, RecordKind, begin_at,
};
use crate::envelope::decode_record;

/// How the suite drives a bus.
#[async_trait]
pub trait BusHarness: Send + Sync {
    /// The bus as a newly started process sees it.
    async fn bus(&self) -> Arc<dyn Bus>;
    /// Gives each of these contents a new state in this order, as the service does: one event each,
    /// with a version above the content's last one. Returns when the events are durable.
    async fn publish(&self, contents: &[ContentKey]);
    /// Now by the clock of the heartbeats, Unix ms.
    fn now(&self) -> UnixMillis;
}

/// How long any step may take.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

fn content(tenant: &str, n: u64) -> ContentKey {
    ContentKey::parse(tenant, "page", &n.to_string()).expect("the suite's keys are valid")
}

/// `contents` contents in turn, `states` times each.
fn contents(tenant: &str, contents: u64, states: u64) -> Vec<ContentKey> {
    (0..contents * states).map(|n| content(tenant, n % contents)).collect()
}

fn counted<'a>(keys: impl IntoIterator<Item = &'a ContentKey>) -> BTreeMap<ContentKey, usize> {
    let mut counts = BTreeMap::new();
    keys.into_iter().for_each(|key| *counts.entry(key.clone()).or_default() += 1);
    counts
}

struct Reader {
    consumer: Box<dyn BusConsumer>,
    tenant: String,
    /// Events of the tenant, in the order received.
    seen: Vec<(BusRecord, TaggingsEvent)>,
    positions: Positions,
}

impl Reader {
    /// Reads from the group's committed position; the group and the contents are named `name`.
    async fn of(harness: &dyn BusHarness, name: &'static str) -> Self {
        Self::begin(&harness.bus().await, ConsumerGroup(name), name, &Positions::new()).await
    }

    async fn begin(
        bus: &Arc<dyn Bus>,
        group: ConsumerGroup,
        tenant: &str,
        from: &Positions,
    ) -> Self {
        let consumer = begin_at(bus.as_ref(), group, from).await.expect("a consumer");
        Self { consumer, tenant: tenant.to_owned(), seen: Vec::new(), positions: from.clone() }
    }

    fn take(&mut self, records: Vec<BusRecord>) {
        for record in records {
            let at = self.positions.entry(record.partition).or_default();
            assert!(
                record.offset >= at.next,
                "offsets of a partition rise: {record:?} after {at:?}"
            );
            at.next = record.offset + 1;
            at.publisher_epochs.observe(&record.cluster, record.publisher_epoch);
            if record.kind != RecordKind::Event {
                continue;
            }
            let Ok(event) = decode_record(&record) else { continue };
            if event.key.tenant.as_str() == self.tenant {
                self.seen.push((record, event));
            }
        }
    }

    async fn step(&mut self, wait: Duration) {
        match self.consumer.poll(100, wait).await.expect("a poll") {
            PollResult::Records(records) => self.take(records),
            PollResult::Assigned(partitions) => {
                self.consumer.start(&partitions, &Positions::new()).await.expect("a start");
            }
            PollResult::Revoked(partitions) => {
                self.consumer.release(&partitions).await.expect("a release")
            }
            PollResult::Lost(partitions) => panic!("{partitions:?} were lost"),
        }
    }

    /// Reads until this many events of the tenant are received.
    async fn read(&mut self, count: usize) {
        let end = Instant::now() + TEST_TIMEOUT;
        while self.seen.len() < count {
            assert!(Instant::now() < end, "received {} of {count} events", self.seen.len());
            self.step(Duration::from_millis(200)).await;
        }
    }

    /// Reads for 600 ms and asserts that no event of the tenant is received.
    async fn nothing_more(&mut self) {
        let (known, end) = (self.seen.len(), Instant::now() + Duration::from_millis(600));
        while Instant::now() < end {
            self.step(Duration::from_millis(100)).await;
        }
        let more: Vec<&BusRecord> = self.seen[known..].iter().map(|(record, _)| record).collect();
        assert!(more.is_empty(), "nothing more was published: {more:?}");
    }

    fn keys(&self) -> BTreeMap<ContentKey, usize> {
        counted(self.seen.iter().map(|(_, event)| &event.key))
    }
}

/// A content's events are received in their order, from one partition, as they were written.
pub async fn events_of_a_content_keep_their_order(harness: &dyn BusHarness) {
    let all = contents("order", 20, 10);
    harness.publish(&all).await;
    let mut reader = Reader::of(harness, "order").await;
    reader.read(all.len()).await;
    assert_eq!(reader.keys(), counted(&all), "each event once");
    let mut by_key: BTreeMap<&ContentKey, Vec<(Partition, Version)>> = BTreeMap::new();
    for (record, event) in &reader.seen {
        by_key.entry(&event.key).or_default().push((record.partition, event.version));
        assert_eq!(
            (record.version, record.publisher_epoch),
            (event.version, event.publisher_epoch),
            "the record carries version and publisher epoch of its event"
        );
    }
    for (key, seen) in by_key {
        assert!(
            seen.iter().all(|(partition, _)| *partition == seen[0].0),
            "{key} is in one partition"
        );
        assert!(seen.windows(2).all(|two| two[0].1 < two[1].1), "{key}: {seen:?}");
    }
    reader.consumer.close().await;
}

/// Uncommitted records are delivered again to the next member of the group, also after a restart.
pub async fn what_was_not_committed_comes_again(harness: &dyn BusHarness) {
    let all = contents("again", 10, 5);
    harness.publish(&all).await;
    for _ in 0..2 {
        let mut reader = Reader::of(harness, "again").await;
        reader.read(all.len()).await;
        assert_eq!(reader.keys(), counted(&all));
        // Dropped without a close, like a process that dies.
    }
}

/// A member of a group continues where the group committed last.
pub async fn what_was_committed_does_not_come_again(harness: &dyn BusHarness) {
    let first = contents("committed", 10, 5);
    harness.publish(&first).await;
    let mut reader = Reader::of(harness, "committed").await;
    reader.read(first.len()).await;
    let positions = reader.positions.clone();
    reader.consumer.commit(&positions).await.expect("a commit");
    reader.consumer.close().await;
    drop(reader);
    let second: Vec<ContentKey> = (100..110).map(|n| content("committed", n)).collect();
    harness.publish(&second).await;
    let mut reader = Reader::of(harness, "committed").await;
    reader.read(second.len()).await;
    reader.nothing_more().await;
    assert_eq!(reader.keys(), counted(&second));
    reader.consumer.close().await;
}

/// A given position takes precedence over the committed one: a sink that stores its own positions
/// decides.
pub async fn a_given_position_decides(harness: &dyn BusHarness) {
    let all = contents("given", 10, 4);
    harness.publish(&all).await;
    let mut reader = Reader::of(harness, "given").await;
    reader.read(all.len()).await;
    let ends = reader.positions.clone();
    reader.consumer.commit(&ends).await.expect("a commit");
    reader.consumer.close().await;
    drop(reader);
    let begin: Positions =
        ends.keys().map(|partition| (*partition, BusPosition::default())).collect();
    let mut reader =
        Reader::begin(&harness.bus().await, ConsumerGroup("given"), "given", &begin).await;
    reader.read(all.len()).await;
    assert_eq!(reader.keys(), counted(&all));
    reader.consumer.close().await;
}

/// Two groups each see every record.
pub async fn groups_do_not_share(harness: &dyn BusHarness) {
    let all = contents("groups", 10, 3);
    harness.publish(&all).await;
    let bus = harness.bus().await;
    for group in [ConsumerGroup("groups-a"), ConsumerGroup("groups-b")] {
        let mut reader = Reader::begin(&bus, group, "groups", &Positions::new()).await;
        reader.read(all.len()).await;
        assert_eq!(reader.keys(), counted(&all));
        reader.consumer.commit(&reader.positions.clone()).await.expect("a commit");
        reader.consumer.close().await;
    }
}

/// A paused partition returns nothing while the others do; resumed, it misses no record.
pub async fn a_paused_partition_is_silent_and_keeps_its_records(harness: &dyn BusHarness) {
    let first = contents("paused", 30, 2);
    harness.publish(&first).await;
    let mut reader = Reader::of(harness, "paused").await;
    reader.read(first.len()).await;
    let held = reader.seen[0].0.partition;
    reader.consumer.set_paused(held, true);
    let second = contents("paused", 30, 1);
    harness.publish(&second).await;
    let of_held: BTreeSet<ContentKey> = reader
        .seen
        .iter()
        .filter(|(r, _)| r.partition == held)
        .map(|(_, e)| e.key.clone())
        .collect();
    reader.read(first.len() + second.len() - of_held.len()).await;
    // Records fetched before the pause may still be returned, but none was published then.
    reader.nothing_more().await;
    reader.consumer.set_paused(held, false);
    reader.read(first.len() + second.len()).await;
    reader.consumer.close().await;
}

/// A poll that is dropped at any moment loses no record.
pub async fn a_dropped_poll_loses_nothing(harness: &dyn BusHarness) {
    let all = contents("dropped", 40, 5);
    harness.publish(&all).await;
    let mut reader = Reader::of(harness, "dropped").await;
    let end = Instant::now() + TEST_TIMEOUT;
    let mut n = 0;
    while reader.seen.len() < all.len() {
        assert!(Instant::now() < end, "received {} of {} events", reader.seen.len(), all.len());
        n += 1;
        let limit = Duration::from_micros(50 + n % 40 * 100);
        let polled =
            tokio::time::timeout(limit, reader.consumer.poll(7, Duration::from_secs(5))).await;
        if let Ok(polled) = polled {
            reader.take(polled.expect("a poll").into_records());
        }
    }
    assert_eq!(reader.keys(), counted(&all));
    reader.consumer.close().await;
}

/// The watermark of a partition without events follows the clock.
pub async fn an_idle_partition_tells_the_truth(harness: &dyn BusHarness) {
    let mut reader = Reader::of(harness, "idle").await;
    let (requested, end) = (harness.now(), Instant::now() + TEST_TIMEOUT);
    let partitions = harness.bus().await.partitions();
    loop {
        assert!(Instant::now() < end, "the watermarks follow the clock");
        reader.step(Duration::from_millis(100)).await;
        let positions = reader.positions.clone();
        reader.consumer.commit(&positions).await.expect("a commit");
        let watermarks = reader.consumer.watermarks().await.expect("watermarks");
        let passed = |p: &Partition| {
            let done = positions.get(p).map_or(0, |at| at.next);
            watermarks.get(p).is_some_and(|all| {
                all.iter()
                    .any(|f| f.complete_through >= requested && (f.next <= done || f.next <= 1))
            })
        };
        // In embedded mode a watermark is the end: a consumer that has read to it has everything.
        if partitions.iter().all(passed) {
            break;
        }
    }
    reader.consumer.close().await;
}

/// The ends lie behind every record published before the call.
pub async fn the_ends_are_behind_what_was_published(harness: &dyn BusHarness) {
    let before = contents("ends", 20, 2);
    harness.publish(&before).await;
    let bus = harness.bus().await;
    let ends = bus.ends().await.expect("the ends");
    assert_eq!(ends.keys().copied().collect::<Vec<_>>(), bus.partitions());
    let after = contents("ends", 20, 1);
    harness.publish(&after).await;
    let mut reader = Reader::begin(&bus, ConsumerGroup("ends"), "ends", &ends).await;
    reader.read(after.len()).await;
    reader.nothing_more().await;
    assert_eq!(reader.keys(), counted(&after));
    reader.consumer.close().await;
}

/// A committed position is proven, after a restart, to be of the partition in which it was reached,
/// and lies in what the partition holds.
pub async fn a_committed_position_is_known_again(harness: &dyn BusHarness) {
    let all = contents("known", 20, 3);
    harness.publish(&all).await;
    let mut reader = Reader::of(harness, "known").await;
    reader.read(all.len()).await;
    let end = Instant::now() + TEST_TIMEOUT;
    // The proof of the last record comes a moment after the record.
    let anchored = loop {
        assert!(Instant::now() < end, "what was read is proven");
        reader.step(Duration::from_millis(50)).await;
        let anchors = reader.consumer.anchors();
        let seen: BTreeSet<Partition> = reader.seen.iter().map(|(r, _)| r.partition).collect();
        if anchors.is_empty() || seen.iter().all(|partition| anchors.contains_key(partition)) {
            break anchors;
        }
    };
    let mut positions = reader.positions.clone();
    for (partition, anchor) in anchored {
        positions.entry(partition).or_default().anchor = Some(anchor);
    }
    reader.consumer.commit(&positions).await.expect("a commit");
    reader.consumer.close().await;
    drop(reader);
    let group = ConsumerGroup("known");
    let mut consumer = harness.bus().await.consumer(group).await.expect("a consumer");
    let mut found = BTreeMap::new();
    while !positions.keys().all(|partition| found.contains_key(partition)) {
        assert!(Instant::now() < end, "the partitions are assigned: {found:?}");
        let polled = consumer.poll(1, Duration::from_millis(200)).await.expect("a poll");
        if let PollResult::Assigned(partitions) = polled {
            let facts = consumer.inspect(&partitions, &Positions::new()).await.expect("facts");
            consumer.start(&partitions, &Positions::new()).await.expect("a start");
            found.extend(facts);
        }
    }
    for (partition, position) in &positions {
        let facts = &found[partition];
        assert_eq!(facts.continuity, Continuity::Proven, "{partition:?}: {facts:?}");
        let committed = facts.committed.as_ref().expect("a commit");
        assert_eq!(committed.next, position.next, "{partition:?}");
        assert!(facts.first <= position.next && position.next <= facts.end, "{facts:?}");
    }
    consumer.close().await;
}

/// Expands to one test per promise. The expression makes a
/// [`BusHarness`](crate::conformance::bus::BusHarness); it is evaluated once per test, inside the
/// runtime, and may await.
#[macro_export]
macro_rules! conformance_suite {
    ($harness:expr) => {
        $crate::conformance_suite! { $harness =>
            events_of_a_content_keep_their_order,
            what_was_not_committed_comes_again,
            what_was_committed_does_not_come_again,
            a_given_position_decides,
            groups_do_not_share,
            a_paused_partition_is_silent_and_keeps_its_records,
            a_dropped_poll_loses_nothing,
            an_idle_partition_tells_the_truth,
            the_ends_are_behind_what_was_published,
            a_committed_position_is_known_again
        }
    };
    ($harness:expr => $($name:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::conformance::bus::$name(&$harness).await;
            }
        )+
    };
}
