//! Open files and connections that wait: small limits, floods, and a process without a free file.

use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use tagfast_testkit::{Client, ServerOptions, ServerProcess, wait_for_condition};

use crate::support::server;

/// Longer than any step here takes; only a failing test waits for it.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A server whose process starts with these limits of open files.
fn start_with_files(dir: &Path, soft: u64, hard: u64) -> ServerProcess {
    let script = dir.join("program");
    let program = env!("CARGO_BIN_EXE_tagfast");
    let text =
        format!("#!/bin/sh\nulimit -Sn {soft} && ulimit -Hn {hard} && exec {program} \"$@\"\n");
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    ServerOptions::new(&script, dir.join("data")).env("TAGFAST__LOG__LEVEL", "info").start()
}

/// The soft limit of open files of a process.
fn soft_limit(server: &ServerProcess) -> u64 {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn metric(client: &mut Client, name: &str) -> u64 {
    let text = client.get("/metrics").expect(200).text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse::<f64>().unwrap() as u64)
}

#[test]
fn the_limit_of_open_files_is_raised_and_connections_fit_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = start_with_files(dir.path(), 300, 2000);
    assert_eq!(soft_limit(&server), 2000);
    server.wait_until_ready();
    let ready = server.client().get("/readyz").expect(200).json();
    let part = |name: &str| {
        let degraded = ready["degraded"].as_array().unwrap();
        degraded.iter().find(|part| part["feature"] == name).cloned()
    };
    let reason = part("connections").unwrap_or_else(|| panic!("{ready}"))["reason"].to_string();
    assert!(reason.contains("1488 connections") && reason.contains("10000"), "{reason}");
    assert!(server.log().contains("1488 connections"), "{}", server.log());
}

#[test]
fn a_flood_of_connections_waits_and_is_counted() {
    const FLOOD: u64 = 1200;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path()).env("TAGFAST__SERVER__MAX_CONNECTIONS", "1").start();
    let mut client = server.client();
    assert_eq!(metric(&mut client, "tagfast_listen_waiting_connections"), 0);
    let began = Instant::now();
    let connect = |_| TcpStream::connect_timeout(&server.address(), TEST_TIMEOUT).unwrap();
    let flood: Vec<TcpStream> = (0..FLOOD).map(connect).collect();
    // A queue that is full makes a client send its first packet again after a second.
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    wait_for_condition("the flood is seen", TEST_TIMEOUT, || {
        let waiting = metric(&mut client, "tagfast_listen_waiting_connections");
        if waiting == FLOOD { Ok(()) } else { Err(waiting.to_string()) }
    });
    assert_eq!(metric(&mut client, "tagfast_http_connections"), 1);
    drop((flood, client));
    server.client().get("/healthz").expect(200);
}

#[test]
fn a_process_without_a_free_file_does_not_spin_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path()).start();
    server.wait_until_ready();
    let mut client = server.client();
    client.get("/healthz").expect(200);
    let pid = Pid::from_raw(server.pid().try_into().unwrap());
    let limit = |files: u64| {
        let maximum = getrlimit(Resource::Nofile).maximum;
        prlimit(pid, Resource::Nofile, Rlimit { current: Some(files), maximum }).unwrap();
    };
    let files = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count() as u64;
    limit(files);
    let waiting: Vec<TcpStream> =
        (0..20).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    let failures = "tagfast_http_accept_failures_total";
    let wait_for = |client: &mut Client, more: u64| {
        wait_for_condition("accepting fails", TEST_TIMEOUT, || {
            let failed = metric(client, failures);
            if failed >= more { Ok(failed) } else { Err(failed.to_string()) }
        })
    };
    let first = wait_for(&mut client, 1);
    let began = Instant::now();
    let last = wait_for(&mut client, first + 20);
    let rate = (last - first) as f64 / began.elapsed().as_secs_f64();
    assert!(rate < 30.0, "{rate} attempts a second");
    client.put("/v1/content/a/1/tags/x").expect(200);
    limit(files + 100);
    server.client().get("/healthz").expect(200);
    drop(waiting);
    wait_for_condition("the outage is over in the log", TEST_TIMEOUT, || {
        let log = server.log();
        if log.contains("accepting connections works again") { Ok(()) } else { Err(log) }
    });
    // A file that the server closes meanwhile ends one outage, and the next one begins: each is
    // told once, not each of its failures.
    let log = server.log();
    let (begun, ended) = (
        log.matches("accepting connections fails").count(),
        log.matches("accepting connections works again").count(),
    );
    assert!(begun <= ended + 1, "{log}");
}
