//! One content: view, add, remove, patch, replace; entity tags, idempotency, tokens; odd ids.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use crate::support::world;

const TAGS: &str = "/v1/content/jira.issue/PROJ-1/tags";

#[tokio::test]
async fn untagged_content_is_an_empty_list() {
    let answer = world().get(TAGS).send().await;
    assert_eq!(
        answer.ok(),
        json!({
            "content": {"type": "jira.issue", "id": "PROJ-1"}, "tags": [], "version": "0",
            "meta": {"source": "primary", "as_of": "2026-01-01T00:00:00.000Z", "age_ms": 0, "stale": false, "degraded": []}
        })
    );
    assert_eq!(answer.header("etag"), "\"0\"");
    assert_eq!(answer.header("age"), "0");
    assert_eq!(answer.header("cache-status"), "tagfast; fwd=bypass");
    assert_eq!(answer.header("content-type"), "application/json");
}

#[tokio::test]
async fn a_tag_is_added_once_seen_at_once_and_removed() {
    let world = world();
    let added = world.tag("jira.issue/PROJ-1", "Needs%20Review").await.ok();
    assert_eq!(added["changed"], true);
    assert_eq!(added["added"], json!(["needs-review"]));
    assert_eq!(added["removed"], json!([]));
    assert!(added.get("repeated").is_none());

    let again = world.tag("jira.issue/PROJ-1", "NEEDS-review").await.ok();
    assert_eq!(again["changed"], false);
    assert_eq!(again["version"], added["version"]);

    let view = world.get(TAGS).send().await.ok();
    assert_eq!(
        view["tags"],
        json!([{"tag": "needs-review", "display": "Needs Review", "added_by": "anonymous", "added_at": "2026-01-01T00:00:00.000Z"}])
    );
    assert_eq!(view["version"], added["version"]);

    let removed = world.ask("DELETE", &format!("{TAGS}/needs-review")).send().await.ok();
    assert_eq!(
        (&removed["changed"], &removed["removed"]),
        (&json!(true), &json!(["needs-review"]))
    );
    let gone = world.ask("DELETE", &format!("{TAGS}/needs-review")).send().await.ok();
    assert_eq!(gone["changed"], false);
}

