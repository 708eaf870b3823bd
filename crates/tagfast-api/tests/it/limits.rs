//! Sizes, rates, compression.

use std::io::Read;

use axum::body::Body;
use flate2::read::GzDecoder;
use http::Request;
use serde_json::{Value, json};

use crate::support::{ApiLimits, AuthConfig, fixture, fixture_with, hs256, keys};

const TAGS: &str = "/v1/content/a/1/tags";

#[tokio::test]
async fn a_large_body_is_refused_with_and_without_its_length() {
    let fixture =
        fixture_with(AuthConfig::None, ApiLimits { body_bytes: 1000, ..ApiLimits::default() });
    let fits = format!("{{\"add\": [\"x\"]}}{}", " ".repeat(1000 - 14));
    fixture.request("PATCH", TAGS).json(&fits).send().await.ok();
    let problem = fixture
        .request("PATCH", TAGS)
        .json(&format!("{fits} "))
        .send()
        .await
        .problem("body_too_large");
    assert_eq!(
        (&problem["limit"], &problem["allowed"], &problem["given"]),
        (&json!("body_bytes"), &json!(1000), &json!(1001))
    );
    let declared =
        fixture.request("PATCH", TAGS).header("content-length", "5000").json("{}").send().await;
    assert_eq!(declared.problem("body_too_large")["given"], 5000);
    let chunks =
        futures_util::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>(vec![b' '; 100])));
    let request = Request::builder()
        .method("PATCH")
        .uri(TAGS)
        .header("content-type", "application/json")
        .body(Body::from_stream(chunks))
        .unwrap();
    fixture.send(request).await.problem("body_too_large");
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_times_out() {
    let fixture = fixture();
    let request = Request::builder()
        .method("PATCH")
        .uri(TAGS)
        .header("content-type", "application/json")
        .body(Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>()))
        .unwrap();
    let answer = fixture.send(request).await;
    answer.problem("request_timeout");
    assert_eq!(answer.header("connection"), "close");
}

#[tokio::test]
async fn a_long_url_is_refused_on_every_route() {
    let fixture =
        fixture_with(AuthConfig::None, ApiLimits { url_bytes: 100, ..ApiLimits::default() });
    for uri in ["/v1/search?q=", "/healthz?q=", "/nowhere/"] {
        let problem = fixture
            .get(&format!("{uri}{}", "x".repeat(101 - uri.len())))
            .send()
            .await
            .problem("url_too_long");
        assert_eq!(
            (&problem["limit"], &problem["allowed"], &problem["given"]),
            (&json!("url_bytes"), &json!(100), &json!(101))
        );
    }
    fixture.get(&format!("/v1/search?q={}", "x".repeat(87))).send().await.ok();
}

#[tokio::test(start_paused = true)]
async fn the_rate_is_per_tenant_and_user_and_shown() {
    let fixture = fixture_with(
        hs256(),
        ApiLimits { requests_per_second: 2, burst: 3, ..ApiLimits::default() },
    );
    let get = |token: &str| fixture.get(TAGS).bearer(token).send();
    let (acme, umbra) = (keys::user("acme"), keys::user("umbra"));
    let first = get(&acme).await;
    first.ok();
    assert_eq!(
        (
            first.header("ratelimit-limit"),
            first.header("ratelimit-remaining"),
            first.header("ratelimit-reset")
        ),
        ("3", "2", "1")
    );
    get(&acme).await.ok();
    get(&acme).await.ok();
    let refused = get(&acme).await;
    let problem = refused.problem("rate_limited");
    assert_eq!(
        (&problem["limit"], &problem["allowed"]),
        (&json!("requests_per_second"), &json!(2))
    );
    assert_eq!((refused.header("ratelimit-remaining"), refused.header("retry-after")), ("0", "1"));
    get(&umbra).await.ok();
    // Another token of the same user shares the allowance.
    get(&keys::hs256(&keys::claims("acme", "tags:read"))).await.problem("rate_limited");
    fixture.get("/healthz").send().await.ok();
    tokio::time::advance(std::time::Duration::from_millis(500)).await;
    get(&acme).await.ok();
    get(&acme).await.problem("rate_limited");
}

#[tokio::test]
async fn large_answers_are_compressed_for_those_who_take_it() {
    let fixture = fixture();
    let tags: Vec<String> = (0..100).map(|n| format!("tag number {n}")).collect();
    fixture.request("PUT", TAGS).json(&json!({ "tags": tags }).to_string()).send().await.ok();
    let plain = fixture.get(TAGS).send().await;
    assert_eq!((plain.header("content-encoding"), plain.header("vary")), ("", "accept-encoding"));
    let packed = fixture.get(TAGS).header("accept-encoding", "br, gzip").send().await;
    assert_eq!(packed.header("content-encoding"), "gzip");
    assert!(packed.body.len() * 4 < plain.body.len());
    let mut text = String::new();
    GzDecoder::new(&*packed.body).read_to_string(&mut text).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), plain.json());
    let small = fixture.get("/healthz").header("accept-encoding", "gzip").send().await;
    assert_eq!(small.header("content-encoding"), "");
    let refused = fixture.get(TAGS).header("accept-encoding", "gzip;q=0").send().await;
    assert_eq!(refused.header("content-encoding"), "");

    let export = fixture.get("/v1/export").header("accept-encoding", "gzip").send().await;
    assert_eq!(export.header("content-encoding"), "gzip");
    let mut text = String::new();
    GzDecoder::new(&*export.body).read_to_string(&mut text).unwrap();
    assert_eq!(text.as_bytes(), fixture.get("/v1/export").send().await.body);
}
