//! Dead letters: the record as it was, with why it could not be applied in headers that Kafka
//! Connect's tools know.
//!
//! How reading fails: a broker that is away is asked again. What does not look like a letter,
//! because somebody else wrote into the topic, becomes one that says so; nothing is skipped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::FutureProducer;
use rdkafka::{Offset, TopicPartitionList};
use tagfast_domain::time::{parse_rfc3339, rfc3339};
use tagfast_events::{BusError, BusRecord, DeadLetter, Group, LetterClass, Partition};

use crate::publisher::{delivered, enqueue, headers};
use crate::{KafkaBus, KafkaOptions, client, consumer, unavailable};

/// What our headers begin with.
const OURS: [&str; 2] = ["__connect.errors.", "tagfast.dlq."];

/// The headers of a letter: those of the record, then ours.
pub(crate) fn letter_headers(
    options: &KafkaOptions,
    letter: &DeadLetter,
) -> Vec<(String, Vec<u8>)> {
    let record = &letter.record;
    let stage = match letter.code.as_str() {
        "event_undecodable" | "event_type_unknown" | "event_key_mismatch" => "VALUE_CONVERTER",
        _ => "TASK_PUT",
    };
    let ours = [
        ("__connect.errors.topic", options.topic.clone()),
        ("__connect.errors.partition", record.partition.0.to_string()),
        ("__connect.errors.offset", record.offset.to_string()),
        ("__connect.errors.connector.name", letter.group.0.to_owned()),
        ("__connect.errors.task.id", options.member.clone()),
        ("__connect.errors.stage", stage.to_owned()),
        ("__connect.errors.class.name", format!("tagfast.{}", letter.group.0)),
        ("__connect.errors.exception.class.name", letter.code.clone()),
        ("__connect.errors.exception.message", letter.message.clone()),
        ("__connect.errors.exception.stacktrace", format!("{}: {}", letter.code, letter.message)),
        ("tagfast.dlq.letter_id", letter.id()),
        ("tagfast.dlq.class", letter.class.as_str().to_owned()),
        ("tagfast.dlq.attempts", letter.attempts.to_string()),
        ("tagfast.dlq.first_failed_at", rfc3339(letter.first_failed_at)),
        ("tagfast.dlq.last_failed_at", rfc3339(letter.last_failed_at)),
        ("tagfast.dlq.replays", "0".to_owned()),
    ];
    let ours = ours.into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes()));
    record.headers.iter().cloned().chain(ours).collect()
}

/// Writes a letter; returns when all in-sync brokers have it.
pub(crate) async fn park(
    options: &KafkaOptions,
    producer: &FutureProducer,
    letter: &DeadLetter,
) -> Result<(), BusError> {
    let record = &letter.record;
    let all = headers(&letter_headers(options, letter));
    let (topic, partition) = (options.letters_topic(letter.group.0), i32::from(record.partition.0));
    delivered(enqueue(producer, &topic, partition, &record.key, &record.payload, all).await?).await
}

/// A letter as it is in the topic of its group.
fn letter(group: Group, record: BusRecord) -> DeadLetter {
    let (ours, headers): (Vec<_>, Vec<_>) = record
        .headers
        .into_iter()
        .partition(|(name, _)| OURS.iter().any(|prefix| name.starts_with(prefix)));
    // The last one of a name is the one that was added last.
    let said = |name: &str| {
        let found = ours.iter().rev().find(|(known, _)| known == name)?;
        std::str::from_utf8(&found.1).ok()
    };
    let number = |name: &str| said(name)?.parse::<u64>().ok();
    let moment = |name: &str| parse_rfc3339(said(name)?);
    let partition = number("__connect.errors.partition").and_then(|n| u16::try_from(n).ok());
    let last_failed_at = moment("tagfast.dlq.last_failed_at").unwrap_or(record.at);
    DeadLetter {
        group,
        class: said("tagfast.dlq.class")
            .and_then(LetterClass::named)
            .unwrap_or(LetterClass::Poison),
        code: said("__connect.errors.exception.class.name").unwrap_or("foreign_letter").to_owned(),
        message: said("__connect.errors.exception.message")
            .unwrap_or("not written by this service")
            .to_owned(),
        attempts: number("tagfast.dlq.attempts").and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        first_failed_at: moment("tagfast.dlq.first_failed_at").unwrap_or(last_failed_at),
        last_failed_at,
        record: BusRecord {
            partition: partition.map_or(record.partition, Partition),
            offset: number("__connect.errors.offset").unwrap_or(record.offset),
            headers,
            ..record
        },
    }
}

/// Reads the letters of a group, oldest first, from where somebody else has read to.
pub struct LetterReader {
    reader: Arc<BaseConsumer>,
    group: Group,
    read_to: BTreeMap<Partition, u64>,
}

impl KafkaBus {
    /// Reads a group's letters behind these offsets; a partition that is not named, or whose offset
    /// is gone, from its beginning.
    pub fn letters(
        &self,
        group: Group,
        read_to: BTreeMap<Partition, u64>,
    ) -> Result<LetterReader, BusError> {
        let mut config = client::base(&self.options);
        // Kafka wants a group of whoever reads; nothing is committed.
        config
            .set("group.id", self.options.group_id("replayer"))
            .set("enable.auto.commit", "false");
        config.set("auto.offset.reset", "earliest").set("fetch.wait.max.ms", "100");
        let reader: BaseConsumer = config.create().map_err(unavailable)?;
        let (topic, mut list) = (self.options.letters_topic(group.0), TopicPartitionList::new());
        for n in 0..self.options.partitions {
            let offset = match read_to.get(&Partition(n)) {
                Some(next) => Offset::Offset(next.cast_signed()),
                None => Offset::Beginning,
            };
            list.add_partition_offset(&topic, i32::from(n), offset).map_err(unavailable)?;
        }
        reader.assign(&list).map_err(unavailable)?;
        Ok(LetterReader { reader: Arc::new(reader), group, read_to })
    }
}

impl LetterReader {
    /// Up to `max` letters, waiting at most `wait` for the first.
    pub async fn read(&mut self, max: usize, wait: Duration) -> Result<Vec<DeadLetter>, BusError> {
        let reader = Arc::clone(&self.reader);
        let polled = tokio::task::spawn_blocking(move || poll(&reader, max, wait))
            .await
            .map_err(unavailable)?;
        let records = polled.map_err(unavailable)?;
        for record in &records {
            self.read_to.insert(record.partition, record.offset + 1);
        }
        Ok(records.into_iter().map(|record| letter(self.group, record)).collect())
    }

    /// How far it has come.
    pub fn read_to(&self) -> &BTreeMap<Partition, u64> {
        &self.read_to
    }
}

fn poll(reader: &BaseConsumer, max: usize, wait: Duration) -> Result<Vec<BusRecord>, KafkaError> {
    let (mut records, until) = (Vec::new(), Instant::now() + wait);
    while records.len() < max {
        // What has arrived is not held back for what may come.
        let patience = if records.is_empty() {
            until.saturating_duration_since(Instant::now())
        } else {
            Duration::ZERO
        };
        match reader.poll(patience) {
            Some(Ok(message)) => records.push(consumer::record(&message)),
            // The client goes on trying by itself.
            Some(Err(KafkaError::MessageConsumption(_))) if Instant::now() < until => {}
            Some(Err(KafkaError::MessageConsumption(_))) | None => break,
            Some(Err(error)) => return Err(error),
        }
    }
    Ok(records)
}
