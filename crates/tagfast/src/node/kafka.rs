//! The event bus of a cluster on Kafka. Only builds with the feature `kafka` have it.
//!
//! How it fails: topics that this node may not use, or that have a different number of
//! partitions, are refused at the start; while the node runs they are named, and neither written
//! nor read. A broker that does not answer does not fail the start:
//! events wait in the outbox, and the topics are checked in the background until they are right.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tagfast_client::error::CliError;
use tagfast_events::dead_letters::DeadLetterIngest;
use tagfast_events::{Bus, ClusterName, ConsumerGroup, Partition};
use tagfast_events_kafka::{KafkaBus, KafkaOptions, Sasl, Security, TopicError};
use tagfast_resilience::task::{BackgroundTask, StopSignal};
use tagfast_resilience::{Breakers, ErrorChain};
use tagfast_sharding::{LogicalShard, ShardMap};
use tagfast_store_postgres::{OutboxSink, PostgresDeadLetters};
use tokio::sync::watch;

use super::events::ClusterBus;
use super::identity::{host_name, node_name};
use crate::config::{Config, KafkaConfig, PostgresConfig, SaslMechanism};
use crate::credentials::CredentialFiles;
use crate::outbox::KafkaOutbox;

/// Name of the topic that carries the events.
const EVENT_TOPIC: &str = "tagfast.taggings.v1";
/// How long a start waits for brokers that may be unreachable.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two checks of the topics while no broker has confirmed them.
const BROKER_RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// The bus with the tasks that belong to it.
struct KafkaEvents {
    bus: Arc<KafkaBus>,
    /// Checks the topics until they are right; `None` if the brokers answered at the start.
    topic_check: Option<BackgroundTask>,
    /// Copies dead letters into the store; empty in a process without the role `replayer`.
    ingest: OnceLock<DeadLetterIngest>,
}

/// Connects to Kafka. Unusable topics are an error; an unreachable broker is not.
pub(super) async fn connect(
    config: &Config,
    postgres: &PostgresConfig,
    kafka: &KafkaConfig,
    credentials: &CredentialFiles,
) -> Result<Arc<dyn ClusterBus>, CliError> {
    let refused = |e: TopicError| CliError::new(e.to_string()).with_source(e);
    let bus = KafkaBus::new(KafkaOptions {
        brokers: kafka.brokers.clone(),
        topic: EVENT_TOPIC.to_owned(),
        partitions: kafka.partitions,
        security: security(kafka, credentials)?,
        member: node_name(),
        clusters: clusters_by_partition(postgres, kafka.partitions)?,
        // Without leaderboards that every process can read, each process counts everything.
        standalone_groups: match postgres.state_redis {
            None => vec![(ConsumerGroup::ANALYTICS.0.to_owned(), place_name(&config.data_dir))],
            Some(_) => Vec::new(),
        },
    })
    .map_err(refused)?;
    let topic_check = match tokio::time::timeout(START_TIMEOUT, bus.check_topics()).await {
        Ok(Ok(())) => None,
        Ok(Err(error @ TopicError::Unusable(_))) => return Err(refused(error)),
        Ok(Err(error @ TopicError::Unavailable { .. })) => {
            tracing::warn!(error = %ErrorChain(&error), "events wait in the outbox until Kafka answers");
            Some(check_topics_later(&bus))
        }
        Err(_) => {
            tracing::warn!(
                brokers = ?kafka.brokers,
                "events wait in the outbox until Kafka answers"
            );
            Some(check_topics_later(&bus))
        }
    };
    bus.watch_topics();
    Ok(Arc::new(KafkaEvents { bus, topic_check, ingest: OnceLock::new() }))
}

fn check_topics_later(bus: &Arc<KafkaBus>) -> BackgroundTask {
    let bus = Arc::clone(bus);
    BackgroundTask::spawn("topic check", async move |stop: StopSignal| {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(BROKER_RETRY_INTERVAL) => {}
            }
            match bus.check_topics().await {
                Ok(()) => return tracing::info!("Kafka answers"),
                Err(error @ TopicError::Unusable(_)) => {
                    tracing::error!(error = %ErrorChain(&error), "the topics cannot be used")
                }
                Err(error @ TopicError::Unavailable { .. }) => {
                    tracing::debug!(error = %ErrorChain(&error), "Kafka still does not answer")
                }
            }
        }
    })
}

#[async_trait]
impl ClusterBus for KafkaEvents {
    fn bus(&self) -> Arc<dyn Bus> {
        Arc::clone(&self.bus) as _
    }

    fn outbox_sink(&self, breakers: &Arc<Breakers>) -> Arc<dyn OutboxSink> {
        Arc::new(KafkaOutbox::new(self.bus.publisher(), breakers))
    }

    fn start_ingest(&self, store: &Arc<PostgresDeadLetters>, leads: &watch::Receiver<bool>) {
        self.ingest.get_or_init(|| DeadLetterIngest::spawn(&self.bus, store, leads));
    }

    async fn stop(&self) {
        if let Some(ingest) = self.ingest.get() {
            ingest.stop().await;
        }
        if let Some(check) = &self.topic_check {
            // Its panic is logged already.
            let _ = check.stop().await;
        }
        self.bus.stop().await;
    }
}

/// TLS and authentication towards the brokers; password and authorities come from their files.
fn security(kafka: &KafkaConfig, credentials: &CredentialFiles) -> Result<Security, CliError> {
    let sasl = match &kafka.sasl {
        None => None,
        Some(sasl) => Some(Sasl {
            mechanism: match sasl.mechanism {
                SaslMechanism::Plain => tagfast_events_kafka::SaslMechanism::Plain,
                SaslMechanism::ScramSha256 => tagfast_events_kafka::SaslMechanism::ScramSha256,
                SaslMechanism::ScramSha512 => tagfast_events_kafka::SaslMechanism::ScramSha512,
            },
            user: sasl.user.clone(),
            password: credentials.open(sasl.password())?,
        }),
    };
    let authorities = credentials.open_some(kafka.tls_authorities())?;
    Ok(Security::new(kafka.tls, authorities, sasl))
}

/// The clusters whose shards publish into each partition.
fn clusters_by_partition(
    postgres: &PostgresConfig,
    partitions: u16,
) -> Result<BTreeMap<Partition, BTreeSet<ClusterName>>, CliError> {
    let shards = postgres.clusters.iter().map(|c| (c.scope.as_str(), c.shards.as_str()));
    let map = ShardMap::new(postgres.shard_map_version, shards)
        .map_err(|e| CliError::new(e.to_string()).with_source(e))?;
    let mut clusters: BTreeMap<Partition, BTreeSet<ClusterName>> = BTreeMap::new();
    for shard in LogicalShard::all() {
        let partition = Partition(u16::from(shard.number()) % partitions);
        let cluster = &postgres.clusters[usize::from(map.cluster_of(shard))];
        clusters.entry(partition).or_default().insert(cluster.scope.as_str().into());
    }
    Ok(clusters)
}

/// This machine and data directory. Stays the same over restarts, so that a restarted process
/// finds the place of its counts again.
fn place_name(dir: &Path) -> String {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    format!("{}{}", host_name(), absolute.display()).chars().map(safe).collect()
}
