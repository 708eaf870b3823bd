//! Creates missing topics and checks existing ones.

use std::collections::BTreeSet;
use std::sync::Arc;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use tagfast_events::{BoxError, ConsumerGroup};
use tagfast_resilience::task;

use crate::client;
use crate::options::{KafkaOptions, METADATA_TIMEOUT};

/// Retention of events: a week, in milliseconds. A consumer that is further behind is rebuilt from
/// the shards.
const EVENT_RETENTION_MS: &str = "604800000";
/// Retention of dead letters: two weeks, in milliseconds.
const DEAD_LETTER_RETENTION_MS: &str = "1209600000";

/// Why the topics cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// No broker answers; a later attempt may succeed.
    #[error("Kafka does not answer a request {action}; check kafka.brokers")]
    Unavailable {
        /// What was requested: `to list topics`.
        action: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The topics cannot be used before an operator changes something; the text says what.
    #[error("{0}")]
    Unusable(String),
}

/// The error of a code that says this user may not do it; `None` for other codes.
fn denied(code: Code, action: &str) -> Option<TopicError> {
    let denied = matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::SaslAuthenticationFailed
            | Code::Authentication
    );
    denied.then(|| {
        TopicError::Unusable(format!(
            "Kafka does not allow this user {action} ({code}): grant it Describe, Create, Read \
             and Write on the tagfast topics and Read on its groups, or create the topics yourself"
        ))
    })
}

fn failure(error: KafkaError, action: &str) -> TopicError {
    error.rdkafka_error_code().and_then(|code| denied(code, action)).unwrap_or_else(|| {
        TopicError::Unavailable { action: action.to_owned(), source: error.into() }
    })
}

/// Those of the wanted topics that exist, with their number of partitions.
async fn existing(
    metadata_client: &Arc<BaseConsumer>,
    wanted: &[(String, &str)],
) -> Result<Vec<(String, usize)>, TopicError> {
    let client = Arc::clone(metadata_client);
    let names: BTreeSet<String> = wanted.iter().map(|(name, _)| name.clone()).collect();
    let action = "to list topics";
    let list = move || {
        let metadata = client.fetch_metadata(None, METADATA_TIMEOUT)?;
        let ours = metadata.topics().iter().filter(|topic| names.contains(topic.name()));
        ours.map(|topic| match topic.error() {
            // A topic that is being created is listed before its partitions are.
            Some(code) => Err(KafkaError::MetadataFetch(code.into())),
            None => Ok((topic.name().to_owned(), topic.partitions().len())),
        })
        .collect()
    };
    task::blocking(move || client::request(list))
        .await
        .map_err(|e| TopicError::Unavailable { action: action.to_owned(), source: e.into() })?
        .map_err(|e| failure(e, action))
}

/// Creates missing topics and checks the number of partitions of all.
pub(crate) async fn check(
    options: &KafkaOptions,
    metadata_client: &Arc<BaseConsumer>,
) -> Result<(), TopicError> {
    let wanted = wanted(options);
    let mut known = existing(metadata_client, &wanted).await?;
    let missing: Vec<&(String, &str)> =
        wanted.iter().filter(|(name, _)| !known.iter().any(|(known, _)| known == name)).collect();
    if !missing.is_empty() {
        create(options, &missing).await?;
        // A different process may have created them first, with a different layout.
        known = existing(metadata_client, &wanted).await?;
    }
    known.iter().try_for_each(|(name, count)| check_layout(name, *count, options.partitions))
}

/// Whether the topic of events, and those of dead letters, are there with their number of
/// partitions. Changes nothing: a topic that an operator deleted while processes run is theirs to
/// make again.
pub(crate) async fn check_existing(
    options: &KafkaOptions,
    metadata_client: &Arc<BaseConsumer>,
) -> (Result<(), TopicError>, Result<(), TopicError>) {
    let wanted = wanted(options);
    let known = match existing(metadata_client, &wanted).await {
        Ok(known) => known,
        Err(error) => return (Err(error), Ok(())),
    };
    let partitions = options.partitions;
    let state = |name: &String| match known.iter().find(|(known, _)| known == name) {
        Some((name, count)) => check_layout(name, *count, partitions),
        None => Err(TopicError::Unusable(format!(
            "topic {name} does not exist any more: make it again with {partitions} partitions, or \
             restart a process, which makes missing topics"
        ))),
    };
    let mut states = wanted.iter().map(|(name, _)| state(name));
    let events = states.next().unwrap_or(Ok(()));
    (events, states.collect())
}

/// The topics of the service, each with its retention.
fn wanted(options: &KafkaOptions) -> Vec<(String, &'static str)> {
    let events = (options.topic.clone(), EVENT_RETENTION_MS);
    let dead_letters = ConsumerGroup::ALL
        .iter()
        .map(|group| (options.dead_letter_topic(group.0), DEAD_LETTER_RETENTION_MS));
    std::iter::once(events).chain(dead_letters).collect()
}

fn check_layout(name: &str, count: usize, partitions: u16) -> Result<(), TopicError> {
    if count == usize::from(partitions) {
        return Ok(());
    }
    Err(TopicError::Unusable(format!(
        "topic {name} has {count} partitions, but kafka.partitions = {partitions}: \
         set kafka.partitions to {count}, or start with a new topic (changing the number \
         loses the order of events)"
    )))
}

async fn create(options: &KafkaOptions, missing: &[&(String, &str)]) -> Result<(), TopicError> {
    let admin: AdminClient<DefaultClientContext> =
        client::base(options).create().map_err(|e| TopicError::Unusable(e.to_string()))?;
    // -1: the broker's default.replication.factor applies.
    let replication = || TopicReplication::Fixed(-1);
    let topics: Vec<NewTopic<'_>> = missing
        .iter()
        .map(|(name, retention)| {
            NewTopic::new(name, i32::from(options.partitions), replication())
                .set("retention.ms", retention)
        })
        .collect();
    let timeouts = AdminOptions::new()
        .operation_timeout(Some(METADATA_TIMEOUT))
        .request_timeout(Some(METADATA_TIMEOUT));
    let results = admin
        .create_topics(&topics, &timeouts)
        .await
        .map_err(|e| failure(e, "to create topics"))?;
    for result in results {
        match result {
            Ok(name) => tracing::info!(topic = name, "created a topic"),
            // A different process was faster.
            Err((_, Code::TopicAlreadyExists)) => {}
            Err((name, code)) => {
                let action = format!("to create topic {name}");
                return Err(denied(code, &action)
                    .unwrap_or(TopicError::Unavailable { action, source: code.into() }));
            }
        }
    }
    Ok(())
}
