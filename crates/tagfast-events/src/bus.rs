//! The bus port: an ordered, durable stream per partition, read by consumer groups that each see
//! every record.
//!
//! In embedded mode the outbox tables of the store's files are the bus: one partition per file. In
//! a cluster the bus is Kafka. All records of a content are in one partition, hence in order.
//! Delivery is at least once.
//!
//! Each event names the cluster that published it: epoch ordinals are comparable within one cluster
//! only, and two clusters may share a partition. Embedded mode has one cluster with an empty name.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{EpochId, EpochOrdinal, UnixMillis, Version};

use crate::error::BoxError;

/// The cluster whose relay published a record; empty in embedded mode.
pub type ClusterName = Arc<str>;

/// A partition of the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u16);

/// A consumer group: `indexer` or `analytics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerGroup(pub &'static str);

impl ConsumerGroup {
    /// Feeds the search index.
    pub const INDEXER: Self = Self("indexer");
    /// Counts popular tags.
    pub const ANALYTICS: Self = Self("analytics");
    /// The groups of the service: those that have dead letters.
    pub const ALL: [Self; 2] = [Self::INDEXER, Self::ANALYTICS];

    /// Looks up a group of the service; `None` if no group has this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.0 == name)
    }
}

/// The newest publisher epoch seen of each cluster: the fencing token of its relay.
///
/// Consumers drop events of a smaller epoch, because a replaced primary published them. As text:
/// `17` for the one cluster without a name, else `c0=17,c1=18`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublisherEpochs(Arc<BTreeMap<ClusterName, u64>>);

impl PublisherEpochs {
    /// The epoch of the one cluster without a name.
    pub fn embedded(epoch: u64) -> Self {
        let mut epochs = Self::default();
        epochs.observe(&Arc::from(""), EpochOrdinal(epoch));
        epochs
    }

    /// The newest epoch seen of a cluster; 0 if none was seen.
    pub fn of(&self, cluster: &str) -> u64 {
        self.0.get(cluster).copied().unwrap_or(0)
    }

    /// Records an epoch of a cluster; returns false if a newer one was seen before.
    pub fn observe(&mut self, cluster: &ClusterName, epoch: EpochOrdinal) -> bool {
        let known = self.of(cluster);
        if known < epoch.0 {
            Arc::make_mut(&mut self.0).insert(Arc::clone(cluster), epoch.0);
        }
        known <= epoch.0
    }
}

impl fmt::Display for PublisherEpochs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.keys().all(|cluster| cluster.is_empty()) {
            return write!(f, "{}", self.of(""));
        }
        for (n, (cluster, epoch)) in self.0.iter().enumerate() {
            write!(f, "{}{cluster}={epoch}", if n > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// The text is not the format of [`PublisherEpochs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a list of clusters and their publisher epochs")]
pub struct InvalidPublisherEpochs;

impl FromStr for PublisherEpochs {
    type Err = InvalidPublisherEpochs;

    fn from_str(text: &str) -> Result<Self, InvalidPublisherEpochs> {
        let number = |n: &str| n.parse().map_err(|_| InvalidPublisherEpochs);
        if !text.contains('=') {
            return Ok(Self::embedded(number(text)?));
        }
        let parse_one = |part: &str| {
            let (cluster, epoch) = part.rsplit_once('=').ok_or(InvalidPublisherEpochs)?;
            Ok((Arc::from(cluster), number(epoch)?))
        };
        let epochs = text.split(',').map(parse_one).collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(epochs)))
    }
}

/// How far a group has come in a partition: every record below `next` is applied, superseded,
/// dropped or parked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BusPosition {
    /// The first offset that is not done.
    pub next: u64,
    /// The publisher epochs seen below `next`.
    pub publisher_epochs: PublisherEpochs,
    /// What proves later that the partition is still the one in which `next` was reached; `None`
    /// on a bus that proves it by [`Bus::epoch`] alone, and before anything was read.
    pub anchor: Option<Anchor>,
}

