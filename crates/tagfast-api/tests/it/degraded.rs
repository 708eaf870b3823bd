//! What is answered when a part does not: the last good answer, an answer without the part, or an
//! error for who wants neither.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tagfast_popular::PopularError;
use tagfast_search::SearchError;
use tokio::time::Instant;

use crate::support::{Answer, World, jwt_world, keys, world};

async fn filled() -> World {
    let world = world();
    for n in 0..5 {
        world.tag(&format!("a/{n}"), "Critical").await.ok();
    }
    world.tag("b/0", "UI%20Kit").await.ok();
    world
}

fn popular_down(world: &World, down: bool) {
    *world.popular.fault.lock().unwrap() =
        down.then_some(|| PopularError::Unavailable("a secret place".into()));
}

fn sheddable_down(world: &World) {
    *world.search.limited.lock().unwrap() = Some(|| SearchError::Refused {
        reason: "breaker_open",
        retry_after: Duration::from_secs(3),
    });
}

#[track_caller]
fn degraded(answer: &Answer) -> (Value, bool) {
    let meta = answer.ok()["meta"].clone();
    assert_eq!(
        answer.header("cache-control"),
        "no-store",
        "a worse answer is not kept as a good one"
    );
    assert!(!meta.to_string().contains("secret"), "{meta}");
    (meta["degraded"].clone(), meta["stale"] == true)
}

