//! A node of the cluster mode: the store on PostgreSQL, the bus on Kafka, the index on OpenSearch,
//! the counts in files of this process, and the API over them.
//!
//! Without Kafka the outbox is drained into nothing, and search and popular tags answer
//! `not_in_this_mode`. A server that is unreachable when the process starts is waited for in the
//! background; a configuration that can never work is refused at once. The consumers close first,
//! then the caches, then the store; a server that hangs holds the shutdown up for a bounded time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tagfast_api::{
    ApiServices, ByteBudget, DeadLetters, LimitStatus, Operations, OperationsError, Readiness,
    RunningOperation, StatusReport,
};
use tagfast_client::error::CliError;
use tagfast_popular::RecountReport;
use tagfast_resilience::{Breakers, Clock, LabelEnum, LimiterSnapshot};
use tagfast_search::{GuardOptions, GuardedIndex, SearchIndex};
use tagfast_search_opensearch::{OpenSearchIndex, ReindexError};
use tagfast_store::Sealer;
use tagfast_store::fair_queue::TenantWeights;
use tagfast_store_postgres::{
    ClusterOptions, ClusterStatus, EtcdLogin, FailingCalls, NullSink, OutboxSink, PostgresOptions,
    PostgresStore, Tls,
};

use super::cache::CacheLayer;
use super::dead_letters::webhook_options;
use super::events::{ClusterBus, EventPipeline, PipelineDeps};
use super::identity::node_name;
use super::roles::Roles;
use super::shutdown::bounded;
use crate::config::{Config, PostgresConfig};
use crate::consumers::Consumers;
use crate::credentials::CredentialFiles;
use crate::failover_notices::FailoverNotices;
use crate::telemetry::metrics::MetricsText;

/// How long etcd must not have answered before it is named: one poll may be late.
const ETCD_PROBLEM_AFTER: Duration = Duration::from_secs(2);

/// Said where a request or role needs the bus and none is configured.
const NO_BUS: &str = "search and popular tags need the bus: set kafka.brokers";

/// All parts of a running node of the cluster mode.
pub(crate) struct ClusterNode {
    store: Arc<PostgresStore>,
    operations: Arc<ClusterOperations>,
    /// `None`: no webhook is configured.
    failover_notices: Option<Arc<FailoverNotices>>,
    parts: ApiServices,
}

impl ClusterNode {
    /// Starts the tasks of every cluster. A cluster that is down does not fail the start; the
    /// others serve meanwhile.
    pub(crate) async fn start(
        config: &Config,
        postgres: &PostgresConfig,
        roles: Roles,
        clock: Arc<dyn Clock>,
        metrics: MetricsText,
    ) -> Result<Self, CliError> {
        if postgres.kafka.is_none() && roles != Roles::ALL && roles.needs_bus() {
            return Err(CliError::usage(format!("--role {}: {NO_BUS}", roles.names())));
        }
        let credentials = CredentialFiles::start();
        let bus = connect_bus(config, postgres, &credentials).await?;
        let breakers = Breakers::new(Arc::clone(&clock));
        let sink: Arc<dyn OutboxSink> = match &bus {
            Some(bus) => bus.outbox_sink(&breakers),
            None => Arc::new(NullSink),
        };
        let webhook = webhook_options(&config.dead_letters, &credentials)?;
        let failover_notices = webhook.map(|webhook| Arc::new(FailoverNotices::spawn(webhook)));
        let options = PostgresOptions {
            failover_observer: failover_notices.clone().map(|notices| notices as _),
            ..store_options(config, postgres, roles, (&clock, &breakers), &credentials)?
        };
        let store = PostgresStore::open(options, sink)
            .map_err(|e| CliError::new("the store does not open").with_source(e))?;
        let cache =
            CacheLayer::start(config, postgres, roles, &store, (&clock, &breakers), &credentials)?;
        let pipeline = match bus {
            Some(bus) => {
                let redis = cache.state.as_ref();
                let (store, clock, credentials) = (&store, &clock, &credentials);
                let deps =
                    PipelineDeps { config, postgres, roles, store, redis, clock, credentials };
                Some(EventPipeline::start(&deps, bus)?)
            }
            None => None,
        };
        let keys = credentials.open(config.signing_keys().map_err(CliError::new)?)?;
        let auth = config.auth(credentials.open_some(config.token_secret())?);
        let cached_store = cache.store(&store);
        let index = pipeline.as_ref().and_then(|pipeline| pipeline.index.clone());
        let index = index.map(|index| GuardedIndex::new(index, &breakers, GuardOptions::default()));
        let popular = pipeline.as_ref().and_then(|pipeline| pipeline.popular.clone());
        let dead_letters = pipeline.as_ref().map(|pipeline| DeadLetters {
            store: Arc::clone(&pipeline.dead_letter_store),
            auto_replay: config.dead_letters.auto_replay,
        });
        let operations = Arc::new(ClusterOperations {
            store: Arc::clone(&store),
            cache,
            index: index.clone(),
            roles,
            pipeline,
            credentials,
            metrics,
            started: Instant::now(),
        });
        let parts = ApiServices {
            store: cached_store,
            search: index.map(|index| index as _),
            popular,
            dead_letters,
            serves_product: roles.api,
            failovers: Some(Arc::clone(&store) as _),
            clusters: Some(Arc::clone(&store) as _),
            breakers,
            operations: Arc::clone(&operations) as _,
            sealer: Sealer::of(keys),
            clock,
            auth,
            domain_limits: config.limits,
            limits: config.api_limits.clone(),
            allowed_hosts: config.allowed_hosts.clone(),
            machine_limits: Vec::new(),
            byte_budget: ByteBudget::new(config.api_limits.in_flight_bytes),
            tasks: ApiServices::task_group(),
        };
        Ok(Self { store, operations, failover_notices, parts })
    }

