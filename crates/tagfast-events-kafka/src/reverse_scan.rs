//! Scans published records from the end backwards to find the contents that consumers may know in a
//! state which the current history has lost, and the documents that were published with it.
//!
//! How it fails: a broker that is unreachable fails the call; the caller starts it again, and it
//! finds the same.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use tagfast_domain::{EpochOrdinal, UnixMillis};
use tagfast_events::envelope::{self, Attributes};
use tagfast_events::{
    BusRecord, DivergedContent, DivergedContents, DivergedEvent, EndedEpoch, Partition, RecordKind,
    decode_record,
};

use crate::client;
use crate::options::{DELIVERY_TIMEOUT, KafkaOptions, METADATA_TIMEOUT};
use crate::record;

/// Offsets read per step.
const SCAN_BATCH: i64 = 1000;
/// How long a step may take.
const SCAN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one poll of the client waits.
const POLL_TIMEOUT: Duration = Duration::from_millis(200);

/// How far a clock of one machine may be from that of another.
const CLOCK_SKEW_MS: i64 = 1000;
/// How long after a record got its time it may reach its partition.
const DELIVERY_MS_MAX: i64 = DELIVERY_TIMEOUT.as_millis() as i64;

/// The epochs of a cluster, as the history of the one that begins has them.
#[derive(Debug)]
pub struct EpochHistory {
    current: EpochOrdinal,
    minted_at: UnixMillis,
    past: BTreeMap<EpochOrdinal, EndedEpoch>,
}

impl EpochHistory {
    /// `current`: the epoch that begins, which was minted at `minted_at`, Unix ms.
    pub fn new(current: EpochOrdinal, minted_at: UnixMillis, past: &[EndedEpoch]) -> Self {
        let past = past.iter().map(|ended| (ended.ordinal, *ended)).collect();
        Self { current, minted_at, past }
    }

    /// The epochs after this one, and when each was minted.
    fn later_than(
        &self,
        ordinal: EpochOrdinal,
    ) -> impl Iterator<Item = (EpochOrdinal, UnixMillis)> + '_ {
        let after = (Bound::Excluded(ordinal), Bound::Unbounded);
        let past = self.past.range(after).map(|(ordinal, epoch)| (*ordinal, epoch.minted_at));
        past.chain(Some((self.current, self.minted_at)).filter(|current| current.0 > ordinal))
    }
}

/// A record, and when its relay handed it to the client, Unix ms; `None`: unknown.
struct PublishedRecord {
    record: BusRecord,
    published_at: Option<UnixMillis>,
}

/// The scan of one partition, backwards.
struct PartitionScan<'a> {
    cluster: &'a str,
    history: &'a EpochHistory,
    /// Epochs of which a marker lies behind what is to be examined.
    marked: BTreeSet<EpochOrdinal>,
    diverged: &'a mut DivergedContents,
}

impl PartitionScan<'_> {
    /// Examines one record, after those that lie behind it; returns whether the scan of its
    /// partition may stop here.
    fn examine(&mut self, published: &PublishedRecord) -> bool {
        let PublishedRecord { record, published_at } = published;
        if &*record.cluster != self.cluster {
            return false;
        }
        let publisher_epoch = record.publisher_epoch;
        self.diverged.fence(publisher_epoch);
        if record.kind == RecordKind::Marker {
            self.marked.insert(publisher_epoch);
            return false;
        }
        if publisher_epoch == self.history.current {
            return false;
        }
        // No record of an unknown epoch is trusted: its contents count as diverged.
        let past = self.history.past.get(&publisher_epoch);
        let hi = Attributes::of(&record.headers).hi;
        if let Some(past) = past
            && hi.is_some_and(|hi| hi <= past.epoch_end)
        {
            // Earlier records of the epoch lie lower still, and records before the epoch were
            // scanned when it began.
            return past.reconciled && self.is_accepted(publisher_epoch, *published_at);
        }
        // A record that cannot be decoded was never applied.
        if record.kind == RecordKind::Event
            && let Ok(event) = decode_record(record)
        {
            let document = envelope::document(&record.headers);
            let document = document.as_deref();
            let found = DivergedEvent { publisher_epoch, hi, at: event.at, document };
            self.diverged.add(event.key, &found);
        }
        false
    }

    /// Whether no marker of a later epoch lies before the record, or consumers drop it: a replaced
    /// relay may publish long after its epoch ended, and what a later epoch lost may lie before
    /// that. The marker may lie before it although one lies behind it: each relay of an epoch
    /// publishes one. So the time of the record must be before the later epoch.
    fn is_accepted(&self, of: EpochOrdinal, published_at: Option<UnixMillis>) -> bool {
        let Some(published_at) = published_at else { return false };
        self.history.later_than(of).all(|(later, minted_at)| {
            let late = if self.marked.contains(&later) { 0 } else { DELIVERY_MS_MAX };
            published_at + late + CLOCK_SKEW_MS < minted_at
        })
    }
}

/// Contents of which a state was published beyond the end of its epoch.
pub(crate) fn diverged_contents(
    options: &KafkaOptions,
    cluster: &str,
    partitions: &[Partition],
    history: &EpochHistory,
) -> KafkaResult<Vec<DivergedContent>> {
    let mut config = client::reader(options, "relay");
    config.set("enable.partition.eof", "true").set("fetch.wait.max.ms", "50");
    let reader: BaseConsumer = config.create()?;
    let mut diverged = DivergedContents::new(history.minted_at);
    for partition in partitions {
        let number = i32::from(partition.0);
        let (low, mut end) =
            client::request(|| reader.fetch_watermarks(&options.topic, number, METADATA_TIMEOUT))?;
        let mut scan =
            PartitionScan { cluster, history, marked: BTreeSet::new(), diverged: &mut diverged };
        let mut done = false;
        while !done && end > low {
            let begin = (end - SCAN_BATCH).max(low);
            for record in read_range(&reader, &options.topic, number, begin, end)?.iter().rev() {
                done |= scan.examine(record);
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
) -> KafkaResult<Vec<PublishedRecord>> {
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
                    let (record, published_at) =
                        (record::decode(&message), message.timestamp().to_millis());
                    records.push(PublishedRecord { record, published_at });
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
