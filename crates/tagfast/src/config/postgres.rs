//! The part of a configuration that names PostgreSQL clusters.

use std::path::PathBuf;
use std::time::Duration;

use tagfast_domain::EpochOrdinal;
use tagfast_sharding::ShardMap;
use tagfast_store_postgres::Tls;

use super::bus::{self, KafkaConfig, OpenSearchConfig};
use super::keys::RawConfig;
use super::resolved::{is_http_url, number, text};

/// One cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Patroni's scope.
    pub scope: String,
    /// The logical shards it holds.
    pub shards: String,
    /// Its Patronis' REST addresses.
    pub patroni: Vec<String>,
    /// The ordinal above which its epochs must lie.
    pub epochs_above: Option<EpochOrdinal>,
}

/// How PostgreSQL's certificates are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// No TLS.
    Off,
    /// Of our authority.
    VerifyCa,
    /// Of our authority and for this address.
    VerifyFull,
}

/// PostgreSQL clusters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresConfig {
    /// Each of them.
    pub clusters: Vec<ClusterConfig>,
    /// etcd's client URLs.
    pub etcd: Vec<String>,
    /// The database.
    pub database: String,
    /// The role.
    pub user: String,
    /// File with its password.
    pub password_file: PathBuf,
    /// TLS to the nodes.
    pub tls: TlsMode,
    /// File with the authorities' certificates.
    pub tls_ca_file: PathBuf,
    /// Writer lanes of each cluster.
    pub lanes: usize,
    /// Most read statements at once at one database node. Too high: a slow node gets slower before
    /// it is noticed. Too low: reads are refused that it could answer.
    pub read_concurrency: usize,
    /// Most read statements a second to one database node; 0: no fixed cap. Too high: without
    /// effect. Too low: reads are refused although the database is idle.
    pub reads_per_second: u32,
    /// The state Redis; without it every process counts everything for itself.
    pub state_redis: Option<String>,
    /// How much disk each cluster's outbox may take.
    pub outbox_max_bytes: u64,
    /// How long a write waits for a primary.
    pub hold: Duration,
    /// Orders shard maps.
    pub map_version: u64,
    /// The bus; without one events are not published.
    pub kafka: Option<KafkaConfig>,
    /// The search index.
    pub opensearch: Option<OpenSearchConfig>,
}

impl PostgresConfig {
    /// The password.
    pub fn password(&self) -> Result<String, String> {
        let text = std::fs::read_to_string(&self.password_file)
            .map_err(|e| format!("store.password_file {}: {e}", self.password_file.display()))?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// What is needed for TLS.
    pub fn tls(&self) -> Result<Option<Tls>, String> {
        if self.tls == TlsMode::Off {
            return Ok(None);
        }
        let authorities = std::fs::read(&self.tls_ca_file)
            .map_err(|e| format!("store.tls_ca_file {}: {e}", self.tls_ca_file.display()))?;
        Ok(Some(Tls { authorities, names: self.tls == TlsMode::VerifyFull }))
    }
}

/// `SCOPE=REST` of a list's item.
fn scoped<'a>(
    item: &'a str,
    key: &str,
    example: &str,
    errors: &mut Vec<String>,
) -> Option<(&'a str, &'a str)> {
    let pair = item
        .split_once('=')
        .map(|(scope, rest)| (scope.trim(), rest.trim()))
        .filter(|(s, r)| !s.is_empty() && !r.is_empty());
    if pair.is_none() {
        errors.push(format!("{key} holds {item:?}; write SCOPE=..., for example {example:?}"));
    }
    pair
}

fn clusters(raw: &RawConfig, errors: &mut Vec<String>) -> Vec<ClusterConfig> {
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let mut clusters: Vec<ClusterConfig> = Vec::new();
    for item in list(&raw.store.clusters) {
        if let Some((scope, shards)) = scoped(&item, "store.clusters", "c0=0-63", errors) {
            let (scope, shards) = (scope.to_owned(), shards.to_owned());
            clusters.push(ClusterConfig { scope, shards, patroni: Vec::new(), epochs_above: None });
        }
    }
    let mut of_cluster = |key: &str,
                          items: Vec<String>,
                          example: &str,
                          put: &dyn Fn(&mut ClusterConfig, &str) -> bool| {
        for item in items {
            let Some((scope, value)) = scoped(&item, key, example, errors) else { continue };
            match clusters.iter_mut().find(|c| c.scope == scope) {
                None => {
                    errors.push(format!("{key} names {scope:?}, which is not in store.clusters"))
                }
                Some(cluster) => {
                    if !put(cluster, value) {
                        errors.push(format!("{key} holds {item:?}; write it as {example:?}"));
                    }
                }
            }
        }
    };
    of_cluster(
        "store.patroni",
        list(&raw.store.patroni),
        "c0=http://127.0.0.1:8008",
        &|cluster, url| {
            cluster.patroni.push(url.to_owned());
            is_http_url(url)
        },
    );
    of_cluster(
        "store.epochs_above",
        list(&raw.store.epochs_above),
        "c0=1800000000000",
        &|cluster, ordinal| {
            cluster.epochs_above = ordinal.parse().ok().map(EpochOrdinal);
            cluster.epochs_above.is_some()
        },
    );
    if let Err(error) =
        ShardMap::new(1, clusters.iter().map(|c| (c.scope.as_str(), c.shards.as_str())))
    {
        errors.push(format!("store.clusters: {error}"));
    }
    clusters
}

