//! One broker for the binary, separate topics for each test.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::MutexGuard;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tagfast_domain::{
    ContentKey, EpochOrdinal, Tag, Tagging, TaggingsEvent, UnixMillis, UserId, Version,
};
use tagfast_events::conformance::MemorySink;
use tagfast_events::{Bus, Consumer, Partition, RuntimeOptions, Sink};
use tagfast_events_kafka::{KafkaBus, KafkaOptions, Security};
use tagfast_resilience::{Clock, SystemClock, task};
use tagfast_testkit::stack::{SharedStack, Stack, StackOptions};
use tagfast_testkit::wait_for_condition_async;
use tokio::sync::{RwLock, RwLockReadGuard};

pub(crate) const CLUSTER: &str = "c0";
pub(crate) const PARTITIONS: u16 = 8;

/// The stack, started by the first caller.
pub(crate) fn stack() -> MutexGuard<'static, Stack> {
    static SHARED: SharedStack = SharedStack::new();
    SHARED.get(|base| StackOptions { kafka: true, ..base })
}

/// Where clients connect: behind the fault proxy.
pub(crate) fn brokers() -> Vec<String> {
    static ADDRESS: OnceLock<String> = OnceLock::new();
    let address =
        ADDRESS.get_or_init(|| stack().info().kafka.as_ref().expect("Kafka").bootstrap.to_string());
    vec![address.clone()]
}

/// Options with a topic that no other test has.
pub(crate) fn options() -> KafkaOptions {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    KafkaOptions {
        brokers: brokers(),
        topic: format!("tagfast.test{}.v1", NEXT.fetch_add(1, Ordering::Relaxed)),
        partitions: PARTITIONS,
        security: Security::default(),
        member: "test".to_owned(),
        clusters: (0..PARTITIONS)
            .map(|p| (Partition(p), BTreeSet::from([CLUSTER.into()])))
            .collect(),
        standalone_groups: Vec::new(),
    }
}

/// A bus whose topics exist.
pub(crate) async fn bus(options: &KafkaOptions) -> Arc<KafkaBus> {
    let bus = KafkaBus::new(options.clone()).expect("the settings are fine");
    bus.check_topics().await.expect("the topics are made");
    bus
}

/// A client of the broker that is not part of the bus.
pub(crate) fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers().join(",")).create().expect("a client")
}

/// Deletes the topic of events; returns when the broker no longer lists it.
pub(crate) async fn delete_topic(options: &KafkaOptions) {
    let results = admin().delete_topics(&[&options.topic], &AdminOptions::new()).await;
    results.expect("a reply").into_iter().for_each(|result| drop(result.expect("deleted")));
    let topic = options.topic.clone();
    wait_for_condition_async("the topic is gone", Duration::from_secs(30), || async {
        let name = topic.clone();
        let listed = task::blocking(move || {
            let client: BaseConsumer = ClientConfig::new()
                .set("bootstrap.servers", brokers().join(","))
                .create()
                .expect("a client");
            let all = client.fetch_metadata(None, Duration::from_secs(5)).expect("metadata");
            all.topics().iter().any(|known| known.name() == name)
        });
        if listed.await.expect("no panic") { Err("it is listed") } else { Ok(()) }
    })
    .await;
}

/// Tests that need a working broker hold it shared; tests that break the broker hold it alone.
pub(crate) static BROKER: RwLock<()> = RwLock::const_new(());

/// A fresh bus, and a guard that keeps other tests from breaking the broker.
pub(crate) async fn fresh() -> (KafkaOptions, Arc<KafkaBus>, RwLockReadGuard<'static, ()>) {
    let quiet = BROKER.read().await;
    let (options, bus) = unprotected().await;
    (options, bus, quiet)
}

/// A fresh bus. The first one starts the broker, away from the test's task.
pub(crate) async fn unprotected() -> (KafkaOptions, Arc<KafkaBus>) {
    let options = task::blocking(options).await.expect("the stack comes up");
    let bus = bus(&options).await;
    (options, bus)
}

pub(crate) fn now() -> UnixMillis {
    SystemClock.now_ms()
}

pub(crate) fn event(id: &str, version: u64, emit: u64) -> TaggingsEvent {
    let key = ContentKey::parse("acme", "page", id).expect("a valid key");
    event_of(&key, version, emit)
}

pub(crate) fn event_of(key: &ContentKey, version: u64, emit: u64) -> TaggingsEvent {
    let version = Version::from_packed(version).expect("fits");
    let (tag, user, at) =
        (Tag::parse("Tested").expect("a tag"), UserId::parse("ann").expect("a user"), now());
    let tagging = Tagging::of(tag, user, at, version);
    TaggingsEvent {
        key: key.clone(),
        version,
        at,
        publisher_epoch: EpochOrdinal(emit),
        tags: vec![tagging],
        changes: Vec::new(),
    }
}

/// The newest version that a sink has of a page.
pub(crate) fn version_of(sink: &MemorySink, id: &str) -> Option<u64> {
    let key = ContentKey::parse("acme", "page", id).expect("a valid key");
    sink.newest().get(&key).map(|version| version.packed())
}

pub(crate) fn consume(bus: &Arc<KafkaBus>, sink: &Arc<MemorySink>) -> Consumer {
    let (bus, sink) = (Arc::clone(bus) as Arc<dyn Bus>, Arc::clone(sink) as Arc<dyn Sink>);
    Consumer::spawn(bus, sink, RuntimeOptions::default(), Arc::new(SystemClock))
}
