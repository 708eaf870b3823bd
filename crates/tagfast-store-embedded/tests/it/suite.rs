//! The promises of every store, kept by this one.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tagfast_domain::{Limits, TaggingsEvent, TenantId, UnixMillis};
use tagfast_events::bus::begin_at;
use tagfast_events::{BusConsumer, BusPosition, Group, Positions, decode};
use tagfast_resilience::Clock;
use tagfast_store::SharedStore;
use tagfast_store::conformance::StoreHarness;
use tagfast_store_embedded::EmbeddedStore;

use crate::support::{self, Fixture};

struct Harness {
    fixture: Fixture,
    store: Mutex<Option<Arc<EmbeddedStore>>>,
    /// What was published, as far as it was asked for: partitions have no common order but that of
    /// the asking.
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
        *self.store.lock().expect("no panic") = Some(Arc::clone(&store));
        store
    }

    fn store(&self) -> Arc<EmbeddedStore> {
        self.store.lock().expect("no panic").clone().expect("an open store")
    }
}

#[async_trait]
impl StoreHarness for Harness {
    async fn open(&self) -> SharedStore {
        self.opened()
    }

    async fn reopen(&self) -> Option<SharedStore> {
        let store = self.store.lock().expect("no panic").take().expect("an open store");
        store.close();
        drop(store);
        Some(self.opened())
    }

    async fn events(&self, tenant: &TenantId) -> Vec<TaggingsEvent> {
        let mut published = self.published.lock().await;
        let new = support::records(&self.store().bus(), Group("test-watch"), &published.0).await;
        for record in new {
            published.0.insert(
                record.partition,
                BusPosition {
                    next: record.offset + 1,
                    emits: tagfast_events::Emits::embedded(record.emit.0),
                },
            );
            published.1.push(decode(&record.payload).expect("an event"));
        }
        published.1.iter().filter(|e| e.key.tenant == *tenant).cloned().collect()
    }

    async fn complete_through(&self) -> UnixMillis {
        let bus = self.store().bus();
        let consumer: Box<dyn BusConsumer> =
            begin_at(bus.as_ref(), Group("test-frontier"), &Positions::new())
                .await
                .expect("a consumer");
        let frontiers = consumer.frontiers().await.expect("frontiers");
        frontiers.values().flatten().map(|f| f.complete_through).min().expect("a partition")
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
