//! The program on real clusters, as a user runs it: the configuration that the stack writes, HTTP,
//! a cluster that is down.

mod apart;
mod asleep;
mod events;
mod feeds;
mod index;
mod readiness;
mod rotation;
mod shield;

use std::process::{Command, Stdio};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tagfast_testkit::stack::proxy::Mode;
use tagfast_testkit::stack::{Fault, NodeInfo, Stack, StackOptions};
use tagfast_testkit::{Client, ServerOptions, ServerProcess, wait_for_condition};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// One of these tests at a time: two processors carry the servers of one stack.
static ONE_STACK: Mutex<()> = Mutex::new(());

/// Whether the tests run with their big counts.
fn full() -> bool {
    cfg!(feature = "full")
}

fn serve(stack: &Stack) -> ServerProcess {
    serving(stack).start()
}

fn serving(stack: &Stack) -> ServerOptions {
    ServerOptions::other(env!("CARGO_BIN_EXE_tagfast"))
        .arg("--config")
        .arg(&stack.info().config)
        .env("TAGFAST__STORE__PRIMARY_WAIT_MS", "8000")
        .arg("--data-dir")
        .arg(stack.info().config.with_file_name("data"))
        .serve()
}

/// One of several processes, with a data directory of this name.
fn node(stack: &Stack, name: &str) -> ServerProcess {
    ServerOptions::other(env!("CARGO_BIN_EXE_tagfast"))
        .arg("--config")
        .arg(&stack.info().config)
        .arg("--data-dir")
        .arg(stack.info().config.with_file_name(name))
        .serve()
        .start()
}

/// The version in an answer about a content.
fn version(body: &Value) -> u64 {
    body["version"].as_str().and_then(|version| version.parse().ok()).expect("a version")
}

fn wait_until_ready(client: &mut Client) {
    wait_for_condition("ready", TEST_TIMEOUT, || {
        let answer = client.get("/readyz");
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    });
}

/// Enough contents that both clusters hold some, whatever their hashes are.
fn ids() -> impl Iterator<Item = String> {
    (0..40).map(|n| format!("OPS-{n}"))
}

#[test]
fn a_cluster_that_is_down_stops_its_own_contents_only() {
    let _lock = ONE_STACK.lock();
    let dir = tempfile::tempdir().expect("a folder");
    let mut stack = Stack::up(&StackOptions::clusters_only(2, dir.path()), &|_| ())
        .expect("the stack comes up");
    let server = serve(&stack);
    let mut client = server.client().with_timeout(Duration::from_secs(20));
    wait_until_ready(&mut client);
    for id in ids() {
        let answer = client.put(&format!("/v1/content/jira.issue/{id}/tags/first")).expect(200);
        assert_eq!(answer.json()["changed"], true);
        let view = client.get(&format!("/v1/content/jira.issue/{id}/tags")).expect(200).json();
        assert_eq!(view["tags"][0]["tag"], "first");
    }
    assert_eq!(client.get("/v1/search?q=first").expect(501).json()["code"], "not_in_this_mode");
    assert_eq!(client.get("/v1/tags/popular").expect(501).json()["code"], "not_in_this_mode");
    let mut replicated = server.client();
    let answered =
        replicated.request("PUT", "/v1/content/a/1/tags/x", &[("durability", "replicated")], None);
    let durability = answered.expect("an answer").expect(200).json()["durability"].clone();
    assert!(durability["of"].as_u64() >= Some(1), "{durability}");
    assert_eq!(durability["replicas"], durability["of"], "{durability}");

    let written = client.put("/v1/content/jira.issue/OPS-1/tags/first").expect(200);
    let receipt = written.json()["receipt"].as_str().expect("a receipt").to_owned();
    let verdict = client.get(&format!("/v1/receipts/{receipt}")).expect(200).json();
    assert_eq!(verdict["verdict"], "kept", "{verdict}");
    let token = written.header("consistency-token").expect("a token").to_owned();
    let forged = token.replace(|c: char| c.is_ascii_digit(), "x");
    for bad in [&token[..token.len() / 2], &forged, "AAAA"] {
        let answered = client.request(
            "GET",
            "/v1/content/jira.issue/OPS-1/tags",
            &[("consistency-token", bad)],
            None,
        );
        assert_eq!(answered.expect("an answer").expect(400).json()["code"], "bad_token", "{bad:?}");
    }
    let metrics = client.get("/metrics").expect(200).text();
    for name in [
        "tagfast_replica_lag_bytes",
        "tagfast_node_is_primary",
        "tagfast_installation_warnings",
        "tagfast_leader_lease_left_seconds",
    ] {
        assert!(
            metrics.contains(&format!("{name}{{cluster=\"c0\"")),
            "{name} is missing:\n{metrics}"
        );
    }

    // The primary of c0 dies: writes wait and go on without an error.
    stack.fault(Fault::Kill, "c0").expect("killed");
    for id in ids() {
        client.put(&format!("/v1/content/jira.issue/{id}/tags/second")).expect(200);
    }
    let view = client.get("/v1/content/jira.issue/OPS-1/tags").expect(200).json();
    assert_eq!(view["tags"].as_array().map(Vec::len), Some(2), "{view}");
    drop(server);

    // A whole cluster is down while a node starts: it serves the other one and says so.
    for node in ["c1-n0", "c1-n1", "c1-n2"] {
        stack.fault(Fault::KillNode, node).expect("killed");
    }
    let server = serve(&stack);
    let mut client = server.client().with_timeout(Duration::from_secs(20));
    wait_for_condition("only c1 is missing", TEST_TIMEOUT, || {
        let answer = client.get("/readyz");
        let text = answer.text();
        if answer.status == 503 && text.contains("c1: ") && !text.contains("c0: ") {
            Ok(())
        } else {
            Err(text)
        }
    });
    let (mut served, mut refused) = (0, 0);
    for id in ids() {
        let answer = client.get(&format!("/v1/content/jira.issue/{id}/tags"));
        match answer.status {
            200 => served += 1,
            503 => {
                refused += 1;
                assert!(answer.header("retry-after").is_some(), "{}", answer.text());
            }
            other => panic!("{other}: {}", answer.text()),
        }
    }
    assert!(served > 5 && refused > 5, "{served} served, {refused} refused");
    for node in ["c1-n0", "c1-n1", "c1-n2"] {
        stack.fault(Fault::Restart, node).expect("started again");
    }
    wait_until_ready(&mut client);
    for id in ids() {
        let view = client.get(&format!("/v1/content/jira.issue/{id}/tags")).expect(200).json();
        assert_eq!(view["tags"].as_array().map(Vec::len), Some(2), "{id}: {view}");
    }
}

