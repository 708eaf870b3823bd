//! Import and export against a server that misbehaves in a known way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{export, import};
use crate::cli::{ClientArgs, ExportArgs, ImportArgs};
use crate::failure::Exit;
use crate::term::Term;

#[derive(Default)]
struct World {
    /// Statuses to answer before anything is accepted.
    first: Vec<u16>,
    /// Largest body.
    body_bytes: usize,
    /// Idempotency keys with their bodies.
    keys: HashMap<String, Bytes>,
    /// What was written.
    contents: BTreeMap<String, BTreeSet<String>>,
    /// Requests seen.
    requests: usize,
    /// Break an export off after so many lines.
    break_after: usize,
    /// Tell the importer to stop after so many requests.
    stop_after: Option<(usize, watch::Sender<bool>)>,
}

type Shared = Arc<Mutex<World>>;

fn problem(status: u16, code: &str) -> Response {
    let body = json!({"status": status, "code": code, "detail": format!("{code} happened"), "retry_after_ms": 1});
    (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response()
}

async fn tag(State(world): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let mut world = world.lock().unwrap();
    world.requests += 1;
    if let Some((after, stop)) = &world.stop_after
        && world.requests >= *after
    {
        stop.send_replace(true);
    }
    if let Some(status) = world.first.pop() {
        return problem(status, "not_now");
    }
    if body.len() > world.body_bytes {
        return problem(413, "body_too_large");
    }
    let key = headers["idempotency-key"].to_str().unwrap().to_owned();
    let before = world.keys.entry(key).or_insert_with(|| body.clone());
    assert_eq!(*before, body, "one key for two bodies");
    let asked: Value = serde_json::from_slice(&body).unwrap();
    let results: Vec<Value> = asked["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            let tags: BTreeSet<String> =
                item["add"].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()).collect();
            if tags.contains("<") {
                return json!({"ok": false, "problem": {"status": 422, "code": "forbidden_character", "detail": "no <"}});
            }
            let added: Vec<&String> = tags.iter().collect();
            let result = json!({"ok": true, "added": added});
            world.contents.entry(item["id"].as_str().unwrap().to_owned()).or_default().extend(tags);
            result
        })
        .collect();
    json!({"results": results}).to_string().into_response()
}

async fn lines(
    State(world): State<Shared>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let mut world = world.lock().unwrap();
    world.requests += 1;
    let after = query.get("after").map(|a| a.strip_prefix("t/").unwrap().to_owned());
    let all: Vec<String> = world
        .contents
        .keys()
        .filter(|id| after.as_ref().is_none_or(|a| *id > a))
        .map(|id| format!("{}\n", json!({"type": "t", "id": id, "tags": []})))
        .collect();
    let whole: usize = all.iter().take(world.break_after).map(String::len).sum();
    let text = all.concat();
    if world.break_after < all.len() {
        // Half a line more, then an error of the stream.
        let part = Bytes::copy_from_slice(&text.as_bytes()[..whole + 5]);
        let pieces = futures_util::stream::unfold(Some(part), |part| async move {
            match part {
                Some(part) => Some((Ok(part), None)),
                None => {
                    // Lets the server send what it has before the error ends the connection.
                    tokio::task::yield_now().await;
                    Some((Err(std::io::Error::other("gone")), None))
                }
            }
        });
        return Body::from_stream(pieces).into_response();
    }
    text.into_response()
}

async fn server(world: World) -> (Shared, ClientArgs) {
    let world = Arc::new(Mutex::new(world));
    let router = Router::new()
        .route("/v1/content:batchTag", post(tag))
        .route("/v1/export", get(lines))
        .with_state(Arc::clone(&world));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (world, ClientArgs { url, token: None, timeout: 10 })
}

