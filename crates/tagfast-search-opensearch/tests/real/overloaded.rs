//! A server that refuses whole requests with 429 or 503, refuses some documents of a batch, or is
//! slow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tagfast_domain::TenantId;
use tagfast_events::{RecordVerdict, Sink};
use tagfast_resilience::ErrorChain;
use tagfast_search::conformance::{NOW, event, request};
use tagfast_search::{SearchError, SearchIndex};
use tagfast_search_opensearch::OpenSearchOptions;
use tagfast_testkit::stack::Fault;
use tagfast_testkit::wait_for_condition_async;

use crate::support::{self, Engine, NAMED_WITHIN, TEST_TIMEOUT};

/// What the proxy in front of the real server does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FaultMode {
    /// Forwards it.
    None,
    /// Answers every request with this status.
    Refuses(u16),
    /// Answers every request with this text and 200.
    Says(&'static str),
    /// Forwards it and cuts the answer off in the middle.
    Halves,
    /// Answers every other document of a batch with this status; the others are written.
    RefusesHalf(u16),
}

#[derive(Clone)]
struct Proxy {
    server: String,
    mode: Arc<Mutex<FaultMode>>,
}

impl Proxy {
    /// Starts a proxy in front of the server; returns its URL as well.
    async fn start() -> (Self, String) {
        let proxy =
            Self { server: support::url().await, mode: Arc::new(Mutex::new(FaultMode::None)) };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let router = axum::Router::new().fallback(forward).with_state(proxy.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (proxy, url)
    }

    fn set(&self, mode: FaultMode) {
        *self.mode.lock() = mode;
    }
}

async fn forward(
    State(proxy): State<Proxy>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    let mode = *proxy.mode.lock();
    let reason = json!({"error": {
        "type": "es_rejected_execution_exception", "reason": "the queue is full",
    }});
    if let FaultMode::Refuses(status) = mode {
        return (StatusCode::from_u16(status).expect("a status"), reason.to_string());
    }
    if let FaultMode::Says(text) = mode {
        return (StatusCode::OK, text.to_owned());
    }
    let is_bulk = uri.path().ends_with("/_bulk");
    let request_lines = body.iter().filter(|byte| **byte == b'\n').count();
    let body = match mode {
        FaultMode::RefusesHalf(_) if is_bulk => every_other(&body),
        FaultMode::None
        | FaultMode::Refuses(_)
        | FaultMode::RefusesHalf(_)
        | FaultMode::Says(_)
        | FaultMode::Halves => body.to_vec(),
    };
    let mut request =
        reqwest::Client::new().request(method, format!("{}{uri}", proxy.server)).body(body);
    if let Some(kind) = headers.get("content-type") {
        request = request.header("content-type", kind);
    }
    let response = request.send().await.expect("the server answers");
    let status = response.status();
    let text = response.text().await.expect("text");
    match mode {
        FaultMode::RefusesHalf(refused) if is_bulk => {
            let lines = request_lines / 2;
            (status, with_refused(&text, refused, &reason, lines))
        }
        FaultMode::Halves => (status, text.chars().take(text.chars().count() / 2).collect()),
        FaultMode::None
        | FaultMode::Refuses(_)
        | FaultMode::RefusesHalf(_)
        | FaultMode::Says(_) => (status, text),
    }
}

/// Keeps the first, third, fifth, ... document of a batch.
fn every_other(body: &[u8]) -> Vec<u8> {
    let lines: Vec<&[u8]> = body.split_inclusive(|byte| *byte == b'\n').collect();
    lines.chunks(2).step_by(2).flatten().flat_map(|line| line.iter().copied()).collect()
}

/// Inserts a refused document after each item, so that each of `documents` has one.
fn with_refused(text: &str, status: u16, reason: &Value, documents: usize) -> String {
    let answer: Value = serde_json::from_str(text).expect("JSON");
    let refused = json!({"index": {"status": status, "error": reason["error"]}});
    let items = answer["items"].as_array().expect("items");
    let all = items.iter().flat_map(|item| [item.clone(), refused.clone()]);
    let all: Vec<Value> = all.take(documents).collect();
    json!({"items": all}).to_string()
}

/// Makes everything written visible.
async fn refresh(engine: &Engine) {
    let url = format!("{}/{}/_refresh", support::url().await, engine.options.alias);
    assert!(
        reqwest::Client::new().post(url).send().await.expect("an answer").status().is_success()
    );
}

async fn proxied() -> (Engine, Proxy, Arc<tagfast_search_opensearch::OpenSearchIndex>) {
    let engine = Engine::new().await;
    let (proxy, url) = Proxy::start().await;
    let options = OpenSearchOptions { url: url.into(), ..engine.options.clone() };
    let index = support::open(
        &options,
        &engine.shards,
        &Arc::new(tagfast_resilience::ManualClock::new(NOW)),
    );
    (engine, proxy, index)
}

/// 429 and 503 for a whole request blame no record, and no search returns an empty page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_everything_is_systemic() {
    let (engine, proxy, index) = proxied().await;
    let records = engine.records(&[event("acme", "t", "1", 1, NOW, &["x"])]);
    let acme = TenantId::parse("acme").expect("a tenant");
    for status in [429, 503, 502, 500] {
        proxy.set(FaultMode::Refuses(status));
        let error = index.apply(&records).await.expect_err("no record is to blame");
        let chain = ErrorChain(&error).to_string();
        assert!(chain.contains(&status.to_string()), "{chain}");
        index.canary().await.expect_err("the canary fails as well");
        let searched = index.search(&acme, &request("x")).await;
        let expected = match status {
            429 => matches!(searched, Err(SearchError::Refused { reason: "overloaded", .. })),
            _ => matches!(searched, Err(SearchError::Unavailable(_) | SearchError::Unusable(_))),
        };
        assert!(expected, "{status}: {searched:?}");
    }
    proxy.set(FaultMode::None);
    index.canary().await.expect("the canary succeeds");
    index.canary().await.expect("it succeeds again, with the same version");
    assert_eq!(index.apply(&records).await.expect("it works"), [RecordVerdict::Applied]);
    refresh(&engine).await;
    assert_eq!(engine.index.documents().await.expect("a count"), 1, "the canary is not counted");
}