pub(super) fn postgres(raw: &RawConfig, errors: &mut Vec<String>) -> PostgresConfig {
    let store = &raw.store;
    let clusters = clusters(raw, errors);
    let etcd = store.etcd.clone().unwrap_or_default();
    if etcd.is_empty() || !etcd.iter().all(|url| is_http_url(url)) {
        errors.push(
            "store.etcd needs etcd's client URLs, for example [\"http://127.0.0.1:2379\"]"
                .to_owned(),
        );
    }
    let password_file = text(store.password_file.as_ref()).map(PathBuf::from);
    if password_file.is_none() {
        errors.push("store.kind = \"postgres\" needs store.password_file".to_owned());
    }
    if raw.server.signing_key_file.as_ref().is_none_or(Vec::is_empty) {
        errors.push(
            "store.kind = \"postgres\" needs server.signing_key_file: all nodes must open each other's tokens \
             (make one: head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n' > F)"
                .to_owned(),
        );
    }
    let tls = match store.tls.as_deref().unwrap_or("off") {
        "off" => TlsMode::Off,
        "verify-ca" => TlsMode::VerifyCa,
        "verify-full" => TlsMode::VerifyFull,
        other => {
            errors.push(format!(
                "store.tls is {other:?}; use \"off\", \"verify-ca\" or \"verify-full\""
            ));
            TlsMode::Off
        }
    };
    let tls_ca_file = text(store.tls_ca_file.as_ref()).map(PathBuf::from);
    if tls != TlsMode::Off && tls_ca_file.is_none() {
        errors.push(
            "store.tls needs store.tls_ca_file, the certificates of the authority that signed the servers'".to_owned(),
        );
    }
    PostgresConfig {
        clusters,
        etcd,
        database: text(store.database.as_ref()).unwrap_or_else(|| "tagfast".to_owned()),
        user: text(store.user.as_ref()).unwrap_or_else(|| "tagfast".to_owned()),
        password_file: password_file.unwrap_or_default(),
        tls,
        tls_ca_file: tls_ca_file.unwrap_or_default(),
        read_concurrency: number(
            store.read_concurrency,
            16,
            "store.read_concurrency",
            1..=1024,
            errors,
        ),
        reads_per_second: number(
            store.reads_per_second,
            0,
            "store.reads_per_second",
            0..=10_000_000,
            errors,
        ) as u32,
        lanes: number(store.lanes, 2, "store.lanes", 1..=16, errors),
        outbox_max_bytes: number(
            store.outbox_max_bytes,
            4 << 30,
            "store.outbox_max_bytes",
            1 << 20..=1 << 50,
            errors,
        ) as u64,
        hold: Duration::from_millis(number(
            store.hold_ms,
            10_000,
            "store.hold_ms",
            0..=600_000,
            errors,
        ) as u64),
        state_redis: text(raw.state.redis_url.as_ref()),
        map_version: store.map_version.unwrap_or(1),
        kafka: bus::kafka(raw, errors),
        opensearch: bus::opensearch(raw, errors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(store: &str) -> (PostgresConfig, Vec<String>) {
        let text = format!(
            "[server]\nsigning_key_file = [\"k\"]\n[store]\nkind = \"postgres\"\netcd = [\"http://e:2379\"]\n\
             password_file = \"p\"\n{store}"
        );
        let mut errors = Vec::new();
        let config = postgres(&toml::from_str(&text).unwrap(), &mut errors);
        (config, errors)
    }

    #[test]
    fn clusters_are_put_together_from_their_lists() {
        let (config, errors) = judged(
            "clusters = [\"a=0-31\", \"b=32-63\"]\npatroni = [\"b=http://h:8008\"]\nepochs_above = [\"a=17\"]\n\
             tls = \"verify-full\"\ntls_ca_file = \"ca.pem\"",
        );
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(config.clusters[0].epochs_above, Some(EpochOrdinal(17)));
        assert_eq!(config.clusters[1].patroni, ["http://h:8008"]);
        assert_eq!(
            (config.tls, config.tls_ca_file),
            (TlsMode::VerifyFull, PathBuf::from("ca.pem"))
        );
    }

    #[test]
    fn each_fault_names_its_key() {
        for (store, word) in [
            ("clusters = [\"a=0-31\"]", "store.clusters"),
            ("clusters = [\"a=0-40\", \"b=32-63\"]", "store.clusters"),
            ("clusters = [\"0-63\"]", "store.clusters"),
            ("clusters = [\"a=0-63\"]\npatroni = [\"b=http://h\"]", "store.patroni"),
            ("clusters = [\"a=0-63\"]\npatroni = [\"a=h:8008\"]", "store.patroni"),
            ("clusters = [\"a=0-63\"]\nepochs_above = [\"a=soon\"]", "store.epochs_above"),
            ("clusters = [\"a=0-63\"]\ntls = \"yes\"", "store.tls"),
            ("clusters = [\"a=0-63\"]\ntls = \"verify-ca\"", "store.tls_ca_file"),
            ("clusters = [\"a=0-63\"]\nlanes = 99", "store.lanes"),
            ("clusters = [\"a=0-63\"]\nread_concurrency = 0", "store.read_concurrency"),
            ("clusters = [\"a=0-63\"]\nreads_per_second = 99999999", "store.reads_per_second"),
        ] {
            let (_, errors) = judged(store);
            assert!(errors.iter().any(|e| e.contains(word)), "{store}: {errors:?}");
        }
    }
}
