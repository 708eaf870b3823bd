//! The composition root of the cluster mode: the store on PostgreSQL, the bus on Kafka, the index
//! on OpenSearch, the counts in files of this process, and the API over them.
//!
//! Without Kafka the outbox is drained into nothing, and search and popular tags answer
//! `not_in_this_mode`. What is away when the process starts is waited for in the background; what
//! will never work is refused at once. Order of closing: the consumers, then the store.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tagfast_api::{
    ApiParts, Letters, LimitStatus, Operations, OperationsError, Readiness, StatusReport,
};
use tagfast_events::{Bus, ClusterName, Group, LetterBook, Partition};
use tagfast_events_kafka::{KafkaBus, KafkaOptions, TopicError};
use tagfast_popular::{BoardWriter, PopularCounts, PopularTags, RecountReport, StateBoards};
use tagfast_resilience::{Breakers, Clock, LimiterLook};
use tagfast_search::{
    GuardOptions, GuardedIndex, OpenSearchError, OpenSearchIndex, OpenSearchOptions, SharedProgress,
};
use tagfast_sharding::{LogicalShard, ShardMap};
use tagfast_store::queue::TenantWeights;
use tagfast_store::{Sealer, ShardScanner};
use tagfast_store_postgres::{
    ClusterOptions, ClusterStatus, Discard, OutboxSink, PostgresLetters, PostgresOptions,
    PostgresStore,
};
use tokio::sync::watch;

use crate::compose::MetricsText;
use crate::config::{Config, KafkaConfig, PostgresConfig};
use crate::consumers::{Consumers, Feed};
use crate::failure::Failure;
use crate::intake::Intake;
use crate::outbox::KafkaOutbox;
use crate::replayer::Replayer;
use crate::roles::Roles;
use crate::shield::Shield;

/// The topic of events.
const TOPIC: &str = "tagfast.taggings.v1";
/// The alias of the search index.
const INDEX: &str = "tagfast-content";
/// How long a start waits for servers that may be away.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks for a broker that was away at the start.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// All parts of a running node of the cluster mode.
pub struct ClusterNode {
    store: Arc<PostgresStore>,
    operations: Arc<ClusterOperations>,
    parts: ApiParts,
    /// Keeps other processes out of the data directory.
    _held: Option<File>,
}

/// What stands on the bus in this process.
struct Fed {
    index: Option<Arc<OpenSearchIndex>>,
    popular: Option<Arc<dyn PopularTags>>,
    letters: Arc<dyn LetterBook>,
    consumers: Consumers,
    replaying: Option<Replaying>,
    shown: Shown,
    held: File,
}

/// What makes known to other processes what this one has consumed.
#[derive(Default)]
struct Shown {
    boards: Option<BoardWriter>,
    _progress: Option<SharedProgress>,
}

/// What looks after dead letters.
struct Replaying {
    replayer: Replayer,
    _intake: Intake,
}

