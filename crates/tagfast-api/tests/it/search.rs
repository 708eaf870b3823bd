//! Search, suggestions, popular tags, one tag, export.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use tagfast_resilience::Criticality;
use tagfast_search::{SearchError, Sort};

use crate::support::{ApiLimits, AuthConfig, Fixture, build, fixture};

async fn filled() -> Fixture {
    let fixture = fixture();
    for n in 0..5 {
        fixture.tag(&format!("a/{n}"), "Critical").await.ok();
    }
    fixture.tag("b/0", "critical").await.ok();
    fixture.tag("b/0", "UI%20Kit").await.ok();
    fixture
}

#[tokio::test]
async fn hits_total_facets_and_meta() {
    let fixture = filled().await;
    let answer = fixture.get("/v1/search?q=critical&facets=true&type=b").send().await;
    let body = answer.ok();
    assert_eq!(
        body["hits"],
        json!([{"type": "b", "id": "0", "tags": ["critical", "ui-kit"], "updated_at": "2026-01-01T00:00:00.000Z"}])
    );
    assert_eq!(body["total"], json!({"value": 1, "relation": "eq"}));
    assert_eq!(
        body["facets"],
        json!([{"tag": "critical", "display": "Critical", "count": 1}, {"tag": "ui-kit", "display": "UI Kit", "count": 1}])
    );
    assert_eq!(body["next_cursor"], Value::Null);
    assert_eq!((&body["meta"]["source"], &body["meta"]["age_ms"]), (&json!("index"), &json!(1500)));
    assert_eq!(answer.header("age"), "1");
    let plain = fixture.get("/v1/search").send().await.ok();
    assert!(plain.get("facets").is_none());
    assert_eq!(plain["total"]["value"], 6);
}

