//! Answers while a part fails: the last good answer, an answer without the feature, or an error for
//! a client that accepts neither.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tagfast_popular::PopularError;
use tagfast_search::SearchError;
use tokio::time::Instant;

use crate::support::{Answer, Fixture, fixture, jwt_fixture, keys};

async fn filled() -> Fixture {
    let fixture = fixture();
    for n in 0..5 {
        fixture.tag(&format!("a/{n}"), "Critical").await.ok();
    }
    fixture.tag("b/0", "UI%20Kit").await.ok();
    fixture
}

fn popular_down(fixture: &Fixture, down: bool) {
    *fixture.popular.fault.lock() =
        down.then_some(|| PopularError::Unavailable("a secret place".into()));
}

fn sheddable_down(fixture: &Fixture) {
    *fixture.search.limited.lock() = Some(|| SearchError::Refused {
        reason: "breaker_open",
        retry_after: Duration::from_secs(3),
    });
}

#[track_caller]
fn degraded(answer: &Answer) -> (Value, bool) {
    let meta = answer.ok()["meta"].clone();
    assert_eq!(answer.header("cache-control"), "no-store", "a degraded answer is not cacheable");
    assert!(!meta.to_string().contains("secret"), "{meta}");
    (meta["degraded"].clone(), meta["stale"] == true)
}

#[tokio::test]
async fn every_optional_feature_falls_back_to_its_last_good_answer() {
    let fixture = filled().await;
    let uris = ["/v1/tags/popular?window=24h", "/v1/tags?prefix=cri", "/v1/tags/critical"];
    let mut before = Vec::new();
    for uri in uris {
        let answer = fixture.get(uri).send().await;
        assert_eq!(answer.header("cache-control"), "private, no-cache");
        before.push(answer.ok());
    }
    popular_down(&fixture, true);
    sheddable_down(&fixture);
    fixture.clock.advance(60_000);
    for ((uri, before), (feature, more)) in uris.into_iter().zip(before).zip([
        ("popular", None),
        ("suggestions", None),
        ("count", Some(json!({"feature": "related", "reason": "breaker_open"}))),
    ]) {
        let answer = fixture.get(uri).send().await;
        let (list, stale) = degraded(&answer);
        let expect: Vec<Value> = [Some(json!({"feature": feature, "reason": "unavailable"})), more]
            .into_iter()
            .flatten()
            .collect();
        assert_eq!((list, stale), (Value::from(expect), true), "{uri}");
        let body = answer.json();
        for part in ["tags", "count", "related", "display"] {
            assert_eq!(body[part], before[part], "{uri} {part}");
        }
        assert_eq!(body["meta"]["as_of"], before["meta"]["as_of"], "{uri}");
        assert!(body["meta"]["age_ms"].as_u64().unwrap() >= 60_000);
        assert_eq!(
            answer.header("age"),
            (body["meta"]["age_ms"].as_u64().unwrap() / 1000).to_string()
        );
        assert_eq!(answer.header("cache-status"), "tagfast; fwd=stale; detail=snapshot");
    }
    // Too old for this client: omitted and named.
    let answer = fixture.get(uris[0]).header("cache-control", "max-stale=30").send().await;
    assert_eq!(
        degraded(&answer),
        (json!([{"feature": "popular", "reason": "features_limited"}]), false)
    );
    popular_down(&fixture, false);
    let (good, meta) = (fixture.get(uris[0]).send().await.ok(), json!([]));
    assert_eq!(
        (&good["meta"]["degraded"], &good["meta"]["stale"]),
        (&meta, &json!(false)),
        "it recovers without intervention"
    );
}

#[tokio::test]
async fn a_feature_without_a_last_good_answer_is_omitted_and_named() {
    let fixture = filled().await;
    popular_down(&fixture, true);
    sheddable_down(&fixture);
    for (uri, features) in [
        ("/v1/tags/popular", vec!["popular"]),
        ("/v1/tags?prefix=c", vec!["suggestions"]),
        ("/v1/tags/critical", vec!["count", "related"]),
    ] {
        let answer = fixture.get(uri).send().await;
        let expect: Vec<Value> =
            features.iter().map(|f| json!({"feature": f, "reason": "features_limited"})).collect();
        assert_eq!(degraded(&answer), (Value::from(expect), false), "{uri}");
        let body = answer.json();
        assert!(
            body["tags"].as_array().is_none_or(Vec::is_empty)
                && body["related"].as_array().is_none_or(Vec::is_empty)
        );
        // A client that accepts neither gets an error.
        for refusal in ["no-cache", "no-store", "max-stale=0"] {
            let refused = fixture.get(uri).header("cache-control", refusal).send().await;
            assert_eq!(refused.status, 503, "{uri} {refusal}");
            let problem = refused.json();
            assert!(
                problem["code"] == "popular_unavailable" || problem["code"] == "search_unavailable",
                "{problem}"
            );
            assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
            assert!(!problem.to_string().contains("secret"));
        }
    }
    let status = fixture.get("/v1/status").send().await.ok();
    assert!(
        status["degraded"]
            .as_array()
            .unwrap()
            .contains(&json!({"feature": "popular", "reason": "unavailable"}))
    );
}