    /// What the API is made from.
    pub(crate) fn parts(&self) -> ApiServices {
        self.parts.clone()
    }

    /// Stops the event pipeline, then the caches, then the store with its relays and watchers, then
    /// the notices of failovers that it had.
    /// Requests must have ended before. A step whose dependency hangs ends after a bounded time.
    pub(crate) async fn stop(self) {
        if let Some(pipeline) = &self.operations.pipeline {
            bounded("event pipeline", pipeline.stop()).await;
        }
        bounded("caches", self.operations.cache.stop()).await;
        bounded("store", self.store.close()).await;
        if let Some(notices) = &self.failover_notices {
            notices.stop().await;
        }
        self.operations.credentials.stop().await;
    }
}

/// The bus, if one is configured.
#[cfg(feature = "kafka")]
async fn connect_bus(
    config: &Config,
    postgres: &PostgresConfig,
    credentials: &CredentialFiles,
) -> Result<Option<Arc<dyn ClusterBus>>, CliError> {
    match &postgres.kafka {
        Some(kafka) => super::kafka::connect(config, postgres, kafka, credentials).await.map(Some),
        None => Ok(None),
    }
}

/// No bus: [`Config::resolve`] refuses brokers in a build without the feature `kafka`.
#[cfg(not(feature = "kafka"))]
#[expect(clippy::unused_async, reason = "the same signature as with the feature")]
async fn connect_bus(
    _config: &Config,
    postgres: &PostgresConfig,
    _credentials: &CredentialFiles,
) -> Result<Option<Arc<dyn ClusterBus>>, CliError> {
    match &postgres.kafka {
        Some(_) => Err(CliError::config(&[crate::config::WITHOUT_KAFKA.to_owned()])),
        None => Ok(None),
    }
}

