//! Processes of the service that the system stops (SIGSTOP) with acknowledged writes that no
//! replica has, while the primary dies, and that go on after the failover.
//!
//! The history checker judges what was answered. HTTP tells no log positions, so how much was lost
//! is not measured here.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tagfast_testkit::history::{
    EpochSeen, FinalContent, History, Outcome, VerdictAnswer, WriteCall, WriteVerdict,
};
use tagfast_testkit::http::Answer;
use tagfast_testkit::stack::host::processes_in;
use tagfast_testkit::stack::{Fault, NodeInfo, Stack, StackOptions};
use tagfast_testkit::{Client, wait_for_condition};

use crate::{ONE_STACK, TEST_TIMEOUT, node, version, wait_until_ready};

/// Writes that each process acknowledges before the failover, and no replica has.
const LOST: usize = 8;
/// The bits of a version that count within its epoch.
const COUNTER_BITS: u32 = 22;
/// A repair is closed after a minute at the latest.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(90);

/// The processes, by their places.
const NAMES: [&str; 3] = ["awake", "woken-early", "woken-late"];

/// Sends a signal to the primary's processes that stream to replicas.
fn signal_senders(primary: &NodeInfo, signal: &str) {
    let is_sender = |pid: u32| {
        let title = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        title.contains("walsender")
    };
    let senders = processes_in(&primary.data_dir).into_iter().filter(|p| is_sender(p.pid));
    for sender in senders {
        // One that has ended is not there any more.
        let sent = Command::new("kill").args([signal, &sender.pid.to_string()]).status();
        sent.expect("kill runs");
    }
}

/// A write that was sent, and its answer.
struct Sent {
    node: usize,
    content: String,
    tag: String,
    key: String,
    began: Duration,
    ended: Duration,
    answer: Option<Answer>,
}

/// Adds a tag of its own, with an idempotency key.
fn put(client: &mut Client, place: (usize, usize), tag: &str, began: Instant) -> Sent {
    send(client, place, tag, "local", began)
}

fn send(
    client: &mut Client,
    (node, n): (usize, usize),
    tag: &str,
    durability: &str,
    began: Instant,
) -> Sent {
    let content = format!("{}-{n}", NAMES[node]);
    let key = format!("{content}-{tag}");
    let sent = began.elapsed();
    let path = format!("/v1/content/page/{content}/tags/{tag}");
    let headers = [("idempotency-key", key.as_str()), ("durability", durability)];
    let answer = client.request("PUT", &path, &headers, None).ok();
    Sent { node, content, tag: tag.to_owned(), key, began: sent, ended: began.elapsed(), answer }
}

impl Sent {
    fn is_acknowledged(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.status == 200)
    }

    fn body(&self) -> Value {
        self.answer.as_ref().map(Answer::json).unwrap_or_default()
    }

    fn receipt(&self) -> String {
        self.body()["receipt"].as_str().expect("a receipt").to_owned()
    }

    /// The epoch of its version.
    fn epoch(&self) -> u64 {
        version(&self.body()) >> COUNTER_BITS
    }

    /// As a call of the history. `id`: that of all its attempts.
    fn call(&self, id: usize, verdict: Option<VerdictAnswer>) -> WriteCall {
        let is_acknowledged = self.is_acknowledged();
        let body = self.body();
        let (version, epoch) =
            if is_acknowledged { (version(&body), self.epoch()) } else { (0, 0) };
        WriteCall {
            id: id as u128,
            client: self.node as u32,
            node: self.node as u32,
            content: self.content.clone(),
            began: self.began,
            ended: self.ended,
            adds: BTreeSet::from([self.tag.clone()]),
            removes: BTreeSet::new(),
            replaces: false,
            if_match: None,
            outcome: if is_acknowledged { Outcome::Acknowledged } else { Outcome::Unknown },
            changed: body["changed"] == true,
            repeated: body["repeated"] == true,
            version,
            epoch: (u128::from(epoch), epoch),
            log: None,
            replicated: None,
            verdicts: verdict.into_iter().collect(),
        }
    }
}

