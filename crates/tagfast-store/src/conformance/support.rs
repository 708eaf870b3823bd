//! Shared by all promises: a tenant of their own, helpers to write and read, waiting for a
//! condition, and seeded random numbers that repeat a failing test.

use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::{
    ContentKey, Limits, Operation, Refusal, Tag, TagName, TaggingsEvent, TenantId, UserId, Version,
    Write, WriteId,
};

use super::harness::{StoreHarness, full};
use crate::{
    Consistency, ConsistencyToken, ReadOptions, SharedStore, StoreError, View, WriteAnswer,
    WriteRequest,
};

/// A count, 20 times as large on request.
pub(super) fn scaled(count: usize) -> usize {
    if full() { count * 20 } else { count }
}

/// Random bytes, unique to the test.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    bytes
}

/// A new write id.
pub(super) fn fresh_id() -> WriteId {
    WriteId(random())
}

/// A store with a tenant of its own.
#[derive(Clone)]
pub(super) struct Fixture {
    pub(super) store: SharedStore,
    pub(super) tenant: TenantId,
    pub(super) limits: Limits,
}

impl Fixture {
    /// Opens the store and picks a unique tenant.
    pub(super) async fn new(harness: &dyn StoreHarness) -> Self {
        let tenant = format!("t-{:032x}", u128::from_be_bytes(random()));
        Self {
            store: harness.open().await,
            tenant: TenantId::parse(&tenant).expect("a tenant"),
            limits: harness.limits(),
        }
    }

    /// The same tenant after a restart; `None`: the adapter keeps nothing over a restart.
    pub(super) async fn reopened(self, harness: &dyn StoreHarness) -> Option<Self> {
        let Self { store, tenant, limits } = self;
        drop(store);
        Some(Self { store: harness.reopen().await?, tenant, limits })
    }

    /// A content of this tenant.
    pub(super) fn key(&self, id: &str) -> ContentKey {
        ContentKey::parse(self.tenant.as_str(), "test.doc", id).expect("a content")
    }

    /// A write by the user `someone` with a new id.
    pub(super) fn request(&self, key: &ContentKey, operation: Operation) -> WriteRequest {
        WriteRequest::new(Write {
            id: fresh_id(),
            key: key.clone(),
            user: user("someone"),
            operation,
            if_match: None,
        })
    }

    /// A request to add tags and remove others.
    pub(super) fn patch(&self, key: &ContentKey, add: &[&str], remove: &[&str]) -> WriteRequest {
        let operation =
            Operation::patch(tags(add), names(remove), &self.limits).expect("a valid patch");
        self.request(key, operation)
    }

    /// A request to replace the set.
    pub(super) fn replace(&self, key: &ContentKey, set: &[&str]) -> WriteRequest {
        self.request(key, Operation::replace(tags(set), &self.limits).expect("a valid replace"))
    }

    /// Writes; panics on an error.
    pub(super) async fn write(&self, request: WriteRequest) -> WriteAnswer {
        let what = format!("{:?} on {}", request.write.operation, request.write.key);
        match self.store.write(request).await {
            Ok(answer) => answer,
            Err(e) => panic!("{what} must be written, but: {}", chain(&e)),
        }
    }

    /// Adds tags.
    pub(super) async fn add(&self, key: &ContentKey, add: &[&str]) -> WriteAnswer {
        self.write(self.patch(key, add, &[])).await
    }

    /// Removes tags.
    pub(super) async fn remove(&self, key: &ContentKey, remove: &[&str]) -> WriteAnswer {
        self.write(self.patch(key, &[], remove)).await
    }

    /// The newest acknowledged state.
    pub(super) async fn view(&self, key: &ContentKey) -> View {
        match self.try_view(key, Consistency::Strong, None).await {
            Ok(view) => view,
            Err(e) => panic!("{key} must be readable, but: {}", chain(&e)),
        }
    }

