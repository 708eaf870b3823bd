//! Options of the store, and the timeouts and limits that are the same everywhere.
//!
//! How it fails: it does not; [`crate::PostgresStore::open`] checks what can be wrong.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::{EpochOrdinal, Limits};
use tagfast_failover::OnLag;
use tagfast_resilience::{
    Address, Backoff, BreakerOptions, Breakers, Clock, Credential, Secret, SystemClock,
};
use tagfast_store::FailoverObserver;
use tagfast_store::fair_queue::TenantWeights;

use crate::tls::Tls;

/// One cluster: a primary with its replicas under one Patroni scope.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The cluster's name in messages and metrics.
    pub name: String,
    /// Patroni's scope.
    pub scope: String,
    /// The logical shards it holds, for example `0-31,40`.
    pub shards: String,
    /// REST URLs of its Patronis, to find nodes while etcd does not answer.
    pub patroni: Vec<Address>,
    /// The epoch's ordinal of the cluster that a shard was moved from: ours must be larger.
    /// `None`: no shard was moved here.
    pub moved_from: Option<EpochOrdinal>,
}

impl ClusterOptions {
    /// A cluster that is named like its scope, whose nodes etcd knows, and to which no shard was
    /// moved.
    pub fn new(scope: &str, shards: &str) -> Self {
        Self {
            name: scope.to_owned(),
            scope: scope.to_owned(),
            shards: shards.to_owned(),
            patroni: Vec::new(),
            moved_from: None,
        }
    }
}

/// What a commit waits for before it is acknowledged; PostgreSQL's `synchronous_commit`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SynchronousCommit {
    /// The flush to the primary's disk.
    #[default]
    Local,
    /// Also the flush to the disks of the synchronous standbys, where the cluster has any.
    On,
}

impl SynchronousCommit {
    /// As PostgreSQL and the configuration write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::On => "on",
        }
    }
}

/// What `Durability: replicated` waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReplicatedMeans {
    /// All replicas that stream: the write survives the promotion of any of them.
    #[default]
    All,
    /// One of them: the write survives the loss of the primary while that replica lives.
    One,
}

impl ReplicatedMeans {
    /// As the configuration writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::One => "one",
        }
    }
}

/// A user of etcd. Its role must be able to read the prefix `/service/` and to read and write the
/// prefix `/tagfast/v1/`.
#[derive(Debug, Clone)]
pub struct EtcdLogin {
    /// The user name.
    pub user: String,
    /// Its password; a changed one is used by the next authentication.
    pub password: Credential,
}

