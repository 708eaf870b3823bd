//! Readiness and status follow what calls experience: whatever keeps the writes of one cluster from
//! being done, `/readyz` and `/v1/status` name the cluster and the cause within 5 s, each refused
//! call names the cause too, the log has one line when it begins and one when it ends, and the
//! other cluster's calls go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tagfast_testkit::stack::patroni::reinitialize;
use tagfast_testkit::stack::proxy::Mode;
use tagfast_testkit::stack::{Fault, NodeInfo, PostgresFault, Stack, StackOptions, StateFault};
use tagfast_testkit::{Client, ServerOptions, ServerProcess, wait_for_condition};

use crate::{ONE_STACK, TEST_TIMEOUT, full, psql, wait_until_ready};

/// `default_transaction_read_only`, set and reset.
const READ_ONLY: Fault = Fault::State(StateFault::Postgres(PostgresFault::ReadOnly));
const READ_WRITE: Fault = Fault::EndState(StateFault::Postgres(PostgresFault::ReadOnly));
/// etcd asks for a user, and no more.
const ETCD_AUTH: Fault = Fault::State(StateFault::EtcdAuth);
const ETCD_OPEN: Fault = Fault::EndState(StateFault::EtcdAuth);
/// How long it may take until a cause is named, and until the cluster is ready again.
const NAMED_WITHIN: Duration = Duration::from_secs(5);

/// A fault of a whole cluster.
struct Cell {
    name: &'static str,
    inject: fn(&mut Stack, &NodeInfo),
    heal: fn(&mut Stack, &NodeInfo),
    /// One of these must be named.
    causes: &'static [&'static str],
    /// How long Patroni may take to put the cluster in order again.
    healed_within: Duration,
    /// Whether the other cluster suffers it too.
    is_shared: bool,
}

const CELLS: &[Cell] = &[
    Cell {
        name: "the server is set read-only",
        inject: |stack, primary| stack.fault(READ_ONLY, &primary.name).expect("set"),
        heal: |stack, primary| stack.fault(READ_WRITE, &primary.name).expect("set"),
        causes: &["read_only"],
        healed_within: NAMED_WITHIN,
        is_shared: false,
    },
    Cell {
        name: "a table is locked",
        inject: |stack, primary| {
            let lock = "BEGIN; LOCK TABLE content IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(600)";
            drop(psql(stack, primary, lock).spawn().expect("psql"));
        },
        heal: |stack, primary| {
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE wait_event = 'PgSleep'";
            assert!(psql(stack, primary, end).status().expect("psql runs").success());
        },
        causes: &["locked"],
        healed_within: NAMED_WITHIN,
        is_shared: false,
    },
    Cell {
        name: "the primary takes requests and does not answer",
        inject: |stack, primary| stack.control().set(&primary.name, Mode::Hang).expect("set"),
        heal: |stack, primary| stack.control().set(&primary.name, Mode::Pass).expect("set"),
        causes: &["no_answer", "took longer than", "unproven"],
        healed_within: NAMED_WITHIN,
        is_shared: false,
    },
    Cell {
        name: "a node is promoted by hand while Patroni is paused",
        inject: |stack, _| {
            pause(stack, true);
            let replica = stack.replica("c0").expect("a replica");
            stack.sql(&replica, "SELECT pg_promote()").expect("promoted");
        },
        heal: |stack, primary| {
            pause(stack, false);
            copy_again(stack, &primary.name);
        },
        causes: &["unproven"],
        healed_within: Duration::from_secs(60),
        is_shared: false,
    },
    Cell {
        name: "etcd asks for a password",
        inject: |stack, _| stack.fault(ETCD_AUTH, "etcd").expect("asks"),
        heal: |stack, _| stack.fault(ETCD_OPEN, "etcd").expect("asks no more"),
        causes: &["store.etcd_user"],
        healed_within: Duration::from_secs(30),
        is_shared: true,
    },
];

fn pause(stack: &Stack, paused: bool) {
    let node = &stack.info().clusters[0].nodes[0];
    let body = json!({"pause": if paused { json!(true) } else { Value::Null }}).to_string();
    let answer = Client::new(node.direct_patroni).send("PATCH", "/config", Some(&body));
    answer.expect(200);
}

/// Has Patroni copy the primary to each replica that does not stream: it does not mend a node that
/// was promoted by hand.
fn copy_again(stack: &Stack, primary: &str) {
    let nodes = stack.info().clusters[0].nodes.iter().filter(|node| node.name != primary);
    for node in nodes {
        let mut patroni = Client::new(node.direct_patroni).with_timeout(Duration::from_secs(5));
        let mut asked = false;
        wait_for_condition("it streams", TEST_TIMEOUT, || {
            let state = patroni.get("/patroni").json();
            if state["replication_state"] == "streaming" {
                return Ok(());
            }
            // Once: each time it would begin again.
            if !asked {
                asked = reinitialize(node).is_ok();
            }
            Err(state.to_string())
        });
    }
}

/// Ids of contents of each cluster: c0 and c1 hold half of the shards each. Found by the answers
/// while c0 is struck.
fn ids() -> Vec<String> {
    (0..24).map(|n| format!("ready-{n}")).collect()
}

/// Writes all the time, as users do; counts what it is told.
struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    fn start(server: &ServerProcess) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = |n: usize| {
            let (mut client, stop) = (server.client(), Arc::clone(&stop));
            std::thread::spawn(move || {
                for round in (n..).step_by(3) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let id = round % 24;
                    let path = format!("/v1/content/jira.issue/ready-{id}/tags/w{}", round % 7);
                    let answer = client.put(&path);
                    let body = answer.json();
                    match answer.status {
                        200 => {}
                        503 | 504 => assert!(body["outcome_unknown"].is_boolean(), "{body}"),
                        other => panic!("{other}: {body}"),
                    }
                }
            })
        };
        let threads = (0..3).map(writer).collect();
        Self { stop, threads }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    }
}

