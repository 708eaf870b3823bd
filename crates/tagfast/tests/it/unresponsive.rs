//! Every call to another server has a deadline: the program in front of servers that accept
//! connections and never answer.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use tagfast_testkit::ServerOptions;

/// The request timeout (10 s), what the gate allows on top, and a busy machine.
const BOUND: Duration = Duration::from_secs(13);

/// Method, path, headers and body.
type Call =
    (&'static str, &'static str, &'static [(&'static str, &'static str)], Option<&'static str>);

/// A server that accepts connections and neither reads nor answers while the test runs.
fn silent() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            held.push(stream);
        }
    });
    address
}

/// etcd, Patroni, both Redis servers, Kafka and OpenSearch do not answer: the program starts,
/// answers every call in time, and stops.
#[test]
fn every_call_ends_though_every_server_is_silent() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("it is written");
        path.to_str().expect("a path").to_owned()
    };
    let (key, password) = (path("key", &"ab".repeat(32)), path("password", "secret"));
    let config = format!(
        "[server]\nsigning_key_file = [{key:?}]\n[store]\nkind = \"postgres\"\nclusters = [\"c0=0-63\"]\n\
         etcd = [\"http://{}\"]\npatroni = [\"c0=http://{}\"]\npassword_file = {password:?}\nprimary_wait_ms = 2000\n\
         [cache]\nredis_url = \"redis://{}\"\n[state]\nredis_url = \"redis://{}\"\n[kafka]\nbrokers = [\"{}\"]\n\
         [search]\nopensearch_url = \"http://{}\"\n",
        silent(),
        silent(),
        silent(),
        silent(),
        silent(),
        silent(),
    );
    let config = path("tagfast.toml", &config);
    let mut server = ServerOptions::other(env!("CARGO_BIN_EXE_tagfast"))
        .arg("--config")
        .arg(&config)
        .arg("--data-dir")
        .arg(dir.path().join("data"))
        .serve()
        .start();
    let content = "/v1/content/test.doc/1/tags";
    let calls: &[Call] = &[
        ("GET", "/healthz", &[], None),
        ("GET", "/readyz", &[], None),
        ("GET", "/metrics", &[], None),
        ("GET", content, &[], None),
        ("GET", content, &[("consistency", "eventual")], None),
        ("GET", content, &[("consistency", "strong")], None),
        ("GET", content, &[("cache-control", "no-cache")], None),
        ("PUT", "/v1/content/test.doc/1/tags/ui", &[], None),
        ("DELETE", "/v1/content/test.doc/1/tags/ui", &[], None),
        ("PATCH", content, &[], Some(r#"{"add": ["a"], "remove": []}"#)),
        ("PUT", content, &[], Some(r#"{"tags": ["a"]}"#)),
        ("POST", "/v1/content:batchGet", &[], Some(r#"{"items": [{"type": "t", "id": "1"}]}"#)),
        (
            "POST",
            "/v1/content:batchTag",
            &[],
            Some(r#"{"items": [{"type": "t", "id": "1", "add": ["a"]}]}"#),
        ),
        ("GET", "/v1/search?q=ui", &[], None),
        ("GET", "/v1/search?q=ui&facets=true", &[], None),
        ("GET", "/v1/tags?prefix=u", &[], None),
        ("GET", "/v1/tags/popular", &[], None),
        ("GET", "/v1/tags/ui", &[], None),
        ("GET", "/v1/status", &[], None),
        ("GET", "/v1/breakers", &[], None),
        ("GET", "/v1/dead-letters", &[], None),
        ("GET", "/v1/export", &[], None),
        ("POST", "/v1/admin/recount", &[], Some("{}")),
        ("POST", "/v1/admin/reindex", &[], None),
    ];
    std::thread::scope(|scope| {
        for (method, path, headers, body) in calls {
            let mut client = server.client().with_timeout(BOUND);
            scope.spawn(move || {
                let began = Instant::now();
                let answer = client.request(method, path, headers, *body);
                let answer = answer.unwrap_or_else(|e| {
                    panic!("{method} {path} was not answered in {BOUND:?}: {e}")
                });
                assert_ne!(answer.status, 500, "{method} {path}: {}", answer.text());
                if matches!(answer.status, 429 | 503) && *path != "/readyz" {
                    assert!(
                        answer.header("retry-after").is_some(),
                        "{method} {path}: {}",
                        answer.text()
                    );
                }
                assert!(began.elapsed() < BOUND, "{method} {path}: {:?}", began.elapsed());
            });
        }
    });
    let began = Instant::now();
    server.stop();
    assert!(began.elapsed() < Duration::from_secs(30), "it stops: {:?}", began.elapsed());
    let log = server.log();
    assert!(!log.contains("a task still runs"), "{log}");
}
