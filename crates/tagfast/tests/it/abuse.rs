//! Clients that take up memory on purpose, on raw sockets: answers that no client reads, bodies in
//! pieces, connections that go on and on.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;
use tagfast_client::process_usage::usage;
use tagfast_testkit::{Client, ServerProcess, wait_for_condition};

use crate::support::server;

/// What unread answers may take in all, in bytes of resident memory.
const UNREAD_BYTES_MAX: u64 = 200 << 20;
/// How soon their memory is given back.
const GIVEN_BACK: Duration = Duration::from_secs(30);
/// The write timeout of these tests, in milliseconds.
const WRITE_TIMEOUT_MS: &str = "4000";
/// Contents of 100 tags.
const LARGE_CONTENTS: usize = 40;

fn started(dir: &tempfile::TempDir) -> ServerProcess {
    let server =
        server(dir.path()).env("TAGFAST__SERVER__WRITE_TIMEOUT_MS", WRITE_TIMEOUT_MS).start();
    server.wait_until_ready();
    server
}

/// Makes contents of 100 tags of 180 bytes.
fn make_large_contents(client: &mut Client) {
    let tags: Vec<String> = (0..100).map(|n| format!("{n:03}{}", "漢".repeat(60))).collect();
    for from in (0..LARGE_CONTENTS).step_by(20) {
        let item = |n: usize| json!({"type": "a", "id": n.to_string(), "add": tags});
        let items: Vec<_> = (from..from + 20).map(item).collect();
        client.post("/v1/content:batchTag", &json!({"items": items})).expect(200);
    }
}

/// The largest resident memory so far, in bytes.
fn peak(server: &ServerProcess) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

fn resident(server: &ServerProcess) -> u64 {
    usage(Some(server.pid())).unwrap().resident_bytes
}

/// A counter or gauge, over all its labels.
fn metric(client: &mut Client, name: &str) -> f64 {
    let text = client.get("/metrics").expect(200).text();
    let samples = text
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    samples.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

/// Sends a request and returns the connection without reading the answer.
fn ask(address: SocketAddr, head: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    let request = format!(
        "{head} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// Reads until the server ends the connection; what was read.
fn until_closed(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(GIVEN_BACK)).unwrap();
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        let kind = error.kind();
        assert_eq!(kind, std::io::ErrorKind::ConnectionReset, "the connection stays open");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn sixty_unread_answers_take_little_and_disturb_no_other_client() {
    let dir = tempfile::tempdir().unwrap();
    let server = started(&dir);
    let mut client = server.client();
    make_large_contents(&mut client);
    let same = json!({"items": vec![json!({"type": "a", "id": "1"}); 500]}).to_string();
    let each = |n: usize| json!({"type": "a", "id": n.to_string()});
    let distinct = json!({"items": (0..LARGE_CONTENTS).map(each).collect::<Vec<_>>()}).to_string();
    let before = resident(&server);
    let get = "POST /v1/content:batchGet";
    let kinds: [(&str, &str); 4] =
        [(get, &same), (get, &distinct), ("GET /v1/export", ""), (get, &same)];

    let began = Instant::now();
    let unread: Vec<TcpStream> = (0..60)
        .map(|n| kinds[n % kinds.len()])
        .map(|(head, body)| ask(server.address(), head, body))
        .collect();
    // Others read and write all the time, also what is large, until every connection is closed.
    let mut slowest = Duration::ZERO;
    wait_for_condition("the unread connections are closed", GIVEN_BACK, || {
        let asked = Instant::now();
        client.get("/v1/content/a/1/tags").expect(200);
        client.put("/v1/content/b/1/tags/x").expect(200);
        client.delete("/v1/content/b/1/tags/x").expect(200);
        slowest = slowest.max(asked.elapsed());
        let open = metric(&mut client, "tagfast_http_connections");
        if open <= 1.0 { Ok(()) } else { Err(format!("{open} connections are open")) }
    });
    let closed = began.elapsed();
    let peak = peak(&server).saturating_sub(before);
    assert!(peak <= UNREAD_BYTES_MAX, "{} MB", peak >> 20);
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    assert!(metric(&mut client, "tagfast_http_stalled_connections_total") >= 30.0);
    wait_for_condition("the memory is given back", GIVEN_BACK.saturating_sub(closed), || {
        client.get("/v1/content/a/1/tags").expect(200);
        let bytes = metric(&mut client, "tagfast_http_in_flight_bytes");
        let more = resident(&server).saturating_sub(before) >> 20;
        if bytes < 1e6 && more <= 64 { Ok(()) } else { Err(format!("{bytes} B, +{more} MB")) }
    });
    drop(unread);
    let batch: serde_json::Value = serde_json::from_str(&distinct).unwrap();
    client.post("/v1/content:batchGet", &batch).expect(200);
}

#[test]
fn a_body_in_chunks_of_one_byte_costs_what_its_bytes_cost() {
    const BODIES: usize = 6;
    const BYTES: usize = 100_000;
    let dir = tempfile::tempdir().unwrap();
    // Long enough for a slow machine: what is measured is memory.
    let server = server(dir.path()).env("TAGFAST__SERVER__REQUEST_TIMEOUT_MS", "120000").start();
    server.wait_until_ready();
    let mut client = server.client();
    let before = resident(&server);
    let chunks = "1\r\n \r\n".repeat(BYTES);
    let mut bodies = Vec::new();
    for _ in 0..BODIES {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let head = "POST /v1/content:batchGet HTTP/1.1\r\nhost: localhost\r\n\
             content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        stream.set_write_timeout(Some(GIVEN_BACK)).unwrap();
        stream.write_all(chunks.as_bytes()).unwrap();
        bodies.push(stream);
    }
    wait_for_condition("the bodies are there", GIVEN_BACK, || {
        let held = metric(&mut client, "tagfast_http_in_flight_bytes");
        let all = (BODIES * BYTES) as f64;
        if held >= all { Ok(()) } else { Err(format!("{held} of {all}")) }
    });
    let held = metric(&mut client, "tagfast_http_in_flight_bytes");
    assert!(held <= 2.5 * (BODIES * BYTES) as f64, "{held}");
    let more = peak(&server).saturating_sub(before);
    assert!(more < 16 << 20, "{} KB for {} KB", more >> 10, (BODIES * BYTES) >> 10);
    drop(bodies);
    wait_for_condition("the bytes are given back", GIVEN_BACK, || {
        match metric(&mut client, "tagfast_http_in_flight_bytes") {
            held if held < 1e5 => Ok(()),
            held => Err(held.to_string()),
        }
    });
}

#[test]
fn a_name_of_the_server_is_configured() {
    let dir = tempfile::tempdir().unwrap();
    let server =
        server(dir.path()).env("TAGFAST__SERVER__ALLOWED_HOSTS", "tags.example.com").start();
    let ask = |host: &str| {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let head = format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        until_closed(&mut stream)
    };
    for host in ["tags.example.com", "localhost:1", "127.0.0.1"] {
        assert!(ask(host).starts_with("HTTP/1.1 200 "), "{host}");
    }
    let answer = ask("rebound.example");
    assert!(answer.starts_with("HTTP/1.1 421 ") && answer.contains("host_not_allowed"), "{answer}");
}
