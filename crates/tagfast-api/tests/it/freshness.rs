//! How old an answer may be: what a request demands, what the store receives, what the answer says.

use std::time::Duration;

use serde_json::json;
use tagfast_domain::UserId;
use tagfast_resilience::Criticality;
use tagfast_store::testing::ReadCall;
use tagfast_store::{CacheUse, Degraded, Source};

use crate::support::{ApiLimits, AuthConfig, fixture, fixture_with, jwt_fixture, keys};

const TAGS: &str = "/v1/content/a/1/tags";

#[tokio::test]
async fn the_store_receives_the_reader_and_the_criticality() {
    let fixture = jwt_fixture();
    let last_read = || fixture.store.faults().last_read().unwrap();
    fixture.get(TAGS).bearer(&keys::user("acme")).send().await.ok();
    let expect = ReadCall {
        user: UserId::parse("ada").ok(),
        criticality: Criticality::Critical,
        max_stale: None,
    };
    assert_eq!(last_read(), expect);
    let get = fixture.request("POST", "/v1/content:batchGet").bearer(&keys::user("acme"));
    let get =
        get.header("cache-control", "max-stale=5").json(r#"{"items": [{"type": "a", "id": "1"}]}"#);
    get.send().await.ok();
    let five = Some(Duration::from_secs(5));
    assert_eq!(
        last_read(),
        ReadCall { criticality: Criticality::Degradable, max_stale: five, ..expect }
    );
}

#[tokio::test]
async fn a_client_says_how_stale_an_answer_may_be() {
    let limits = ApiLimits { max_stale: Duration::from_secs(100), ..ApiLimits::default() };
    let fixture = fixture_with(AuthConfig::None, limits);
    for (value, expect) in [
        ("no-cache", Some(0)),
        ("max-stale=99, max-age=0", Some(99)),
        ("max-stale=100", None),
        ("max-stale=99999999999", None),
        ("max-stale", None),
        ("max-age=5", None),
    ] {
        fixture.get(TAGS).header("cache-control", value).send().await.ok();
        let given = fixture.store.faults().last_read().unwrap().max_stale;
        assert_eq!(given, expect.map(Duration::from_secs), "{value}");
    }
    let both = fixture
        .get(TAGS)
        .header("cache-control", "max-stale=9")
        .header("cache-control", "max-stale=8");
    both.send().await.ok();
    assert_eq!(fixture.store.faults().last_read().unwrap().max_stale, Some(Duration::from_secs(8)));
    for uri in [TAGS, "/v1/search", "/v1/tags", "/v1/tags/popular", "/v1/tags/x"] {
        fixture
            .get(uri)
            .header("cache-control", "max-stale=soon")
            .send()
            .await
            .problem("bad_header");
    }
    let post = fixture
        .request("POST", "/v1/content:batchGet")
        .header("cache-control", "max-stale=99999999999999999999");
    post.json(r#"{"items": []}"#).send().await.problem("bad_header");
}

#[tokio::test]
async fn a_stale_view_says_so_and_never_looks_fresh() {
    let fixture = fixture();
    let version = fixture.tag("a/1", "x").await.ok()["version"].as_str().unwrap().to_owned();
    let tag = format!("\"{version}\"");
    let again = || fixture.get(TAGS).header("if-none-match", &tag).send();
    let same = again().await;
    assert_eq!((same.status.as_u16(), same.header("cache-control")), (304, "private, no-cache"));

    fixture.store.faults().set_view_hook(Some(|_, view| {
        view.stale = true;
        view.as_of -= 90_000;
        view.source = Source::Cache;
        view.cache = CacheUse::Stale("redis");
        view.degraded = vec![Degraded { feature: "view", reason: "unavailable" }];
        Ok(())
    }));
    let stale = again().await;
    let body = stale.ok();
    assert_eq!((&body["meta"]["stale"], &body["meta"]["age_ms"]), (&json!(true), &json!(90_000)));
    assert_eq!(body["meta"]["degraded"], json!([{"feature": "view", "reason": "unavailable"}]));
    assert_eq!((stale.header("age"), stale.header("cache-control")), ("90", "no-store"));
    assert_eq!(stale.header("cache-status"), "tagfast; fwd=stale; detail=redis");
    let get = fixture
        .request("POST", "/v1/content:batchGet")
        .json(r#"{"items": [{"type": "a", "id": "1"}]}"#);
    let batch = get.send().await;
    assert_eq!(
        (&batch.ok()["results"][0]["meta"]["stale"], batch.header("cache-control")),
        (&json!(true), "no-store")
    );

    // Proven current, although it was read long ago.
    fixture.store.faults().set_view_hook(Some(|_, view| {
        view.as_of -= 90_000;
        view.source = Source::Cache;
        view.cache = CacheUse::Hit("l1");
        Ok(())
    }));
    let hit = fixture.get(TAGS).send().await;
    assert_eq!((&hit.ok()["meta"]["stale"], hit.header("age")), (&json!(false), "90"));
    assert_eq!(
        (hit.header("cache-status"), hit.header("cache-control")),
        ("tagfast; hit; detail=l1", "private, no-cache")
    );
    assert_eq!(again().await.status, 304);
    fixture.store.faults().set_view_hook(Some(|_, view| {
        view.degraded = vec![Degraded { feature: "session", reason: "failover" }];
        Ok(())
    }));
    assert_eq!(again().await.header("cache-control"), "no-store");
}
