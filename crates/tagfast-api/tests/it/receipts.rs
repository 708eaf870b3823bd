//! Receipts: one and many, verdicts with reasons, foreign and damaged ones.

use std::time::Duration;

use serde_json::{Value, json};
use tagfast_domain::TenantId;
use tagfast_store::{Consistency, LostReason, Receipt, Sealer, Source, StoreError, Verdict};

use crate::support::{ApiLimits, AuthConfig, Fixture, fixture, fixture_with, jwt_fixture, keys};

const CHECK: &str = "/v1/receipts:check";

async fn receipt_of(fixture: &Fixture, content: &str) -> String {
    fixture.tag(content, "x").await.ok()["receipt"].as_str().unwrap().to_owned()
}

/// Sets the verdict on the write of a receipt.
fn judge(fixture: &Fixture, receipt: &str, verdict: Judged) {
    let sealer = Sealer::new(&[[7; 32]]);
    let receipt = Receipt::open(&sealer, &TenantId::parse("default").unwrap(), receipt).unwrap();
    fixture.store.judge(receipt.write_id, verdict);
}

async fn check(fixture: &Fixture, receipts: &[&str]) -> Vec<Value> {
    let body = json!({"receipts": receipts}).to_string();
    let answer = fixture.request("POST", CHECK).json(&body).send().await.ok();
    answer["results"].as_array().unwrap().clone()
}

/// What the store says of a write.
type Judged = fn() -> Result<Verdict, StoreError>;

fn repaired(is_superseded: bool, by_event: bool) -> Verdict {
    Verdict::Repaired { is_superseded, by_event }
}

/// Every verdict with its word and reason.
const VERDICTS: &[(Judged, &str, Option<&str>)] = &[
    (|| Ok(Verdict::Kept), "kept", None),
    (|| Ok(repaired(false, false)), "repaired", None),
    (|| Ok(repaired(true, false)), "repaired", Some("superseded")),
    (|| Ok(repaired(true, true)), "repaired", Some("superseded")),
    (|| Ok(repaired(false, true)), "repaired", Some("event")),
    (|| Ok(Verdict::Lost(LostReason::Unreported)), "lost", Some("unreported")),
    (|| Ok(Verdict::Lost(LostReason::Limit)), "lost", Some("limit")),
    (|| Ok(Verdict::Lost(LostReason::Conflict)), "lost", Some("conflict")),
    (|| Ok(Verdict::Lost(LostReason::Late)), "lost", Some("late")),
    (|| Ok(Verdict::Unknown("pending")), "unknown", Some("pending")),
    (|| Ok(Verdict::Unknown("expired")), "unknown", Some("expired")),
    (|| Ok(Verdict::Unknown("restored")), "unknown", Some("restored")),
];

fn unavailable() -> Result<Verdict, StoreError> {
    Err(StoreError::Unavailable {
        reason: "the cluster has no primary",
        outcome_unknown: false,
        retry_after: Duration::from_secs(1),
    })
}

#[tokio::test]
async fn a_receipt_tells_the_verdict() {
    let fixture = fixture();
    let receipt = receipt_of(&fixture, "a/1").await;
    let verdict = fixture.get(&format!("/v1/receipts/{receipt}")).send().await.ok();
    assert_eq!(verdict["verdict"], "kept");
    assert!(verdict.get("reason").is_none());
    assert_eq!(verdict["epoch"], "01".repeat(16));
    for bad in ["x", "AAAA", &format!("{receipt}A")] {
        fixture.get(&format!("/v1/receipts/{bad}")).send().await.problem("bad_token");
    }
    let consistency = fixture.tag("a/1", "y").await.header("consistency-token").to_owned();
    fixture.get(&format!("/v1/receipts/{consistency}")).send().await.problem("bad_token");
}

#[tokio::test]
async fn every_verdict_has_its_word_and_reason_alone_and_in_a_batch() {
    let fixture = fixture();
    let mut receipts = Vec::new();
    for (n, (verdict, ..)) in VERDICTS.iter().enumerate() {
        let receipt = receipt_of(&fixture, &format!("a/{n}")).await;
        judge(&fixture, &receipt, *verdict);
        receipts.push(receipt);
    }
    let receipts: Vec<&str> = receipts.iter().map(String::as_str).collect();
    let results = check(&fixture, &receipts).await;
    for ((receipt, result), (_, word, reason)) in receipts.iter().zip(&results).zip(VERDICTS) {
        let one = fixture.get(&format!("/v1/receipts/{receipt}")).send().await.ok();
        assert_eq!((one["verdict"].as_str(), one["reason"].as_str()), (Some(*word), *reason));
        let mut expected = one;
        expected["ok"] = json!(true);
        assert_eq!(*result, expected);
    }
}

