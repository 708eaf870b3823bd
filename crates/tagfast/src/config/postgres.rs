//! The part of a configuration that names PostgreSQL clusters.

use std::path::PathBuf;
use std::time::Duration;

use tagfast_domain::EpochOrdinal;
use tagfast_resilience::{Address, Secret};
use tagfast_sharding::ShardMap;
use tagfast_store_postgres::{OnLag, ReplicatedMeans, SynchronousCommit};

use super::cache::{RedisConfig, redis};
use super::events::{KafkaConfig, OpenSearchConfig, kafka, opensearch};
use super::keys::{SERVER, STATE, STORE};
use super::login::{LoginConfig, login};
use super::secrets::CredentialFile;
use super::values::{Values, is_http_url};

/// One cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Patroni's scope.
    pub scope: String,
    /// The logical shards that it holds, for example `0-31`.
    pub shards: String,
    /// The REST addresses of its Patroni members.
    pub patroni: Vec<Address>,
    /// The ordinal above which its epochs must lie; `None` = it took over no shards.
    pub epoch_floor: Option<EpochOrdinal>,
}

/// How PostgreSQL's certificates are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// No TLS.
    Off,
    /// The certificate must be of a known authority.
    VerifyCa,
    /// The certificate must be of a known authority and name the node's address.
    VerifyFull,
}

/// PostgreSQL clusters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresConfig {
    /// The clusters, in the order of the shard map.
    pub clusters: Vec<ClusterConfig>,
    /// etcd's client URLs.
    pub etcd: Vec<Address>,
    /// Who the service is in etcd; `None` = etcd asks for no user.
    pub etcd_login: Option<LoginConfig>,
    /// The database on every cluster.
    pub database: String,
    /// The role.
    pub user: String,
    /// File with the role's password.
    pub password_file: PathBuf,
    /// TLS to the nodes.
    pub tls: TlsMode,
    /// File with the authorities' certificates; empty with [`TlsMode::Off`].
    pub tls_ca_file: PathBuf,
    /// Connections of this process that write to each cluster.
    pub writer_connections: usize,
    /// Upper bound of concurrent read statements at one database node.
    pub read_concurrency: usize,
    /// Upper bound of read statements per second to one database node; 0 = none.
    pub reads_per_second: u32,
    /// How old a replica may be.
    pub replica_age_max: Duration,
    /// The state Redis; `None` = every process counts everything for itself.
    pub state_redis: Option<RedisConfig>,
    /// Disk space of each cluster's outbox, in bytes.
    pub outbox_max_bytes: u64,
    /// What a write waits for before it is acknowledged.
    pub synchronous_commit: SynchronousCommit,
    /// The span of acknowledged writes that one failover may lose.
    pub max_loss: Duration,
    /// What happens to writes beyond it.
    pub on_lag: OnLag,
    /// What `Durability: replicated` waits for.
    pub replicated_means: ReplicatedMeans,
    /// Directory for the copies of the journals; `None` = no copies.
    pub journal_dir: Option<PathBuf>,
    /// Memory of each cluster's journal, in bytes, and disk of its copy.
    pub journal_max_bytes: usize,
    /// How long a write waits for a primary.
    pub primary_wait: Duration,
    /// Orders shard maps.
    pub shard_map_version: u64,
    /// The bus; `None` = events are not published.
    pub kafka: Option<KafkaConfig>,
    /// The search index; `None` = no search.
    pub opensearch: Option<OpenSearchConfig>,
}

impl PostgresConfig {
    /// The file of the role's password.
    pub fn password(&self) -> CredentialFile<Secret> {
        CredentialFile::password("store.password_file", &self.password_file)
    }

    /// The file of the authorities' certificates; `None` without TLS.
    pub fn tls_authorities(&self) -> Option<CredentialFile<Vec<u8>>> {
        (self.tls != TlsMode::Off)
            .then(|| CredentialFile::authorities("store.tls_ca_file", &self.tls_ca_file))
    }

    /// Whether a server's certificate must name the node's address.
    pub fn tls_names(&self) -> bool {
        self.tls == TlsMode::VerifyFull
    }
}

/// Splits `SCOPE=REST`, an item of a list.
fn scoped<'a>(
    item: &'a str,
    key: &str,
    example: &str,
    values: &mut Values<'_>,
) -> Option<(&'a str, &'a str)> {
    let pair = item
        .split_once('=')
        .map(|(scope, rest)| (scope.trim(), rest.trim()))
        .filter(|(s, r)| !s.is_empty() && !r.is_empty());
    if pair.is_none() {
        values.refuse(format!("{key} holds {item:?}; write SCOPE=..., for example {example:?}"));
    }
    pair
}

/// Puts the items of a list into their clusters. `put` returns false for a malformed value.
fn for_each_cluster(
    clusters: &mut [ClusterConfig],
    items: &[String],
    (key, example): (&str, &str),
    values: &mut Values<'_>,
    put: impl Fn(&mut ClusterConfig, &str) -> bool,
) {
    for item in items {
        let Some((scope, value)) = scoped(item, key, example, values) else { continue };
        match clusters.iter_mut().find(|c| c.scope == scope) {
            None => values.refuse(format!("{key} names {scope:?}, which is not in store.clusters")),
            Some(cluster) => {
                if !put(cluster, value) {
                    values.refuse(format!("{key} holds {item:?}; write it as {example:?}"));
                }
            }
        }
    }
}

