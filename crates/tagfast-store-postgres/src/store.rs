//! The store: its clusters and their tasks, writes into lanes. Reads are in `read/`, scans in
//! `scan.rs`, receipts and reports of failovers in `repair/`.
//!
//! How it fails: a cluster that is down does not fail startup; the store waits for it, and says in
//! [`PostgresStore::status`] what is missing.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tagfast_domain::{IdempotencyKey, Refusal};
use tagfast_failover::{GuardOptions, GuardState};
use tagfast_resilience::task::{BackgroundTask, StopSignal, TaskGroup, TaskTracker};
use tagfast_resilience::{Address, Bulkhead, BulkheadOptions, Clock, LimiterSnapshot, counter};
use tagfast_sharding::{ContentHash, LogicalShard, ShardMap, ShardMapError};
use tagfast_store::metric::{RefusalReason, STORE_REFUSED};
use tagfast_store::{
    Durability, KeyMemory, LocalWrites, Position, StoreError, TagReader, TagWriter, WriteAnswer,
    WriteRequest,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::cluster::etcd::{Etcd, EtcdError, http_client};
use crate::cluster::member_probes::probe_members;
use crate::cluster::node_registry::{NodeRegistry, new_process_name};
use crate::cluster::password_check::check_password;
use crate::cluster::patroni::discover_nodes;
use crate::cluster::replica_positions::poll_positions;
use crate::cluster::topology::{Cluster, ClusterBounds, Topology};
use crate::cluster::watcher::Watcher;
use crate::connect::ConnectionFactory;
use crate::health::cause::FailureCause;
use crate::health::read_canary;
use crate::journal_files::JournalFolderError;
use crate::journal_files::folder::JournalFolder;
use crate::journal_files::keeper::start_copy;
use crate::options::{ClusterOptions, PostgresOptions, limit};
use crate::outbox::relay::{DrainRequest, Relay};
use crate::outbox::sink::OutboxSink;
use crate::read::node_reader::{NodeReader, ReaderOptions};
use crate::refusal::{NO_REPLICA, NO_REPLICA_IN_TIME, overloaded, replication_lag, unavailable};
use crate::repair::VerdictSession;
use crate::repair::pass::Repairer;
use crate::scan_session::ScanSession;
use crate::tls::TlsError;
use crate::write::lane::{Lane, WriteResult, delay_cause, expire_late};
use crate::write::lane_worker::LaneWorker;

/// How long after its deadline a write that is being committed is waited for.
const DEADLINE_GRACE: Duration = Duration::from_millis(200);

/// Drain requests that wait for a relay.
const DRAIN_REQUESTS_MAX: usize = 16;

/// Why the store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The shard map is wrong.
    #[error("the shard map is wrong")]
    ShardMap(#[from] ShardMapError),
    /// etcd's client cannot be built.
    #[error("the client of etcd cannot be built")]
    Etcd(#[from] EtcdError),
    /// TLS cannot be set up.
    #[error("TLS to PostgreSQL cannot be set up")]
    Tls(#[from] TlsError),
    /// The directory of the journals' copies cannot be used.
    #[error("the copy of the journal on disk cannot be kept")]
    Journal(#[from] JournalFolderError),
    /// `store.writer_connections` is out of range.
    #[error("a cluster needs 1 to 16 writer lanes, not {0}")]
    Lanes(usize),
}

/// One cluster and what the store keeps for it.
pub(crate) struct ClusterHandle {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) lanes: Vec<Arc<Lane>>,
    /// By address.
    pub(crate) readers: Mutex<HashMap<String, NodeReader>>,
    /// Those of strong reads, which neither wait for the others nor delay them.
    pub(crate) strong_readers: Mutex<HashMap<String, NodeReader>>,
    pub(crate) strong_reads: Arc<Bulkhead>,
    pub(crate) local_writes: LocalWrites<Position>,
    /// The session of scans and its address; `None`: it is opened by the next page.
    pub(crate) scan_session: tokio::sync::Mutex<Option<(String, ScanSession)>>,
    /// The session of verdicts and its address; `None`: it is opened by the next receipt.
    pub(crate) verdict_session: tokio::sync::Mutex<Option<(String, Arc<VerdictSession>)>>,
    drain_requests: mpsc::Sender<DrainRequest>,
}

/// The store.
pub struct PostgresStore {
    map: ShardMap,
    clusters: Vec<ClusterHandle>,
    pub(crate) connections: ConnectionFactory,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) etcd: Etcd,
    pub(crate) registry: Arc<NodeRegistry>,
    pub(crate) reading: ReaderOptions,
    pub(crate) outbox_bytes_max: u64,
    /// A cluster does not know the keys of the others.
    keys: KeyMemory,
    /// Reads that no one asked for; `None`: callers do not read here.
    canaries: Option<BackgroundTask>,
    /// Relays, watchers, probes and the like, in the order in which they were started.
    tasks: Vec<BackgroundTask>,
    /// Lane workers, and the tasks that wait for proofs.
    lane_tasks: TaskTracker,
    /// Ends the lane tasks when the store is dropped.
    stop_lanes: StopSignal,
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.stop_lanes.cancel();
    }
}

/// Starts a task that runs until its handle is dropped.
fn spawn(name: &'static str, work: impl Future<Output = ()> + Send + 'static) -> BackgroundTask {
    BackgroundTask::spawn(name, |stop: StopSignal| async move {
        stop.run_until_cancelled(work).await;
    })
}

/// What all clusters are started with.
struct Starting<'a> {
    options: &'a PostgresOptions,
    etcd: Etcd,
    registry: Arc<NodeRegistry>,
    /// `None`: no copies of the journals are kept.
    folder: Option<Arc<JournalFolder>>,
    http: reqwest::Client,
    connections: ConnectionFactory,
    sink: Arc<dyn OutboxSink>,
    tasks: Vec<BackgroundTask>,
    lane_tasks: TaskTracker,
    stop_lanes: StopSignal,
}

