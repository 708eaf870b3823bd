//! The accept loop on real sockets: slow clients, limits, draining.

use std::net::SocketAddr;
use std::time::Duration;

use tagfast_api::{AllowedHosts, ApiLimits, AuthConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::{Fixture, build};

/// Longer than any step here takes; only a failing test waits for it.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct Running {
    fixture: Fixture,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<()>>,
}

pub(crate) async fn start(limits: ApiLimits) -> Running {
    // What is sent here is about connections: the name of the host does not matter.
    let fixture = build(AuthConfig::None, limits.clone(), |services| {
        services.allowed_hosts = AllowedHosts::new([], true).unwrap();
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let (router, tasks) = (fixture.router.clone(), fixture.tasks.clone());
    let budget = fixture.byte_budget.clone();
    let task = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        tagfast_api::serve(listener, router, limits, &tasks, &budget, stopped).await
    });
    Running { fixture, address, stop: Some(stop), task }
}

impl Running {
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub(crate) async fn finish(mut self) {
        drop(self.stop.take());
        tokio::time::timeout(TEST_TIMEOUT, self.task)
            .await
            .expect("the server ends")
            .unwrap()
            .unwrap();
    }
}

async fn until_closed(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end, too.
    let _ = tokio::time::timeout(TEST_TIMEOUT, stream.read_to_end(&mut bytes))
        .await
        .expect("the connection ends");
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn answer_head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|w| w == b"\r\n\r\n") {
        let byte = tokio::time::timeout(TEST_TIMEOUT, stream.read_u8())
            .await
            .expect("an answer")
            .expect("an answer");
        bytes.push(byte);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_stop_ends_the_work_that_outlives_its_request() {
    let limits = ApiLimits { drain_timeout: Duration::from_millis(300), ..ApiLimits::default() };
    let server = start(limits).await;
    let tasks = server.fixture.tasks.clone();
    let short = tasks.spawn(tokio::time::sleep(Duration::from_millis(50)));
    let hangs = tasks.spawn(std::future::pending::<()>());
    server.finish().await;
    assert!(tasks.is_empty());
    assert_eq!((short.await.unwrap(), hangs.await.unwrap()), (Some(()), None));
}

#[tokio::test]
async fn requests_are_served_over_one_connection() {
    let server = start(ApiLimits::default()).await;
    let mut stream = server.connect().await;
    for _ in 0..3 {
        stream
            .write_all(b"GET /v1/content/a/b%2Fc/tags HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .await
            .unwrap();
        let head = answer_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        let length: usize = head
            .lines()
            .find_map(|l| l.strip_prefix("content-length: "))
            .expect("a length")
            .parse()
            .unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        assert!(String::from_utf8(body).unwrap().contains("\"id\":\"b/c\""));
    }
    server.finish().await;
}

#[tokio::test]
async fn a_client_that_is_slow_with_its_head_is_closed() {
    let server =
        start(ApiLimits { header_timeout: Duration::from_millis(200), ..ApiLimits::default() })
            .await;
    let mut silent = server.connect().await;
    let mut slow = server.connect().await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost").await.unwrap();
    let mut idle = server.connect().await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let (silent, slow, idle) =
        tokio::join!(until_closed(&mut silent), until_closed(&mut slow), until_closed(&mut idle));
    assert!(!silent.contains("200 OK") && !slow.contains("200 OK"));
    assert!(idle.contains("200 OK"), "the request before was answered: {idle}");
    server.finish().await;
}

#[tokio::test]
async fn a_client_that_stops_in_its_body_is_closed() {
    let limits = ApiLimits {
        request_timeout: Duration::from_millis(300),
        header_timeout: Duration::from_millis(300),
        ..ApiLimits::default()
    };
    let server = start(limits).await;
    let post = "POST /v1/content:batchGet HTTP/1.1\r\nhost: localhost\r\n\
         content-type: application/json\r\n";
    let none = "PUT /nowhere HTTP/1.1\r\nhost: localhost\r\n";
    for (head, body, status) in [
        (post, "content-length: 100\r\n\r\n{", "408"),
        (post, "transfer-encoding: chunked\r\n\r\n1\r\n{", "408"),
        (none, "content-length: 1000000\r\n\r\n{", "404"),
        (none, "transfer-encoding: chunked\r\n\r\n1\r\n{\r\n", "404"),
    ] {
        let mut stream = server.connect().await;
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        let answer = until_closed(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}{body}: {answer}");
    }
    assert_eq!(server.fixture.byte_budget.used(), 0);
    server.finish().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_closed() {
    let limits = ApiLimits { write_timeout: Duration::from_millis(300), ..ApiLimits::default() };
    let server = start(limits).await;
    let tags: Vec<String> = (0..100).map(|n| format!("{n:03}{}", "x".repeat(60))).collect();
    let tags = serde_json::json!({ "tags": tags }).to_string();
    server.fixture.request("PUT", "/v1/content/a/1/tags").json(&tags).send().await.ok();
    let item = r#"{"type":"a","id":"1"}"#;
    let body = format!(r#"{{"items":[{}]}}"#, vec![item; 500].join(","));
    let mut stream = server.connect().await;
    let head = format!(
        "POST /v1/content:batchGet HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\
         content-type: application/json\r\n\r\n",
        body.len()
    );
    // Asked until the kernel takes no more: its buffers may hold more than one answer.
    for _ in 0..4 {
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    }
    let held = async {
        while server.fixture.byte_budget.used() == 0 {
            tokio::task::yield_now().await;
        }
        while server.fixture.byte_budget.used() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, held).await.expect("the answer is dropped");
    let bytes = until_closed(&mut stream).await.len();
    assert!(bytes < 4 * 500 * 10_000, "the rest of {bytes} bytes never came");
    server.finish().await;
}

#[tokio::test]
async fn a_head_that_is_no_http_or_too_large_is_refused() {
    let server = start(ApiLimits::default()).await;
    let mut nonsense = server.connect().await;
    nonsense.write_all(b"\x16\x03\x01 hello\r\n\r\n").await.unwrap();
    assert!(!until_closed(&mut nonsense).await.contains("200"));
    let mut odd = server.connect().await;
    odd.write_all(b"GET /healthz HTTP/1.1\r\nbad header\r\n\r\n").await.unwrap();
    let answer = until_closed(&mut odd).await;
    assert!(answer.contains("400"), "{answer}");
    let mut large = server.connect().await;
    let head = format!(
        "GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-large: {}\r\n\r\n",
        "x".repeat(200_000)
    );
    let _ = large.write_all(head.as_bytes()).await;
    let answer = until_closed(&mut large).await;
    assert!(answer.contains("431"), "{answer}");
    server.finish().await;
}

#[tokio::test]
async fn requests_in_flight_are_finished_and_new_ones_are_refused() {
    let mut server = start(ApiLimits::default()).await;
    server.fixture.store.faults().pause();
    let mut busy = server.connect().await;
    // The body is not there yet: the request is in flight until it comes.
    busy.write_all(b"PATCH /v1/content/a/1/tags HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 14\r\nexpect: 100-continue\r\n\r\n")
        .await
        .unwrap();
    assert!(
        answer_head(&mut busy).await.contains("100 Continue"),
        "the handler waits for the body"
    );
    let mut idle = server.connect().await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(answer_head(&mut idle).await.contains("200 OK"));

    drop(server.stop.take());
    until_closed(&mut idle).await;
    let refused = async {
        while TcpStream::connect(server.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, refused).await.expect("the listener closes");

    server.fixture.store.faults().heal();
    busy.write_all(br#"{"add": ["x"]}"#).await.unwrap();
    let answer = until_closed(&mut busy).await;
    assert!(answer.contains("200 OK") && answer.contains("\"changed\":true"), "{answer}");
    server.finish().await;
}

#[tokio::test]
async fn draining_has_an_end() {
    let limits = ApiLimits { drain_timeout: Duration::from_millis(100), ..ApiLimits::default() };
    let server = start(limits).await;
    server.fixture.store.faults().pause();
    let mut busy = server.connect().await;
    busy.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(answer_head(&mut busy).await.contains("200 OK"));
    busy.write_all(b"GET /v1/content/a/1/tags HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    server.finish().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let server = start(ApiLimits { connections: 1, ..ApiLimits::default() }).await;
    let ask = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut first = server.connect().await;
    first.write_all(ask).await.unwrap();
    assert!(answer_head(&mut first).await.contains("200 OK"));
    let mut second = server.connect().await;
    second.write_all(ask).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(100), second.read_u8()).await;
    assert!(early.is_err(), "the second connection is not served yet");
    drop(first);
    assert!(answer_head(&mut second).await.contains("200 OK"));
    server.finish().await;
}