fn patient() -> World {
    World { body_bytes: 1 << 20, break_after: usize::MAX, ..World::default() }
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
    // The sender is kept for ever: a dropped one would never say stop either, but end the wait.
    let (sender, receiver) = watch::channel(false);
    std::mem::forget(sender);
    receiver
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_good_line_is_written_and_every_bad_one_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (world, client) = server(patient()).await;
    let bad =
        [(3, "nonsense"), (57, r#"{"type":"t","id":"x","tags":["<"]}"#), (99, r#"{"type":"t"}"#)];
    let file = input(dir.path(), 100, &bad);
    let (term, captured) = Term::memory(true);
    assert_eq!(
        import::run(&args(file.clone(), client), &term, never()).await.unwrap(),
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
    assert_eq!(world.lock().unwrap().contents.len(), 97);
    assert!(!Path::new(&format!("{file}.tagfast-import")).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_that_pass_are_waited_for_with_the_same_key() {
    let dir = tempfile::tempdir().unwrap();
    let (world, client) = server(World { first: vec![503, 429, 507, 503], ..patient() }).await;
    let (term, captured) = Term::memory(true);
    let mut args = args(input(dir.path(), 30, &[]), client);
    args.retries = 8;
    assert_eq!(import::run(&args, &term, never()).await.unwrap(), Exit::Done);
    let summary: Value = serde_json::from_str(&captured.out()).unwrap();
    assert_eq!(summary["retries"], 4);
    let world = world.lock().unwrap();
    assert_eq!((world.contents.len(), world.keys.len(), world.requests), (30, 3, 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_too_large_is_halved_until_it_fits() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!(r#"{{"type":"t","id":"long","tags":["{}"]}}"#, "x".repeat(400));
    let (world, client) = server(World { body_bytes: 300, ..patient() }).await;
    let (term, captured) = Term::memory(true);
    let file = input(dir.path(), 25, &[(7, &long)]);
    assert_eq!(import::run(&args(file, client), &term, never()).await.unwrap(), Exit::Partly);
    let summary: Value = serde_json::from_str(&captured.out()).unwrap();
    assert_eq!(summary["contents"], 24);
    assert_eq!(summary["bad_lines"][0]["line"], 7);
    assert_eq!(world.lock().unwrap().contents.len(), 24);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_import_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (stop, stopped) = watch::channel(false);
    let (world, client) = server(World { stop_after: Some((5, stop)), ..patient() }).await;
    let file = input(dir.path(), 500, &[(2, "bad")]);
    let (term, _) = Term::memory(true);
    let failure =
        import::run(&args(file.clone(), client.clone()), &term, stopped).await.unwrap_err();
    assert!(failure.message.contains("interrupted") && failure.hint.unwrap().contains("go on"));
    let note = format!("{file}.tagfast-import");
    let noted: Value = serde_json::from_str(&std::fs::read_to_string(&note).unwrap()).unwrap();
    let line = noted["line"].as_u64().unwrap();
    let before = {
        let mut world = world.lock().unwrap();
        world.stop_after = None;
        std::mem::take(&mut world.contents).len() as u64
    };
    assert!((40..400).contains(&line), "{line}");
    assert!(before + 1 >= line, "{before} contents, noted line {line}");

    let (term, captured) = Term::memory(true);
    // The bad line lies before the noted one; it still counts.
    assert_eq!(import::run(&args(file, client), &term, never()).await.unwrap(), Exit::Partly);
    let summary: Value = serde_json::from_str(&captured.out()).unwrap();
    assert_eq!(summary["bad"], 1);
    let again = world.lock().unwrap().contents.len() as u64;
    assert_eq!(again, 500 - line, "only the lines after the noted one are sent again");
    assert!(!Path::new(&note).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stays_away_ends_the_import_with_its_note() {
    let dir = tempfile::tempdir().unwrap();
    let (_, client) = server(World { first: vec![503; 100], ..patient() }).await;
    let file = input(dir.path(), 20, &[]);
    let (term, _) = Term::memory(true);
    let mut args = args(file.clone(), client);
    args.retries = 1;
    let failure = import::run(&args, &term, never()).await.unwrap_err();
    assert_eq!(failure.exit, Exit::Failed);
    assert!(failure.message.contains("not_now") && failure.hint.unwrap().contains("line 0"));
    assert!(Path::new(&format!("{file}.tagfast-import")).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_breaks_off_is_taken_up_after_the_last_whole_line() {
    let dir = tempfile::tempdir().unwrap();
    let contents = (0..100).map(|n| (format!("id {n:03}/ü"), BTreeSet::new())).collect();
    let (world, client) = server(World { contents, break_after: 30, ..patient() }).await;
    let file = dir.path().join("out.ndjson");
    let (term, _) = Term::memory(false);
    let args = ExportArgs { file: file.to_str().unwrap().to_owned(), client };
    assert_eq!(export::run(&args, &term).await.unwrap(), Exit::Done);
    let text = std::fs::read_to_string(&file).unwrap();
    let ids: Vec<String> = text
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 100);
    assert!(ids.is_sorted());
    assert_eq!(world.lock().unwrap().requests, 4);
}
