//! The harness of the conformance suite over a store in memory.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tagfast_domain::{Limits, TaggingsEvent, TenantId, UnixMillis};
use tagfast_resilience::{Clock, ManualClock};
use tagfast_store::SharedStore;
use tagfast_store::conformance::StoreHarness;
use tagfast_store::testing::{BrokenPromise, MemoryStore};

const NOW: UnixMillis = 1_800_000_123_456;

/// Opens [`MemoryStore`]s over one state.
pub(crate) struct MemoryHarness {
    store: Mutex<Arc<MemoryStore>>,
    clock: Arc<ManualClock>,
}

impl MemoryHarness {
    pub(crate) fn sound() -> Self {
        Self::with(MemoryStore::new)
    }

    pub(crate) fn broken(promise: BrokenPromise) -> Self {
        Self::with(|clock| MemoryStore::broken(clock, promise))
    }

    fn with(open: impl FnOnce(Arc<dyn Clock>) -> Arc<MemoryStore>) -> Self {
        let clock = Arc::new(ManualClock::new(NOW));
        Self { store: Mutex::new(open(Arc::clone(&clock) as Arc<dyn Clock>)), clock }
    }

    fn store(&self) -> Arc<MemoryStore> {
        Arc::clone(&self.store.lock())
    }
}

#[async_trait]
impl StoreHarness for MemoryHarness {
    async fn open(&self) -> SharedStore {
        self.store()
    }

    async fn reopen(&self) -> Option<SharedStore> {
        let reopened = self.store().reopen();
        *self.store.lock() = Arc::clone(&reopened);
        Some(reopened)
    }

    async fn events(&self, tenant: &TenantId) -> Vec<TaggingsEvent> {
        self.store().events().into_iter().filter(|e| e.key.tenant == *tenant).collect()
    }

    async fn complete_through(&self) -> UnixMillis {
        let stands = self.store().breaks(BrokenPromise::HeartbeatStops);
        if stands { NOW } else { self.clock.now_ms() }
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }

    fn advance(&self, ms: i64) -> bool {
        self.clock.advance(ms);
        true
    }

    fn limits(&self) -> Limits {
        self.store().limits()
    }
}
