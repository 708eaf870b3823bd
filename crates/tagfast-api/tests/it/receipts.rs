//! Receipts: one and many, verdicts with reasons, foreign and damaged ones.

use std::time::Duration;

use serde_json::{Value, json};
use tagfast_domain::TenantId;
use tagfast_store::{LostReason, Receipt, Sealer, StoreError, Verdict};

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

/// Every verdict with its word and reason.
const VERDICTS: &[(Judged, &str, Option<&str>)] = &[
    (|| Ok(Verdict::Kept), "kept", None),
    (|| Ok(Verdict::Repaired { is_superseded: false }), "repaired", None),
    (|| Ok(Verdict::Repaired { is_superseded: true }), "repaired", Some("superseded")),
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
