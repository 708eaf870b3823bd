//! The state of a content as engines index it, built from an event or from a document of a shard.
//!
//! Both sources must give the same state for the same version: an index that a rebuild filled must
//! not differ from one that events filled.

use tagfast_domain::{ContentKey, Document, UnixMillis, Version};
use tagfast_events::{ConsumerGroup, SinkRecord};

/// The consumer group that indexes.
pub const CONSUMER_GROUP: ConsumerGroup = ConsumerGroup::INDEXER;
/// How long a tombstone is kept, in ms: longer than any event, dead letter or replay may be late.
pub const TOMBSTONE_RETENTION_MS: i64 = 30 * 86_400_000;
/// Maximum number of contents on a page that a rebuild reads from a shard.
pub const REBUILD_PAGE_MAX: usize = 1000;

/// A state to index.
pub struct IndexedState<'a> {
    /// The content.
    pub key: &'a ContentKey,
    /// Version of the state; an index keeps the newest.
    pub version: Version,
    /// Commit time, Unix ms.
    pub updated_at: UnixMillis,
    /// Canonical tag names, sorted; empty for a tombstone.
    pub tags: Vec<&'a str>,
}

impl<'a> IndexedState<'a> {
    /// Builds the state that an event carries.
    pub fn from_event(record: &'a SinkRecord) -> Self {
        let event = &record.event;
        Self {
            key: &event.key,
            version: event.version,
            updated_at: event.at,
            tags: event.tags.iter().map(|t| t.name.as_str()).collect(),
        }
    }

    /// Builds the state that the event of the document's newest write would carry. The newest
    /// remembered write holds that commit's time; if no write is remembered, the newest tagging
    /// does.
    pub fn from_document(key: &'a ContentKey, doc: &'a Document) -> Self {
        Self {
            key,
            version: doc.version,
            updated_at: tagfast_domain::time::commit_time(doc),
            tags: doc.live().map(|t| t.name.as_str()).collect(),
        }
    }

    /// Whether this is a tombstone that has outlived its retention at `now` (Unix ms).
    pub fn is_expired_tombstone(&self, now: UnixMillis) -> bool {
        self.tags.is_empty() && self.updated_at < now - TOMBSTONE_RETENTION_MS
    }
}