/// A record that was read from a partition, and by which the partition is known again.
///
/// Offsets alone prove nothing: a partition that was deleted and made again, or whose broker came
/// back with an older log, has the same offsets with different records in front of them. Its record
/// at the anchor's offset is a different one, because every record names its commit time, version
/// and epoch. As text: the offset, a colon, and the fingerprint in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    /// Offset of the record.
    pub offset: u64,
    /// Hash of the record's key, headers and payload.
    pub fingerprint: u64,
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:016x}", self.offset, self.fingerprint)
    }
}

/// The text is not the format of [`Anchor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the offset and the fingerprint of a record")]
pub struct InvalidAnchor;

impl FromStr for Anchor {
    type Err = InvalidAnchor;

    fn from_str(text: &str) -> Result<Self, InvalidAnchor> {
        let (offset, fingerprint) = text.split_once(':').ok_or(InvalidAnchor)?;
        let offset = offset.parse().map_err(|_| InvalidAnchor)?;
        let fingerprint = u64::from_str_radix(fingerprint, 16).map_err(|_| InvalidAnchor)?;
        Ok(Self { offset, fingerprint })
    }
}

/// Whether a partition is the one in which a position was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continuity {
    /// It is.
    Proven,
    /// It is a different one, or records that were read are gone from its end.
    Broken,
    /// Nothing is left that could prove it.
    Unknown,
}

/// What a partition of the bus holds, as a member sees it before it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionFacts {
    /// The first retained offset; 0 if no record was ever deleted.
    pub first: u64,
    /// The offset that the next published record gets, or less.
    pub end: u64,
    /// Where the group committed last; `None` if it has no commit.
    pub committed: Option<BusPosition>,
    /// Whether the partition is the one of the position in question: of the given one, else of the
    /// committed one.
    pub continuity: Continuity,
}

/// Positions of a group, per partition.
pub type Positions = BTreeMap<Partition, BusPosition>;

/// The kind of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// A content's new state, or a record that claims to be one.
    Event,
    /// An epoch began to publish: records behind the marker with a smaller publisher epoch are
    /// dropped.
    Marker,
    /// States how far the partition is complete ([`BusConsumer::watermarks`]).
    Heartbeat,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusRecord {
    /// Its kind.
    pub kind: RecordKind,
    /// Its partition.
    pub partition: Partition,
    /// Its offset in the partition; strictly increasing, with gaps.
    pub offset: u64,
    /// The key on the bus: tenant, type and id, separated by NUL bytes or slashes.
    pub key: Vec<u8>,
    /// Version of the state; [`Version::NONE`] if the record does not carry one.
    pub version: Version,
    /// Commit time, Unix ms.
    pub at: UnixMillis,
    /// The cluster whose relay published it.
    pub cluster: ClusterName,
    /// Ordinal of the epoch that published it; 0 if the record does not carry one.
    pub publisher_epoch: EpochOrdinal,
    /// Transport headers as received, those of CloudEvents' binary mode included.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The envelope, or its data in binary mode.
    pub payload: Vec<u8>,
}

/// Result of one poll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PollResult {
    /// Records, in partition order; empty on an idle bus.
    Records(Vec<BusRecord>),
    /// The group assigned these partitions to this consumer. None of their records is returned
    /// before [`BusConsumer::start`].
    Assigned(Vec<Partition>),
    /// The group moves these partitions to a different member, which gets them after
    /// [`BusConsumer::release`].
    Revoked(Vec<Partition>),
    /// The group has already moved these partitions to a different member: progress made in them
    /// must not be committed.
    Lost(Vec<Partition>),
}

impl PollResult {
    /// The records; empty if the assignment changed.
    pub fn into_records(self) -> Vec<BusRecord> {
        match self {
            Self::Records(records) => records,
            Self::Assigned(_) | Self::Revoked(_) | Self::Lost(_) => Vec::new(),
        }
    }
}

