//! The order of the requests, and what two members of etcd that disagree are believed.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use parking_lot::Mutex;
use tagfast_failover::{Acknowledger, GuardOptions, OnLag};
use tagfast_resilience::Address;

use super::*;
use crate::cluster::epoch_ends::tests::epoch;

const LEASE: &str = "/v3/lease/timetolive";
const KEYS: &str = "/v3/kv/txn";

/// A member of etcd with the leader key of one cluster.
#[derive(Debug, Clone)]
struct Member {
    raft_term: u64,
    revision: u64,
    /// The lease of the leader key; 0: no node holds it.
    lease: u64,
    ttl_s: i64,
    /// Whether it has a quorum: without one it answers no read.
    has_quorum: bool,
    /// Whether it answers for leases.
    tells_leases: bool,
}

impl Member {
    fn answer(&self, path: &str) -> Option<Value> {
        let header = json!({
            "revision": self.revision.to_string(), "raft_term": self.raft_term.to_string(),
        });
        match path {
            LEASE => {
                self.tells_leases.then(|| json!({"header": header, "TTL": self.ttl_s.to_string()}))
            }
            KEYS => {
                let leader = json!({
                    "key": STANDARD.encode("/service/c0/leader"), "value": STANDARD.encode("n1"),
                    "create_revision": "1", "mod_revision": "9", "lease": self.lease.to_string(),
                });
                let kvs = if self.lease == 0 { json!([]) } else { json!([leader]) };
                let range = |kvs: Value| json!({"response_range": {"kvs": kvs}});
                let empty = json!({"response_range": {}});
                let responses = json!([range(kvs), empty, empty]);
                self.has_quorum
                    .then(|| json!({"header": header, "succeeded": true, "responses": responses}))
            }
            other => panic!("{other} is not asked"),
        }
    }
}

/// Members of etcd with the requests that they received, each with the member's place.
struct FakeEtcd {
    members: Arc<Mutex<Vec<Member>>>,
    requests: Arc<Mutex<Vec<(usize, String)>>>,
    client: Etcd,
}

impl FakeEtcd {
    fn start(members: &[Member]) -> Self {
        let shared = Arc::new(Mutex::new(members.to_vec()));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let mut urls = Vec::new();
        for place in 0..members.len() {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            urls.push(Address::new(format!("http://{}", listener.local_addr().expect("bound"))));
            let (members, requests) = (Arc::clone(&shared), Arc::clone(&requests));
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let path = read_request(&stream);
                    requests.lock().push((place, path.clone()));
                    answer(stream, members.lock()[place].answer(&path));
                }
            });
        }
        let client = Etcd::new(&urls, None).expect("a client");
        Self { members: shared, requests, client }
    }

    async fn read(&self, known_lease: u64) -> ClusterState {
        self.client.read_state("c0", known_lease).await.expect("a member answers")
    }

    /// The requests since the last call.
    fn requests(&self) -> Vec<(usize, String)> {
        std::mem::take(&mut *self.requests.lock())
    }
}

/// The path of the one request of a connection.
fn read_request(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a request");
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.to_ascii_lowercase());
    }
    let length = lines.iter().find_map(|line| line.strip_prefix("content-length:"));
    let length = length.map_or(0, |text| text.trim().parse().expect("a number"));
    reader.read_exact(&mut vec![0; length]).expect("a body");
    lines[0].split(' ').nth(1).expect("a path").to_owned()
}

/// `None`: as etcd refuses what it has no leader or quorum for.
fn answer(mut stream: TcpStream, answer: Option<Value>) {
    let (status, body) = match answer {
        Some(body) => ("200 OK", body),
        None => ("503 Service Unavailable", json!({"error": "etcdserver: no leader"})),
    };
    let body = body.to_string();
    let text = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).expect("it is read");
}

fn member(raft_term: u64) -> Member {
    let (has_quorum, tells_leases) = (true, true);
    Member { raft_term, revision: 10, lease: 5, ttl_s: 19, has_quorum, tells_leases }
}

