//! The store: its clusters and their tasks, writes into lanes, scans. Views are in `views.rs`.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{join, join_all};
use tagfast_domain::{ContentKey, Epoch, EpochId, TenantId, codec};
use tagfast_resilience::{Bulkhead, BulkheadOptions, Clock, LimiterLook};
use tagfast_sharding::{ContentHash, LogicalShard, ShardMap, ShardMapError};
use tagfast_store::{
    Durability, History, Receipt, ReceiptReader, ScanPage, ShardScanner, StoreError, TagWriter,
    Verdict, WriteAnswer, WriteRequest,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::types::ToSql;

use crate::cluster::{Cluster, ClusterView, Node};
use crate::connect::{Connection, Opener, within};
use crate::etcd::{Etcd, EtcdError};
use crate::group::stored_key;
use crate::lane::{Lane, LaneTask, unavailable};
use crate::options::{PostgresOptions, limit};
use crate::reader::{NodeReader, ReaderOptions};
use crate::relay::{OutboxSink, Relay};
use crate::remembered::Remembered;
use crate::tls::TlsError;
use crate::watcher::{Watcher, nodes_from_patroni, rounds};

/// A read without a deadline waits this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The check of the reign for statements outside of groups; an ended reign is error 22012.
const CHECK: &str = "
SELECT 1 / (count(*))::int FROM (SELECT id, timeline FROM epoch ORDER BY ordinal DESC LIMIT 1) e
WHERE e.id = $1 AND e.timeline = ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int";
const SCAN: &str = "SELECT k, doc FROM content WHERE k > $1 AND k < $2 ORDER BY k LIMIT $3";

/// Why the store does not open. A cluster that is down is no reason: it is waited for.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The shard map is wrong.
    #[error("the shard map is wrong: {0}")]
    ShardMap(#[from] ShardMapError),
    /// etcd's client cannot be made.
    #[error("the client of etcd cannot be made: {0}")]
    Etcd(String),
    /// TLS cannot be set up.
    #[error("TLS to PostgreSQL: {0}")]
    Tls(#[from] TlsError),
    /// Nothing to write with.
    #[error("a cluster needs 1 to 16 writer lanes, not {0}")]
    Lanes(usize),
}

impl From<EtcdError> for OpenError {
    fn from(error: EtcdError) -> Self {
        Self::Etcd(error.to_string())
    }
}

/// The client that asks Patronis.
pub(crate) fn http() -> Result<reqwest::Client, EtcdError> {
    Ok(reqwest::Client::builder().timeout(limit::ETCD).no_proxy().build()?)
}

/// One cluster's parts.
pub(crate) struct Parts {
    pub(crate) cluster: Arc<Cluster>,
    lanes: Vec<Arc<Lane>>,
    pub(crate) readers: Mutex<HashMap<String, NodeReader>>,
    /// Those of strong reads, which neither wait for the others nor hold them up.
    pub(crate) strong: Mutex<HashMap<String, NodeReader>>,
    pub(crate) strong_reads: Arc<Bulkhead>,
    pub(crate) remembered: Remembered,
    walker: tokio::sync::Mutex<Option<(String, Connection)>>,
    drains: mpsc::Sender<oneshot::Sender<()>>,
}

/// How a cluster stands, for people and for readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Its name.
    pub name: String,
    /// The member that takes writes.
    pub primary: Option<String>,
    /// The members that do not.
    pub replicas: Vec<String>,
    /// The epoch's ordinal.
    pub epoch: Option<u64>,
    /// Why it takes no writes.
    pub problem: Option<String>,
    /// What makes a promise weaker on it, and what to do.
    pub warnings: Vec<String>,
}

/// The store.
pub struct PostgresStore {
    pub(crate) map: ShardMap,
    pub(crate) clusters: Vec<Parts>,
    pub(crate) opener: Opener,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) reading: ReaderOptions,
    outbox_bytes: u64,
    tasks: Vec<JoinHandle<()>>,
    lane_tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        let lanes =
            std::mem::take(self.lane_tasks.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.tasks.iter().chain(&lanes).for_each(JoinHandle::abort);
    }
}