impl Starting<'_> {
    /// Starts the tasks of a cluster.
    fn cluster(
        &mut self,
        index: usize,
        wanted: &ClusterOptions,
    ) -> Result<ClusterHandle, OpenError> {
        let options = self.options;
        let names = (wanted.name.as_str(), wanted.scope.as_str());
        let bounds = ClusterBounds {
            replica_age_max: options.replica_age_max,
            guard: GuardOptions { max_loss: options.max_loss, on_lag: options.on_lag },
            journal_bytes_max: options.journal_bytes_max,
        };
        let cluster = Arc::new(Cluster::new(index as u16, names, bounds, &options.breakers));
        if let Some(folder) = &self.folder {
            // Before anything adopts an epoch.
            self.tasks.push(start_copy(folder, &cluster, options)?);
        }
        let (http, patroni) = (self.http.clone(), wanted.patroni.clone());
        let discovery = discover_topology(Arc::clone(&cluster), http, patroni);
        self.tasks.push(spawn("discovery", discovery));
        let watcher = Watcher {
            cluster: Arc::clone(&cluster),
            etcd: self.etcd.clone(),
            connections: self.connections.clone(),
            clock: Arc::clone(&options.clock),
            node: options.node.clone(),
            moved_from: wanted.moved_from,
            down_since: Mutex::default(),
        };
        self.tasks.push(spawn("watcher", watcher.run()));
        let calls = Arc::clone(&cluster);
        self.tasks.push(spawn("call health", async move { calls.health.watch().await }));
        let probes = probe_members(Arc::clone(&cluster), self.connections.clone());
        self.tasks.push(spawn("member probes", probes));
        let positions = poll_positions(Arc::clone(&cluster), self.connections.clone());
        self.tasks.push(spawn("replica positions", positions));
        let connections = self.connections.clone();
        let check = check_password(Arc::clone(&cluster), connections, self.etcd.clone());
        self.tasks.push(spawn("password check", check));
        let lanes: Vec<Arc<Lane>> =
            (0..options.lanes).map(|n| self.lane(n as i32, &cluster)).collect();
        let repairer = Repairer {
            cluster: Arc::clone(&cluster),
            connections: self.connections.clone(),
            clock: Arc::clone(&options.clock),
            etcd: self.etcd.clone(),
            registry: Arc::clone(&self.registry),
            limits: options.limits,
            lanes: lanes.clone(),
        };
        let closer = Arc::new(repairer.closer(options.failover_observer.clone()));
        self.tasks.push(spawn("repair", repairer.run()));
        let (drain_requests, requests) = mpsc::channel(DRAIN_REQUESTS_MAX);
        if options.relay {
            let relay = Relay {
                closer,
                cluster: Arc::clone(&cluster),
                connections: self.connections.clone(),
                sink: Arc::clone(&self.sink),
                clock: Arc::clone(&options.clock),
                drain_requests: requests,
            };
            self.tasks.push(spawn("relay", relay.run()));
        }
        let strong_reads = BulkheadOptions {
            max: limit::STRONG_READS_MAX,
            queue: limit::STRONG_READS_MAX,
            wait: limit::READ_TIMEOUT,
        };
        Ok(ClusterHandle {
            cluster,
            lanes,
            readers: Mutex::default(),
            strong_readers: Mutex::default(),
            strong_reads: Bulkhead::new("strong reads", strong_reads),
            local_writes: LocalWrites::new(None),
            scan_session: tokio::sync::Mutex::new(None),
            verdict_session: tokio::sync::Mutex::new(None),
            drain_requests,
        })
    }

    /// Starts a lane of a cluster.
    fn lane(&mut self, number: i32, cluster: &Arc<Cluster>) -> Arc<Lane> {
        let options = self.options;
        let weights = options.tenant_weights.clone();
        let lane = Arc::new(Lane::new(number, options.hold, weights));
        let worker = LaneWorker {
            lane: Arc::clone(&lane),
            cluster: Arc::clone(cluster),
            connections: self.connections.clone(),
            clock: Arc::clone(&options.clock),
            limits: options.limits,
            canaries: options.canaries,
            replicated_means: options.replicated_means,
            outbox_bytes_max: options.outbox_bytes,
            tasks: self.lane_tasks.clone(),
            stop: self.stop_lanes.clone(),
        };
        let stop = self.stop_lanes.clone();
        self.lane_tasks.spawn(async move { stop.run_until_cancelled(worker.run()).await });
        self.tasks.push(spawn("late writes", expire_late(Arc::clone(&lane), Arc::clone(cluster))));
        lane
    }
}