#[tokio::test]
async fn parameters_reach_the_index() {
    let fixture = filled().await;
    fixture.get("/v1/search?q=a+AND+b%2B%2B&sort=id&limit=7&total=exact").send().await.ok();
    let last = fixture.search.last.lock().clone().unwrap();
    assert_eq!(last.query.as_deref(), Some("a AND b++"));
    assert_eq!((last.sort, last.limit, last.total_exact, last.facets), (Sort::Id, 7, false, false));
    assert_eq!(last.criticality, Criticality::Degradable);
    // Only a total that the hits do not give is a request of its own.
    fixture.search.exact_to.store(2, Ordering::SeqCst);
    assert_eq!(
        fixture.get("/v1/search?limit=1").send().await.ok()["total"],
        json!({"value": 2, "relation": "gte"})
    );
    let exact = fixture.get("/v1/search?limit=1&total=exact").send().await.ok();
    assert_eq!(
        (&exact["total"], &exact["meta"]["degraded"]),
        (&json!({"value": 6, "relation": "eq"}), &json!([]))
    );
    let last = fixture.search.last.lock().clone().unwrap();
    assert_eq!((last.total_exact, last.criticality), (true, Criticality::Sheddable));
    for (uri, code) in [
        ("limit=0", "bad_parameter"),
        ("limit=101", "bad_parameter"),
        ("limit=x", "bad_parameter"),
        ("limit=%2B5", "bad_parameter"),
        ("sort=up", "bad_parameter"),
        ("facets=1", "bad_parameter"),
        ("total=yes", "bad_parameter"),
        ("q=a&q=b", "bad_parameter"),
        ("page=2", "unknown_parameter"),
        ("type=BAD", "forbidden_character"),
        ("cursor=x", "bad_cursor"),
        ("cursor=", "bad_cursor"),
    ] {
        fixture.get(&format!("/v1/search?{uri}")).send().await.problem(code);
    }
    let limit = fixture.get("/v1/search?limit=101").send().await.json();
    assert_eq!(
        (&limit["limit"], &limit["allowed"], &limit["given"]),
        (&json!("page_items"), &json!(100), &json!(101))
    );
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_repeat() {
    let fixture = filled().await;
    let mut seen = Vec::new();
    let mut uri = "/v1/search?q=critical&sort=id&limit=2".to_owned();
    loop {
        let page = fixture.get(&uri).send().await.ok();
        seen.extend(
            page["hits"].as_array().unwrap().iter().map(|h| format!("{}/{}", h["type"], h["id"])),
        );
        match page["next_cursor"].as_str() {
            Some(cursor) => uri = format!("/v1/search?q=critical&sort=id&limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 6);
    seen.dedup();
    assert_eq!(seen.len(), 6);
}

#[tokio::test]
async fn a_cursor_belongs_to_its_query_and_day() {
    let fixture = filled().await;
    let page = fixture.get("/v1/search?q=critical&limit=2").send().await.ok();
    let cursor = page["next_cursor"].as_str().unwrap().to_owned();
    fixture.get(&format!("/v1/search?q=critical&limit=3&cursor={cursor}")).send().await.ok();
    let next = async |query: &str| {
        fixture.get(&format!("/v1/search?{query}&cursor={cursor}")).send().await
    };
    for other in ["q=ui-kit", "q=critical&sort=id", "q=critical&type=a"] {
        next(other).await.problem("bad_cursor");
    }
    fixture.clock.advance(86_400_001);
    next("q=critical").await.problem("bad_cursor");
}

#[tokio::test]
async fn a_wrong_query_names_the_place() {
    let fixture = fixture();
    *fixture.search.fault.lock() = Some(|| SearchError::Syntax {
        position: 4,
        byte: 6,
        expected: "a tag".into(),
        message: "expected a tag at 4".into(),
    });
    let problem = fixture.get("/v1/search?q=x").send().await.problem("query_syntax");
    assert_eq!(
        (&problem["position"], &problem["byte"], &problem["expected"]),
        (&json!(4), &json!(6), &json!("a tag"))
    );
    *fixture.search.fault.lock() =
        Some(|| SearchError::Limit { limit: "terms", allowed: 64, given: 65 });
    let problem = fixture.get("/v1/search?q=x").send().await.problem("query_limit");
    assert_eq!(
        (&problem["limit"], &problem["allowed"], &problem["given"]),
        (&json!("terms"), &json!(64), &json!(65))
    );
    *fixture.search.fault.lock() =
        Some(|| SearchError::PrefixTooBroad { prefix: "a".into(), allowed: 100 });
    fixture.get("/v1/search?q=x").send().await.problem("prefix_too_broad");
    *fixture.search.fault.lock() = Some(|| SearchError::Unavailable("a secret path".into()));
    let problem = fixture.get("/v1/search?q=x").send().await.problem("search_unavailable");
    assert!(!problem.to_string().contains("secret"), "details for the operator stay in the log");
}

#[tokio::test]
async fn suggestions_popular_and_one_tag() {
    let fixture = filled().await;
    let suggested = fixture.get("/v1/tags?prefix=cri&limit=5").send().await.ok();
    assert_eq!(suggested["tags"], json!([{"tag": "critical", "display": "Critical", "count": 6}]));
    assert_eq!(suggested["meta"]["source"], "snapshot");

    let popular = fixture.get("/v1/tags/popular?window=24h&limit=1").send().await.ok();
    assert_eq!(
        (&popular["window"], &popular["tags"][0]["tag"]),
        (&json!("24h"), &json!("critical"))
    );
    assert_eq!(fixture.get("/v1/tags/popular").send().await.ok()["window"], "all");
    fixture.get("/v1/tags/popular?window=1y").send().await.problem("bad_parameter");
    fixture.get("/v1/tags/popular?limit=1001").send().await.problem("bad_parameter");
    let long = fixture
        .get(&format!("/v1/tags?prefix={}", "x".repeat(257)))
        .send()
        .await
        .problem("bad_parameter");
    assert_eq!(long["limit"], "prefix_bytes");

    let one = fixture.get("/v1/tags/UI%20kit").send().await.ok();
    assert_eq!(
        (&one["tag"], &one["display"], &one["count"]),
        (&json!("ui-kit"), &json!("UI Kit"), &json!(1))
    );
    assert_eq!(one["related"], json!([{"tag": "critical", "count": 1}]));
    let unused = fixture.get("/v1/tags/Unused").send().await.ok();
    assert_eq!((&unused["count"], &unused["display"]), (&json!(0), &json!("unused")));
    fixture.tag("a/0", "popular").await.ok();
    assert_eq!(fixture.get("/v1/tags/%70opular").send().await.ok()["tag"], "popular");
}

#[tokio::test]
async fn missing_parts_answer_501() {
    let fixture = build(AuthConfig::None, ApiLimits::default(), |services| {
        services.search = None;
        services.popular = None;
    });
    for uri in ["/v1/search", "/v1/tags", "/v1/tags/popular", "/v1/tags/x"] {
        fixture.get(uri).send().await.problem("not_in_this_mode");
    }
}

#[tokio::test]
async fn the_export_has_every_content_once_and_can_be_resumed() {
    let fixture = fixture();
    for n in 0..40 {
        fixture.tag(&format!("a/{n}"), "Tag%20One").await.ok();
    }
    fixture.request("DELETE", "/v1/content/a/7/tags/tag-one").send().await.ok();
    let whole = fixture.get("/v1/export").send().await;
    assert_eq!(
        (whole.status.as_u16(), whole.header("content-type")),
        (200, "application/x-ndjson")
    );
    let lines: Vec<Value> = whole
        .body
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 39, "a content without tags is not exported");
    assert_eq!(
        lines[0]["tags"],
        json!([{"tag": "Tag One", "by": "anonymous", "at": "2026-01-01T00:00:00.000Z"}])
    );

    let at = format!("a/{}", lines[20]["id"].as_str().unwrap());
    let rest = fixture.get(&format!("/v1/export?after={}", at.replace('/', "%2F"))).send().await;
    let tail = whole
        .body
        .split_inclusive(|b| *b == b'\n')
        .skip(21)
        .flatten()
        .copied()
        .collect::<Vec<u8>>();
    assert_eq!(rest.body, tail);

    let mut shards = 0;
    for shard in 0..64 {
        shards += fixture
            .get(&format!("/v1/export?shard={shard}"))
            .send()
            .await
            .body
            .iter()
            .filter(|b| **b == b'\n')
            .count();
    }
    assert_eq!(shards, 39);
    for bad in ["shard=64", "shard=x", "shard=%2B1", "after=nothing", "limit=1"] {
        assert_eq!(fixture.get(&format!("/v1/export?{bad}")).send().await.status, 400, "{bad}");
    }
}