impl PostgresStore {
    /// Starts the tasks of every cluster. Returns at once: what a cluster lacks is in
    /// [`PostgresStore::status`].
    pub fn open(
        options: PostgresOptions,
        sink: Arc<dyn OutboxSink>,
    ) -> Result<Arc<Self>, OpenError> {
        let shards = options.clusters.iter().map(|c| (c.name.as_str(), c.shards.as_str()));
        let map = ShardMap::new(options.map_version, shards)?;
        if !(1..=16).contains(&options.lanes) {
            return Err(OpenError::Lanes(options.lanes));
        }
        let etcd = Etcd::new(&options.etcd)?;
        let opener = Opener::new(&options)?;
        let http = http()?;
        let weights = || options.tenant_weights.clone();
        let strong_reads = BulkheadOptions {
            most: limit::STRONG_READS,
            queue: limit::STRONG_READS,
            wait: limit::READ,
        };
        let (mut clusters, mut tasks, mut lane_tasks) = (Vec::new(), Vec::new(), Vec::new());
        for (index, wanted) in options.clusters.iter().enumerate() {
            let cluster = Arc::new(Cluster::new(
                index as u16,
                &wanted.name,
                &wanted.scope,
                &options.breakers,
            ));
            // While etcd is silent, replicas can still be read.
            let (early, urls, http) = (Arc::clone(&cluster), wanted.patroni.clone(), http.clone());
            tasks.push(tokio::spawn(async move {
                let members = nodes_from_patroni(&http, &urls).await;
                early.view.send_if_modified(|view| {
                    let unknown = view.primary.is_none() && view.replicas.is_empty();
                    if unknown {
                        let replicas = members.iter().map(Node::from).collect();
                        *view = Arc::new(ClusterView { replicas, ..ClusterView::clone(view) });
                    }
                    unknown
                });
            }));
            let watcher = Watcher {
                cluster: Arc::clone(&cluster),
                etcd: etcd.clone(),
                opener: opener.clone(),
                clock: Arc::clone(&options.clock),
                node: options.node.clone(),
                moved_from: wanted.moved_from,
                held_since: Mutex::default(),
            };
            tasks.push(tokio::spawn(watcher.run()));
            tasks.push(tokio::spawn(rounds(Arc::clone(&cluster), opener.clone())));
            let lanes: Vec<Arc<Lane>> = (0..options.lanes)
                .map(|n| Arc::new(Lane::new(n as i32, options.hold, weights())))
                .collect();
            for lane in &lanes {
                let task = LaneTask {
                    lane: Arc::clone(lane),
                    cluster: Arc::clone(&cluster),
                    opener: opener.clone(),
                    clock: Arc::clone(&options.clock),
                    limits: options.limits,
                };
                lane_tasks.push(tokio::spawn(task.run()));
                tasks.push(tokio::spawn(crate::lane::expire_late(Arc::clone(lane))));
            }
            let (drains, asked) = mpsc::channel(16);
            let relay = Relay {
                cluster: Arc::clone(&cluster),
                opener: opener.clone(),
                sink: Arc::clone(&sink),
                clock: Arc::clone(&options.clock),
                drains: asked,
            };
            if options.relay {
                tasks.push(tokio::spawn(relay.run()));
            }
            clusters.push(Parts {
                cluster,
                lanes,
                readers: Mutex::default(),
                strong: Mutex::default(),
                strong_reads: Bulkhead::new("strong reads", strong_reads),
                remembered: Remembered::default(),
                walker: tokio::sync::Mutex::new(None),
                drains,
            });
        }
        let reading = ReaderOptions {
            name: "read",
            concurrency: options.read_concurrency.max(1),
            per_second: options.reads_per_second,
            wait: limit::READ_WAIT,
            weights: weights(),
        };
        let (clock, outbox_bytes) = (options.clock, options.outbox_bytes);
        let lane_tasks = Mutex::new(lane_tasks);
        Ok(Arc::new(Self {
            map,
            clusters,
            opener,
            clock,
            reading,
            outbox_bytes,
            tasks,
            lane_tasks,
        }))
    }

    /// Finishes what waits and refuses what comes.
    pub async fn close(&self) {
        self.clusters.iter().flat_map(|c| &c.lanes).for_each(|lane| lane.close());
        let lanes =
            std::mem::take(&mut *self.lane_tasks.lock().unwrap_or_else(PoisonError::into_inner));
        join_all(lanes).await;
    }