/// Everything the store needs.
#[derive(Clone)]
pub struct PostgresOptions {
    /// The clusters.
    pub clusters: Vec<ClusterOptions>,
    /// The version of the shard map; a larger one replaces a smaller one.
    pub map_version: u64,
    /// etcd's client URLs.
    pub etcd: Vec<Address>,
    /// Who this process is in etcd; `None`: etcd asks for no user.
    pub etcd_login: Option<EtcdLogin>,
    /// The database on every cluster.
    pub database: String,
    /// The role on every cluster; it needs `pg_monitor`.
    pub user: String,
    /// Its password; a changed one is used by the next connection.
    pub password: Credential,
    /// TLS to the nodes; `None`: plain connections, on which anyone who can listen reads
    /// documents.
    pub tls: Option<Tls>,
    /// What a commit of a write waits for. `Local`: a failover can lose acknowledged writes, also
    /// where Patroni has synchronous standbys. `On`: while no standby confirms, no write is
    /// acknowledged.
    pub synchronous_commit: SynchronousCommit,
    /// The span of acknowledged writes that one failover may lose. Too low: a short stall of the
    /// replicas holds writes; too high: a failover loses more, and has more to repair.
    pub max_loss: Duration,
    /// What happens to writes that no replica has in time.
    pub on_lag: OnLag,
    /// What `Durability: replicated` waits for.
    pub replicated_means: ReplicatedMeans,
    /// The size of a cluster's journal of acknowledged writes that not every replica has, in bytes.
    /// Too low: a replica that is away for long makes the journal forget writes, and a failover can
    /// lose them unlisted; too high: the same takes memory.
    pub journal_bytes_max: usize,
    /// The directory of the journals' copies on disk, of this process alone; `None`: there are no
    /// copies, and what only this process knows of a failover's losses dies with it.
    pub journal_dir: Option<PathBuf>,
    /// The limits of documents.
    pub limits: Limits,
    /// The clock of documents and events.
    pub clock: Arc<dyn Clock>,
    /// The name of this process in epochs and logs.
    pub node: String,
    /// Writer lanes of each cluster, 1 to 16. Too many: small batches; too few: one connection is
    /// the bottleneck.
    pub lanes: usize,
    /// The size of a cluster's outbox, in bytes, from which writes are refused. Too low: a short
    /// outage of the bus stops writes; too high: a long one fills the disk.
    pub outbox_bytes: u64,
    /// Whether this process publishes the outbox while no other process does.
    pub relay: bool,
    /// Whether idle lanes send canaries, and each cluster is read once a second: they find out what
    /// keeps writes and reads from being done. Needed where callers write and read; they keep a
    /// connection of each lane open.
    pub canaries: bool,
    /// How long a write waits for a primary. Too short: users see failovers; too long: their
    /// requests pile up.
    pub hold: Duration,
    /// The registry of the clusters' breakers: `postgres/<cluster>/primary` and
    /// `postgres/<cluster>/replica`.
    pub breakers: Arc<Breakers>,
    /// The largest number of concurrent read queries on one node, each of up to 16 contents; below
    /// it the limit adapts to the node's latency. Too high: many processes together overload a
    /// node before their limits have adapted; too low: a fast node is not used.
    pub read_concurrency: usize,
    /// The largest number of read queries a second on one node; 0: no such limit. Too low: reads
    /// are refused that the node would carry.
    pub reads_per_second: u32,
    /// How old a replica may be: one that is not proven to show everything acknowledged before this
    /// time is not read while the primary answers, and what it answers is marked as stale. Too low:
    /// replicas are idle while they replay a burst; too high: `eventual` views are that old,
    /// unmarked.
    pub replica_age_max: Duration,
    /// The tenants' shares of the queues of reads and writes.
    pub tenant_weights: TenantWeights,
    /// Is told of each failover whose repair this process closes; `None`: no one is.
    pub failover_observer: Option<Arc<dyn FailoverObserver>>,
}

impl PostgresOptions {
    /// Options of a process that publishes the outbox, with the defaults of the configuration.
    pub fn new(
        clusters: Vec<ClusterOptions>,
        etcd: Vec<String>,
        database: String,
        user: String,
        password: String,
    ) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        Self {
            clusters,
            map_version: 1,
            etcd: etcd.into_iter().map(Address::new).collect(),
            etcd_login: None,
            database,
            user,
            password: Secret::new(password).into(),
            tls: None,
            synchronous_commit: SynchronousCommit::default(),
            max_loss: Duration::from_secs(1),
            on_lag: OnLag::default(),
            replicated_means: ReplicatedMeans::default(),
            journal_bytes_max: 256 << 20,
            journal_dir: None,
            limits: Limits::default(),
            breakers: Breakers::new(Arc::clone(&clock)),
            clock,
            node: "tagfast".to_owned(),
            lanes: 2,
            outbox_bytes: 64 << 30,
            relay: true,
            canaries: true,
            hold: Duration::from_secs(10),
            read_concurrency: 16,
            reads_per_second: 0,
            replica_age_max: Duration::from_secs(3),
            tenant_weights: TenantWeights::default(),
            failover_observer: None,
        }
    }
}

/// Timeouts, intervals and limits.
pub(crate) mod limit {
    use std::time::Duration;

