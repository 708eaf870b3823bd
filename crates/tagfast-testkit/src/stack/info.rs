//! Description of a running stack: `stack.json`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::auth::{AuthInfo, Secured, USER};
use super::host::Process;

/// Partitions of the topics of a stack.
pub(super) const KAFKA_PARTITIONS: u16 = 8;

/// The description of a running stack.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StackInfo {
    /// PostgreSQL clusters.
    pub clusters: Vec<ClusterInfo>,
    /// etcd members; with several, each endpoint of the configuration is one of them.
    pub etcd: Vec<ServerInfo>,
    /// The cache Redis.
    pub redis: Option<ServerInfo>,
    /// The state Redis.
    pub state_redis: Option<ServerInfo>,
    /// Kafka.
    pub kafka: Option<KafkaInfo>,
    /// OpenSearch.
    pub opensearch: Option<ServerInfo>,
    /// Configuration file for `tagfast serve --config`.
    pub config: PathBuf,
    /// Control address of the fault proxy.
    pub proxy: SocketAddr,
    /// Folder of data and logs; removed by `down`.
    pub base: PathBuf,
    /// Role and database of the service, and the file with the role's password.
    pub database: DatabaseInfo,
    /// How servers authenticate; `None`: only PostgreSQL does.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub auth: Option<AuthInfo>,
    /// Whether every server was started. With `false` only `down` makes sense.
    pub ready: bool,
}

/// One PostgreSQL cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterInfo {
    /// `c0`, `c1`, ...
    pub name: String,
    /// Patroni's scope.
    pub scope: String,
    /// Nodes of the cluster.
    pub nodes: Vec<NodeInfo>,
}

/// One node: a Patroni and its PostgreSQL.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeInfo {
    /// `c0-n0`; also its member name in Patroni.
    pub name: String,
    /// PostgreSQL behind the fault proxy: the address for clients.
    pub postgres: SocketAddr,
    /// Patroni's REST API behind the fault proxy.
    pub patroni: String,
    /// Process id of Patroni.
    pub patroni_pid: u32,
    /// Start time of that process, in clock ticks since boot.
    pub patroni_started: u64,
    /// Data directory of PostgreSQL.
    pub data_dir: PathBuf,
    /// PostgreSQL without the proxy.
    pub direct_postgres: SocketAddr,
    /// Patroni without the proxy.
    pub direct_patroni: SocketAddr,
    /// Network namespace; `None` without `--netns`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub netns: Option<String>,
}

/// A server of one process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerInfo {
    /// URL for clients, behind the fault proxy.
    pub url: String,
    /// The server without the proxy.
    pub direct: SocketAddr,
    /// Process id.
    pub pid: u32,
    /// Start time of that process, in clock ticks since boot.
    pub started: u64,
    /// Network namespace; `None`: that of the host.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub netns: Option<String>,
}

/// Kafka.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KafkaInfo {
    /// Bootstrap address, behind the fault proxy.
    pub bootstrap: SocketAddr,
    /// Process id.
    pub pid: u32,
    /// Start time of that process, in clock ticks since boot.
    pub started: u64,
}

/// How the service connects to its database.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DatabaseInfo {
    /// Database name.
    pub name: String,
    /// Role name.
    pub user: String,
    /// File with the password of the role.
    pub password_file: PathBuf,
    /// Certificate authority of the nodes, for TLS.
    pub tls_ca_file: PathBuf,
}

impl NodeInfo {
    /// Patroni's process.
    pub fn process(&self) -> Process {
        Process { pid: self.patroni_pid, started: self.patroni_started }
    }
}

impl ServerInfo {
    /// The server's process.
    pub fn process(&self) -> Process {
        Process { pid: self.pid, started: self.started }
    }
}

impl StackInfo {
    /// Reads `stack.json` of a folder.
    pub fn read(dir: &Path) -> Result<Self> {
        let file = dir.join("stack.json");
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("no stack runs in {} (no stack.json)", dir.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} cannot be read", file.display()))
    }

