//! Scans published records from the end backwards to find the contents that consumers may know in a
//! state which the current history has lost, and the documents that were published with it.
//!
//! How it fails: a broker that is unreachable fails the call; the caller starts it again, and it
//! finds the same.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use tagfast_domain::{EpochOrdinal, UnixMillis};
use tagfast_events::envelope::{self, Attributes};
use tagfast_events::{
    BusRecord, DivergedContent, DivergedContents, DivergedEvent, Partition, RecordKind,
    decode_record,
};

use crate::client;
use crate::options::{KafkaOptions, METADATA_TIMEOUT};
use crate::record;

/// Offsets read per step.
const SCAN_BATCH: i64 = 1000;
/// How long a step may take.
const SCAN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one poll of the client waits.
const POLL_TIMEOUT: Duration = Duration::from_millis(200);

/// How much of a publisher epoch belongs to the current history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpochFate {
    /// The epoch has ended.
    Ended {
        /// The log position up to which it belongs to the current history; 0 if nothing does.
        epoch_end: u64,
        /// Whether the contents that had diverged when it began were rewritten in this history.
        reconciled: bool,
    },
    /// The epoch is the one that begins now.
    Current,
}

/// Examines one record, after those that lie behind it; returns whether the scan of its partition
/// may stop here.
fn examine(
    record: &BusRecord,
    cluster: &str,
    fate: &dyn Fn(EpochOrdinal) -> EpochFate,
    diverged: &mut DivergedContents,
) -> bool {
    if &*record.cluster != cluster {
        return false;
    }
    diverged.fence(record.publisher_epoch);
    if record.kind == RecordKind::Marker {
        return false;
    }
    let EpochFate::Ended { epoch_end, reconciled } = fate(record.publisher_epoch) else {
        return false;
    };
    let hi = Attributes::of(&record.headers).hi;
    if hi.is_some_and(|hi| hi <= epoch_end) {
        // Earlier records of the epoch lie lower still, and records before the epoch were scanned
        // when it began.
        return reconciled;
    }
    // A record that cannot be decoded was never applied.
    if record.kind == RecordKind::Event
        && let Ok(event) = decode_record(record)
    {
        let document = envelope::document(&record.headers);
        let (publisher_epoch, document) = (record.publisher_epoch, document.as_deref());
        let found = DivergedEvent { publisher_epoch, hi, at: event.at, document };
        diverged.add(event.key, &found);
    }
    false
}

/// Contents of which a state was published beyond the end of its epoch.
pub(crate) fn diverged_contents(
    options: &KafkaOptions,
    cluster: &str,
    partitions: &[Partition],
    minted_at: UnixMillis,
    fate: &dyn Fn(EpochOrdinal) -> EpochFate,
) -> KafkaResult<Vec<DivergedContent>> {
    let mut config = client::reader(options, "relay");
    config.set("enable.partition.eof", "true").set("fetch.wait.max.ms", "50");
    let reader: BaseConsumer = config.create()?;
    let mut diverged = DivergedContents::new(minted_at);
    for partition in partitions {
        let number = i32::from(partition.0);
        let (low, mut end) =
            client::request(|| reader.fetch_watermarks(&options.topic, number, METADATA_TIMEOUT))?;
        let mut done = false;
        while !done && end > low {
            let begin = (end - SCAN_BATCH).max(low);
            for record in read_range(&reader, &options.topic, number, begin, end)?.iter().rev() {
                done |= examine(record, cluster, fate, &mut diverged);
            }
            end = begin;
        }
        diverged.end_partition();
    }
    Ok(diverged.into_contents(cluster))
}

/// Reads the records at offsets `begin..end` of a partition.
fn read_range(
    reader: &BaseConsumer,
    topic: &str,
    partition: i32,
    begin: i64,
    end: i64,
) -> KafkaResult<Vec<BusRecord>> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(begin))?;
    reader.assign(&list)?;
    let mut records = Vec::new();
    let until = Instant::now() + SCAN_TIMEOUT;
    while Instant::now() <= until {
        match reader.poll(POLL_TIMEOUT) {
            // The client goes on trying.
            None | Some(Err(KafkaError::MessageConsumption(_))) => {}
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(records),
            Some(Err(error)) => return Err(error),
            Some(Ok(message)) => {
                let offset = message.offset();
                if (begin..end).contains(&offset) && message.partition() == partition {
                    records.push(record::decode(&message));
                }
                if offset >= end - 1 {
                    return Ok(records);
                }
            }
        }
    }
    Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut))
}

#[cfg(test)]
mod document_tests;
#[cfg(test)]
mod tests;
