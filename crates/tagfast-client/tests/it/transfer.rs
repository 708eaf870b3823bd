//! Import and export against a server that fails in a scripted way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tagfast_client::args::{ClientArgs, ExportArgs, ImportArgs};
use tagfast_client::error::Exit;
use tagfast_client::terminal::Terminal;
use tagfast_client::{export, import};
use tagfast_resilience::task::TaskTracker;
use tokio::sync::watch;

#[derive(Default)]
struct FakeServer {
    /// Statuses to answer before any request is accepted.
    first: Vec<u16>,
    /// Upper limit of a body in bytes.
    body_bytes: usize,
    /// Idempotency keys with their bodies.
    keys: HashMap<String, Bytes>,
    /// Tags by content id.
    contents: BTreeMap<String, BTreeSet<String>>,
    /// Requests received.
    requests: usize,
    /// Lines after which an export breaks off.
    break_after: usize,
    /// Requests after which the test stops the importer; `None` = never.
    stop_after: Option<(usize, watch::Sender<bool>)>,
}

type SharedServer = Arc<Mutex<FakeServer>>;

fn problem(status: u16, code: &str) -> Response {
    let detail = format!("{code} happened");
    let body = json!({"status": status, "code": code, "detail": detail, "retry_after_ms": 1});
    (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response()
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

async fn tag(State(fake): State<SharedServer>, headers: HeaderMap, body: Bytes) -> Response {
    let mut fake = fake.lock();
    fake.requests += 1;
    if let Some((after, stop)) = &fake.stop_after
        && fake.requests >= *after
    {
        stop.send_replace(true);
    }
    if let Some(status) = fake.first.pop() {
        return problem(status, "not_now");
    }
    if body.len() > fake.body_bytes {
        return problem(413, "body_too_large");
    }
    let key = headers["idempotency-key"].to_str().unwrap().to_owned();
    let before = fake.keys.entry(key).or_insert_with(|| body.clone());
    assert_eq!(*before, body, "one key for two bodies");
    let request: Value = serde_json::from_slice(&body).unwrap();
    let results: Vec<Value> = request["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            let tags: BTreeSet<String> =
                item["add"].as_array().unwrap().iter().map(text_of).collect();
            if tags.contains("<") {
                let problem =
                    json!({"status": 422, "code": "forbidden_character", "detail": "no <"});
                return json!({"ok": false, "problem": problem});
            }
            let added: Vec<&String> = tags.iter().collect();
            let result = json!({"ok": true, "added": added});
            fake.contents.entry(item["id"].as_str().unwrap().to_owned()).or_default().extend(tags);
            result
        })
        .collect();
    json!({"results": results}).to_string().into_response()
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

async fn server(fake: FakeServer) -> (SharedServer, ClientArgs) {
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

fn working() -> FakeServer {
    FakeServer { body_bytes: 1 << 20, break_after: usize::MAX, ..FakeServer::default() }
}

fn input(dir: &Path, lines: u32, bad: &[(u32, &str)]) -> String {
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

fn args(file: String, client: ClientArgs) -> ImportArgs {
    ImportArgs {
        file,
        state: None,
        restart: false,
        wait: false,
        batch: 10,
        parallel: 3,
        retries: 5,
        client,
    }
}

fn never() -> watch::Receiver<bool> {
    // The sender lives forever: dropping it would end the wait for a stop.
    let (sender, receiver) = watch::channel(false);
    std::mem::forget(sender);
    receiver
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_good_line_is_written_and_every_bad_one_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, client) = server(working()).await;
    let bad =
        [(3, "nonsense"), (57, r#"{"type":"t","id":"x","tags":["<"]}"#), (99, r#"{"type":"t"}"#)];
    let file = input(dir.path(), 100, &bad);
    let (terminal, captured) = Terminal::memory(true);
    assert_eq!(
        import::run(&args(file.clone(), client), &terminal, never()).await.unwrap(),
        Exit::Partly
    );
    let summary: Value = serde_json::from_str(&captured.out()).unwrap();
    assert_eq!((summary["contents"].as_u64(), summary["taggings"].as_u64()), (Some(97), Some(194)));
    let mut lines: Vec<u64> = summary["bad_lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| b["line"].as_u64().unwrap())
        .collect();
    lines.sort_unstable();
    assert_eq!(lines, [3, 57, 99]);
    assert!(captured.err().contains("line 57: no < (forbidden_character)"), "{}", captured.err());
    assert_eq!(fake.lock().contents.len(), 97);
    assert!(!Path::new(&format!("{file}.tagfast-import")).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passing_refusals_are_retried_with_the_same_key() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, client) = server(FakeServer { first: vec![503, 429, 507, 503], ..working() }).await;
    let (terminal, captured) = Terminal::memory(true);
    let mut args = args(input(dir.path(), 30, &[]), client);
    args.retries = 8;
    assert_eq!(import::run(&args, &terminal, never()).await.unwrap(), Exit::Done);
    let summary: Value = serde_json::from_str(&captured.out()).unwrap();
    assert_eq!(summary["retries"], 4);
    let fake = fake.lock();
    assert_eq!((fake.contents.len(), fake.keys.len(), fake.requests), (30, 3, 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_too_large_is_halved_until_it_fits() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!(r#"{{"type":"t","id":"long","tags":["{}"]}}"#, "x".repeat(400));
    let (fake, client) = server(FakeServer { body_bytes: 300, ..working() }).await;
    let (terminal, captured) = Terminal::memory(true);
    let file = input(dir.path(), 25, &[(7, &long)]);
    assert_eq!(import::run(&args(file, client), &terminal, never()).await.unwrap(), Exit::Partly);
    let summary: Value = serde_json::from_str(&captured.out()).unwrap();
    assert_eq!(summary["contents"], 24);
    assert_eq!(summary["bad_lines"][0]["line"], 7);
    assert_eq!(fake.lock().contents.len(), 24);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_import_resumes_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (stop, stopped) = watch::channel(false);
    let (fake, client) = server(FakeServer { stop_after: Some((5, stop)), ..working() }).await;
    let file = input(dir.path(), 500, &[(2, "bad")]);
    let (terminal, _) = Terminal::memory(true);
    let error =
        import::run(&args(file.clone(), client.clone()), &terminal, stopped).await.unwrap_err();
    assert!(error.message.contains("interrupted") && error.hint.unwrap().contains("go on"));
    let checkpoint = format!("{file}.tagfast-import");
    let stored: Value =
        serde_json::from_str(&std::fs::read_to_string(&checkpoint).unwrap()).unwrap();
    let line = stored["line"].as_u64().unwrap();
    let before = {
        let mut fake = fake.lock();
        fake.stop_after = None;
        std::mem::take(&mut fake.contents).len() as u64
    };
    assert!((40..400).contains(&line), "{line}");
    assert!(before + 1 >= line, "{before} contents, checkpoint at line {line}");

    let (terminal, captured) = Terminal::memory(true);
    // The bad line is before the checkpoint; it still counts.
    assert_eq!(import::run(&args(file, client), &terminal, never()).await.unwrap(), Exit::Partly);
    let summary: Value = serde_json::from_str(&captured.out()).unwrap();
    assert_eq!(summary["bad"], 1);
    let again = fake.lock().contents.len() as u64;
    assert_eq!(again, 500 - line, "only the lines after the checkpoint are sent again");
    assert!(!Path::new(&checkpoint).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stays_away_ends_the_import_with_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (_, client) = server(FakeServer { first: vec![503; 100], ..working() }).await;
    let file = input(dir.path(), 20, &[]);
    let (terminal, _) = Terminal::memory(true);
    let mut args = args(file.clone(), client);
    args.retries = 1;
    let error = import::run(&args, &terminal, never()).await.unwrap_err();
    assert_eq!(error.exit, Exit::Failed);
    assert!(error.message.contains("not_now") && error.hint.unwrap().contains("line 0"));
    assert!(Path::new(&format!("{file}.tagfast-import")).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_breaks_off_resumes_after_the_last_whole_line() {
    let dir = tempfile::tempdir().unwrap();
    let contents = (0..100).map(|n| (format!("id {n:03}/ü"), BTreeSet::new())).collect();
    let (fake, client) = server(FakeServer { contents, break_after: 30, ..working() }).await;
    let file = dir.path().join("out.ndjson");
    let (terminal, _) = Terminal::memory(false);
    let args = ExportArgs { file: file.to_str().unwrap().to_owned(), client };
    assert_eq!(export::run(&args, &terminal).await.unwrap(), Exit::Done);
    let text = std::fs::read_to_string(&file).unwrap();
    let ids: Vec<String> = text
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 100);
    assert!(ids.is_sorted());
    assert_eq!(fake.lock().requests, 4);
}
