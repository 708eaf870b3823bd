//! Settings of the Kafka clients.

use std::path::PathBuf;

use rdkafka::ClientConfig;
use tagfast_events::Group;

use crate::KafkaOptions;

/// How brokers are spoken to.
#[derive(Debug, Clone, Default)]
pub struct Security {
    /// TLS; without it events can be read on the way.
    pub tls: bool,
    /// The authority that signed the brokers' certificates; none: the system's.
    pub ca_file: Option<PathBuf>,
    /// Who we are; none: nobody asks.
    pub sasl: Option<Sasl>,
}

/// A name and its password.
#[derive(Clone)]
pub struct Sasl {
    /// How the password is shown.
    pub mechanism: SaslMechanism,
    /// The name.
    pub user: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Sasl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sasl")
            .field("mechanism", &self.mechanism)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// How a password is shown to a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    /// As it is: only with TLS.
    Plain,
    /// SCRAM with SHA-256.
    ScramSha256,
    /// SCRAM with SHA-512.
    ScramSha512,
}

impl SaslMechanism {
    /// Kafka's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// What all clients have in common.
pub(crate) fn base(options: &KafkaOptions) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", options.brokers.join(","))
        .set("client.id", "tagfast")
        // A broker that comes back is found within a second.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set("socket.timeout.ms", "10000")
        .set("socket.connection.setup.timeout.ms", "3000")
        .set("socket.keepalive.enable", "true")
        .set("log.connection.close", "false");
    let protocol = match (options.security.tls, options.security.sasl.is_some()) {
        (false, false) => "plaintext",
        (false, true) => "sasl_plaintext",
        (true, false) => "ssl",
        (true, true) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if let Some(file) = &options.security.ca_file {
        config.set("ssl.ca.location", file.to_string_lossy());
    }
    if let Some(sasl) = &options.security.sasl {
        config.set("sasl.mechanism", sasl.mechanism.as_str());
        config.set("sasl.username", &sasl.user).set("sasl.password", &sasl.password);
    }
    config
}

/// Every acknowledged record is on all in-sync brokers, once, in the order it was given.
pub(crate) fn producer(options: &KafkaOptions) -> ClientConfig {
    let mut config = base(options);
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "2")
        .set("batch.num.messages", "10000")
        .set("compression.type", "lz4")
        .set("queue.buffering.max.messages", "100000")
        .set("queue.buffering.max.kbytes", "65536")
        // Who waits asks again; a record is not kept longer than its sender.
        .set("message.timeout.ms", "10000")
        .set("request.timeout.ms", "5000");
    config
}

/// A member of a group.
pub(crate) fn member(options: &KafkaOptions, group: Group) -> ClientConfig {
    let mut config = base(options);
    config
        .set("group.id", options.group_id(group.0))
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // Where to begin is our decision; an offset that is gone is an error, never a silent jump.
        .set("auto.offset.reset", "error")
        .set("session.timeout.ms", "10000")
        .set("heartbeat.interval.ms", "1000")
        .set("max.poll.interval.ms", "300000")
        .set("fetch.wait.max.ms", "100")
        .set("fetch.error.backoff.ms", "200")
        .set("queued.max.messages.kbytes", "16384")
        .set("fetch.message.max.bytes", "1048576");
    config
}
