//! Dead letters: listed, shown, replayed, discarded; tenants apart, and every intervention audited.

use serde_json::json;
use std::sync::atomic::Ordering;
use tagfast_domain::{ContentKey, EpochOrdinal, Version};
use tagfast_events::conformance::dead_letters::exhausted;
use tagfast_events::{
    BusRecord, ClusterName, DeadLetterState, FailureClass, Partition, RecordKind, StoredDeadLetter,
};

use crate::support::{Fixture, NOW, fixture, jwt_fixture, keys};

pub(crate) fn stored(tenant: &str, offset: u64) -> StoredDeadLetter {
    let record = BusRecord {
        kind: RecordKind::Event,
        partition: Partition(3),
        offset,
        key: ContentKey::parse(tenant, "page", &format!("p{offset}")).unwrap().to_bytes(),
        version: Version::from_packed(7).unwrap(),
        at: NOW,
        cluster: ClusterName::from(""),
        publisher_epoch: EpochOrdinal(1),
        headers: vec![("raw".to_owned(), vec![0xff, 0xfe])],
        payload: b"{\"a\":1}".to_vec(),
    };
    let mut dead_letter = exhausted(record, NOW);
    dead_letter.last_failed_at = NOW + i64::try_from(offset).unwrap();
    StoredDeadLetter { dead_letter, state: DeadLetterState::Open, reason: None, replays: 1 }
}

pub(crate) fn with_dead_letters(fixture: Fixture) -> Fixture {
    let mut dead_letters: Vec<_> = (1..=3).map(|n| stored("acme", n)).collect();
    dead_letters.push(stored("umbra", 4));
    dead_letters[2].dead_letter.class = FailureClass::Poison;
    *fixture.dead_letters.stored.lock() = dead_letters;
    fixture
}

