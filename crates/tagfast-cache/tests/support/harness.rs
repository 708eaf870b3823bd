//! Harness of the store conformance suite: the embedded store behind caches.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tagfast_cache::{CacheDependencies, CacheOptions, CachedStore};
use tagfast_domain::{Limits, TaggingsEvent, TenantId, UnixMillis};
use tagfast_events::bus::begin_at;
use tagfast_events::{
    Bus, BusConsumer, BusPosition, ConsumerGroup, Positions, PublisherEpochs, decode,
};
use tagfast_redis::Redis;
use tagfast_resilience::{Clock, ManualClock};
use tagfast_store::conformance::StoreHarness;
use tagfast_store::{History, SharedStore};
use tagfast_store_embedded::{EmbeddedStore, OpenOptions};
use tempfile::TempDir;

use crate::support::NOW;

/// Which caches are on.
#[derive(Clone, Default)]
pub(crate) struct Layers {
    pub(crate) local_cache: bool,
    pub(crate) views: Option<Arc<Redis>>,
    pub(crate) positions: Option<Arc<Redis>>,
}

pub(crate) struct Harness {
    root: TempDir,
    clock: Arc<ManualClock>,
    layers: Layers,
    /// Held while the Redis servers are in use.
    _servers: Option<Box<dyn std::any::Any + Send + Sync>>,
    store: Mutex<Option<(Arc<EmbeddedStore>, Arc<CachedStore>)>>,
    published: tokio::sync::Mutex<(Positions, Vec<TaggingsEvent>)>,
}

impl Harness {
    pub(crate) fn new(
        layers: Layers,
        servers: Option<Box<dyn std::any::Any + Send + Sync>>,
    ) -> Self {
        Self {
            root: tempfile::tempdir().expect("a directory"),
            clock: Arc::new(ManualClock::new(NOW)),
            layers,
            _servers: servers,
            store: Mutex::new(None),
            published: tokio::sync::Mutex::default(),
        }
    }

    fn options(&self) -> OpenOptions {
        OpenOptions::new(self.root.path().join("data"), Arc::clone(&self.clock) as _)
    }

    fn opened(&self) -> SharedStore {
        let store = EmbeddedStore::open(self.options()).expect("the store opens");
        let parts = CacheDependencies {
            store: Arc::clone(&store) as SharedStore,
            history: Arc::clone(&store) as Arc<dyn History>,
            views: self.layers.views.clone(),
            positions: self.layers.positions.clone(),
            clock: self.clock(),
        };
        let l1_bytes = if self.layers.local_cache { 1 << 20 } else { 0 };
        let cached =
            CachedStore::start(parts, CacheOptions { l1_bytes, ..CacheOptions::default() });
        *self.store.lock() = Some((store, Arc::clone(&cached)));
        cached
    }

    fn bus(&self) -> Arc<dyn Bus> {
        self.store.lock().as_ref().expect("an open store").0.bus()
    }
}

#[async_trait]
impl StoreHarness for Harness {
    async fn open(&self) -> SharedStore {
        self.opened()
    }

    async fn reopen(&self) -> Option<SharedStore> {
        let (store, cached) = self.store.lock().take().expect("an open store");
        drop(cached);
        store.close();
        drop(store);
        Some(self.opened())
    }

    async fn events(&self, tenant: &TenantId) -> Vec<TaggingsEvent> {
        let mut published = self.published.lock().await;
        let mut open = self.bus().ends().await.expect("the ends");
        open.retain(|p, end| end.next > published.0.get(p).map_or(1, |p| p.next.max(1)));
        let mut consumer = begin_at(self.bus().as_ref(), ConsumerGroup("test-watch"), &published.0)
            .await
            .expect("a consumer");
        while !open.is_empty() {
            let polled =
                consumer.poll(100, std::time::Duration::from_secs(20)).await.expect("records");
            for record in polled.into_records() {
                if open.get(&record.partition).is_some_and(|end| record.offset + 1 >= end.next) {
                    open.remove(&record.partition);
                }
                let next = BusPosition {
                    next: record.offset + 1,
                    publisher_epochs: PublisherEpochs::embedded(record.publisher_epoch.0),
                    anchor: None,
                };
                published.0.insert(record.partition, next);
                published.1.push(decode(&record.payload).expect("an event"));
            }
        }
        published.1.iter().filter(|e| e.key.tenant == *tenant).cloned().collect()
    }

    async fn complete_through(&self) -> UnixMillis {
        let consumer: Box<dyn BusConsumer> =
            begin_at(self.bus().as_ref(), ConsumerGroup("test-watermark"), &Positions::new())
                .await
                .expect("a consumer");
        let watermarks = consumer.watermarks().await.expect("watermarks");
        watermarks.values().flatten().map(|f| f.complete_through).min().expect("a partition")
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as _
    }

    fn advance(&self, ms: i64) -> bool {
        self.clock.advance(ms);
        true
    }

    fn limits(&self) -> Limits {
        self.options().limits
    }
}
