//! What requests and answers hold in memory: bodies in pieces, contents that repeat, answers that
//! no client reads.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Request;
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::ServiceExt;

use crate::support::{Answer, ApiLimits, AuthConfig, Fixture, fixture, fixture_with};

const GET: &str = "/v1/content:batchGet";
/// Longer than any step here takes; only a failing test waits for it.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

fn with_budget(in_flight_bytes: u64) -> Fixture {
    fixture_with(AuthConfig::None, ApiLimits { in_flight_bytes, ..ApiLimits::default() })
}

/// Puts 100 tags of 250 bytes on a content.
async fn make_large(fixture: &Fixture, id: &str) {
    let tags: Vec<String> = (0..100).map(|n| format!("{n:03}{}", "漢".repeat(60))).collect();
    let path = format!("/v1/content/a/{id}/tags");
    fixture.request("PUT", &path).json(&json!({"tags": tags}).to_string()).send().await.ok();
}

fn batch(ids: impl IntoIterator<Item = String>) -> String {
    let items: Vec<Value> = ids.into_iter().map(|id| json!({"type": "a", "id": id})).collect();
    json!({"items": items}).to_string()
}

/// Sends a request and leaves the body of the answer where it is.
async fn unread(fixture: &Fixture, path: &str, body: String) -> http::Response<Body> {
    let (method, content_type) =
        if body.is_empty() { ("GET", "text/plain") } else { ("POST", "application/json") };
    let request = Request::builder().method(method).uri(path).header("content-type", content_type);
    fixture.router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap()
}

/// A request whose body comes in pieces of so many bytes, and does not end.
fn in_pieces(text: &str, bytes: usize) -> Request<Body> {
    let pieces = text.as_bytes().chunks(bytes);
    let pieces: Vec<_> = pieces.map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    let endless = stream::iter(pieces).chain(stream::pending());
    Request::builder()
        .method("POST")
        .uri(GET)
        .header("content-type", "application/json")
        .body(Body::from_stream(endless))
        .unwrap()
}

