//! The conformance suite over the embedded store.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tagfast_domain::{Limits, TaggingsEvent, TenantId, UnixMillis};
use tagfast_events::bus::begin_at;
use tagfast_events::{BusConsumer, BusPosition, ConsumerGroup, Positions, decode};
use tagfast_resilience::Clock;
use tagfast_store::SharedStore;
use tagfast_store::conformance::StoreHarness;
use tagfast_store_embedded::EmbeddedStore;

use crate::support::{self, Fixture};

struct Harness {
    fixture: Fixture,
    store: Mutex<Option<Arc<EmbeddedStore>>>,
    /// The events read so far: partitions have no common order, so the order of reading is kept.
    published: tokio::sync::Mutex<(Positions, Vec<TaggingsEvent>)>,
}

impl Harness {
    fn new() -> Self {
        Self {
            fixture: Fixture::new(),
            store: Mutex::new(None),
            published: tokio::sync::Mutex::default(),
        }
    }

    fn opened(&self) -> SharedStore {
        let store = self.fixture.open();
        *self.store.lock() = Some(Arc::clone(&store));
        store
    }

    fn store(&self) -> Arc<EmbeddedStore> {
        self.store.lock().clone().expect("an open store")
    }
}

#[async_trait]
impl StoreHarness for Harness {
    async fn open(&self) -> SharedStore {
        self.opened()
    }

    async fn reopen(&self) -> Option<SharedStore> {
        let store = self.store.lock().take().expect("an open store");
        store.close();
        drop(store);
        Some(self.opened())
    }

    async fn events(&self, tenant: &TenantId) -> Vec<TaggingsEvent> {
        let mut published = self.published.lock().await;
        let new =
            support::records(&self.store().bus(), ConsumerGroup("test-watch"), &published.0).await;
        for record in new {
            published.0.insert(
                record.partition,
                BusPosition {
                    next: record.offset + 1,
                    publisher_epochs: tagfast_events::PublisherEpochs::embedded(
                        record.publisher_epoch.0,
                    ),
                    anchor: None,
                },
            );
            published.1.push(decode(&record.payload).expect("an event"));
        }
        published.1.iter().filter(|e| e.key.tenant == *tenant).cloned().collect()
    }

    async fn complete_through(&self) -> UnixMillis {
        let bus = self.store().bus();
        let consumer: Box<dyn BusConsumer> =
            begin_at(bus.as_ref(), ConsumerGroup("test-watermark"), &Positions::new())
                .await
                .expect("a consumer");
        let watermarks = consumer.watermarks().await.expect("watermarks");
        watermarks.values().flatten().map(|f| f.complete_through).min().expect("a partition")
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.fixture.clock) as _
    }

    fn advance(&self, ms: i64) -> bool {
        self.fixture.clock.advance(ms);
        true
    }

    fn limits(&self) -> Limits {
        self.fixture.options().limits
    }
}

tagfast_store::conformance_suite!(Harness::new());
