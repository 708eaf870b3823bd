//! The acknowledged groups that the copy of a journal on disk does not have yet.
//!
//! How it fails: while the disk does not take them, they are kept up to a size; beyond it the
//! oldest are forgotten, and the range that the copy lacks is named in it.

use std::collections::VecDeque;

use tagfast_domain::EpochId;

use crate::journaled::{AcknowledgedGroup, IncompleteRange, JournaledContent, note_incomplete};

/// What a group, a content or a write takes beside its bytes.
const OVERHEAD_BYTES: usize = 64;

/// What the copy is to be told, as of one moment.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct UnsavedBatch {
    /// Groups that were acknowledged and that not all replicas have.
    pub groups: Vec<AcknowledgedGroup>,
    /// What the copy will never have.
    pub forgotten: Vec<IncompleteRange>,
    /// The epoch, and the position up to which nothing of its log is needed; `None`: no epoch was
    /// adopted.
    pub covered: Option<(EpochId, u64)>,
    /// Entries of ended epochs wait for a repair.
    pub has_older: bool,
    /// Epochs that were read back and are none of this cluster.
    pub refused: Vec<EpochId>,
}

#[derive(Debug)]
pub(crate) struct Unsaved {
    groups: VecDeque<AcknowledgedGroup>,
    bytes: usize,
    bytes_max: usize,
    forgotten: Vec<IncompleteRange>,
}

fn bytes_of(group: &AcknowledgedGroup) -> usize {
    let of_content = |content: &JournaledContent| {
        content.key.len() + content.document.len() + (1 + content.writes.len()) * OVERHEAD_BYTES
    };
    OVERHEAD_BYTES + group.contents.iter().map(of_content).sum::<usize>()
}

impl Unsaved {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { groups: VecDeque::new(), bytes: 0, bytes_max, forgotten: Vec::new() }
    }

    pub(crate) fn push(&mut self, group: AcknowledgedGroup) {
        self.bytes += bytes_of(&group);
        self.groups.push_back(group);
        self.make_room();
    }

    /// Takes groups back that could not be saved; they are older than those that came since.
    pub(crate) fn put_back(&mut self, groups: Vec<AcknowledgedGroup>, lost: &[IncompleteRange]) {
        for group in groups.into_iter().rev() {
            self.bytes += bytes_of(&group);
            self.groups.push_front(group);
        }
        lost.iter().for_each(|range| note_incomplete(&mut self.forgotten, *range));
        self.make_room();
    }

    /// Takes everything.
    pub(crate) fn take(&mut self) -> (VecDeque<AcknowledgedGroup>, Vec<IncompleteRange>) {
        self.bytes = 0;
        (std::mem::take(&mut self.groups), std::mem::take(&mut self.forgotten))
    }

    /// Forgets the oldest groups beyond the size, never the newest one.
    fn make_room(&mut self) {
        while self.bytes > self.bytes_max && self.groups.len() > 1 {
            let Some(group) = self.groups.pop_front() else { return };
            self.bytes -= bytes_of(&group);
            note_incomplete(&mut self.forgotten, IncompleteRange::of(group.at, group.writes()));
        }
    }
}
