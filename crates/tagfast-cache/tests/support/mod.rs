//! Shared by the test binaries: contents, writes, and a store in memory behind caches.

use std::sync::Arc;
use std::time::Duration;

use tagfast_cache::{CacheDependencies, CacheOptions, CachedStore};
use tagfast_domain::{ContentKey, Operation, Tag, UserId, Version, Write, WriteId};
use tagfast_redis::{Redis, keys};
use tagfast_resilience::{Clock, ManualClock};
use tagfast_sharding::LogicalShard;
use tagfast_store::testing::MemoryStore;
use tagfast_store::{Degraded, History, ReadOptions, SharedStore, StoreError, View, WriteRequest};

pub(crate) const NOW: i64 = 1_800_000_000_000;

pub(crate) fn key(id: &str) -> ContentKey {
    ContentKey::parse("acme", "test.doc", id).expect("a content")
}

/// The Redis key of a content's cached view.
pub(crate) fn view_key(id: &str) -> String {
    let key = key(id);
    let bytes = keys::view(LogicalShard::of(&key).number(), &key.to_bytes());
    String::from_utf8(bytes).expect("ids of tests are text")
}

pub(crate) fn user(name: &str) -> UserId {
    UserId::parse(name).expect("a user")
}

pub(crate) fn version(n: u64) -> Version {
    Version::from_packed(n).expect("a version")
}

/// A write that adds one tag.
pub(crate) fn add(key: &ContentKey, tag: &str, by: &str) -> WriteRequest {
    let operation =
        Operation::patch(vec![Tag::parse(tag).expect("a tag")], Vec::new(), &Default::default())
            .expect("a patch");
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("random bytes");
    WriteRequest {
        keyed: None,
        ..WriteRequest::new(Write {
            id: WriteId(id),
            key: key.clone(),
            user: user(by),
            operation,
            if_match: None,
        })
    }
}

/// The error of a store that refuses as overloaded.
pub(crate) fn overloaded() -> StoreError {
    StoreError::Overloaded { queue: "test", limit: 1, retry_after: Duration::from_secs(1) }
}

/// A view hook: the store answers with a very old state, marked, and refuses clients that accept no
/// stale view.
pub(crate) fn lag(options: &ReadOptions<'_>, view: &mut View) -> Result<(), StoreError> {
    if options.max_stale == Some(Duration::ZERO) {
        return Err(overloaded());
    }
    view.version = Version::NONE;
    view.tags.clear();
    view.degraded = vec![Degraded { feature: "session", reason: "overloaded" }];
    Ok(())
}

/// A store that several cached stores may share, as API nodes share a cluster.
pub(crate) fn memory_store(clock: &Arc<ManualClock>) -> Arc<MemoryStore> {
    MemoryStore::new(Arc::clone(clock) as Arc<dyn Clock>)
}

/// The cached store of an API node.
pub(crate) fn node(
    backend: &Arc<MemoryStore>,
    clock: &Arc<ManualClock>,
    views: Option<Arc<Redis>>,
    positions: Option<Arc<Redis>>,
    options: CacheOptions,
) -> Arc<CachedStore> {
    let parts = CacheDependencies {
        store: Arc::clone(backend) as SharedStore,
        history: Arc::clone(backend) as Arc<dyn History>,
        views,
        positions,
        clock: Arc::clone(clock) as Arc<dyn Clock>,
    };
    CachedStore::start(parts, options)
}