#[tokio::test]
async fn hits_are_answered_without_facets_and_totals() {
    let fixture = filled().await;
    fixture.search.exact_to.store(2, Ordering::SeqCst);
    let uri = "/v1/search?q=critical&facets=true&total=exact";
    sheddable_down(&fixture);
    let answer = fixture.get(uri).send().await;
    let expect = json!([{"feature": "facets", "reason": "features_limited"}, {"feature": "total", "reason": "features_limited"}]);
    assert_eq!(degraded(&answer), (expect, false));
    let body = answer.json();
    assert_eq!((body["hits"].as_array().unwrap().len(), &body["facets"]), (5, &json!([])));
    assert_eq!(body["total"], json!({"value": 2, "relation": "gte"}));
    fixture.get(uri).header("cache-control", "no-cache").send().await.problem("search_unavailable");

    *fixture.search.limited.lock() = None;
    let good = fixture.get(uri).send().await.ok();
    assert_eq!((&good["meta"]["degraded"], &good["total"]["value"]), (&json!([]), &json!(5)));
    sheddable_down(&fixture);
    fixture.clock.advance(5000);
    let answer = fixture.get(uri).send().await;
    let expect = json!([{"feature": "facets", "reason": "breaker_open"}, {"feature": "total", "reason": "breaker_open"}]);
    assert_eq!(degraded(&answer), (expect, true));
    let body = answer.json();
    assert_eq!((&body["facets"], &body["total"]), (&good["facets"], &good["total"]));
    assert_eq!(body["meta"]["age_ms"], 6500, "as old as its oldest part");

    // Hits are not optional.
    *fixture.search.fault.lock() = Some(|| SearchError::Unavailable("down".into()));
    fixture.get(uri).send().await.problem("search_unavailable");
}

#[tokio::test]
async fn canonical_names_stand_in_for_unavailable_spellings() {
    let fixture = filled().await;
    popular_down(&fixture, true);
    let answer = fixture.get("/v1/search?q=ui-kit&facets=true").send().await;
    assert_eq!(
        degraded(&answer),
        (json!([{"feature": "display", "reason": "unavailable"}]), false)
    );
    assert_eq!(answer.json()["facets"][0]["display"], "ui-kit");
}

#[tokio::test]
async fn stale_counts_are_marked() {
    let fixture = filled().await;
    fixture.popular.stale.store(true, Ordering::Relaxed);
    let answer = fixture.get("/v1/tags/popular").send().await;
    assert_eq!(degraded(&answer), (json!([{"feature": "popular", "reason": "unavailable"}]), true));
    assert_eq!(answer.json()["tags"][0]["tag"], "critical");
    fixture
        .get("/v1/tags/popular")
        .header("cache-control", "no-cache")
        .send()
        .await
        .problem("popular_unavailable");
}

#[tokio::test]
async fn a_lagging_index_is_refused_only_by_a_client_that_sets_a_limit() {
    let fixture = filled().await;
    fixture.search.lag_ms.store(40_000, Ordering::SeqCst);
    let uri = "/v1/search?q=critical";
    assert_eq!(fixture.get(uri).send().await.ok()["meta"]["stale"], true);
    fixture.get(uri).header("cache-control", "max-stale=40").send().await.ok();
    fixture
        .get(uri)
        .header("cache-control", "max-stale=39")
        .send()
        .await
        .problem("search_unavailable");
    fixture.get(uri).header("cache-control", "no-cache").send().await.problem("search_unavailable");
}

#[tokio::test(start_paused = true)]
async fn few_requests_wait_for_a_part_that_hangs() {
    let fixture = filled().await;
    fixture.search.hang.store(true, Ordering::SeqCst);
    fixture.get("/v1/tags/critical").send().await.ok();
    let mut took = Vec::new();
    for n in 0..200 {
        let began = Instant::now();
        let uri =
            if n % 2 == 0 { "/v1/search?q=critical&facets=true" } else { "/v1/tags/critical" };
        fixture.get(uri).send().await.ok();
        took.push(began.elapsed());
    }
    took.sort();
    // Only the first requests of each feature wait.
    assert!(took[197] <= Duration::from_millis(50), "{:?}", &took[190..]);
    assert!(took[199] <= Duration::from_millis(500));
}

#[tokio::test]
async fn a_last_good_answer_belongs_to_one_tenant() {
    let fixture = jwt_fixture();
    for tenant in ["acme", "umbra"] {
        let put = fixture.request("PUT", "/v1/content/a/1/tags/x").bearer(&keys::user(tenant));
        put.send().await.ok();
    }
    fixture.get("/v1/tags/popular").bearer(&keys::user("umbra")).send().await.ok();
    popular_down(&fixture, true);
    let answer = fixture.get("/v1/tags/popular").bearer(&keys::user("acme")).send().await;
    assert_eq!(
        degraded(&answer),
        (json!([{"feature": "popular", "reason": "features_limited"}]), false)
    );
    let own = fixture.get("/v1/tags/popular").bearer(&keys::user("umbra")).send().await;
    assert_eq!(own.ok()["tags"][0]["tag"], "x");
}

/// Every answer that shows counts is as stale as they are.
#[tokio::test]
async fn stale_counts_are_marked_wherever_they_are_shown() {
    let fixture = filled().await;
    for is_stale in [false, true] {
        fixture.popular.stale.store(is_stale, Ordering::SeqCst);
        for uri in ["/v1/tags/popular", "/v1/tags/critical", "/v1/tags?prefix=crit"] {
            let body = fixture.get(uri).send().await.ok();
            assert_eq!(body["meta"]["stale"], is_stale, "{uri}: {body}");
            assert!(
                body["meta"]["age_ms"].as_u64().is_some_and(|age| age >= 1000),
                "{uri}: {body}"
            );
        }
    }
}
