//! Dead letters: the record as it was, with why it could not be applied in headers that Kafka Connect's tools know.

use rdkafka::producer::FutureProducer;
use tagfast_domain::time::rfc3339;
use tagfast_events::{BusError, DeadLetter, LetterClass};

use crate::KafkaOptions;
use crate::publisher::{delivered, enqueue, headers};

fn class(letter: &DeadLetter) -> &'static str {
    match letter.class {
        LetterClass::Poison => "poison",
        LetterClass::Exhausted => "exhausted",
    }
}

/// The headers of a letter: those of the record, then ours.
pub(crate) fn letter_headers(topic: &str, letter: &DeadLetter) -> Vec<(String, Vec<u8>)> {
    let record = &letter.record;
    let stage = match letter.code.as_str() {
        "event_undecodable" | "event_type_unknown" | "event_key_mismatch" => "VALUE_CONVERTER",
        _ => "TASK_PUT",
    };
    let ours = [
        ("__connect.errors.topic", topic.to_owned()),
        ("__connect.errors.partition", record.partition.0.to_string()),
        ("__connect.errors.offset", record.offset.to_string()),
        ("__connect.errors.connector.name", letter.group.0.to_owned()),
        ("__connect.errors.stage", stage.to_owned()),
        ("__connect.errors.exception.class.name", letter.code.clone()),
        ("__connect.errors.exception.message", letter.message.clone()),
        ("tagfast.dlq.letter_id", letter.id()),
        ("tagfast.dlq.class", class(letter).to_owned()),
        ("tagfast.dlq.attempts", letter.attempts.to_string()),
        ("tagfast.dlq.first_failed_at", rfc3339(letter.first_failed_at)),
        ("tagfast.dlq.last_failed_at", rfc3339(letter.last_failed_at)),
        ("tagfast.dlq.replays", "0".to_owned()),
    ];
    let ours = ours.into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes()));
    record.headers.iter().cloned().chain(ours).collect()
}

/// Writes a letter; returns when all in-sync brokers have it.
pub(crate) async fn park(
    options: &KafkaOptions,
    producer: &FutureProducer,
    letter: &DeadLetter,
) -> Result<(), BusError> {
    let record = &letter.record;
    let all = headers(&letter_headers(&options.topic, letter));
    let (topic, partition) = (options.letters_topic(letter.group.0), i32::from(record.partition.0));
    delivered(enqueue(producer, &topic, partition, &record.key, &record.payload, all).await?).await
}
