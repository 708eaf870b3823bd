//! The users and passwords of a stack whose servers ask for them.
//!
//! PostgreSQL always asks. With [`StackOptions::auth`](super::StackOptions) etcd asks for a user
//! whose role has no more rights than the service needs, both Redis servers have a password, Kafka
//! wants SASL (SCRAM-SHA-256), and a gate in front of OpenSearch wants HTTP basic authentication,
//! because the package of OpenSearch has no security plugin.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::http::Client;

/// The service's name at every server that asks for one.
pub(super) const USER: &str = "tagfast";
/// The administrator's name in etcd.
pub(super) const ROOT: &str = "root";

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

/// Makes etcd ask for users: an administrator, who is Patroni too, and the service, which may read
/// what Patroni writes and write its own keys.
pub(super) fn enable_etcd(etcd: SocketAddr, auth: &AuthInfo) -> Result<()> {
    let mut client = Client::new(etcd).with_timeout(Duration::from_secs(5));
    let mut call = |path: &str, body: Value| {
        let answer = client.request("POST", path, &[], Some(&body.to_string()))?;
        if answer.status != 200 {
            bail!("etcd answered {} to {path}: {}", answer.status, answer.text());
        }
        Ok(())
    };
    let (read, read_write) = (("READ", "/service/"), ("READWRITE", "/tagfast/v1/"));
    call("/v3/auth/user/add", json!({"name": ROOT, "password": auth.etcd_root}))?;
    call("/v3/auth/role/add", json!({"name": ROOT}))?;
    call("/v3/auth/user/grant", json!({"user": ROOT, "role": ROOT}))?;
    call("/v3/auth/user/add", json!({"name": USER, "password": auth.service}))?;
    call("/v3/auth/role/add", json!({"name": USER}))?;
    for (kind, prefix) in [read, read_write] {
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let (key, range_end) = (STANDARD.encode(prefix), STANDARD.encode(end));
        let perm = json!({"permType": kind, "key": key, "range_end": range_end});
        call("/v3/auth/role/grant", json!({"name": USER, "perm": perm}))?;
    }
    call("/v3/auth/user/grant", json!({"user": USER, "role": USER}))?;
    call("/v3/auth/enable", json!({}))
}

/// Patroni's login in etcd.
pub(super) fn patroni_login(auth: &AuthInfo) -> (&'static str, &str) {
    (ROOT, &auth.etcd_root)
}
