//! Dead letters on Kafka: the record unchanged, plus headers that say why it could not be applied.
//!
//! The headers follow Kafka Connect's dead-letter queues, so that Connect's tools can read them.
//! The value of every header is UTF-8 text.
//!
//! | header | type | example |
//! |---|---|---|
//! | `__connect.errors.topic` | topic of the record | `tagfast.taggings.v1` |
//! | `__connect.errors.partition` | integer | `17` |
//! | `__connect.errors.offset` | integer | `4711` |
//! | `__connect.errors.connector.name` | consumer group | `indexer` |
//! | `__connect.errors.task.id` | host and process | `node1-4242` |
//! | `__connect.errors.stage` | `VALUE_CONVERTER` (undecodable) or `TASK_PUT` | `TASK_PUT` |
//! | `__connect.errors.class.name` | consumer class | `tagfast.indexer` |
//! | `__connect.errors.exception.class.name` | error code | `event_undecodable` |
//! | `__connect.errors.exception.message` | text, at most 1,000 characters | `not JSON` |
//! | `__connect.errors.exception.stacktrace` | `code: message` | `event_undecodable: not JSON` |
//! | `tagfast.dlq.id` | `group/partition/offset` | `indexer/17/4711` |
//! | `tagfast.dlq.class` | `poison` or `exhausted` | `poison` |
//! | `tagfast.dlq.attempts` | integer | `4` |
//! | `tagfast.dlq.first_failed_at` | RFC 3339, UTC | `2026-11-30T03:00:00.000Z` |
//! | `tagfast.dlq.last_failed_at` | RFC 3339, UTC | `2026-11-30T03:00:05.000Z` |
//!
//! How reading fails: while a broker is unreachable the caller reads again. A record that a
//! different program wrote into the topic becomes a dead letter with the code
//! `foreign_dead_letter`; nothing is skipped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::producer::FutureProducer;
use rdkafka::{Offset, TopicPartitionList, error::KafkaError};
use tagfast_domain::time::{parse_rfc3339, rfc3339};
use tagfast_events::dead_letters::{DeadLetterReader, ReadOffsets};
use tagfast_events::{BusError, BusRecord, ConsumerGroup, DeadLetter, FailureClass, Partition};

use crate::client;
use crate::options::KafkaOptions;
use crate::record::{self, delivered, encode_headers, enqueue};

/// Prefixes of the headers that parking adds.
const HEADER_PREFIXES: [&str; 2] = ["__connect.errors.", "tagfast.dlq."];

/// The headers of a dead letter: those of the record, then the added ones.
fn dead_letter_headers(options: &KafkaOptions, dead_letter: &DeadLetter) -> Vec<(String, Vec<u8>)> {
    let record = &dead_letter.record;
    let stage = match dead_letter.code.as_str() {
        "event_undecodable" | "event_type_unknown" | "event_key_mismatch" => "VALUE_CONVERTER",
        _ => "TASK_PUT",
    };
    let added = [
        ("__connect.errors.topic", options.topic.clone()),
        ("__connect.errors.partition", record.partition.0.to_string()),
        ("__connect.errors.offset", record.offset.to_string()),
        ("__connect.errors.connector.name", dead_letter.group.0.to_owned()),
        ("__connect.errors.task.id", options.member.clone()),
        ("__connect.errors.stage", stage.to_owned()),
        ("__connect.errors.class.name", format!("tagfast.{}", dead_letter.group.0)),
        ("__connect.errors.exception.class.name", dead_letter.code.clone()),
        ("__connect.errors.exception.message", dead_letter.message.clone()),
        (
            "__connect.errors.exception.stacktrace",
            format!("{}: {}", dead_letter.code, dead_letter.message),
        ),
        ("tagfast.dlq.id", dead_letter.id()),
        ("tagfast.dlq.class", dead_letter.class.as_str().to_owned()),
        ("tagfast.dlq.attempts", dead_letter.attempts.to_string()),
        ("tagfast.dlq.first_failed_at", rfc3339(dead_letter.first_failed_at)),
        ("tagfast.dlq.last_failed_at", rfc3339(dead_letter.last_failed_at)),
    ];
    let added = added.into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes()));
    record.headers.iter().cloned().chain(added).collect()
}

/// Writes a dead letter; returns when all in-sync brokers have it.
pub(crate) async fn park(
    options: &KafkaOptions,
    producer: &FutureProducer,
    dead_letter: &DeadLetter,
) -> Result<(), BusError> {
    let record = &dead_letter.record;
    let headers = encode_headers(&dead_letter_headers(options, dead_letter));
    let topic = options.dead_letter_topic(dead_letter.group.0);
    let partition = i32::from(record.partition.0);
    let delivery =
        enqueue(producer, &topic, partition, &record.key, &record.payload, headers).await?;
    delivered(delivery).await
}

