//! The topics: made when they are missing, checked when they are there.

use std::sync::Arc;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::types::RDKafkaErrorCode as Code;
use tagfast_events::Group;

use crate::{ASK, KafkaOptions, client};

/// Events are kept for a week: a consumer that is behind for longer is rebuilt from the shards.
const EVENTS_KEPT_MS: &str = "604800000";
/// Dead letters are kept for two weeks.
const LETTERS_KEPT_MS: &str = "1209600000";

/// Why the topics cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// No broker answers; it may later.
    #[error("Kafka does not answer: {0}; look at kafka.brokers")]
    Unavailable(String),
    /// It will not work until somebody changes something.
    #[error("{0}")]
    Wrong(String),
}

fn refused(code: RDKafkaErrorCode, what: &str) -> Option<TopicError> {
    let denied = matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::SaslAuthenticationFailed
            | Code::Authentication
    );
    denied.then(|| {
        TopicError::Wrong(format!(
            "Kafka refuses us {what} ({code}): grant this user Describe, Create, Read and Write on the tagfast topics and Read \
             on its groups, or make the topics yourself"
        ))
    })
}

fn failure(error: &rdkafka::error::KafkaError, what: &str) -> TopicError {
    error
        .rdkafka_error_code()
        .and_then(|code| refused(code, what))
        .unwrap_or_else(|| TopicError::Unavailable(format!("{what}: {error}")))
}

/// Topic and how many partitions it has; those that are missing are left out.
async fn existing(asker: &Arc<BaseConsumer>) -> Result<Vec<(String, usize)>, TopicError> {
    let asker = Arc::clone(asker);
    let metadata = tokio::task::spawn_blocking(move || asker.fetch_metadata(None, ASK))
        .await
        .map_err(|e| TopicError::Unavailable(e.to_string()))?
        .map_err(|e| failure(&e, "to list topics"))?;
    Ok(metadata.topics().iter().map(|t| (t.name().to_owned(), t.partitions().len())).collect())
}

pub(crate) async fn check(
    options: &KafkaOptions,
    asker: &Arc<BaseConsumer>,
) -> Result<(), TopicError> {
    let partitions = usize::from(options.partitions);
    let events = (options.topic.clone(), EVENTS_KEPT_MS);
    let letters = Group::ALL.iter().map(|group| (options.letters_topic(group.0), LETTERS_KEPT_MS));
    let wanted: Vec<(String, &str)> = std::iter::once(events).chain(letters).collect();
    let mut known = existing(asker).await?;
    let missing: Vec<&(String, &str)> =
        wanted.iter().filter(|(name, _)| !known.iter().any(|(known, _)| known == name)).collect();
    if !missing.is_empty() {
        create(options, &missing).await?;
        // Somebody else may have made them, in another way.
        known = existing(asker).await?;
    }
    for (name, count) in known {
        let ours = wanted.iter().any(|(wanted, _)| *wanted == name);
        if ours && count != partitions {
            return Err(TopicError::Wrong(format!(
                "topic {name} has {count} partitions, but kafka.partitions = {partitions}: set kafka.partitions to {count}, \
                 or begin a topic anew (a change of the number loses the order of events)"
            )));
        }
    }
    Ok(())
}

async fn create(options: &KafkaOptions, missing: &[&(String, &str)]) -> Result<(), TopicError> {
    let admin: AdminClient<DefaultClientContext> =
        client::base(options).create().map_err(|e| TopicError::Wrong(e.to_string()))?;
    // The broker's default.replication.factor decides how many copies there are.
    let copies = || TopicReplication::Fixed(-1);
    let topics: Vec<NewTopic<'_>> = missing
        .iter()
        .map(|(name, kept)| {
            NewTopic::new(name, i32::from(options.partitions), copies()).set("retention.ms", kept)
        })
        .collect();
    let results = admin
        .create_topics(
            &topics,
            &AdminOptions::new().operation_timeout(Some(ASK)).request_timeout(Some(ASK)),
        )
        .await
        .map_err(|e| failure(&e, "to make topics"))?;
    for result in results {
        match result {
            Ok(name) => tracing::info!(topic = name, "made a topic"),
            // Somebody else was faster.
            Err((_, Code::TopicAlreadyExists)) => {}
            Err((name, code)) => {
                let what = format!("to make topic {name}");
                return Err(refused(code, &what).unwrap_or_else(|| {
                    TopicError::Unavailable(format!("topic {name} was not made: {code}"))
                }));
            }
        }
    }
    Ok(())
}