#[tokio::test]
async fn bad_receipts_of_a_batch_fail_alone_and_the_order_stays() {
    let fixture = fixture();
    let (a, b) = (receipt_of(&fixture, "a/1").await, receipt_of(&fixture, "a/2").await);
    let down = receipt_of(&fixture, "a/3").await;
    judge(&fixture, &b, || Ok(Verdict::Lost(LostReason::Limit)));
    judge(&fixture, &down, unavailable);
    let cut = &a[..a.len() - 3];
    // The first byte is the version.
    let unknown_version = format!("_{}", &a[1..]);
    let results =
        check(&fixture, &[&unknown_version, &a, cut, &down, &b, "", "no receipt", &a]).await;
    let words: Vec<&str> = results
        .iter()
        .map(|r| r["verdict"].as_str().or(r["problem"]["code"].as_str()).unwrap())
        .collect();
    let expected =
        ["bad_token", "kept", "bad_token", "unavailable", "lost", "bad_token", "bad_token", "kept"];
    assert_eq!(words, expected);
    for result in &results {
        assert_eq!(result["ok"], json!(result.get("problem").is_none()));
    }
    assert_eq!(results[0]["problem"]["status"], 400);
    assert!(results[3]["problem"].get("outcome_unknown").is_none(), "nothing was written");
    assert_eq!(check(&fixture, &[]).await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_receipt_of_another_tenant_is_a_bad_one() {
    let fixture = jwt_fixture();
    let (acme, umbra) = (keys::user("acme"), keys::user("umbra"));
    let written = fixture.request("PUT", "/v1/content/a/1/tags/x").bearer(&umbra).send().await;
    let body = json!({"receipts": [written.ok()["receipt"]]}).to_string();
    let check = |token| fixture.request("POST", CHECK).bearer(token).json(&body).send();
    assert_eq!(check(&acme).await.ok()["results"][0]["problem"]["code"], "bad_token");
    assert_eq!(check(&umbra).await.ok()["results"][0]["verdict"], "kept");
    let writer = keys::hs256(&keys::claims("umbra", "tags:write"));
    check(&writer).await.problem("missing_scope");
}

#[tokio::test]
async fn a_batch_that_is_too_large_names_its_limit() {
    let fixture = fixture();
    let body = json!({"receipts": vec!["x"; 501]}).to_string();
    let refused = fixture.request("POST", CHECK).json(&body).send().await;
    let problem = refused.problem("batch_too_large");
    assert_eq!(
        (&problem["limit"], &problem["allowed"], &problem["given"]),
        (&json!("batch_items"), &json!(500), &json!(501))
    );
    let body = json!({"receipts": vec!["x"; 500]}).to_string();
    let full = fixture.request("POST", CHECK).json(&body).send().await.ok();
    assert_eq!(full["results"].as_array().unwrap().len(), 500);
    let small =
        fixture_with(AuthConfig::None, ApiLimits { batch_items: 1, ..ApiLimits::default() });
    let body = json!({"receipts": ["x", "y"]}).to_string();
    small.request("POST", CHECK).json(&body).send().await.problem("batch_too_large");
    for (bad, code) in [
        ("{}", "wrong_type"),
        (r#"{"receipts": [1]}"#, "wrong_type"),
        (r#"{"receipts": [], "all": true}"#, "unknown_field"),
        ("{", "bad_json"),
    ] {
        fixture.request("POST", CHECK).json(bad).send().await.problem(code);
    }
}

/// The primary answers a strong read, a replica any other one.
fn by_role(fixture: &Fixture) {
    fixture.store.faults().set_view_hook(Some(|options, view| {
        let strong = options.consistency == Consistency::Strong;
        view.source = if strong { Source::Primary } else { Source::Replica };
        Ok(())
    }));
}

#[tokio::test]
async fn a_view_with_the_receipt_of_a_lost_write_says_so_and_is_the_primarys() {
    let fixture = fixture();
    let path = "/v1/content/page/1/tags";
    let receipt = receipt_of(&fixture, "page/1").await;
    let other = receipt_of(&fixture, "page/2").await;
    by_role(&fixture);
    let lost = json!([{"feature": "session", "reason": "write_lost"}]);
    let none = json!([]);
    for (verdict, source, degraded) in [
        ((|| Ok(Verdict::Kept)) as Judged, "replica", &none),
        (|| Ok(repaired(false, true)), "primary", &none),
        (|| Ok(Verdict::Unknown("pending")), "primary", &none),
        (|| Ok(Verdict::Lost(LostReason::Unreported)), "primary", &lost),
        (|| Ok(Verdict::Lost(LostReason::Limit)), "primary", &lost),
        // It cannot be told: the view may lack the write, and is answered all the same.
        (unavailable, "replica", &json!([{"feature": "session", "reason": "failover"}])),
    ] {
        judge(&fixture, &receipt, verdict);
        for request in [
            fixture.get(path).header("receipt", &receipt),
            fixture.get(path).header("receipt", &other).header("receipt", &receipt),
            fixture.get(path).header("receipt", &format!("{receipt}, {receipt}")),
        ] {
            let answer = request.send().await;
            let meta = answer.ok()["meta"].clone();
            assert_eq!((&meta["source"], &meta["degraded"]), (&json!(source), degraded));
            let cached = if degraded == &none { "private, no-cache" } else { "no-store" };
            assert_eq!(answer.header("cache-control"), cached);
        }
        let items = json!({"items": [{"type": "page", "id": "1"}, {"type": "page", "id": "2"}]});
        let batch = fixture.request("POST", "/v1/content:batchGet").json(&items.to_string());
        let batch = batch.header("receipt", &receipt).send().await.ok();
        for result in batch["results"].as_array().unwrap() {
            let meta = &result["meta"];
            assert_eq!((&meta["source"], &meta["degraded"]), (&json!(source), degraded));
        }
    }
    // Without the receipt no session is told of it, and 304 would have no room to say it.
    judge(&fixture, &receipt, || Ok(Verdict::Lost(LostReason::Late)));
    let view = fixture.get(path).send().await;
    assert_eq!(view.ok()["meta"]["degraded"], none);
    let again = || fixture.get(path).header("if-none-match", view.header("etag"));
    assert_eq!(again().send().await.status, 304);
    assert_eq!(again().header("receipt", &receipt).send().await.ok()["meta"]["degraded"], lost);
}

#[tokio::test]
async fn bad_receipts_of_a_view_are_refused() {
    let fixture = fixture();
    let path = "/v1/content/page/1/tags";
    let receipt = receipt_of(&fixture, "page/1").await;
    let get = |value: &str| fixture.get(path).header("receipt", value).send();
    for bad in [&receipt[1..], &receipt[..receipt.len() - 1], "AAAA"] {
        get(bad).await.problem("bad_token");
    }
    let problem = get(&format!("{receipt}, AAAA")).await.problem("bad_token");
    assert!(problem["detail"].as_str().unwrap().contains("receipt 2 of 2"), "{problem}");
    let many = vec![receipt.as_str(); 17].join(",");
    let problem = get(&many).await.problem("bad_header");
    assert_eq!((&problem["limit"], &problem["allowed"]), (&json!("receipts"), &json!(16)));
    get(",").await.problem("bad_header");
    // A token is no receipt.
    let token = fixture.tag("page/1", "y").await.header("consistency-token").to_owned();
    get(&token).await.problem("bad_token");
}

/// A token names no write: its session is told once, and the answer's own token ends it.
#[tokio::test]
async fn a_token_past_the_end_of_its_epoch_is_told_once() {
    let fixture = fixture();
    let path = "/v1/content/page/1/tags";
    let before = fixture.store.newest_position();
    let token = fixture.tag("page/1", "x").await.header("consistency-token").to_owned();
    let key = tagfast_domain::ContentKey::parse("default", "page", "1").unwrap();
    fixture.store.fail_over(before, &key);
    let told = fixture.get(path).header("consistency-token", &token).send().await;
    let degraded = told.ok()["meta"]["degraded"].clone();
    assert_eq!(degraded[0]["feature"], "session", "{degraded}");
    let next = told.header("consistency-token");
    let again = fixture.get(path).header("consistency-token", next).send().await;
    assert_eq!(again.ok()["meta"]["degraded"], json!([]));
    // The old token would be told again.
    let old = fixture.get(path).header("consistency-token", &token).send().await;
    assert_eq!(old.ok()["meta"]["degraded"], degraded);
}