    /// Waits until this process's relays have published everything that was committed before the
    /// call. Never returns while another process's relay is the active one.
    pub async fn drained(&self) {
        for parts in &self.clusters {
            let (reply, done) = oneshot::channel();
            if parts.drains.send(reply).await.is_ok() {
                // A relay that lost its primary forgets who waited: ask again.
                if done.await.is_err() {
                    Box::pin(self.drained()).await;
                }
            }
        }
    }

    /// The database on every cluster.
    pub fn database(&self) -> &str {
        self.opener.database()
    }

    /// How each cluster stands.
    pub fn status(&self) -> Vec<ClusterStatus> {
        let status = |parts: &Parts| {
            let view = Arc::clone(&parts.cluster.view.borrow());
            ClusterStatus {
                name: parts.cluster.name.clone(),
                primary: view.primary.as_ref().map(|(_, node)| node.name.clone()),
                replicas: view.replicas.iter().map(|n| n.name.clone()).collect(),
                epoch: view.primary.as_ref().map(|(epoch, _)| epoch.ordinal.0),
                problem: view.problem.clone(),
                warnings: view.warnings.clone(),
            }
        };
        self.clusters.iter().map(status).collect()
    }

    /// How the limits of the nodes stand that have been read, by name: `reads of c0/node`, `strong
    /// reads of c0/node`. What was refused counts reads, everything else queries.
    pub fn limits(&self) -> Vec<(String, LimiterLook)> {
        let mut limits = Vec::new();
        for readers in self.clusters.iter().flat_map(|parts| [&parts.readers, &parts.strong]) {
            let readers = readers.lock().unwrap_or_else(PoisonError::into_inner);
            limits.extend(readers.values().map(NodeReader::look));
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

    pub(crate) fn parts(&self, shard: LogicalShard) -> &Parts {
        &self.clusters[usize::from(self.map.cluster_of(shard))]
    }
}

impl PostgresStore {
    fn enqueue(&self, request: WriteRequest) -> Result<Waiting<'_>, StoreError> {
        if request.durability == Durability::Replicated {
            return Err(StoreError::NotInThisMode("durability `replicated`"));
        }
        let deadline = request.deadline;
        if deadline.is_some_and(|d| d <= Instant::now()) {
            return Err(StoreError::Deadline {
                waiting_for: "the write queue",
                outcome_unknown: false,
            });
        }
        let hash = ContentHash::of(&request.write.key);
        let parts = self.parts(LogicalShard::of_hash(hash));
        if parts.cluster.outbox_bytes.load(Ordering::Relaxed) >= self.outbox_bytes {
            metrics::counter!("tagfast_store_refused_total", "reason" => "outbox_full")
                .increment(1);
            let limit = usize::try_from(self.outbox_bytes).unwrap_or(usize::MAX);
            return Err(StoreError::Overloaded {
                queue: "outbox",
                limit,
                retry_after: Duration::from_secs(5),
            });
        }
        // Other bits than those that chose the shard: a cluster of one shard has two lanes too.
        let lane = &parts.lanes[(hash.0 >> 32) as usize % parts.lanes.len()];
        Ok(Waiting { answer: lane.push(request)?, parts, hash, deadline })
    }
}

/// A write that is in its lane.
struct Waiting<'a> {
    answer: oneshot::Receiver<Result<WriteAnswer, StoreError>>,
    parts: &'a Parts,
    hash: ContentHash,
    deadline: Option<Instant>,
}

impl Waiting<'_> {
    async fn done(self) -> Result<WriteAnswer, StoreError> {
        let gone = || unavailable("the store is shutting down", true);
        let result = match self.deadline {
            None => self.answer.await.map_err(|_| gone())?,
            // The lane tells a little later itself; what it has in hand then may still happen.
            Some(deadline) => {
                match tokio::time::timeout_at(deadline + Duration::from_millis(200), self.answer)
                    .await
                {
                    Ok(answer) => answer.map_err(|_| gone())?,
                    Err(_) => Err(StoreError::Deadline {
                        waiting_for: "the commit",
                        outcome_unknown: true,
                    }),
                }
            }
        };
        if let Ok(answer) = &result {
            self.parts.remembered.note(self.hash, answer.receipt.position);
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
        // All of them are queued before the first one is waited for.
        let queued: Vec<Result<Waiting<'_>, StoreError>> =
            requests.into_iter().map(|r| self.enqueue(r)).collect();
        join_all(queued.into_iter().map(async |waiting| waiting?.done().await)).await
    }
}