/// Lists the nodes that Patroni knows, unless etcd has answered before: replicas can be read
/// without etcd.
async fn discover_topology(cluster: Arc<Cluster>, http: reqwest::Client, urls: Vec<Address>) {
    let nodes = discover_nodes(&http, &urls).await;
    cluster.topology.send_if_modified(|topology| {
        let unknown = topology.primary.is_none() && topology.replicas.is_empty();
        if unknown {
            *topology = Arc::new(Topology { replicas: nodes, ..Topology::clone(topology) });
        }
        unknown
    });
}

impl PostgresStore {
    /// Reads the journals' copies, if there are any, and starts the tasks of every cluster. Does
    /// not wait for a cluster: [`PostgresStore::status`] says what one lacks.
    ///
    /// # Errors
    ///
    /// The options are wrong, or the directory of the journals' copies cannot be used. A cluster
    /// that is down is no error.
    pub fn open(
        options: PostgresOptions,
        sink: Arc<dyn OutboxSink>,
    ) -> Result<Arc<Self>, OpenError> {
        let shards = options.clusters.iter().map(|c| (c.name.as_str(), c.shards.as_str()));
        let map = ShardMap::new(options.map_version, shards)?;
        if !(1..=16).contains(&options.lanes) {
            return Err(OpenError::Lanes(options.lanes));
        }
        let etcd = Etcd::new(&options.etcd, options.etcd_login.clone())?;
        let folder = JournalFolder::open_some(options.journal_dir.as_deref(), &options.node)?;
        let process = folder
            .as_ref()
            .map_or_else(|| new_process_name(&options.node), |folder| folder.process.clone());
        let clock = Arc::clone(&options.clock);
        let registry = NodeRegistry::new(etcd.clone(), clock, process, folder.is_some());
        let registry = Arc::new(registry);
        let mut starting = Starting {
            options: &options,
            etcd,
            registry: Arc::clone(&registry),
            folder,
            http: http_client()?,
            connections: ConnectionFactory::new(&options)?,
            sink,
            tasks: vec![spawn("registration", Arc::clone(&registry).keep())],
            lane_tasks: TaskTracker::new(),
            stop_lanes: StopSignal::new(),
        };
        let clusters = options.clusters.iter().enumerate();
        let clusters =
            clusters.map(|(n, wanted)| starting.cluster(n, wanted)).collect::<Result<_, _>>()?;
        let reading = ReaderOptions {
            name: "read",
            concurrency: options.read_concurrency.max(1),
            per_second: options.reads_per_second,
            wait: limit::READ_QUEUE_TIMEOUT,
            weights: options.tenant_weights.clone(),
            queries: TaskGroup::new("node query"),
        };
        let Starting { connections, etcd, tasks, lane_tasks, stop_lanes, .. } = starting;
        let canary_keys = read_canary::keys(&map, options.clusters.len());
        Ok(Arc::new_cyclic(|store: &Weak<Self>| {
            let reader: Weak<dyn TagReader> = store.clone();
            let canaries = options
                .canaries
                .then(|| spawn("read canaries", read_canary::read_canaries(reader, canary_keys)));
            Self {
                map,
                clusters,
                connections,
                clock: Arc::clone(&options.clock),
                etcd,
                registry,
                reading,
                outbox_bytes_max: options.outbox_bytes,
                keys: KeyMemory::default(),
                canaries,
                tasks,
                lane_tasks,
                stop_lanes,
            }
        }))
    }

