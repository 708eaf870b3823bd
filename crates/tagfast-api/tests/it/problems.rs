//! Every error is a problem document: routes, methods, bodies, the store's errors, panics.

use std::time::Duration;

use serde_json::json;
use tagfast_domain::{DomainError, Refusal, Version};
use tagfast_store::StoreError;

use crate::support::{ApiLimits, AuthConfig, fixture, fixture_with};

const TAGS: &str = "/v1/content/a/1/tags";

#[tokio::test]
async fn unknown_routes_and_methods() {
    let fixture = fixture();
    for uri in [
        "/index.html",
        "/v1",
        "/v2/x",
        "/v1/content/a/1",
        "/v1/content/a/b/c/tags",
        "/v1/search/",
        "/docs/problems/nope",
    ] {
        fixture.get(uri).send().await.problem("not_found");
    }
    for (method, uri, allow) in [
        ("POST", TAGS, "GET,HEAD,PATCH,PUT"),
        ("GET", "/v1/content/a/1/tags/x", "DELETE,PUT"),
        ("DELETE", "/v1/search", "GET,HEAD"),
        ("OPTIONS", "/healthz", "GET,HEAD"),
        ("BREW", "/v1/content:batchGet", "POST"),
    ] {
        let answer = fixture.request(method, uri).send().await;
        answer.problem("method_not_allowed");
        let mut given: Vec<&str> = answer.header("allow").split(',').map(str::trim).collect();
        given.sort_unstable();
        assert_eq!(given.join(","), allow, "{method} {uri}");
    }
}