    /// Writes `stack.json` into a folder, atomically.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir)?;
        let draft = dir.join("stack.json.new");
        std::fs::write(&draft, serde_json::to_string_pretty(self)?)?;
        std::fs::rename(&draft, dir.join("stack.json")).context("cannot write stack.json")
    }

    /// The description of a stack that is being started.
    pub(super) fn starting(dir: &Path, base: &Path) -> Self {
        let file = |name: &str| dir.join(name);
        Self {
            clusters: Vec::new(),
            etcd: Vec::new(),
            redis: None,
            state_redis: None,
            kafka: None,
            opensearch: None,
            config: file("tagfast.toml"),
            proxy: SocketAddr::from(([127, 0, 0, 1], 0)),
            base: base.to_owned(),
            database: DatabaseInfo {
                name: String::new(),
                user: String::new(),
                password_file: file("postgres-password"),
                tls_ca_file: file("ca.pem"),
            },
            auth: None,
            ready: false,
        }
    }

    /// The cluster of this name.
    pub fn cluster(&self, name: &str) -> Option<&ClusterInfo> {
        self.clusters.iter().find(|c| c.name == name)
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.clusters.iter().flat_map(|c| &c.nodes).find(|n| n.name == name)
    }

    /// The file in which the service finds its password.
    pub fn password_file(&self, secured: Secured) -> PathBuf {
        self.config.with_file_name(secured.file_name())
    }

    /// The files of passwords that only some servers ask for.
    pub(super) fn optional_password_files(&self) -> impl Iterator<Item = PathBuf> {
        Secured::OPTIONAL.into_iter().map(|secured| self.password_file(secured))
    }

    /// The part of the service's configuration with users and password files.
    fn login_keys(&self) -> Vec<(&'static str, &'static str, String)> {
        let file = |secured| format!("{:?}", self.password_file(secured));
        let user = format!("{USER:?}");
        let mut keys = vec![
            ("store", "etcd_user", user.clone()),
            ("store", "etcd_password_file", file(Secured::Etcd)),
        ];
        if self.redis.is_some() {
            keys.push(("cache", "redis_password_file", file(Secured::Redis)));
            keys.push(("state", "redis_password_file", file(Secured::StateRedis)));
        }
        if self.kafka.is_some() {
            keys.push(("kafka", "sasl_mechanism", "\"SCRAM-SHA-256\"".to_owned()));
            keys.push(("kafka", "sasl_user", user.clone()));
            keys.push(("kafka", "sasl_password_file", file(Secured::Kafka)));
        }
        if self.opensearch.is_some() {
            keys.push(("search", "opensearch_user", user));
            keys.push(("search", "opensearch_password_file", file(Secured::OpenSearch)));
        }
        keys
    }

    /// Configuration of the service for this stack.
    pub fn service_config(&self) -> String {
        let list = |items: Vec<String>| {
            items.iter().map(|i| format!("{i:?}")).collect::<Vec<_>>().join(", ")
        };
        let etcd = list(self.etcd.iter().map(|e| e.url.clone()).collect());
        let each = 64 / self.clusters.len().max(1);
        let shards = |n: usize| {
            (n * each, if n + 1 == self.clusters.len() { 63 } else { (n + 1) * each - 1 })
        };
        let clusters = self
            .clusters
            .iter()
            .enumerate()
            .map(|(n, c)| format!("{}={}-{}", c.scope, shards(n).0, shards(n).1));
        let patroni = self
            .clusters
            .iter()
            .flat_map(|c| c.nodes.iter().map(|n| format!("{}={}", c.scope, n.patroni)));
        let url = |server: &Option<ServerInfo>| {
            server.as_ref().map(|s| s.url.clone()).unwrap_or_default()
        };
        let brokers = list(self.kafka.iter().map(|k| k.bootstrap.to_string()).collect());
        let DatabaseInfo { name, user, password_file, tls_ca_file } = &self.database;
        let mut text = format!(
            "# Written by `cargo xtask stack up`.\n\n[server]\nsigning_key_file = [{:?}]\n\n[store]\nkind = \"postgres\"\n\
             clusters = [{}]\netcd = [{etcd}]\npatroni = [{}]\ndatabase = {name:?}\nuser = {user:?}\n\
             password_file = {password_file:?}\n# tls = \"verify-full\"\ntls_ca_file = {tls_ca_file:?}\n",
            self.config.with_file_name("signing.key"),
            list(clusters.collect()),
            list(patroni.collect()),
        );
        let with_users = self.auth.as_ref().map_or_else(Vec::new, |_| self.login_keys());
        let of_section = |name: &str| {
            with_users
                .iter()
                .filter(|(section, ..)| *section == name)
                .map(|(_, key, value)| format!("{key} = {value}\n"))
                .collect::<String>()
        };
        text.push_str(&of_section("store"));
        let mut section = |name: &str, key: &str, value: String| {
            if !value.is_empty() && value != "\"\"" && value != "[]" {
                text.push_str(&format!("\n[{name}]\n{key} = {value}\n"));
                text.push_str(&of_section(name));
            }
        };
        section("cache", "redis_url", format!("{:?}", url(&self.redis)));
        section("state", "redis_url", format!("{:?}", url(&self.state_redis)));
        // As many as the broker's topics have.
        let partitions = format!("\npartitions = {KAFKA_PARTITIONS}");
        let partitions = if self.kafka.is_some() { partitions } else { String::new() };
        section("kafka", "brokers", format!("[{brokers}]{partitions}"));
        section("search", "opensearch_url", format!("{:?}", url(&self.opensearch)));
        text
    }
}
