//! The promises of every bus.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, EpochOrdinal, UnixMillis};
use tagfast_events::Bus;
use tagfast_events::conformance::BusHarness;
use tagfast_events_kafka::{KafkaOptions, Publisher};
use tokio::sync::RwLockReadGuard;

use crate::kit;

struct Harness {
    options: KafkaOptions,
    publisher: Arc<Publisher>,
    versions: Mutex<BTreeMap<ContentKey, u64>>,
    beating: tokio::task::JoinHandle<()>,
    _quiet: RwLockReadGuard<'static, ()>,
}

impl Harness {
    async fn new() -> Self {
        let (options, bus, quiet) = kit::fresh().await;
        let publisher = Arc::new(bus.publisher());
        let relay = Arc::clone(&publisher);
        let beating = tokio::spawn(async move {
            loop {
                relay.heartbeat(kit::CLUSTER, EpochOrdinal(1), kit::now(), 0).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self { options, publisher, versions: Mutex::default(), beating, _quiet: quiet }
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

#[async_trait]
impl BusHarness for Harness {
    async fn bus(&self) -> Arc<dyn Bus> {
        kit::bus(&self.options).await
    }

    async fn publish(&self, contents: &[ContentKey]) {
        let events: Vec<_> = {
            let mut versions = self.versions.lock().expect("no panic under the lock");
            contents
                .iter()
                .map(|key| {
                    let version = versions.entry(key.clone()).or_default();
                    *version += 1;
                    kit::event_of(key, *version, 1)
                })
                .collect()
        };
        self.publisher.publish(kit::CLUSTER, &events, 0).await.expect("published");
    }

    fn now(&self) -> UnixMillis {
        kit::now()
    }
}

tagfast_events::conformance_suite!(Harness::new().await);
