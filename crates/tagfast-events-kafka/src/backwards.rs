//! Reading what was published, from the end backwards: which contents may be known to consumers in
//! a state that was lost.
//!
//! How it fails: a broker that is away fails the call; it begins anew, and finds the same.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use tagfast_domain::{ContentKey, EpochOrdinal};
use tagfast_events::envelope::Attributes;
use tagfast_events::{BusError, BusRecord, Partition, RecordKind, decode_record};

use crate::{ASK, KafkaOptions, client, unavailable};

/// Offsets that are read at a time.
const STEP: i64 = 1000;
/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the reader of an epoch may believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// Part of the current history up to this log position. What was doubtful when it began was
    /// written again in this history, if `reconciled`.
    Ended {
        /// The position; 0 if nothing of it is.
        fence: u64,
        /// Whether its beginning needs no second look.
        reconciled: bool,
    },
    /// It is the one that begins.
    Current,
}

/// Whether reading of a partition may end, having seen this record.
fn judge(
    record: BusRecord,
    cluster: &str,
    past: &dyn Fn(EpochOrdinal) -> Past,
    doubtful: &mut BTreeSet<ContentKey>,
) -> bool {
    if &*record.cluster != cluster || record.kind == RecordKind::Marker {
        return false;
    }
    let Past::Ended { fence, reconciled } = past(record.emit) else { return false };
    let hi = Attributes::of(&record.headers).hi;
    if hi.is_some_and(|hi| hi <= fence) {
        // Everything before it in its epoch lies lower still, and what came before the epoch was
        // looked at when it began.
        return reconciled;
    }
    // What cannot be decoded was never applied.
    if record.kind == RecordKind::Event
        && let Ok(event) = decode_record(&record)
    {
        doubtful.insert(event.key);
    }
    false
}

/// Contents of which something was published past the fence of its epoch.
pub(crate) fn doubtful(
    options: &KafkaOptions,
    cluster: &str,
    partitions: &[Partition],
    past: &dyn Fn(EpochOrdinal) -> Past,
) -> Result<Vec<ContentKey>, BusError> {
    let mut config = client::base(options);
    // Kafka wants a group of whoever reads; nothing is committed.
    config.set("group.id", options.group_id("relay")).set("enable.auto.commit", "false");
    config
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        .set("fetch.wait.max.ms", "50");
    let reader: BaseConsumer = config.create().map_err(unavailable)?;
    let mut found = BTreeSet::new();
    for partition in partitions {
        let number = i32::from(partition.0);
        let (low, mut end) =
            reader.fetch_watermarks(&options.topic, number, ASK).map_err(unavailable)?;
        let mut enough = false;
        while !enough && end > low {
            let begin = (end - STEP).max(low);
            for record in range(&reader, &options.topic, number, begin, end).map_err(unavailable)? {
                enough |= judge(record, cluster, past, &mut found);
            }
            end = begin;
        }
    }
    Ok(found.into_iter().collect())
}

fn range(
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
    let until = Instant::now() + PATIENCE;
    while Instant::now() <= until {
        match reader.poll(Duration::from_millis(200)) {
            // The client goes on trying by itself.
            None | Some(Err(KafkaError::MessageConsumption(_))) => {}
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(records),
            Some(Err(error)) => return Err(error),
            Some(Ok(message)) => {
                if message.offset() < end
                    && message.offset() >= begin
                    && message.partition() == partition
                {
                    records.push(crate::consumer::record(&message));
                }
                if message.offset() >= end - 1 {
                    return Ok(records);
                }
            }
        }
    }
    Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut))
}