impl ClusterNode {
    /// Starts the tasks of every cluster; a cluster that is down is waited for while the others
    /// serve.
    pub async fn start(
        config: &Config,
        postgres: &PostgresConfig,
        roles: Roles,
        clock: Arc<dyn Clock>,
        metrics: MetricsText,
    ) -> Result<Self, Failure> {
        if postgres.kafka.is_none() && roles != Roles::ALL && roles.needs_bus() {
            return Err(Failure::usage(format!("--role {}: {NO_BUS}", roles.names())));
        }
        let bus = match &postgres.kafka {
            Some(kafka) => Some(bus(config, postgres, kafka).await?),
            None => None,
        };
        let breakers = Breakers::new(Arc::clone(&clock));
        let sink: Arc<dyn OutboxSink> = match &bus {
            Some(bus) => Arc::new(KafkaOutbox::new(bus.publisher(), &breakers)),
            None => Arc::new(Discard),
        };
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
            outbox_bytes: postgres.outbox_max_bytes,
            relay: roles.relay,
            hold: postgres.hold,
            breakers: Arc::clone(&breakers),
            read_concurrency: postgres.read_concurrency,
            reads_per_second: postgres.reads_per_second,
            tenant_weights: TenantWeights::new(config.tenant_weights.clone()),
        };
        let store = PostgresStore::open(options, sink)
            .map_err(|e| Failure::new(format!("the store does not open: {e}")))?;
        let shield = Shield::start(config, postgres, roles, &store, &clock, &breakers)?;
        let fed = match bus {
            Some(bus) => Some(feed(config, postgres, roles, &store, bus, &shield, &clock).await?),
            None => None,
        };
        let keys = config.signing_keys().map_err(Failure::new)?;
        let (index, popular, letters, consumers, replaying, shown, held) = match fed {
            Some(Fed { index, popular, letters, consumers, replaying, shown, held }) => {
                (index, popular, Some(letters), Some(consumers), replaying, shown, Some(held))
            }
            None => (None, None, None, None, None, Shown::default(), None),
        };
        let shielded = shield.store(&store);
        let index = index.map(|index| GuardedIndex::new(index, &breakers, GuardOptions::default()));
        let operations = Arc::new(ClusterOperations {
            store: Arc::clone(&store),
            shield,
            index: index.clone(),
            roles,
            consumers,
            replaying,
            shown,
            metrics,
            started: Instant::now(),
        });
        let parts = ApiParts {
            store: shielded,
            search: index.map(|index| index as _),
            popular,
            letters: letters.map(|book| Letters { book, cooldown: config.dead_letters.cooldown }),
            whole: roles.api,
            verdicts: false,
            breakers,
            operations: Arc::clone(&operations) as _,
            sealer: Sealer::new(&keys),
            clock,
            auth: config.auth().map_err(|e| Failure::config(&[e]))?,
            domain_limits: config.limits,
            limits: config.api_limits.clone(),
        };
        Ok(Self { store, operations, parts, _held: held })
    }

    /// What the API is made from.
    pub fn parts(&self) -> ApiParts {
        self.parts.clone()
    }

    /// Stops the consumers, then finishes what waits. Requests must have ended before.
    pub async fn stop(self) {
        if let Some(replaying) = &self.operations.replaying {
            replaying.replayer.stop().await;
        }
        if let Some(consumers) = &self.operations.consumers {
            consumers.stop().await;
        }
        if let Some(boards) = &self.operations.shown.boards {
            boards.stop().await;
        }
        self.store.close().await;
    }
}

/// The clusters whose shards feed each partition.
fn feeding(
    postgres: &PostgresConfig,
    partitions: u16,
) -> Result<BTreeMap<Partition, BTreeSet<ClusterName>>, Failure> {
    let shards = postgres.clusters.iter().map(|c| (c.scope.as_str(), c.shards.as_str()));
    let map =
        ShardMap::new(postgres.map_version, shards).map_err(|e| Failure::new(e.to_string()))?;
    let mut feeding: BTreeMap<Partition, BTreeSet<ClusterName>> = BTreeMap::new();
    for shard in LogicalShard::all() {
        let partition = Partition(u16::from(shard.number()) % partitions);
        let cluster = &postgres.clusters[usize::from(map.cluster_of(shard))];
        feeding.entry(partition).or_default().insert(cluster.scope.as_str().into());
    }
    Ok(feeding)
}

/// The bus. Topics that cannot be used are refused; a broker that is away is looked for again.
async fn bus(
    config: &Config,
    postgres: &PostgresConfig,
    kafka: &KafkaConfig,
) -> Result<Arc<KafkaBus>, Failure> {
    let refused = |e: TopicError| Failure::new(e.to_string());
    let bus = KafkaBus::new(KafkaOptions {
        brokers: kafka.brokers.clone(),
        topic: TOPIC.to_owned(),
        partitions: kafka.partitions,
        security: kafka.security().map_err(Failure::new)?,
        member: node_name(),
        clusters: feeding(postgres, kafka.partitions)?,
        // Without boards that all can read, every process counts everything for itself.
        whole: match postgres.state_redis {
            None => vec![(Group::ANALYTICS.0.to_owned(), place_name(&config.data_dir))],
            Some(_) => Vec::new(),
        },
    })
    .map_err(refused)?;
    match tokio::time::timeout(PATIENCE, bus.check_topics()).await {
        Ok(Ok(())) => return Ok(bus),
        Ok(Err(error @ TopicError::Wrong(_))) => return Err(refused(error)),
        Ok(Err(error @ TopicError::Unavailable(_))) => {
            tracing::warn!(%error, "events wait for the bus")
        }
        Err(_) => {
            tracing::warn!(brokers = ?kafka.brokers, "events wait for the bus: Kafka does not answer")
        }
    }
    let later = Arc::clone(&bus);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            match later.check_topics().await {
                Ok(()) => return tracing::info!("Kafka answers"),
                Err(error @ TopicError::Wrong(_)) => {
                    tracing::error!(%error, "the bus cannot be used")
                }
                Err(error @ TopicError::Unavailable(_)) => tracing::debug!(%error, "still no bus"),
            }
        }
    });
    Ok(bus)
}

