//! A server that refuses work: as a whole with 429 or 503, or some documents of a batch; one that
//! is slow.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};
use tagfast_domain::TenantId;
use tagfast_events::{RecordVerdict, Sink};
use tagfast_search::conformance::{NOW, event, request};
use tagfast_search::{OpenSearchOptions, SearchError, SearchIndex};
use tagfast_testkit::stack::Fault;

use crate::kit::{self, Engine};

/// What stands in front of the real server does with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Willing,
    /// Every request is answered so.
    Refuses(u16),
    /// Every other document of a batch is answered so; the others are written.
    RefusesHalf(u16),
}

#[derive(Clone)]
struct Gate {
    behind: String,
    mood: Arc<Mutex<Mood>>,
}

impl Gate {
    /// A gate in front of the server, with its URL.
    async fn open() -> (Self, String) {
        let gate = Self { behind: kit::url().await, mood: Arc::new(Mutex::new(Mood::Willing)) };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let router = axum::Router::new().fallback(pass).with_state(gate.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (gate, url)
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().expect("no panic") = mood;
    }
}

async fn pass(
    State(gate): State<Gate>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    let mood = *gate.mood.lock().expect("no panic");
    let reason = json!({"error": {"type": "es_rejected_execution_exception", "reason": "the queue is full"}});
    if let Mood::Refuses(status) = mood {
        return (StatusCode::from_u16(status).expect("a status"), reason.to_string());
    }
    let is_bulk = uri.path().ends_with("/_bulk");
    let body = match mood {
        Mood::RefusesHalf(_) if is_bulk => every_other(&body),
        Mood::Willing | Mood::Refuses(_) | Mood::RefusesHalf(_) => body.to_vec(),
    };
    let mut asked =
        reqwest::Client::new().request(method, format!("{}{uri}", gate.behind)).body(body);
    if let Some(kind) = headers.get("content-type") {
        asked = asked.header("content-type", kind);
    }
    let answer = asked.send().await.expect("the server answers");
    let status = answer.status();
    let text = answer.text().await.expect("text");
    match mood {
        Mood::RefusesHalf(refused) if is_bulk => (status, with_refused(&text, refused, &reason)),
        Mood::Willing | Mood::Refuses(_) | Mood::RefusesHalf(_) => (status, text),
    }
}

/// The first, third, fifth document of a batch.
fn every_other(body: &[u8]) -> Vec<u8> {
    let lines: Vec<&[u8]> = body.split_inclusive(|byte| *byte == b'\n').collect();
    lines.chunks(2).step_by(2).flatten().flat_map(|line| line.iter().copied()).collect()
}

/// Between two answers one of a document that was refused.
fn with_refused(text: &str, status: u16, reason: &Value) -> String {
    let answer: Value = serde_json::from_str(text).expect("JSON");
    let refused = json!({"index": {"status": status, "error": reason["error"]}});
    let items = answer["items"].as_array().expect("items");
    let all: Vec<Value> = items.iter().flat_map(|item| [item.clone(), refused.clone()]).collect();
    json!({"items": all}).to_string()
}

/// Makes visible what was written, whoever wrote it.
async fn refresh(engine: &Engine) {
    let url = format!("{}/{}/_refresh", kit::url().await, engine.options.alias);
    assert!(
        reqwest::Client::new().post(url).send().await.expect("an answer").status().is_success()
    );
}

async fn gated() -> (Engine, Gate, Arc<tagfast_search::OpenSearchIndex>) {
    let engine = Engine::new().await;
    let (gate, url) = Gate::open().await;
    let options = OpenSearchOptions { url, ..engine.options.clone() };
    let index =
        kit::open(&options, &engine.shards, &Arc::new(tagfast_resilience::ManualClock::new(NOW)));
    (engine, gate, index)
}

/// 429 and 503 of a whole request blame no record, and no search pretends that nothing was found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_everything_is_systemic() {
    let (engine, gate, index) = gated().await;
    let records = engine.records(&[event("acme", "t", "1", 1, NOW, &["x"])]);
    let acme = TenantId::parse("acme").expect("a tenant");
    for status in [429, 503, 502, 500] {
        gate.set(Mood::Refuses(status));
        let error = index.apply(&records).await.expect_err("no record is to blame");
        assert!(error.message.contains(&status.to_string()), "{error}");
        index.canary().await.expect_err("nor does a canary live");
        let searched = index.search(&acme, &request("x")).await;
        let expected = match status {
            429 => matches!(searched, Err(SearchError::Refused { reason: "overloaded", .. })),
            _ => matches!(searched, Err(SearchError::Unavailable(_))),
        };
        assert!(expected, "{status}: {searched:?}");
    }
    gate.set(Mood::Willing);
    index.canary().await.expect("it lives");
    index.canary().await.expect("again, with the same version");
    assert_eq!(index.apply(&records).await.expect("it works"), [RecordVerdict::Applied]);
    refresh(&engine).await;
    assert_eq!(engine.index.documents().await.expect("a count"), 1, "the canary is not counted");
}

/// Some documents are refused for now: they are tried again, the others are done; all of them
/// refused is no record's fault.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_that_are_refused_for_now_are_tried_again() {
    let (engine, gate, index) = gated().await;
    let events: Vec<_> =
        (0..100).map(|n| event("acme", "t", &format!("{n}"), 1, NOW, &["x"])).collect();
    let records = engine.records(&events);
    for status in [429, 503] {
        gate.set(Mood::RefusesHalf(status));
        let verdicts = index.apply(&records).await.expect("the sink works");
        for (n, verdict) in verdicts.iter().enumerate() {
            let failed = matches!(verdict, RecordVerdict::Failed { code: "index_overloaded", .. });
            assert_eq!(failed, n % 2 == 1, "{n}: {verdict:?}");
        }
    }
    gate.set(Mood::Willing);
    let verdicts = index.apply(&records).await.expect("the sink works");
    let superseded =
        verdicts.iter().filter(|verdict| **verdict == RecordVerdict::Superseded).count();
    assert_eq!(superseded, 50, "what was written is not written again");
    refresh(&engine).await;
    assert_eq!(engine.index.documents().await.expect("a count"), 100);
}

/// Slow by 5 seconds: a batch takes its time and succeeds; a search says that it cannot be
/// answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_server_is_waited_for_by_the_indexer_alone() {
    let _alone = kit::SERVER.write().await;
    let engine = Engine::unprotected().await;
    let make = |fault| {
        tokio::task::spawn_blocking(move || {
            kit::stack().fault(fault, "opensearch").expect("a fault")
        })
    };
    // On the way there and on the way back.
    make(Fault::Slow { ms: 2500 }).await.expect("no panic");
    let started = Instant::now();
    let records = engine.records(&[event("acme", "t", "1", 1, NOW, &["x"])]);
    let verdicts = engine.index.apply(&records).await;
    let took = started.elapsed();
    let asked = Instant::now();
    let searched =
        engine.index.search(&TenantId::parse("acme").expect("a tenant"), &request("x")).await;
    let waited = asked.elapsed();
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
