//! The users and passwords of a stack whose servers ask for them.
//!
//! PostgreSQL always asks. With [`StackOptions::auth`](super::StackOptions) etcd asks for a user
//! whose role has no more rights than the service needs, both Redis servers have a password, Kafka
//! wants SASL (SCRAM-SHA-256), and a gate in front of OpenSearch wants HTTP basic authentication,
//! because the package of OpenSearch has no security plugin.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The service's name at every server that asks for one.
pub(super) const USER: &str = "tagfast";

/// A server with a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Secured {
    /// The role of the service on every cluster.
    Postgres,
    /// The user of the service in etcd.
    Etcd,
    /// The cache Redis.
    Redis,
    /// The state Redis.
    StateRedis,
    /// The user of the service in Kafka.
    Kafka,
    /// The gate in front of OpenSearch.
    OpenSearch,
}

impl Secured {
    /// Those that ask only with [`StackOptions::auth`](super::StackOptions).
    pub(super) const OPTIONAL: [Self; 5] =
        [Self::Etcd, Self::Redis, Self::StateRedis, Self::Kafka, Self::OpenSearch];

    /// Name of the password's file in the stack's folder.
    pub(super) fn file_name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres-password",
            Self::Etcd => "etcd-password",
            Self::Redis => "redis-password",
            Self::StateRedis => "state-redis-password",
            Self::Kafka => "kafka-password",
            Self::OpenSearch => "opensearch-password",
        }
    }
}

/// The passwords with which the servers start, and where they are changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuthInfo {
    /// Of etcd's administrator.
    pub(super) etcd_root: String,
    /// The service's password at each server, as it was at the start.
    pub(super) service: String,
    /// Kafka's listener for its own tools, which asks for nothing.
    pub(super) kafka_admin: Option<SocketAddr>,
    /// The folder of Kafka's libraries.
    pub(super) kafka_libs: PathBuf,
    /// The gate in front of OpenSearch.
    pub(super) gate: Option<SocketAddr>,
}
