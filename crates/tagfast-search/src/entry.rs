//! A content's state on its way into an index, from an event or from a shard.

use tagfast_domain::{ContentKey, Document, UnixMillis, Version};
use tagfast_events::{Group, SinkRecord};

/// The group that indexes.
pub(crate) const GROUP: Group = Group::INDEXER;
/// A tombstone is kept for this long: longer than any event, letter or replay may be late.
pub(crate) const GONE_AGE_MS: i64 = 30 * 86_400_000;
/// Contents per page of a rebuild.
pub(crate) const PAGE: usize = 1000;

/// A state to index.
pub(crate) struct Entry<'a> {
    pub(crate) key: &'a ContentKey,
    pub(crate) version: Version,
    pub(crate) updated_at: UnixMillis,
    /// Canonical names, sorted; none on a tombstone.
    pub(crate) tags: Vec<&'a str>,
}

impl<'a> Entry<'a> {
    /// As an event has it.
    pub(crate) fn of_event(record: &'a SinkRecord) -> Self {
        let event = &record.event;
        Self {
            key: &event.key,
            version: event.version,
            updated_at: event.at,
            tags: event.tags.iter().map(|t| t.name.as_str()).collect(),
        }
    }

    /// As the event of a document's newest write would have it: the newest remembered write carries
    /// that commit's time.
    pub(crate) fn of_document(key: &'a ContentKey, doc: &'a Document) -> Self {
        let taggings = doc.taggings.iter().map(|t| t.at).max();
        Self {
            key,
            version: doc.version,
            updated_at: doc.recent.last().map(|w| w.at).or(taggings).unwrap_or(0),
            tags: doc.live().map(|t| t.name.as_str()).collect(),
        }
    }

    /// A tombstone so old that a sweep would remove it.
    pub(crate) fn is_swept(&self, now: UnixMillis) -> bool {
        self.tags.is_empty() && self.updated_at < now - GONE_AGE_MS
    }
}
