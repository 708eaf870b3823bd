//! What an adapter provides for its promises to be tested, and the runtime that runs them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{Limits, TaggingsEvent, TenantId, UnixMillis};
use tagfast_resilience::Clock;

use crate::SharedStore;

/// The interface of an adapter's test. One harness serves one promise; dropping it cleans up.
#[async_trait]
pub trait StoreHarness: Send + Sync {
    /// The store: a new one, or one shared with other harnesses (each promise has its own tenant).
    /// Called once per harness.
    async fn open(&self) -> SharedStore;

    /// Ends the store as a process restart would, and reopens it over the same data. The suite does
    /// not use the previous store afterwards. `None`: the adapter keeps nothing over a restart.
    async fn reopen(&self) -> Option<SharedStore>;

    /// All events published for a tenant since the harness was created, complete up to this call:
    /// it contains the event of each write that was answered before. Per content in publication
    /// order; events of an earlier call come first and unchanged. A bus of several partitions has
    /// no other common order.
    async fn events(&self, tenant: &TenantId) -> Vec<TaggingsEvent>;

    /// The watermark: every event committed before this moment (Unix ms) is published.
    async fn complete_through(&self) -> UnixMillis;

    /// The store's clock.
    fn clock(&self) -> Arc<dyn Clock>;

    /// Advances that clock by `ms` milliseconds; false: it is a real clock that cannot be moved.
    fn advance(&self, ms: i64) -> bool;

    /// The limits the store was opened with.
    fn limits(&self) -> Limits;
}

/// Runs one promise on a multi-threaded runtime; a promise fails that does not end in 2 minutes (20
/// with the feature `full`).
pub fn run(promise: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let bound = Duration::from_secs(if full() { 1200 } else { 120 });
    runtime
        .block_on(async { tokio::time::timeout(bound, promise).await })
        .expect("the promise ends in time");
}

/// Whether the big counts run: the feature `full`.
pub(super) fn full() -> bool {
    cfg!(feature = "full")
}
