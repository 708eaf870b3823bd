//! What a journal is made of: positions in the log, documents with their writes, and what it lacks.
//!
//! How it fails: it does not; it is data.

use std::sync::Arc;

use tagfast_domain::{EpochId, UnixMillis, Version, WriteId};

/// Where a transaction lies in the log of its epoch: its commit record is after `inside` and not
/// after `flushed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRange {
    /// The epoch whose log it is.
    pub epoch: EpochId,
    /// A position inside the transaction.
    pub inside: u64,
    /// A position at or after its commit record, flushed to the primary's disk.
    pub flushed: u64,
}

/// A write that a process answers, or has answered, with success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournaledWrite {
    /// Its id.
    pub id: WriteId,
    /// The version that it made, or found when it changed nothing.
    pub version: Version,
    /// When its transaction returned, in Unix ms.
    pub at: UnixMillis,
}

/// The state of a content that a group commit stands for, with the writes of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournaledContent {
    /// The storage key of the content.
    pub key: Arc<[u8]>,
    /// The encoded document.
    pub document: Arc<[u8]>,
    /// The document's version.
    pub version: Version,
    /// The writes of the group on this content.
    pub writes: Vec<JournaledWrite>,
}

/// The acknowledged writes of one group commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcknowledgedGroup {
    /// Where it lies in the log.
    pub at: LogRange,
    /// Its documents with their writes.
    pub contents: Vec<JournaledContent>,
}

impl AcknowledgedGroup {
    /// How many writes it has.
    pub fn writes(&self) -> usize {
        self.contents.iter().map(|content| content.writes.len()).sum()
    }

    /// When the newest of its writes returned, in Unix ms; `None`: it has none.
    pub fn newest_write_at(&self) -> Option<UnixMillis> {
        let writes = self.contents.iter().flat_map(|content| &content.writes);
        writes.map(|write| write.at).max()
    }
}

/// A range of an epoch's log for which the journal has forgotten writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IncompleteRange {
    /// The epoch.
    pub epoch: EpochId,
    /// From this position.
    pub from: u64,
    /// Up to this position.
    pub to: u64,
    /// How many writes.
    pub writes: u64,
}

impl IncompleteRange {
    /// Of an epoch that no file names.
    pub const UNKNOWN_EPOCH: EpochId = EpochId([0; 16]);

    /// So many writes of a transaction.
    pub(crate) fn of(at: LogRange, writes: usize) -> Self {
        Self { epoch: at.epoch, from: at.inside, to: at.flushed, writes: writes as u64 }
    }

    /// A range of which only the epoch is known.
    pub(crate) fn unknown(epoch: EpochId) -> Self {
        Self { epoch, from: 0, to: u64::MAX, writes: 0 }
    }

    /// Whether it is not known where it ends, nor how many writes it had.
    pub fn is_unknown(&self) -> bool {
        self.to == u64::MAX
    }
}

/// Adds a range to the ones that are known: one range an epoch.
pub(crate) fn note_incomplete(ranges: &mut Vec<IncompleteRange>, range: IncompleteRange) {
    match ranges.iter_mut().find(|known| known.epoch == range.epoch) {
        Some(known) => {
            known.from = known.from.min(range.from);
            known.to = known.to.max(range.to);
            known.writes += range.writes;
        }
        None => ranges.push(range),
    }
}
