//! Health, readiness, status, repair, and what only a cluster has.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tagfast_api::OperationsError;

use crate::support::{fixture, jwt_fixture};

#[tokio::test]
async fn health_readiness_and_metrics_need_no_token() {
    let fixture = jwt_fixture();
    assert_eq!(fixture.get("/healthz").send().await.ok(), json!({"status": "ok"}));
    assert_eq!(
        fixture.get("/readyz").send().await.ok(),
        json!({"ready": true, "not_ready": [], "degraded": []})
    );
    *fixture.operations.not_ready.lock() = Some("rebuilding, 40 % done".into());
    let answer = fixture.get("/readyz").send().await;
    assert_eq!(answer.status.as_u16(), 503);
    let retry_after: u64 = answer.header("retry-after").parse().unwrap();
    assert!((1..=3).contains(&retry_after), "{retry_after}");
    assert_eq!(
        answer.json()["not_ready"],
        json!([{"part": "search", "problem": "rebuilding, 40 % done"}])
    );
    let metrics = fixture.get("/metrics").send().await;
    assert!(metrics.header("content-type").starts_with("text/plain"));
    assert!(String::from_utf8(metrics.body).unwrap().contains("tagfast_up 1"));
    let docs = fixture.get("/docs").send().await;
    let page = String::from_utf8(docs.body).unwrap();
    assert!(page.contains("/v1/content/{type}/{id}/tags") && page.contains("bad_cursor"));
    assert!(
        !page.contains("src=") && !page.contains("https://"),
        "nothing is loaded from elsewhere"
    );
    assert_eq!(fixture.get("/openapi.json").send().await.ok()["openapi"], "3.1.0");
}

#[tokio::test]
async fn status_reindex_and_recount() {
    let fixture = fixture();
    let status = fixture.get("/v1/status").send().await.ok();
    assert_eq!(status["mode"], "embedded");
    assert_eq!(status["degraded"], json!([{"feature": "facets", "reason": "slow"}]));
    assert_eq!(status["running"], json!([{"operation": "reindex", "contents": 7, "total": 9}]));
    assert_eq!(status["not_ready"], json!([]));
    assert_eq!(
        status["limits"],
        json!([{"name": "index", "limit": 32, "in_flight": 1, "shed": 5}])
    );
    assert_eq!((&status["breakers"], &status["breaker_events"]), (&json!([]), &json!([])));
    assert_eq!(
        fixture.request("POST", "/v1/admin/reindex").json("{}").send().await.ok(),
        json!({"contents": 3})
    );
    let found =
        fixture.request("POST", "/v1/admin/recount").json(r#"{"repair": true}"#).send().await.ok();
    assert_eq!((&found["repaired"], &found["drifted_counts"]), (&json!(true), &json!(2)));
    assert_eq!(
        fixture.request("POST", "/v1/admin/recount").json("{}").send().await.ok()["repaired"],
        false
    );

    *fixture.operations.fault.lock() = Some(|| OperationsError::AlreadyRunning("reindex"));
    fixture.request("POST", "/v1/admin/reindex").json("{}").send().await.problem("already_running");
    *fixture.operations.fault.lock() = Some(|| OperationsError::Failed("the disk is full".into()));
    fixture
        .request("POST", "/v1/admin/recount")
        .json("{}")
        .send()
        .await
        .problem("operation_failed");
}

/// A recount is for the one who reads its report; a rebuild is for all.
#[tokio::test]
async fn a_recount_ends_when_its_client_has_gone() {
    let fixture = fixture();
    fixture.operations.recount_hangs.store(true, Ordering::SeqCst);
    let recounts = async |wanted: usize| {
        let reached = async {
            while Arc::strong_count(&fixture.operations.recounts) - 1 != wanted {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), reached).await.expect("it begins, and ends");
    };
    let call = fixture.request("POST", "/v1/admin/recount").json("{}").send();
    tokio::select! {
        _ = call => panic!("it does not end"),
        () = recounts(1) => {}
    }
    // The call was dropped, as that of a client that disconnects.
    recounts(0).await;
}

#[tokio::test]
async fn a_storm_is_allowed_with_a_reason() {
    let fixture = fixture();
    let ask = async |body: &str| {
        fixture.request("POST", "/v1/dead-letters:allow-storm").json(body).send().await
    };
    let allowed = ask(r#"{"group": "indexer", "reason": "garbage by a load test"}"#).await.ok();
    assert_eq!((&allowed["group"], &allowed["allowed_seconds"]), (&"indexer".into(), &60.into()));
    ask(r#"{"group": "indexer", "reason": ""}"#).await.problem("empty");
    ask(&format!(r#"{{"group": "indexer", "reason": "{}"}}"#, "x".repeat(1001)))
        .await
        .problem("too_long");
    ask(r#"{"group": "unknown", "reason": "x"}"#).await.problem("wrong_type");
    ask(r#"{"group": "analytics", "reason": "x"}"#).await.problem("operation_failed");
    assert_eq!(
        fixture.dead_letters.audit_log.lock()[0].detail,
        "group=indexer: garbage by a load test"
    );
}
