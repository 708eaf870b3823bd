//! What a cluster node does with the event bus: the search index and the counts that follow it,
//! and the tasks that handle dead letters.
//!
//! How it fails: an OpenSearch server that does not answer, and an index that cannot be used, do
//! not fail the start: readiness and status name them, and search pauses. A second process on the
//! same data directory is refused.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tagfast_client::error::CliError;
use tagfast_events::dead_letters::DeadLetterSupervisor;
use tagfast_events::{Bus, DeadLetterStore};
use tagfast_popular::PopularTags;
use tagfast_popular_counts::{LeaderboardPublisher, PopularCounts, RedisLeaderboards};
use tagfast_redis::Redis;
use tagfast_resilience::{Breakers, Clock};
use tagfast_search_opensearch::{
    IndexKeeper, OpenSearchError, OpenSearchIndex, OpenSearchLogin, OpenSearchOptions,
    SharedProgress,
};
use tagfast_store::ShardScanner;
use tagfast_store_postgres::{OutboxSink, PostgresDeadLetters, PostgresStore};
use tokio::sync::watch;

use super::dead_letters::supervisor_options;
use super::roles::Roles;
use crate::config::{Config, OpenSearchConfig, PostgresConfig};
use crate::consumers::{ConsumerDeps, Consumers};
use crate::credentials::CredentialFiles;

/// The alias of the search index.
const SEARCH_ALIAS: &str = "tagfast-content";

/// The event bus of a cluster, as the node that opened it sees it.
#[async_trait]
pub(super) trait ClusterBus: Send + Sync {
    /// The bus that consumers read.
    fn bus(&self) -> Arc<dyn Bus>;

    /// The sink into which the relays publish outbox rows, behind the breaker `kafka`.
    fn outbox_sink(&self, breakers: &Arc<Breakers>) -> Arc<dyn OutboxSink>;

    /// Starts to copy dead letters from the bus into the store while this process leads.
    fn start_ingest(&self, store: &Arc<PostgresDeadLetters>, leads: &watch::Receiver<bool>);

    /// Ends the tasks of the bus.
    async fn stop(&self);
}

/// The consumers of this node, what they feed, and the tasks that handle dead letters.
pub(super) struct EventPipeline {
    /// The search index; `None` without OpenSearch or a role that uses it.
    pub(super) index: Option<Arc<OpenSearchIndex>>,
    /// Popular tags: the leaderboards in Redis, or the counts of this process; `None` without
    /// both.
    pub(super) popular: Option<Arc<dyn PopularTags>>,
    /// What callers of this process read; `None` if it has none, or they read its own counts.
    leaderboards: Option<Arc<RedisLeaderboards>>,
    clock: Arc<dyn Clock>,
    /// The dead-letter store.
    pub(super) dead_letter_store: Arc<dyn DeadLetterStore>,
    /// The consumers of this node's roles.
    pub(super) consumers: Consumers,
    bus: Arc<dyn ClusterBus>,
    dead_letters: Option<DeadLetterSupervisor>,
    publishers: Publishers,
    /// Checks the search index and rebuilds it when it is lost.
    index_keeper: Option<IndexKeeper>,
    _data_dir_lock: File,
}

/// The tasks that publish this node's progress to other processes.
struct Publishers {
    leaderboards: Option<LeaderboardPublisher>,
    progress: Option<SharedProgress>,
}

/// What a pipeline is started with.
pub(super) struct PipelineDeps<'a> {
    pub(super) config: &'a Config,
    pub(super) postgres: &'a PostgresConfig,
    pub(super) roles: Roles,
    pub(super) store: &'a Arc<PostgresStore>,
    /// The state Redis; `None`: this process counts everything for itself.
    pub(super) redis: Option<&'a Arc<Redis>>,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) credentials: &'a CredentialFiles,
}