    /// Answers the writes that wait and refuses new ones, then ends the reads, and last what writes
    /// and reads need: watchers, probes and relays. Waits for all tasks; what a database holds up
    /// for more than `limit::CLOSE_TIMEOUT` is dropped.
    pub async fn close(&self) {
        if let Some(canaries) = &self.canaries {
            // Its panic is logged already.
            let _ = canaries.stop().await;
        }
        self.clusters.iter().flat_map(|c| &c.lanes).for_each(|lane| lane.close());
        self.lane_tasks.close();
        if timeout(limit::CLOSE_TIMEOUT, self.lane_tasks.wait()).await.is_err() {
            tracing::warn!("some writes did not end in time; their callers get no answer");
            self.stop_lanes.cancel();
            self.lane_tasks.wait().await;
        }
        let readers = |c: &ClusterHandle| {
            let (mut readers, mut strong) = (c.readers.lock(), c.strong_readers.lock());
            readers.drain().chain(strong.drain()).map(|(_, reader)| reader).collect::<Vec<_>>()
        };
        let readers: Vec<NodeReader> = self.clusters.iter().flat_map(readers).collect();
        for reader in &readers {
            reader.stop().await;
        }
        self.reading.queries.stop(limit::READ_TIMEOUT).await;
        for task in self.tasks.iter().rev() {
            // Its panic is logged already.
            let _ = task.stop().await;
        }
        // Otherwise a failover can lose what this process acknowledged, and must say so.
        if self.clusters.iter().all(|c| c.cluster.acknowledger().journal().contents() == 0) {
            self.registry.leave().await;
        }
        for cluster in &self.clusters {
            // A scan that still runs drops its connection when it ends.
            if let Ok(mut session) = cluster.scan_session.try_lock() {
                *session = None;
            }
        }
    }

    /// Waits until this process's relays have published everything that was committed before the
    /// call. Does not return while a different process's relay is the active one.
    pub async fn drained(&self) {
        for handle in &self.clusters {
            let (reply, done) = oneshot::channel();
            if handle.drain_requests.send(reply).await.is_ok() {
                // A relay that lost its primary drops the request: it is sent again.
                if done.await.is_err() {
                    Box::pin(self.drained()).await;
                }
            }
        }
    }