fn clusters(values: &mut Values<'_>) -> Vec<ClusterConfig> {
    let mut clusters: Vec<ClusterConfig> = Vec::new();
    for item in values.list(&STORE.clusters) {
        if let Some((scope, shards)) = scoped(&item, "store.clusters", "c0=0-63", values) {
            let (scope, shards) = (scope.to_owned(), shards.to_owned());
            clusters.push(ClusterConfig { scope, shards, patroni: Vec::new(), epoch_floor: None });
        }
    }
    let patroni = values.list(&STORE.patroni);
    let about = ("store.patroni", "c0=http://127.0.0.1:8008");
    for_each_cluster(&mut clusters, &patroni, about, values, |cluster, url| {
        cluster.patroni.push(Address::new(url));
        is_http_url(url)
    });
    let floors = values.list(&STORE.epoch_floors);
    let about = ("store.epoch_floors", "c0=1800000000000");
    for_each_cluster(&mut clusters, &floors, about, values, |cluster, ordinal| {
        cluster.epoch_floor = ordinal.parse().ok().map(EpochOrdinal);
        cluster.epoch_floor.is_some()
    });
    let shards = clusters.iter().map(|c| (c.scope.as_str(), c.shards.as_str()));
    if let Err(error) = ShardMap::new(1, shards) {
        values.refuse(format!("store.clusters: {error}"));
    }
    clusters
}

fn tls(values: &mut Values<'_>) -> (TlsMode, PathBuf) {
    let mode = match values.choice(&STORE.tls) {
        Some("verify-ca") => TlsMode::VerifyCa,
        Some("verify-full") => TlsMode::VerifyFull,
        Some(_) | None => TlsMode::Off,
    };
    let ca_file = values.text(&STORE.tls_ca_file);
    if mode != TlsMode::Off && ca_file.is_none() {
        values.refuse(
            "store.tls needs store.tls_ca_file, the certificates of the authority that signed the \
             servers'",
        );
    }
    (mode, ca_file.map(PathBuf::from).unwrap_or_default())
}

