//! How the store is opened.

use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::{EpochOrdinal, Limits};
use tagfast_resilience::{BreakerOptions, Breakers, Clock};
use tagfast_store::queue::TenantWeights;

use crate::tls::Tls;

/// One cluster: a primary with its replicas under one Patroni scope.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Its name in messages and metrics.
    pub name: String,
    /// Patroni's scope.
    pub scope: String,
    /// The logical shards it holds, for example `0-31,40`.
    pub shards: String,
    /// REST addresses of its Patronis, for finding nodes while etcd is silent.
    pub patroni: Vec<String>,
    /// The ordinal of the epoch from which a shard moved here: ours must lie above it.
    pub moved_from: Option<EpochOrdinal>,
}

/// Everything the store needs.
#[derive(Clone)]
pub struct PostgresOptions {
    /// The clusters.
    pub clusters: Vec<ClusterOptions>,
    /// Orders shard maps.
    pub map_version: u64,
    /// etcd's client URLs.
    pub etcd: Vec<String>,
    /// Database, role and password on every cluster.
    pub database: String,
    /// The role; needs `pg_monitor`.
    pub user: String,
    /// Its password.
    pub password: String,
    /// TLS to the nodes; none: plain, which shows documents to whoever can listen.
    pub tls: Option<Tls>,
    /// The limits in force.
    pub limits: Limits,
    /// Time of documents and events.
    pub clock: Arc<dyn Clock>,
    /// This process, in epochs and logs.
    pub node: String,
    /// Writer lanes of each cluster. More: smaller batches; fewer: one connection limits.
    pub lanes: usize,
    /// How much of a cluster's disk its outbox may take, in bytes, before writes are refused. Too
    /// low: a short outage of the bus stops writes; too high: a long one fills the disk.
    pub outbox_bytes: u64,
    /// Whether this process publishes the outbox when no other one does.
    pub relay: bool,
    /// How long a write waits for a primary. Too short: a failover is seen by users; too long:
    /// their requests pile up.
    pub hold: Duration,
    /// Where the breakers of the clusters are: `postgres/<cluster>/primary` and
    /// `postgres/<cluster>/replica`.
    pub breakers: Arc<Breakers>,
    /// Read queries at once on one node, each of up to 16 contents, at most; the limit below
    /// follows the node's latency. Too high: many processes together overload a node before
    /// their limits have learned; too low: a fast node is not used.
    pub read_concurrency: usize,
    /// Read queries a second on one node, at most; 0: only the latency limits them. Too low: reads
    /// are refused that the node would carry.
    pub reads_per_second: u32,
    /// How much tenants matter beside each other where reads or writes wait.
    pub tenant_weights: TenantWeights,
}

/// How long the steps of a conversation may take.
pub(crate) mod limit {
    use std::time::Duration;

    /// TCP, SCRAM and the statements to prepare.
    pub(crate) const CONNECT: Duration = Duration::from_secs(3);
    /// One round trip of a group read.
    pub(crate) const READ: Duration = Duration::from_secs(1);
    /// A reader's statement is ended by the server after this time, before its caller gives up:
    /// nothing goes on unseen.
    pub(crate) const READ_ENDS: Duration = Duration::from_millis(900);
    /// How long a replica is waited for while the primary could be asked instead.
    pub(crate) const REPLICA_FIRST: Duration = Duration::from_millis(100);
    /// A node that failed is not asked first for this long.
    pub(crate) const AVOID: Duration = Duration::from_secs(2);
    /// One round trip of a group commit; PostgreSQL gives up itself a little earlier.
    pub(crate) const WRITE: Duration = Duration::from_secs(5);
    /// All other statements are ended by the server after this time.
    pub(crate) const WRITE_ENDS: Duration = Duration::from_secs(4);
    /// A request to etcd or to a Patroni.
    pub(crate) const ETCD: Duration = Duration::from_millis(500);
    /// Between two looks at the leader key.
    pub(crate) const LOOK: Duration = Duration::from_secs(1);
    /// A question to a member in such a round.
    pub(crate) const MEMBER: Duration = Duration::from_millis(400);
    /// Between two rounds of questions to the members.
    pub(crate) const ROUND: Duration = Duration::from_millis(450);
    /// Writes in one group commit.
    pub(crate) const GROUP: usize = 512;
    /// Keys in one read query.
    pub(crate) const READS: usize = 16;
    /// How long a batch of reads is collected while other queries run.
    pub(crate) const LINGER: Duration = Duration::from_millis(1);
    /// How long a critical read waits for a place.
    pub(crate) const READ_WAIT: Duration = Duration::from_millis(20);
    /// Reading connections that nobody used for so long are closed.
    pub(crate) const IDLE: Duration = Duration::from_secs(30);
    /// Strong reads have so many connections of their own on a primary.
    pub(crate) const STRONG_QUERIES: usize = 4;
    /// Strong reads under way in a cluster, and as many more may wait, for as long as a query may
    /// take.
    pub(crate) const STRONG_READS: usize = 128;
    /// Contents of one call that are read at once: no more than a tenant may have waiting at the
    /// least limit.
    pub(crate) const AT_ONCE: usize = 32;
    /// An answer that takes longer is slow.
    pub(crate) const SLOW: Duration = Duration::from_millis(250);
    /// How often a lane asks the breaker whether it may try the primary.
    pub(crate) const PROBE_AGAIN: Duration = Duration::from_millis(25);
    /// Writes in a group that tries whether the primary works again.
    pub(crate) const PROBE: usize = 16;
    /// Writes that wait in one lane.
    pub(crate) const LANE_QUEUE: usize = 8192;
}

/// When the breaker of a role opens. Fewer calls than elsewhere make a stall: the limiter lets no
/// more of them hang.
pub(crate) fn breaker_options() -> BreakerOptions {
    BreakerOptions {
        slow_after: limit::SLOW,
        stalled_calls: 8,
        open_cap: Duration::from_secs(2),
        ..BreakerOptions::default()
    }
}