#[async_trait]
impl ShardScanner for PostgresStore {
    async fn scan(
        &self,
        shard: LogicalShard,
        tenant: Option<&TenantId>,
        after: Option<&ContentKey>,
        limit: usize,
    ) -> Result<ScanPage, StoreError> {
        let parts = self.parts(shard);
        let until = Instant::now() + 2 * PATIENCE;
        let (mut low, mut high) = (vec![shard.number()], vec![shard.number() + 1]);
        if let Some(tenant) = tenant {
            low.extend_from_slice(tenant.as_str().as_bytes());
            high = low.clone();
            low.push(0);
            high.push(1);
        }
        if let Some(after) = after {
            low = low.max(stored_key(shard, &after.to_bytes()));
        }
        let rows = i64::try_from(limit.saturating_add(1)).unwrap_or(i64::MAX);
        let mut walker = parts.walker.lock().await;
        loop {
            let Some((epoch, node)) = parts.cluster.primary(until).await else {
                return Err(unavailable("the cluster has no primary", false));
            };
            if walker
                .as_ref()
                .is_none_or(|(address, c)| *address != node.address || c.client.is_closed())
            {
                *walker = self
                    .opener
                    .open(&node.address, "walk")
                    .await
                    .ok()
                    .map(|c| (node.address.clone(), c));
            }
            let Some((_, server)) = walker.as_ref() else {
                parts.cluster.suspect();
                if Instant::now() >= until {
                    return Err(unavailable("the primary is not reached", false));
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let id: &[u8] = &epoch.id.0;
            let (check, page): ([&(dyn ToSql + Sync); 1], [&(dyn ToSql + Sync); 3]) =
                ([&id], [&low, &high, &rows]);
            let all = async {
                let (check, rows) =
                    join(server.client.query_one(CHECK, &check), server.client.query(SCAN, &page))
                        .await;
                check?;
                rows
            };
            match within("a scan", limit::WRITE, all).await {
                Ok(rows) => return page_of(&rows, limit),
                Err(error) => {
                    tracing::warn!(cluster = parts.cluster.name, %error, "a page of a scan failed");
                    *walker = None;
                    parts.cluster.suspect();
                    if Instant::now() >= until {
                        return Err(unavailable("the primary does not answer a scan", false));
                    }
                }
            }
        }
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        // Several clusters, several epochs: a rebuild is named by the newest of them.
        let epochs = self.clusters.iter().filter_map(|parts| parts.cluster.epoch());
        epochs
            .max_by_key(|e| e.ordinal)
            .ok_or_else(|| unavailable("no cluster has an epoch yet", false))
    }
}

fn page_of(rows: &[tokio_postgres::Row], limit: usize) -> Result<ScanPage, StoreError> {
    let mut page = ScanPage::default();
    for row in rows.iter().take(limit) {
        let key: &[u8] = row.get(0);
        let damaged = |source| StoreError::Damaged {
            what: "a content of a scan".to_owned(),
            source: Some(source),
        };
        let content = ContentKey::from_bytes(key.get(1..).unwrap_or_default()).map_err(damaged)?;
        page.items.push((content, codec::decode(row.get(1)).map_err(damaged)?));
    }
    if rows.len() > limit {
        page.next = page.items.last().map(|(key, _)| key.clone());
    }
    Ok(page)
}

impl History for PostgresStore {
    fn current(&self, shard: LogicalShard) -> Option<EpochId> {
        self.parts(shard).cluster.fenced_in()
    }

    fn fence(&self, shard: LogicalShard, epoch: EpochId) -> Option<u64> {
        self.parts(shard).cluster.fence_of(epoch)
    }
}

#[async_trait]
impl ReceiptReader for PostgresStore {
    /// Past the fence only the repair of lost writes could tell, which does not exist yet.
    async fn verdict(&self, receipt: &Receipt) -> Result<Verdict, StoreError> {
        let cluster = &self.parts(receipt.shard).cluster;
        // What lies below the fence of its epoch is part of the current history, for ever.
        let kept = receipt.position.lsn <= cluster.fence(receipt.position.epoch);
        Ok(if kept { Verdict::Kept } else { Verdict::Unknown("pending") })
    }
}
