//! Dead letters: listed, shown, replayed, discarded; each tenant's own, and everything remembered.

use serde_json::json;
use std::sync::atomic::Ordering;
use tagfast_domain::{ContentKey, EpochOrdinal, Version};
use tagfast_events::conformance::letters::exhausted;
use tagfast_events::{
    BusRecord, ClusterName, LetterClass, LetterState, Partition, RecordKind, StoredLetter,
};

use crate::support::{NOW, World, jwt_world, keys, world};

fn stored(tenant: &str, offset: u64) -> StoredLetter {
    let record = BusRecord {
        kind: RecordKind::Event,
        partition: Partition(3),
        offset,
        key: ContentKey::parse(tenant, "page", &format!("p{offset}")).unwrap().to_bytes(),
        version: Version::from_packed(7).unwrap(),
        at: NOW,
        cluster: ClusterName::from(""),
        emit: EpochOrdinal(1),
        headers: vec![("raw".to_owned(), vec![0xff, 0xfe])],
        payload: b"{\"a\":1}".to_vec(),
    };
    let mut letter = exhausted(record, NOW);
    letter.last_failed_at = NOW + i64::try_from(offset).unwrap();
    StoredLetter { letter, state: LetterState::Open, reason: None, replays: 1 }
}

pub(crate) fn with_letters(world: World) -> World {
    let mut letters: Vec<_> = (1..=3).map(|n| stored("acme", n)).collect();
    letters.push(stored("umbra", 4));
    letters[2].letter.class = LetterClass::Poison;
    *world.letters.letters.lock().unwrap() = letters;
    world
}

