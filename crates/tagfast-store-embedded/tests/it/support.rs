//! Shared by the tests: a data directory, a clock, helpers to write and read.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::{
    Call, ContentKey, IdempotencyKey, Operation, Tag, TagName, TaggingsEvent, UserId, Write,
    WriteId,
};
use tagfast_events::bus::begin_at;
use tagfast_events::{Bus, BusRecord, ConsumerGroup, Positions, decode};
use tagfast_resilience::ManualClock;
use tagfast_store::{ReadOptions, TagReader, TagWriter, View, WriteAnswer, WriteRequest};
use tagfast_store_embedded::{EmbeddedStore, OpenError, OpenOptions};
use tempfile::TempDir;

pub(crate) const NOW: i64 = 1_800_000_000_000;

/// A data directory, removed with the test.
pub(crate) struct Fixture {
    root: TempDir,
    pub(crate) clock: Arc<ManualClock>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        Self { root, clock: Arc::new(ManualClock::new(NOW)) }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// A second directory beside it.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions::new(self.dir(), Arc::clone(&self.clock) as _)
    }

    pub(crate) fn open(&self) -> Arc<EmbeddedStore> {
        EmbeddedStore::open(self.options())
            .unwrap_or_else(|e| panic!("the store opens: {}", chain(&e)))
    }

    /// The error of opening.
    pub(crate) fn refused(&self) -> OpenError {
        match EmbeddedStore::open(self.options()) {
            Ok(_) => panic!("the store must not open"),
            Err(error) => error,
        }
    }
}

/// An error with its sources.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text.push_str(&format!(": {e}"));
        cause = e.source();
    }
    text
}

pub(crate) fn key(tenant: &str, id: &str) -> ContentKey {
    ContentKey::parse(tenant, "test.doc", id).expect("a content")
}

pub(crate) fn fresh_id() -> WriteId {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("random bytes");
    WriteId(id)
}

pub(crate) fn add(key: &ContentKey, tags: &[&str]) -> WriteRequest {
    patch(key, tags, &[])
}

pub(crate) fn patch(key: &ContentKey, add: &[&str], remove: &[&str]) -> WriteRequest {
    let add = add.iter().map(|t| Tag::parse(t).expect("a tag")).collect();
    let remove = remove.iter().map(|t| TagName::parse(t).expect("a tag")).collect();
    let operation = Operation::patch(add, remove, &Default::default()).expect("a patch");
    let user = UserId::parse("someone").expect("a user");
    WriteRequest::new(Write { id: fresh_id(), key: key.clone(), user, operation, if_match: None })
}

/// The same key on a different content.
pub(crate) fn reused(first: &WriteRequest, key: &ContentKey) -> WriteRequest {
    let mut request = first.clone();
    request.write.key = key.clone();
    let id = first.keyed.expect("a key").id;
    let own = IdempotencyKey::of_write(first.write.id, Call::Patch, &key.content);
    request.keyed = Some(IdempotencyKey { id, ..own });
    request
}

pub(crate) async fn write(store: &EmbeddedStore, request: WriteRequest) -> WriteAnswer {
    store.write(request).await.unwrap_or_else(|e| panic!("it is written: {}", chain(&e)))
}

pub(crate) async fn view(store: &EmbeddedStore, key: &ContentKey) -> View {
    store
        .view(key, &ReadOptions::default())
        .await
        .unwrap_or_else(|e| panic!("it is readable: {}", chain(&e)))
}

pub(crate) async fn names(store: &EmbeddedStore, key: &ContentKey) -> Vec<String> {
    view(store, key).await.tags.iter().map(|t| t.name.to_string()).collect()
}

/// All records of the bus from `positions` to its current end.
pub(crate) async fn records(
    bus: &Arc<dyn Bus>,
    group: ConsumerGroup,
    positions: &Positions,
) -> Vec<BusRecord> {
    let mut open = bus.ends().await.expect("the ends");
    open.retain(|p, end| end.next > positions.get(p).map_or(1, |p| p.next.max(1)));
    let mut consumer = begin_at(bus.as_ref(), group, positions).await.expect("a consumer");
    let mut all = Vec::new();
    while !open.is_empty() {
        let records =
            consumer.poll(100, Duration::from_secs(20)).await.expect("records").into_records();
        assert!(!records.is_empty(), "records up to {open:?} are there");
        for record in &records {
            if open.get(&record.partition).is_some_and(|end| record.offset + 1 >= end.next) {
                open.remove(&record.partition);
            }
        }
        all.extend(records);
    }
    all
}

/// The events of the whole bus.
pub(crate) async fn events(store: &EmbeddedStore) -> Vec<TaggingsEvent> {
    let records = records(&store.bus(), ConsumerGroup("test-watch"), &Positions::new()).await;
    records.iter().map(|r| decode(&r.payload).expect("an event")).collect()
}

/// Copies a directory's files in their current state, as a power cut would leave them.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a new directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let name = entry.file_name();
        // The shared-memory index does not survive a power cut.
        if !name.to_string_lossy().ends_with("-shm") {
            std::fs::copy(entry.path(), to.join(name)).expect("a copy");
        }
    }
}
