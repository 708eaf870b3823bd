//! Servers that accept a connection and never answer: every handshake has a timeout. Requests on
//! connections that are open are tested on real servers, in `tests/faults/unresponsive.rs`.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::Limits;
use tagfast_failover::MintCondition;
use tagfast_resilience::{Breakers, SystemClock};
use tagfast_store::fair_queue::TenantWeights;
use tokio::time::Instant;

use crate::cluster::epoch_ends::tests::epoch;
use crate::cluster::etcd::{Etcd, http_client};
use crate::cluster::member_probes::probe_member;
use crate::cluster::patroni::discover_nodes;
use crate::cluster::topology::Node;
use crate::connect::ConnectionFactory;
use crate::options::{PostgresOptions, limit};
use crate::read::group_read::ReadSession;

/// A server whose connections the kernel accepts and no process answers.
struct BlackHole(TcpListener);

impl BlackHole {
    fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").expect("a port"))
    }

    fn address(&self) -> String {
        self.0.local_addr().expect("an address").to_string()
    }

    fn url(&self) -> String {
        format!("http://{}", self.address())
    }
}

/// Runs a request that fails; in virtual time it must take no longer than `max`.
async fn ends<T>(what: &str, max: Duration, request: impl Future<Output = Option<T>>) {
    let began = Instant::now();
    let answer = tokio::time::timeout(Duration::from_secs(3600), request).await;
    assert!(answer.is_ok_and(|answer| answer.is_none()), "{what}: it ends, without an answer");
    // Timers have a resolution of one millisecond.
    let took = began.elapsed();
    assert!(took <= max + Duration::from_millis(5), "{what} took {took:?}, allowed are {max:?}");
    assert!(took >= max / 2, "{what} was waited for: {took:?}");
}

fn connections() -> ConnectionFactory {
    ConnectionFactory::new(&PostgresOptions {
        clusters: Vec::new(),
        map_version: 1,
        etcd: Vec::new(),
        etcd_login: None,
        database: "tagfast".to_owned(),
        user: "tagfast".to_owned(),
        password: tagfast_resilience::Secret::new("secret".to_owned()).into(),
        tls: None,
        synchronous_commit: crate::options::SynchronousCommit::Local,
        max_loss: Duration::from_secs(1),
        on_lag: crate::OnLag::Hold,
        replicated_means: crate::ReplicatedMeans::All,
        journal_bytes_max: 1,
        journal_dir: None,
        limits: Limits::default(),
        clock: Arc::new(SystemClock),
        node: "test".to_owned(),
        lanes: 1,
        outbox_bytes: 1,
        relay: false,
        canaries: false,
        hold: limit::COMMIT_TIMEOUT,
        breakers: Breakers::new(Arc::new(SystemClock)),
        read_concurrency: 16,
        reads_per_second: 0,
        replica_age_max: Duration::from_secs(3),
        tenant_weights: TenantWeights::default(),
        failover_observer: None,
    })
    .expect("no TLS to set up")
}

#[tokio::test(start_paused = true)]
async fn requests_to_an_unresponsive_etcd_or_patroni_end() {
    let servers = [BlackHole::new(), BlackHole::new(), BlackHole::new()];
    let urls = servers.each_ref().map(|server| tagfast_resilience::Address::new(server.url()));
    let etcd = Etcd::new(&urls, None).expect("a client");
    let epoch = epoch(1, None, 1, None);
    let condition = MintCondition {
        leader_create_revision: 1,
        leader_member: "n".to_owned(),
        epoch_mod_revision: 1,
    };
    // Each of the URLs is tried once.
    let max = limit::ETCD_TIMEOUT * 3;
    for lease in [0, 7] {
        ends("a poll", max, async { etcd.read_state("c0", lease).await.ok() }).await;
    }
    ends("the history", max, async { etcd.history("c0").await.ok() }).await;
    ends("a new epoch", max, async { etcd.mint("c0", &epoch, &condition).await.ok() }).await;
    let http = http_client().expect("a client");
    ends("the nodes", max, async { discover_nodes(&http, &urls).await.pop() }).await;
}

#[tokio::test(start_paused = true)]
async fn connections_to_an_unresponsive_postgresql_end() {
    let (server, connections) = (BlackHole::new(), connections());
    let address = server.address();
    let max = limit::CONNECT_TIMEOUT;
    // Lanes, scans, the relay, the watcher and the dead-letter store connect by the first one.
    ends("a connection", max, async { connections.open(&address, "write").await.ok() }).await;
    let reader = async { ReadSession::open(&connections, &address, "read").await.ok() };
    ends("a reader", max, reader).await;
    let node = Node { name: "n".to_owned(), address: address.clone() };
    let probe = async { probe_member(&connections, &node, None).await.answer };
    ends("a member probe", limit::MEMBER_PROBE_TIMEOUT, probe).await;
}
