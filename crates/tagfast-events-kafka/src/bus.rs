//! The bus: producer, metadata client and the publisher epochs that this process has seen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::consumer::Consumer;
use tagfast_domain::EpochId;
use tagfast_events::dead_letters::{DeadLetterReader, DeadLetterSource, ReadOffsets};
use tagfast_events::{
    Bus, BusConsumer, BusError, BusPosition, ConsumerGroup, DeadLetter, Partition, Positions,
};
use tagfast_resilience::task::{BackgroundTask, TaskTracker};

use crate::anchor_reader::AnchorReader;
use crate::client;
use crate::consumer::{KafkaConsumer, MemberDeps};
use crate::dead_letters::{self, KafkaDeadLetterReader};
use crate::metadata_client::MetadataClient;
use crate::options::{KafkaOptions, METADATA_TIMEOUT};
use crate::producers::Producers;
use crate::publisher::Publisher;
use crate::rotation::follow_changes;
use crate::topic_health;
use crate::topics::{self, TopicError};

/// How long group members may take to leave their groups at shutdown.
const THREADS_END_TIMEOUT: Duration = Duration::from_secs(5);

/// The bus on Kafka.
pub struct KafkaBus {
    options: Arc<KafkaOptions>,
    producers: Arc<Producers>,
    metadata_client: Arc<MetadataClient>,
    /// Brings changed credentials into force; `None`: none can change.
    rotation: Option<BackgroundTask>,
    /// What the members share. A rebuild begins with the publisher epochs that they saw.
    members: MemberDeps,
    topic_watch: Mutex<Option<BackgroundTask>>,
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
        let metadata_client = MetadataClient::new(Arc::clone(&options)).map_err(invalid)?;
        let rotation = options.security.can_change().then(|| {
            let (options, producers) = (Arc::clone(&options), Arc::clone(&producers));
            BackgroundTask::spawn("Kafka credentials", |stop| {
                follow_changes(options, producers, stop)
            })
        });
        let members = MemberDeps {
            seen: Arc::default(),
            anchors: Arc::new(AnchorReader::new(Arc::clone(&options)).map_err(invalid)?),
            topics: Arc::default(),
            threads: TaskTracker::new(),
        };
        Ok(Arc::new(Self {
            options,
            producers,
            metadata_client,
            rotation,
            members,
            topic_watch: Mutex::default(),
        }))
    }

    /// Looks at the topics every two seconds from now on, until [`KafkaBus::stop`]: while the topic
    /// of events is missing or has a different number of partitions, nothing is published into it
    /// and nothing is read from it.
    pub fn watch_topics(&self) {
        let (health, options) = (Arc::clone(&self.members.topics), Arc::clone(&self.options));
        let watch = topic_health::watch(health, options, Arc::clone(&self.metadata_client));
        *self.topic_watch.lock() = Some(watch);
    }

    /// Waits until the group members, which must be closed, have ended their threads and left
    /// their groups; at most 5 s.
    pub async fn stop(&self) {
        if let Some(rotation) = &self.rotation {
            // A panic was logged when the task was joined.
            let _ = rotation.stop().await;
        }
        let watch = self.topic_watch.lock().take();
        if let Some(watch) = watch {
            // The task logs its own panic.
            let _ = watch.stop().await;
        }
        let threads = &self.members.threads;
        threads.close();
        if tokio::time::timeout(THREADS_END_TIMEOUT, threads.wait()).await.is_err() {
            let threads = threads.len();
            tracing::warn!(threads, "some Kafka clients did not end in time");
        }
    }

    /// Creates missing topics and checks existing ones.
    ///
    /// # Errors
    ///
    /// See [`TopicError`].
    pub async fn check_topics(&self) -> Result<(), TopicError> {
        topics::check(&self.options, &self.metadata_client.get()).await
    }

    /// A publisher for the relays of this process.
    pub fn publisher(&self) -> Publisher {
        let topics = Arc::clone(&self.members.topics);
        Publisher::new(Arc::clone(&self.options), Arc::clone(&self.producers), topics)
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

    /// Stays the same as long as the topic has this name. Whether the topic was made again is
    /// proven by the anchors of positions.
    fn epoch(&self) -> EpochId {
        EpochId(xxhash_rust::xxh3::xxh3_128(self.options.topic.as_bytes()).to_be_bytes())
    }

    async fn consumer(&self, group: ConsumerGroup) -> Result<Box<dyn BusConsumer>, BusError> {
        let (options, shared) = (Arc::clone(&self.options), self.members.clone());
        let consumer = KafkaConsumer::join(options, group, shared);
        Ok(Box::new(consumer.map_err(BusError::unavailable)?))
    }

    async fn ends(&self) -> Result<Positions, BusError> {
        if let Some(problem) = self.members.topics.unusable() {
            return Err(BusError::unavailable(problem));
        }
        let (mut ends, mut last) = (Positions::new(), BTreeMap::new());
        for partition in self.partitions() {
            // The epochs first: those seen later only make a consumer drop more.
            let seen = self.members.seen.lock().get(&partition).cloned();
            let (client, topic) = (self.metadata_client.get(), self.options.topic.clone());
            let number = i32::from(partition.0);
            let fetch = move || client.fetch_watermarks(&topic, number, METADATA_TIMEOUT);
            let (low, high) = client::blocking(move || client::request(fetch)).await?;
            if high > low {
                last.insert(partition, (high - 1).unsigned_abs());
            }
            let publisher_epochs = seen.unwrap_or_default();
            let end = BusPosition { next: high.unsigned_abs(), publisher_epochs, anchor: None };
            ends.insert(partition, end);
        }
        let reader = Arc::clone(&self.members.anchors);
        for (partition, anchor) in client::blocking(move || reader.anchors(&last)).await? {
            if let Some(end) = ends.get_mut(&partition) {
                end.anchor = Some(anchor);
            }
        }
        Ok(ends)
    }

    async fn park(&self, dead_letter: &DeadLetter) -> Result<(), BusError> {
        dead_letters::park(&self.options, &self.producers.get().await, dead_letter).await
    }
}