    /// TCP, TLS, authentication, and the statements to prepare.
    pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
    /// One round trip of a group read.
    pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(1);
    /// The server cancels a reader's statement after this time, before its caller gives up, so that
    /// no abandoned query goes on.
    pub(crate) const READ_STATEMENT_TIMEOUT: Duration = Duration::from_millis(900);
    /// How long a read waits for a replica before it goes to the primary.
    pub(crate) const REPLICA_TIMEOUT: Duration = Duration::from_millis(100);
    /// How long a node that failed is ejected: other nodes are read first.
    pub(crate) const EJECTION: Duration = Duration::from_secs(2);
    /// How long a read without a deadline waits.
    pub(crate) const READ_DEADLINE_DEFAULT: Duration = Duration::from_secs(5);
    /// One round trip of a group commit; the server cancels a little earlier.
    pub(crate) const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
    /// How long the writes in flight may take when the store closes: a commit and its proof.
    pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(6);
    /// The server cancels all other statements after this time.
    pub(crate) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(4);
    /// A request to etcd or to a Patroni.
    pub(crate) const ETCD_TIMEOUT: Duration = Duration::from_millis(500);
    /// Between two attempts to authenticate at etcd that refused; each costs etcd about 0.1 s of a
    /// processor (bcrypt).
    pub(crate) const ETCD_LOGIN_RETRY_INTERVAL: Duration = Duration::from_secs(2);
    /// An authentication at etcd, which takes a processor of etcd much longer than other requests.
    pub(crate) const ETCD_LOGIN_TIMEOUT: Duration = Duration::from_secs(2);
    /// Between two checks that the primary and etcd accept the newest passwords.
    pub(crate) const PASSWORD_CHECK_INTERVAL: Duration = Duration::from_secs(2);
    /// Between two polls of the leader key.
    pub(crate) const POLL_INTERVAL: Duration = Duration::from_secs(1);
    /// A probe of one member.
    pub(crate) const MEMBER_PROBE_TIMEOUT: Duration = Duration::from_millis(400);
    /// A question for the positions of the replicas.
    pub(crate) const POSITIONS_TIMEOUT: Duration = Duration::from_millis(400);
    /// Writes in a group commit while the guard of loss throttles.
    pub(crate) const THROTTLED_BATCH_MAX: usize = 64;
    /// Between two rounds of member probes.
    pub(crate) const PROBE_ROUND_INTERVAL: Duration = Duration::from_millis(450);
    /// Writes in one group commit.
    pub(crate) const COMMIT_BATCH_MAX: usize = 512;
    /// Keys in one read query.
    pub(crate) const READ_BATCH_MAX: usize = 16;
    /// How long a batch of reads is collected while other queries run.
    pub(crate) const READ_BATCH_WINDOW: Duration = Duration::from_millis(1);
    /// How long a critical read waits for the limiter.
    pub(crate) const READ_QUEUE_TIMEOUT: Duration = Duration::from_millis(20);
    /// Reading connections that were idle for this long are closed.
    pub(crate) const READER_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
    /// Connections for strong reads on a primary.
    pub(crate) const STRONG_QUERIES_MAX: usize = 4;
    /// Concurrent strong reads in a cluster; as many more may wait, up to [`READ_TIMEOUT`].
    pub(crate) const STRONG_READS_MAX: usize = 128;
    /// Contents of one call that are read concurrently: no more than a tenant may have waiting at
    /// the smallest limit.
    pub(crate) const READS_PER_CALL_MAX: usize = 32;
    /// A call that takes longer counts as slow.
    pub(crate) const SLOW_CALL: Duration = Duration::from_millis(250);
    /// How often a caller that waits for an open breaker tries again.
    pub(crate) const BREAKER_RETRY_INTERVAL: Duration = Duration::from_millis(25);
    /// Writes in a group commit that probes a half-open breaker.
    pub(crate) const PROBE_BATCH_MAX: usize = 16;
    /// Writes that wait in one lane.
    pub(crate) const LANE_QUEUE_MAX: usize = 8192;
}

/// The options of each role's breaker. Fewer calls than elsewhere count as a stall, since the
/// limiter lets no more of them hang.
pub(crate) fn breaker_options() -> BreakerOptions {
    BreakerOptions {
        slow_after: limit::SLOW_CALL,
        stalled_calls: 8,
        open_cap: Duration::from_secs(2),
        ..BreakerOptions::default()
    }
}

/// Delays between attempts to reach a primary.
const RECONNECT_BACKOFF: Backoff = Backoff {
    retries: u32::MAX,
    base: Duration::from_millis(20),
    factor: 2,
    cap: Duration::from_millis(500),
};

/// The delay after this many failures in a row.
pub(crate) fn reconnect_delay(failures: u32) -> Duration {
    RECONNECT_BACKOFF.delay(failures, fastrand::f64()).unwrap_or(RECONNECT_BACKOFF.cap)
}
