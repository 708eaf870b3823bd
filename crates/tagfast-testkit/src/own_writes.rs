//! Clients that write through one node and read through another one: nobody may miss their own
//! write, whatever happens to caches and servers, unless the answer says so.
//!
//! With a token the answer shows the write, or there is none, or it says that a failover may have
//! lost it. Without one the same user's read shows it as long as the write said that its position
//! was stored, or is marked as stale or degraded.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Client, wait_for_condition};

/// Contents that each client writes.
const CONTENTS: u64 = 7;

#[derive(Default)]
struct Seen {
    checked: AtomicU64,
    unanswered: AtomicU64,
    stale: AtomicU64,
    from_cache: AtomicU64,
    violations: Mutex<Vec<String>>,
}

/// What the clients saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnWritesSeen {
    /// Reads that were asked for.
    pub checked: u64,
    /// Reads and writes that were refused with 503 or 504; what any other status says is a
    /// violation.
    pub unanswered: u64,
    /// Reads whose answer says that it is stale.
    pub stale: u64,
    /// Reads that a cache answered.
    pub from_cache: u64,
    /// What nobody may see.
    pub violations: Vec<String>,
}

/// The clients; they go on until they are told to stop.
pub struct OwnWrites {
    seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl OwnWrites {
    /// Starts so many, each on its own contents, through both nodes. A request takes at most
    /// `patience`.
    pub fn start(nodes: [SocketAddr; 2], clients: u64, patience: Duration) -> Self {
        let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
        let client = |number| {
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            let nodes = nodes.map(|address| Client::new(address).with_timeout(patience));
            std::thread::spawn(move || write_and_read(number, nodes, &seen, &stop))
        };
        let clients = (0..clients).map(client).collect();
        Self { seen, stop, clients }
    }

    /// Waits until so many more reads were checked.
    pub fn more(&self, count: u64, patience: Duration) {
        let until = self.seen.checked.load(Ordering::SeqCst) + count;
        wait_for_condition("reads go on", patience, || {
            let now = self.seen.checked.load(Ordering::SeqCst);
            if now >= until { Ok(()) } else { Err(format!("{now} of {until}")) }
        });
    }

    /// What they saw up to now.
    pub fn seen(&self) -> OwnWritesSeen {
        let of = |count: &AtomicU64| count.load(Ordering::SeqCst);
        OwnWritesSeen {
            checked: of(&self.seen.checked),
            unanswered: of(&self.seen.unanswered),
            stale: of(&self.seen.stale),
            from_cache: of(&self.seen.from_cache),
            violations: self.seen.violations().clone(),
        }
    }

    /// Ends them; what they saw.
    pub fn stop(self) -> OwnWritesSeen {
        self.stop.store(true, Ordering::SeqCst);
        let seen = Arc::clone(&self.seen);
        for client in self.clients {
            if client.join().is_err() {
                seen.violations().push("a client panicked".to_owned());
            }
        }
        Self { seen, stop: self.stop, clients: Vec::new() }.seen()
    }
}

impl Seen {
    fn violations(&self) -> MutexGuard<'_, Vec<String>> {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An answer that is none: it has to be an honest one.
    fn refused(&self, what: &str, answer: &crate::Answer) {
        self.unanswered.fetch_add(1, Ordering::SeqCst);
        if !matches!(answer.status, 503 | 504) {
            self.violations().push(format!("{what}: {} {}", answer.status, answer.text()));
        }
    }
}

fn version(body: &Value) -> u64 {
    body["version"].as_str().and_then(|version| version.parse().ok()).unwrap_or(0)
}

fn write_and_read(number: u64, mut nodes: [Client; 2], seen: &Seen, stop: &AtomicBool) {
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        let content = n % CONTENTS;
        let path = format!("/v1/content/test.own/w{number}-{content}/tags");
        let tags = json!({"tags": [format!("n{n}"), "always"]}).to_string();
        let (to, from) = if n % 2 == 0 { (0, 1) } else { (1, 0) };
        let Ok(answer) = nodes[to].request("PUT", &path, &[], Some(&tags)) else {
            // The connection ended; the next request makes another one.
            continue;
        };
        if answer.status != 200 {
            // It may have happened: what is there now is at least what was there before.
            seen.refused("a write", &answer);
            continue;
        }
        let token = answer.header("consistency-token").unwrap_or_default().to_owned();
        let body = answer.json();
        // Its position could not be stored, and it says so: only the token promises anything
        // through the other node.
        let remembered = body["degraded"].as_array().is_none_or(Vec::is_empty);
        let least = version(&body);
        for with_token in [true, false] {
            let token_header = [("consistency-token", token.as_str())];
            let headers: &[(&str, &str)] = if with_token { &token_header } else { &[] };
            let Ok(answer) = nodes[from].request("GET", &path, headers, None) else { continue };
            seen.checked.fetch_add(1, Ordering::SeqCst);
            if answer.status != 200 {
                seen.refused("a read", &answer);
                continue;
            }
            let body = answer.json();
            let stale = body["meta"]["stale"] == true;
            let degraded =
                body["meta"]["degraded"].as_array().map(Vec::as_slice).unwrap_or_default();
            let lost =
                degraded.iter().any(|d| d["feature"] == "session" && d["reason"] == "failover");
            let told = if with_token { lost } else { !remembered || stale || !degraded.is_empty() };
            seen.stale.fetch_add(u64::from(stale), Ordering::SeqCst);
            seen.from_cache
                .fetch_add(u64::from(body["meta"]["source"] == "cache"), Ordering::SeqCst);
            if version(&body) < least && !told {
                seen.violations().push(format!("token {with_token}: {body} is behind {least}"));
            }
        }
    }
}
