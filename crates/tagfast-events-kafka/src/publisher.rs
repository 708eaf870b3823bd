//! Publishing for the relays: events in their order, markers, heartbeats.
//!
//! How it fails: a record that no broker acknowledged within ten seconds fails the call; the relay
//! offers everything again. A record that was acknowledged all the same is there twice, which
//! consumers do not mind.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};
use tagfast_domain::{ContentKey, EpochOrdinal, TaggingsEvent, UnixMillis};
use tagfast_events::envelope::{self, Message};
use tagfast_events::{BusError, Partition};
use tagfast_sharding::LogicalShard;

use crate::backwards::{self, Past};
use crate::{KafkaOptions, unavailable};

/// Between two heartbeats of a cluster.
const HEARTBEAT_MS: i64 = 1000;

/// Publishes events of clusters.
pub struct Publisher {
    options: Arc<KafkaOptions>,
    producer: FutureProducer,
    /// When each cluster's last heartbeat says.
    beaten: Mutex<BTreeMap<String, UnixMillis>>,
}

pub(crate) fn headers(headers: &[(String, Vec<u8>)]) -> OwnedHeaders {
    headers.iter().fold(OwnedHeaders::new_with_capacity(headers.len()), |all, (key, value)| {
        all.insert(Header { key, value: Some(value) })
    })
}

/// Hands a record to the client, waiting for room. The future tells when all in-sync brokers have
/// it.
pub(crate) async fn enqueue(
    producer: &FutureProducer,
    topic: &str,
    partition: i32,
    key: &[u8],
    payload: &[u8],
    all: OwnedHeaders,
) -> Result<DeliveryFuture, BusError> {
    let mut record =
        FutureRecord::to(topic).partition(partition).key(key).payload(payload).headers(all);
    loop {
        match producer.send_result(record) {
            Ok(delivery) => return Ok(delivery),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err((error, _)) => return Err(unavailable(error)),
        }
    }
}

/// Returns when all in-sync brokers have the record.
pub(crate) async fn delivered(delivery: DeliveryFuture) -> Result<(), BusError> {
    match delivery.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err((error, _))) => Err(unavailable(error)),
        Err(_) => Err(BusError::Unavailable("the producer has stopped".to_owned())),
    }
}

impl Publisher {
    pub(crate) fn new(options: Arc<KafkaOptions>, producer: FutureProducer) -> Self {
        Self { options, producer, beaten: Mutex::default() }
    }

    fn partition(&self, event: &TaggingsEvent) -> i32 {
        i32::from(u16::from(LogicalShard::of(&event.key).number()) % self.options.partitions)
    }

    fn partitions_of(&self, cluster: &str) -> impl Iterator<Item = Partition> + '_ {
        let cluster = cluster.to_owned();
        let feeds = move |(_, clusters): &(&Partition, &std::collections::BTreeSet<_>)| {
            clusters.contains(cluster.as_str())
        };
        self.options.clusters.iter().filter(feeds).map(|(partition, _)| *partition)
    }

    async fn to_all(
        &self,
        cluster: &str,
        message: &Message,
    ) -> Result<Vec<DeliveryFuture>, BusError> {
        let mut deliveries = Vec::new();
        for partition in self.partitions_of(cluster) {
            let key = format!("_{}/{cluster}", partition.0);
            let all = headers(&message.headers);
            let partition = i32::from(partition.0);
            let topic = &self.options.topic;
            deliveries.push(
                enqueue(&self.producer, topic, partition, key.as_bytes(), &message.payload, all)
                    .await?,
            );
        }
        Ok(deliveries)
    }

    /// Says in every partition of a cluster that an epoch begins; returns when all of them have it.
    pub async fn marker(
        &self,
        cluster: &str,
        epoch: EpochOrdinal,
        at: UnixMillis,
    ) -> Result<(), BusError> {
        let message = envelope::encode_marker(cluster, epoch, at);
        let deliveries = self.to_all(cluster, &message).await?;
        try_join_all(deliveries.into_iter().map(delivered)).await.map(drop)
    }

    /// Publishes events in their order; returns when the brokers have all of them. `hi` is a log
    /// position at or after the commit of each.
    pub async fn publish(
        &self,
        cluster: &str,
        events: &[TaggingsEvent],
        hi: u64,
    ) -> Result<(), BusError> {
        let mut deliveries = Vec::with_capacity(events.len());
        for event in events {
            let message = envelope::encode_binary(event, cluster, hi);
            let (partition, key) = (self.partition(event), event.key.to_string());
            let all = headers(&message.headers);
            let topic = &self.options.topic;
            deliveries.push(
                enqueue(&self.producer, topic, partition, key.as_bytes(), &message.payload, all)
                    .await?,
            );
        }
        try_join_all(deliveries.into_iter().map(delivered)).await.map(drop)
    }

    /// Contents of a cluster of which something was published that the current history may lack.
    pub async fn doubtful(
        &self,
        cluster: &str,
        past: impl Fn(EpochOrdinal) -> Past + Send + 'static,
    ) -> Result<Vec<ContentKey>, BusError> {
        let partitions: Vec<Partition> = self.partitions_of(cluster).collect();
        let (options, cluster) = (Arc::clone(&self.options), cluster.to_owned());
        let read = move || backwards::doubtful(&options, &cluster, &partitions, &past);
        tokio::task::spawn_blocking(read).await.map_err(unavailable)?
    }

    /// Every event of the cluster committed before `at` was published; `hi` as in
    /// [`Publisher::publish`]. Told to the consumers once a second.
    pub async fn heartbeat(&self, cluster: &str, epoch: EpochOrdinal, at: UnixMillis, hi: u64) {
        {
            let mut beaten = self.beaten.lock().unwrap_or_else(PoisonError::into_inner);
            match beaten.get_mut(cluster) {
                Some(last) if at - *last < HEARTBEAT_MS => return,
                Some(last) => *last = at,
                None => drop(beaten.insert(cluster.to_owned(), at)),
            }
        }
        // Nobody waits for it: the next one says more.
        if let Err(error) =
            self.to_all(cluster, &envelope::encode_heartbeat(cluster, epoch, at, hi)).await
        {
            tracing::debug!(cluster, %error, "a heartbeat was not sent");
        }
    }
}
