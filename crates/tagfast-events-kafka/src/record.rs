//! Kafka messages as records of the bus, and back.

use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};
use tagfast_events::envelope::Attributes;
use tagfast_events::{BusError, BusRecord, Partition};

/// Between two attempts to hand a record to a client whose queue is full.
const QUEUE_FULL_RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// Decodes a message; unknown attributes stay empty.
pub(crate) fn decode(message: &BorrowedMessage<'_>) -> BusRecord {
    let headers: Vec<(String, Vec<u8>)> = message
        .headers()
        .map(|all| {
            all.iter().map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec())).collect()
        })
        .unwrap_or_default();
    let attributes = Attributes::of(&headers);
    BusRecord {
        kind: attributes.kind,
        partition: Partition(message.partition() as u16),
        offset: message.offset().unsigned_abs(),
        key: message.key().unwrap_or_default().to_vec(),
        version: attributes.version,
        at: attributes.at.or(message.timestamp().to_millis()).unwrap_or(0),
        cluster: attributes.cluster,
        publisher_epoch: attributes.publisher_epoch,
        headers,
        payload: message.payload().unwrap_or_default().to_vec(),
    }
}

/// Headers in the client's format.
pub(crate) fn encode_headers(headers: &[(String, Vec<u8>)]) -> OwnedHeaders {
    headers.iter().fold(OwnedHeaders::new_with_capacity(headers.len()), |all, (key, value)| {
        all.insert(Header { key, value: Some(value) })
    })
}

/// Hands a record to the client, waiting for space in its queue. The future completes when all
/// in-sync brokers have the record.
pub(crate) async fn enqueue(
    producer: &FutureProducer,
    topic: &str,
    partition: i32,
    key: &[u8],
    payload: &[u8],
    headers: OwnedHeaders,
) -> Result<DeliveryFuture, BusError> {
    let mut record =
        FutureRecord::to(topic).partition(partition).key(key).payload(payload).headers(headers);
    loop {
        match producer.send_result(record) {
            Ok(delivery) => return Ok(delivery),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                tokio::time::sleep(QUEUE_FULL_RETRY_INTERVAL).await;
            }
            Err((error, _)) => return Err(BusError::unavailable(error)),
        }
    }
}

/// Waits until all in-sync brokers have the record.
pub(crate) async fn delivered(delivery: DeliveryFuture) -> Result<(), BusError> {
    match delivery.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err((error, _))) => Err(BusError::unavailable(error)),
        Err(_) => Err(BusError::unavailable("the producer has stopped")),
    }
}
