//! What is told to consumers: the whole new state of one content and what changed.

use crate::{ContentKey, EpochOrdinal, TagName, Tagging, UnixMillis, UserId, Version, WriteId};

/// One write's part of an event. A stamp has empty `added` and `removed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The write.
    pub write_id: WriteId,
    /// Who wrote.
    pub user: UserId,
    /// The version this write made.
    pub version: Version,
    /// Canonical names added.
    pub added: Vec<TagName>,
    /// Canonical names removed.
    pub removed: Vec<TagName>,
    /// The W3C `traceparent` of the request, so that the index's apply joins the write's trace.
    pub traceparent: Option<String>,
}

/// A content has a new state. Full state, so that consumers apply what is newer and forget the
/// rest: duplicates, retries, replays and reordering are harmless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaggingsEvent {
    /// Which content.
    pub key: ContentKey,
    /// The version of `tags`.
    pub version: Version,
    /// Commit time by the store's clock.
    pub at: UnixMillis,
    /// Ordinal of the epoch that publishes the event.
    pub emit: EpochOrdinal,
    /// The live taggings, sorted by canonical name.
    pub tags: Vec<Tagging>,
    /// What led here, in order; a group commit joins several writes of one content into one event.
    pub changes: Vec<Change>,
}