/// Decodes a record of a dead-letter topic.
fn decode(group: ConsumerGroup, record: BusRecord) -> DeadLetter {
    let (added, headers): (Vec<_>, Vec<_>) = record
        .headers
        .into_iter()
        .partition(|(name, _)| HEADER_PREFIXES.iter().any(|prefix| name.starts_with(prefix)));
    // Of headers with the same name the last one was added last.
    let text = |name: &str| {
        let found = added.iter().rev().find(|(known, _)| known == name)?;
        std::str::from_utf8(&found.1).ok()
    };
    let number = |name: &str| text(name)?.parse::<u64>().ok();
    let time = |name: &str| parse_rfc3339(text(name)?);
    let partition = number("__connect.errors.partition").and_then(|n| u16::try_from(n).ok());
    let last_failed_at = time("tagfast.dlq.last_failed_at").unwrap_or(record.at);
    DeadLetter {
        group,
        class: text("tagfast.dlq.class")
            .and_then(FailureClass::named)
            .unwrap_or(FailureClass::Poison),
        code: text("__connect.errors.exception.class.name")
            .unwrap_or("foreign_dead_letter")
            .to_owned(),
        message: text("__connect.errors.exception.message")
            .unwrap_or("not written by this service")
            .to_owned(),
        attempts: number("tagfast.dlq.attempts").and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        first_failed_at: time("tagfast.dlq.first_failed_at").unwrap_or(last_failed_at),
        last_failed_at,
        record: BusRecord {
            partition: partition.map_or(record.partition, Partition),
            offset: number("__connect.errors.offset").unwrap_or(record.offset),
            headers,
            ..record
        },
    }
}

/// Reads the dead letters of a group, oldest first.
pub struct KafkaDeadLetterReader {
    options: Arc<KafkaOptions>,
    /// Of the reader's credentials.
    generation: u64,
    reader: Arc<BaseConsumer>,
    group: ConsumerGroup,
    offsets: ReadOffsets,
}

impl KafkaDeadLetterReader {
    pub(crate) fn open(
        options: Arc<KafkaOptions>,
        group: ConsumerGroup,
        offsets: ReadOffsets,
    ) -> Result<Self, BusError> {
        let generation = options.security.generation();
        let mut config = client::reader(&options, "replayer");
        config.set("fetch.wait.max.ms", "100");
        let open = || -> KafkaResult<BaseConsumer> {
            let reader: BaseConsumer = config.create()?;
            let (topic, mut list) = (options.dead_letter_topic(group.0), TopicPartitionList::new());
            for n in 0..options.partitions {
                let offset = match offsets.get(&Partition(n)) {
                    Some(next) => Offset::Offset(next.cast_signed()),
                    None => Offset::Beginning,
                };
                list.add_partition_offset(&topic, i32::from(n), offset)?;
            }
            reader.assign(&list)?;
            Ok(reader)
        };
        let reader = Arc::new(open().map_err(BusError::unavailable)?);
        Ok(Self { options, generation, reader, group, offsets })
    }
}

#[async_trait]
impl DeadLetterReader for KafkaDeadLetterReader {
    async fn read(&mut self, max: usize, wait: Duration) -> Result<Vec<DeadLetter>, BusError> {
        if self.generation != self.options.security.generation() {
            let (options, offsets) = (Arc::clone(&self.options), self.offsets.clone());
            *self = Self::open(options, self.group, offsets)?;
        }
        let reader = Arc::clone(&self.reader);
        let records = client::blocking(move || poll(&reader, max, wait)).await?;
        for record in &records {
            self.offsets.insert(record.partition, record.offset + 1);
        }
        Ok(records.into_iter().map(|record| decode(self.group, record)).collect())
    }

    fn offsets(&self) -> &ReadOffsets {
        &self.offsets
    }
}

fn poll(reader: &BaseConsumer, max: usize, wait: Duration) -> KafkaResult<Vec<BusRecord>> {
    let (mut records, until) = (Vec::new(), Instant::now() + wait);
    while records.len() < max {
        // Records that have arrived are not held back for later ones.
        let timeout = if records.is_empty() {
            until.saturating_duration_since(Instant::now())
        } else {
            Duration::ZERO
        };
        match reader.poll(timeout) {
            Some(Ok(message)) => records.push(record::decode(&message)),
            // The client goes on trying.
            Some(Err(KafkaError::MessageConsumption(_))) if Instant::now() < until => {}
            Some(Err(KafkaError::MessageConsumption(_))) | None => break,
            Some(Err(error)) => return Err(error),
        }
    }
    Ok(records)
}
