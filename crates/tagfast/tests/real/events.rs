//! From a write to the search index and the counts on real servers: PostgreSQL under Patroni, Kafka
//! and OpenSearch. Servers die meanwhile; in the end index, counts and shards agree, content by
//! content.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tagfast_testkit::stack::{Fault, Stack, StackOptions};
use tagfast_testkit::{Client, ServerProcess, wait_for_condition};

use crate::{TEST_TIMEOUT, serve, serving, wait_until_ready};

/// One of these tests at a time, beside one of the others.
static ONE_BUS: Mutex<()> = Mutex::new(());

pub(crate) fn bus_lock() -> MutexGuard<'static, ()> {
    ONE_BUS.lock()
}

/// Contents that writers write.
const CONTENTS: u64 = 200;
/// Contents that are written to a primary that is then lost, and published.
const LOST: std::ops::Range<u64> = 1000..1040;
/// Contents that are written to that primary later, and not published.
const GONE: std::ops::Range<u64> = 2000..2016;

/// Writes until it is stopped; an unacknowledged write is sent again. One writer per content.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Writer {
    pub(crate) fn start(server: &ServerProcess) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ended, count) = (Arc::clone(&stop), Arc::clone(&written));
        let mut client = server.client().with_timeout(TEST_TIMEOUT);
        let thread = std::thread::spawn(move || {
            let mut n = 0u64;
            while !ended.load(Ordering::SeqCst) {
                let (id, tag) = (n % CONTENTS, n / CONTENTS % 7);
                let path = format!("/v1/content/page/{id}/tags/t{tag}");
                let answer =
                    if n / CONTENTS % 3 == 2 { client.delete(&path) } else { client.put(&path) };
                match answer.status {
                    200 => {
                        n += 1;
                        count.store(n, Ordering::SeqCst);
                    }
                    // The write waited for a primary and was refused: it is sent again.
                    503 => {}
                    other => panic!("{other}: {}", answer.text()),
                }
            }
        });
        Self { stop, written, thread }
    }

    pub(crate) fn goes_on(&self) {
        let known = self.written.load(Ordering::SeqCst);
        wait_for_condition("writes go on", TEST_TIMEOUT, || {
            let now = self.written.load(Ordering::SeqCst);
            if now > known + 20 { Ok(()) } else { Err(format!("{now} after {known}")) }
        });
    }

    pub(crate) fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the writer saw only what it may see");
    }
}

type Contents = BTreeMap<String, BTreeSet<String>>;

fn tags_of(list: &serde_json::Value) -> BTreeSet<String> {
    let name =
        |tag: &serde_json::Value| tag.as_str().or(tag["tag"].as_str()).expect("a tag").to_owned();
    list.as_array().expect("tags").iter().map(name).collect()
}

/// The contents of the shards, without those that have no tags.
fn shards(client: &mut Client) -> Contents {
    let mut found = Contents::new();
    for id in (0..CONTENTS).chain(LOST).chain(GONE) {
        let path = format!("/v1/content/page/{id}/tags");
        let answer =
            client.request("GET", &path, &[("consistency", "strong")], None).expect("an answer");
        let tags = tags_of(&answer.expect(200).json()["tags"]);
        if !tags.is_empty() {
            found.insert(id.to_string(), tags);
        }
    }
    found
}

/// The contents of the index.
fn index(client: &mut Client) -> Result<Contents, String> {
    let (mut found, mut cursor) = (Contents::new(), String::new());
    loop {
        let answer = client.get(&format!("/v1/search?type=page&sort=id&limit=100{cursor}"));
        if answer.status != 200 {
            return Err(answer.text());
        }
        let page = answer.json();
        for hit in page["hits"].as_array().expect("hits") {
            found.insert(hit["id"].as_str().expect("an id").to_owned(), tags_of(&hit["tags"]));
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(found),
        }
    }
}

