//! Batches: order, independent items, limits, imports.

use serde_json::{Value, json};
use tagfast_store::StoreError;

use crate::support::{fixture, jwt_fixture, keys};

const GET: &str = "/v1/content:batchGet";
const TAG: &str = "/v1/content:batchTag";

#[tokio::test]
async fn writes_and_views_come_back_in_order() {
    let fixture = fixture();
    let body = json!({"items": [
        {"type": "a", "id": "1", "add": ["X", "y"]},
        {"type": "a", "id": "2", "add": ["z"]},
        {"type": "a", "id": "1", "remove": ["x"]},
    ]});
    let answer = fixture.request("POST", TAG).json(&body.to_string()).send().await;
    assert!(!answer.header("consistency-token").is_empty());
    let results = answer.ok()["results"].clone();
    assert_eq!(results[0]["added"], json!(["x", "y"]));
    assert_eq!(results[1]["content"], json!({"type": "a", "id": "2"}));
    assert_eq!(results[2]["removed"], json!(["x"]));
    assert!(
        results.as_array().unwrap().iter().all(|r| r["ok"] == true && r["receipt"].is_string())
    );

    let body = json!({"items": [{"type": "a", "id": "2"}, {"type": "a", "id": "1"}, {"type": "a", "id": "1"}, {"type": "a", "id": "none"}]});
    let results =
        fixture.request("POST", GET).json(&body.to_string()).send().await.ok()["results"].clone();
    let tags = |n: usize| {
        results[n]["tags"].as_array().unwrap().iter().map(|t| t["tag"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        (tags(0), tags(1), tags(2), tags(3)),
        (vec![json!("z")], vec![json!("y")], vec![json!("y")], vec![])
    );
    assert_eq!(results[3]["version"], "0");
    assert_eq!(results[0]["meta"]["source"], "primary");
}

#[tokio::test]
async fn a_bad_item_fails_alone() {
    let fixture = fixture();
    let body = json!({"items": [
        {"type": "BAD", "id": "1", "add": ["x"]},
        {"type": "a", "id": "1", "add": ["x"]},
        {"type": "a", "id": "2", "add": ["<"]},
        {"type": "a", "id": "3"},
        {"type": "a", "id": "4", "add": ["x"], "remove": ["X"]},
    ]});
    let results =
        fixture.request("POST", TAG).json(&body.to_string()).send().await.ok()["results"].clone();
    let codes: Vec<&Value> =
        results.as_array().unwrap().iter().map(|r| &r["problem"]["code"]).collect();
    assert_eq!(
        codes,
        [
            &json!("forbidden_character"),
            &Value::Null,
            &json!("forbidden_character"),
            &json!("nothing_to_do"),
            &json!("added_and_removed")
        ]
    );
    assert_eq!(results[0]["content"], json!({"type": "BAD", "id": "1"}));
    assert_eq!((&results[0]["ok"], &results[1]["ok"]), (&json!(false), &json!(true)));
    assert!(results[0]["problem"]["trace_id"].is_string());

    fixture.store.faults().fail_with(|| StoreError::Unavailable {
        reason: "the shard has no primary",
        outcome_unknown: false,
        retry_after: std::time::Duration::from_millis(1500),
    });
    let body = json!({"items": [{"type": "a", "id": ""}, {"type": "a", "id": "1"}]});
    let results =
        fixture.request("POST", GET).json(&body.to_string()).send().await.ok()["results"].clone();
    assert_eq!(results[0]["problem"]["code"], "empty");
    assert_eq!(results[1]["problem"]["code"], "unavailable");
    assert_eq!(results[1]["problem"]["retry_after_ms"], 1500);
}

#[tokio::test]
async fn the_size_is_limited_by_name() {
    let fixture = fixture();
    for (path, item) in [
        (GET, json!({"type": "a", "id": "1"})),
        (TAG, json!({"type": "a", "id": "1", "add": ["x"]})),
    ] {
        let body = |n: usize| json!({"items": vec![item.clone(); n]}).to_string();
        let full = fixture.request("POST", path).json(&body(500)).send().await.ok();
        assert_eq!(full["results"].as_array().unwrap().len(), 500);
        let over =
            fixture.request("POST", path).json(&body(501)).send().await.problem("batch_too_large");
        assert_eq!(
            (&over["limit"], &over["allowed"], &over["given"]),
            (&json!("batch_items"), &json!(500), &json!(501))
        );
        assert_eq!(
            fixture.request("POST", path).json(&body(0)).send().await.ok()["results"],
            json!([])
        );
    }
}

#[tokio::test]
async fn one_key_covers_the_whole_batch() {
    let fixture = fixture();
    let body =
        json!({"items": [{"type": "a", "id": "1", "add": ["x"]}, {"type": "a", "id": "2", "add": ["x"]}]}).to_string();
    let send =
        || fixture.request("POST", TAG).header("idempotency-key", "load-1").json(&body).send();
    let first = send().await.ok();
    let again = send().await.ok();
    for n in 0..2 {
        assert_eq!(again["results"][n]["repeated"], true);
        assert_eq!(again["results"][n]["version"], first["results"][n]["version"]);
    }
}

#[tokio::test]
async fn an_import_carries_who_and_when() {
    let fixture = fixture();
    let body = json!({"items": [{"type": "a", "id": "1", "add": [
        "plain", {"tag": "Old One", "by": "grace", "at": "2020-02-29T12:00:00+02:00"}, {"tag": "only-tag"},
    ]}]});
    fixture.request("POST", TAG).json(&body.to_string()).send().await.ok();
    let tags = fixture.get("/v1/content/a/1/tags").send().await.ok()["tags"].clone();
    assert_eq!(
        tags[0],
        json!({"tag": "old-one", "display": "Old One", "added_by": "grace", "added_at": "2020-02-29T10:00:00.000Z"})
    );
    assert_eq!(tags[2]["added_by"], "anonymous");
    for at in ["yesterday", "1969-12-31T23:59:59Z", "2026-01-01T01:00:00Z"] {
        let body = json!({"items": [{"type": "a", "id": "1", "add": [{"tag": "t", "at": at}]}]});
        let results = fixture.request("POST", TAG).json(&body.to_string()).send().await.ok();
        assert_eq!(results["results"][0]["problem"]["code"], "bad_time", "{at}");
    }
}

#[tokio::test]
async fn an_import_needs_the_admin_scope() {
    let fixture = jwt_fixture();
    let body = json!({"items": [{"type": "a", "id": "1", "add": [{"tag": "t", "by": "grace"}]}]})
        .to_string();
    let send = |token: String| fixture.request("POST", TAG).bearer(&token).json(&body).send();
    send(keys::user("acme")).await.problem("missing_scope");
    send(keys::hs256(&keys::claims("acme", "admin"))).await.ok();
}

#[tokio::test]
async fn a_batch_takes_no_condition() {
    let answer = fixture()
        .request("POST", TAG)
        .header("if-match", "\"1\"")
        .json(r#"{"items": []}"#)
        .send()
        .await;
    answer.problem("bad_header");
}
