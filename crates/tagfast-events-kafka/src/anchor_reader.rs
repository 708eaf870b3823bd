//! Reads single records again, by which a partition is known: see [`Anchor`].
//!
//! Kafka gives every topic an id of its own, but the client library has no safe call that returns
//! it. The record at a known offset is as good a proof: a topic that was made again, or a log that
//! was cut and grew again, has a different record there.
//!
//! All partitions are asked at once, for few bytes each. A broker answers with a whole batch for
//! the first partition of a request only; of the others it leaves out a batch that is larger than
//! the few bytes, without an error, for as long as it is asked that way. So what has not come after
//! [`TOGETHER_TIMEOUT`] is read one partition at a time.
//!
//! How it fails: a broker that does not answer fails the call; nothing is concluded from that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message;
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{Offset, TopicPartitionList};
use tagfast_events::{Anchor, BusRecord, Continuity, Partition};
use xxhash_rust::xxh3::Xxh3;

use crate::client;
use crate::options::{KafkaOptions, METADATA_TIMEOUT};
use crate::record;

/// How long one poll of the client waits.
const POLL_TIMEOUT: Duration = Duration::from_millis(20);
/// Bytes that one request may return of a partition: a batch of a partition that is asked for alone
/// is returned in any case, and more is not needed.
const FETCH_BYTES_MAX: &str = "4096";
/// How long partitions are read together before each is read alone.
const TOGETHER_TIMEOUT: Duration = Duration::from_secs(2);

/// The anchor that a record makes.
pub(crate) fn anchor_of(record: &BusRecord) -> Anchor {
    let mut hash = Xxh3::new();
    let mut add = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(&record.key);
    for (name, value) in &record.headers {
        add(name.as_bytes());
        add(value);
    }
    add(&record.payload);
    Anchor { offset: record.offset, fingerprint: hash.digest() }
}

/// What is at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Record(Anchor),
    /// Retention deleted it: the log begins behind it.
    Deleted,
    /// The log ends before it.
    Missing,
}

/// Reads records by their offsets, for all groups of the process.
pub(crate) struct AnchorReader {
    options: Arc<KafkaOptions>,
    /// The client, with the generation of its credentials.
    reader: Mutex<(u64, BaseConsumer)>,
}

impl AnchorReader {
    /// Creates the client; sends no request.
    pub(crate) fn new(options: Arc<KafkaOptions>) -> KafkaResult<Self> {
        let generation = options.security.generation();
        let reader = Mutex::new((generation, create_reader(&options)?));
        Ok(Self { options, reader })
    }

    /// The anchors at these offsets; partitions without a record there are missing. Blocks for at
    /// most [`TOGETHER_TIMEOUT`] and [`METADATA_TIMEOUT`].
    pub(crate) fn anchors(
        &self,
        offsets: &BTreeMap<Partition, u64>,
    ) -> KafkaResult<BTreeMap<Partition, Anchor>> {
        let record = |(partition, found)| match found {
            Found::Record(anchor) => Some((partition, anchor)),
            Found::Deleted | Found::Missing => None,
        };
        Ok(self.read(offsets)?.into_iter().filter_map(record).collect())
    }

    /// Whether the partitions still hold these records. Blocks for at most [`TOGETHER_TIMEOUT`] and
    /// [`METADATA_TIMEOUT`].
    pub(crate) fn verify(
        &self,
        anchors: &BTreeMap<Partition, Anchor>,
    ) -> KafkaResult<BTreeMap<Partition, Continuity>> {
        let offsets = anchors.iter().map(|(partition, anchor)| (*partition, anchor.offset));
        let found = self.read(&offsets.collect())?;
        let continuity = |(partition, anchor): (&Partition, &Anchor)| {
            let continuity = match found.get(partition) {
                Some(Found::Record(found)) if found == anchor => Continuity::Proven,
                Some(Found::Record(_) | Found::Missing) => Continuity::Broken,
                Some(Found::Deleted) | None => Continuity::Unknown,
            };
            (*partition, continuity)
        };
        Ok(anchors.iter().map(continuity).collect())
    }

