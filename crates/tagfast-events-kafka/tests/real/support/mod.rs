//! One broker for the binary, separate topics for each test.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use tagfast_domain::{
    ContentKey, EpochId, EpochOrdinal, Tag, Tagging, TaggingsEvent, UnixMillis, UserId, Version,
};
use tagfast_events::{
    Bus, Consumer, ConsumerGroup, Partition, Positions, RecordVerdict, RuntimeOptions, Sink,
    SinkError, SinkRecord, Start, VisibleThrough,
};
use tagfast_events_kafka::{KafkaBus, KafkaOptions, Security};
use tagfast_resilience::{Clock, SystemClock, task};
use tagfast_testkit::stack::{SharedStack, Stack, StackOptions};
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
    let tagging = Tagging {
        name: tag.name,
        display: tag.display,
        user,
        at,
        decided_at: version,
        present: true,
    };
    TaggingsEvent {
        key: key.clone(),
        version,
        at,
        publisher_epoch: EpochOrdinal(emit),
        tags: vec![tagging],
        changes: Vec::new(),
    }
}

type Judge = Box<dyn Fn(&SinkRecord) -> RecordVerdict + Send + Sync>;

/// Keeps the newest version of each content; the bus keeps its positions.
pub(crate) struct MemorySink {
    group: ConsumerGroup,
    judge: Judge,
    pub(crate) newest: Mutex<BTreeMap<String, u64>>,
    pub(crate) applied: AtomicU64,
    pub(crate) rebuilds: AtomicU64,
    pub(crate) visible: AtomicU64,
}

impl MemorySink {
    pub(crate) fn new(group: &'static str) -> Arc<Self> {
        Self::judging(group, |_| RecordVerdict::Applied)
    }

    pub(crate) fn judging(
        group: &'static str,
        judge: impl Fn(&SinkRecord) -> RecordVerdict + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            group: ConsumerGroup(group),
            judge: Box::new(judge),
            newest: Mutex::default(),
            applied: AtomicU64::new(0),
            rebuilds: AtomicU64::new(0),
            visible: AtomicU64::new(0),
        })
    }

    pub(crate) fn version(&self, id: &str) -> Option<u64> {
        self.newest.lock().get(&format!("acme/page/{id}")).copied()
    }
}

#[async_trait]
impl Sink for MemorySink {
    fn group(&self) -> ConsumerGroup {
        self.group
    }

    async fn start(&self, _: EpochId, _: &[Partition]) -> Result<Start, SinkError> {
        Ok(Start::Committed)
    }

    async fn apply(&self, records: &[SinkRecord]) -> Result<Vec<RecordVerdict>, SinkError> {
        let mut newest = self.newest.lock();
        Ok(records
            .iter()
            .map(|record| {
                let verdict = (self.judge)(record);
                if verdict != RecordVerdict::Applied {
                    return verdict;
                }
                let known = newest.entry(record.event.key.to_string()).or_default();
                if *known >= record.event.version.packed() {
                    return RecordVerdict::Superseded;
                }
                *known = record.event.version.packed();
                self.applied.fetch_add(1, Ordering::Relaxed);
                RecordVerdict::Applied
            })
            .collect())
    }

    async fn flush(&self) -> Result<(), SinkError> {
        Ok(())
    }

    async fn versions(&self, keys: &[ContentKey]) -> Result<Vec<Option<Version>>, SinkError> {
        let newest = self.newest.lock();
        let version = |key: &ContentKey| Version::from_packed(*newest.get(&key.to_string())?).ok();
        Ok(keys.iter().map(version).collect())
    }

    async fn advance(&self, positions: &Positions) -> Result<Positions, SinkError> {
        Ok(positions.clone())
    }

    async fn rebuild(
        &self,
        _: &Positions,
        _: EpochId,
        _: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), SinkError> {
        self.rebuilds.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn visible(&self, visible: &VisibleThrough) {
        if let Some(at) = visible.oldest() {
            self.visible.store(at.unsigned_abs(), Ordering::Relaxed);
        }
    }

    async fn close(&self) -> Result<(), SinkError> {
        Ok(())
    }
}

pub(crate) fn consume(bus: &Arc<KafkaBus>, sink: &Arc<MemorySink>) -> Consumer {
    let (bus, sink) = (Arc::clone(bus) as Arc<dyn Bus>, Arc::clone(sink) as Arc<dyn Sink>);
    Consumer::spawn(bus, sink, RuntimeOptions::default(), Arc::new(SystemClock))
}
