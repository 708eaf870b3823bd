//! The harness that drives an engine, and the events and requests that promises use.

use std::sync::Arc;

use async_trait::async_trait;
use tagfast_domain::{
    ContentKey, EpochOrdinal, Tag, Tagging, TaggingsEvent, UnixMillis, UserId, Version,
};

use crate::port::{SearchIndex, SearchRequest, Sort};

/// Drives an engine under test.
#[async_trait]
pub trait SearchHarness: Send + Sync {
    /// The index under test.
    fn index(&self) -> Arc<dyn SearchIndex>;
    /// Applies events in this order, as one batch.
    async fn apply(&self, events: &[TaggingsEvent]);
    /// Returns when everything applied is visible.
    async fn visible(&self);
    /// Advances the engine's clock by this many ms and runs whatever the engine does over time.
    async fn later(&self, ms: i64);
}

/// Commit time of the suite's tombstones, Unix ms: recent enough that no sweep removes them.
pub const NOW: UnixMillis = 1_800_000_000_000;

/// Builds the event of a state; `at` is its commit time in Unix ms.
pub fn event(
    tenant: &str,
    content_type: &str,
    id: &str,
    version: u64,
    at: UnixMillis,
    tags: &[&str],
) -> TaggingsEvent {
    let key = ContentKey::parse(tenant, content_type, id).expect("the suite's keys are valid");
    let version = Version::from_packed(version).expect("the suite's versions fit");
    let mut taggings: Vec<Tagging> = tags
        .iter()
        .map(|t| {
            let tag = Tag::parse(t).expect("the suite's tags are valid");
            let user = UserId::parse("alice").expect("a valid user");
            Tagging::of(tag, user, at, version)
        })
        .collect();
    taggings.sort_by(|a, b| a.name.cmp(&b.name));
    let publisher_epoch = EpochOrdinal(1);
    TaggingsEvent { key, version, at, publisher_epoch, tags: taggings, changes: Vec::new() }
}

/// Builds a request for the first page; an empty query matches everything.
pub fn request(query: &str) -> SearchRequest {
    SearchRequest {
        query: (!query.is_empty()).then(|| query.to_owned()),
        content_type: None,
        sort: Sort::Updated,
        after: None,
        limit: 100,
        facets: false,
        total_exact: true,
        criticality: tagfast_resilience::Criticality::Degradable,
    }
}