/// Index, counts and shards agree, in a process that does everything.
pub(crate) fn all_agree(client: &mut Client) {
    agree(client);
    no_drift(client);
}

/// A recount of what this process counts finds nothing.
pub(crate) fn no_drift(client: &mut Client) {
    let drift = client.post("/v1/admin/recount", &serde_json::json!({})).expect(200).json();
    assert_eq!(
        (&drift["drifted_contents"], &drift["drifted_counts"]),
        (&0.into(), &0.into()),
        "{drift}"
    );
}

/// Search and popular tags say what the shards say.
pub(crate) fn agree(client: &mut Client) {
    let wanted = shards(client);
    wait_for_condition("the index equals the shards", TEST_TIMEOUT, || {
        let found = index(client)?;
        if found == wanted {
            return Ok(());
        }
        let differ: Vec<&String> = wanted
            .keys()
            .chain(found.keys())
            .filter(|id| wanted.get(*id) != found.get(*id))
            .collect();
        Err(format!("{} contents differ: {differ:?}", differ.len()))
    });
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    wanted.values().flatten().for_each(|tag| *counts.entry(tag).or_default() += 1);
    wait_for_condition("the counts equal the shards", TEST_TIMEOUT, || {
        let answer = client.get("/v1/tags/popular?window=all&limit=100");
        if answer.status != 200 {
            return Err(answer.text());
        }
        let leaderboard = answer.json();
        let counted: BTreeMap<&str, u64> = leaderboard["tags"]
            .as_array()
            .expect("tags")
            .iter()
            .map(|t| (t["tag"].as_str().expect("a name"), t["count"].as_u64().expect("a count")))
            .collect();
        if counted == counts { Ok(()) } else { Err(format!("{counted:?}, not {counts:?}")) }
    });
}

fn dead_letters(client: &mut Client) -> u64 {
    let status = client.get("/v1/status").expect(200).json();
    status["consumers"]
        .as_array()
        .expect("consumers")
        .iter()
        .map(|c| c["dead_letters"].as_u64().expect("a count"))
        .sum()
}

/// Views a content with the receipt of a write of it, and with its token: 1 if the write is lost,
/// and its session is told of it.
fn tell_session(client: &mut Client, id: u64, receipt: &str, token: &str) -> usize {
    let verdict = client.get(&format!("/v1/receipts/{receipt}")).expect(200).json();
    let path = format!("/v1/content/page/{id}/tags");
    let mut view = |name: &str, value: &str| {
        let answer = client.request("GET", &path, &[(name, value)], None).expect("an answer");
        let next = answer.header("consistency-token").expect("a token").to_owned();
        let meta = answer.expect(200).json()["meta"].clone();
        let degraded = meta["degraded"].as_array().expect("a list").clone();
        let session = degraded.into_iter().find(|d| d["feature"] == "session");
        (session.map(|d| d["reason"].clone()), meta["source"].clone(), next)
    };
    if verdict["verdict"] == "kept" {
        assert_eq!(view("receipt", receipt).0, None);
        return 0;
    }
    assert_eq!((&verdict["verdict"], &verdict["reason"]), (&"lost".into(), &"unreported".into()));
    let (reason, source, _) = view("receipt", receipt);
    assert_eq!((reason, source), (Some("write_lost".into()), "primary".into()));
    let (reason, source, next) = view("consistency-token", token);
    assert_eq!((reason, source), (Some("failover".into()), "primary".into()));
    assert_eq!(view("consistency-token", &next).0, None, "it is told once");
    1
}

