//! The bus port: an ordered, durable stream per partition, read by groups that each see every
//! record.
//!
//! Embedded, the outbox tables of the store's files are the bus: partition = file. In a cluster it
//! is Kafka. A content is in one partition, so its records are in order. Delivery is at least once.
//!
//! Events name the cluster that published them: ordinals of epochs are compared within one cluster
//! only, and two clusters may share a partition. Embedded there is one cluster without a name.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{EpochId, EpochOrdinal, UnixMillis, Version};

/// The cluster whose relay published a record; empty when embedded.
pub type ClusterName = Arc<str>;

/// A partition of the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u16);

/// A consumer group: `indexer`, `analytics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(pub &'static str);

impl Group {
    /// Feeds the search index.
    pub const INDEXER: Self = Self("indexer");
    /// Counts popular tags.
    pub const ANALYTICS: Self = Self("analytics");
    /// The groups of the service: those that have dead letters.
    pub const ALL: [Self; 2] = [Self::INDEXER, Self::ANALYTICS];

    /// A group of the service by its name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.0 == name)
    }
}

/// The largest `emit` (ordinal of the publishing epoch) seen, per cluster: events of a smaller one
/// are dropped.
///
/// As text: `17` for the one cluster without a name, else `c0=17,c1=18`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Emits(Arc<BTreeMap<ClusterName, u64>>);

impl Emits {
    /// Of the one cluster without a name.
    pub fn embedded(emit: u64) -> Self {
        let mut emits = Self::default();
        emits.see(&Arc::from(""), EpochOrdinal(emit));
        emits
    }

    /// The largest one of a cluster; 0 if none was seen.
    pub fn of(&self, cluster: &str) -> u64 {
        self.0.get(cluster).copied().unwrap_or(0)
    }

    /// Takes note of one; false if a larger one was seen before.
    pub fn see(&mut self, cluster: &ClusterName, emit: EpochOrdinal) -> bool {
        let known = self.of(cluster);
        if known < emit.0 {
            Arc::make_mut(&mut self.0).insert(Arc::clone(cluster), emit.0);
        }
        known <= emit.0
    }
}

impl fmt::Display for Emits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.keys().all(|cluster| cluster.is_empty()) {
            return write!(f, "{}", self.of(""));
        }
        for (n, (cluster, emit)) in self.0.iter().enumerate() {
            write!(f, "{}{cluster}={emit}", if n > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// The text is not that of [`Emits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a list of clusters and their epochs")]
pub struct BadEmits;

impl FromStr for Emits {
    type Err = BadEmits;

    fn from_str(text: &str) -> Result<Self, BadEmits> {
        let number = |n: &str| n.parse().map_err(|_| BadEmits);
        if !text.contains('=') {
            return Ok(Self::embedded(number(text)?));
        }
        let one = |part: &str| {
            let (cluster, emit) = part.rsplit_once('=').ok_or(BadEmits)?;
            Ok((Arc::from(cluster), number(emit)?))
        };
        text.split(',').map(one).collect::<Result<_, _>>().map(|emits| Self(Arc::new(emits)))
    }
}

/// How far a group has come in a partition: everything below `next` is applied, superseded, dropped
/// or parked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BusPosition {
    /// The first offset that is not done.
    pub next: u64,
    /// What was seen below it.
    pub emits: Emits,
}

/// Positions of a group, per partition.
pub type Positions = BTreeMap<Partition, BusPosition>;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// A content's new state, or what claims to be one.
    Event,
    /// An epoch began to publish: what carries a smaller `emit` behind it is dropped.
    Marker,
    /// Tells how far the partition is complete ([`BusConsumer::frontiers`]).
    Heartbeat,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusRecord {
    /// What it is.
    pub kind: RecordKind,
    /// Where it is.
    pub partition: Partition,
    /// Its place in the partition; strictly increasing, with gaps.
    pub offset: u64,
    /// As it travels: tenant, type and id with zeros or slashes between them.
    pub key: Vec<u8>,
    /// The state's version; none if the record does not tell.
    pub version: Version,
    /// Commit time.
    pub at: UnixMillis,
    /// Whose relay published it.
    pub cluster: ClusterName,
    /// Ordinal of the epoch that published it; 0 if the record does not tell.
    pub emit: EpochOrdinal,
    /// Transport headers, untouched; those of CloudEvents' binary mode among them.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The envelope, or its data in binary mode.
    pub payload: Vec<u8>,
}

/// What a poll brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Polled {
    /// Records, in partition order; none on an idle bus.
    Records(Vec<BusRecord>),
    /// These partitions are this consumer's now. Nothing of them is returned before
    /// [`BusConsumer::start`].
    Assigned(Vec<Partition>),
    /// These partitions go to another member of the group, which gets them after
    /// [`BusConsumer::release`].
    Revoked(Vec<Partition>),
    /// These partitions have gone to another member already: what was read of them must not be
    /// committed.
    Lost(Vec<Partition>),
}