/// The reasons of everything that status names of a cluster.
fn status_of(client: &mut Client, cluster: &str) -> Vec<String> {
    let status = client.get("/v1/status").expect(200).json();
    let degraded = status["degraded"].as_array().expect("a list").iter();
    let of_cluster = degraded.filter(|entry| {
        entry["feature"].as_str().is_some_and(|feature| feature.ends_with(cluster))
    });
    of_cluster.map(ToString::to_string).collect()
}

fn names(text: &str, cell: &Cell) -> bool {
    cell.causes.iter().any(|cause| text.contains(cause))
}

/// Lines of the log that tell that a cause of c0's writes begins, and that one ends.
fn log_lines(server: &ServerProcess) -> (usize, usize) {
    let log = server.log();
    let count = |words: &str| log.lines().filter(|line| line.contains(words)).count();
    (count("writes of c0 fail: "), count("writes of c0 no longer fail "))
}

#[expect(clippy::print_stdout, reason = "how long each cell took is a figure")]
fn run_cell(cell: &Cell, stack: &mut Stack, server: &ServerProcess, calls: bool) {
    let mut client = server.client().with_timeout(Duration::from_secs(20));
    wait_until_ready(&mut client);
    let primary = stack.primary("c0").expect("a primary");
    let before = log_lines(server);
    let writers = calls.then(|| Writers::start(server));
    let began = Instant::now();
    (cell.inject)(stack, &primary);

    // Where calls go on, status names what is wrong; where they fail, readiness does.
    wait_for_condition(cell.name, TEST_TIMEOUT, || {
        let (ready, status) = (client.get("/readyz"), status_of(&mut client, "c0").join("; "));
        let text = ready.text();
        let spared = cell.is_shared || !text.contains("c1: ");
        assert!(spared, "{}: c1 is not concerned: {text}", cell.name);
        let struck = ready.status == 503 && text.contains("c0: ") && names(&text, cell);
        let goes_on = ready.status == 200 && names(&status, cell);
        if (struck || goes_on) && names(&status, cell) { Ok(()) } else { Err(text) }
    });
    let named = began.elapsed();
    let (mut served, mut refused) = (0, 0);
    let struck = client.get("/readyz").status == 503;
    for id in ids() {
        let mut patient = server.client().with_timeout(Duration::from_secs(20));
        let answer = patient.put(&format!("/v1/content/jira.issue/{id}/tags/during"));
        let problem = answer.json();
        match answer.status {
            200 => served += 1,
            503 | 504 => {
                refused += 1;
                let detail = problem["detail"].as_str().expect("a detail");
                assert!(problem["outcome_unknown"].is_boolean(), "{}: {problem}", cell.name);
                assert!(detail.ends_with("applied nothing") || detail.contains("may have been"));
                assert!(detail.contains('('), "{}: no cause: {detail}", cell.name);
            }
            other => panic!("{}: {other}: {problem}", cell.name),
        }
        if served >= 4 && (refused >= 2 || !struck) {
            break;
        }
    }
    assert!(served >= 4, "{}: the other cluster's calls go on", cell.name);
    assert_eq!(refused > 0, struck, "{}: what is told is what calls experience", cell.name);

    let healing = Instant::now();
    (cell.heal)(stack, &primary);
    wait_for_condition(cell.name, TEST_TIMEOUT, || {
        let (ready, status) = (client.get("/readyz"), status_of(&mut client, "c0").join("; "));
        let calm = ready.status == 200 && !names(&status, cell);
        if calm { Ok(()) } else { Err(format!("{}; {status}", ready.text())) }
    });
    let healed = healing.elapsed();
    for id in ids() {
        client.put(&format!("/v1/content/jira.issue/{id}/tags/after")).expect(200);
    }
    if let Some(writers) = writers {
        writers.stop();
    }
    stack.wait_until_healthy("c0", TEST_TIMEOUT).expect("c0 is healthy");
    let after = log_lines(server);
    let (begins, ends) = (after.0 - before.0, after.1 - before.1);
    println!(
        "{}, calls {calls}: named after {named:?}, ready after {healed:?}, {begins} begins, \
         {ends} ends, refused {refused}",
        cell.name
    );
    assert!(named < NAMED_WITHIN, "{}: named after {named:?}", cell.name);
    assert!(healed < cell.healed_within, "{}: ready after {healed:?}", cell.name);
    assert_eq!(begins, ends, "{}: each cause begins and ends once", cell.name);
    if cell.causes.len() == 1 && struck {
        assert_eq!(begins, 1, "{}: {}", cell.name, server.log());
    }
}

#[test]
fn readiness_and_status_follow_what_calls_experience() {
    let _lock = ONE_STACK.lock();
    let dir = tempfile::tempdir().expect("a folder");
    let mut stack = Stack::up(&StackOptions::clusters_only(2, dir.path()), &|_| ())
        .expect("the stack comes up");
    let server = ServerOptions::other(env!("CARGO_BIN_EXE_tagfast"))
        .arg("--config")
        .arg(&stack.info().config)
        .env("TAGFAST__STORE__PRIMARY_WAIT_MS", "1500")
        .arg("--data-dir")
        .arg(stack.info().config.with_file_name("data"))
        .serve()
        .start();
    for (n, cell) in CELLS.iter().enumerate() {
        for calls in [false, true] {
            // Each cell once, every other one under load.
            if full() || calls == (n % 2 == 1) {
                run_cell(cell, &mut stack, &server, calls);
            }
        }
    }
}
