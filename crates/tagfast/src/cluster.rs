//! The composition root of the cluster mode: the store on PostgreSQL and the API over it.
//!
//! Until there is a bus the outbox is drained into nothing, and what needs the bus (search, popular tags) answers
//! `not_in_this_mode`.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use tagfast_api::{ApiParts, Operations, OperationsError, Readiness, StatusReport};
use tagfast_popular::RecountReport;
use tagfast_resilience::Clock;
use tagfast_store::{Sealer, SharedStore};
use tagfast_store_postgres::{ClusterOptions, ClusterStatus, Discard, PostgresOptions, PostgresStore};

use crate::compose::MetricsText;
use crate::config::{Config, PostgresConfig};
use crate::failure::Failure;

/// All parts of a running node of the cluster mode.
pub struct ClusterNode {
    store: Arc<PostgresStore>,
    parts: ApiParts,
}

impl ClusterNode {
    /// Starts the tasks of every cluster; a cluster that is down is waited for while the others serve.
    pub fn start(
        config: &Config,
        postgres: &PostgresConfig,
        clock: Arc<dyn Clock>,
        metrics: MetricsText,
    ) -> Result<Self, Failure> {
        let options = PostgresOptions {
            clusters: postgres
                .clusters
                .iter()
                .map(|c| ClusterOptions {
                    name: c.scope.clone(),
                    scope: c.scope.clone(),
                    shards: c.shards.clone(),
                    patroni: c.patroni.clone(),
                    moved_from: c.epochs_above,
                })
                .collect(),
            map_version: postgres.map_version,
            etcd: postgres.etcd.clone(),
            database: postgres.database.clone(),
            user: postgres.user.clone(),
            password: postgres.password().map_err(Failure::new)?,
            tls: postgres.tls().map_err(Failure::new)?,
            limits: config.limits,
            clock: Arc::clone(&clock),
            node: node_name(),
            lanes: postgres.lanes,
            hold: postgres.hold,
        };
        let store = PostgresStore::open(options, Arc::new(Discard))
            .map_err(|e| Failure::new(format!("the store does not open: {e}")))?;
        let keys = config.signing_keys().map_err(Failure::new)?;
        let operations = ClusterOperations { store: Arc::clone(&store), metrics, started: Instant::now() };
        let parts = ApiParts {
            store: Arc::clone(&store) as SharedStore,
            search: None,
            popular: None,
            verdicts: false,
            operations: Arc::new(operations),
            sealer: Sealer::new(&keys),
            clock,
            auth: config.auth().map_err(|e| Failure::config(&[e]))?,
            domain_limits: config.limits,
            limits: config.api_limits.clone(),
        };
        Ok(Self { store, parts })
    }

    /// What the API is made from.
    pub fn parts(&self) -> ApiParts {
        self.parts.clone()
    }

    /// Finishes what waits. Requests must have ended before.
    pub async fn stop(self) {
        self.store.close().await;
    }
}

/// This machine and process, in epochs and logs.
fn node_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "node".to_owned());
    format!("{}-{}", host.trim(), std::process::id())
}

struct ClusterOperations {
    store: Arc<PostgresStore>,
    metrics: MetricsText,
    started: Instant,
}

/// What a cluster cannot do, or does with a weaker promise.
fn degraded(cluster: ClusterStatus) -> Vec<(String, String)> {
    let problem = cluster.problem.map(|problem| (format!("writes of {}", cluster.name), problem));
    let warnings = cluster.warnings.into_iter().map(|warning| (format!("installation of {}", cluster.name), warning));
    problem.into_iter().chain(warnings).collect()
}

const NO_BUS: &str = "search and popular tags need the bus, which this mode does not have yet";

#[async_trait]
impl Operations for ClusterOperations {
    async fn readiness(&self) -> Vec<Readiness> {
        let problem = |c: ClusterStatus| Some(format!("{}: {}", c.name, c.problem?));
        let problems: Vec<String> =
            self.store.status().into_iter().filter(|c| c.primary.is_none()).filter_map(problem).collect();
        vec![Readiness { part: "store", problem: (!problems.is_empty()).then(|| problems.join("; ")) }]
    }

    async fn status(&self) -> StatusReport {
        let clusters = self.store.status();
        let epochs = clusters.iter().map(|c| format!("{}={}", c.name, c.epoch.unwrap_or(0)));
        StatusReport {
            mode: "postgres".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: epochs.collect::<Vec<_>>().join(","),
            uptime_seconds: self.started.elapsed().as_secs(),
            degraded: clusters.into_iter().flat_map(degraded).collect(),
            ..StatusReport::default()
        }
    }

    async fn reindex(&self) -> Result<u64, OperationsError> {
        Err(OperationsError::Failed(NO_BUS.to_owned()))
    }

    async fn recount(&self, _repair: bool) -> Result<RecountReport, OperationsError> {
        Err(OperationsError::Failed(NO_BUS.to_owned()))
    }

    fn metrics(&self) -> String {
        (self.metrics)()
    }
}