/// Waits until so many bytes are in flight.
async fn wait_for_bytes(fixture: &Fixture, enough: impl Fn(u64) -> bool) {
    let wait = async {
        while !enough(fixture.byte_budget.used()) {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(TEST_TIMEOUT, wait).await;
    assert!(waited.is_ok(), "{} bytes are in flight", fixture.byte_budget.used());
}

#[tokio::test]
async fn a_body_in_pieces_holds_what_its_bytes_hold() {
    let fixture = fixture();
    let text = " ".repeat(100_000);
    let router = fixture.router.clone();
    let request = tokio::spawn(router.oneshot(in_pieces(&text, 1)));
    wait_for_bytes(&fixture, |used| used >= 100_000).await;
    assert!(fixture.byte_budget.used() <= 200_000, "{}", fixture.byte_budget.used());
    request.abort();
    let _ = request.await;
    assert_eq!(fixture.byte_budget.used(), 0, "given back when the client leaves");
}

#[tokio::test]
async fn bodies_beyond_the_budget_are_refused_and_give_their_bytes_back() {
    let fixture = with_budget(4 << 20);
    let text = " ".repeat(1 << 20);
    let mut waiting = Vec::new();
    for n in 1..=3 {
        let request = fixture.router.clone().oneshot(in_pieces(&text, 1000));
        waiting.push(tokio::spawn(request));
        wait_for_bytes(&fixture, |used| used >= n << 20).await;
    }
    let refused = fixture.request("POST", GET).json(&text).send().await;
    let problem = refused.problem("overloaded");
    assert_eq!(
        (&problem["limit"], &problem["allowed"]),
        (&json!("in_flight_bytes"), &json!(3 << 20))
    );
    assert_eq!(refused.header("connection"), "close");
    // Small requests still have room.
    fixture.request("POST", GET).json(&batch(["1".to_owned()])).send().await.ok();
    for task in waiting {
        task.abort();
        let _ = task.await;
    }
    assert_eq!(fixture.byte_budget.used(), 0);
    fixture.request("POST", GET).json(&text).send().await.problem("bad_json");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stops_is_given_up_early_while_bytes_are_scarce() {
    let fixture = with_budget(512 << 10);
    let alone = Instant::now();
    fixture.send(in_pieces("{", 1)).await.problem("request_timeout");
    assert_eq!(alone.elapsed(), Duration::from_secs(10));
    let text = " ".repeat(100_000);
    let together = Instant::now();
    let stopped = [(); 3].map(|()| Box::pin(fixture.send(in_pieces(&text, 1000))));
    let (first, _, _) = futures_util::future::select_all(stopped).await;
    first.problem("request_timeout");
    let waited = together.elapsed();
    assert!(waited >= Duration::from_secs(2) && waited <= Duration::from_secs(3), "{waited:?}");
}

#[tokio::test]
async fn a_content_that_a_batch_repeats_is_held_once() {
    let fixture = fixture();
    make_large(&fixture, "large").await;
    let once = fixture.request("POST", GET).json(&batch(["large".to_owned()])).send().await;
    let size = once.body.len();
    assert!(size > 30_000, "{size}");
    let answer = unread(&fixture, GET, batch(vec!["large".to_owned(); 500])).await;
    assert!(fixture.byte_budget.used() < 2 * size as u64, "{}", fixture.byte_budget.used());
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(bytes.len() > 490 * (size - 100));
    let results = serde_json::from_slice::<Value>(&bytes).unwrap()["results"].clone();
    let results = results.as_array().unwrap();
    assert!(results.len() == 500 && results.iter().all(|r| *r == once.json()["results"][0]));
    drop(bytes);
    assert_eq!(fixture.byte_budget.used(), 0);
}

#[tokio::test]
async fn unread_answers_stay_within_the_budget_and_small_ones_go_on() {
    let fixture = with_budget(8 << 20);
    for n in 0..60 {
        make_large(&fixture, &n.to_string()).await;
    }
    let ids = || (0..60).map(|n| n.to_string());
    let mut kept = Vec::new();
    let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
    for n in 0..20 {
        let (path, body) = match n % 3 {
            0 => (GET, batch(ids())),
            1 => ("/v1/export", String::new()),
            _ => ("/v1/search?limit=60", String::new()),
        };
        let answer = unread(&fixture, path, body).await;
        *statuses.entry(answer.status().as_u16()).or_default() += 1;
        kept.push(answer);
        assert!(fixture.byte_budget.used() <= 8 << 20, "{}", fixture.byte_budget.used());
    }
    assert!(statuses[&200] >= 2 && statuses[&503] >= 2, "{statuses:?}");
    let view = fixture.get("/v1/content/a/1/tags").send().await.ok();
    assert_eq!(view["tags"].as_array().unwrap().len(), 100);
    fixture.tag("a/other", "x").await.ok();
    drop(kept);
    assert_eq!(fixture.byte_budget.used(), 0);
    fixture.request("POST", GET).json(&batch(ids())).send().await.ok();
}

#[tokio::test]
async fn an_answer_that_can_never_fit_says_so() {
    let fixture = with_budget(1 << 20);
    for n in 0..40 {
        make_large(&fixture, &n.to_string()).await;
    }
    let all = batch((0..40).map(|n| n.to_string()));
    let problem = fixture.request("POST", GET).json(&all).send().await.problem("answer_too_large");
    assert_eq!(problem["limit"], "in_flight_bytes");
    let half = batch((0..12).map(|n| n.to_string()));
    fixture.request("POST", GET).json(&half).send().await.ok();
}

#[tokio::test]
async fn the_answer_of_a_change_is_given_without_room() {
    let fixture = with_budget(24 << 10);
    make_large(&fixture, "x").await;
    fixture.get("/v1/content/a/x/tags").send().await.problem("answer_too_large");
    fixture.tag("a/1", "x").await.ok();
    assert_eq!(fixture.byte_budget.used(), 0);
}

#[tokio::test]
async fn an_export_holds_a_page_whatever_its_contents_are() {
    let fixture = fixture();
    for n in 0..200 {
        make_large(&fixture, &n.to_string()).await;
    }
    let answer = unread(&fixture, "/v1/export", String::new()).await;
    let mut body = answer.into_body();
    let mut lines = 0;
    while let Some(frame) = body.frame().await {
        let data: Bytes = frame.unwrap().into_data().unwrap();
        assert!(data.len() < 2 << 20, "{}", data.len());
        assert!(fixture.byte_budget.used() >= data.len() as u64);
        lines += data.iter().filter(|b| **b == b'\n').count();
    }
    assert_eq!((lines, fixture.byte_budget.used()), (200, 0));
}

#[tokio::test]
async fn a_request_that_is_dropped_gives_its_bytes_back() {
    let fixture = fixture();
    make_large(&fixture, "x").await;
    fixture.store.faults().pause();
    let body = batch(["x".to_owned()]);
    let request = fixture.request("POST", GET).json(&body).send();
    let waits = tokio::time::timeout(Duration::from_millis(50), request).await;
    assert!(waits.is_err() && fixture.byte_budget.used() == 0);
    fixture.store.faults().heal();
}

/// What a batch answers for each item, and the views one by one.
async fn same_as_one_by_one(fixture: &Fixture, ids: &[String]) -> Result<(), TestCaseError> {
    let answer: Answer = fixture.request("POST", GET).json(&batch(ids.to_vec())).send().await;
    let body = answer.ok();
    let results = body["results"].as_array().unwrap();
    prop_assert_eq!(results.len(), ids.len());
    for (id, result) in ids.iter().zip(results) {
        let path = format!("/v1/content/a/{}/tags", crate::support::encoded(id));
        let single = fixture.get(&path).send().await;
        prop_assert_eq!(result["ok"] == true, single.status == 200, "{}", id);
        if single.status == 200 {
            let mut expect = single.json();
            expect["ok"] = true.into();
            prop_assert_eq!(result, &expect);
        } else {
            prop_assert_eq!(&result["problem"]["code"], &single.json()["code"]);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_batch_answers_what_single_calls_answer(
        ids in proptest::collection::vec("large|[a-d]|\\PC?|none|x{256,257}", 0..80),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fixture = fixture();
            make_large(&fixture, "large").await;
            for id in ["a", "b", "c"] {
                fixture.tag(&format!("a/{id}"), id).await.ok();
            }
            same_as_one_by_one(&fixture, &ids).await
        })?;
    }
}
