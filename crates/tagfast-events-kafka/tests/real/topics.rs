//! Topics: created, checked, refused with what to do.

use std::time::{Duration, Instant};

use tagfast_events_kafka::{KafkaBus, TopicError};
use tagfast_testkit::stack::ports::free_ports;

use crate::support;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_different_number_of_partitions_is_refused() {
    let (mut options, _, _quiet) = support::fresh().await;
    options.partitions = 16;
    let refused =
        KafkaBus::new(options.clone()).expect("the settings are fine").check_topics().await;
    let Err(TopicError::Unusable(message)) = refused else { panic!("16 is not 8: {refused:?}") };
    assert!(
        message.contains("set kafka.partitions to 8") && message.contains(&options.topic),
        "{message}"
    );
    options.partitions = 65;
    assert!(
        matches!(KafkaBus::new(options), Err(TopicError::Unusable(_))),
        "there are 64 logical shards"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_are_there_are_used() {
    let (options, _, _quiet) = support::fresh().await;
    support::bus(&options).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_is_reported_in_time() {
    let (mut options, _, _quiet) = support::fresh().await;
    let unused = free_ports(std::net::Ipv4Addr::LOCALHOST.into(), 1).expect("a port")[0];
    options.brokers = vec![unused.to_string()];
    let bus = KafkaBus::new(options).expect("it connects later");
    let sent_at = Instant::now();
    let refused = bus.check_topics().await;
    assert!(matches!(refused, Err(TopicError::Unavailable { .. })), "{refused:?}");
    assert!(sent_at.elapsed() < Duration::from_secs(10), "{:?}: {refused:?}", sent_at.elapsed());
}