fn ids(page: &serde_json::Value) -> Vec<&str> {
    page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_admin_pages_through_the_dead_letters_of_all_tenants() {
    let fixture = with_dead_letters(jwt_fixture());
    let admin = keys::hs256(&keys::claims("acme", "admin"));
    let get = async |uri: &str| fixture.get(uri).bearer(&admin).send().await.ok();
    let page = get("/v1/dead-letters?limit=3").await;
    assert_eq!(ids(&page), ["indexer/3/4", "indexer/3/3", "indexer/3/2"]);
    let first = &page["items"][0];
    assert_eq!(
        (&first["tenant"], &first["type"], &first["content_id"]),
        (&json!("umbra"), &json!("page"), &json!("p4"))
    );
    assert_eq!(
        (&first["state"], &first["class"], &first["attempts"]),
        (&json!("open"), &json!("exhausted"), &json!(4))
    );
    // One replay failed already: the next one comes 25 minutes after it.
    assert_eq!(first["next_replay_at"], "2026-01-01T00:25:00.004Z");
    assert!(
        page["items"][1].get("next_replay_at").is_none(),
        "poison is never replayed automatically"
    );
    let next = page["next_cursor"].as_str().unwrap();
    let rest = get(&format!("/v1/dead-letters?limit=3&cursor={next}")).await;
    assert_eq!(ids(&rest), ["indexer/3/1"]);
    assert_eq!(rest.get("next_cursor"), Some(&serde_json::Value::Null));
    assert_eq!(ids(&get("/v1/dead-letters?class=poison").await), ["indexer/3/3"]);
    assert_eq!(ids(&get("/v1/dead-letters?tenant=umbra").await), ["indexer/3/4"]);
    assert_eq!(ids(&get("/v1/dead-letters?state=discarded").await), Vec::<&str>::new());
    assert_eq!(ids(&get("/v1/dead-letters?group=analytics&state=all").await), Vec::<&str>::new());
    for bad in ["state=shut", "class=x", "group=unknown", "from=yesterday", "limit=501"] {
        let answer = fixture.get(&format!("/v1/dead-letters?{bad}")).bearer(&admin).send().await;
        answer.problem("bad_parameter");
    }
    // A cursor belongs to its tenant.
    let other = keys::hs256(&keys::claims("umbra", "admin"));
    fixture
        .get(&format!("/v1/dead-letters?cursor={next}"))
        .bearer(&other)
        .send()
        .await
        .problem("bad_cursor");
}

#[tokio::test]
async fn a_user_sees_the_dead_letters_of_its_tenant_and_changes_none() {
    let fixture = with_dead_letters(jwt_fixture());
    let user = keys::user("umbra");
    assert_eq!(
        ids(&fixture.get("/v1/dead-letters").bearer(&user).send().await.ok()),
        ["indexer/3/4"]
    );
    fixture.get("/v1/dead-letters?tenant=acme").bearer(&user).send().await.problem("missing_scope");
    fixture.get("/v1/dead-letters/indexer%2F3%2F4").bearer(&user).send().await.ok();
    fixture
        .get("/v1/dead-letters/indexer%2F3%2F1")
        .bearer(&user)
        .send()
        .await
        .problem("dead_letter_not_found");
    for uri in ["/v1/dead-letters:replay", "/v1/dead-letters:discard"] {
        fixture.request("POST", uri).bearer(&user).json("{}").send().await.problem("missing_scope");
    }
    fixture.get("/v1/dead-letters/audit").bearer(&user).send().await.problem("missing_scope");
    fixture.get("/v1/jobs/x").bearer(&user).send().await.problem("missing_scope");
}

#[tokio::test]
async fn a_dead_letter_is_shown_with_its_record_and_that_is_audited() {
    let fixture = with_dead_letters(fixture());
    let whole = fixture.get("/v1/dead-letters/indexer%2F3%2F1").send().await.ok();
    assert_eq!((&whole["payload"]["text"], &whole["offset"]), (&json!("{\"a\":1}"), &json!(1)));
    assert_eq!(whole["headers"], json!([{"name": "raw", "value": {"base64": "//4="}}]));
    fixture.get("/v1/dead-letters/indexer%2F3%2F9").send().await.problem("dead_letter_not_found");
    let log = fixture.get("/v1/dead-letters/audit").send().await.ok();
    assert_eq!(log["items"][0]["action"], "show");
    assert_eq!(log["items"][0]["actor"], "default/anonymous");
}

#[tokio::test]
async fn a_replay_of_everything_needs_confirmation() {
    let fixture = with_dead_letters(fixture());
    let replay = async |body: &str| {
        fixture.request("POST", "/v1/dead-letters:replay").json(body).send().await
    };
    replay("{}").await.problem("confirmation_required");
    replay(r#"{"filter": {"ids": []}}"#).await.problem("confirmation_required");
    replay(r#"{"all": true, "rate": 0}"#).await.problem("rate_out_of_range");
    replay(r#"{"all": true, "rate": 20001}"#).await.problem("rate_out_of_range");
    replay(r#"{"filter": {"group": "unknown"}}"#).await.problem("wrong_type");
    replay(r#"{"filter": {"from": "soon"}}"#).await.problem("bad_time");
    let many = json!({"filter": {"ids": vec!["indexer/3/1"; 501]}}).to_string();
    assert_eq!(replay(&many).await.problem("too_long")["limit"], "filter_ids");
    assert!(fixture.dead_letters.jobs.lock().is_empty(), "no job has started");

    let begun = replay(r#"{"filter": {"tenant": "acme"}, "dry_run": true}"#).await.ok();
    assert_eq!(
        (&begun["dead_letters"], &begun["left"], &begun["rate"]),
        (&json!(3), &json!(3), &json!(500))
    );
    let id = begun["id"].as_str().unwrap();
    assert_eq!(fixture.get(&format!("/v1/jobs/{id}")).send().await.ok(), begun);
    fixture.get("/v1/jobs/none").send().await.problem("dead_letter_not_found");
    assert_eq!(replay(r#"{"all": true}"#).await.ok()["dead_letters"], 4);
    let log = fixture.get("/v1/dead-letters/audit?limit=2").send().await.ok();
    let actions: Vec<_> = log["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| (&a["action"], &a["dead_letters"]))
        .collect();
    assert_eq!(actions, [(&json!("replay"), &json!(4)), (&json!("dry_run"), &json!(3))]);
}

#[tokio::test]
async fn a_discard_needs_a_reason_and_returns_the_number() {
    let fixture = with_dead_letters(fixture());
    let discard = async |body: &str| {
        fixture.request("POST", "/v1/dead-letters:discard").json(body).send().await
    };
    discard(r#"{"all": true, "reason": ""}"#).await.problem("empty");
    discard(r#"{"reason": "why"}"#).await.problem("confirmation_required");
    let one = r#"{"filter": {"ids": ["indexer/3/2"]}, "reason": "test data"}"#;
    assert_eq!(discard(one).await.ok(), json!({"discarded": 1}));
    assert_eq!(discard(one).await.ok(), json!({"discarded": 0}));
    let gone = fixture.get("/v1/dead-letters?state=discarded").send().await.ok();
    assert_eq!(
        (ids(&gone), &gone["items"][0]["reason"]),
        (vec!["indexer/3/2"], &json!("test data"))
    );
    let log = fixture.get("/v1/dead-letters/audit").send().await.ok();
    assert_eq!(log["items"][1]["detail"], "id=indexer/3/2: test data");
}

#[tokio::test]
async fn an_unreachable_store_is_503() {
    let fixture = with_dead_letters(fixture());
    fixture.dead_letters.down.store(true, Ordering::Relaxed);
    for uri in [
        "/v1/dead-letters",
        "/v1/dead-letters/indexer%2F3%2F1",
        "/v1/jobs/x",
        "/v1/dead-letters/audit",
    ] {
        fixture.get(uri).send().await.problem("dead_letters_unavailable");
    }
    fixture
        .request("POST", "/v1/dead-letters:replay")
        .json(r#"{"all": true}"#)
        .send()
        .await
        .problem("dead_letters_unavailable");
}
