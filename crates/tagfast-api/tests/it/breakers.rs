//! Circuit breakers: listed, forced by an operator, in the status.

use serde_json::json;
use tagfast_resilience::{BreakerOptions, BreakerState};

use crate::support::{Fixture, fixture, jwt_fixture, keys};

fn with_breakers(fixture: Fixture) -> Fixture {
    for name in ["index", "postgres/c0/primary"] {
        fixture.breakers.make(name, BreakerOptions::default());
    }
    fixture
}

#[tokio::test]
async fn breakers_are_listed_and_forced() {
    let fixture = with_breakers(fixture());
    let list = fixture.get("/v1/breakers").send().await.ok();
    let names: Vec<&str> =
        list["items"].as_array().unwrap().iter().map(|b| b["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["index", "postgres/c0/primary"]);
    assert_eq!(
        (&list["items"][0]["state"], &list["items"][0]["reason"]),
        (&json!("closed"), &json!("start"))
    );
    assert_eq!(list["items"][0]["window"], json!({"ok": 0, "failed": 0, "slow": 0}));
    assert_eq!((&list["events"], &list["next_cursor"]), (&json!([]), &json!(null)));

    let set = async |state: &str| {
        let body =
            json!({"name": "postgres/c0/primary", "state": state, "reason": "a drill"}).to_string();
        fixture.request("POST", "/v1/breakers").json(&body).send().await.ok()
    };
    let breaker = fixture.breakers.get("postgres/c0/primary").unwrap();
    for (state, expect, is) in [
        ("open", "forced_open", BreakerState::ForcedOpen),
        ("closed", "forced_closed", BreakerState::ForcedClosed),
        ("auto", "closed", BreakerState::Closed),
        ("open", "forced_open", BreakerState::ForcedOpen),
    ] {
        let now = set(state).await;
        assert_eq!(
            (&now["state"], &now["applies_to"], &now["reason"]),
            (&json!(expect), &json!("process"), &json!("by_hand"))
        );
        assert_eq!(breaker.state(), is);
    }
    assert_eq!(
        fixture.breakers.get("index").unwrap().state(),
        BreakerState::Closed,
        "only the one that is named"
    );
    let list = fixture.get("/v1/breakers").send().await.ok();
    assert_eq!(list["events"].as_array().unwrap().len(), 4);
    assert_eq!(
        list["events"][0],
        json!({"at": "2026-01-01T00:00:00.000Z", "name": "postgres/c0/primary", "from": "closed", "to": "forced_open",
               "reason": "by_hand"}),
        "newest first"
    );
    let status = fixture.get("/v1/status").send().await.ok();
    assert_eq!(status["breakers"].as_array().unwrap().len(), 1, "those that are not closed");
    assert_eq!(
        (&status["breakers"][0]["name"], &status["breaker_events"][3]["from"]),
        (&json!("postgres/c0/primary"), &json!("closed"))
    );
}

#[tokio::test]
async fn a_wrong_command_is_refused_and_changes_nothing() {
    let fixture = with_breakers(fixture());
    let ask = async |body: serde_json::Value| {
        fixture.request("POST", "/v1/breakers").json(&body.to_string()).send().await
    };
    ask(json!({"name": "nothing", "state": "open", "reason": "x"}))
        .await
        .problem("breaker_not_found");
    ask(json!({"name": "index", "state": "ajar", "reason": "x"})).await.problem("wrong_type");
    ask(json!({"name": "index", "state": "open"})).await.problem("wrong_type");
    ask(json!({"name": "index", "state": "open", "reason": "x", "for": 5}))
        .await
        .problem("unknown_field");
    ask(json!({"name": "index", "state": "open", "reason": ""})).await.problem("empty");
    ask(json!({"name": "index", "state": "open", "reason": "  "})).await.problem("empty");
    let long = ask(json!({"name": "index", "state": "open", "reason": "é".repeat(1001)}))
        .await
        .problem("too_long");
    assert_eq!(
        (&long["limit"], &long["allowed"], &long["given"]),
        (&json!("reason_characters"), &json!(1000), &json!(1001))
    );
    assert_eq!(fixture.breakers.events(), []);
    ask(json!({"name": "index", "state": "open", "reason": "é".repeat(1000)})).await.ok();
}

#[tokio::test]
async fn only_an_admin_sees_or_forces_breakers() {
    let fixture = with_breakers(jwt_fixture());
    let user = keys::user("acme");
    fixture.get("/v1/breakers").bearer(&user).send().await.problem("missing_scope");
    let body = r#"{"name": "index", "state": "open", "reason": "x"}"#;
    fixture
        .request("POST", "/v1/breakers")
        .bearer(&user)
        .json(body)
        .send()
        .await
        .problem("missing_scope");
    assert_eq!(fixture.breakers.get("index").unwrap().state(), BreakerState::Closed);
    let admin = keys::hs256(&keys::claims("acme", "admin"));
    fixture.request("POST", "/v1/breakers").bearer(&admin).json(body).send().await.ok();
    assert_eq!(fixture.breakers.get("index").unwrap().state(), BreakerState::ForcedOpen);
}
