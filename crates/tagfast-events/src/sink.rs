//! The sink port: what a consumer does with records.
//!
//! A sink stores its positions in the same commit as the state it applied, so that positions are
//! never ahead of the state. It applies a record only if its version is newer than the stored one.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, EpochId, TaggingsEvent, UnixMillis, Version};

use crate::bus::{ConsumerGroup, Partition, Positions};
use crate::error::BoxError;

/// A decoded record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkRecord {
    /// Its partition.
    pub partition: Partition,
    /// Its offset.
    pub offset: u64,
    /// The event.
    pub event: Arc<TaggingsEvent>,
}

/// Outcome of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordVerdict {
    /// The sink applied it.
    Applied,
    /// The sink holds a newer state.
    Superseded,
    /// The record can never be applied: the consumer parks it at once.
    Poison {
        /// A stable error code.
        code: &'static str,
        /// The error for people.
        message: String,
    },
    /// This attempt failed.
    Failed {
        /// A stable error code.
        code: &'static str,
        /// The error for people.
        message: String,
    },
}

/// What a rebuild of a sink copies.
#[derive(Clone, Copy)]
pub struct RebuildRequest<'a> {
    /// The partitions to rebuild, each with the position that it has after the rebuild.
    pub from: &'a Positions,
    /// The epoch whose state is copied.
    pub epoch: EpochId,
    /// Called with the number of contents copied so far.
    pub progress: &'a (dyn Fn(u64) + Send + Sync),
}

impl<'a> RebuildRequest<'a> {
    /// A rebuild whose progress nothing follows.
    pub fn new(from: &'a Positions, epoch: EpochId) -> Self {
        Self { from, epoch, progress: &|_| {} }
    }
}

/// The whole sink failed: a systemic error. No record is to blame, and no attempt is counted.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SinkError {
    /// A stable error code.
    pub code: &'static str,
    /// What failed, for operators.
    pub message: String,
    /// The cause; `None` if `message` says everything.
    #[source]
    pub source: Option<BoxError>,
}

impl SinkError {
    /// An error that its message describes completely.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), source: None }
    }

    /// An error with a cause: `message` names the failed action, `source` says why.
    pub fn caused_by(
        code: &'static str,
        message: impl Into<String>,
        source: impl Into<BoxError>,
    ) -> Self {
        Self { code, message: message.into(), source: Some(source.into()) }
    }
}

/// Where a sink wants to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Continue from these positions. The sink has no usable state of a partition that is missing:
    /// the consumer rebuilds that partition from the shards.
    From(Positions),
    /// The bus keeps the positions: continue where the group committed last.
    Committed,
    /// The sink has no usable state: rebuild it from the shards. The text says why.
    Rebuild(&'static str),
}

/// How far the assigned partitions are visible.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VisibleThrough {
    /// Per partition the commit time (Unix ms) before which everything is visible; partitions
    /// without a known time are missing.
    pub partitions: BTreeMap<Partition, UnixMillis>,
    /// Whether every assigned partition has a known time.
    pub complete: bool,
}

impl VisibleThrough {
    /// Everything committed before this time (Unix ms) is visible; `None` while some partition has
    /// no known time.
    pub fn oldest(&self) -> Option<UnixMillis> {
        self.partitions.values().min().copied().filter(|_| self.complete)
    }
}

/// A consumer's effect.
///
/// # Errors
///
/// Every call returns [`SinkError`] only when the sink as a whole does not work. The consumer then
/// waits and repeats the call; errors of single records are [`RecordVerdict`]s.
#[async_trait]
pub trait Sink: Send + Sync {
    /// The consumer group of this sink.
    fn group(&self) -> ConsumerGroup;

    /// Returns where to begin with partitions, given the identity of the bus. The consumer calls it
    /// before it begins, or begins again, to read them: also after a rebuild. From now on they
    /// belong to this process.
    ///
    /// # Errors
    ///
    /// The stored positions cannot be read.
    async fn start(&self, epoch: EpochId, partitions: &[Partition]) -> Result<Start, SinkError>;

    /// These partitions belong to a different process from now on.
    fn end(&self, partitions: &[Partition]) {
        let _ = partitions;
    }

    /// Applies records, at most one per key, each only if newer; returns one verdict per record in
    /// the same order. The effect need not be durable or visible before [`Sink::advance`] says so.
    /// Applying a record twice is harmless.
    ///
    /// # Errors
    ///
    /// The sink as a whole failed; none of the records counts as tried.
    async fn apply(&self, records: &[SinkRecord]) -> Result<Vec<RecordVerdict>, SinkError>;

    /// Writes a canary that no reader can find: it must fail exactly when the sink fails as a
    /// whole. After a systemic failure the consumer sends it ahead of records.
    ///
    /// # Errors
    ///
    /// The sink as a whole does not work.
    async fn canary(&self) -> Result<(), SinkError> {
        Ok(())
    }

    /// Makes everything applied until now durable at once; does not change what [`Sink::advance`]
    /// reports. A replayed dead letter is closed after this.
    ///
    /// # Errors
    ///
    /// The state is not known to be durable.
    async fn flush(&self) -> Result<(), SinkError>;

    /// The version that the sink holds of each content; `None` for a content it does not know.
    ///
    /// # Errors
    ///
    /// The state cannot be read.
    async fn versions(&self, keys: &[ContentKey]) -> Result<Vec<Option<Version>>, SinkError>;

    /// Everything below `positions` is done. The sink makes it durable and visible no later than
    /// its cadence; the consumer repeats the call with the same positions while idle (at least
    /// every 50 ms). Returns the positions that are durable AND visible now: retention and the lag
    /// metric follow those.
    ///
    /// # Errors
    ///
    /// The state is not known to be durable.
    async fn advance(&self, positions: &Positions) -> Result<Positions, SinkError>;

    /// Whether [`Sink::rebuild`] can rebuild some partitions and keep the others. If not, all are
    /// rebuilt, and this process leaves its group meanwhile.
    fn rebuilds_in_parts(&self) -> bool {
        false
    }

    /// Discards the state of the partitions in `request.from` and copies all their contents from
    /// the shards, at least as new as the records below `from`, while the old state goes on
    /// serving; `from` becomes the position. A sink that cannot be rebuilt in parts rebuilds
    /// everything.
    ///
    /// # Errors
    ///
    /// The copy did not complete; the old state goes on serving.
    async fn rebuild(&self, request: RebuildRequest<'_>) -> Result<(), SinkError>;

    /// The consumer reports how far the durable state is visible: the age that the sink shows.
    fn visible(&self, visible: &VisibleThrough) {
        let _ = visible;
    }

    /// How far each partition is shown to users, given how far its state is durable (Unix ms): the
    /// consumer's lag is measured against it. A partition of which nothing is shown yet is missing.
    /// By default what is durable is shown.
    fn shown(&self, durable: &BTreeMap<Partition, UnixMillis>) -> BTreeMap<Partition, UnixMillis> {
        durable.clone()
    }

    /// Makes everything durable; the last call before the process ends.
    ///
    /// # Errors
    ///
    /// The last state is not known to be durable; it is applied again at the next start.
    async fn close(&self) -> Result<(), SinkError>;
}
