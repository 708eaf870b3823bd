//! Publishes for the relays: events in their order, markers, heartbeats.
//!
//! How it fails: a record that no broker acknowledges within ten seconds fails the call, and the
//! relay publishes everything again. If the record had arrived after all it is there twice, which
//! consumers tolerate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::try_join_all;
use parking_lot::Mutex;
use rdkafka::producer::{DeliveryFuture, FutureProducer};
use tagfast_domain::{EpochOrdinal, TaggingsEvent, UnixMillis};
use tagfast_events::envelope::{self, Message};
use tagfast_events::{BusError, DivergedContent, Partition};
use tagfast_resilience::ErrorChain;
use tagfast_sharding::LogicalShard;

use crate::client;
use crate::options::KafkaOptions;
use crate::producers::Producers;
use crate::record::{delivered, encode_headers, enqueue};
use crate::reverse_scan::{self, EpochHistory};
use crate::topic_health::TopicHealth;

/// Between two heartbeats of a cluster, in milliseconds of commit time.
const HEARTBEAT_INTERVAL_MS: i64 = 1000;

/// Publishes events of clusters.
pub struct Publisher {
    options: Arc<KafkaOptions>,
    producers: Arc<Producers>,
    topics: Arc<TopicHealth>,
    /// Commit time (Unix ms) of each cluster's last heartbeat.
    last_heartbeat: Mutex<BTreeMap<String, UnixMillis>>,
}

impl Publisher {
    pub(crate) fn new(
        options: Arc<KafkaOptions>,
        producers: Arc<Producers>,
        topics: Arc<TopicHealth>,
    ) -> Self {
        Self { options, producers, topics, last_heartbeat: Mutex::default() }
    }

    fn partition(&self, event: &TaggingsEvent) -> i32 {
        i32::from(u16::from(LogicalShard::of(&event.key).number()) % self.options.partitions)
    }

    fn partitions_of(&self, cluster: &str) -> impl Iterator<Item = Partition> + '_ {
        let cluster = cluster.to_owned();
        let feeds =
            move |(_, clusters): &(&Partition, &BTreeSet<_>)| clusters.contains(cluster.as_str());
        self.options.clusters.iter().filter(feeds).map(|(partition, _)| *partition)
    }

    async fn send_to_all(
        &self,
        cluster: &str,
        message: &Message,
    ) -> Result<Vec<DeliveryFuture>, BusError> {
        let mut deliveries = Vec::new();
        let producer = self.producers.get().await;
        for partition in self.partitions_of(cluster) {
            let key = format!("_{}/{cluster}", partition.0);
            let sent = self.send(&producer, i32::from(partition.0), key.as_bytes(), message);
            deliveries.push(sent.await?);
        }
        Ok(deliveries)
    }

    async fn send(
        &self,
        producer: &FutureProducer,
        partition: i32,
        key: &[u8],
        message: &Message,
    ) -> Result<DeliveryFuture, BusError> {
        // In a topic with a different layout the order of events would be lost.
        if let Some(problem) = self.topics.unusable() {
            return Err(BusError::unavailable(problem));
        }
        let headers = encode_headers(&message.headers);
        enqueue(producer, &self.options.topic, partition, key, &message.payload, headers).await
    }

    /// Publishes in every partition of a cluster that an epoch begins; returns when the brokers
    /// have all markers.
    ///
    /// # Errors
    ///
    /// [`BusError::Unavailable`]: some partitions may have the marker.
    pub async fn marker(
        &self,
        cluster: &str,
        epoch: EpochOrdinal,
        at: UnixMillis,
    ) -> Result<(), BusError> {
        let message = envelope::encode_marker(cluster, epoch, at);
        let deliveries = self.send_to_all(cluster, &message).await?;
        try_join_all(deliveries.into_iter().map(delivered)).await.map(drop)
    }

    /// Publishes events in their order; returns when the brokers have all of them. `hi` is a log
    /// position at or after the commit of each.
    ///
    /// # Errors
    ///
    /// [`BusError::Unavailable`]: some of the events may be published.
    pub async fn publish(
        &self,
        cluster: &str,
        events: &[TaggingsEvent],
        hi: u64,
    ) -> Result<(), BusError> {
        self.publish_with_documents(cluster, events, &BTreeMap::new(), hi).await
    }

    /// As [`Publisher::publish`], some of the events with the encoded documents of their contents,
    /// by their place among `events`.
    ///
    /// # Errors
    ///
    /// As [`Publisher::publish`].
    pub async fn publish_with_documents(
        &self,
        cluster: &str,
        events: &[TaggingsEvent],
        documents: &BTreeMap<usize, &[u8]>,
        hi: u64,
    ) -> Result<(), BusError> {
        let mut deliveries = Vec::with_capacity(events.len());
        let producer = self.producers.get().await;
        for (n, event) in events.iter().enumerate() {
            let mut message = envelope::encode_binary(event, cluster, hi);
            if let Some(document) = documents.get(&n) {
                message = message.with_document(document);
            }
            let (partition, key) = (self.partition(event), event.key.to_string());
            deliveries.push(self.send(&producer, partition, key.as_bytes(), &message).await?);
        }
        try_join_all(deliveries.into_iter().map(delivered)).await.map(drop)
    }

    /// Contents of a cluster of which a state was published that the current history may lack, with
    /// the documents that a repair may join.
    ///
    /// # Errors
    ///
    /// [`BusError::Unavailable`] if the topic cannot be read.
    pub async fn diverged_contents(
        &self,
        cluster: &str,
        history: EpochHistory,
    ) -> Result<Vec<DivergedContent>, BusError> {
        let partitions: Vec<Partition> = self.partitions_of(cluster).collect();
        let (options, cluster) = (Arc::clone(&self.options), cluster.to_owned());
        client::blocking(move || {
            reverse_scan::diverged_contents(&options, &cluster, &partitions, &history)
        })
        .await
    }

    /// States that every event of the cluster committed before `at` was published; `hi` as in
    /// [`Publisher::publish`]. Sends at most one heartbeat a second.
    pub async fn heartbeat(&self, cluster: &str, epoch: EpochOrdinal, at: UnixMillis, hi: u64) {
        {
            let mut last_heartbeat = self.last_heartbeat.lock();
            match last_heartbeat.get_mut(cluster) {
                Some(last) if at - *last < HEARTBEAT_INTERVAL_MS => return,
                Some(last) => *last = at,
                None => drop(last_heartbeat.insert(cluster.to_owned(), at)),
            }
        }
        let message = envelope::encode_heartbeat(cluster, epoch, at, hi);
        // No caller waits for the delivery: the next heartbeat says more.
        if let Err(error) = self.send_to_all(cluster, &message).await {
            let error = ErrorChain(&error);
            tracing::debug!(cluster, %error, "a heartbeat was not sent");
        }
    }
}