    /// A view.
    pub(super) async fn try_view(
        &self,
        key: &ContentKey,
        consistency: Consistency,
        token: Option<&ConsistencyToken>,
    ) -> Result<View, StoreError> {
        self.store.view(key, &ReadOptions { consistency, token, ..ReadOptions::default() }).await
    }

    /// The canonical names on a content, newest acknowledged state.
    pub(super) async fn tags(&self, key: &ContentKey) -> Vec<String> {
        self.view(key).await.tags.iter().map(|t| t.name.to_string()).collect()
    }

    /// Everything published for this tenant.
    pub(super) async fn events(&self, harness: &dyn StoreHarness) -> Vec<TaggingsEvent> {
        harness.events(&self.tenant).await
    }
}

/// Tags from spellings.
pub(super) fn tags(spellings: &[&str]) -> Vec<Tag> {
    spellings
        .iter()
        .map(|s| Tag::parse(s).unwrap_or_else(|e| panic!("{s:?} is a tag: {e}")))
        .collect()
}

/// Names from spellings, as a removal names them.
pub(super) fn names(spellings: &[&str]) -> Vec<TagName> {
    spellings
        .iter()
        .map(|s| TagName::lookup(s).unwrap_or_else(|e| panic!("{s:?} is a tag: {e}")))
        .collect()
}

/// A user.
pub(super) fn user(name: &str) -> UserId {
    UserId::parse(name).expect("a user")
}

/// The refusal in an outcome; panics for anything else.
pub(super) fn refusal(outcome: Result<WriteAnswer, StoreError>) -> Refusal {
    match outcome {
        Err(StoreError::Refused(refusal)) => refusal,
        Ok(answer) => panic!("the write must be refused, but it was answered: {answer:?}"),
        Err(other) => panic!("the write must be refused, but: {}", chain(&other)),
    }
}

/// Whether two answers are equal apart from `repeated` and the receipt's position.
pub(super) fn same_answer(a: &WriteAnswer, b: &WriteAnswer) -> bool {
    (a.version, a.changed, &a.added, &a.removed, a.receipt.write_id)
        == (b.version, b.changed, &b.added, &b.removed, b.receipt.write_id)
}

/// An error with its sources.
pub(super) fn chain(error: &StoreError) -> String {
    tagfast_resilience::ErrorChain(error).to_string()
}

/// Waits until `condition` returns a value, 10 s at most.
pub(super) async fn wait_for<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < end, "waited 10 s for this in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs all tasks concurrently and returns their results in order; a panic in one is a panic here.
pub(super) async fn run_concurrently<T: Send + 'static>(
    tasks: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let start = Arc::new(tokio::sync::Notify::new());
    let mut handles = Vec::new();
    for task in tasks {
        let start = Arc::clone(&start);
        let notified = Arc::clone(&start).notified_owned();
        handles.push(tokio::spawn(async move {
            notified.await;
            task.await
        }));
    }
    start.notify_waiters();
    let mut results = Vec::with_capacity(handles.len());
    for handle in handles {
        match handle.await {
            Ok(result) => results.push(result),
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }
    results
}

/// Random numbers from a seed: the same seed, the same run.
pub(super) struct Random(fastrand::Rng);

impl Random {
    /// A generator; `stream` separates several generators of one test.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed ^ stream.wrapping_mul(0xA076_1D64_78BD_642F)))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0.u64(..)
    }

    /// A number below `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0.usize(..n.max(1))
    }

    /// True in `percent` of 100 cases.
    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of the items.
    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// The seed of this run.
pub(super) fn seed() -> u64 {
    match std::env::var("TAGFAST_SEED").ok().and_then(|s| s.parse().ok()) {
        Some(seed) => seed,
        None if full() => u64::from_be_bytes(random()),
        None => 20_260_131,
    }
}

/// The version, for messages and comparisons.
pub(super) fn versions(events: &[&TaggingsEvent]) -> Vec<Version> {
    events.iter().map(|e| e.version).collect()
}
