//! Two API nodes behind caches: whatever happens to Redis and to a replica, no user misses their
//! own write, and no old answer is served unmarked.

use std::time::Duration;

use serde_json::Value;
use tagfast_testkit::stack::{Fault, Stack, StackOptions};
use tagfast_testkit::{ReadYourWritesClients, wait_for_condition};

use crate::{ONE_STACK, TEST_TIMEOUT, full, node, version, wait_until_ready};

/// Read-your-writes through two nodes while Redis servers freeze, die and forget, and a replica
/// hangs or is slow.
#[test]
#[expect(clippy::print_stdout, reason = "how many were checked is a figure")]
fn no_user_misses_their_own_write_whatever_happens_to_the_caches() {
    let _lock = ONE_STACK.lock();
    let dir = tempfile::tempdir().expect("a folder");
    let options = StackOptions { redis: true, ..StackOptions::clusters_only(1, dir.path()) };
    let mut stack = Stack::up(&options, &|_| ()).expect("the stack comes up");
    let servers = [node(&stack, "a"), node(&stack, "b")];
    servers.iter().for_each(|server| wait_until_ready(&mut server.client()));
    // The large number of reads takes longer than any other wait.
    let (clients, count, timeout) =
        if full() { (16, 60_000, TEST_TIMEOUT * 60) } else { (4, 150, TEST_TIMEOUT) };
    let clients = ReadYourWritesClients::start(
        [servers[0].address(), servers[1].address()],
        clients,
        TEST_TIMEOUT,
    );
    let more = |count| clients.wait_for_reads(count, timeout);
    more(count);
    let primary = stack.primary("c0").expect("a primary").name;
    let replica = stack.replica("c0").expect("a replica").name;
    for (target, fault) in [
        ("redis", Fault::Freeze),
        ("redis", Fault::Kill),
        ("state-redis", Fault::Freeze),
        ("state-redis", Fault::Kill),
        ("redis", Fault::Slow { ms: 50 }),
        ("redis", Fault::Hang),
        ("redis", Fault::Garbage),
        ("redis", Fault::Refuse),
        ("state-redis", Fault::Reset),
        (replica.as_str(), Fault::Slow { ms: 500 }),
        (replica.as_str(), Fault::Hang),
        (primary.as_str(), Fault::Slow { ms: 20 }),
    ] {
        stack.fault(fault, target).expect("a fault");
        more(count);
        stack.fault(fault.end(), target).expect("its end");
        more(count / 3);
    }
    // All at once: neither Redis for a while, and a replica.
    for target in ["redis", "state-redis", replica.as_str()] {
        stack.fault(Fault::Hang, target).expect("a fault");
    }
    more(count);
    // A strong read is confirmed by the primary or refused, never guessed.
    let mut strict = servers[0].client();
    let answered =
        strict.request("GET", "/v1/content/test.own/w0-0/tags", &[("consistency", "strong")], None);
    assert!(
        matches!(answered.as_ref().expect("an answer").status, 200 | 503),
        "{}",
        answered.expect("an answer").text()
    );
    for target in ["redis", "state-redis", replica.as_str()] {
        stack.fault(Fault::Heal, target).expect("its end");
    }
    // Without help it is as before: caches answer again.
    let before = clients.report().from_cache;
    wait_for_condition("caches answer again", TEST_TIMEOUT, || {
        let now = clients.report().from_cache;
        if now >= before + 100 { Ok(()) } else { Err(format!("{} more", now - before)) }
    });
    let seen = clients.stop();
    println!("{} reads, {} not answered, {} stale", seen.checked, seen.unanswered, seen.stale);
    let some = &seen.violations[..seen.violations.len().min(5)];
    assert!(some.is_empty(), "{} of {}: {some:#?}", seen.violations.len(), seen.checked);
    assert!(
        seen.unanswered * 100 <= seen.checked,
        "{} of {} were not answered",
        seen.unanswered,
        seen.checked
    );
    assert!(seen.stale <= seen.checked / 2, "most are as new as they can be");
}

