//! Brings changed credentials into force without a restart.
//!
//! The Kafka client takes user, password and authorities when it is created. A changed content is
//! tried by a client of its own until a broker accepts it; then all clients are replaced: producers
//! when nothing of theirs is in flight, so that no older record follows a newer one, and group
//! members after they have released their partitions. Clients with the former content work on until
//! then, so that it does not matter whether the file or the broker changes first.
//!
//! How it fails: a content that brokers refuse is named by its credential and tried again every
//! [`TRIAL_INTERVAL`]; nothing is replaced.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use tagfast_resilience::task::{self, StopSignal};

use crate::client;
use crate::options::KafkaOptions;
use crate::producers::Producers;
use crate::security::ClientCredentials;

/// Between two checks of the files' contents.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Between two trials of a content that is not in force, and between two checks that brokers
/// still accept the one that is: open connections survive a change of a password.
const TRIAL_INTERVAL: Duration = Duration::from_secs(2);
/// How long a trial waits for an answer.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// How long one request of a trial waits; the client's errors are looked at after it.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(250);

/// What brokers say to credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trial {
    Accepted,
    Refused,
    /// No broker answered.
    Unknown,
}

/// Notes that a broker refused the credentials, or that its certificate is not trusted.
#[derive(Default)]
struct TrialContext {
    refused: AtomicBool,
}

impl TrialContext {
    fn note(&self, error: &KafkaError) {
        if matches!(error.rdkafka_error_code(), Some(Code::Authentication | Code::SSL)) {
            self.refused.store(true, Ordering::Release);
        }
    }
}

impl ClientContext for TrialContext {
    fn error(&self, error: KafkaError, _reason: &str) {
        self.note(&error);
    }
}

impl ConsumerContext for TrialContext {}

/// Asks the brokers for metadata with these credentials. Blocks.
fn try_credentials(options: &KafkaOptions, credentials: &ClientCredentials) -> Trial {
    let mut config = client::base_with(options, credentials);
    // What a trial meets is reported by its result.
    config.set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg);
    let created = config.create_with_context(TrialContext::default());
    let trial: BaseConsumer<TrialContext> = match created {
        Ok(trial) => trial,
        // Authorities that the client cannot use.
        Err(_) => return Trial::Refused,
    };
    let end = Instant::now() + TRIAL_TIMEOUT;
    loop {
        if trial.fetch_metadata(Some(&options.topic), REQUEST_TIMEOUT).is_ok() {
            return Trial::Accepted;
        }
        while let Some(event) = trial.poll(Duration::ZERO) {
            if let Err(error) = event {
                trial.context().note(&error);
            }
        }
        if trial.context().refused.load(Ordering::Acquire) {
            return Trial::Refused;
        }
        if Instant::now() >= end {
            return Trial::Unknown;
        }
    }
}

async fn run_trial(options: &Arc<KafkaOptions>, credentials: &ClientCredentials) -> Trial {
    let (options, credentials) = (Arc::clone(options), credentials.clone());
    let trial = task::blocking(move || try_credentials(&options, &credentials)).await;
    trial.unwrap_or(Trial::Unknown)
}

/// Tries changed credentials and brings them into force, until the task is stopped.
pub(crate) async fn follow_changes(
    options: Arc<KafkaOptions>,
    producers: Arc<Producers>,
    stop: StopSignal,
) {
    let security = &options.security;
    let work = async {
        let mut tried = (ClientCredentials::default(), tokio::time::Instant::now());
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            let newest = security.newest();
            if tried.0 == newest && tried.1.elapsed() < TRIAL_INTERVAL {
                continue;
            }
            let trial = run_trial(&options, &newest).await;
            tried = (newest.clone(), tokio::time::Instant::now());
            let in_force = security.in_force();
            match trial {
                Trial::Accepted => {
                    security.report(&newest, true);
                    if newest != in_force {
                        security.put_in_force(newest);
                        producers.renew().await;
                        tracing::info!("Kafka accepts the changed credentials; clients use them");
                    }
                }
                Trial::Refused => {
                    security.report(&newest, false);
                    if newest != in_force && run_trial(&options, &in_force).await == Trial::Accepted
                    {
                        security.report(&in_force, true);
                    }
                }
                Trial::Unknown => {}
            }
        }
    };
    stop.run_until_cancelled(work).await;
}
