//! One document per content: all its tags, tombstones and recent write ids.
//!
//! Only [`crate::apply()`] changes a document, and after a failover [`crate::join()`]. A store
//! reads and writes it whole, encoded by [`crate::codec`].

use std::sync::Arc;

use crate::limits::WRITE_ID_MEMORY_MS;
use crate::{Tag, TagName, UnixMillis, UserId, Version, WriteId};

/// A tag on a content, or the tombstone of a removed tag (`present` is false).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagging {
    /// The canonical name: the tag's identity.
    pub name: TagName,
    /// The spelling of the user who added it.
    pub display: Arc<str>,
    /// The user who added it; on a tombstone, the user who removed it.
    pub user: UserId,
    /// When it was added or removed, Unix ms.
    pub at: UnixMillis,
    /// The version of the write that last decided this tagging (added, removed or confirmed it).
    pub decided_at: Version,
    /// False for a tombstone.
    pub present: bool,
}

impl Tagging {
    /// A tag that is present.
    pub fn of(tag: Tag, user: UserId, at: UnixMillis, decided_at: Version) -> Self {
        Self { name: tag.name, display: tag.display, user, at, decided_at, present: true }
    }
}

/// The tags a write added and removed, stored with its id so that a retry gets the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effect {
    /// Canonical names added, in request order.
    pub added: Vec<TagName>,
    /// Canonical names removed: sorted for a replace, otherwise in request order.
    pub removed: Vec<TagName>,
}

/// How a past write ended: what a retry of it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordedOutcome {
    /// It made a version.
    Written,
    /// It changed nothing and made no version.
    Unchanged,
    /// `If-Match` named a version other than [`RecentWrite::version`].
    VersionMismatch,
    /// The content would have had more tags than the limit.
    TooManyTags {
        /// The limit.
        allowed: usize,
        /// The number of tags the content would have had.
        given: usize,
    },
}

/// A past write of a content, kept to make retries idempotent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecentWrite {
    /// The write id.
    pub id: WriteId,
    /// [`crate::Operation::fingerprint`] of its operation.
    pub fingerprint: u64,
    /// The version it made; when it made none, the version that decided its outcome.
    pub version: Version,
    /// When it was decided, Unix ms.
    pub at: UnixMillis,
    /// The tags it added and removed.
    pub effect: Effect,
    /// How it ended.
    pub outcome: RecordedOutcome,
}

/// The state of one content. The default is a content that was never written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Document {
    /// Version of this state.
    pub version: Version,
    /// The version at which every tagging that is NOT listed here was last decided to be absent.
    pub absent_since: Version,
    /// The version of the last conditional (`If-Match`) write.
    pub last_conditional: Version,
    /// Until when the store's `applied` table may hold write ids of this content, Unix ms; 0 = it
    /// holds none.
    pub overflow_until: UnixMillis,
    /// Taggings and tombstones, sorted by canonical name.
    pub taggings: Vec<Tagging>,
    /// The most recent writes, oldest first.
    pub recent: Vec<RecentWrite>,
}

impl Document {
    /// The tags that are present, sorted by canonical name.
    pub fn live(&self) -> impl Iterator<Item = &Tagging> {
        self.taggings.iter().filter(|t| t.present)
    }

    /// Whether the store may delete it: the content was never written, and every outcome that it
    /// remembers has expired.
    pub fn is_forgotten(&self, now: UnixMillis) -> bool {
        let is_expired = |w: &RecentWrite| now.saturating_sub(w.at) >= WRITE_ID_MEMORY_MS;
        self.version == Version::NONE
            && self.overflow_until <= now
            && self.recent.iter().all(is_expired)
    }

    /// The recent write with this id; `None` when the document does not hold it.
    pub fn recent_write(&self, id: WriteId) -> Option<&RecentWrite> {
        self.recent.iter().find(|w| w.id == id)
    }
}
