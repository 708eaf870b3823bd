//! Settings of the Kafka clients, and calls to them that block.

use rdkafka::ClientConfig;
use rdkafka::error::KafkaResult;
use tagfast_events::{BusError, ConsumerGroup};
use tagfast_resilience::task;

use crate::options::KafkaOptions;

/// Runs a call that waits for a broker on the blocking pool.
///
/// # Errors
///
/// [`BusError::Unavailable`] if the call fails.
pub(crate) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> KafkaResult<T> + Send + 'static,
) -> Result<T, BusError> {
    task::blocking(call).await.map_err(BusError::unavailable)?.map_err(BusError::unavailable)
}

/// Settings that all clients share.
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

/// A producer: every acknowledged record is on all in-sync brokers, once, in the order given.
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
        // The caller retries: the client must not keep a record longer than the caller waits.
        .set("message.timeout.ms", "10000")
        .set("request.timeout.ms", "5000");
    config
}

/// A member of a consumer group.
pub(crate) fn member(options: &KafkaOptions, group: ConsumerGroup) -> ClientConfig {
    let mut config = base(options);
    config
        .set("group.id", options.group_id(group.0))
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // The sink decides where to begin; an offset that is gone must be an error, never a silent
        // jump.
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

/// A reader without a group of its own. The protocol requires a group id; it commits nothing.
pub(crate) fn reader(options: &KafkaOptions, group: &str) -> ClientConfig {
    let mut config = base(options);
    config
        .set("group.id", options.group_id(group))
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest");
    config
}