fn ids(page: &serde_json::Value) -> Vec<&str> {
    page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_admin_pages_through_everybodys_letters() {
    let world = with_letters(jwt_world());
    let admin = keys::hs256(&keys::claims("acme", "admin"));
    let get = async |uri: &str| world.get(uri).bearer(&admin).send().await.ok();
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
    assert!(page["items"][1].get("next_replay_at").is_none(), "poison is not replayed by itself");
    let next = page["next_cursor"].as_str().unwrap();
    let rest = get(&format!("/v1/dead-letters?limit=3&cursor={next}")).await;
    assert_eq!(ids(&rest), ["indexer/3/1"]);
    assert!(rest.get("next_cursor").is_none());
    assert_eq!(ids(&get("/v1/dead-letters?class=poison").await), ["indexer/3/3"]);
    assert_eq!(ids(&get("/v1/dead-letters?tenant=umbra").await), ["indexer/3/4"]);
    assert_eq!(ids(&get("/v1/dead-letters?state=discarded").await), Vec::<&str>::new());
    assert_eq!(ids(&get("/v1/dead-letters?group=analytics&state=all").await), Vec::<&str>::new());
    for bad in ["state=shut", "class=x", "group=nobody", "from=yesterday", "limit=501"] {
        let answer = world.get(&format!("/v1/dead-letters?{bad}")).bearer(&admin).send().await;
        answer.problem("bad_parameter");
    }
    // A cursor belongs to its tenant.
    let other = keys::hs256(&keys::claims("umbra", "admin"));
    world
        .get(&format!("/v1/dead-letters?cursor={next}"))
        .bearer(&other)
        .send()
        .await
        .problem("bad_cursor");
}

#[tokio::test]
async fn without_admin_only_the_own_letters_are_seen_and_none_is_changed() {
    let world = with_letters(jwt_world());
    let user = keys::user("umbra");
    assert_eq!(
        ids(&world.get("/v1/dead-letters").bearer(&user).send().await.ok()),
        ["indexer/3/4"]
    );
    world.get("/v1/dead-letters?tenant=acme").bearer(&user).send().await.problem("missing_scope");
    world.get("/v1/dead-letters/indexer%2F3%2F4").bearer(&user).send().await.ok();
    world
        .get("/v1/dead-letters/indexer%2F3%2F1")
        .bearer(&user)
        .send()
        .await
        .problem("unknown_letter");
    for uri in ["/v1/dead-letters:replay", "/v1/dead-letters:discard"] {
        world.ask("POST", uri).bearer(&user).json("{}").send().await.problem("missing_scope");
    }
    world.get("/v1/dead-letter-acts").bearer(&user).send().await.problem("missing_scope");
    world.get("/v1/dead-letter-jobs/x").bearer(&user).send().await.problem("missing_scope");
}

#[tokio::test]
async fn a_letter_is_shown_whole_and_that_is_remembered() {
    let world = with_letters(world());
    let whole = world.get("/v1/dead-letters/indexer%2F3%2F1").send().await.ok();
    assert_eq!((&whole["payload"]["text"], &whole["offset"]), (&json!("{\"a\":1}"), &json!(1)));
    assert_eq!(whole["headers"], json!([{"name": "raw", "value": {"base64": "//4="}}]));
    world.get("/v1/dead-letters/indexer%2F3%2F9").send().await.problem("unknown_letter");
    let acts = world.get("/v1/dead-letter-acts").send().await.ok();
    assert_eq!(acts["items"][0]["action"], "show");
    assert_eq!(acts["items"][0]["by"], "default/anonymous");
}

#[tokio::test]
async fn a_replay_of_everything_must_be_meant() {
    let world = with_letters(world());
    let replay =
        async |body: &str| world.ask("POST", "/v1/dead-letters:replay").json(body).send().await;
    replay("{}").await.problem("all_not_meant");
    replay(r#"{"filter": {"ids": []}}"#).await.problem("all_not_meant");
    replay(r#"{"all": true, "rate": 0}"#).await.problem("rate_out_of_range");
    replay(r#"{"all": true, "rate": 20001}"#).await.problem("rate_out_of_range");
    replay(r#"{"filter": {"group": "nobody"}}"#).await.problem("wrong_type");
    replay(r#"{"filter": {"from": "soon"}}"#).await.problem("bad_time");
    let many = json!({"filter": {"ids": vec!["indexer/3/1"; 501]}}).to_string();
    assert_eq!(replay(&many).await.problem("too_long")["limit"], "filter_ids");
    assert!(world.letters.jobs.lock().unwrap().is_empty(), "nothing has begun");

    let begun = replay(r#"{"filter": {"tenant": "acme"}, "dry_run": true}"#).await.ok();
    assert_eq!(
        (&begun["letters"], &begun["left"], &begun["rate"]),
        (&json!(3), &json!(3), &json!(500))
    );
    let id = begun["id"].as_str().unwrap();
    assert_eq!(world.get(&format!("/v1/dead-letter-jobs/{id}")).send().await.ok(), begun);
    world.get("/v1/dead-letter-jobs/none").send().await.problem("unknown_letter");
    assert_eq!(replay(r#"{"all": true}"#).await.ok()["letters"], 4);
    let acts = world.get("/v1/dead-letter-acts?limit=2").send().await.ok();
    let said: Vec<_> =
        acts["items"].as_array().unwrap().iter().map(|a| (&a["action"], &a["letters"])).collect();
    assert_eq!(said, [(&json!("replay"), &json!(4)), (&json!("dry_run"), &json!(3))]);
}

#[tokio::test]
async fn discarding_needs_a_reason_and_says_how_many() {
    let world = with_letters(world());
    let discard =
        async |body: &str| world.ask("POST", "/v1/dead-letters:discard").json(body).send().await;
    discard(r#"{"all": true, "reason": ""}"#).await.problem("empty");
    discard(r#"{"reason": "why"}"#).await.problem("all_not_meant");
    let one = r#"{"filter": {"ids": ["indexer/3/2"]}, "reason": "test data"}"#;
    assert_eq!(discard(one).await.ok(), json!({"discarded": 1}));
    assert_eq!(discard(one).await.ok(), json!({"discarded": 0}));
    let gone = world.get("/v1/dead-letters?state=discarded").send().await.ok();
    assert_eq!(
        (ids(&gone), &gone["items"][0]["reason"]),
        (vec!["indexer/3/2"], &json!("test data"))
    );
    let acts = world.get("/v1/dead-letter-acts").send().await.ok();
    assert_eq!(acts["items"][1]["detail"], "id=indexer/3/2: test data");
}

#[tokio::test]
async fn a_book_that_cannot_be_reached_is_said() {
    let world = with_letters(world());
    world.letters.down.store(true, Ordering::Relaxed);
    for uri in [
        "/v1/dead-letters",
        "/v1/dead-letters/indexer%2F3%2F1",
        "/v1/dead-letter-jobs/x",
        "/v1/dead-letter-acts",
    ] {
        world.get(uri).send().await.problem("letters_unavailable");
    }
    world
        .ask("POST", "/v1/dead-letters:replay")
        .json(r#"{"all": true}"#)
        .send()
        .await
        .problem("letters_unavailable");
}
