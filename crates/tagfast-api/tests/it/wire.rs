//! What a raw socket can provoke: every answer is a problem document, whatever was sent.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::server::{Running, start};
use crate::support::ApiLimits;

/// Longer than any step here takes; only a failing test waits for it.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

struct RawAnswer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

/// Splits what a connection answered; bodies have a `Content-Length`.
fn answers(mut bytes: &[u8]) -> Vec<RawAnswer> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let shown = String::from_utf8_lossy(bytes);
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a whole head") + 4;
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        assert!(head.starts_with("HTTP/1."), "{shown}");
        let status = head[9..12].parse().unwrap();
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
        let length: usize = if status == 100 { 0 } else { length.expect(&head).parse().unwrap() };
        let body = bytes.get(end..end + length).unwrap_or_else(|| panic!("{shown}")).to_vec();
        bytes = &bytes[end + length..];
        all.push(RawAnswer { status, head, body });
    }
    all
}

impl RawAnswer {
    /// Asserts that this is a whole problem document; returns its code.
    #[track_caller]
    fn problem(&self) -> (Value, String) {
        for header in ["content-type: application/problem+json\r\n", "cache-control: no-store\r\n"]
        {
            assert!(self.head.contains(header), "{}", self.head);
        }
        assert!(self.head.contains("x-request-id: ") && self.head.contains("date: "));
        let body: Value = serde_json::from_slice(&self.body).expect(&self.head);
        let code = body["code"].as_str().unwrap().to_owned();
        let row = tagfast_api::PROBLEM_CODES.iter().find(|row| row.code == code).expect("a code");
        assert_eq!((row.status, &body["status"]), (self.status, &Value::from(self.status)));
        assert!(!body["detail"].as_str().unwrap().is_empty());
        assert!(
            self.head.contains(&format!("x-request-id: {}", body["trace_id"].as_str().unwrap()))
        );
        (body, code)
    }
}

/// Sends these pieces, each after the one before has been read if it can be, and reads until the
/// server closes.
async fn exchange(server: &Running, pieces: &[&[u8]]) -> Vec<RawAnswer> {
    let mut stream = server.connect().await;
    stream.set_nodelay(true).unwrap();
    for piece in pieces {
        // The server may have refused the beginning already.
        let _ = stream.write_all(piece).await;
        tokio::task::yield_now().await;
    }
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(TEST_TIMEOUT, stream.read_to_end(&mut bytes)).await;
    read.expect("the connection ends").expect("no reset before the answer was read");
    answers(&bytes)
}

const CLOSE: &str = "host: x\r\nconnection: close\r\n";

