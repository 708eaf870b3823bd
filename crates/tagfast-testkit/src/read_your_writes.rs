//! Clients that write through one node and read through another: no client may miss its own write,
//! whatever happens to caches and servers, unless the answer says so.
//!
//! With a token, a read shows the write, or fails, or says that a failover may have lost the write.
//! Without a token, a read of the same user shows the write if the write's answer did not say that
//! its position could not be stored; otherwise the read is marked as stale or degraded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};

use crate::http::{Answer, Client};
use crate::wait::wait_for_condition;

/// Number of contents that each client writes.
const CONTENTS_PER_CLIENT: u64 = 7;

#[derive(Default)]
struct Counts {
    checked: AtomicU64,
    unanswered: AtomicU64,
    stale: AtomicU64,
    from_cache: AtomicU64,
    violations: Mutex<Vec<String>>,
}

/// What the clients observed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadYourWritesReport {
    /// Reads that got an answer.
    pub checked: u64,
    /// Reads and writes that were refused with 503 or 504; any other error status is a violation.
    pub unanswered: u64,
    /// Reads whose answer was marked as stale.
    pub stale: u64,
    /// Reads that a cache answered.
    pub from_cache: u64,
    /// Answers that violate the promise.
    pub violations: Vec<String>,
}

/// The running clients, until [`ReadYourWritesClients::stop`].
pub struct ReadYourWritesClients {
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl ReadYourWritesClients {
    /// Starts this number of clients, each with its own contents, using both nodes. `timeout` is
    /// the timeout of a request.
    pub fn start(nodes: [SocketAddr; 2], clients: u64, timeout: Duration) -> Self {
        let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
        let client = |number| {
            let (counts, stop) = (Arc::clone(&counts), Arc::clone(&stop));
            let nodes = nodes.map(|address| Client::new(address).with_timeout(timeout));
            std::thread::spawn(move || write_and_read(number, nodes, &counts, &stop))
        };
        let clients = (0..clients).map(client).collect();
        Self { counts, stop, clients }
    }

    /// Waits until this number of further reads was checked.
    ///
    /// # Panics
    /// That takes longer than `timeout`.
    pub fn wait_for_reads(&self, count: u64, timeout: Duration) {
        let until = self.counts.checked.load(Ordering::SeqCst) + count;
        wait_for_condition("reads go on", timeout, || {
            let now = self.counts.checked.load(Ordering::SeqCst);
            if now >= until { Ok(()) } else { Err(format!("{now} of {until}")) }
        });
    }

    /// What the clients have observed so far.
    pub fn report(&self) -> ReadYourWritesReport {
        let of = |count: &AtomicU64| count.load(Ordering::SeqCst);
        ReadYourWritesReport {
            checked: of(&self.counts.checked),
            unanswered: of(&self.counts.unanswered),
            stale: of(&self.counts.stale),
            from_cache: of(&self.counts.from_cache),
            violations: self.counts.violations().clone(),
        }
    }

    /// Stops the clients and returns what they observed.
    pub fn stop(self) -> ReadYourWritesReport {
        self.stop.store(true, Ordering::SeqCst);
        let counts = Arc::clone(&self.counts);
        for client in self.clients {
            if client.join().is_err() {
                counts.violations().push("a client panicked".to_owned());
            }
        }
        Self { counts, stop: self.stop, clients: Vec::new() }.report()
    }
}

impl Counts {
    fn violations(&self) -> MutexGuard<'_, Vec<String>> {
        self.violations.lock()
    }

    /// Records a refusal; only 503 and 504 are acceptable.
    fn refused(&self, what: &str, answer: &Answer) {
        self.unanswered.fetch_add(1, Ordering::SeqCst);
        if !matches!(answer.status, 503 | 504) {
            self.violations().push(format!("{what}: {} {}", answer.status, answer.text()));
        }
    }
}

fn version(body: &Value) -> u64 {
    body["version"].as_str().and_then(|version| version.parse().ok()).unwrap_or(0)
}

fn write_and_read(number: u64, mut nodes: [Client; 2], counts: &Counts, stop: &AtomicBool) {
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        let content = n % CONTENTS_PER_CLIENT;
        let path = format!("/v1/content/test.own/w{number}-{content}/tags");
        let tags = json!({"tags": [format!("n{n}"), "always"]}).to_string();
        let (to, from) = if n % 2 == 0 { (0, 1) } else { (1, 0) };
        let Ok(answer) = nodes[to].request("PUT", &path, &[], Some(&tags)) else {
            // The connection ended; the next request opens a new one.
            continue;
        };
        if answer.status != 200 {
            // The write may have taken effect. The next one decides what must be shown.
            counts.refused("a write", &answer);
            continue;
        }
        let token = answer.header("consistency-token").unwrap_or_default().to_owned();
        let body = answer.json();
        // Otherwise the position could not be stored, and only the token promises anything through
        // the other node.
        let position_stored = body["degraded"].as_array().is_none_or(Vec::is_empty);
        let version_min = version(&body);
        for with_token in [true, false] {
            let token_header = [("consistency-token", token.as_str())];
            let headers: &[(&str, &str)] = if with_token { &token_header } else { &[] };
            let Ok(answer) = nodes[from].request("GET", &path, headers, None) else { continue };
            counts.checked.fetch_add(1, Ordering::SeqCst);
            if answer.status != 200 {
                counts.refused("a read", &answer);
                continue;
            }
            let body = answer.json();
            let stale = body["meta"]["stale"] == true;
            let degraded =
                body["meta"]["degraded"].as_array().map(Vec::as_slice).unwrap_or_default();
            let lost =
                degraded.iter().any(|d| d["feature"] == "session" && d["reason"] == "failover");
            let marked =
                if with_token { lost } else { !position_stored || stale || !degraded.is_empty() };
            counts.stale.fetch_add(u64::from(stale), Ordering::SeqCst);
            counts
                .from_cache
                .fetch_add(u64::from(body["meta"]["source"] == "cache"), Ordering::SeqCst);
            if version(&body) < version_min && !marked {
                counts
                    .violations()
                    .push(format!("token {with_token}: {body} is behind {version_min}"));
            }
        }
    }
}
