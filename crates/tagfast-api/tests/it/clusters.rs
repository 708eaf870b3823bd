//! The state of the clusters.

use serde_json::{Value, json};

use crate::support::{ApiLimits, build, fixture, hs256, jwt_fixture, keys};

#[tokio::test]
async fn a_cluster_is_shown_with_every_sample_and_its_time() {
    let answer = fixture().get("/v1/clusters").send().await.ok();
    assert_eq!(answer.get("next_cursor"), Some(&Value::Null));
    let expected = json!({
        "name": "c0", "observed_at": "2026-01-01T00:00:00.000Z",
        "epoch": {"id": "02".repeat(16), "ordinal": 100, "term": 77, "timeline": 3,
            "since": "2025-12-31T23:59:00.000Z", "primary": "c0-2"},
        "members": [
            {"name": "c0-2", "address": "c0-2.example:5432", "role": "primary",
                "observed_at": "2025-12-31T23:59:59.800Z"},
            {"name": "c0-3", "address": "c0-3.example:5432", "role": "replica",
                "observed_at": "2025-12-31T23:59:59.800Z", "age_ms": 1250, "streaming": false,
                "flushed_lsn": "16/B374D848", "problem": "replica c0-3 of c0 is 1 s behind"},
        ],
        "proof_left_ms": 17_400,
        "guard": {"state": "holding", "exposure_ms": 970, "max_loss_ms": 1000},
        "lanes": [{"number": 0, "queued": 3, "queued_max": 1024}],
        "outbox": {"bytes": 98_304, "bytes_max": 1_073_741_824,
            "observed_at": "2025-12-31T23:59:59.600Z"},
        "journal": {"bytes": 4096, "bytes_max": 268_435_456, "contents": 7,
            "waiting_for_repair": 2, "forgotten_writes": 0},
        "repair_closed": false,
        "long_transactions": ["the transaction of pid 7: end it"],
        "failing": [{"calls": "writes", "cause": "statement",
            "problem": "PostgreSQL refuses a statement", "remedy": "look at its log",
            "lasts_ms": 3000, "share_percent": 40}],
        "warnings": [{"part": "installation",
            "text": "Patroni is paused; end it with `patronictl resume`"}],
    });
    assert_eq!(answer["items"][0], expected);
    let unreached = &answer["items"][1];
    assert_eq!(unreached["problem"], "not polled yet");
    for absent in ["epoch", "proof_left_ms", "repair_closed"] {
        assert!(unreached.get(absent).is_none(), "{absent}");
    }
    assert!(unreached["members"][0].get("observed_at").is_none());
}

#[tokio::test]
async fn clusters_are_for_operators_and_only_where_there_are_any() {
    let fixture = jwt_fixture();
    let admin = keys::hs256(&keys::claims("acme", "admin"));
    fixture.get("/v1/clusters").bearer(&admin).send().await.ok();
    fixture.get("/v1/clusters").bearer(&keys::user("acme")).send().await.problem("missing_scope");
    fixture.get("/v1/clusters?x=1").bearer(&admin).send().await.problem("unknown_parameter");
    let without = build(hs256(), ApiLimits::default(), |services| services.clusters = None);
    without.get("/v1/clusters").bearer(&admin).send().await.problem("not_in_this_mode");
}