#[test]
fn index_and_counts_agree_with_the_shards_whatever_dies() {
    let _lock = bus_lock();
    let dir = tempfile::tempdir().expect("a folder");
    let options = StackOptions::complete(2, dir.path());
    let mut stack = Stack::up(&options, &|_| ()).expect("the stack comes up");
    let mut server = serve(&stack);
    let mut client = server.client().with_timeout(TEST_TIMEOUT);
    wait_until_ready(&mut client);

    // A write is found within the promised time, and counted.
    client.put("/v1/content/page/7/tags/Found%20Me").expect(200);
    wait_for_condition("the write is found", Duration::from_secs(5), || {
        let found = client.get("/v1/search?q=found-me").expect(200).json();
        if found["hits"][0]["id"] == "7" { Ok(()) } else { Err(found.to_string()) }
    });
    client.delete("/v1/content/page/7/tags/found-me").expect(200);

    // An operator holds the breaker open: events wait in the outbox, the status says so, and they
    // arrive when it is released.
    let hold = |state: &str| serde_json::json!({"name": "kafka", "state": state, "reason": "the broker is being moved"});
    client.post("/v1/breakers", &hold("open")).expect(200);
    client.put("/v1/content/page/8/tags/held-back").expect(200);
    let status = client.get("/v1/status").expect(200).text();
    assert!(status.contains("\"kafka\"") && status.contains("forced_open"), "{status}");
    // Searches answer with the state of before.
    assert_eq!(
        client.get("/v1/search?q=held-back").expect(200).json()["hits"],
        serde_json::json!([])
    );
    client.post("/v1/breakers", &hold("auto")).expect(200);
    wait_for_condition("the held event is found", TEST_TIMEOUT, || {
        let found = client.get("/v1/search?q=held-back").expect(200).json();
        if found["hits"][0]["id"] == "8" { Ok(()) } else { Err(found.to_string()) }
    });
    client.delete("/v1/content/page/8/tags/held-back").expect(200);

    let writer = Writer::start(&server);
    writer.goes_on();
    // The index dies: searches say so, writes go on, no record is blamed.
    stack.fault(Fault::Freeze, "opensearch").expect("frozen");
    stack.fault(Fault::Kill, "opensearch").expect("killed");
    writer.goes_on();
    let refused = client.get("/v1/search?q=t1");
    assert_eq!(refused.status, 503, "{}", refused.text());
    stack.fault(Fault::Restart, "opensearch").expect("started again");
    wait_for_condition("searches are answered", Duration::from_secs(90), || {
        let answer = client.get("/v1/search?q=t1");
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    });
    // The bus dies: writes go on, their events wait in the outbox.
    stack.fault(Fault::Freeze, "kafka").expect("frozen");
    stack.fault(Fault::Kill, "kafka").expect("killed");
    writer.goes_on();
    stack.fault(Fault::Restart, "kafka").expect("started again");
    // Another node becomes primary while events flow.
    writer.goes_on();
    stack.fault(Fault::Switchover, "c0").expect("switched over");
    writer.goes_on();
    writer.end();
    all_agree(&mut client);
    assert_eq!(dead_letters(&mut client), 0, "an outage is no record's fault");

    // The process itself dies, and the next one goes on where it was.
    server.kill();
    // Its guard would hold the last writes below, which are to be acknowledged and lost.
    let mut server = serving(&stack).env("TAGFAST__STORE__MAX_LOSS_MS", "60000").start();
    let mut client = server.client().with_timeout(TEST_TIMEOUT);
    wait_until_ready(&mut client);
    client.put("/v1/content/page/3/tags/after").expect(200);
    all_agree(&mut client);

    // A primary dies with writes that no replica has, and with it the process that acknowledged
    // them, so that none is left to repair them. Their events had been published with the documents
    // of their contents: those bring the writes back, and the receipts say so.
    let primary = stack.primary("c0").expect("a primary").name;
    let replicas: Vec<&str> =
        ["c0-n0", "c0-n1", "c0-n2"].into_iter().filter(|n| *n != primary).collect();
    for replica in &replicas {
        stack.fault(Fault::KillNode, replica).expect("killed");
    }
    let mut receipts = Vec::new();
    for id in LOST {
        let written = client.put(&format!("/v1/content/page/{id}/tags/lost")).expect(200).json();
        receipts.push(written["receipt"].as_str().expect("a receipt").to_owned());
    }
    wait_for_condition("the index has them", TEST_TIMEOUT, || {
        let found = index(&mut client)?
            .keys()
            .filter(|id| id.parse().is_ok_and(|id| LOST.contains(&id)))
            .count();
        if found == LOST.count() { Ok(()) } else { Err(format!("{found}")) }
    });
    // Later ones are not published: those of this primary are gone.
    client.post("/v1/breakers", &hold("open")).expect(200);
    let gone: Vec<(u64, String, String)> = GONE
        .map(|id| {
            let written = client.put(&format!("/v1/content/page/{id}/tags/gone")).expect(200);
            let receipt = written.json()["receipt"].as_str().expect("a receipt").to_owned();
            (id, receipt, written.header("consistency-token").expect("a token").to_owned())
        })
        .collect();
    stack.fault(Fault::KillNode, &primary).expect("killed");
    server.kill();
    for replica in &replicas {
        stack.fault(Fault::Restart, replica).expect("started again");
    }
    let server = serve(&stack);
    let mut client = server.client().with_timeout(TEST_TIMEOUT);
    wait_for_condition("c0 takes writes", TEST_TIMEOUT, || {
        let path = "/v1/content/page/0/tags/c0";
        let answers: Vec<u16> =
            (0..8).map(|id| client.put(&path.replace("/0/", &format!("/{id}/"))).status).collect();
        if answers.iter().all(|status| *status == 200) {
            Ok(())
        } else {
            Err(format!("{answers:?}"))
        }
    });
    wait_for_condition("the verdicts are final", TEST_TIMEOUT, || {
        let asked = client.post("/v1/receipts:check", &serde_json::json!({"receipts": receipts}));
        let all = asked.expect(200).json();
        let results = all["results"].as_array().expect("results");
        let has = |verdict: &str, reason: Option<&str>| {
            let is = |result: &&serde_json::Value| {
                result["verdict"] == verdict && result["reason"].as_str() == reason
            };
            results.iter().filter(is).count()
        };
        // Those of the other cluster were never lost.
        let (kept, repaired) = (has("kept", None), has("repaired", Some("event")));
        if repaired > 0 && kept + repaired == LOST.count() {
            Ok(())
        } else {
            Err(format!("{kept} kept, {repaired} repaired: {all}"))
        }
    });
    let there = shards(&mut client)
        .keys()
        .filter(|id| id.parse().is_ok_and(|id| LOST.contains(&id)))
        .count();
    assert_eq!(there, LOST.count(), "all of them came back");
    let told: usize = gone
        .iter()
        .map(|(id, receipt, token)| tell_session(&mut client, *id, receipt, token))
        .sum();
    assert!(told > 0, "those of c0 are gone");
    all_agree(&mut client);
    stack.fault(Fault::Restart, &primary).expect("started again");

    // A rebuild while it serves.
    client.request("POST", "/v1/admin/reindex", &[], None).expect("an answer").expect(200);
    all_agree(&mut client);
}

/// A topic with a different number of partitions is refused, with what to do.
#[test]
fn a_foreign_topic_is_refused_at_the_start() {
    let _lock = bus_lock();
    let dir = tempfile::tempdir().expect("a folder");
    let options = StackOptions { kafka: true, ..StackOptions::clusters_only(1, dir.path()) };
    let stack = Stack::up(&options, &|_| ()).expect("the stack comes up");
    drop(serve(&stack));
    let config = &stack.info().config;
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_tagfast"))
        .args(["serve", "--listen", "127.0.0.1:0", "--config"])
        .arg(config)
        .env("TAGFAST__KAFKA__PARTITIONS", "16")
        .env("TAGFAST__STORE__DATA_DIR", config.with_file_name("data"))
        .output()
        .expect("it runs");
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success() && stderr.contains("set kafka.partitions to 8"), "{stderr}");
}
