//! What every bus must do, as functions over a harness.
//!
//! Embedded, the outbox is the bus; in a cluster it is Kafka. A consumer must not be able to tell.
//! Each function is one promise and panics when it is broken. Each uses a group and a tenant of its
//! own, so that they can share one bus.

pub mod letters;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, TaggingsEvent, UnixMillis, Version};
use tokio::time::Instant;

use crate::bus::begin_at;
use crate::{
    Bus, BusConsumer, BusPosition, BusRecord, Group, Partition, Polled, Positions, RecordKind,
    decode_record,
};

/// How the suite drives a bus.
#[async_trait]
pub trait BusHarness: Send + Sync {
    /// The bus, as a process has it that has just started.
    async fn bus(&self) -> Arc<dyn Bus>;
    /// Gives each of these contents a new state, in this order, as the service does it: one event
    /// each, of a higher version than the content's last one. Returns when they are durable.
    async fn publish(&self, contents: &[ContentKey]);
    /// Now, by the clock that heartbeats tell.
    fn now(&self) -> UnixMillis;
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn content(tenant: &str, n: u64) -> ContentKey {
    ContentKey::parse(tenant, "page", &n.to_string()).expect("the suite's keys are valid")
}

/// Every one of `contents` contents in turn, `states` times.
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
    /// Of the tenant, in the order they came.
    seen: Vec<(BusRecord, TaggingsEvent)>,
    positions: Positions,
}

impl Reader {
    async fn begin(bus: &Arc<dyn Bus>, group: Group, tenant: &str, from: &Positions) -> Self {
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
            at.emits.see(&record.cluster, record.emit);
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
            Polled::Records(records) => self.take(records),
            Polled::Assigned(partitions) => {
                self.consumer.start(&partitions, &Positions::new()).await.expect("a start");
            }
            Polled::Revoked(partitions) => {
                self.consumer.release(&partitions).await.expect("a release")
            }
            Polled::Lost(partitions) => panic!("{partitions:?} were lost"),
        }
    }

    /// Reads until this many events of the tenant came.
    async fn read(&mut self, count: usize) {
        let end = Instant::now() + PATIENCE;
        while self.seen.len() < count {
            assert!(Instant::now() < end, "{} of {count} events came", self.seen.len());
            self.step(Duration::from_millis(200)).await;
        }
    }

    /// Reads for a while without anything of the tenant.
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

