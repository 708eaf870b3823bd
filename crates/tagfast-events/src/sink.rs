//! What a consumer does with records: the sink port.
//!
//! A sink keeps its own positions in the same commit as what it applied, so that positions can
//! never be ahead of the state. It applies a record only if its version is newer than what it
//! holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, EpochId, TaggingsEvent, UnixMillis, Version};

use crate::bus::{Group, Partition, Positions};

/// A decoded record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkRecord {
    /// Where it came from.
    pub partition: Partition,
    /// Its offset.
    pub offset: u64,
    /// The event.
    pub event: Arc<TaggingsEvent>,
}

/// What became of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordVerdict {
    /// Applied.
    Applied,
    /// A newer state was there already.
    Superseded,
    /// It can never be applied: goes to the dead letters at once.
    Poison {
        /// A stable error code.
        code: &'static str,
        /// For people.
        message: String,
    },
    /// It failed this time.
    Failed {
        /// A stable error code.
        code: &'static str,
        /// For people.
        message: String,
    },
}

/// The whole sink failed: systemic, no record is to blame and no attempt is used up.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SinkError {
    /// A stable error code.
    pub code: &'static str,
    /// For operators.
    pub message: String,
}

/// Where a sink wants to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Read on from here. Of a partition that is missing nothing usable is there: it is rebuilt
    /// from the shards on its own.
    From(Positions),
    /// The bus remembers: read on from where the group committed last.
    Committed,
    /// Nothing usable is there: rebuild from the shards. The word says why.
    Rebuild(&'static str),
}

/// How far what is assigned is visible.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Visible {
    /// The moment of each partition of which one is known.
    pub partitions: BTreeMap<Partition, UnixMillis>,
    /// Of every assigned partition one is known.
    pub complete: bool,
}

impl Visible {
    /// Everything committed before this is visible; none as long as some partition may hold
    /// anything.
    pub fn oldest(&self) -> Option<UnixMillis> {
        self.partitions.values().min().copied().filter(|_| self.complete)
    }
}

/// A consumer's effect.
#[async_trait]
pub trait Sink: Send + Sync {
    /// The group it consumes as.
    fn group(&self) -> Group;

    /// Where to begin with partitions that are this process's now, judged against the bus's epoch.
    async fn start(&self, epoch: EpochId, partitions: &[Partition]) -> Result<Start, SinkError>;

    /// These partitions are another process's from now on.
    fn end(&self, partitions: &[Partition]) {
        let _ = partitions;
    }

    /// Applies records, at most one per key, each if newer; one verdict per record in the same
    /// order. They need not be durable or visible before [`Sink::advance`] says so. Applying a
    /// record again is harmless.
    async fn apply(&self, records: &[SinkRecord]) -> Result<Vec<RecordVerdict>, SinkError>;

    /// Writes something of its own, that nobody ever finds: it fails exactly when the sink fails as
    /// a whole. While that is in doubt it goes before records do.
    async fn canary(&self) -> Result<(), SinkError> {
        Ok(())
    }

    /// Makes durable what was applied until now, whatever the cadence; [`Sink::advance`] is not
    /// told. A replayed letter is closed after this.
    async fn flush(&self) -> Result<(), SinkError>;

    /// The version that the sink has of each of these contents; none of a content it does not know.
    async fn versions(&self, keys: &[ContentKey]) -> Result<Vec<Option<Version>>, SinkError>;

    /// Everything below `positions` is done. The sink makes it durable and visible when it sees
    /// fit, not later than its cadence; called again with the same positions while idle (at
    /// least every 50 ms). Returns the positions that are durable AND visible now: retention
    /// and the lag gauge follow those.
    async fn advance(&self, positions: &Positions) -> Result<Positions, SinkError>;

    /// Throws away what is there of the partitions in `from` and copies every content of them from
    /// the shards, at least as new as the records below it, while the old state goes on
    /// serving; `from` becomes the position. Progress in contents copied. A sink that cannot be
    /// rebuilt in parts rebuilds everything.
    async fn rebuild(
        &self,
        from: &Positions,
        epoch: EpochId,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), SinkError>;

    /// Told by the runtime: of each partition everything committed before its moment is durable and
    /// visible. What the sink shows as its age.
    fn visible(&self, visible: &Visible) {
        let _ = visible;
    }

    /// Makes everything durable; the last call before the process ends.
    async fn close(&self) -> Result<(), SinkError>;
}
