//! Which servers a stack consists of.

use std::path::PathBuf;

use super::install::Needs;

/// Which servers a stack consists of.
#[derive(Debug, Clone)]
pub struct StackOptions {
    /// Number of PostgreSQL clusters.
    pub clusters: u8,
    /// Number of replicas in each cluster.
    pub replicas: u8,
    /// Number of members of etcd, which is there with the first cluster.
    pub etcd: u8,
    /// Two Redis servers: cache and state.
    pub redis: bool,
    /// A Kafka broker.
    pub kafka: bool,
    /// An OpenSearch node.
    pub opensearch: bool,
    /// Whether etcd, Redis, Kafka and OpenSearch ask for a user or a password; PostgreSQL always
    /// does. Only in a stack that this process owns.
    pub auth: bool,
    /// A network namespace for each PostgreSQL node and, where etcd has several members, for each
    /// of those, with a disk of its own; needs root.
    pub netns: bool,
    /// Patroni's `synchronous_mode`: it names a synchronous standby while one streams.
    pub synchronous: bool,
    /// PostgreSQL's `shared_buffers`.
    pub shared_buffers: String,
    /// Folder for `stack.json` and `tagfast.toml`.
    pub dir: PathBuf,
    /// Whether the stack ends with this process.
    pub owned: bool,
}

impl StackOptions {
    /// PostgreSQL clusters and etcd only, owned by this process, as most tests need them.
    pub fn clusters_only(clusters: u8, dir: impl Into<PathBuf>) -> Self {
        Self {
            clusters,
            replicas: 2,
            etcd: 1,
            redis: false,
            kafka: false,
            opensearch: false,
            auth: false,
            netns: false,
            synchronous: false,
            shared_buffers: "32MB".to_owned(),
            dir: dir.into(),
            owned: true,
        }
    }

    /// PostgreSQL clusters with Redis, Kafka and OpenSearch, owned by this process.
    pub fn complete(clusters: u8, dir: impl Into<PathBuf>) -> Self {
        let clusters = Self::clusters_only(clusters, dir);
        Self { redis: true, kafka: true, opensearch: true, ..clusters }
    }

    /// What must be installed for this stack.
    pub fn needs(&self) -> Needs {
        Needs {
            clusters: self.clusters > 0,
            redis: self.redis,
            kafka: self.kafka,
            opensearch: self.opensearch,
            netns: self.netns,
        }
    }
}