#[tokio::test]
async fn wrong_bodies_name_the_place() {
    let fixture = fixture();
    for (body, code, words) in [
        ("", "bad_json", "EOF"),
        ("{", "bad_json", "line 1"),
        ("{\"tags\": []} x", "bad_json", "after"),
        ("[1", "wrong_type", "expected an object"),
        ("[[]]", "wrong_type", "expected an object"),
        ("{}", "wrong_type", "missing field `tags`"),
        ("{\"tags\": 1}", "wrong_type", "at tags"),
        ("{\"tags\": [\"a\", 7]}", "wrong_type", "at tags[1]"),
        ("{\"tags\": [], \"tagz\": 1}", "unknown_field", "tagz"),
    ] {
        let answer = fixture.request("PUT", TAGS).json(body).send().await;
        let problem = answer.json();
        assert_eq!(problem["code"], code, "{body}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{body}: {problem}");
        answer.problem(code);
    }
    let nested = fixture
        .request("POST", "/v1/content:batchTag")
        .json(r#"{"items": [{"type": "a", "id": 1}]}"#)
        .send()
        .await;
    assert!(nested.problem("wrong_type")["detail"].as_str().unwrap().contains("items[0].id"));
    for body in
        [r#"{"items": [["a", "1"]]}"#, r#"{"items": [{"type": "a", "id": "1", "add": [["t"]]}]}"#]
    {
        fixture
            .request("POST", "/v1/content:batchTag")
            .json(body)
            .send()
            .await
            .problem("wrong_type");
    }
    let deep = "[".repeat(5000);
    assert_eq!(fixture.request("PUT", TAGS).json(&deep).send().await.status, 400);

    for content_type in ["text/plain", "application/jsonx", "", "application/x-www-form-urlencoded"]
    {
        let answer = fixture.request("PATCH", TAGS).raw(content_type, b"{}").send().await;
        answer.problem("unsupported_media_type");
    }
    for content_type in
        ["application/json; charset=utf-8", "Application/JSON", "application/merge-patch+json"]
    {
        let answer =
            fixture.request("PATCH", TAGS).raw(content_type, br#"{"add": ["x"]}"#).send().await;
        answer.ok();
    }
}

#[tokio::test]
async fn values_that_break_a_rule_name_the_rule() {
    let fixture = fixture();
    for (content, tag, code, limit) in [
        ("a/1", "%3C", "forbidden_character", None),
        ("a/1", "a%00b", "forbidden_character", None),
        ("a/1", "%E2%80%AEx", "forbidden_character", None),
        ("a/1", "%20", "empty", None),
        ("a/1", &"x".repeat(65), "too_long", Some(("tag_characters", 64, 65))),
        ("A/1", "x", "forbidden_character", None),
        (
            &format!("{}/1", "x".repeat(65)),
            "x",
            "too_long",
            Some(("content_type_characters", 64, 65)),
        ),
        (&format!("a/{}", "x".repeat(257)), "x", "too_long", Some(("content_id_bytes", 256, 257))),
        ("a/", "x", "empty", None),
        ("a/%01", "x", "forbidden_character", None),
    ] {
        let problem = fixture.tag(content, tag).await.problem(code);
        if let Some((name, allowed, given)) = limit {
            assert_eq!(
                (&problem["limit"], &problem["allowed"], &problem["given"]),
                (&json!(name), &json!(allowed), &json!(given))
            );
        }
    }
    fixture.request("PATCH", TAGS).json("{}").send().await.problem("nothing_to_do");
    fixture
        .request("PATCH", TAGS)
        .json(r#"{"add": ["A"], "remove": ["a"]}"#)
        .send()
        .await
        .problem("added_and_removed");
    let tags: Vec<String> = (0..101).map(|n| n.to_string()).collect();
    let body = json!({ "tags": tags }).to_string();
    let problem =
        fixture.request("PUT", TAGS).json(&body).send().await.problem("too_many_tags_in_write");
    assert_eq!((&problem["limit"], &problem["allowed"]), (&json!("tags_per_write"), &json!(100)));
    let body = json!({ "tags": tags[..100] }).to_string();
    fixture.request("PUT", TAGS).json(&body).send().await.ok();
    let problem = fixture.tag("a/1", "one-more").await.problem("too_many_tags");
    assert_eq!(
        (&problem["limit"], &problem["allowed"], &problem["given"]),
        (&json!("tags_per_content"), &json!(100), &json!(101))
    );
}

#[tokio::test]
async fn every_error_of_the_store_has_its_problem() {
    type Fault = fn() -> StoreError;
    let fixture = fixture();
    let faults: [(Fault, &str, bool); 11] = [
        (
            || StoreError::Refused(Refusal::TooManyTags { allowed: 1, given: 2 }),
            "too_many_tags",
            false,
        ),
        (
            || StoreError::Refused(Refusal::VersionMismatch { current: Version::NONE }),
            "version_mismatch",
            false,
        ),
        (|| StoreError::Refused(Refusal::WriteIdReused), "idempotency_key_reused", false),
        (|| StoreError::NotInThisMode("this"), "not_in_this_mode", false),
        (
            || StoreError::Overloaded {
                queue: "write",
                limit: 9,
                retry_after: Duration::from_millis(100),
            },
            "overloaded",
            false,
        ),
        (
            || StoreError::Deadline { waiting_for: "the writer", outcome_unknown: true },
            "deadline",
            true,
        ),
        (|| StoreError::DiskFull, "disk_full", false),
        (
            || StoreError::Unavailable {
                reason: "closing",
                outcome_unknown: true,
                retry_after: Duration::from_secs(2),
            },
            "unavailable",
            true,
        ),
        (|| lags(true), "replication_lag", true),
        (
            || StoreError::Damaged {
                what: "/srv/secret/store-1.sqlite".into(),
                source: Some(DomainError::NothingToDo),
            },
            "damaged",
            false,
        ),
        (|| StoreError::Internal("a secret detail".into()), "internal", true),
    ];
    for (fault, code, unknown) in faults {
        fixture.store.faults().fail_with(fault);
        let answer = fixture.tag("a/1", "x").await;
        let problem = answer.problem(code);
        assert_eq!(problem["outcome_unknown"] == true, unknown, "{problem}");
        assert!(!problem.to_string().contains("secret"), "{problem}");
        fixture.get(TAGS).send().await.problem(code);
        fixture.get("/v1/export").send().await.problem(code);
    }
    fixture.store.faults().fail_with(|| StoreError::Overloaded {
        queue: "write",
        limit: 9,
        retry_after: Duration::from_millis(100),
    });
    let answer = fixture.tag("a/1", "x").await;
    assert_eq!(
        (answer.header("retry-after"), answer.json()["retry_after_ms"].as_u64()),
        ("1", Some(100))
    );
    fixture.store.faults().heal();
    fixture.tag("a/1", "x").await.ok();
}

#[tokio::test]
async fn a_panic_is_a_problem_and_the_service_goes_on() {
    let fixture = fixture();
    fixture.store.faults().panic_once();
    let problem = fixture.get(TAGS).send().await.problem("internal");
    assert!(
        !problem.to_string().contains("on request"),
        "the text of the panic is not in the answer"
    );
    fixture.get(TAGS).send().await.ok();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_a_deadline() {
    let fixture = fixture_with(
        AuthConfig::None,
        ApiLimits { request_timeout: Duration::from_secs(3), ..ApiLimits::default() },
    );
    fixture.store.faults().delay(Duration::from_secs(3600));
    let started = tokio::time::Instant::now();
    fixture.get(TAGS).send().await.problem("deadline");
    assert!(
        started.elapsed() >= Duration::from_secs(3) && started.elapsed() < Duration::from_secs(4)
    );
}

fn late(outcome_unknown: bool) -> StoreError {
    StoreError::Deadline { waiting_for: "the writer", outcome_unknown }
}

fn gone(outcome_unknown: bool) -> StoreError {
    let retry_after = Duration::from_secs(1);
    StoreError::Unavailable { reason: "the primary is away", outcome_unknown, retry_after }
}

fn lags(outcome_unknown: bool) -> StoreError {
    let retry_after = Duration::from_secs(2);
    StoreError::ReplicationLag { reason: "no replica has it", outcome_unknown, retry_after }
}

/// Every call that writes, with every error of the store: whether the write may have been applied
/// is a field and a sentence. Calls that read have neither.
#[tokio::test]
async fn an_error_of_a_write_says_whether_it_may_have_been_applied() {
    let fixture = fixture();
    type Fault = (fn() -> StoreError, u16, bool);
    let faults: [Fault; 10] = [
        (|| late(true), 504, true),
        (|| late(false), 504, false),
        (|| gone(true), 503, true),
        (|| gone(false), 503, false),
        (|| lags(true), 503, true),
        (|| lags(false), 503, false),
        (
            || StoreError::Overloaded {
                queue: "write",
                limit: 9,
                retry_after: Duration::from_secs(1),
            },
            503,
            false,
        ),
        (|| StoreError::DiskFull, 507, false),
        (|| StoreError::Damaged { what: "a document".into(), source: None }, 500, false),
        (|| StoreError::Internal("a bug".into()), 500, true),
    ];
    let item = json!({"items": [{"type": "a", "id": "1", "add": ["x"]}]}).to_string();
    let writes = [
        ("PUT", "/v1/content/a/1/tags/x", String::new()),
        ("DELETE", "/v1/content/a/1/tags/x", String::new()),
        ("PATCH", TAGS, json!({"add": ["x"]}).to_string()),
        ("PUT", TAGS, json!({"tags": ["x"]}).to_string()),
        ("POST", "/v1/content:batchTag", item),
    ];
    for (fault, status, unknown) in faults {
        fixture.store.faults().fail_with(fault);
        for (method, uri, body) in &writes {
            let request = fixture.request(method, uri);
            let request = if body.is_empty() { request } else { request.json(body) };
            let answer = request.send().await;
            let mut problem = answer.json();
            if problem["results"].is_array() {
                problem = problem["results"][0]["problem"].clone();
            } else {
                assert_eq!(answer.status, status, "{method} {uri}: {problem}");
            }
            assert_eq!(problem["status"], status, "{method} {uri}: {problem}");
            assert_eq!(problem["outcome_unknown"], unknown, "{method} {uri}: {problem}");
            let detail = problem["detail"].as_str().expect("a detail");
            let words = if unknown { "may have been applied" } else { "has applied nothing" };
            assert_eq!(detail.matches(words).count(), 1, "{method} {uri}: {detail}");
        }
        for uri in [TAGS, "/v1/export"] {
            let problem = fixture.get(uri).send().await.json();
            assert_eq!(problem["outcome_unknown"], json!(null), "{uri}: {problem}");
            assert!(
                !problem["detail"].as_str().expect("a detail").contains("applied"),
                "{problem}"
            );
        }
    }
    // What the caller has to correct was not applied, which goes without saying.
    fixture.store.faults().heal();
    let answer = fixture.request("PUT", TAGS).json("{").send().await;
    assert_eq!(answer.problem("bad_json")["outcome_unknown"], json!(null));
}

/// The store gives no answer at all, or panics: the write may have been applied.
#[tokio::test(start_paused = true)]
async fn a_write_without_an_answer_of_the_store_may_have_been_applied() {
    let limits = ApiLimits { request_timeout: Duration::from_secs(3), ..ApiLimits::default() };
    let fixture = fixture_with(AuthConfig::None, limits);
    fixture.store.faults().delay(Duration::from_secs(3600));
    let problem = fixture.tag("a/1", "x").await.problem("deadline");
    assert_eq!(problem["outcome_unknown"], true, "{problem}");
    let read = fixture.get(TAGS).send().await.problem("deadline");
    assert_eq!(read["outcome_unknown"], json!(null), "{read}");
    fixture.store.faults().heal();
    fixture.store.faults().panic_once();
    let problem = fixture.tag("a/1", "x").await.problem("internal");
    assert_eq!(problem["outcome_unknown"], true, "{problem}");
}

#[tokio::test]
async fn every_code_has_a_page() {
    let fixture = fixture();
    for row in tagfast_api::PROBLEM_CODES {
        let page = fixture.get(&format!("/docs/problems/{}", row.code)).send().await;
        assert_eq!(
            (page.status.as_u16(), page.header("content-type")),
            (200, "text/html; charset=utf-8")
        );
        assert!(String::from_utf8(page.body).unwrap().contains(row.code));
    }
}
