//! Two API nodes behind caches: whatever happens to Redis and to a replica, nobody misses their own write and nothing old is
//! answered unmarked.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tagfast_testkit::stack::{Fault, Stack, StackOptions};
use tagfast_testkit::{Client, ServerOptions, ServerProcess, wait_for_condition};

use crate::{PATIENCE, TURN, full, wait_until_ready};

/// What readers have seen.
#[derive(Default)]
struct Seen {
    checked: AtomicU64,
    unanswered: AtomicU64,
    stale: AtomicU64,
    from_cache: AtomicU64,
    violations: Mutex<Vec<String>>,
}

impl Seen {
    fn checked(&self) -> u64 {
        self.checked.load(Ordering::SeqCst)
    }

    /// Waits until so many more reads were checked: under a fault that is what the fault is for.
    fn more(&self, count: u64) {
        let until = self.checked() + count;
        wait_for_condition("reads go on", PATIENCE, || {
            let now = self.checked();
            if now >= until { Ok(()) } else { Err(format!("{now} of {until}")) }
        });
    }

    fn violated(&self, what: String) {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }
}

fn node(stack: &Stack, name: &str) -> ServerProcess {
    ServerOptions::other(env!("CARGO_BIN_EXE_tagfast"))
        .arg("--config")
        .arg(&stack.info().config)
        .arg("--data-dir")
        .arg(stack.info().config.with_file_name(name))
        .serve()
        .start()
}

fn version(body: &Value) -> u64 {
    body["version"].as_str().and_then(|version| version.parse().ok()).expect("a version")
}

/// Writes through one node and reads through the other, with the token or as the same user without one.
fn write_and_read(worker: u64, nodes: &mut [Client; 2], seen: &Seen, stop: &AtomicBool) {
    let mut written: BTreeMap<u64, u64> = BTreeMap::new();
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        let content = n % 7;
        let path = format!("/v1/content/test.doc/w{worker}-{content}/tags");
        let tags = json!({"tags": [format!("n{n}"), "always"]}).to_string();
        let (to, from) = if n % 2 == 0 { (0, 1) } else { (1, 0) };
        let Ok(answer) = nodes[to].request("PUT", &path, &[], Some(&tags)) else {
            // The connection ended; the next request makes another one.
            continue;
        };
        if answer.status != 200 {
            // It may have happened: what is there now is at least what was there before.
            seen.unanswered.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let token = answer.header("consistency-token").expect("a token").to_owned();
        let body = answer.json();
        // Its position could not be stored, and it says so: only the token promises anything through the other node.
        let remembered = body["degraded"].as_array().is_none_or(Vec::is_empty);
        written.insert(content, version(&body));
        for with_token in [true, false] {
            let token_header = [("consistency-token", token.as_str())];
            let headers: &[(&str, &str)] = if with_token { &token_header } else { &[] };
            let Ok(answer) = nodes[from].request("GET", &path, headers, None) else { continue };
            seen.checked.fetch_add(1, Ordering::SeqCst);
            if answer.status != 200 {
                seen.unanswered.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            let body = answer.json();
            let marked =
                body["meta"]["stale"] == true || body["meta"]["degraded"].as_array().is_some_and(|d| !d.is_empty());
            seen.stale.fetch_add(u64::from(body["meta"]["stale"] == true), Ordering::SeqCst);
            seen.from_cache.fetch_add(u64::from(body["meta"]["source"] == "cache"), Ordering::SeqCst);
            let behind = version(&body) < written[&content];
            if behind && (with_token || (remembered && !marked)) {
                seen.violated(format!("token {with_token}: {body} is behind {}", written[&content]));
            }
        }
    }
}

/// Read-your-writes through two nodes while Redis servers freeze, die and forget, and a replica hangs or is slow.
#[test]
fn vc1_nobody_misses_their_own_write_whatever_happens_to_the_caches() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().expect("a folder");
    let options = StackOptions { redis: true, ..StackOptions::clusters_only(1, dir.path()) };
    let mut stack = Stack::up(&options, &|_| ()).expect("the stack comes up");
    let servers = [node(&stack, "a"), node(&stack, "b")];
    servers.iter().for_each(|server| wait_until_ready(&mut server.client()));
    let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            let mut nodes = [servers[0].client().with_timeout(PATIENCE), servers[1].client().with_timeout(PATIENCE)];
            std::thread::spawn(move || write_and_read(worker, &mut nodes, &seen, &stop))
        })
        .collect();
    let count = if full() { 20_000 } else { 150 };
    seen.more(count);
    let replica = {
        let primary = stack.primary("c0").expect("a primary").name;
        let nodes = &stack.info().clusters[0].nodes;
        nodes.iter().find(|node| node.name != primary).expect("a replica").name.clone()
    };
    for (target, begin, end) in [
        ("redis", Fault::Freeze, Fault::Thaw),
        ("redis", Fault::Kill, Fault::Restart),
        ("state-redis", Fault::Freeze, Fault::Thaw),
        ("state-redis", Fault::Kill, Fault::Restart),
        ("redis", Fault::Slow { ms: 50 }, Fault::Heal),
        ("redis", Fault::Hang, Fault::Heal),
        ("redis", Fault::Garbage, Fault::Heal),
        ("state-redis", Fault::Reset, Fault::Heal),
        (replica.as_str(), Fault::Slow { ms: 500 }, Fault::Heal),
        (replica.as_str(), Fault::Hang, Fault::Heal),
    ] {
        stack.fault(begin, target).expect("a fault");
        seen.more(count);
        stack.fault(end, target).expect("its end");
        seen.more(count / 3);
    }
    // All at once.
    for target in ["redis", "state-redis", replica.as_str()] {
        stack.fault(Fault::Hang, target).expect("a fault");
    }
    seen.more(count);
    for target in ["redis", "state-redis", replica.as_str()] {
        stack.fault(Fault::Heal, target).expect("its end");
    }
    // By itself it is as before: caches answer again.
    let before = seen.from_cache.load(Ordering::SeqCst);
    wait_for_condition("caches answer again", PATIENCE, || {
        let now = seen.from_cache.load(Ordering::SeqCst);
        if now >= before + 100 { Ok(()) } else { Err(format!("{} more", now - before)) }
    });
    stop.store(true, Ordering::SeqCst);
    workers.into_iter().for_each(|worker| worker.join().expect("no panic"));
    let violations = seen.violations.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(
        violations.is_empty(),
        "{} of {}: {:#?}",
        violations.len(),
        seen.checked(),
        &violations[..violations.len().min(5)]
    );
    let unanswered = seen.unanswered.load(Ordering::SeqCst);
    assert!(unanswered * 100 <= seen.checked(), "{unanswered} of {} were not answered", seen.checked());
    assert!(seen.stale.load(Ordering::SeqCst) <= seen.checked() / 2, "most are as new as they can be");
}

