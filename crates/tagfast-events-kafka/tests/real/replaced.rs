//! Ways to break a feed silently: topics that are deleted, made again, emptied or widened, offsets
//! that are changed by hand, clusters that are not heard. Each is either proven harmless, or named
//! and followed by a rebuild; nothing is skipped.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminOptions, NewPartitions};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tagfast_domain::EpochOrdinal;
use tagfast_events::conformance::MemorySink;
use tagfast_events::{Bus, Consumer, ConsumerGroup, Positions};
use tagfast_events_kafka::{KafkaBus, KafkaOptions, Publisher};
use tagfast_resilience::task::{self, TaskTracker};
use tagfast_testkit::wait_for_condition_async;

use crate::support::{self, CLUSTER, admin, consume, delete_topic, event, version_of};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How soon a cause must be named.
const NAMED_WITHIN: Duration = Duration::from_secs(5);
/// More records in each partition than any position of these tests.
const FILLERS: u64 = 400;
/// What a filler of a large batch holds.
const FILLER: &str = "a record that is no event, and long enough that a few hundred are a lot";

/// Publishes one event of each of some contents.
async fn publish(publisher: &Publisher, name: &str, count: u64) {
    let events: Vec<_> = (0..count).map(|n| event(&format!("{name}{n}"), 1, 1)).collect();
    wait_for_condition_async("published", TEST_TIMEOUT, || async {
        publisher.publish(CLUSTER, &events, 0).await.map_err(|e| format!("{e:?}"))
    })
    .await;
}

/// Waits until the sink has the last of these contents.
async fn has(sink: &MemorySink, id: &str) {
    wait_for_condition_async(&format!("the sink has {id}"), TEST_TIMEOUT, || async {
        version_of(sink, id).map(drop).ok_or("not there")
    })
    .await;
}

async fn rebuilt(sink: &MemorySink, more_than: u64) {
    wait_for_condition_async("a rebuild", TEST_TIMEOUT, || async {
        if sink.rebuilds() > more_than { Ok(()) } else { Err("none") }
    })
    .await;
}

async fn named(consumer: &Consumer, within: Duration, text: &str) {
    wait_for_condition_async(&format!("{text:?} is named"), within, || async {
        let problem = consumer.problem();
        let told = problem.as_ref().is_some_and(|problem| problem.text.contains(text));
        if told { Ok(()) } else { Err(format!("{problem:?}")) }
    })
    .await;
}

async fn well(consumer: &Consumer) {
    wait_for_condition_async("no problem is left", TEST_TIMEOUT, || async {
        match consumer.problem() {
            None => Ok(()),
            Some(problem) => Err(problem.text),
        }
    })
    .await;
}

/// Sends the heartbeats of a cluster, as its relay does, until it is dropped.
struct Heartbeats(tokio::task::JoinHandle<()>);

