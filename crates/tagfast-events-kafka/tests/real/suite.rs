//! The promises of every bus.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, EpochOrdinal, UnixMillis};
use tagfast_events::Bus;
use tagfast_events::conformance::{self, BusHarness};
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

macro_rules! promises {
    ($($name:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                conformance::$name(&Harness::new().await).await;
            }
        )*
    };
}

promises!(
    events_of_a_content_keep_their_order,
    what_was_not_committed_comes_again,
    what_was_committed_does_not_come_again,
    a_given_position_decides,
    groups_do_not_share,
    a_paused_partition_is_silent_and_keeps_its_records,
    a_dropped_poll_loses_nothing,
    an_idle_partition_tells_the_truth,
    a_letter_is_kept_for_its_group,
    the_ends_are_behind_what_was_published,
);
