//! On every route: a tenant can neither read, count, be suggested nor page into the data of a
//! different tenant.

use serde_json::json;

use crate::support::{Fixture, jwt_fixture, keys};

async fn two() -> Fixture {
    let fixture = jwt_fixture();
    for (tenant, tag) in [("acme", "acme-secret"), ("umbra", "umbra-secret")] {
        for n in 0..3 {
            let uri = format!("/v1/content/doc/{n}/tags");
            let body = json!({"tags": [tag, "shared"]}).to_string();
            fixture.request("PUT", &uri).bearer(&keys::user(tenant)).json(&body).send().await.ok();
        }
    }
    fixture
}

#[tokio::test]
async fn no_answer_shows_another_tenant_s_tags() {
    let fixture = two().await;
    let admin = keys::hs256(&keys::claims("acme", "admin"));
    for uri in [
        "/v1/content/doc/0/tags",
        "/v1/search",
        "/v1/search?q=shared&facets=true",
        "/v1/tags",
        "/v1/tags?prefix=umbra",
        "/v1/tags/popular",
        "/v1/tags/popular?window=1h",
        "/v1/tags/umbra-secret",
        "/v1/tags/shared",
        "/v1/export",
        "/v1/export?shard=1",
        "/v1/status",
        "/v1/failovers",
        "/v1/clusters",
        "/v1/breakers",
        "/v1/dead-letters",
    ] {
        let answer = fixture.get(uri).bearer(&admin).send().await;
        let body = String::from_utf8(answer.body).unwrap();
        let asked_for = uri.contains("umbra-secret");
        assert!(asked_for || !body.contains("umbra"), "{uri}: {body}");
    }
    let get = json!({"items": [{"type": "doc", "id": "0"}]}).to_string();
    let batch =
        fixture.request("POST", "/v1/content:batchGet").bearer(&admin).json(&get).send().await.ok();
    assert_eq!(batch["results"][0]["tags"][0]["tag"], "acme-secret");
    let counted = fixture
        .request("POST", "/v1/admin/recount")
        .bearer(&admin)
        .json(r#"{"repair": true}"#)
        .send()
        .await
        .ok();
    assert_eq!(counted["rows"], json!([{"tenant": "acme", "tag": "x", "counted": 1, "true": 2}]));
}

#[tokio::test]
async fn counts_are_of_one_tenant() {
    let fixture = two().await;
    let acme = keys::user("acme");
    let get = |uri: &'static str| fixture.get(uri).bearer(&acme).send();
    assert_eq!(get("/v1/tags/umbra-secret").await.ok()["count"], 0);
    assert_eq!(get("/v1/tags/shared").await.ok()["count"], 3);
    assert_eq!(
        get("/v1/tags/shared").await.ok()["related"],
        json!([{"tag": "acme-secret", "count": 3}])
    );
    assert_eq!(get("/v1/search?q=shared").await.ok()["total"]["value"], 3);
    assert_eq!(get("/v1/search?q=umbra-secret").await.ok()["total"]["value"], 0);
    assert_eq!(get("/v1/tags/popular").await.ok()["tags"].as_array().unwrap().len(), 2);
    assert_eq!(get("/v1/tags?prefix=umbra").await.ok()["tags"], json!([]));
    let lines = get("/v1/export").await.body;
    assert_eq!(lines.iter().filter(|b| **b == b'\n').count(), 3);
}

#[tokio::test]
async fn writes_stay_with_their_tenant() {
    let fixture = two().await;
    let acme = keys::user("acme");
    fixture
        .request("PUT", "/v1/content/doc/0/tags")
        .bearer(&acme)
        .json(r#"{"tags": []}"#)
        .send()
        .await
        .ok();
    fixture.request("DELETE", "/v1/content/doc/1/tags/shared").bearer(&acme).send().await.ok();
    fixture
        .request("PATCH", "/v1/content/doc/2/tags")
        .bearer(&acme)
        .json(r#"{"remove": ["shared"]}"#)
        .send()
        .await
        .ok();
    let body =
        json!({"items": [{"type": "doc", "id": "2", "remove": ["umbra-secret", "acme-secret"]}]})
            .to_string();
    fixture.request("POST", "/v1/content:batchTag").bearer(&acme).json(&body).send().await.ok();
    for n in 0..3 {
        let view = fixture
            .get(&format!("/v1/content/doc/{n}/tags"))
            .bearer(&keys::user("umbra"))
            .send()
            .await
            .ok();
        assert_eq!(view["tags"].as_array().unwrap().len(), 2);
    }
}

#[tokio::test]
async fn tokens_receipts_and_cursors_of_another_tenant_are_refused() {
    let fixture = two().await;
    let (acme, umbra) = (keys::user("acme"), keys::user("umbra"));
    let written = fixture.request("PUT", "/v1/content/doc/0/tags/x").bearer(&umbra).send().await;
    let token = written.header("consistency-token").to_owned();
    let receipt = written.ok()["receipt"].as_str().unwrap().to_owned();
    let page = fixture.get("/v1/search?q=shared&limit=1").bearer(&umbra).send().await.ok();
    let cursor = page["next_cursor"].as_str().unwrap().to_owned();

    fixture
        .get("/v1/content/doc/0/tags")
        .bearer(&acme)
        .header("consistency-token", &token)
        .send()
        .await
        .problem("bad_token");
    let put = fixture
        .request("PUT", "/v1/content/doc/0/tags/y")
        .bearer(&acme)
        .header("consistency-token", &token);
    put.send().await.problem("bad_token");
    for path in ["/v1/content:batchGet", "/v1/content:batchTag"] {
        let post = fixture.request("POST", path).bearer(&acme).header("consistency-token", &token);
        post.json(r#"{"items": []}"#).send().await.problem("bad_token");
    }
    fixture.get(&format!("/v1/receipts/{receipt}")).bearer(&acme).send().await.problem("bad_token");
    fixture.get(&format!("/v1/receipts/{receipt}")).bearer(&umbra).send().await.ok();
    let next = format!("/v1/search?q=shared&limit=1&cursor={cursor}");
    fixture.get(&next).bearer(&acme).send().await.problem("bad_cursor");
}

#[tokio::test]
async fn one_idempotency_key_of_two_tenants_or_users_is_two_writes() {
    let fixture = jwt_fixture();
    let other_user = {
        let mut claims = keys::claims("acme", "tags:write");
        claims["sub"] = json!("grace");
        keys::hs256(&claims)
    };
    for token in [keys::user("acme"), keys::user("umbra"), other_user] {
        let put = fixture
            .request("PUT", "/v1/content/doc/0/tags/x")
            .bearer(&token)
            .header("idempotency-key", "k");
        assert!(put.send().await.ok().get("repeated").is_none());
    }
}
