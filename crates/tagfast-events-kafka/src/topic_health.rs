//! Whether the topics are as this process needs them, checked again while it runs.
//!
//! How it fails: while the topic of events is missing, or has a different number of partitions,
//! nothing is published into it and nothing is read from it. Publishing goes on when it is right
//! again; reading does, too, except after the number of partitions was raised: a member that was
//! given a partition that is gone again needs a restart. A broker that does not answer is named,
//! and its clients go on trying.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_resilience::task::{BackgroundTask, StopSignal};
use tagfast_resilience::{ErrorChain, OutageLog};

use crate::metadata_client::MetadataClient;
use crate::options::KafkaOptions;
use crate::topics::{self, TopicError};

/// Between two checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// What was last found about the topics.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
enum Found {
    #[default]
    Right,
    /// No broker says, or a topic of dead letters is wrong. Events go on.
    Named(String),
    /// The topic of events cannot be used; the text says what to do.
    Unusable(String),
}

/// What is known about the topics of a process.
#[derive(Debug, Default)]
pub(crate) struct TopicHealth(Mutex<Found>);

impl TopicHealth {
    /// Why the topics must not be used; `None` if they may.
    pub(crate) fn unusable(&self) -> Option<String> {
        match &*self.0.lock() {
            Found::Unusable(problem) => Some(problem.clone()),
            Found::Right | Found::Named(_) => None,
        }
    }

    /// What is wrong with the topics or their brokers; `None` if nothing is.
    pub(crate) fn problem(&self) -> Option<String> {
        match &*self.0.lock() {
            Found::Unusable(problem) | Found::Named(problem) => Some(problem.clone()),
            Found::Right => None,
        }
    }

    /// Notes the state of the topic of events, and of those of dead letters.
    fn note(&self, events: &Result<(), TopicError>, dead_letters: &Result<(), TopicError>) {
        *self.0.lock() = match (events, dead_letters) {
            (Err(TopicError::Unusable(problem)), _) => Found::Unusable(problem.clone()),
            (Err(error), _) | (Ok(()), Err(error)) => Found::Named(ErrorChain(error).to_string()),
            (Ok(()), Ok(())) => Found::Right,
        };
    }
}

/// Checks the topics until the task is stopped or dropped.
pub(crate) fn watch(
    health: Arc<TopicHealth>,
    options: Arc<KafkaOptions>,
    metadata_client: Arc<MetadataClient>,
) -> BackgroundTask {
    BackgroundTask::spawn("topic watch", async move |stop: StopSignal| {
        let outage = OutageLog::new("using the topics");
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
            }
            let client = metadata_client.get();
            let found = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                found = topics::check_existing(&options, &client) => found,
            };
            let (events, dead_letters) = &found;
            health.note(events, dead_letters);
            match events.as_ref().and(dead_letters.as_ref()) {
                Ok(()) => {
                    outage.recovered();
                }
                Err(error) => {
                    outage.failed(error);
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_topic_that_is_wrong_stops_its_use() {
        let health = TopicHealth::default();
        assert_eq!((health.unusable(), health.problem()), (None, None));
        let silent = || {
            let source = "timed out".into();
            Err(TopicError::Unavailable { action: "to list topics".to_owned(), source })
        };
        health.note(&silent(), &silent());
        assert!(health.unusable().is_none() && health.problem().is_some());
        let wrong = || Err(TopicError::Unusable("16 partitions".to_owned()));
        health.note(&Ok(()), &wrong());
        assert!(health.unusable().is_none() && health.problem().is_some());
        health.note(&wrong(), &Ok(()));
        assert_eq!(health.unusable().as_deref(), Some("16 partitions"));
        health.note(&Ok(()), &Ok(()));
        assert_eq!((health.unusable(), health.problem()), (None, None));
    }
}