/// A write through one node is soon visible through the other; a cache that was emptied refills.
#[test]
fn an_answer_says_what_the_caches_did() {
    let _lock = ONE_STACK.lock();
    let dir = tempfile::tempdir().expect("a folder");
    let options = StackOptions { redis: true, ..StackOptions::clusters_only(1, dir.path()) };
    let mut stack = Stack::up(&options, &|_| ()).expect("the stack comes up");
    let servers = [node(&stack, "a"), node(&stack, "b")];
    let mut clients = [servers[0].client(), servers[1].client()];
    clients.iter_mut().for_each(wait_until_ready);
    let path = "/v1/content/test.doc/1/tags";
    let eventual = [("consistency", "eventual")];
    let mut view = |node: usize| {
        let answer =
            clients[node].request("GET", path, &eventual, None).expect("an answer").expect(200);
        let status = answer.header("cache-status").expect("a header").to_owned();
        (answer.json(), status)
    };
    wait_for_condition("L1 answers", TEST_TIMEOUT, || {
        let (body, status) = view(0);
        if status == "tagfast; hit; detail=l1" { Ok(()) } else { Err(format!("{status}: {body}")) }
    });
    let mut writer = servers[1].client();
    let written = version(&writer.put(&format!("{path}/new")).expect(200).json());
    wait_for_condition("the other node sees the write", Duration::from_secs(3), || {
        let (body, status) = view(0);
        if version(&body) == written { Ok(()) } else { Err(format!("{status}: {body}")) }
    });
    // Without the cache it is ready, and says what is missing.
    stack.fault(Fault::Kill, "redis").expect("killed");
    let mut health = servers[0].client();
    let names_the_cache = |answer: &Value| {
        let degraded = answer["degraded"].as_array().expect("a list");
        degraded.iter().any(|part| part["feature"] == "cache")
    };
    wait_for_condition("readyz names the cache", TEST_TIMEOUT, || {
        let answer = health.get("/readyz").expect(200).json();
        let named = names_the_cache(&answer);
        if answer["ready"] == true && named { Ok(()) } else { Err(answer.to_string()) }
    });
    stack.fault(Fault::Restart, "redis").expect("started");
    wait_for_condition("the cache is back", TEST_TIMEOUT, || {
        let answer = health.get("/readyz").expect(200).json();
        if names_the_cache(&answer) { Err(answer.to_string()) } else { Ok(()) }
    });
    wait_for_condition("L1 answers again", TEST_TIMEOUT, || {
        let (body, status) = view(0);
        if status == "tagfast; hit; detail=l1" { Ok(()) } else { Err(format!("{status}: {body}")) }
    });
    // Neither the cache nor the database answers: the last known view is served, marked as stale.
    for target in ["redis", "c0-n0", "c0-n1", "c0-n2"] {
        stack.fault(Fault::Hang, target).expect("a fault");
    }
    wait_for_condition("L1 is old", TEST_TIMEOUT, || {
        let (body, status) = view(0);
        let marked = body["meta"]["stale"] == true && body["meta"]["source"] == "cache";
        if marked && status.starts_with("tagfast; fwd=stale") {
            Ok(())
        } else {
            Err(format!("{status}: {body}"))
        }
    });
    let mut strict = servers[0].client();
    let answered = strict.request(
        "GET",
        path,
        &[("consistency", "eventual"), ("cache-control", "no-cache")],
        None,
    );
    let refused = answered.expect("an answer");
    assert!(
        matches!(refused.status, 503 | 504) && refused.header("retry-after").is_some(),
        "{}",
        refused.text()
    );
    for target in ["redis", "c0-n0", "c0-n1", "c0-n2"] {
        stack.fault(Fault::Heal, target).expect("its end");
    }
    wait_for_condition("it is as before", TEST_TIMEOUT, || {
        let (body, status) = view(0);
        if body["meta"]["stale"] == false { Ok(()) } else { Err(format!("{status}: {body}")) }
    });
}
