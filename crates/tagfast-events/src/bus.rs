//! The bus port: an ordered, durable stream per partition, read by groups that each see every record.
//!
//! Embedded, the outbox tables of the store's files are the bus: partition = file. In a cluster it is Kafka. A content
//! is in one partition, so its records are in order. Delivery is at least once.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{EpochId, EpochOrdinal, UnixMillis, Version};

/// A partition of the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u16);

/// A consumer group: `indexer`, `analytics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(pub &'static str);

/// How far a group has come in a partition: everything below `next` is applied, superseded, dropped or parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BusPosition {
    /// The first offset that is not done.
    pub next: u64,
    /// The largest `emit` seen below it: events of a smaller one are dropped.
    pub emit: u64,
}

/// Positions of a group, per partition.
pub type Positions = BTreeMap<Partition, BusPosition>;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusRecord {
    /// Where it is.
    pub partition: Partition,
    /// Its place in the partition; strictly increasing, with gaps.
    pub offset: u64,
    /// [`tagfast_domain::ContentKey::to_bytes`].
    pub key: Vec<u8>,
    /// The state's version.
    pub version: Version,
    /// Commit time.
    pub at: UnixMillis,
    /// Ordinal of the epoch that published it.
    pub emit: EpochOrdinal,
    /// The envelope.
    pub payload: Vec<u8>,
}

/// How far a partition is known to be complete: every event committed before `complete_through` has an offset below
/// `next`. Lag is measured against it, so that an idle partition tells the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frontier {
    /// The offset the next record will have at least.
    pub next: u64,
    /// The moment.
    pub complete_through: UnixMillis,
}

/// Why a letter was parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterClass {
    /// It can never succeed.
    Poison,
    /// Its retries are used up.
    Exhausted,
}

/// A record that could not be applied, kept with everything needed to replay it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Whose letter.
    pub group: Group,
    /// The record, untouched.
    pub record: BusRecord,
    /// Why.
    pub class: LetterClass,
    /// A stable error code.
    pub code: String,
    /// What happened, for people; at most 1 kB.
    pub message: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it first failed.
    pub first_failed_at: UnixMillis,
    /// When it last failed.
    pub last_failed_at: UnixMillis,
}

impl DeadLetter {
    /// `group/partition/offset` of the original: a letter written twice is one letter.
    pub fn id(&self) -> String {
        format!("{}/{}/{}", self.group.0, self.record.partition.0, self.record.offset)
    }
}

/// An error of the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// It cannot be reached or read now; try again.
    #[error("the bus is unavailable: {0}")]
    Unavailable(String),
    /// Records below `retained` are gone: the group must rebuild from the shards.
    #[error("group {group:?} is behind what partition {partition:?} retained")]
    Expired {
        /// The group.
        group: Group,
        /// The partition.
        partition: Partition,
    },
}

/// A bus.
#[async_trait]
pub trait Bus: Send + Sync {
    /// All partitions.
    fn partitions(&self) -> Vec<Partition>;

    /// The epoch whose records the bus carries now; another id than a sink remembers means: rebuild.
    fn epoch(&self) -> EpochId;

    /// A consumer of `group` that starts at `positions` (a missing partition: at its first retained record).
    /// [`BusError::Expired`] when a position is below what was retained.
    async fn consumer(&self, group: Group, positions: &Positions) -> Result<Box<dyn BusConsumer>, BusError>;

    /// The end of every partition now: where a rebuild starts reading after it has copied the shards.
    async fn ends(&self) -> Result<Positions, BusError>;

    /// Parks a letter durably. Idempotent by [`DeadLetter::id`].
    async fn park(&self, letter: &DeadLetter) -> Result<(), BusError>;

    /// Letters a group has parked.
    async fn parked(&self, group: Group) -> Result<u64, BusError>;
}

/// One group's reader.
#[async_trait]
pub trait BusConsumer: Send {
    /// Up to `max` records in partition order, waiting at most `wait` for the first. Empty after `wait` on an idle
    /// bus. Cancel safe: a dropped call loses no record.
    async fn poll(&mut self, max: usize, wait: Duration) -> Result<Vec<BusRecord>, BusError>;

    /// Stops returning records of a partition, and starts again.
    fn set_paused(&mut self, partition: Partition, paused: bool);

    /// Tells the bus what is done, for retention and display; the sink's own position decides where a restart begins.
    async fn commit(&mut self, positions: &Positions) -> Result<(), BusError>;

    /// The frontier of every partition, as of now.
    async fn frontiers(&self) -> Result<BTreeMap<Partition, Frontier>, BusError>;
}