fn asked(requests: &[(usize, &str)]) -> Vec<(usize, String)> {
    requests.iter().map(|(place, path)| (*place, (*path).to_owned())).collect()
}

/// Whether what was read proves leadership in the epoch of the term that the members know.
fn proves(state: &ClusterState) -> bool {
    let guard = GuardOptions { max_loss: std::time::Duration::from_secs(1), on_lag: OnLag::Hold };
    let mut acknowledger = Acknowledger::new(guard, 1 << 20);
    acknowledger.adopt_epoch(&epoch(1, None, 1, None), boot_time());
    let observation = LeaderObservation {
        leader: state.leader().map(|_| {
            let epoch = acknowledger.epoch().expect("adopted");
            LeaderKey { create_revision: epoch.term, member: epoch.member.clone() }
        }),
        ..state.observation.clone()
    };
    acknowledger.record_observation(&observation);
    acknowledger.deadline().is_some()
}

#[tokio::test]
async fn the_lease_is_asked_for_before_the_key_is_read() {
    let etcd = FakeEtcd::start(&[member(1)]);
    assert!(proves(&etcd.read(5).await));
    assert_eq!(etcd.requests(), asked(&[(0, LEASE), (0, KEYS)]));
    // Not known yet, or that of an earlier term.
    for (known, first) in [(0, &[][..]), (4, &[(0, LEASE)][..])] {
        let state = etcd.read(known).await;
        assert!(proves(&state));
        assert_eq!(state.observation.lease.map(|lease| lease.id), Some(5));
        let all = [first, &[(0, KEYS), (0, LEASE), (0, KEYS)]].concat();
        assert_eq!(etcd.requests(), asked(&all), "known {known}");
    }
}

/// The first member is cut off from the others and not from us.
#[tokio::test]
async fn a_former_leader_proves_nothing_and_its_successor_is_asked_next() {
    let former = Member { has_quorum: false, ..member(1) };
    let etcd = FakeEtcd::start(&[former, member(2), member(2)]);
    let state = etcd.read(5).await;
    let terms = (state.observation.lease.map(|lease| lease.raft_term), state.observation.raft_term);
    assert_eq!(terms, (Some(1), 2));
    assert!(!proves(&state));
    assert_eq!(etcd.requests(), asked(&[(0, LEASE), (0, KEYS), (1, KEYS)]));
    assert!(proves(&etcd.read(5).await));
    assert_eq!(etcd.requests(), asked(&[(1, LEASE), (1, KEYS)]), "it answered last");
}

#[tokio::test]
async fn without_an_answer_for_the_lease_the_key_is_read_all_the_same() {
    let silent = Member { tells_leases: false, ..member(1) };
    let etcd = FakeEtcd::start(&[silent]);
    let state = etcd.read(5).await;
    assert!(matches!(state.lease_error, Some(EtcdError::Refused(_))), "{:?}", state.lease_error);
    assert_eq!(state.leader().map(|key| key.member.as_str()), Some("n1"));
    assert!(!proves(&state));
    // No node holds the key: what was proven ends, whatever is said of the lease.
    etcd.members.lock()[0].lease = 0;
    let vacant = etcd.read(5).await;
    assert_eq!((vacant.leader(), vacant.observation.revision), (None, 10));
}

#[tokio::test]
async fn a_lease_that_has_ended_proves_nothing() {
    let etcd = FakeEtcd::start(&[Member { ttl_s: -1, ..member(1) }]);
    let state = etcd.read(5).await;
    assert_eq!((state.observation.lease, state.lease_error.is_none()), (None, true));
    assert!(!proves(&state));
}

#[test]
fn every_way_to_write_synchronous_mode_is_read() {
    let of = |mode: Value| synchronous_mode(&json!({"synchronous_mode": mode}));
    assert!(of(json!(true)) && of(json!("on")) && of(json!("quorum")));
    assert!(!of(json!(false)) && !of(json!("off")) && !of(Value::Null));
    assert!(!synchronous_mode(&Value::Null));
}
