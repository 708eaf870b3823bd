//! The event of a change: the whole new state of one content and the changes that led to it.

use crate::{ContentKey, EpochOrdinal, TagName, Tagging, UnixMillis, UserId, Version, WriteId};

/// One write's part of an event. `added` and `removed` of a stamp are empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The write id.
    pub write_id: WriteId,
    /// The writing user.
    pub user: UserId,
    /// The version this write made.
    pub version: Version,
    /// Canonical names added.
    pub added: Vec<TagName>,
    /// Canonical names removed.
    pub removed: Vec<TagName>,
    /// The W3C `traceparent` of the request, so that consumers continue its trace; `None` when the
    /// request had none.
    pub traceparent: Option<String>,
}

/// The new state of a content. It is the full state, so a consumer applies it if it is newer and
/// drops it otherwise: duplicates, retries, replays and reordering are harmless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaggingsEvent {
    /// The content.
    pub key: ContentKey,
    /// The version of `tags`.
    pub version: Version,
    /// Commit time by the store's clock, Unix ms.
    pub at: UnixMillis,
    /// The publisher epoch: ordinal of the epoch in which the event is published.
    pub publisher_epoch: EpochOrdinal,
    /// The live taggings, sorted by canonical name.
    pub tags: Vec<Tagging>,
    /// The writes that led to this state, in order. A group commit joins several writes of one
    /// content into one event.
    pub changes: Vec<Change>,
}