#[tokio::test]
async fn every_sheddable_answer_is_given_as_it_was_last() {
    let world = filled().await;
    let uris = ["/v1/tags/popular?window=24h", "/v1/tags?prefix=cri", "/v1/tags/critical"];
    let mut before = Vec::new();
    for uri in uris {
        let answer = world.get(uri).send().await;
        assert_eq!(answer.header("cache-control"), "private, no-cache");
        before.push(answer.ok());
    }
    popular_down(&world, true);
    sheddable_down(&world);
    world.clock.advance(60_000);
    for ((uri, before), (feature, more)) in uris.into_iter().zip(before).zip([
        ("popular", None),
        ("suggestions", None),
        ("count", Some(json!({"feature": "related", "reason": "breaker_open"}))),
    ]) {
        let answer = world.get(uri).send().await;
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
    // Too old for this client: left out, and said so.
    let answer = world.get(uris[0]).header("cache-control", "max-stale=30").send().await;
    assert_eq!(
        degraded(&answer),
        (json!([{"feature": "popular", "reason": "features_limited"}]), false)
    );
    popular_down(&world, false);
    let (good, meta) = (world.get(uris[0]).send().await.ok(), json!([]));
    assert_eq!(
        (&good["meta"]["degraded"], &good["meta"]["stale"]),
        (&meta, &json!(false)),
        "by itself"
    );
}

#[tokio::test]
async fn what_was_never_asked_is_left_out_and_named() {
    let world = filled().await;
    popular_down(&world, true);
    sheddable_down(&world);
    for (uri, features) in [
        ("/v1/tags/popular", vec!["popular"]),
        ("/v1/tags?prefix=c", vec!["suggestions"]),
        ("/v1/tags/critical", vec!["count", "related"]),
    ] {
        let answer = world.get(uri).send().await;
        let expect: Vec<Value> =
            features.iter().map(|f| json!({"feature": f, "reason": "features_limited"})).collect();
        assert_eq!(degraded(&answer), (Value::from(expect), false), "{uri}");
        let body = answer.json();
        assert!(
            body["tags"].as_array().is_none_or(Vec::is_empty)
                && body["related"].as_array().is_none_or(Vec::is_empty)
        );
        // A client that wants neither gets an error.
        for refusal in ["no-cache", "no-store", "max-stale=0"] {
            let refused = world.get(uri).header("cache-control", refusal).send().await;
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
    let status = world.get("/v1/status").send().await.ok();
    assert!(
        status["degraded"]
            .as_array()
            .unwrap()
            .contains(&json!({"feature": "popular", "reason": "unavailable"}))
    );
}

#[tokio::test]
async fn hits_are_answered_without_facets_and_totals() {
    let world = filled().await;
    world.search.exact_to.store(2, Ordering::SeqCst);
    let uri = "/v1/search?q=critical&facets=true&total=exact";
    sheddable_down(&world);
    let answer = world.get(uri).send().await;
    let expect = json!([{"feature": "facets", "reason": "features_limited"}, {"feature": "total", "reason": "features_limited"}]);
    assert_eq!(degraded(&answer), (expect, false));
    let body = answer.json();
    assert_eq!((body["hits"].as_array().unwrap().len(), &body["facets"]), (5, &json!([])));
    assert_eq!(body["total"], json!({"value": 2, "relation": "gte"}));
    world.get(uri).header("cache-control", "no-cache").send().await.problem("search_unavailable");

    *world.search.limited.lock().unwrap() = None;
    let good = world.get(uri).send().await.ok();
    assert_eq!((&good["meta"]["degraded"], &good["total"]["value"]), (&json!([]), &json!(5)));
    sheddable_down(&world);
    world.clock.advance(5000);
    let answer = world.get(uri).send().await;
    let expect = json!([{"feature": "facets", "reason": "breaker_open"}, {"feature": "total", "reason": "breaker_open"}]);
    assert_eq!(degraded(&answer), (expect, true));
    let body = answer.json();
    assert_eq!((&body["facets"], &body["total"]), (&good["facets"], &good["total"]));
    assert_eq!(body["meta"]["age_ms"], 6500, "as old as its oldest part");

    // Hits cannot be done without.
    *world.search.fault.lock().unwrap() = Some(|| SearchError::Unavailable("down".into()));
    world.get(uri).send().await.problem("search_unavailable");
}

#[tokio::test]
async fn spellings_that_cannot_be_had_are_the_canonical_names() {
    let world = filled().await;
    popular_down(&world, true);
    let answer = world.get("/v1/search?q=ui-kit&facets=true").send().await;
    assert_eq!(
        degraded(&answer),
        (json!([{"feature": "display", "reason": "unavailable"}]), false)
    );
    assert_eq!(answer.json()["facets"][0]["display"], "ui-kit");
}

#[tokio::test]
async fn counts_that_say_they_are_old_are_marked() {
    let world = filled().await;
    world.popular.stale.store(true, Ordering::Relaxed);
    let answer = world.get("/v1/tags/popular").send().await;
    assert_eq!(degraded(&answer), (json!([{"feature": "popular", "reason": "unavailable"}]), true));
    assert_eq!(answer.json()["tags"][0]["tag"], "critical");
    world
        .get("/v1/tags/popular")
        .header("cache-control", "no-cache")
        .send()
        .await
        .problem("popular_unavailable");
}

#[tokio::test]
async fn an_index_that_is_behind_is_refused_by_who_minds() {
    let world = filled().await;
    world.search.behind.store(40_000, Ordering::SeqCst);
    let uri = "/v1/search?q=critical";
    assert_eq!(world.get(uri).send().await.ok()["meta"]["stale"], true);
    world.get(uri).header("cache-control", "max-stale=40").send().await.ok();
    world
        .get(uri)
        .header("cache-control", "max-stale=39")
        .send()
        .await
        .problem("search_unavailable");
    world.get(uri).header("cache-control", "no-cache").send().await.problem("search_unavailable");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_what_hangs() {
    let world = filled().await;
    world.search.hang.store(true, Ordering::SeqCst);
    world.get("/v1/tags/critical").send().await.ok();
    let mut took = Vec::new();
    for n in 0..200 {
        let began = Instant::now();
        let uri =
            if n % 2 == 0 { "/v1/search?q=critical&facets=true" } else { "/v1/tags/critical" };
        world.get(uri).send().await.ok();
        took.push(began.elapsed());
    }
    took.sort();
    // The first of each feature finds out.
    assert!(took[197] <= Duration::from_millis(50), "{:?}", &took[190..]);
    assert!(took[199] <= Duration::from_millis(500));
}

#[tokio::test]
async fn one_tenant_s_last_good_answer_is_nobody_else_s() {
    let world = jwt_world();
    for tenant in ["acme", "umbra"] {
        let put = world.ask("PUT", "/v1/content/a/1/tags/x").bearer(&keys::user(tenant));
        put.send().await.ok();
    }
    world.get("/v1/tags/popular").bearer(&keys::user("umbra")).send().await.ok();
    popular_down(&world, true);
    let answer = world.get("/v1/tags/popular").bearer(&keys::user("acme")).send().await;
    assert_eq!(
        degraded(&answer),
        (json!([{"feature": "popular", "reason": "features_limited"}]), false)
    );
    let own = world.get("/v1/tags/popular").bearer(&keys::user("umbra")).send().await;
    assert_eq!(own.ok()["tags"][0]["tag"], "x");
}