/// The final verdicts about acknowledged writes, with their reasons; `Err`: one is not final.
fn verdicts(
    client: &mut Client,
    writes: &[Sent],
) -> Result<Vec<(WriteVerdict, Option<String>)>, String> {
    let receipts: Vec<String> = writes.iter().map(Sent::receipt).collect();
    let asked = client.post("/v1/receipts:check", &json!({"receipts": receipts}));
    let body = asked.expect(200).json();
    let verdict = |result: &Value| {
        let reason = result["reason"].as_str().map(str::to_owned);
        let verdict = match result["verdict"].as_str().expect("a verdict") {
            "kept" => WriteVerdict::Kept,
            "repaired" => WriteVerdict::Repaired,
            "lost" => WriteVerdict::Lost(reason.clone().unwrap_or_default()),
            _ => return Err(body.to_string()),
        };
        Ok((verdict, reason))
    };
    body["results"].as_array().expect("results").iter().map(verdict).collect()
}

fn all_are(verdicts: &[(WriteVerdict, Option<String>)], expected: &WriteVerdict) -> bool {
    verdicts.iter().all(|(verdict, _)| verdict == expected)
}

/// What the primary has of a content.
fn final_content(client: &mut Client, content: &str) -> FinalContent {
    let path = format!("/v1/content/page/{content}/tags");
    let strong = [("consistency", "strong")];
    let body = client.request("GET", &path, &strong, None).expect("an answer").expect(200).json();
    let tags = body["tags"].as_array().expect("tags").iter();
    let tags = tags.map(|tag| tag["tag"].as_str().expect("a tag").to_owned()).collect();
    FinalContent { version: version(&body), tags, recent: Vec::new() }
}