impl EventPipeline {
    /// Starts the parts in the order in which they need each other: index, counts, dead letters,
    /// and the consumers last.
    pub(super) fn start(
        deps: &PipelineDeps<'_>,
        bus: Arc<dyn ClusterBus>,
    ) -> Result<Self, CliError> {
        let partitions = deps.postgres.kafka.as_ref().map_or(1, |kafka| kafka.partitions);
        let index = match &deps.postgres.opensearch {
            Some(search) if deps.roles.api || deps.roles.indexer => Some(deps.open_index(search)?),
            Some(_) | None => None,
        };
        let progress = index.as_ref().map(|index| index.share_progress(partitions));
        let index_keeper = index.as_ref().map(OpenSearchIndex::keep);
        let data_dir_lock = lock_data_dir(&deps.config.data_dir)?;
        let counts = if deps.roles.analytics { Some(deps.open_counts(partitions)?) } else { None };
        let leaderboards = counts.as_ref().zip(deps.redis).map(|(counts, redis)| {
            LeaderboardPublisher::spawn(Arc::clone(counts), Arc::clone(redis), partitions)
        });
        let read = deps.redis.map(|redis| RedisLeaderboards::new(Arc::clone(redis), partitions));
        let popular = match (&read, &counts) {
            (Some(read), _) => Some(Arc::clone(read) as Arc<dyn PopularTags>),
            (None, Some(counts)) => Some(Arc::clone(counts) as Arc<dyn PopularTags>),
            (None, None) => None,
        };
        let stored = Arc::new(PostgresDeadLetters::new(Arc::clone(deps.store)));
        let dead_letter_store = Arc::clone(&stored) as Arc<dyn DeadLetterStore>;
        let dead_letters = if deps.roles.replayer {
            let options = supervisor_options(&deps.config.dead_letters, deps.credentials)?;
            let (leads, led) = watch::channel(false);
            bus.start_ingest(&stored, &led);
            Some(DeadLetterSupervisor::spawn(
                Arc::clone(&dead_letter_store),
                options,
                Arc::clone(deps.clock),
                leads,
            ))
        } else {
            None
        };
        let traced = deps.config.telemetry.otlp_endpoint.is_some();
        let consumer_deps = ConsumerDeps {
            bus: &bus.bus(),
            dead_letters: &dead_letter_store,
            clock: deps.clock,
            traced,
        };
        let consumers =
            Consumers::start(&consumer_deps, index.clone().filter(|_| deps.roles.indexer), counts);
        Ok(Self {
            index,
            popular,
            leaderboards: read.filter(|_| deps.roles.api),
            clock: Arc::clone(deps.clock),
            dead_letter_store,
            consumers,
            bus,
            dead_letters,
            publishers: Publishers { leaderboards, progress },
            index_keeper,
            _data_dir_lock: data_dir_lock,
        })
    }

    /// Why search or popular tags do not get nearer to what is written: (feature, reason).
    pub(super) fn problems(&self) -> Vec<(String, String)> {
        let leaderboards = self.publishers.leaderboards.as_ref();
        let leaderboards = leaderboards.and_then(LeaderboardPublisher::problem);
        let mut problems = self.consumers.problems();
        problems.extend(leaderboards.map(|problem| ("popular".to_owned(), problem)));
        let now = self.clock.now_ms();
        let read = self.leaderboards.as_ref().and_then(|read| read.problem(now));
        problems.extend(read.map(|problem| ("popular".to_owned(), problem)));
        let progress = self.publishers.progress.as_ref().and_then(SharedProgress::problem);
        problems.extend(progress.map(|problem| ("search".to_owned(), problem)));
        problems
    }

    /// Stops the dead-letter tasks, then the consumers (which make their state durable), then what
    /// publishes their progress, and the bus last.
    pub(super) async fn stop(&self) {
        if let Some(dead_letters) = &self.dead_letters {
            dead_letters.stop().await;
        }
        if let Some(keeper) = &self.index_keeper {
            keeper.stop().await;
        }
        self.consumers.stop().await;
        if let Some(leaderboards) = &self.publishers.leaderboards {
            leaderboards.stop().await;
        }
        if let Some(progress) = &self.publishers.progress {
            progress.stop().await;
        }
        self.bus.stop().await;
    }
}

impl PipelineDeps<'_> {
    fn open_index(&self, search: &OpenSearchConfig) -> Result<Arc<OpenSearchIndex>, CliError> {
        let options = OpenSearchOptions {
            url: search.url.clone(),
            login: match &search.login {
                None => None,
                Some(login) => Some(OpenSearchLogin {
                    user: login.user.clone(),
                    password: self.credentials.open(login.password())?,
                }),
            },
            alias: SEARCH_ALIAS.to_owned(),
            shards: search.shards,
        };
        let refused = |e: OpenSearchError| CliError::new(e.to_string()).with_source(e);
        let scanner = Arc::clone(self.store) as Arc<dyn ShardScanner>;
        OpenSearchIndex::new(options, scanner, Arc::clone(self.clock)).map_err(refused)
    }

    fn open_counts(&self, partitions: u16) -> Result<Arc<PopularCounts>, CliError> {
        let scanner = Arc::clone(self.store) as Arc<dyn ShardScanner>;
        let (dir, clock) = (self.config.data_dir.join("popular"), Arc::clone(self.clock));
        let counts = match self.redis {
            None => PopularCounts::open(dir, scanner, clock),
            Some(_) => PopularCounts::open_shared(dir, partitions, scanner, clock),
        };
        counts.map_err(|e| CliError::new("cannot open the counts").with_source(e))
    }
}

/// Locks the data directory for this process.
fn lock_data_dir(dir: &Path) -> Result<File, CliError> {
    let failed = |e: std::io::Error| {
        CliError::new(format!("cannot use the data directory {}: {e}", dir.display()))
    };
    tagfast_store_embedded::make_private(dir).map_err(|e| {
        CliError::new(format!("cannot use the data directory {}", dir.display())).with_source(e)
    })?;
    let file = File::create(dir.join("cluster.lock")).map_err(failed)?;
    file.try_lock().map_err(|_| {
        CliError::new(format!("another process uses the data directory {}", dir.display()))
            .hint("give each process a directory of its own: --data-dir DIR")
    })?;
    Ok(file)
}
