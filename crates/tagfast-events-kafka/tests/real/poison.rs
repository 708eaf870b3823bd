//! Poison records, dead letters that cannot be written, replaced publisher epochs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tagfast_domain::EpochOrdinal;
use tagfast_events::conformance::MemorySink;
use tagfast_events::dead_letters::DeadLetterReader;
use tagfast_events::{Bus, ConsumerGroup, DeadLetter, FailureClass, RecordVerdict, decode_record};
use tagfast_events_kafka::{KafkaBus, KafkaDeadLetterReader, KafkaOptions};
use tagfast_resilience::task;
use tagfast_testkit::wait_for_condition_async;

use crate::support::{self, CLUSTER, consume, event, version_of};

const TEST_TIMEOUT: Duration = Duration::from_secs(30);

fn client() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", support::brokers().join(","));
    config
}

/// Writes a record as a foreign program would.
async fn produce(options: &KafkaOptions, key: &str, payload: &[u8], headers: &[(&str, &str)]) {
    produce_to(&options.topic, key, payload, headers).await;
}

async fn produce_to(topic: &str, key: &str, payload: &[u8], headers: &[(&str, &str)]) {
    let producer: FutureProducer = client().create().expect("a producer");
    let all = headers.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
        all.insert(Header { key, value: Some(value.as_bytes()) })
    });
    let record = FutureRecord::to(topic).partition(0).key(key).payload(payload).headers(all);
    producer.send(record, TEST_TIMEOUT).await.map_err(|(e, _)| e).expect("written");
}

/// A dead letter as a record of its topic.
struct TopicRecord {
    key: Vec<u8>,
    payload: Vec<u8>,
    headers: Vec<(String, String)>,
}

impl TopicRecord {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }
}