fn store_options(
    config: &Config,
    postgres: &PostgresConfig,
    roles: Roles,
    (clock, breakers): (&Arc<dyn Clock>, &Arc<Breakers>),
    credentials: &CredentialFiles,
) -> Result<PostgresOptions, CliError> {
    let clusters = postgres.clusters.iter().map(|c| ClusterOptions {
        name: c.scope.clone(),
        scope: c.scope.clone(),
        shards: c.shards.clone(),
        patroni: c.patroni.clone(),
        moved_from: c.epoch_floor,
    });
    Ok(PostgresOptions {
        clusters: clusters.collect(),
        map_version: postgres.shard_map_version,
        etcd: postgres.etcd.clone(),
        etcd_login: match &postgres.etcd_login {
            None => None,
            Some(login) => Some(EtcdLogin {
                user: login.user.clone(),
                password: credentials.open(login.password())?,
            }),
        },
        database: postgres.database.clone(),
        user: postgres.user.clone(),
        password: credentials.open(postgres.password())?,
        tls: credentials
            .open_some(postgres.tls_authorities())?
            .map(|authorities| Tls { authorities, names: postgres.tls_names() }),
        limits: config.limits,
        clock: Arc::clone(clock),
        node: node_name(),
        lanes: postgres.writer_connections,
        outbox_bytes: postgres.outbox_max_bytes,
        synchronous_commit: postgres.synchronous_commit,
        max_loss: postgres.max_loss,
        on_lag: postgres.on_lag,
        replicated_means: postgres.replicated_means,
        // Only what answers writes has something to lose.
        journal_dir: postgres.journal_dir.clone().filter(|_| roles.api),
        journal_bytes_max: postgres.journal_max_bytes,
        relay: roles.relay,
        canaries: roles.api,
        hold: postgres.primary_wait,
        breakers: Arc::clone(breakers),
        read_concurrency: postgres.read_concurrency,
        reads_per_second: postgres.reads_per_second,
        replica_age_max: postgres.replica_age_max,
        tenant_weights: TenantWeights::new(config.tenant_weights.clone()),
        failover_observer: None,
    })
}

struct ClusterOperations {
    store: Arc<PostgresStore>,
    cache: CacheLayer,
    index: Option<Arc<GuardedIndex>>,
    roles: Roles,
    /// `None` without a bus.
    pipeline: Option<EventPipeline>,
    credentials: CredentialFiles,
    metrics: MetricsText,
    started: Instant,
}

impl ClusterOperations {
    fn search_index(&self) -> Option<&OpenSearchIndex> {
        self.pipeline.as_ref()?.index.as_deref()
    }

    fn consumers(&self) -> Result<&Consumers, OperationsError> {
        let pipeline = self.pipeline.as_ref();
        pipeline
            .map(|pipeline| &pipeline.consumers)
            .ok_or_else(|| OperationsError::Failed(NO_BUS.into()))
    }
}

/// What fails calls, for people: the cause, what to do, and the error's own words.
fn failing_text(failing: &FailingCalls) -> String {
    let FailingCalls { cause, lasts, share_percent, error, .. } = failing;
    let mut text = format!(
        "{}: {}; {} ({share_percent} % of the last calls fail, for {} s)",
        cause.as_str(),
        cause.sentence(),
        cause.remedy(),
        lasts.as_secs()
    );
    if !error.is_empty() {
        text.push_str("; the last error: ");
        text.push_str(error);
    }
    text
}

/// Why a cluster does not do its work, however many other clusters do; `None`: it does.
fn outage(cluster: &ClusterStatus) -> Option<String> {
    let name = &cluster.name;
    let etcd = cluster.etcd_problem.iter().map(|(_, problem)| format!("etcd: {problem}"));
    let mut causes: Vec<String> = match (&cluster.primary, &cluster.problem) {
        (None, Some(problem)) => vec![problem.clone()],
        (None, None) => vec!["the cluster has no primary".to_owned()],
        (Some(_), _) => Vec::new(),
    };
    let failing = cluster.failing.iter().filter(|failing| failing.cause.is_outage());
    causes.extend(
        failing
            .map(|failing| format!("{} fail: {}", failing.calls.as_str(), failing_text(failing))),
    );
    if causes.is_empty() {
        return None;
    }
    causes.extend(etcd);
    Some(format!("{name}: {}", causes.join("; ")))
}

/// What a cluster cannot do, or does with a weaker promise: (feature, reason).
fn degraded(cluster: ClusterStatus) -> Vec<(String, String)> {
    let ClusterStatus { name, problem, warnings, failing, etcd_problem, .. } = cluster;
    let problem = problem.map(|problem| (format!("writes of {name}"), problem));
    let failing = failing
        .iter()
        .map(|failing| (format!("{} of {name}", failing.calls.as_str()), failing_text(failing)));
    let etcd =
        etcd_problem.filter(|(lasts, _)| *lasts >= ETCD_PROBLEM_AFTER).map(|(lasts, why)| {
            (format!("etcd of {name}"), format!("{why} (for {} s)", lasts.as_secs()))
        });
    let replicas = cluster.replicas_behind.into_iter();
    let replicas = replicas.map(|replica| (format!("reads of {name}"), replica));
    let warnings = warnings.into_iter().map(|text| (format!("installation of {name}"), text));
    let journal = cluster.journal_problems.into_iter();
    let journal = journal.map(|text| (format!("journal of {name}"), text));
    let relay = cluster.long_transactions.into_iter();
    let relay = relay.map(|transaction| (format!("relay of {name}"), transaction));
    let calls = problem.into_iter().chain(failing).chain(etcd);
    calls.chain(replicas).chain(warnings).chain(journal).chain(relay).collect()
}

