//! A server that fails in a scripted or random way, and what an import of a test needs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tagfast_client::args::{ClientArgs, ImportArgs};
use tagfast_client::error::CommandResult;
use tagfast_client::import;
use tagfast_client::terminal::Terminal;
use tagfast_resilience::task::TaskTracker;
use tokio::sync::watch;

#[derive(Default)]
pub(crate) struct FakeServer {
    /// Statuses to answer before any request is accepted.
    pub(crate) first: Vec<u16>,
    /// Upper limit of a body in bytes.
    pub(crate) body_bytes: usize,
    /// Idempotency keys with their bodies.
    pub(crate) keys: HashMap<String, Bytes>,
    /// Answers to the items that were applied, by key and place in the batch.
    pub(crate) answers: HashMap<(String, usize), Value>,
    /// Tags by content id.
    pub(crate) contents: BTreeMap<String, BTreeSet<String>>,
    /// Every tag that was added, by content id, in the order in which the items were applied.
    pub(crate) applied: BTreeMap<String, Vec<String>>,
    /// Requests received.
    pub(crate) requests: usize,
    /// Lines after which an export breaks off.
    pub(crate) break_after: usize,
    /// Requests after which the test stops the importer; `None` = never.
    pub(crate) stop_after: Option<(usize, watch::Sender<bool>)>,
    /// Answers after random delays, refuses requests and single items for a moment, loses answers,
    /// and applies the items of a batch in a random order; `None` = never.
    pub(crate) trouble: Option<fastrand::Rng>,
}

pub(crate) type SharedServer = Arc<Mutex<FakeServer>>;