async fn dead_letters(options: &KafkaOptions, count: usize) -> Vec<TopicRecord> {
    let topic = options.dead_letter_topic("indexer");
    task::blocking(move || {
        let reader: BaseConsumer =
            client().set("group.id", "dead-letters-reader").create().expect("a reader");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic, 0, Offset::Beginning).expect("an offset");
        reader.assign(&list).expect("assigned");
        let mut found = Vec::new();
        let end = std::time::Instant::now() + TEST_TIMEOUT;
        while found.len() < count {
            assert!(
                std::time::Instant::now() < end,
                "{} of {count} dead letters were read",
                found.len()
            );
            let Some(message) = reader.poll(Duration::from_millis(200)) else { continue };
            let message = message.expect("a dead letter");
            let headers = message.headers().expect("headers").iter();
            found.push(TopicRecord {
                key: message.key().unwrap_or_default().to_vec(),
                payload: message.payload().unwrap_or_default().to_vec(),
                headers: headers
                    .map(|h| {
                        (
                            h.key.to_owned(),
                            String::from_utf8_lossy(h.value.unwrap_or_default()).into_owned(),
                        )
                    })
                    .collect(),
            });
        }
        found
    })
    .await
    .expect("no panic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_is_parked_untouched_and_the_rest_goes_on() {
    let (options, bus, _quiet) = support::fresh().await;
    let sink = MemorySink::with_verdicts(ConsumerGroup::INDEXER, |record| {
        if record.event.key.content.content_id.as_str() == "refused" {
            return RecordVerdict::Poison {
                code: "mapping",
                message: "the index will never take it".to_owned(),
            };
        }
        RecordVerdict::Applied
    });
    let consumer = consume(&bus, &sink);
    let publisher = bus.publisher();
    publisher.publish(CLUSTER, &[event("before", 1, 1)], 0).await.expect("published");
    let garbage = [0xff, 0x00, b'{'];
    produce(&options, "any/key", &garbage, &[("traceparent", "00-1-2-03"), ("x", "y")]).await;
    produce(&options, "a/b/c", b"{}", &[("ce_type", "tagfast.taggings.v2")]).await;
    produce(&options, "another/key/than", br#"{"specversion":"1.0"}"#, &[]).await;
    let refused = event("refused", 1, 1);
    publisher
        .publish(CLUSTER, &[refused.clone(), event("after", 1, 1)], 0)
        .await
        .expect("published");
    wait_for_condition_async("the good ones", TEST_TIMEOUT, || async {
        let good = version_of(&sink, "before").is_some() && version_of(&sink, "after").is_some();
        let parked = consumer.status().parked;
        if good && parked == 4 { Ok(()) } else { Err(format!("{good}, {parked} parked")) }
    })
    .await;
    let found = dead_letters(&options, 3).await;
    assert_eq!(
        (found[0].key.as_slice(), found[0].payload.as_slice()),
        (b"any/key".as_slice(), garbage.as_slice())
    );
    assert_eq!((found[0].header("traceparent"), found[0].header("x")), ("00-1-2-03", "y"));
    let codes: Vec<&str> =
        found.iter().map(|l| l.header("__connect.errors.exception.class.name")).collect();
    assert_eq!(codes, ["event_undecodable", "event_type_unknown", "event_undecodable"]);
    assert_eq!(found[1].header("__connect.errors.topic"), options.topic);
    assert_eq!(found[1].header("__connect.errors.partition"), "0");
    assert_eq!(found[1].header("__connect.errors.stage"), "VALUE_CONVERTER");
    assert_eq!(found[1].header("tagfast.dlq.class"), "poison");
    assert!(found[1].header("tagfast.dlq.id").starts_with("indexer/0/"));
    consumer.stop().await;

    // As a reader of the topic has them: the records as they were, and where they were.
    let mut reader =
        bus.dead_letter_reader(ConsumerGroup::INDEXER, BTreeMap::new()).expect("a reader");
    let mut read = read_dead_letters(&mut reader, 4).await;
    read.sort_by_key(|dead_letter| dead_letter.code.clone());
    let codes: Vec<_> = read
        .iter()
        .map(|dead_letter| (dead_letter.code.as_str(), dead_letter.class, dead_letter.attempts))
        .collect();
    let poison = FailureClass::Poison;
    let undecodable = ("event_undecodable", poison, 1);
    assert_eq!(
        codes,
        [("event_type_unknown", poison, 1), undecodable, undecodable, ("mapping", poison, 1)]
    );
    let any = read
        .iter()
        .find(|dead_letter| dead_letter.record.key == b"any/key")
        .expect("the first one");
    assert_eq!((any.record.payload.as_slice(), any.record.partition.0), (garbage.as_slice(), 0));
    let headers = [("traceparent", "00-1-2-03"), ("x", "y")]
        .map(|(n, v)| (n.to_owned(), v.as_bytes().to_vec()));
    assert_eq!(any.record.headers, headers);
    let mapped = read.last().expect("four");
    assert_eq!(decode_record(&mapped.record).expect("an event"), refused);
    assert_eq!(mapped.message, "the index will never take it");

    // A reader that continues there reads only newer records, those of a foreign program included.
    produce_to(&options.dead_letter_topic("indexer"), "who/knows", b"what", &[]).await;
    let mut later =
        bus.dead_letter_reader(ConsumerGroup::INDEXER, reader.offsets().clone()).expect("a reader");
    let foreign = read_dead_letters(&mut later, 1).await.remove(0);
    assert_eq!(
        (foreign.code.as_str(), foreign.record.payload.as_slice()),
        ("foreign_dead_letter", b"what".as_slice())
    );
}

async fn read_dead_letters(reader: &mut KafkaDeadLetterReader, count: usize) -> Vec<DeadLetter> {
    let (mut dead_letters, until) = (Vec::new(), Instant::now() + TEST_TIMEOUT);
    while dead_letters.len() < count {
        assert!(Instant::now() < until, "{} of {count} dead letters", dead_letters.len());
        dead_letters.extend(reader.read(100, Duration::from_millis(200)).await.expect("read"));
    }
    dead_letters
}

/// The position does not pass a record whose dead letter could not be written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_cannot_be_written_stops_the_position() {
    let (options, bus, _quiet) = support::fresh().await;
    let admin: AdminClient<DefaultClientContext> = client().create().expect("a client");
    let topic = options.dead_letter_topic("indexer");
    for result in admin.delete_topics(&[&topic], &AdminOptions::new()).await.expect("a reply") {
        result.expect("deleted");
    }
    let sink = MemorySink::new(ConsumerGroup::INDEXER);
    let consumer = consume(&bus, &sink);
    produce(&options, "k", b"garbage", &[]).await;
    bus.publisher().publish(CLUSTER, &[event("a", 1, 1)], 0).await.expect("published");
    wait_for_condition_async("it waits", TEST_TIMEOUT, || async {
        let state = consumer.status().state;
        if state == tagfast_events::ConsumerState::Paused {
            Ok(())
        } else {
            Err(format!("{state:?}"))
        }
    })
    .await;
    consumer.stop().await;
    assert_eq!(sink.rebuilds(), 0);
    // The next one finds the record again, and a topic to park it in.
    let bus = support::bus(&options).await;
    let sink = MemorySink::new(ConsumerGroup::INDEXER);
    let consumer = consume(&bus, &sink);
    let mut reader =
        bus.dead_letter_reader(ConsumerGroup::INDEXER, BTreeMap::new()).expect("a reader");
    assert_eq!(read_dead_letters(&mut reader, 1).await[0].record.payload, b"garbage");
    wait_for_condition_async("the good one", TEST_TIMEOUT, || async {
        if version_of(&sink, "a") == Some(1) { Ok(()) } else { Err("not there") }
    })
    .await;
    consumer.stop().await;
}