impl Heartbeats {
    fn start(bus: &KafkaBus, cluster: &'static str) -> Self {
        let publisher = bus.publisher();
        Self(TaskTracker::new().spawn(async move {
            loop {
                publisher.heartbeat(cluster, EpochOrdinal(1), support::now(), 0).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }))
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits until everything up to now is proven to be visible.
async fn proven_until_now(sink: &MemorySink) {
    let now = support::now();
    wait_for_condition_async("everything is proven", TEST_TIMEOUT, || async {
        let through = sink.visible_through();
        if through >= now { Ok(()) } else { Err(format!("{} ms behind", now - through)) }
    })
    .await;
}

/// Fills every partition with one batch of records, so large that a broker would rather leave it
/// out of an answer than send all of them.
async fn fill_with_large_batches(options: &KafkaOptions) {
    let topic = options.topic.clone();
    let fill = move || {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", support::brokers().join(","));
        // All of a partition in one batch, as it is.
        config.set("linger.ms", "500").set("batch.size", "1000000").set("compression.type", "none");
        let producer: BaseProducer = config.create().expect("a producer");
        for n in 0..FILLERS * u64::from(support::PARTITIONS) {
            let partition = (n % u64::from(support::PARTITIONS)) as i32;
            let record = BaseRecord::to(&topic).partition(partition).key("filler").payload(FILLER);
            producer.send(record).map_err(|(error, _)| error).expect("it is taken");
        }
        producer.flush(TEST_TIMEOUT).expect("it is written");
    };
    task::blocking(fill).await.expect("no panic");
}

/// A topic that was made again while the group was away, and is longer than the group's position.
async fn made_again_while_away(sink: Arc<MemorySink>, are_large: bool) {
    let (options, bus, _quiet) = support::fresh().await;
    let consumer = consume(&bus, &sink);
    let heartbeats = Heartbeats::start(&bus, CLUSTER);
    proven_until_now(&sink).await;
    publish(&bus.publisher(), "c", 50).await;
    has(&sink, "c49").await;
    proven_until_now(&sink).await;
    consumer.stop().await;
    drop(heartbeats);
    let known = sink.rebuilds();
    delete_topic(&options).await;
    let bus = support::bus(&options).await;
    if are_large {
        fill_with_large_batches(&options).await;
    } else {
        for _ in 0..FILLERS / 40 {
            publish(&bus.publisher(), "filler", 40 * 8).await;
        }
    }
    let consumer = consume(&bus, &sink);
    rebuilt(&sink, known).await;
    publish(&bus.publisher(), "after", 8).await;
    has(&sink, "after7").await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_again_is_not_skipped_by_a_sink_with_positions() {
    made_again_while_away(MemorySink::new(ConsumerGroup::ANALYTICS), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_again_with_large_batches_is_not_skipped() {
    made_again_while_away(MemorySink::new(ConsumerGroup::ANALYTICS), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_again_is_not_skipped_by_a_sink_whose_group_commits() {
    made_again_while_away(MemorySink::without_positions(ConsumerGroup::INDEXER), false).await;
}

/// A topic that is deleted and made again under running consumers: named while it is away, rebuilt
/// when it is back, and everything goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_again_under_a_running_group_is_rebuilt_and_goes_on() {
    let (options, bus, _quiet) = support::fresh().await;
    bus.watch_topics();
    let sinks = [
        MemorySink::new(ConsumerGroup::ANALYTICS),
        MemorySink::without_positions(ConsumerGroup::INDEXER),
    ];
    let consumers = sinks.each_ref().map(|sink| consume(&bus, sink));
    let _heartbeats = Heartbeats::start(&bus, CLUSTER);
    let publisher = bus.publisher();
    for sink in &sinks {
        proven_until_now(sink).await;
    }
    publish(&publisher, "c", 50).await;
    for sink in &sinks {
        has(sink, "c49").await;
        proven_until_now(sink).await;
    }
    let known = sinks.each_ref().map(|sink| sink.rebuilds());
    delete_topic(&options).await;
    for consumer in &consumers {
        named(consumer, NAMED_WITHIN, "does not exist any more").await;
    }
    let stood_still = sinks.each_ref().map(|sink| sink.visible_through());
    let away = support::now();
    for (sink, through) in sinks.iter().zip(stood_still) {
        assert!(through <= away, "nothing is proven of a topic that is away");
        assert_eq!(sink.visible_through(), through);
    }
    let again = support::bus(&options).await;
    for (sink, known) in sinks.iter().zip(known) {
        rebuilt(sink, known).await;
    }
    publish(&publisher, "after", 40).await;
    for (sink, consumer) in sinks.iter().zip(&consumers) {
        has(sink, "after39").await;
        proven_until_now(sink).await;
        well(consumer).await;
    }
    for consumer in consumers {
        consumer.stop().await;
    }
    bus.stop().await;
    again.stop().await;
}

/// More partitions than configured: named with what to do, and nothing is published meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_gets_more_partitions_is_named_and_not_used() {
    let (options, bus, _quiet) = support::fresh().await;
    bus.watch_topics();
    let sink = MemorySink::new(ConsumerGroup::ANALYTICS);
    let consumer = consume(&bus, &sink);
    let _heartbeats = Heartbeats::start(&bus, CLUSTER);
    proven_until_now(&sink).await;
    let more = NewPartitions::new(&options.topic, 12);
    for result in admin().create_partitions([&more], &AdminOptions::new()).await.expect("a reply") {
        result.expect("widened");
    }
    named(&consumer, NAMED_WITHIN, "set kafka.partitions to 12").await;
    let publisher = bus.publisher();
    let refused = publisher.publish(CLUSTER, &[event("x", 1, 1)], 0).await;
    assert!(format!("{refused:?}").contains("12 partitions"), "{refused:?}");
    consumer.stop().await;
    bus.stop().await;
}

/// A cluster that is not heard holds back what is told of its partitions, and is named with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_not_heard_holds_the_age_back() {
    let _quiet = support::BROKER.read().await;
    let (mut options, _) = support::unprotected().await;
    for clusters in options.clusters.values_mut() {
        *clusters = BTreeSet::from([CLUSTER.into(), "c1".into()]);
    }
    let bus = support::bus(&options).await;
    let sink = MemorySink::new(ConsumerGroup::ANALYTICS);
    let consumer = consume(&bus, &sink);
    let _heard = Heartbeats::start(&bus, CLUSTER);
    named(&consumer, 2 * NAMED_WITHIN, "no heartbeat of cluster c1").await;
    assert_eq!((sink.visible_through(), consumer.status().lag_seconds), (0, None));
    let other = Heartbeats::start(&bus, "c1");
    proven_until_now(&sink).await;
    well(&consumer).await;
    drop(other);
    named(&consumer, NAMED_WITHIN, "no heartbeat of cluster c1").await;
    let through = sink.visible_through();
    publish(&bus.publisher(), "c", 20).await;
    has(&sink, "c19").await;
    let behind = support::now() - sink.visible_through();
    assert!(behind >= 2000, "the events of {CLUSTER} say nothing of c1: {behind} ms");
    assert!(sink.visible_through() < through + 2000);
    consumer.stop().await;
}

async fn empty(options: &KafkaOptions, ends: &Positions) {
    let mut list = TopicPartitionList::new();
    for (partition, end) in ends {
        let end = Offset::Offset(end.next.cast_signed());
        list.add_partition_offset(&options.topic, i32::from(partition.0), end).expect("an offset");
    }
    admin().delete_records(&list, &AdminOptions::new()).await.expect("deleted");
}

/// `kafka-delete-records` to the end, under a running group and before a start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_emptied_is_not_trusted() {
    let (options, bus, _quiet) = support::fresh().await;
    let sink = MemorySink::new(ConsumerGroup::ANALYTICS);
    let consumer = consume(&bus, &sink);
    let heartbeats = Heartbeats::start(&bus, CLUSTER);
    publish(&bus.publisher(), "c", 50).await;
    has(&sink, "c49").await;
    proven_until_now(&sink).await;
    empty(&options, &bus.ends().await.expect("the ends")).await;
    rebuilt(&sink, 0).await;
    proven_until_now(&sink).await;
    publish(&bus.publisher(), "more", 50).await;
    has(&sink, "more49").await;
    consumer.stop().await;
    drop(heartbeats);
    let known = sink.rebuilds();
    publish(&bus.publisher(), "missed", 50).await;
    empty(&options, &bus.ends().await.expect("the ends")).await;
    let consumer = consume(&bus, &sink);
    rebuilt(&sink, known).await;
    publish(&bus.publisher(), "after", 50).await;
    has(&sink, "after49").await;
    consumer.stop().await;
}

/// Offsets that a tool deleted, or moved without their metadata, prove nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_changed_by_hand_are_not_trusted() {
    let (options, bus, _quiet) = support::fresh().await;
    let sink = MemorySink::without_positions(ConsumerGroup::INDEXER);
    let consumer = consume(&bus, &sink);
    let _heartbeats = Heartbeats::start(&bus, CLUSTER);
    proven_until_now(&sink).await;
    publish(&bus.publisher(), "c", 50).await;
    has(&sink, "c49").await;
    proven_until_now(&sink).await;
    consumer.stop().await;
    let known = sink.rebuilds();
    // What was committed is known again: no rebuild.
    let consumer = consume(&bus, &sink);
    proven_until_now(&sink).await;
    assert_eq!(sink.rebuilds(), known, "an undisturbed restart costs no rebuild");
    consumer.stop().await;
    let group = options.group_id(ConsumerGroup::INDEXER.0);
    let deleted = admin().delete_groups(&[&group], &AdminOptions::new()).await.expect("a reply");
    deleted.into_iter().for_each(|result| drop(result.expect("deleted")));
    let consumer = consume(&bus, &sink);
    rebuilt(&sink, known).await;
    proven_until_now(&sink).await;
    consumer.stop().await;
}