/// Every kind of refusal: what is sent, the status and the code, and a word of the detail.
fn refusals() -> Vec<(Vec<u8>, u16, &'static str, &'static str)> {
    let get = |rest: &str| format!("GET /healthz HTTP/1.1\r\n{rest}\r\n").into_bytes();
    let post = |rest: &str| {
        let head = "POST /v1/content:batchGet HTTP/1.1\r\ncontent-type: application/json\r\n";
        format!("{head}{CLOSE}{rest}").into_bytes()
    };
    let line = |text: &str| format!("{text}\r\n{CLOSE}\r\n").into_bytes();
    let many = (0..101).map(|n| format!("x-{n}: 1\r\n")).collect::<String>();
    let long = "x".repeat(70_000);
    vec![
        // The first line.
        (line("nonsense"), 400, "bad_request", "first line"),
        (line("GET"), 400, "bad_request", "first line"),
        (line("GET /healthz"), 400, "bad_request", "first line"),
        (line("GET /healthz HTTQ/1.1"), 400, "bad_request", "first line"),
        (line("GET /healthz http/1.1"), 400, "bad_request", "first line"),
        (line("GET /a b HTTP/1.1"), 400, "bad_request", "first line"),
        (line("G\u{e9}T / HTTP/1.1"), 400, "bad_request", ""),
        (line("GET http:// HTTP/1.1"), 400, "bad_request", ""),
        (line("GET  /healthz HTTP/1.1"), 400, "bad_request", "first line"),
        (line("\0\0\0\0"), 400, "bad_request", ""),
        (line("GET /healthz HTTP/1.2"), 505, "http_version", "HTTP/1.1"),
        (line("GET /healthz HTTP/2.0"), 505, "http_version", "HTTP/1.1"),
        (line("GET /healthz HTTP/3"), 505, "http_version", "HTTP/1.1"),
        (line("GET /healthz HTTP/0.9"), 505, "http_version", "HTTP/1.1"),
        // Other protocols.
        (b"GET /healthz\r\n".to_vec(), 400, "bad_request", "first line"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), 505, "http_version", "HTTP/1.1"),
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03".to_vec(), 400, "bad_request", "TLS"),
        (b"SSH-2.0-OpenSSH_9\r\n".to_vec(), 400, "bad_request", ""),
        // Headers.
        (get("bad header\r\nhost: x\r\n"), 400, "bad_request", "header line 1"),
        (get("host: x\r\n: empty\r\n"), 400, "bad_request", "header line 2"),
        (get("host: x\r\na b: c\r\n"), 400, "bad_request", "header line 2"),
        (get("host : x\r\n"), 400, "bad_request", "header line 1"),
        (get("host: x\r\nx: a\0b\r\n"), 400, "bad_request", "header line 2"),
        (get(&format!("host: x\r\n{many}")), 431, "head_too_large", "100 headers"),
        (get(&format!("host: x\r\nx-long: {long}\r\n")), 431, "head_too_large", "65536 bytes"),
        (line(&format!("GET /{long} HTTP/1.1")), 414, "url_too_long", "request line"),
        (line(&format!("GET /{} HTTP/1.1", &long[..9000])), 414, "url_too_long", "at most 8192"),
        // `Host`.
        (get("connection: close\r\n"), 400, "bad_header", "header host"),
        (get("host: x\r\nhost: x\r\nconnection: close\r\n"), 400, "bad_header", "header host"),
        (get("host: a b\r\nconnection: close\r\n"), 400, "bad_header", "header host"),
        (get("host: u@x\r\nconnection: close\r\n"), 400, "bad_header", "header host"),
        (get("host: x, y\r\nconnection: close\r\n"), 400, "bad_header", "header host"),
        // The framing of the body.
        (post("content-length: x\r\n\r\n"), 400, "bad_header", "content-length"),
        (post("content-length: -1\r\n\r\n"), 400, "bad_header", "content-length"),
        (
            post("content-length: 1\r\ncontent-length: 2\r\n\r\n"),
            400,
            "bad_header",
            "content-length",
        ),
        (post("content-length: 99999999999999999999\r\n\r\n"), 400, "bad_header", "content-length"),
        (post("transfer-encoding: gzip\r\n\r\n"), 400, "bad_header", "transfer-encoding"),
        (post("transfer-encoding: chunked, gzip\r\n\r\n"), 400, "bad_header", "transfer-encoding"),
        (
            post("transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
            400,
            "bad_header",
            "transfer-encoding",
        ),
        (
            post("transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
            501,
            "transfer_coding",
            "other than chunked",
        ),
        (
            post("transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n"),
            400,
            "bad_header",
            "content-length",
        ),
        (
            post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            400,
            "bad_header",
            "content-length",
        ),
        (post("transfer-encoding: chunked\r\n\r\nx\r\n{}\r\n"), 400, "bad_request", "chunks"),
        (post("transfer-encoding: chunked\r\n\r\n5\r\n{}"), 408, "request_timeout", "body"),
        (post("content-length: 9\r\n\r\n{}"), 408, "request_timeout", "body"),
        (post("content-length: 9999999\r\n\r\n{}"), 413, "body_too_large", "1048576"),
        // Time.
        (b"GET /healthz HTTP/1.1\r\nhost".to_vec(), 408, "request_timeout", "head"),
        (b"G".to_vec(), 408, "request_timeout", "head"),
    ]
}

fn impatient() -> ApiLimits {
    let soon = Duration::from_millis(400);
    ApiLimits { header_timeout: soon, request_timeout: soon, ..ApiLimits::default() }
}

/// Servers for refusals: one that is soon out of time, for those that are about time, and one that
/// a slow machine does not run into.
struct Servers {
    impatient: Running,
    patient: Running,
}

impl Servers {
    async fn start() -> Self {
        let patient = start(ApiLimits::default()).await;
        Self { impatient: start(impatient()).await, patient }
    }

    fn of(&self, status: u16) -> &Running {
        if status == 408 { &self.impatient } else { &self.patient }
    }

    async fn finish(self) {
        self.impatient.finish().await;
        self.patient.finish().await;
    }
}

#[tokio::test]
async fn whatever_a_socket_sends_is_refused_with_a_problem_document() {
    let servers = Servers::start().await;
    let cases = refusals();
    let all = cases.iter().map(async |(sent, status, code, words)| {
        let shown = String::from_utf8_lossy(&sent[..sent.len().min(80)]);
        let answers = exchange(servers.of(*status), &[sent]).await;
        let [answer] = answers.as_slice() else {
            panic!("{shown:?} had {} answers", answers.len());
        };
        assert_eq!(answer.status, *status, "{shown:?}: {}", answer.head);
        let (body, given) = answer.problem();
        assert_eq!((answer.status, given.as_str()), (*status, *code), "{shown:?}: {body}");
        assert!(body["detail"].as_str().unwrap().contains(words), "{shown:?}: {body}");
        assert!(answer.head.contains("connection: close\r\n"), "{shown:?}: {}", answer.head);
    });
    futures_util::future::join_all(all).await;
    servers.finish().await;
}

/// The same in single bytes, and behind requests that were answered before: pipelined, one after
/// the other, and with bodies.
#[tokio::test]
async fn a_refusal_does_not_depend_on_how_it_arrives() {
    let servers = Servers::start().await;
    let get = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".as_slice();
    let post = b"POST /v1/content:batchGet HTTP/1.1\r\nhost: x\r\n\
        content-type: application/json\r\ncontent-length: 12\r\n\r\n{\"items\":[]}";
    let cases: Vec<_> = refusals().into_iter().filter(|(sent, ..)| sent.len() < 500).collect();
    let all = cases.iter().map(async |(sent, status, ..)| {
        let shown = String::from_utf8_lossy(sent);
        let bytes: Vec<&[u8]> = sent.chunks(1).collect();
        let (pipelined, behind) = ([get, get, sent].concat(), [&post[..], sent].concat());
        for (pieces, before) in [
            (&bytes[..], 0),
            (&[&pipelined[..]], 2),
            (&[get, get, sent], 2),
            (&[&behind[..]], 1),
            (&[&post[..], sent], 1),
        ] {
            let answers = exchange(servers.of(*status), pieces).await;
            let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
            let expect: Vec<u16> = std::iter::repeat_n(200, before).chain([*status]).collect();
            assert_eq!(statuses, expect, "{shown:?} in {} pieces", pieces.len());
            answers.last().unwrap().problem();
        }
    });
    futures_util::future::join_all(all).await;
    servers.finish().await;
}

#[tokio::test]
async fn what_is_legal_is_answered() {
    let server = start(impatient()).await;
    for (sent, status) in [
        (&b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"[..], 200),
        (b"\r\n\r\nGET /healthz HTTP/1.1\nhost:x:80\nconnection: close\n\n", 200),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"GET http://x/healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nhost: [::1]:80\r\nconnection: close\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n", 200),
        (b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 404),
        (b"CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\nconnection: close\r\n\r\n", 404),
        (b"TRACE /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 405),
    ] {
        let answers = exchange(&server, &[sent]).await;
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [status], "{}", String::from_utf8_lossy(sent));
        if status >= 400 {
            answers[0].problem();
        }
    }
    // A body with a text that looks like a header is none.
    let body = "{\"items\":[]}\ncontent-length: 5\n";
    let chunked = format!(
        "POST /v1/content:batchGet HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    let answers = exchange(&server, &[chunked.as_bytes()]).await;
    assert_eq!(answers[0].problem().1, "bad_json", "it is read as JSON, and is none");
    // A connection that is idle is closed without an answer.
    assert!(exchange(&server, &[b""]).await.is_empty());
    assert!(exchange(&server, &[b"\r\n"]).await.is_empty());
    server.finish().await;
}