/// Starts what feeds on the bus.
async fn feed(
    config: &Config,
    postgres: &PostgresConfig,
    roles: Roles,
    store: &Arc<PostgresStore>,
    bus: Arc<KafkaBus>,
    shield: &Shield,
    clock: &Arc<dyn Clock>,
) -> Result<Fed, Failure> {
    let scanner = Arc::clone(store) as Arc<dyn ShardScanner>;
    let partitions = postgres.kafka.as_ref().map_or(1, |kafka| kafka.partitions);
    let index = match &postgres.opensearch {
        Some(search) if roles.api || roles.indexer => {
            let options = OpenSearchOptions {
                url: search.url.clone(),
                alias: INDEX.to_owned(),
                shards: search.shards,
            };
            let refused = |e: OpenSearchError| Failure::new(e.to_string());
            let index = OpenSearchIndex::new(options, Arc::clone(&scanner), Arc::clone(clock))
                .map_err(refused)?;
            match tokio::time::timeout(PATIENCE, index.check()).await {
                Ok(Ok(())) => {}
                Ok(Err(error @ OpenSearchError::Foreign(_))) => return Err(refused(error)),
                Ok(Err(error @ OpenSearchError::Unavailable(_))) => {
                    tracing::warn!(%error, "search waits for its index")
                }
                Err(_) => tracing::warn!(
                    url = search.url,
                    "search waits for its index: OpenSearch does not answer"
                ),
            }
            let progress = index.share_progress(partitions);
            Some((index, progress))
        }
        Some(_) | None => None,
    };
    let (index, progress) = index.unzip();
    let held = hold(&config.data_dir)?;
    let redis = shield.state.clone();
    let counts = match (roles.analytics, &redis) {
        (false, _) => None,
        (true, None) => {
            Some(PopularCounts::open(config.data_dir.join("popular"), scanner, Arc::clone(clock)))
        }
        (true, Some(_)) => {
            let dir = config.data_dir.join("popular");
            Some(PopularCounts::open_shared(dir, partitions, scanner, Arc::clone(clock)))
        }
    };
    let counts =
        counts.transpose().map_err(|e| Failure::new(format!("cannot open the counts: {e}")))?;
    let boards = match (&counts, &redis) {
        (Some(counts), Some(redis)) => {
            Some(BoardWriter::spawn(Arc::clone(counts), Arc::clone(redis), partitions))
        }
        (None, _) | (_, None) => None,
    };
    let popular = match (&redis, &counts) {
        (Some(redis), _) => {
            Some(StateBoards::new(Arc::clone(redis), partitions) as Arc<dyn PopularTags>)
        }
        (None, Some(counts)) => Some(Arc::clone(counts) as Arc<dyn PopularTags>),
        (None, None) => None,
    };
    let book = Arc::new(PostgresLetters::new(Arc::clone(store)));
    let letters = Arc::clone(&book) as Arc<dyn LetterBook>;
    let replaying = if roles.replayer {
        let options = config.dead_letters.replayer().map_err(Failure::new)?;
        let (leads, led) = watch::channel(false);
        let _intake = Intake::spawn(&bus, &book, &led);
        let replayer = Replayer::spawn(Arc::clone(&letters), options, Arc::clone(clock), leads);
        Some(Replaying { replayer, _intake })
    } else {
        None
    };
    let bus = bus as Arc<dyn Bus>;
    let traced = config.telemetry.otlp_endpoint.is_some();
    let feed = Feed { bus: &bus, letters: &letters, clock, traced };
    let consumers = Consumers::start(&feed, index.clone().filter(|_| roles.indexer), counts);
    let shown = Shown { boards, _progress: progress };
    Ok(Fed { index, popular, letters, consumers, replaying, shown, held })
}

