//! How the bus is reached and laid out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use tagfast_events::{ClusterName, Partition};
use tagfast_resilience::Secret;

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

/// TLS and authentication.
#[derive(Debug, Clone, Default)]
pub struct Security {
    /// Whether connections use TLS; without it events can be read on the network.
    pub tls: bool,
    /// The authority that signed the brokers' certificates; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// Credentials; `None`: no authentication.
    pub sasl: Option<Sasl>,
}

/// SASL credentials.
#[derive(Debug, Clone)]
pub struct Sasl {
    /// The SASL mechanism.
    pub mechanism: SaslMechanism,
    /// The user name.
    pub user: String,
    /// The password.
    pub password: Secret,
}

/// A SASL mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    /// The password in clear text: only with TLS.
    Plain,
    /// SCRAM with SHA-256.
    ScramSha256,
    /// SCRAM with SHA-512.
    ScramSha512,
}

impl SaslMechanism {
    /// Kafka's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}
