//! The bus: producer, metadata client and the publisher epochs that this process has seen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tagfast_domain::EpochId;
use tagfast_events::dead_letters::{DeadLetterReader, DeadLetterSource, ReadOffsets};
use tagfast_events::{
    Bus, BusConsumer, BusError, BusPosition, ConsumerGroup, DeadLetter, Partition, Positions,
    PublisherEpochs,
};
use tagfast_resilience::task::{BackgroundTask, TaskTracker};

use crate::client;
use crate::consumer::KafkaConsumer;
use crate::dead_letters::{self, KafkaDeadLetterReader};
use crate::options::{KafkaOptions, METADATA_TIMEOUT};
use crate::producers::Producers;
use crate::publisher::Publisher;
use crate::rotation::follow_changes;
use crate::topics::{self, TopicError};

/// How long group members may take to leave their groups at shutdown.
const THREADS_END_TIMEOUT: Duration = Duration::from_secs(5);

/// The bus on Kafka.
pub struct KafkaBus {
    options: Arc<KafkaOptions>,
    producers: Arc<Producers>,
    /// For requests that need no group, with the generation of its credentials.
    metadata_client: Mutex<(u64, Arc<BaseConsumer>)>,
    /// Brings changed credentials into force; `None`: none can change.
    rotation: Option<BackgroundTask>,
    /// The newest publisher epochs that any consumer of this process saw: a rebuild begins with
    /// them.
    seen: Arc<Mutex<BTreeMap<Partition, PublisherEpochs>>>,
    /// The threads that poll the clients of group members.
    threads: TaskTracker,
}

impl KafkaBus {
    /// Creates the clients. Sends no request, so it succeeds while all brokers are unreachable.
    ///
    /// # Errors
    ///
    /// [`TopicError::Unusable`] if the options are invalid.
    pub fn new(options: KafkaOptions) -> Result<Arc<Self>, TopicError> {
        if !(1..=64).contains(&options.partitions) {
            return Err(TopicError::Unusable(format!(
                "kafka.partitions = {} is not 1 to 64",
                options.partitions
            )));
        }
        let invalid = |e: rdkafka::error::KafkaError| {
            TopicError::Unusable(format!("the Kafka client refuses its settings: {e}"))
        };
        let options = Arc::new(options);
        let producers = Producers::new(Arc::clone(&options)).map_err(invalid)?;
        let metadata_client = client::base(&options).create().map_err(invalid)?;
        let rotation = options.security.can_change().then(|| {
            let (options, producers) = (Arc::clone(&options), Arc::clone(&producers));
            BackgroundTask::spawn("Kafka credentials", |stop| {
                follow_changes(options, producers, stop)
            })
        });
        Ok(Arc::new(Self {
            options,
            producers,
            metadata_client: Mutex::new((0, Arc::new(metadata_client))),
            rotation,
            seen: Arc::default(),
            threads: TaskTracker::new(),
        }))
    }

    /// Waits until the group members, which must be closed, have ended their threads and left
    /// their groups; at most 5 s.
    pub async fn stop(&self) {
        if let Some(rotation) = &self.rotation {
            // A panic was logged when the task was joined.
            let _ = rotation.stop().await;
        }
        self.threads.close();
        if tokio::time::timeout(THREADS_END_TIMEOUT, self.threads.wait()).await.is_err() {
            let threads = self.threads.len();
            tracing::warn!(threads, "some Kafka clients did not end in time");
        }
    }

    /// Creates missing topics and checks existing ones.
    ///
    /// # Errors
    ///
    /// See [`TopicError`].
    pub async fn check_topics(&self) -> Result<(), TopicError> {
        topics::check(&self.options, &self.metadata_client()).await
    }

    /// The client for requests that need no group, with the credentials in force.
    fn metadata_client(&self) -> Arc<BaseConsumer> {
        let mut current = self.metadata_client.lock();
        let generation = self.options.security.generation();
        if current.0 != generation
            && let Ok(client) = client::base(&self.options).create()
        {
            *current = (generation, Arc::new(client));
        }
        Arc::clone(&current.1)
    }

    /// A publisher for the relays of this process.
    pub fn publisher(&self) -> Publisher {
        Publisher::new(Arc::clone(&self.options), Arc::clone(&self.producers))
    }

    /// Reads a group's dead letters at these offsets; a partition that is missing, or whose offset
    /// is gone, starts at its beginning.
    ///
    /// # Errors
    ///
    /// [`BusError::Unavailable`] if the reader cannot be created.
    pub fn dead_letter_reader(
        &self,
        group: ConsumerGroup,
        from: ReadOffsets,
    ) -> Result<KafkaDeadLetterReader, BusError> {
        KafkaDeadLetterReader::open(Arc::clone(&self.options), group, from)
    }
}

#[async_trait]
impl DeadLetterSource for KafkaBus {
    async fn reader(
        &self,
        group: ConsumerGroup,
        from: ReadOffsets,
    ) -> Result<Box<dyn DeadLetterReader>, BusError> {
        Ok(Box::new(self.dead_letter_reader(group, from)?))
    }
}

#[async_trait]
impl Bus for KafkaBus {
    fn partitions(&self) -> Vec<Partition> {
        (0..self.options.partitions).map(Partition).collect()
    }

    /// Stays the same as long as the topic has this name. Positions beyond the end show that the
    /// topic was recreated.
    fn epoch(&self) -> EpochId {
        EpochId(xxhash_rust::xxh3::xxh3_128(self.options.topic.as_bytes()).to_be_bytes())
    }

    async fn consumer(&self, group: ConsumerGroup) -> Result<Box<dyn BusConsumer>, BusError> {
        let seen = Arc::clone(&self.seen);
        let options = Arc::clone(&self.options);
        let consumer = KafkaConsumer::join(options, group, seen, self.threads.clone());
        Ok(Box::new(consumer.map_err(BusError::unavailable)?))
    }

    async fn ends(&self) -> Result<Positions, BusError> {
        let mut ends = Positions::new();
        for partition in self.partitions() {
            // The epochs first: those seen later only make a consumer drop more.
            let publisher_epochs = self.seen.lock().get(&partition).cloned().unwrap_or_default();
            let (client, topic) = (self.metadata_client(), self.options.topic.clone());
            let number = i32::from(partition.0);
            let fetch = move || client.fetch_watermarks(&topic, number, METADATA_TIMEOUT);
            let (_, high) = client::blocking(move || client::request(fetch)).await?;
            ends.insert(partition, BusPosition { next: high.unsigned_abs(), publisher_epochs });
        }
        Ok(ends)
    }

    async fn park(&self, dead_letter: &DeadLetter) -> Result<(), BusError> {
        dead_letters::park(&self.options, &self.producers.get().await, dead_letter).await
    }
}
