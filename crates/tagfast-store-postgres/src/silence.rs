//! Whoever is connected to and never answers: every first word to a server has a deadline. What is
//! asked on connections that are open already is tried on real servers, in
//! `tests/faults/silence.rs`.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::{EpochId, EpochOrdinal, Limits};
use tagfast_failover::{Compare, EpochRecord};
use tagfast_resilience::{Breakers, SystemClock};
use tagfast_store::queue::TenantWeights;
use tokio::time::Instant;

use crate::cluster::Node;
use crate::connect::Opener;
use crate::etcd::Etcd;
use crate::options::{PostgresOptions, limit};
use crate::query::Reading;
use crate::watcher::{ask, nodes_from_patroni};

/// A server whose connections are accepted by the kernel and by nobody else.
struct Silent(TcpListener);

impl Silent {
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

/// Runs what fails; in virtual time it takes no longer than `by`.
async fn ends<T>(what: &str, by: Duration, asked: impl Future<Output = Option<T>>) {
    let began = Instant::now();
    let answer = tokio::time::timeout(Duration::from_secs(3600), asked).await;
    assert!(answer.is_ok_and(|answer| answer.is_none()), "{what}: it ends, without an answer");
    // Timers of a millisecond's resolution.
    let took = began.elapsed();
    assert!(took <= by + Duration::from_millis(5), "{what} took {took:?}, {by:?} are allowed");
    assert!(took >= by / 2, "{what} was waited for: {took:?}");
}

fn opener() -> Opener {
    Opener::new(&PostgresOptions {
        clusters: Vec::new(),
        map_version: 1,
        etcd: Vec::new(),
        database: "tagfast".to_owned(),
        user: "tagfast".to_owned(),
        password: "secret".to_owned(),
        tls: None,
        limits: Limits::default(),
        clock: Arc::new(SystemClock),
        node: "test".to_owned(),
        lanes: 1,
        outbox_bytes: 1,
        relay: false,
        hold: limit::WRITE,
        breakers: Breakers::new(Arc::new(SystemClock)),
        read_concurrency: 16,
        reads_per_second: 0,
        tenant_weights: TenantWeights::default(),
    })
    .expect("no TLS to set up")
}

#[tokio::test(start_paused = true)]
async fn etcd_and_patroni_that_say_nothing_are_given_up() {
    let servers = [Silent::new(), Silent::new(), Silent::new()];
    let urls = servers.each_ref().map(Silent::url);
    let etcd = Etcd::new(&urls).expect("a client");
    let epoch = EpochRecord {
        id: EpochId([1; 16]),
        ordinal: EpochOrdinal(1),
        reign: 1,
        member: "n".to_owned(),
        timeline: 1,
        fork_lsn: None,
        parent_id: None,
        minted_at: 0,
        minted_by: "a".to_owned(),
    };
    let compare =
        Compare { leader_create_revision: 1, leader_member: "n".to_owned(), epoch_mod_revision: 1 };
    // Each of the URLs is tried once.
    let by = limit::ETCD * 3;
    ends("a look", by, async { etcd.look("c0").await.ok() }).await;
    ends("the history", by, async { etcd.history("c0").await.ok() }).await;
    ends("a new epoch", by, async { etcd.mint("c0", &epoch, &compare).await.ok() }).await;
    let http = crate::store::http().expect("a client");
    ends("the nodes", by, async { nodes_from_patroni(&http, &urls).await.pop() }).await;
}

#[tokio::test(start_paused = true)]
async fn a_postgresql_that_says_nothing_is_given_up() {
    let (server, opener) = (Silent::new(), opener());
    let address = server.address();
    // Lanes, scans, the relay, the watcher and the book of letters connect by the first one.
    ends("a connection", limit::CONNECT, async { opener.open(&address, "write").await.ok() }).await;
    ends("a reader", limit::CONNECT, async { Reading::open(&opener, &address, "read").await.ok() })
        .await;
    let node = Node { name: "n".to_owned(), address: address.clone() };
    ends("a member of a round", limit::MEMBER, async { ask(&opener, node, None).await.2 }).await;
}
