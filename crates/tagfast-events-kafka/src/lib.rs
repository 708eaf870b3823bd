//! The bus on Apache Kafka, or on any broker that speaks its protocol.
//!
//! One topic carries the events of all clusters; the partition of a content is its logical shard
//! modulo the number of partitions, so that the relay of a cluster knows the partitions of its
//! shards. Each consumer group has a topic for its dead letters with as many partitions.
//!
//! How it fails. A broker that is away makes publishing, polling and parking fail for now
//! ([`BusError::Unavailable`]); nothing is skipped. A topic with another number of partitions, or
//! one that may not be used, is refused with what to do.

mod backwards;
mod client;
mod consumer;
mod letters;
mod publisher;
mod topics;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::FutureProducer;
use tagfast_domain::EpochId;
use tagfast_events::{
    Bus, BusConsumer, BusError, BusPosition, ClusterName, DeadLetter, Emits, Group, Partition,
    Positions,
};

pub use crate::backwards::Past;
pub use crate::client::{Sasl, SaslMechanism, Security};
pub use crate::letters::LetterReader;
pub use crate::publisher::Publisher;
pub use crate::topics::TopicError;

/// How long a question to the broker may take.
const ASK: Duration = Duration::from_secs(5);

/// How the bus is reached and laid out.
#[derive(Debug, Clone)]
pub struct KafkaOptions {
    /// `host:port` of some brokers; the others are learned from them.
    pub brokers: Vec<String>,
    /// The topic of events.
    pub topic: String,
    /// Its partitions, at most 64 (the logical shards). Fixed when the topic is made: another
    /// number moves contents to other partitions, where their order is lost.
    pub partitions: u16,
    /// TLS and authentication.
    pub security: Security,
    /// This process, in letters.
    pub member: String,
    /// The clusters whose shards feed each partition: a partition is complete as far as the
    /// slowest of them.
    pub clusters: BTreeMap<Partition, BTreeSet<ClusterName>>,
    /// Groups of which every process is a whole one, with what names this process's: it gets every
    /// partition, and nobody else shares its work.
    pub whole: Vec<(String, String)>,
}

impl KafkaOptions {
    /// A group as the broker knows it: others may have an `indexer`, too.
    pub fn group_id(&self, group: &str) -> String {
        match self.whole.iter().find(|(whole, _)| whole == group) {
            Some((_, place)) => format!("{}.{group}.{place}", self.topic),
            None => format!("{}.{group}", self.topic),
        }
    }

    /// The topic of a group's dead letters.
    pub fn letters_topic(&self, group: &str) -> String {
        format!("{}.{group}.dlq", self.topic)
    }
}

/// The bus.
pub struct KafkaBus {
    options: Arc<KafkaOptions>,
    producer: FutureProducer,
    /// For questions that no group is needed for.
    asker: Arc<BaseConsumer>,
    /// The largest `emit` that any consumer of this process saw: where a rebuild begins.
    seen: Arc<Mutex<BTreeMap<Partition, Emits>>>,
}

fn unavailable(error: impl std::fmt::Display) -> BusError {
    BusError::Unavailable(error.to_string())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> rdkafka::error::KafkaResult<T> + Send + 'static,
) -> Result<T, BusError> {
    tokio::task::spawn_blocking(work).await.map_err(unavailable)?.map_err(unavailable)
}

impl KafkaBus {
    /// Prepares clients; nothing is asked of a broker yet, so this succeeds while all of them are
    /// away.
    pub fn new(options: KafkaOptions) -> Result<Arc<Self>, TopicError> {
        if !(1..=64).contains(&options.partitions) {
            return Err(TopicError::Wrong(format!(
                "kafka.partitions = {} is not 1 to 64",
                options.partitions
            )));
        }
        let wrong = |e: rdkafka::error::KafkaError| {
            TopicError::Wrong(format!("the Kafka client refuses its settings: {e}"))
        };
        let producer = client::producer(&options).create().map_err(wrong)?;
        let asker = client::base(&options).create().map_err(wrong)?;
        Ok(Arc::new(Self {
            options: Arc::new(options),
            producer,
            asker: Arc::new(asker),
            seen: Arc::default(),
        }))
    }

    /// Makes the topics that are missing and checks those that are there.
    pub async fn check_topics(&self) -> Result<(), TopicError> {
        topics::check(&self.options, &self.asker).await
    }

    /// Publishes for the relays of this process.
    pub fn publisher(&self) -> Publisher {
        Publisher::new(Arc::clone(&self.options), self.producer.clone())
    }

    async fn watermarks(&self, topic: String, partition: i32) -> Result<(u64, u64), BusError> {
        let asker = Arc::clone(&self.asker);
        let (low, high) = blocking(move || asker.fetch_watermarks(&topic, partition, ASK)).await?;
        Ok((low.unsigned_abs(), high.unsigned_abs()))
    }
}

#[async_trait]
impl Bus for KafkaBus {
    fn partitions(&self) -> Vec<Partition> {
        (0..self.options.partitions).map(Partition).collect()
    }

    /// The same as long as the topic has this name. A topic that was made anew is noticed by
    /// positions beyond its end.
    fn epoch(&self) -> EpochId {
        EpochId(xxhash_rust::xxh3::xxh3_128(self.options.topic.as_bytes()).to_be_bytes())
    }

    async fn consumer(&self, group: Group) -> Result<Box<dyn BusConsumer>, BusError> {
        let consumer = consumer::KafkaConsumer::join(&self.options, group, Arc::clone(&self.seen))
            .map_err(unavailable)?;
        Ok(Box::new(consumer))
    }

    async fn ends(&self) -> Result<Positions, BusError> {
        let mut ends = Positions::new();
        for partition in self.partitions() {
            // The ordinals first: what is seen later only makes a consumer drop more.
            let emits = {
                let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.get(&partition).cloned().unwrap_or_default()
            };
            let (_, next) =
                self.watermarks(self.options.topic.clone(), i32::from(partition.0)).await?;
            ends.insert(partition, BusPosition { next, emits });
        }
        Ok(ends)
    }

    async fn park(&self, letter: &DeadLetter) -> Result<(), BusError> {
        letters::park(&self.options, &self.producer, letter).await
    }
}