/// One process is woken before the repair is closed: what it had acknowledged comes back. The other
/// one sleeps until no one waits for it: what it had acknowledged is listed as lost, and not
/// applied. Neither acknowledges anything in the epoch that has ended.
#[test]
#[expect(clippy::print_stdout, reason = "the counts of a run; `--nocapture` shows them")]
fn a_process_that_is_stopped_across_a_failover_repairs_or_is_listed_as_late() {
    let _lock = ONE_STACK.lock();
    let dir = tempfile::tempdir().expect("a folder");
    let mut stack = Stack::up(&StackOptions::clusters_only(1, dir.path()), &|_| ())
        .expect("the stack comes up");
    let servers = NAMES.map(|name| node(&stack, name));
    let mut clients = [0, 1, 2].map(|n: usize| servers[n].client().with_timeout(TEST_TIMEOUT));
    clients.iter_mut().for_each(wait_until_ready);
    let began = Instant::now();
    // Where the contents are before: on every server.
    let mut kept = Vec::new();
    for (node, client) in clients.iter_mut().enumerate() {
        kept.extend((0..=LOST).map(|n| send(client, (node, n), "before", "replicated", began)));
    }
    assert!(kept.iter().all(Sent::is_acknowledged), "the replicas stream");

    let old = stack.primary("c0").expect("a primary");
    signal_senders(&old, "-STOP");
    let mut lost: [Vec<Sent>; 3] = Default::default();
    for (node, client) in clients.iter_mut().enumerate() {
        lost[node] = (0..LOST).map(|n| put(client, (node, n), "lost", began)).collect();
    }
    servers[1].freeze();
    servers[2].freeze();
    // Requests that wait in the sockets of the stopped processes.
    let waiting = [1, 2].map(|node: usize| {
        let mut client = servers[node].client().with_timeout(2 * CLOSING_TIMEOUT);
        std::thread::spawn(move || put(&mut client, (node, LOST), "waited", began))
    });
    stack.fault(Fault::Kill, &old.name).expect("killed");
    signal_senders(&old, "-KILL");
    assert!(lost.iter().flatten().all(Sent::is_acknowledged), "the guard held none of them");
    let ended = lost[0][0].epoch();

    // The next epoch has begun where it acknowledges.
    let mut others = Vec::new();
    let first = wait_for_condition("the next epoch", TEST_TIMEOUT, || {
        let sent = put(&mut clients[0], (0, LOST), &format!("after-{}", others.len()), began);
        let seen = sent.is_acknowledged().then(|| (sent.epoch(), sent.ended));
        others.push(sent);
        seen.filter(|(epoch, _)| *epoch > ended).ok_or("none yet")
    });
    servers[1].thaw();
    let [early, late] = waiting;
    let early = early.join().expect("no panic");
    let report = wait_for_condition("the repair to be closed", CLOSING_TIMEOUT, || {
        let failovers = clients[0].get("/v1/failovers").expect(200).json();
        let newest = failovers["items"][0].clone();
        if newest["closed"] == true { Ok(newest) } else { Err(failovers.to_string()) }
    });
    let missing = report["missing_nodes"].as_array().expect("names of processes");
    assert_eq!(missing.len(), 1, "only the one that sleeps has not reported: {report}");
    for (node, expected) in [
        (0, WriteVerdict::Repaired),
        (1, WriteVerdict::Repaired),
        (2, WriteVerdict::Lost("unreported".to_owned())),
    ] {
        let found = verdicts(&mut clients[0], &lost[node]).expect("they are final");
        assert!(all_are(&found, &expected), "{}: {found:?}", NAMES[node]);
    }

    servers[2].thaw();
    let late = late.join().expect("no panic");
    let is_late = WriteVerdict::Lost("late".to_owned());
    wait_for_condition("the report of the one that slept", TEST_TIMEOUT, || {
        let found = verdicts(&mut clients[2], &lost[2])?;
        if all_are(&found, &is_late) { Ok(()) } else { Err(format!("{found:?}")) }
    });
    // What it answers now is of the epoch that goes on.
    for sent in [&early, &late] {
        assert!(!sent.is_acknowledged() || sent.epoch() == first.0, "{:?}", sent.answer);
    }
    // A request without an answer is settled by its key.
    let mut retried = Vec::new();
    for (node, sent) in [(1, &early), (2, &late)] {
        let again = put(&mut clients[node], (node, LOST), "waited", began);
        assert!(again.is_acknowledged(), "{}: {:?}", sent.key, again.answer);
        assert_eq!(again.epoch(), first.0, "{:?}", again.answer);
        retried.push(again);
    }

    let mut history = History { limit: 100, ..History::default() };
    let epoch = |id: u64, seen_at| EpochSeen {
        id: u128::from(id),
        ordinal: id,
        seen_at,
        ..EpochSeen::default()
    };
    history.epochs = vec![epoch(ended, Duration::ZERO), epoch(first.0, first.1)];
    let waited = [early, late];
    let writes = kept.into_iter().chain(lost.into_iter().flatten());
    let mut ids: BTreeMap<String, usize> = BTreeMap::new();
    for sent in writes.chain(others).chain(waited).chain(retried) {
        let next = ids.len() + 1;
        let id = *ids.entry(sent.key.clone()).or_insert(next);
        let place = history.finals.entry(sent.content.clone());
        place.or_insert_with(|| final_content(&mut clients[0], &sent.content));
        let verdict = sent.is_acknowledged().then(|| {
            let found = verdicts(&mut clients[0], std::slice::from_ref(&sent));
            let (verdict, _) = found.expect("it is final").remove(0);
            VerdictAnswer { at: began.elapsed(), closed: true, verdict }
        });
        history.writes.push(sent.call(id, verdict));
    }
    let findings = history.check();
    println!("processes that were stopped across a failover: {}", findings.counts);
    assert_eq!(findings.violations, []);
    assert_eq!(findings.counts.repaired, 2 * LOST, "{}", findings.counts);
    assert_eq!(findings.counts.lost.get("late"), Some(&LOST), "{}", findings.counts);
    let there = history.finals.values().filter(|content| content.tags.contains("lost")).count();
    assert_eq!(there, 2 * LOST, "what is late is not applied");
}