#[tokio::test]
async fn patch_adds_and_removes_at_once_and_put_replaces() {
    let world = world();
    world.ask("PUT", TAGS).json(r#"{"tags": ["b", "a", "A"]}"#).send().await.ok();
    let patched =
        world.ask("PATCH", TAGS).json(r#"{"add": ["c"], "remove": ["a", "zz"]}"#).send().await.ok();
    assert_eq!((&patched["added"], &patched["removed"]), (&json!(["c"]), &json!(["a"])));
    let replaced = world.ask("PUT", TAGS).json(r#"{"tags": ["c", "d"]}"#).send().await.ok();
    assert_eq!((&replaced["added"], &replaced["removed"]), (&json!(["d"]), &json!(["b"])));
    let names: Vec<_> = world.get(TAGS).send().await.ok()["tags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["tag"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["c", "d"]);
    let emptied = world.ask("PUT", TAGS).json(r#"{"tags": []}"#).send().await.ok();
    assert_eq!(emptied["removed"], json!(["c", "d"]));
}

#[tokio::test]
async fn odd_ids_and_tags_survive_the_url() {
    let odd = [
        "a/b",
        "a+b",
        "100%",
        "%2F",
        "implemented-in::c++",
        "日本語",
        "🎉👩‍👩‍👧",
        "שלום عالم",
        "a b",
        "?x=1&y#z",
        "..",
        "a%20b",
        ";:@&=$!*'()",
    ];
    for text in odd {
        let world = world();
        let encoded = utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let added = world.tag(&format!("wiki.page/{encoded}"), &encoded).await;
        let body = added.ok();
        assert_eq!(body["content"]["id"], text);
        let view = world.get(&format!("/v1/content/wiki.page/{encoded}/tags")).send().await.ok();
        assert_eq!(view["content"]["id"], text);
        assert_eq!(view["tags"][0]["display"], text);
        let one = world.get(&format!("/v1/tags/{encoded}")).send().await.ok();
        assert_eq!(one["count"], 1, "{text}");
        let line = world.get("/v1/export").send().await;
        let line: serde_json::Value = serde_json::from_slice(&line.body).unwrap();
        assert_eq!(
            (line["id"].as_str(), line["tags"][0]["tag"].as_str()),
            (Some(text), Some(text))
        );
    }
    // A plus sign that is not encoded stays a plus sign in a path.
    let world = world();
    assert_eq!(world.tag("a/b+c", "c++").await.ok()["content"]["id"], "b+c");
}

#[tokio::test]
async fn a_bad_encoding_is_a_problem() {
    let world = world();
    for path in [
        "/v1/content/a/%zz/tags",
        "/v1/content/a/%ff/tags",
        "/v1/content/a/%/tags",
        "/v1/content/%C3/b/tags",
    ] {
        world.get(path).send().await.problem("bad_encoding");
    }
    world.tag("a/b", "%E2%82").await.problem("bad_encoding");
    world.get("/v1/tags/%").send().await.problem("bad_encoding");
    world.get("/v1/receipts/%ff").send().await.problem("bad_encoding");
    world.get("/v1/search?q=%ff").send().await.problem("bad_encoding");
}

#[tokio::test]
async fn entity_tags_spare_the_body_and_guard_the_write() {
    let world = world();
    let first = world.tag("jira.issue/PROJ-1", "a").await;
    let tag = first.header("etag").to_owned();
    assert_eq!(tag, format!("\"{}\"", first.json()["version"].as_str().unwrap()));

    let same = world.get(TAGS).header("if-none-match", &tag).send().await;
    assert_eq!(
        (same.status.as_u16(), same.body.len(), same.header("etag")),
        (304, 0, tag.as_str())
    );
    assert!(!same.header("consistency-token").is_empty(), "a 304 is an answer too");
    let weak = world.get(TAGS).header("if-none-match", &format!("\"1\", W/{tag}")).send().await;
    assert_eq!(weak.status, 304);

    let replaced =
        world.ask("PUT", TAGS).header("if-match", &tag).json(r#"{"tags": ["b"]}"#).send().await;
    let newer = replaced.ok()["version"].clone();
    let stale =
        world.ask("PUT", TAGS).header("if-match", &tag).json(r#"{"tags": ["c"]}"#).send().await;
    let problem = stale.problem("version_mismatch");
    assert_eq!(problem["current_version"], newer);
    assert_eq!(world.get(TAGS).header("if-none-match", &tag).send().await.status, 200);

    let never = world
        .ask("PUT", "/v1/content/a/b/tags")
        .header("if-match", "\"0\"")
        .json(r#"{"tags": ["c"]}"#);
    never.send().await.ok();
    let any =
        world.ask("PUT", TAGS).header("if-match", "*").json(r#"{"tags": ["c"]}"#).send().await;
    any.ok();
    for bad in ["W/\"1\"", "x", "\"1\", \"2\""] {
        let refused =
            world.ask("PUT", TAGS).header("if-match", bad).json(r#"{"tags": []}"#).send().await;
        refused.problem("bad_header");
    }
    let unless =
        world.ask("PUT", TAGS).header("if-none-match", "*").json(r#"{"tags": []}"#).send().await;
    unless.problem("bad_header");
}

#[tokio::test]
async fn an_idempotency_key_makes_a_retry_harmless() {
    let world = world();
    let put = |tag: &str, key: &str| {
        let uri = format!("{TAGS}/{tag}");
        let (world, key) = (&world, key.to_owned());
        async move { world.ask("PUT", &uri).header("idempotency-key", &key).send().await }
    };
    let first = put("a", "k1").await.ok();
    world.ask("DELETE", &format!("{TAGS}/a")).send().await.ok();
    let retry = put("a", "k1").await.ok();
    assert_eq!(retry["version"], first["version"]);
    assert_eq!((&retry["changed"], &retry["repeated"]), (&json!(true), &json!(true)));
    assert_eq!(
        world.get(TAGS).send().await.ok()["tags"],
        json!([]),
        "the retry did not add it again"
    );

    put("b", "k1").await.problem("idempotency_key_reused");
    assert_eq!(put("a", &"k".repeat(255)).await.status, 200);
    let long = put("a", &"k".repeat(256)).await.problem("bad_header");
    assert_eq!(
        (&long["limit"], &long["allowed"], &long["given"]),
        (&json!("idempotency_key_bytes"), &json!(255), &json!(256))
    );
    put("a", "has blank").await.problem("bad_header");
    put("a", "").await.problem("bad_header");
}

#[tokio::test]
async fn tokens_grow_with_what_a_client_sees_and_are_checked() {
    let world = world();
    let written = world.tag("a/1", "x").await;
    let token = written.header("consistency-token").to_owned();
    let read = world.get("/v1/content/a/2/tags").header("consistency-token", &token).send().await;
    read.ok();
    assert!(read.header("consistency-token").len() > token.len(), "it holds both contents");
    for bad in ["x", "AAAA", &format!("{token}A"), &"A".repeat(5000)] {
        world.get(TAGS).header("consistency-token", bad).send().await.problem("bad_token");
        world
            .ask("PUT", &format!("{TAGS}/x"))
            .header("consistency-token", bad)
            .send()
            .await
            .problem("bad_token");
    }
    for good in ["eventual", "session", "strong"] {
        world.get(TAGS).header("consistency", good).send().await.ok();
    }
    world.get(TAGS).header("consistency", "linearizable").send().await.problem("bad_header");
}

#[tokio::test]
async fn durability_is_told_to_the_store() {
    let world = world();
    let ask = |value: &str| world.ask("PUT", &format!("{TAGS}/a")).header("durability", value);
    ask("local").send().await.ok();
    ask("replicated").send().await.problem("not_in_this_mode");
    ask("forever").send().await.problem("bad_header");
}

#[tokio::test]
async fn the_trace_and_the_deadline_reach_the_store() {
    let world = world();
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    world.ask("PUT", &format!("{TAGS}/a")).header("traceparent", parent).send().await.ok();
    let last = world.store.last.lock().unwrap().clone().unwrap();
    assert_eq!(last.traceparent.as_deref(), Some(parent));
    assert!(last.deadline.is_some());
    assert_eq!(last.write.user.as_str(), "anonymous");

    let refused = world
        .get("/v1/search?x=1")
        .header("traceparent", parent)
        .send()
        .await
        .problem("unknown_parameter");
    assert_eq!(refused["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
}

#[tokio::test]
async fn request_ids_are_echoed_when_sane() {
    let world = world();
    let echoed = world.get(TAGS).header("x-request-id", "req-1.a:b_c").send().await;
    assert_eq!(echoed.header("x-request-id"), "req-1.a:b_c");
    let refused = world.get("/nowhere").header("x-request-id", "req-2").send().await;
    assert_eq!(refused.problem("not_found")["trace_id"], "req-2");
    let long = "x".repeat(65);
    for odd in ["<script>", long.as_str(), "a b"] {
        let made = world.get(TAGS).header("x-request-id", odd).send().await;
        assert_eq!(made.header("x-request-id").len(), 32);
    }
    let (a, b) = (world.get(TAGS).send().await, world.get(TAGS).send().await);
    assert_ne!(a.header("x-request-id"), b.header("x-request-id"));
}

#[tokio::test]
async fn head_answers_like_get_without_a_body() {
    let world = world();
    let head = world.ask("HEAD", TAGS).send().await;
    assert_eq!((head.status.as_u16(), head.body.len(), head.header("etag")), (200, 0, "\"0\""));
}

#[tokio::test]
async fn a_receipt_tells_the_verdict() {
    let world = world();
    let receipt = world.tag("a/1", "x").await.ok()["receipt"].as_str().unwrap().to_owned();
    let verdict = world.get(&format!("/v1/receipts/{receipt}")).send().await.ok();
    assert_eq!(verdict["verdict"], "kept");
    assert!(verdict.get("reason").is_none());
    assert_eq!(verdict["epoch"], "09".repeat(16));
    for bad in ["x", "AAAA", &format!("{receipt}A")] {
        world.get(&format!("/v1/receipts/{bad}")).send().await.problem("bad_token");
    }
    let consistency = world.tag("a/1", "y").await.header("consistency-token").to_owned();
    world.get(&format!("/v1/receipts/{consistency}")).send().await.problem("bad_token");
}