/// A watermark of a partition: every event committed before `complete_through` has an offset below
/// `next`.
///
/// Consumer lag is measured against watermarks, so that it is true on an idle partition too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermark {
    /// The smallest offset that the next record can have.
    pub next: u64,
    /// The partition is complete up to this commit time, Unix ms.
    pub complete_through: UnixMillis,
}

/// Why a record was parked as a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// The record can never succeed.
    Poison,
    /// Its retries are used up.
    Exhausted,
}

impl FailureClass {
    /// The stable word in headers, tables and the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Poison => "poison",
            Self::Exhausted => "exhausted",
        }
    }

    /// Parses [`FailureClass::as_str`]; `None` for any other word.
    pub fn named(word: &str) -> Option<Self> {
        [Self::Poison, Self::Exhausted].into_iter().find(|class| class.as_str() == word)
    }
}

/// A record that could not be applied, kept with everything needed to replay it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The consumer group that could not apply it.
    pub group: ConsumerGroup,
    /// The record, unchanged.
    pub record: BusRecord,
    /// Why it was parked.
    pub class: FailureClass,
    /// A stable error code.
    pub code: String,
    /// The error for people; at most 1,000 characters.
    pub message: String,
    /// Number of attempts.
    pub attempts: u32,
    /// First failure, Unix ms.
    pub first_failed_at: UnixMillis,
    /// Last failure, Unix ms.
    pub last_failed_at: UnixMillis,
}

impl DeadLetter {
    /// `group/partition/offset` of the original record: parking a record twice makes one dead
    /// letter.
    pub fn id(&self) -> String {
        format!("{}/{}/{}", self.group.0, self.record.partition.0, self.record.offset)
    }
}

/// An error of the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The bus cannot be reached or read now; the caller tries again.
    #[error("the bus is unavailable")]
    Unavailable(#[source] BoxError),
    /// Records below the retained range are gone: the group must rebuild from the shards.
    #[error("group {group:?} is behind what partition {partition:?} retained")]
    Expired {
        /// The group.
        group: ConsumerGroup,
        /// The partition.
        partition: Partition,
    },
    /// A partition is not the one that was read until now: its topic was made again, or its log was
    /// cut. What was read does not prove what it holds.
    #[error("partition {partition:?} is not the one that group {group:?} has read until now")]
    Replaced {
        /// The group.
        group: ConsumerGroup,
        /// The partition.
        partition: Partition,
    },
}

impl BusError {
    /// The bus cannot be used now because of `source`, an error or a sentence.
    pub fn unavailable(source: impl Into<BoxError>) -> Self {
        Self::Unavailable(source.into())
    }
}

/// A bus.
#[async_trait]
pub trait Bus: Send + Sync {
    /// All partitions.
    fn partitions(&self) -> Vec<Partition>;

    /// Identity of the stream. A sink that remembers a different id must rebuild.
    fn epoch(&self) -> EpochId;

    /// Joins `group` as a new member; its first poll returns the assigned partitions.
    ///
    /// # Errors
    ///
    /// [`BusError::Unavailable`] if the member cannot be created.
    async fn consumer(&self, group: ConsumerGroup) -> Result<Box<dyn BusConsumer>, BusError>;

    /// The current end of every partition: where a rebuild starts reading after it has copied the
    /// shards.
    ///
    /// # Errors
    ///
    /// [`BusError::Unavailable`] if an end cannot be read.
    async fn ends(&self) -> Result<Positions, BusError>;

    /// Parks a dead letter durably. Idempotent by [`DeadLetter::id`].
    ///
    /// # Errors
    ///
    /// [`BusError::Unavailable`] if the dead letter is not known to be durable.
    async fn park(&self, dead_letter: &DeadLetter) -> Result<(), BusError>;
}