/// The state of a limiter of database reads.
fn read_limit_status((name, snapshot): (String, LimiterSnapshot)) -> LimitStatus {
    LimitStatus {
        name,
        limit: snapshot.limit as u64,
        in_flight: snapshot.in_flight as u64,
        shed: snapshot.shed.sheddable + snapshot.shed.degradable + snapshot.shed.critical,
    }
}

/// The state of the search index's bulkhead.
fn index_limit_status(index: &GuardedIndex) -> LimitStatus {
    let snapshot = index.snapshot();
    LimitStatus {
        name: "index".to_owned(),
        limit: snapshot.limit as u64,
        in_flight: snapshot.in_flight as u64,
        shed: snapshot.shed,
    }
}

#[async_trait]
impl Operations for ClusterOperations {
    async fn readiness(&self) -> Vec<Readiness> {
        let problems: Vec<String> = self.store.status().iter().filter_map(outage).collect();
        let store = Readiness {
            part: "store",
            problem: (!problems.is_empty()).then(|| problems.join("; ")),
        };
        let consumers = self.pipeline.iter().flat_map(|pipeline| pipeline.consumers.readiness());
        std::iter::once(store).chain(consumers).collect()
    }

    fn degraded(&self) -> Vec<(String, String)> {
        let index = self.index.iter().filter_map(|index| index.problem());
        let index = index.map(|problem| ("search".to_owned(), problem.full_text()));
        let feeds = self.pipeline.iter().flat_map(EventPipeline::problems);
        let store = self.store.status().into_iter().flat_map(degraded);
        let parts = store.chain(self.cache.degraded()).chain(self.credentials.degraded());
        parts.chain(index).chain(feeds).collect()
    }

    async fn status(&self) -> StatusReport {
        let epochs =
            self.store.status().into_iter().map(|c| format!("{}={}", c.name, c.epoch.unwrap_or(0)));
        let mut report = StatusReport {
            mode: "postgres".to_owned(),
            roles: self.roles.names(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: epochs.collect::<Vec<_>>().join(","),
            uptime_seconds: self.started.elapsed().as_secs(),
            degraded: self.degraded(),
            limits: self.store.limits().into_iter().map(read_limit_status).collect(),
            ..StatusReport::default()
        };
        if let Some(pipeline) = &self.pipeline {
            pipeline.consumers.report(&mut report).await;
        }
        let rebuilding = self.search_index().and_then(|index| index.rebuilding());
        report.running.extend(rebuilding.map(|contents| RunningOperation {
            operation: "reindex".to_owned(),
            contents,
            total: None,
        }));
        report.limits.extend(self.index.iter().map(|index| index_limit_status(index)));
        report
    }

    async fn reindex(&self) -> Result<u64, OperationsError> {
        match self.search_index().filter(|_| self.roles.indexer) {
            Some(index) => index.reindex().await.map_err(|error| match error {
                ReindexError::AlreadyRunning { .. } => OperationsError::AlreadyRunning("reindex"),
                ReindexError::Impossible(_) => {
                    OperationsError::SearchUnavailable(error.to_string())
                }
                ReindexError::Failed(_) => OperationsError::Failed(error.into()),
            }),
            None => self.consumers()?.reindex().await,
        }
    }

    async fn recount(&self, repair: bool) -> Result<RecountReport, OperationsError> {
        self.consumers()?.recount(repair).await
    }

    fn allow_storm(&self, group: &str) -> Result<(), OperationsError> {
        self.consumers()?.allow_storm(group)
    }

    fn metrics(&self) -> String {
        (self.metrics)()
    }
}