fn problem(status: u16, code: &str) -> Response {
    let detail = format!("{code} happened");
    let body = json!({"status": status, "code": code, "detail": detail, "retry_after_ms": 1});
    (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response()
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// What the random part of a server does with a request.
#[derive(Default)]
struct Trouble {
    before: Duration,
    after: Duration,
    refused: bool,
    answer_lost: bool,
}

fn trouble(fake: &mut FakeServer) -> Trouble {
    let Some(random) = &mut fake.trouble else { return Trouble::default() };
    let mut delay = || Duration::from_micros(random.u64(..1500));
    let (before, after) = (delay(), delay());
    let (refused, answer_lost) = (random.u8(..30) == 0, random.u8(..30) == 0);
    Trouble { before, after, refused, answer_lost }
}

async fn tag(State(fake): State<SharedServer>, headers: HeaderMap, body: Bytes) -> Response {
    let trouble = trouble(&mut fake.lock());
    tokio::time::sleep(trouble.before).await;
    let answer = answer(&mut fake.lock(), &headers, &body, &trouble);
    tokio::time::sleep(trouble.after).await;
    answer
}

fn answer(fake: &mut FakeServer, headers: &HeaderMap, body: &Bytes, trouble: &Trouble) -> Response {
    fake.requests += 1;
    if let Some((after, stop)) = &fake.stop_after
        && fake.requests >= *after
    {
        stop.send_replace(true);
    }
    if let Some(status) = fake.first.pop() {
        return problem(status, "not_now");
    }
    if trouble.refused {
        return problem(503, "not_now");
    }
    if body.len() > fake.body_bytes {
        return problem(413, "body_too_large");
    }
    let key = headers["idempotency-key"].to_str().unwrap().to_owned();
    let before = fake.keys.entry(key.clone()).or_insert_with(|| body.clone());
    assert_eq!(before, body, "one key for two bodies");
    let request: Value = serde_json::from_slice(body).unwrap();
    let items = request["items"].as_array().unwrap();
    let mut order: Vec<usize> = (0..items.len()).collect();
    let mut refused: BTreeSet<usize> = BTreeSet::new();
    if let Some(random) = &mut fake.trouble {
        random.shuffle(&mut order);
        refused.extend(order.iter().filter(|_| random.u8(..100) == 0));
    }
    let mut results = vec![Value::Null; items.len()];
    for n in order {
        results[n] = if refused.contains(&n) {
            json!({"ok": false, "problem": {"status": 503, "code": "not_now", "retry_after_ms": 1}})
        } else {
            apply(fake, &key, n, &items[n])
        };
    }
    if trouble.answer_lost {
        return problem(503, "outcome_unknown");
    }
    json!({"results": results}).to_string().into_response()
}

/// Applies an item once; a retry gets the first answer.
fn apply(fake: &mut FakeServer, key: &str, n: usize, item: &Value) -> Value {
    if let Some(first) = fake.answers.get(&(key.to_owned(), n)) {
        return first.clone();
    }
    let tags: BTreeSet<String> = item["add"].as_array().unwrap().iter().map(text_of).collect();
    if tags.contains("<") {
        let problem = json!({"status": 422, "code": "forbidden_character", "detail": "no <"});
        return json!({"ok": false, "problem": problem});
    }
    let id = text_of(&item["id"]);
    let content = fake.contents.entry(id.clone()).or_default();
    let added: Vec<&String> = tags.difference(content).collect();
    let result = json!({"ok": true, "added": added});
    fake.applied.entry(id).or_default().extend(tags.iter().cloned());
    content.extend(tags);
    fake.answers.insert((key.to_owned(), n), result.clone());
    result
}

async fn lines(
    State(fake): State<SharedServer>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let mut fake = fake.lock();
    fake.requests += 1;
    let after = query.get("after").map(|a| a.strip_prefix("t/").unwrap().to_owned());
    let all: Vec<String> = fake
        .contents
        .keys()
        .filter(|id| after.as_ref().is_none_or(|a| *id > a))
        .map(|id| format!("{}\n", json!({"type": "t", "id": id, "tags": []})))
        .collect();
    let whole: usize = all.iter().take(fake.break_after).map(String::len).sum();
    let text = all.concat();
    if fake.break_after < all.len() {
        // Half a line, then an error of the stream.
        let part = Bytes::copy_from_slice(&text.as_bytes()[..whole + 5]);
        let pieces = futures_util::stream::unfold(Some(part), |part| async move {
            match part {
                Some(part) => Some((Ok(part), None)),
                None => {
                    // Lets the server flush before the error ends the connection.
                    tokio::task::yield_now().await;
                    Some((Err(std::io::Error::other("gone")), None))
                }
            }
        });
        return Body::from_stream(pieces).into_response();
    }
    text.into_response()
}

pub(crate) async fn server(fake: FakeServer) -> (SharedServer, ClientArgs) {
    let fake = Arc::new(Mutex::new(fake));
    let router = Router::new()
        .route("/v1/content:batchTag", post(tag))
        .route("/v1/export", get(lines))
        .with_state(Arc::clone(&fake));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    TaskTracker::new().spawn(async move { axum::serve(listener, router).await });
    (fake, ClientArgs { url, token: None, timeout: 10 })
}

pub(crate) fn working() -> FakeServer {
    FakeServer { body_bytes: 1 << 20, break_after: usize::MAX, ..FakeServer::default() }
}

pub(crate) fn input(dir: &Path, lines: u32, bad: &[(u32, &str)]) -> String {
    let text: String = (1..=lines)
        .map(|n| match bad.iter().find(|(line, _)| *line == n) {
            Some((_, text)) => format!("{text}\n"),
            None => format!("{{\"type\":\"t\",\"id\":\"{n:05}\",\"tags\":[\"a\",\"b\"]}}\n"),
        })
        .collect();
    let path = dir.join("in.ndjson");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

pub(crate) fn args(file: impl Into<PathBuf>, client: ClientArgs) -> ImportArgs {
    ImportArgs {
        file: file.into(),
        state: None,
        restart: false,
        wait: false,
        batch: 10,
        parallel: 3,
        retries: 5,
        client,
    }
}

pub(crate) fn never() -> watch::Receiver<bool> {
    // The sender lives forever: dropping it would end the wait for a stop.
    let (sender, receiver) = watch::channel(false);
    std::mem::forget(sender);
    receiver
}

/// Runs an import that is never stopped, with its report or error and what it said on stderr.
pub(crate) async fn run(args: &ImportArgs) -> (CommandResult, Value, String) {
    run_until(args, never()).await
}

/// As [`run`], until `stop` says so.
pub(crate) async fn run_until(
    args: &ImportArgs,
    stop: watch::Receiver<bool>,
) -> (CommandResult, Value, String) {
    let (terminal, captured) = Terminal::memory(true);
    let result = import::run(args, &terminal, stop).await;
    (result, serde_json::from_str(&captured.out()).unwrap_or_default(), captured.err())
}