    /// The database on every cluster.
    pub fn database(&self) -> &str {
        self.connections.database()
    }

    /// The limiters of the nodes that were read, by name: `reads of c0/node`, `strong reads of
    /// c0/node`. They count queries, except for what was shed, which is reads.
    pub fn limits(&self) -> Vec<(String, LimiterSnapshot)> {
        let mut limits = Vec::new();
        let readers = self.clusters.iter().flat_map(|c| [&c.readers, &c.strong_readers]);
        for readers in readers {
            limits.extend(readers.lock().values().map(NodeReader::snapshot));
        }
        limits.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        limits
    }

    /// Waits until every cluster takes writes. False: not within the time.
    pub async fn wait_until_ready(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        join_all(self.clusters.iter().map(|c| c.cluster.primary(until)))
            .await
            .iter()
            .all(Option::is_some)
    }

    /// The cluster that holds a shard.
    pub(crate) fn cluster(&self, shard: LogicalShard) -> &ClusterHandle {
        &self.clusters[usize::from(self.map.cluster_of(shard))]
    }

    /// All clusters.
    pub(crate) fn clusters(&self) -> &[ClusterHandle] {
        &self.clusters
    }

    fn enqueue(&self, request: WriteRequest) -> Result<PendingWrite<'_>, StoreError> {
        let deadline = request.deadline;
        if deadline.is_some_and(|d| d <= Instant::now()) {
            return Err(StoreError::Deadline {
                waiting_for: "the write queue",
                outcome_unknown: false,
            });
        }
        let keyed = request.keyed;
        if keyed.is_some_and(|key| !self.keys.bind(&key, self.clock.now_ms())) {
            return Err(StoreError::Refused(Refusal::KeyReused));
        }
        let hash = ContentHash::of(&request.write.key);
        let handle = self.cluster(LogicalShard::of_hash(hash));
        if handle.cluster.outbox_bytes.load(Ordering::Relaxed) >= self.outbox_bytes_max {
            counter!(STORE_REFUSED, "reason" => RefusalReason::OutboxFull).increment(1);
            handle.cluster.health.writes_failed(FailureCause::OutboxFull, 1);
            let limit = usize::try_from(self.outbox_bytes_max).unwrap_or(usize::MAX);
            return Err(overloaded("outbox", limit));
        }
        let guard = &handle.cluster.guard;
        let lacks_replica = request.durability == Durability::Replicated && guard.has_no_replica();
        let reason = match guard.state() {
            GuardState::Refusing => Some(NO_REPLICA_IN_TIME),
            _ if lacks_replica => Some(NO_REPLICA),
            GuardState::Open | GuardState::Throttled | GuardState::Holding => None,
        };
        if let Some(reason) = reason {
            counter!(STORE_REFUSED, "reason" => RefusalReason::ReplicationLag).increment(1);
            handle.cluster.health.writes_failed(FailureCause::ReplicationLag, 1);
            return Err(replication_lag(reason, false));
        }
        // Other bits than those that chose the shard: a cluster of one shard uses all lanes, too.
        let lane = &handle.lanes[(hash.0 >> 32) as usize % handle.lanes.len()];
        let answer = lane.push(request).inspect_err(|error| {
            if matches!(error, StoreError::Overloaded { .. }) {
                handle.cluster.health.writes_failed(FailureCause::Overloaded, 1);
            }
        })?;
        Ok(PendingWrite { answer, handle, hash, deadline, keyed, keys: &self.keys })
    }

    /// Queues all of them before the first one is waited for.
    async fn write_all(&self, requests: Vec<WriteRequest>) -> Vec<WriteResult> {
        let queued: Vec<Result<PendingWrite<'_>, StoreError>> =
            requests.into_iter().map(|r| self.enqueue(r)).collect();
        join_all(queued.into_iter().map(async |pending| pending?.done().await)).await
    }

    /// The places of the requests that bind a key for others on their cluster: the first ones of
    /// their keys where several have the same. Every lane would wait for the batch that binds the
    /// key, so these go first.
    fn key_binders(&self, requests: &[WriteRequest]) -> HashSet<usize> {
        let mut first = HashMap::new();
        let mut binders = HashSet::new();
        for (n, request) in requests.iter().enumerate() {
            let Some(key) = request.keyed else { continue };
            let cluster = self.map.cluster_of(LogicalShard::of(&request.write.key));
            let binder = *first.entry((cluster, key.id)).or_insert(n);
            if binder != n {
                binders.insert(binder);
            }
        }
        binders
    }
}