    fn read(&self, offsets: &BTreeMap<Partition, u64>) -> KafkaResult<BTreeMap<Partition, Found>> {
        let mut found = BTreeMap::new();
        if offsets.is_empty() {
            return Ok(found);
        }
        let mut current = self.reader.lock();
        let generation = self.options.security.generation();
        if current.0 != generation {
            *current = (generation, create_reader(&self.options)?);
        }
        // What is missing after it is read below.
        let together = Instant::now() + TOGETHER_TIMEOUT;
        let _ = self.read_some(&current.1, offsets, together, &mut found);
        // Each assignment of the client takes a while, so that this is the exception.
        let end = Instant::now() + METADATA_TIMEOUT;
        for (partition, offset) in offsets {
            if !found.contains_key(partition) {
                let alone = BTreeMap::from([(*partition, *offset)]);
                self.read_some(&current.1, &alone, end, &mut found)?;
            }
        }
        Ok(found)
    }

    /// Reads what is at these offsets. An error: something is missing at `end`.
    fn read_some(
        &self,
        reader: &BaseConsumer,
        offsets: &BTreeMap<Partition, u64>,
        end: Instant,
        found: &mut BTreeMap<Partition, Found>,
    ) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            let at = Offset::Offset(offset.cast_signed());
            list.add_partition_offset(&self.options.topic, i32::from(partition.0), at)?;
        }
        reader.assign(&list)?;
        let all = read_each(reader, offsets, end, found);
        // What was fetched beyond the records is dropped.
        reader.unassign()?;
        all
    }
}

fn create_reader(options: &KafkaOptions) -> KafkaResult<BaseConsumer> {
    let mut config = client::reader(options, "anchors");
    config
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "20")
        .set("fetch.message.max.bytes", FETCH_BYTES_MAX)
        .set("queued.min.messages", "1");
    config.create()
}

/// Reads until everything is found. An error: something is missing at `end`.
fn read_each(
    reader: &BaseConsumer,
    offsets: &BTreeMap<Partition, u64>,
    end: Instant,
    found: &mut BTreeMap<Partition, Found>,
) -> KafkaResult<()> {
    let mut last_error = KafkaError::MessageConsumption(Code::OperationTimedOut);
    while offsets.keys().any(|partition| !found.contains_key(partition)) {
        if Instant::now() > end {
            return Err(last_error);
        }
        let (partition, what) = match reader.poll(POLL_TIMEOUT) {
            None => continue,
            Some(Ok(message)) => {
                let partition = Partition(message.partition() as u16);
                let Some(wanted) = offsets.get(&partition) else { continue };
                let offset = message.offset().unsigned_abs();
                let what = match offset.cmp(wanted) {
                    std::cmp::Ordering::Equal => {
                        Found::Record(anchor_of(&record::decode(&message)))
                    }
                    std::cmp::Ordering::Greater => Found::Deleted,
                    // The log is too short for the offset, so the client began at its beginning.
                    std::cmp::Ordering::Less => Found::Missing,
                };
                (partition, what)
            }
            Some(Err(KafkaError::PartitionEOF(number))) => {
                (Partition(number as u16), Found::Missing)
            }
            // The client goes on trying.
            Some(Err(error)) => {
                last_error = error;
                continue;
            }
        };
        found.entry(partition).or_insert(what);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tagfast_domain::{EpochOrdinal, Version};
    use tagfast_events::RecordKind;

    use super::*;

    fn record(offset: u64, key: &str, headers: &[(&str, &str)], payload: &str) -> BusRecord {
        let header = |(name, value): &(&str, &str)| ((*name).to_owned(), value.as_bytes().to_vec());
        BusRecord {
            kind: RecordKind::Heartbeat,
            partition: Partition(0),
            offset,
            key: key.into(),
            version: Version::NONE,
            at: 0,
            cluster: "c0".into(),
            publisher_epoch: EpochOrdinal(1),
            headers: headers.iter().map(header).collect(),
            payload: payload.into(),
        }
    }

    #[test]
    fn every_part_of_a_record_is_in_its_anchor() {
        let all = [
            record(1, "k", &[("a", "b")], "p"),
            record(2, "k", &[("a", "b")], "p"),
            record(1, "ka", &[("", "b")], "p"),
            record(1, "k", &[("a", "c")], "p"),
            record(1, "k", &[("a", "b"), ("a", "b")], "p"),
            record(1, "k", &[], "p"),
            record(1, "k", &[("a", "b")], "q"),
        ];
        let mut anchors: Vec<Anchor> = all.iter().map(anchor_of).collect();
        anchors.sort_by_key(|anchor| (anchor.offset, anchor.fingerprint));
        anchors.dedup();
        assert_eq!(anchors.len(), all.len());
        for anchor in anchors {
            assert_eq!(anchor.to_string().parse(), Ok(anchor));
        }
    }
}
