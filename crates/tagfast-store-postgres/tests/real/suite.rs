//! The conformance suite of stores, on the store alone and behind the caches.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tagfast_cache::{CacheDependencies, CacheOptions, CachedStore};
use tagfast_domain::{Limits, TaggingsEvent, TenantId, UnixMillis};
use tagfast_resilience::{Clock, ManualClock};
use tagfast_store::SharedStore;
use tagfast_store::conformance::StoreHarness;
use tagfast_store_postgres::testing::RecordingSink;
use tagfast_store_postgres::{PostgresOptions, PostgresStore};

use crate::support;

struct Harness {
    /// Behind L1 and both Redis servers, as the program has it.
    behind_caches: bool,
    options: PostgresOptions,
    clock: Arc<ManualClock>,
    sink: Arc<RecordingSink>,
    store: Mutex<Option<Arc<PostgresStore>>>,
}

impl Harness {
    async fn new(behind_caches: bool) -> Self {
        // Within a day of the machine's clock: ordinals are minted from it.
        let now = tagfast_resilience::SystemClock.now_ms();
        let clock = Arc::new(ManualClock::new(now));
        let options = support::options(Arc::clone(&clock) as Arc<dyn Clock>).await;
        Self { behind_caches, options, clock, sink: Arc::default(), store: Mutex::new(None) }
    }

    async fn opened(&self) -> SharedStore {
        let store = support::open(self.options.clone(), Arc::clone(&self.sink) as _).await;
        *self.store.lock() = Some(Arc::clone(&store));
        if !self.behind_caches {
            return store;
        }
        let [views, positions] = support::redis().await;
        let parts = CacheDependencies {
            store: Arc::clone(&store) as SharedStore,
            history: store,
            views: Some(views),
            positions: Some(positions),
            clock: self.clock(),
        };
        CachedStore::start(parts, CacheOptions::default())
    }

    fn current(&self) -> Arc<PostgresStore> {
        self.store.lock().clone().expect("an open store")
    }
}

#[async_trait]
impl StoreHarness for Harness {
    async fn open(&self) -> SharedStore {
        self.opened().await
    }

    async fn reopen(&self) -> Option<SharedStore> {
        let store = self.store.lock().take().expect("an open store");
        store.close().await;
        drop(store);
        Some(self.opened().await)
    }

    async fn events(&self, tenant: &TenantId) -> Vec<TaggingsEvent> {
        self.current().drained().await;
        self.sink.events().into_iter().filter(|e| e.key.tenant == *tenant).collect()
    }

    async fn complete_through(&self) -> UnixMillis {
        // What both clusters have reached; 0 until each has sent a heartbeat.
        let through = self.sink.through();
        if through.len() < self.options.clusters.len() {
            0
        } else {
            through.values().copied().min().unwrap_or(0)
        }
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }

    fn advance(&self, ms: i64) -> bool {
        self.clock.advance(ms);
        true
    }

    fn limits(&self) -> Limits {
        self.options.limits
    }
}

tagfast_store::conformance_suite!(Harness::new(false).await);

/// The same promises behind the caches.
mod behind_caches {
    tagfast_store::conformance_suite!(super::Harness::new(true).await);
}