pub(super) fn postgres(values: &mut Values<'_>) -> PostgresConfig {
    let clusters = clusters(values);
    let etcd = values.list(&STORE.etcd);
    let etcd: Vec<Address> = etcd.into_iter().map(Address::new).collect();
    if etcd.is_empty() || !etcd.iter().all(|url| is_http_url(url.expose())) {
        values
            .refuse("store.etcd needs etcd's client URLs, for example [\"http://127.0.0.1:2379\"]");
    }
    let password_file = values.text(&STORE.password_file).map(PathBuf::from);
    if password_file.is_none() {
        values.refuse("store.kind = \"postgres\" needs store.password_file");
    }
    if values.list(&SERVER.signing_key_file).is_empty() {
        values.refuse(
            "store.kind = \"postgres\" needs server.signing_key_file: all nodes must open each \
             other's tokens (make one: head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n' > F)",
        );
    }
    let (tls, tls_ca_file) = tls(values);
    PostgresConfig {
        clusters,
        etcd,
        etcd_login: login(values, &STORE.etcd_user, &STORE.etcd_password_file),
        database: values.text(&STORE.database).unwrap_or_default(),
        user: values.text(&STORE.user).unwrap_or_default(),
        password_file: password_file.unwrap_or_default(),
        tls,
        tls_ca_file,
        writer_connections: values.size(&STORE.writer_connections),
        read_concurrency: values.size(&STORE.read_concurrency),
        reads_per_second: values.small(&STORE.reads_per_second),
        replica_age_max: values.millis(&STORE.replica_max_age_ms),
        state_redis: redis(
            values,
            &STATE.redis_url,
            &STATE.redis_password_file,
            (&STATE.sentinel_user, &STATE.sentinel_password_file),
        ),
        outbox_max_bytes: values.number(&STORE.outbox_max_bytes),
        synchronous_commit: match values.choice(&STORE.synchronous_commit) {
            Some("on") => SynchronousCommit::On,
            Some(_) | None => SynchronousCommit::Local,
        },
        max_loss: values.millis(&STORE.max_loss_ms),
        on_lag: match values.choice(&STORE.on_lag) {
            Some("availability") => OnLag::Availability,
            Some(_) | None => OnLag::Hold,
        },
        replicated_means: match values.choice(&STORE.replicated_means) {
            Some("one") => ReplicatedMeans::One,
            Some(_) | None => ReplicatedMeans::All,
        },
        journal_dir: values.text(&STORE.journal_dir).map(PathBuf::from),
        journal_max_bytes: values.size(&STORE.journal_max_bytes),
        primary_wait: values.millis(&STORE.primary_wait_ms),
        shard_map_version: values.number(&STORE.shard_map_version),
        kafka: kafka(values),
        opensearch: opensearch(values),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::config::sources::gather;

    fn resolve_text(store: &str) -> (PostgresConfig, Vec<String>) {
        let text = format!(
            "[server]\nsigning_key_file = [\"k\"]\n[store]\nkind = \"postgres\"\n\
             etcd = [\"http://e:2379\"]\npassword_file = \"p\"\n{store}"
        );
        let sources = gather(Some((Path::new("t.toml"), &text)), &BTreeMap::new(), &[]).unwrap();
        let mut values = Values::new(&sources);
        let config = postgres(&mut values);
        (config, values.into_errors())
    }

    #[test]
    fn clusters_are_joined_from_their_lists() {
        let (config, errors) = resolve_text(
            "clusters = [\"a=0-31\", \"b=32-63\"]\npatroni = [\"b=http://h:8008\"]\nepoch_floors = [\"a=17\"]\n\
             tls = \"verify-full\"\ntls_ca_file = \"ca.pem\"",
        );
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(config.clusters[0].epoch_floor, Some(EpochOrdinal(17)));
        assert_eq!(config.clusters[1].patroni, [Address::new("http://h:8008")]);
        assert_eq!(
            (config.tls, config.tls_ca_file),
            (TlsMode::VerifyFull, PathBuf::from("ca.pem"))
        );
    }

    #[test]
    fn the_bound_of_loss_is_read_and_has_defaults() {
        let of = |text: &str| {
            let (config, errors) = resolve_text(&format!("clusters = [\"a=0-63\"]\n{text}"));
            assert_eq!(errors, Vec::<String>::new(), "{text}");
            (config.max_loss, config.on_lag, config.replicated_means, config.journal_max_bytes)
        };
        let second = Duration::from_secs(1);
        assert_eq!(of(""), (second, OnLag::Hold, ReplicatedMeans::All, 256 << 20));
        let changed = of("max_loss_ms = 200\non_lag = \"availability\"\n\
                          replicated_means = \"one\"\njournal_max_bytes = 1048576");
        assert_eq!(changed, (second / 5, OnLag::Availability, ReplicatedMeans::One, 1 << 20));
    }

    #[test]
    fn the_journal_is_copied_only_where_a_directory_is_named() {
        let of = |text: &str| {
            let (config, errors) = resolve_text(&format!("clusters = [\"a=0-63\"]\n{text}"));
            assert_eq!(errors, Vec::<String>::new(), "{text}");
            config.journal_dir
        };
        assert_eq!(of(""), None);
        assert_eq!(of("journal_dir = \"/x y\""), Some(PathBuf::from("/x y")));
    }

    #[test]
    fn a_bound_out_of_range_is_refused_with_why() {
        for (value, why) in [(199, "Too low: a short stall"), (60_001, "Too high: a failover")] {
            let (_, errors) =
                resolve_text(&format!("clusters = [\"a=0-63\"]\nmax_loss_ms = {value}"));
            let told = format!("store.max_loss_ms is {value}; it must be 200 to 60000. {why}");
            assert!(matches!(&errors[..], [error] if error.starts_with(&told)), "{errors:?}");
        }
    }

    #[test]
    fn each_fault_names_its_key() {
        for (store, word) in [
            ("clusters = [\"a=0-31\"]", "store.clusters"),
            ("clusters = [\"a=0-40\", \"b=32-63\"]", "store.clusters"),
            ("clusters = [\"0-63\"]", "store.clusters"),
            ("clusters = [\"a=0-63\"]\npatroni = [\"b=http://h\"]", "store.patroni"),
            ("clusters = [\"a=0-63\"]\npatroni = [\"a=h:8008\"]", "store.patroni"),
            ("clusters = [\"a=0-63\"]\nepoch_floors = [\"a=soon\"]", "store.epoch_floors"),
            ("clusters = [\"a=0-63\"]\ntls = \"yes\"", "store.tls"),
            ("clusters = [\"a=0-63\"]\ntls = \"verify-ca\"", "store.tls_ca_file"),
            ("clusters = [\"a=0-63\"]\nwriter_connections = 99", "store.writer_connections"),
            ("clusters = [\"a=0-63\"]\nread_concurrency = 0", "store.read_concurrency"),
            ("clusters = [\"a=0-63\"]\nreads_per_second = 99999999", "store.reads_per_second"),
            ("clusters = [\"a=0-63\"]\nreplica_max_age_ms = 999", "store.replica_max_age_ms"),
            ("clusters = [\"a=0-63\"]\nmax_loss_ms = 199", "store.max_loss_ms"),
            ("clusters = [\"a=0-63\"]\nmax_loss_ms = 60001", "store.max_loss_ms"),
            ("clusters = [\"a=0-63\"]\non_lag = \"lose\"", "store.on_lag"),
            ("clusters = [\"a=0-63\"]\nreplicated_means = \"two\"", "store.replicated_means"),
            ("clusters = [\"a=0-63\"]\njournal_max_bytes = 9", "store.journal_max_bytes"),
        ] {
            let (_, errors) = resolve_text(store);
            assert!(errors.iter().any(|e| e.contains(word)), "{store}: {errors:?}");
        }
    }
}