/// Documents that the server refuses for now blame no record, however long it lasts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_that_are_refused_for_now_are_never_blamed() {
    let (engine, proxy, index) = proxied().await;
    let events: Vec<_> =
        (0..100).map(|n| event("acme", "t", &format!("{n}"), 1, NOW, &["x"])).collect();
    let records = engine.records(&events);
    for status in [429, 503] {
        proxy.set(FaultMode::RefusesHalf(status));
        // A few attempts in one call write most of them.
        let verdicts = index.apply(&records).await;
        let written = |verdict: &RecordVerdict| {
            matches!(verdict, RecordVerdict::Applied | RecordVerdict::Superseded)
        };
        match verdicts {
            Ok(verdicts) => assert!(verdicts.iter().all(written), "{status}: {verdicts:?}"),
            Err(error) => {
                let chain = ErrorChain(&error).to_string();
                assert!(chain.contains("the index is overloaded"), "{status}: {chain}");
            }
        }
    }
    proxy.set(FaultMode::None);
    let verdicts = index.apply(&records).await.expect("the sink works");
    assert!(verdicts.contains(&RecordVerdict::Superseded), "{verdicts:?}");
    refresh(&engine).await;
    assert_eq!(engine.index.documents().await.expect("a count"), 100);
}

/// A server that is slow by 5 s: a batch waits and succeeds; a search fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_indexer_waits_for_a_slow_server_and_searches_do_not() {
    let _alone = support::SERVER.write().await;
    let engine = Engine::unprotected().await;
    let make = |fault| {
        tokio::task::spawn_blocking(move || {
            support::stack().fault(fault, "opensearch").expect("a fault")
        })
    };
    // On the way to the server and on the way back.
    make(Fault::Slow { ms: 2500 }).await.expect("no panic");
    let started = Instant::now();
    let records = engine.records(&[event("acme", "t", "1", 1, NOW, &["x"])]);
    let verdicts = engine.index.apply(&records).await;
    let took = started.elapsed();
    let searched_at = Instant::now();
    let searched =
        engine.index.search(&TenantId::parse("acme").expect("a tenant"), &request("x")).await;
    let waited = searched_at.elapsed();
    make(Fault::Heal).await.expect("no panic");
    assert_eq!(
        verdicts.expect("it is slow, not broken"),
        [RecordVerdict::Applied],
        "after {took:?}"
    );
    assert!(took >= Duration::from_secs(5), "{took:?}");
    assert!(
        matches!(searched, Err(SearchError::Unavailable(_))) && waited < Duration::from_secs(8),
        "{searched:?}"
    );
}

/// Whatever answers in the server's place is named, blames no record, finds nothing, and lets no
/// rebuild hang.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_server_answers_is_named() {
    let (engine, proxy, index) = proxied().await;
    let made = |id: usize| {
        let event = event("acme", "t", &id.to_string(), 1, NOW, &["x"]);
        engine.shards.store_event(&event);
        engine.records(&[event])
    };
    index.apply(&made(0)).await.expect("applied");
    let acme = TenantId::parse("acme").expect("a tenant");
    let keeper = index.keep();
    for (n, (mode, code)) in [
        (FaultMode::Refuses(401), "unauthorized"),
        (FaultMode::Refuses(403), "forbidden"),
        (FaultMode::Refuses(413), "failing"),
        (FaultMode::Refuses(429), "overloaded"),
        (FaultMode::Refuses(500), "failing"),
        (FaultMode::Refuses(503), "failing"),
        (FaultMode::Says("<html>welcome</html>"), "garbage"),
        (FaultMode::Says("[]"), "garbage"),
        (FaultMode::Says("{}"), "missing"),
        (FaultMode::Halves, "garbage"),
    ]
    .into_iter()
    .enumerate()
    {
        proxy.set(mode);
        wait_for_condition_async("it is named", NAMED_WITHIN, || async {
            let problem = index.problem().ok_or("no problem")?;
            if problem.code == code { Ok(()) } else { Err(problem.full_text()) }
        })
        .await;
        let records = made(n + 1);
        index.apply(&records).await.expect_err("no record is to blame");
        index.search(&acme, &request("x")).await.expect_err("nothing is found");
        index.search(&acme, &request("y")).await.expect_err("nor that there is nothing");
        index.documents().await.expect_err("nor counted");
        let asked = tokio::time::timeout(TEST_TIMEOUT, index.reindex()).await;
        asked.expect("an answer").expect_err("the cause");
        proxy.set(FaultMode::None);
        wait_for_condition_async("it is over", TEST_TIMEOUT, || async {
            let verdicts = index.apply(&records).await.map_err(|e| e.to_string())?;
            match verdicts[..] {
                [RecordVerdict::Applied | RecordVerdict::Superseded] => Ok(()),
                _ => Err(format!("{verdicts:?}")),
            }
        })
        .await;
        refresh(&engine).await;
        let page = index.search(&acme, &request("x")).await.expect("answered");
        assert_eq!(page.hits.len(), n + 2, "{mode:?}");
    }
    keeper.stop().await;
}