/// Takes the data directory for this process.
fn hold(dir: &Path) -> Result<File, Failure> {
    let failed = |e: std::io::Error| {
        Failure::new(format!("cannot use the data directory {}: {e}", dir.display()))
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    let file = File::create(dir.join("cluster.lock")).map_err(failed)?;
    file.try_lock().map_err(|_| {
        Failure::new(format!("another process uses the data directory {}", dir.display()))
            .hint("give each process a directory of its own: --data-dir DIR")
    })?;
    Ok(file)
}

/// Names the place of the counts: this machine and the directory.
fn place_name(dir: &Path) -> String {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    format!("{}{}", host(), absolute.display()).chars().map(safe).collect()
}

fn host() -> String {
    let name =
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "node".to_owned());
    name.trim().to_owned()
}

/// This machine and process, in epochs and logs.
fn node_name() -> String {
    format!("{}-{}", host(), std::process::id())
}

struct ClusterOperations {
    store: Arc<PostgresStore>,
    shield: Shield,
    index: Option<Arc<GuardedIndex>>,
    roles: Roles,
    replaying: Option<Replaying>,
    shown: Shown,
    consumers: Option<Consumers>,
    metrics: MetricsText,
    started: Instant,
}

/// What a cluster cannot do, or does with a weaker promise.
fn degraded(cluster: ClusterStatus) -> Vec<(String, String)> {
    let problem = cluster.problem.map(|problem| (format!("writes of {}", cluster.name), problem));
    let warnings = cluster
        .warnings
        .into_iter()
        .map(|warning| (format!("installation of {}", cluster.name), warning));
    problem.into_iter().chain(warnings).collect()
}

/// How a limiter of reads stands.
fn limit_of_reads((name, look): (String, LimiterLook)) -> LimitStatus {
    LimitStatus {
        name,
        limit: look.limit as u64,
        in_flight: look.in_flight as u64,
        shed: look.shed.sheddable + look.shed.degradable + look.shed.critical,
    }
}

/// How the index's bulkhead stands.
fn limit_of(index: &GuardedIndex) -> LimitStatus {
    let look = index.look();
    LimitStatus {
        name: "index".to_owned(),
        limit: look.limit as u64,
        in_flight: look.in_flight as u64,
        shed: look.shed,
    }
}

const NO_BUS: &str = "search and popular tags need the bus: set kafka.brokers";

#[async_trait]
impl Operations for ClusterOperations {
    async fn readiness(&self) -> Vec<Readiness> {
        let problem = |c: ClusterStatus| Some(format!("{}: {}", c.name, c.problem?));
        let problems: Vec<String> = self
            .store
            .status()
            .into_iter()
            .filter(|c| c.primary.is_none())
            .filter_map(problem)
            .collect();
        let store = Readiness {
            part: "store",
            problem: (!problems.is_empty()).then(|| problems.join("; ")),
        };
        std::iter::once(store).chain(self.consumers.iter().flat_map(Consumers::readiness)).collect()
    }

    fn degraded(&self) -> Vec<(String, String)> {
        self.store.status().into_iter().flat_map(degraded).chain(self.shield.degraded()).collect()
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
            limits: self.store.limits().into_iter().map(limit_of_reads).collect(),
            ..StatusReport::default()
        };
        if let Some(consumers) = &self.consumers {
            consumers.report(&mut report).await;
        }
        report.limits.extend(self.index.iter().map(|index| limit_of(index)));
        report
    }

    async fn reindex(&self) -> Result<u64, OperationsError> {
        let consumers =
            self.consumers.as_ref().ok_or_else(|| OperationsError::Failed(NO_BUS.to_owned()))?;
        consumers.reindex().await
    }

    async fn recount(&self, repair: bool) -> Result<RecountReport, OperationsError> {
        let consumers =
            self.consumers.as_ref().ok_or_else(|| OperationsError::Failed(NO_BUS.to_owned()))?;
        consumers.recount(repair).await
    }

    fn allow_storm(&self, group: &str) -> Result<(), OperationsError> {
        let consumers =
            self.consumers.as_ref().ok_or_else(|| OperationsError::Failed(NO_BUS.to_owned()))?;
        consumers.allow_storm(group)
    }

    fn metrics(&self) -> String {
        (self.metrics)()
    }
}