/// A write through one node is seen by everybody through the other, soon; a cache that was emptied fills by itself.
#[test]
fn what_caches_did_is_told_with_the_answer() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().expect("a folder");
    let options = StackOptions { redis: true, ..StackOptions::clusters_only(1, dir.path()) };
    let mut stack = Stack::up(&options, &|_| ()).expect("the stack comes up");
    let servers = [node(&stack, "a"), node(&stack, "b")];
    let mut clients = [servers[0].client(), servers[1].client()];
    clients.iter_mut().for_each(wait_until_ready);
    let path = "/v1/content/test.doc/1/tags";
    let eventual = [("consistency", "eventual")];
    let mut view = |node: usize| {
        let answer = clients[node].request("GET", path, &eventual, None).expect("an answer").expect(200);
        let status = answer.header("cache-status").expect("a header").to_owned();
        (answer.json(), status)
    };
    wait_for_condition("L1 answers", PATIENCE, || {
        let (body, status) = view(0);
        if status == "tagfast; hit; detail=l1" { Ok(()) } else { Err(format!("{status}: {body}")) }
    });
    let mut writer = servers[1].client();
    let written = version(&writer.put(&format!("{path}/new")).expect(200).json());
    wait_for_condition("the other node hears of it", Duration::from_secs(3), || {
        let (body, status) = view(0);
        if version(&body) == written { Ok(()) } else { Err(format!("{status}: {body}")) }
    });
    // Without the cache it is ready, and says what is missing.
    stack.fault(Fault::Kill, "redis").expect("killed");
    let mut health = servers[0].client();
    wait_for_condition("readyz names the cache", PATIENCE, || {
        let answer = health.get("/readyz").expect(200).json();
        let named = answer["degraded"].as_array().is_some_and(|d| d.iter().any(|d| d["feature"] == "cache"));
        if answer["ready"] == true && named { Ok(()) } else { Err(answer.to_string()) }
    });
    stack.fault(Fault::Restart, "redis").expect("started");
    wait_for_condition("the cache is back", PATIENCE, || {
        let answer = health.get("/readyz").expect(200).json();
        if answer["degraded"] == json!([]) { Ok(()) } else { Err(answer.to_string()) }
    });
    wait_for_condition("L1 answers again", PATIENCE, || {
        let (body, status) = view(0);
        if status == "tagfast; hit; detail=l1" { Ok(()) } else { Err(format!("{status}: {body}")) }
    });
    // Neither the cache nor the database: what was known is answered, and says so.
    for target in ["redis", "c0-n0", "c0-n1", "c0-n2"] {
        stack.fault(Fault::Hang, target).expect("a fault");
    }
    wait_for_condition("L1 is old", PATIENCE, || {
        let (body, status) = view(0);
        let marked = body["meta"]["stale"] == true && body["meta"]["source"] == "cache";
        if marked && status.starts_with("tagfast; fwd=stale") { Ok(()) } else { Err(format!("{status}: {body}")) }
    });
    let mut strict = servers[0].client();
    let asked = strict.request("GET", path, &[("consistency", "eventual"), ("cache-control", "no-cache")], None);
    let refused = asked.expect("an answer");
    assert!(matches!(refused.status, 503 | 504) && refused.header("retry-after").is_some(), "{}", refused.text());
    for target in ["redis", "c0-n0", "c0-n1", "c0-n2"] {
        stack.fault(Fault::Heal, target).expect("its end");
    }
    wait_for_condition("it is as before", PATIENCE, || {
        let (body, status) = view(0);
        if body["meta"]["stale"] == false { Ok(()) } else { Err(format!("{status}: {body}")) }
    });
}
