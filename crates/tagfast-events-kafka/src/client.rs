//! Settings of the Kafka clients, and calls to them that block.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode as Code;
use tagfast_events::{BusError, ConsumerGroup};
use tagfast_resilience::{Backoff, task};

use crate::options::{DELIVERY_TIMEOUT, KafkaOptions, METADATA_TIMEOUT};
use crate::security::ClientCredentials;

/// Delays between the attempts of [`request`]; [`METADATA_TIMEOUT`] ends them.
const REQUEST_BACKOFF: Backoff = Backoff {
    retries: u32::MAX,
    base: Duration::from_millis(20),
    factor: 2,
    cap: Duration::from_millis(500),
};

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

/// Repeats a request that changes nothing while its answer only says that leaders or coordinators
/// are being elected, for at most [`METADATA_TIMEOUT`]: a broker knows a new topic, or a new
/// leader, a moment before it serves it. Blocks.
///
/// # Errors
///
/// The last answer; any other error at once.
#[expect(clippy::disallowed_methods, reason = "the calls block a thread of the blocking pool")]
pub(crate) fn request<T>(mut call: impl FnMut() -> KafkaResult<T>) -> KafkaResult<T> {
    let end = Instant::now() + METADATA_TIMEOUT;
    let mut attempt = 0;
    loop {
        let error = match call() {
            Err(error) if is_transient(&error) => error,
            answer => return answer,
        };
        let delay = REQUEST_BACKOFF.delay(attempt, fastrand::f64());
        match delay.filter(|delay| Instant::now() + *delay < end) {
            Some(delay) => std::thread::sleep(delay),
            None => return Err(error),
        }
        attempt += 1;
    }
}

/// Whether Kafka's protocol asks a client to repeat the request with fresh metadata.
fn is_transient(error: &KafkaError) -> bool {
    error.rdkafka_error_code().is_some_and(|code| {
        matches!(
            code,
            Code::LeaderNotAvailable
                | Code::NotLeaderForPartition
                | Code::ReplicaNotAvailable
                | Code::UnknownTopicOrPartition
                | Code::CoordinatorLoadInProgress
                | Code::CoordinatorNotAvailable
                | Code::NotCoordinator
        )
    })
}

/// Settings that all clients share, with the credentials in force.
pub(crate) fn base(options: &KafkaOptions) -> ClientConfig {
    base_with(options, &options.security.in_force())
}

/// Settings that all clients share, with these credentials.
pub(crate) fn base_with(options: &KafkaOptions, credentials: &ClientCredentials) -> ClientConfig {
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
        .set("log.connection.close", "false")
        // A topic that was made again is found within seconds.
        .set("topic.metadata.refresh.interval.ms", "5000");
    let protocol = match (options.security.tls, options.security.sasl.is_some()) {
        (false, false) => "plaintext",
        (false, true) => "sasl_plaintext",
        (true, false) => "ssl",
        (true, true) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if let Some(authorities) = &credentials.authorities {
        config.set("ssl.ca.pem", String::from_utf8_lossy(&authorities.value));
    }
    if let Some((sasl, password)) =
        options.security.sasl.as_ref().zip(credentials.password.as_ref())
    {
        config.set("sasl.mechanism", sasl.mechanism.as_str());
        config.set("sasl.username", &sasl.user).set("sasl.password", password.value.expose());
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
        .set("message.timeout.ms", DELIVERY_TIMEOUT.as_millis().to_string())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A request whose first `failures` answers are this code.
    fn answered(code: Code, failures: usize) -> (KafkaResult<()>, usize) {
        let mut calls = 0;
        let answer = request(|| {
            calls += 1;
            if calls <= failures { Err(KafkaError::MetadataFetch(code)) } else { Ok(()) }
        });
        (answer, calls)
    }

    #[test]
    fn a_request_outlives_an_election() {
        for code in [
            Code::LeaderNotAvailable,
            Code::NotLeaderForPartition,
            Code::UnknownTopicOrPartition,
            Code::CoordinatorLoadInProgress,
        ] {
            let (answer, calls) = answered(code, 3);
            assert!(answer.is_ok(), "{code}: {answer:?}");
            assert_eq!(calls, 4, "{code}");
        }
    }

    #[test]
    fn an_error_that_stays_is_told_at_once() {
        for code in [Code::TopicAuthorizationFailed, Code::AllBrokersDown, Code::InvalidTopic] {
            assert!(matches!(answered(code, usize::MAX), (Err(_), 1)), "{code}");
        }
    }
}