/// The answer of a query sent to the node itself, not through its proxy.
fn query_node(stack: &Stack, node: &NodeInfo, query: &str) -> String {
    String::from_utf8(psql(stack, node, query).output().expect("psql runs").stdout)
        .expect("text")
        .trim()
        .to_owned()
}

fn psql(stack: &Stack, node: &NodeInfo, query: &str) -> Command {
    let database = &stack.info().database;
    let password = std::fs::read_to_string(&database.password_file).expect("the password");
    let mut psql = Command::new("/usr/lib/postgresql/15/bin/psql");
    psql.env("PGPASSWORD", password).args([
        "-XAtq",
        "-U",
        &database.user,
        "-d",
        &database.name,
        "-c",
        query,
    ]);
    psql.args([
        "-h",
        &node.direct_postgres.ip().to_string(),
        "-p",
        &node.direct_postgres.port().to_string(),
    ]);
    psql.stdout(Stdio::piped());
    psql
}

/// The process itself stops between a commit and its answer, sleeps through a failover, and wakes
/// up.
#[test]
fn a_node_that_sleeps_between_commit_and_answer_acknowledges_nothing_old() {
    let _lock = ONE_STACK.lock();
    let dir = tempfile::tempdir().expect("a folder");
    let mut stack = Stack::up(&StackOptions::clusters_only(1, dir.path()), &|_| ())
        .expect("the stack comes up");
    let server = serve(&stack);
    let mut client = server.client().with_timeout(TEST_TIMEOUT);
    wait_until_ready(&mut client);
    client.put("/v1/content/jira.issue/OPS-1/tags/first").expect(200);

    // A lock holds the write inside the primary until the way back is closed: it commits, and its
    // answer does not come back.
    let old = stack.primary("c0").expect("a primary");
    let mut locker =
        psql(&stack, &old, "BEGIN; SELECT FROM content FOR UPDATE; SELECT pg_sleep(2); COMMIT")
            .spawn()
            .expect("psql");
    let waits = |event: &str| format!("SELECT count(*) FROM pg_stat_activity WHERE {event}");
    let seen = |what: &str, query: &str| {
        wait_for_condition(what, TEST_TIMEOUT, || {
            let found = query_node(&stack, &old, query);
            if found == "1" { Ok(()) } else { Err(found) }
        });
    };
    seen("the row is locked", &waits("wait_event = 'PgSleep'"));
    let mut writer = server.client().with_timeout(TEST_TIMEOUT);
    let write = std::thread::spawn(move || writer.put("/v1/content/jira.issue/OPS-1/tags/second"));
    seen(
        "the write waits",
        &waits("wait_event_type = 'Lock' AND application_name = 'tagfast-write'"),
    );
    stack.control().set(&old.name, Mode::Hang).expect("its answers are held");
    locker.wait().expect("psql ends");
    let holds = "SELECT count(*) FROM content WHERE position('second'::bytea IN doc) > 0";
    seen("the write is committed", holds);
    server.freeze();
    stack.fault(Fault::Kill, &old.name).expect("killed");
    let new = wait_for_condition("a different node is primary", TEST_TIMEOUT, || {
        match stack.primary("c0") {
            Ok(node) if node.name != old.name => Ok(node),
            Ok(_) => Err("not yet".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        }
    });
    stack.fault(Fault::Heal, &old.name).expect("healed");
    server.thaw();

    // A write that it acknowledges now is on the present primary, once.
    let answer = write.join().expect("no panic").expect(200).json();
    assert_eq!(answer["changed"], true, "{answer}");
    assert_eq!(query_node(&stack, &new, holds), "1");
    let view = client.get("/v1/content/jira.issue/OPS-1/tags").expect(200).json();
    assert_eq!(view["tags"].as_array().map(Vec::len), Some(2), "{view}");
    let metrics = client.get("/metrics").expect(200).text();
    assert!(metrics.contains("tagfast_failovers_total{cluster=\"c0\"} 1"), "{metrics}");
}