impl Polled {
    /// The records; none if the assignment changed.
    pub fn into_records(self) -> Vec<BusRecord> {
        match self {
            Self::Records(records) => records,
            Self::Assigned(_) | Self::Revoked(_) | Self::Lost(_) => Vec::new(),
        }
    }
}

/// How far a partition is known to be complete: every event committed before `complete_through` has
/// an offset below `next`. Lag is measured against it, so that an idle partition tells the truth.
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

impl LetterClass {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Poison => "poison",
            Self::Exhausted => "exhausted",
        }
    }

    /// The class of a word.
    pub fn named(word: &str) -> Option<Self> {
        [Self::Poison, Self::Exhausted].into_iter().find(|class| class.as_str() == word)
    }
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

    /// The epoch whose records the bus carries now; another id than a sink remembers means:
    /// rebuild.
    fn epoch(&self) -> EpochId;

    /// A new member of `group`; its first poll tells which partitions it has.
    async fn consumer(&self, group: Group) -> Result<Box<dyn BusConsumer>, BusError>;

    /// The end of every partition now: where a rebuild starts reading after it has copied the
    /// shards.
    async fn ends(&self) -> Result<Positions, BusError>;

    /// Parks a letter durably. Idempotent by [`DeadLetter::id`].
    async fn park(&self, letter: &DeadLetter) -> Result<(), BusError>;
}

/// One group's reader.
#[async_trait]
pub trait BusConsumer: Send {
    /// Up to `max` records in partition order, waiting at most `wait` for the first, or a change of
    /// the assignment. Cancel safe: a dropped call loses nothing.
    async fn poll(&mut self, max: usize, wait: Duration) -> Result<Polled, BusError>;

    /// Begins to read assigned partitions at `positions`; one that is missing there begins where
    /// the group committed last, else at its first retained record. Returns where each begins.
    /// [`BusError::Expired`] when a position is below what was retained.
    async fn start(
        &mut self,
        partitions: &[Partition],
        positions: &Positions,
    ) -> Result<Positions, BusError>;

    /// Lets revoked partitions go. What is done was committed before.
    async fn release(&mut self, partitions: &[Partition]) -> Result<(), BusError>;

    /// Stops returning records of a partition, and starts again.
    fn set_paused(&mut self, partition: Partition, paused: bool);

    /// Tells the bus what is done. A sink with positions of its own decides by those where a
    /// restart begins.
    async fn commit(&mut self, positions: &Positions) -> Result<(), BusError>;

    /// Commits what it was told and leaves the group, so that others need not wait to find out.
    async fn close(&mut self);

    /// What is known of how far each assigned partition is complete, oldest first: the newest one
    /// at or below what is done counts. A partition of which nothing is known is missing.
    async fn frontiers(&self) -> Result<BTreeMap<Partition, Vec<Frontier>>, BusError>;
}

/// A member of `group` that has its first partitions and reads them from `positions` on. For
/// whoever reads a bus without the consumer runtime.
pub async fn begin_at(
    bus: &dyn Bus,
    group: Group,
    positions: &Positions,
) -> Result<Box<dyn BusConsumer>, BusError> {
    let mut consumer = bus.consumer(group).await?;
    loop {
        if let Polled::Assigned(partitions) = consumer.poll(1, Duration::from_secs(1)).await?
            && !partitions.is_empty()
        {
            consumer.start(&partitions, positions).await?;
            return Ok(consumer);
        }
    }
}