/// After a marker, events and heartbeats of the previous epoch are dropped, also after a restart of
/// the consumer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replaced_epoch_publishes_is_dropped() {
    let (options, bus, _quiet) = support::fresh().await;
    let sink = MemorySink::new(ConsumerGroup::INDEXER);
    let consumer = consume(&bus, &sink);
    let publisher = bus.publisher();
    publisher.publish(CLUSTER, &[event("a", 10, 5)], 0).await.expect("published");
    publisher.marker(CLUSTER, EpochOrdinal(6), support::now()).await.expect("marked");
    // The old primary's relay is still at it: a higher version than anything, and a promise it
    // cannot make.
    publisher.publish(CLUSTER, &[event("a", 99, 5)], 0).await.expect("published");
    let tomorrow = support::now() + 86_400_000;
    publisher.heartbeat(CLUSTER, EpochOrdinal(5), tomorrow, 0).await;
    publisher.publish(CLUSTER, &[event("a", 11, 6), event("b", 1, 6)], 0).await.expect("published");
    let came = async |sink: &MemorySink, id: &str, version| {
        wait_for_condition_async("the new epoch's", TEST_TIMEOUT, || async {
            let known = version_of(sink, id);
            if known >= Some(version) { Ok(()) } else { Err(format!("{id} is at {known:?}")) }
        })
        .await;
    };
    came(&sink, "a", 11).await;
    came(&sink, "b", 1).await;
    consumer.stop().await;
    assert_eq!(version_of(&sink, "a"), Some(11));
    assert!(sink.visible_through() < tomorrow);
    // The committed position carries the publisher epochs seen.
    let bus = KafkaBus::new(options).expect("the settings are fine");
    let sink = MemorySink::without_positions(ConsumerGroup::INDEXER);
    let consumer = consume(&bus, &sink);
    publisher
        .publish(CLUSTER, &[event("a", 100, 5), event("a", 12, 6)], 0)
        .await
        .expect("published");
    came(&sink, "a", 12).await;
    assert_eq!(version_of(&sink, "a"), Some(12), "the restarted consumer drops it, too");
    consumer.stop().await;
}

/// A group that is behind what the topic retains is rebuilt from the shards, never moved on
/// silently.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_behind_what_is_retained_is_rebuilt() {
    let (options, bus, _quiet) = support::fresh().await;
    let events: Vec<_> = (0..50).map(|n| event(&format!("c{n}"), 1, 1)).collect();
    bus.publisher().publish(CLUSTER, &events, 0).await.expect("published");
    let admin: AdminClient<DefaultClientContext> = client().create().expect("a client");
    let mut list = TopicPartitionList::new();
    for (partition, end) in bus.ends().await.expect("the ends") {
        let end = Offset::Offset(end.next.cast_signed());
        list.add_partition_offset(&options.topic, i32::from(partition.0), end).expect("an offset");
    }
    admin.delete_records(&list, &AdminOptions::new()).await.expect("deleted");
    let sink = MemorySink::new(ConsumerGroup::INDEXER);
    let consumer = consume(&bus, &sink);
    wait_for_condition_async("the rebuild", TEST_TIMEOUT, || async {
        if sink.rebuilds() == 1 { Ok(()) } else { Err("not rebuilt") }
    })
    .await;
    bus.publisher().publish(CLUSTER, &[event("new", 1, 1)], 0).await.expect("published");
    wait_for_condition_async("it goes on", TEST_TIMEOUT, || async {
        version_of(&sink, "new").map(drop).ok_or("not there")
    })
    .await;
    assert_eq!(sink.rebuilds(), 1);
    consumer.stop().await;
}
