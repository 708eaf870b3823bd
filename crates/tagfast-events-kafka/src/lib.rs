//! The bus on Apache Kafka, or on any broker that speaks its protocol.
//!
//! One topic carries the events of all clusters. The partition of a content is its logical shard
//! modulo the number of partitions, so that the relay of a cluster knows the partitions of its
//! shards. Each consumer group has a topic for its dead letters with the same number of partitions.
//!
//! How it fails. While the brokers are unreachable, publishing, polling and parking fail for now
//! ([`BusError::Unavailable`](tagfast_events::BusError::Unavailable)); nothing is skipped. A topic
//! with a different number of partitions, one that is missing, or one that this user may not use,
//! is refused with what to do, at the start and while the process runs. A topic that was made
//! again is found out by the records that are not in it ([`tagfast_events::Anchor`]): nothing is
//! skipped.

mod anchor_reader;
mod bus;
mod client;
mod consumer;
mod dead_letters;
mod feed;
mod group_member;
mod metadata_client;
mod options;
mod producers;
mod publisher;
mod record;
mod reverse_scan;
mod rotation;
mod security;
mod topic_health;
mod topics;

pub use bus::KafkaBus;
pub use dead_letters::KafkaDeadLetterReader;
pub use options::KafkaOptions;
pub use publisher::Publisher;
pub use reverse_scan::EpochHistory;
pub use security::{Sasl, SaslMechanism, Security};
pub use topics::TopicError;
