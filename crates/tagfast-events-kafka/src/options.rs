//! How the bus is reached and laid out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tagfast_events::{ClusterName, Partition};

use crate::security::Security;

/// How long the client keeps a record that it has not delivered: not longer than the caller waits,
/// which retries.
pub(crate) const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a metadata request to a broker may take.
pub(crate) const METADATA_TIMEOUT: Duration = Duration::from_secs(5);

/// How the bus is reached and laid out.
#[derive(Debug, Clone)]
pub struct KafkaOptions {
    /// `host:port` of some brokers; the client learns the others from them.
    pub brokers: Vec<String>,
    /// The topic of events.
    pub topic: String,
    /// Its number of partitions, at most 64 (the logical shards). Fixed when the topic is created:
    /// a different number moves contents to other partitions, where their order is lost.
    pub partitions: u16,
    /// TLS and authentication.
    pub security: Security,
    /// Name of this process in dead letters.
    pub member: String,
    /// The clusters whose shards feed each partition: a partition is complete as far as the
    /// slowest of them.
    pub clusters: BTreeMap<Partition, BTreeSet<ClusterName>>,
    /// Groups in which this process is the only member, each with the suffix that names it: it
    /// reads every partition and shares no work with other processes.
    pub standalone_groups: Vec<(String, String)>,
}

impl KafkaOptions {
    /// The group id on the broker, prefixed by the topic: other applications may have an `indexer`
    /// too.
    pub fn group_id(&self, group: &str) -> String {
        match self.standalone_groups.iter().find(|(standalone, _)| standalone == group) {
            Some((_, suffix)) => format!("{}.{group}.{suffix}", self.topic),
            None => format!("{}.{group}", self.topic),
        }
    }

    /// The topic of a group's dead letters.
    pub fn dead_letter_topic(&self, group: &str) -> String {
        format!("{}.{group}.dlq", self.topic)
    }
}