/// A write that is in its lane.
struct PendingWrite<'a> {
    answer: oneshot::Receiver<WriteResult>,
    handle: &'a ClusterHandle,
    hash: ContentHash,
    deadline: Option<Instant>,
    keyed: Option<IdempotencyKey>,
    keys: &'a KeyMemory,
}

impl PendingWrite<'_> {
    async fn done(self) -> Result<WriteAnswer, StoreError> {
        let gone = || unavailable("the store is shutting down", true);
        let result = match self.deadline {
            None => self.answer.await.map_err(|_| gone())?,
            // The lane answers a late write itself, a little later; one that it is committing then
            // may still be durable.
            Some(deadline) => {
                match tokio::time::timeout_at(deadline + DEADLINE_GRACE, self.answer).await {
                    Ok(answer) => answer.map_err(|_| gone())?,
                    Err(_) => {
                        let cluster = &self.handle.cluster;
                        let cause = delay_cause(cluster);
                        cluster.health.writes_failed(cause, 1);
                        let waiting_for = cause.waiting_for();
                        Err(StoreError::Deadline { waiting_for, outcome_unknown: true })
                    }
                }
            }
        };
        if let Ok(answer) = &result {
            self.handle.local_writes.record(self.hash, answer.receipt.position);
        }
        // The cluster knew better.
        if let (Err(StoreError::Refused(Refusal::KeyReused)), Some(key)) = (&result, self.keyed) {
            self.keys.forget(key.id);
        }
        result
    }
}

#[async_trait]
impl TagWriter for PostgresStore {
    async fn write(&self, request: WriteRequest) -> Result<WriteAnswer, StoreError> {
        self.enqueue(request)?.done().await
    }

    async fn write_many(
        &self,
        requests: Vec<WriteRequest>,
    ) -> Vec<Result<WriteAnswer, StoreError>> {
        let binders = self.key_binders(&requests);
        if binders.is_empty() {
            return self.write_all(requests).await;
        }
        let mut results: Vec<Option<WriteResult>> = requests.iter().map(|_| None).collect();
        let (first, mut rest): (Vec<_>, Vec<_>) =
            requests.into_iter().enumerate().partition(|(n, _)| binders.contains(n));
        let mut reused = HashSet::new();
        let (places, first): (Vec<usize>, Vec<WriteRequest>) = first.into_iter().unzip();
        let keys: Vec<_> = first.iter().map(|request| request.keyed.map(|key| key.id)).collect();
        let written = self.write_all(first).await;
        for ((n, key), result) in places.into_iter().zip(keys).zip(written) {
            if matches!(result, Err(StoreError::Refused(Refusal::KeyReused))) {
                reused.extend(key);
            }
            results[n] = Some(result);
        }
        let is_reused =
            |request: &WriteRequest| request.keyed.is_some_and(|key| reused.contains(&key.id));
        for (n, _) in rest.extract_if(.., |(_, request)| is_reused(request)) {
            results[n] = Some(Err(StoreError::Refused(Refusal::KeyReused)));
        }
        let (places, rest): (Vec<usize>, Vec<WriteRequest>) = rest.into_iter().unzip();
        for (n, result) in places.into_iter().zip(self.write_all(rest).await) {
            results[n] = Some(result);
        }
        results.into_iter().flatten().collect()
    }
}