/// A content's events come in their order, from one partition, as they were written.
pub async fn events_of_a_content_keep_their_order(harness: &dyn BusHarness) {
    let all = contents("order", 20, 10);
    harness.publish(&all).await;
    let mut reader =
        Reader::begin(&harness.bus().await, Group("order"), "order", &Positions::new()).await;
    reader.read(all.len()).await;
    assert_eq!(reader.keys(), counted(&all), "each event once");
    let mut by_key: BTreeMap<&ContentKey, Vec<(Partition, Version)>> = BTreeMap::new();
    for (record, event) in &reader.seen {
        by_key.entry(&event.key).or_default().push((record.partition, event.version));
        assert_eq!(
            (record.version, record.emit),
            (event.version, event.emit),
            "the record tells what its event is"
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

/// What was not committed comes again, to whoever is next in the group, also after a restart.
pub async fn what_was_not_committed_comes_again(harness: &dyn BusHarness) {
    let all = contents("again", 10, 5);
    harness.publish(&all).await;
    for _ in 0..2 {
        let mut reader =
            Reader::begin(&harness.bus().await, Group("again"), "again", &Positions::new()).await;
        reader.read(all.len()).await;
        assert_eq!(reader.keys(), counted(&all));
        // Ends like a process that dies.
    }
}

/// A member of a group goes on where the group committed last.
pub async fn what_was_committed_does_not_come_again(harness: &dyn BusHarness) {
    let first = contents("committed", 10, 5);
    harness.publish(&first).await;
    let mut reader =
        Reader::begin(&harness.bus().await, Group("committed"), "committed", &Positions::new())
            .await;
    reader.read(first.len()).await;
    let positions = reader.positions.clone();
    reader.consumer.commit(&positions).await.expect("a commit");
    reader.consumer.close().await;
    drop(reader);
    let second: Vec<ContentKey> = (100..110).map(|n| content("committed", n)).collect();
    harness.publish(&second).await;
    let mut reader =
        Reader::begin(&harness.bus().await, Group("committed"), "committed", &Positions::new())
            .await;
    reader.read(second.len()).await;
    reader.nothing_more().await;
    assert_eq!(reader.keys(), counted(&second));
    reader.consumer.close().await;
}

/// A position that is given wins over the one that was committed: a sink that keeps its own
/// decides.
pub async fn a_given_position_decides(harness: &dyn BusHarness) {
    let all = contents("given", 10, 4);
    harness.publish(&all).await;
    let mut reader =
        Reader::begin(&harness.bus().await, Group("given"), "given", &Positions::new()).await;
    reader.read(all.len()).await;
    let ends = reader.positions.clone();
    reader.consumer.commit(&ends).await.expect("a commit");
    reader.consumer.close().await;
    drop(reader);
    let begin: Positions =
        ends.keys().map(|partition| (*partition, BusPosition::default())).collect();
    let mut reader = Reader::begin(&harness.bus().await, Group("given"), "given", &begin).await;
    reader.read(all.len()).await;
    assert_eq!(reader.keys(), counted(&all));
    reader.consumer.close().await;
}

/// Two groups each see everything.
pub async fn groups_do_not_share(harness: &dyn BusHarness) {
    let all = contents("groups", 10, 3);
    harness.publish(&all).await;
    let bus = harness.bus().await;
    for group in [Group("groups-a"), Group("groups-b")] {
        let mut reader = Reader::begin(&bus, group, "groups", &Positions::new()).await;
        reader.read(all.len()).await;
        assert_eq!(reader.keys(), counted(&all));
        reader.consumer.commit(&reader.positions.clone()).await.expect("a commit");
        reader.consumer.close().await;
    }
}

/// A paused partition is silent, the others are not; when it goes on, nothing is missing.
pub async fn a_paused_partition_is_silent_and_keeps_its_records(harness: &dyn BusHarness) {
    let first = contents("paused", 30, 2);
    harness.publish(&first).await;
    let mut reader =
        Reader::begin(&harness.bus().await, Group("paused"), "paused", &Positions::new()).await;
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
    // What was fetched before the pause may still come, but nothing was published then.
    reader.nothing_more().await;
    reader.consumer.set_paused(held, false);
    reader.read(first.len() + second.len()).await;
    reader.consumer.close().await;
}

/// A poll that is dropped at any moment loses nothing.
pub async fn a_dropped_poll_loses_nothing(harness: &dyn BusHarness) {
    let all = contents("dropped", 40, 5);
    harness.publish(&all).await;
    let mut reader =
        Reader::begin(&harness.bus().await, Group("dropped"), "dropped", &Positions::new()).await;
    let end = Instant::now() + PATIENCE;
    let mut n = 0;
    while reader.seen.len() < all.len() {
        assert!(Instant::now() < end, "{} of {} events came", reader.seen.len(), all.len());
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

/// A partition without events tells how far it is complete: it follows the clock.
pub async fn an_idle_partition_tells_the_truth(harness: &dyn BusHarness) {
    let mut reader =
        Reader::begin(&harness.bus().await, Group("idle"), "idle", &Positions::new()).await;
    let (asked, end) = (harness.now(), Instant::now() + PATIENCE);
    let partitions = harness.bus().await.partitions();
    loop {
        assert!(Instant::now() < end, "the frontiers follow the clock");
        reader.step(Duration::from_millis(100)).await;
        let positions = reader.positions.clone();
        reader.consumer.commit(&positions).await.expect("a commit");
        let frontiers = reader.consumer.frontiers().await.expect("frontiers");
        let passed = |p: &Partition| {
            let done = positions.get(p).map_or(0, |at| at.next);
            frontiers.get(p).is_some_and(|all| {
                all.iter().any(|f| f.complete_through >= asked && (f.next <= done || f.next <= 1))
            })
        };
        // Embedded a frontier tells the end; whoever has read to there has everything.
        if partitions.iter().all(passed) {
            break;
        }
    }
    reader.consumer.close().await;
}

/// The ends are behind everything that was published before they were asked for.
pub async fn the_ends_are_behind_what_was_published(harness: &dyn BusHarness) {
    let before = contents("ends", 20, 2);
    harness.publish(&before).await;
    let bus = harness.bus().await;
    let ends = bus.ends().await.expect("the ends");
    assert_eq!(ends.keys().copied().collect::<Vec<_>>(), bus.partitions());
    let after = contents("ends", 20, 1);
    harness.publish(&after).await;
    let mut reader = Reader::begin(&bus, Group("ends"), "ends", &ends).await;
    reader.read(after.len()).await;
    reader.nothing_more().await;
    assert_eq!(reader.keys(), counted(&after));
    reader.consumer.close().await;
}

/// Expands to one test per promise. The expression makes a
/// [`BusHarness`](crate::conformance::BusHarness); it is evaluated once per test, inside the
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
            the_ends_are_behind_what_was_published
        }
    };
    ($harness:expr => $($name:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::conformance::$name(&$harness).await;
            }
        )+
    };
}