/// A member of a consumer group.
#[async_trait]
pub trait BusConsumer: Send {
    /// Returns up to `max` records in partition order or a change of the assignment; waits at most
    /// `wait` for the first. Cancel safe: a dropped call loses nothing.
    ///
    /// # Errors
    ///
    /// [`BusError::Unavailable`] while the bus cannot be read; [`BusError::Expired`] when the next
    /// record is no longer retained; [`BusError::Replaced`] when the partition is a different one.
    async fn poll(&mut self, max: usize, wait: Duration) -> Result<PollResult, BusError>;

    /// What each of these assigned partitions holds. `positions` are those in question; a partition
    /// that is missing there is judged by the group's commit. A partition about which nothing is
    /// known is missing in the answer.
    ///
    /// # Errors
    ///
    /// [`BusError::Unavailable`] if the bus does not answer.
    async fn inspect(
        &mut self,
        partitions: &[Partition],
        positions: &Positions,
    ) -> Result<BTreeMap<Partition, PartitionFacts>, BusError>;

    /// Starts reading assigned partitions at `positions` and returns where each begins. A partition
    /// missing in `positions` begins where the group committed last, else at its first retained
    /// record. A partition that is read already is started again.
    ///
    /// # Errors
    ///
    /// [`BusError::Expired`] when a position is below the retained range;
    /// [`BusError::Unavailable`] when positions cannot be read.
    async fn start(
        &mut self,
        partitions: &[Partition],
        positions: &Positions,
    ) -> Result<Positions, BusError>;

    /// Releases revoked partitions. The caller must have committed its progress before.
    ///
    /// # Errors
    ///
    /// [`BusError::Unavailable`] if the release was not confirmed; the group takes them anyway.
    async fn release(&mut self, partitions: &[Partition]) -> Result<(), BusError>;

    /// Stops or resumes returning records of a partition.
    fn set_paused(&mut self, partition: Partition, paused: bool);

    /// Commits how far the group has come. A sink with positions of its own decides by those where
    /// a restart begins.
    ///
    /// # Errors
    ///
    /// [`BusError::Unavailable`] if the commit was not accepted.
    async fn commit(&mut self, positions: &Positions) -> Result<(), BusError>;

    /// Flushes pending commits and leaves the group, so that other members take over without
    /// waiting for a session timeout.
    async fn close(&mut self);

    /// The newest proven anchor of each partition that is read. A bus that proves its identity by
    /// [`Bus::epoch`] alone has none.
    fn anchors(&self) -> BTreeMap<Partition, Anchor> {
        BTreeMap::new()
    }

    /// Why nothing newer can be proven about the partitions that are read, for operators: what is
    /// missing, in which partitions, and what to do. `None` while proofs arrive.
    fn feed_problem(&self) -> Option<String> {
        None
    }

    /// The known watermarks of each assigned partition, oldest first; the newest one at or below
    /// the caller's position counts. A partition without a known watermark is missing. A watermark
    /// is returned only once the partition is proven to be the one that was read before it.
    ///
    /// # Errors
    ///
    /// [`BusError::Unavailable`] if they cannot be read.
    async fn watermarks(&self) -> Result<BTreeMap<Partition, Vec<Watermark>>, BusError>;
}

/// Joins `group`, waits for the first partitions and starts them at `positions`: for callers that
/// read a bus without the consumer runtime.
///
/// # Errors
///
/// As [`Bus::consumer`], [`BusConsumer::poll`] and [`BusConsumer::start`].
pub async fn begin_at(
    bus: &dyn Bus,
    group: ConsumerGroup,
    positions: &Positions,
) -> Result<Box<dyn BusConsumer>, BusError> {
    let mut consumer = bus.consumer(group).await?;
    loop {
        if let PollResult::Assigned(partitions) = consumer.poll(1, Duration::from_secs(1)).await?
            && !partitions.is_empty()
        {
            consumer.start(&partitions, positions).await?;
            return Ok(consumer);
        }
    }
}
