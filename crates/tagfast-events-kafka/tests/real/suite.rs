//! The bus conformance suite on Kafka.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tagfast_domain::{ContentKey, EpochOrdinal, UnixMillis};
use tagfast_events::Bus;
use tagfast_events::conformance::BusHarness;
use tagfast_events_kafka::{KafkaOptions, Publisher};
use tagfast_resilience::task::TaskTracker;
use tokio::sync::RwLockReadGuard;

use crate::support;

struct Harness {
    options: KafkaOptions,
    publisher: Arc<Publisher>,
    versions: Mutex<BTreeMap<ContentKey, u64>>,
    beating: tokio::task::JoinHandle<()>,
    _quiet: RwLockReadGuard<'static, ()>,
}

impl Harness {
    async fn new() -> Self {
        let (options, bus, quiet) = support::fresh().await;
        let publisher = Arc::new(bus.publisher());
        let relay = Arc::clone(&publisher);
        let beating = TaskTracker::new().spawn(async move {
            loop {
                relay.heartbeat(support::CLUSTER, EpochOrdinal(1), support::now(), 0).await;
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
        support::bus(&self.options).await
    }

    async fn publish(&self, contents: &[ContentKey]) {
        let events: Vec<_> = {
            let mut versions = self.versions.lock();
            contents
                .iter()
                .map(|key| {
                    let version = versions.entry(key.clone()).or_default();
                    *version += 1;
                    support::event_of(key, *version, 1)
                })
                .collect()
        };
        self.publisher.publish(support::CLUSTER, &events, 0).await.expect("published");
    }

    fn now(&self) -> UnixMillis {
        support::now()
    }
}

tagfast_events::conformance_suite!(Harness::new().await);
