//! One document per content: all its tags, tombstones and recent write ids.
//!
//! A document is only ever changed by [`crate::apply()`]; a store reads and writes it whole, as the
//! bytes of [`crate::codec`].

use std::sync::Arc;

use crate::{TagName, UnixMillis, UserId, Version, WriteId};

/// A tag on a content, or (not `present`) the tombstone of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagging {
    /// The tag's identity.
    pub name: TagName,
    /// The adder's spelling.
    pub display: Arc<str>,
    /// Who added it, or who removed it.
    pub user: UserId,
    /// When it was added, or removed.
    pub at: UnixMillis,
    /// The version of the write that last decided this tagging.
    pub ord: Version,
    /// False for a tombstone.
    pub present: bool,
}

/// What a write did, kept with its id so that a retry gets the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effect {
    /// Canonical names added, in the order asked.
    pub added: Vec<TagName>,
    /// Canonical names removed, sorted for a replace, else in the order asked.
    pub removed: Vec<TagName>,
}

/// A write that this content remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecentWrite {
    /// Its id.
    pub id: WriteId,
    /// [`crate::Operation::fingerprint`] of what it asked.
    pub fingerprint: u64,
    /// The version it made.
    pub version: Version,
    /// When it was applied.
    pub at: UnixMillis,
    /// What it did.
    pub effect: Effect,
}

/// The state of one content. The default is a content that was never written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Document {
    /// Version of this state.
    pub version: Version,
    /// The version that last decided every tagging NOT listed here.
    pub floor: Version,
    /// The version of the last conditional (`If-Match`) write.
    pub cond: Version,
    /// Until when the store's `applied` table may hold ids of this content; 0 = it holds none.
    pub overflow_until: UnixMillis,
    /// Taggings and tombstones, sorted by canonical name.
    pub taggings: Vec<Tagging>,
    /// The newest write ids, oldest first.
    pub recent: Vec<RecentWrite>,
}

impl Document {
    /// The tags that are on the content, sorted by canonical name.
    pub fn live(&self) -> impl Iterator<Item = &Tagging> {
        self.taggings.iter().filter(|t| t.present)
    }

    /// The remembered write with this id.
    pub fn recent_write(&self, id: WriteId) -> Option<&RecentWrite> {
        self.recent.iter().find(|w| w.id == id)
    }
}
