//! One content: view, add, remove, patch, replace; entity tags, idempotency, tokens; odd ids.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use crate::support::fixture;

const TAGS: &str = "/v1/content/jira.issue/PROJ-1/tags";

#[tokio::test]
async fn untagged_content_is_an_empty_list() {
    let answer = fixture().get(TAGS).send().await;
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
    let fixture = fixture();
    let added = fixture.tag("jira.issue/PROJ-1", "Needs%20Review").await.ok();
    assert_eq!(added["changed"], true);
    assert_eq!(added["added"], json!(["needs-review"]));
    assert_eq!(added["removed"], json!([]));
    assert!(added.get("repeated").is_none());

    let again = fixture.tag("jira.issue/PROJ-1", "NEEDS-review").await.ok();
    assert_eq!(again["changed"], false);
    assert_eq!(again["version"], added["version"]);

    let view = fixture.get(TAGS).send().await.ok();
    assert_eq!(
        view["tags"],
        json!([{"tag": "needs-review", "display": "Needs Review", "added_by": "anonymous", "added_at": "2026-01-01T00:00:00.000Z"}])
    );
    assert_eq!(view["version"], added["version"]);

    let removed = fixture.request("DELETE", &format!("{TAGS}/needs-review")).send().await.ok();
    assert_eq!(
        (&removed["changed"], &removed["removed"]),
        (&json!(true), &json!(["needs-review"]))
    );
    let gone = fixture.request("DELETE", &format!("{TAGS}/needs-review")).send().await.ok();
    assert_eq!(gone["changed"], false);
}

#[tokio::test]
async fn patch_adds_and_removes_at_once_and_put_replaces() {
    let fixture = fixture();
    fixture.request("PUT", TAGS).json(r#"{"tags": ["b", "a", "A"]}"#).send().await.ok();
    let patched = fixture
        .request("PATCH", TAGS)
        .json(r#"{"add": ["c"], "remove": ["a", "zz"]}"#)
        .send()
        .await
        .ok();
    assert_eq!((&patched["added"], &patched["removed"]), (&json!(["c"]), &json!(["a"])));
    let replaced = fixture.request("PUT", TAGS).json(r#"{"tags": ["c", "d"]}"#).send().await.ok();
    assert_eq!((&replaced["added"], &replaced["removed"]), (&json!(["d"]), &json!(["b"])));
    let names: Vec<_> = fixture.get(TAGS).send().await.ok()["tags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["tag"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["c", "d"]);
    let emptied = fixture.request("PUT", TAGS).json(r#"{"tags": []}"#).send().await.ok();
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
        "...",
        "a%20b",
        ";:@&=$!*'()",
    ];
    for text in odd {
        let fixture = fixture();
        let encoded = utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let added = fixture.tag(&format!("wiki.page/{encoded}"), &encoded).await;
        let body = added.ok();
        assert_eq!(body["content"]["id"], text);
        let view = fixture.get(&format!("/v1/content/wiki.page/{encoded}/tags")).send().await.ok();
        assert_eq!(view["content"]["id"], text);
        assert_eq!(view["tags"][0]["display"], text);
        let one = fixture.get(&format!("/v1/tags/{encoded}")).send().await.ok();
        assert_eq!(one["count"], 1, "{text}");
        let line = fixture.get("/v1/export").send().await;
        let line: serde_json::Value = serde_json::from_slice(&line.body).unwrap();
        assert_eq!(
            (line["id"].as_str(), line["tags"][0]["tag"].as_str()),
            (Some(text), Some(text))
        );
    }
    // A plus sign that is not encoded stays a plus sign in a path.
    let fixture = fixture();
    assert_eq!(fixture.tag("a/b+c", "c++").await.ok()["content"]["id"], "b+c");
}

#[tokio::test]
async fn a_bad_encoding_is_a_problem() {
    let fixture = fixture();
    for path in [
        "/v1/content/a/%zz/tags",
        "/v1/content/a/%ff/tags",
        "/v1/content/a/%/tags",
        "/v1/content/%C3/b/tags",
    ] {
        fixture.get(path).send().await.problem("bad_encoding");
    }
    fixture.tag("a/b", "%E2%82").await.problem("bad_encoding");
    fixture.get("/v1/tags/%").send().await.problem("bad_encoding");
    fixture.get("/v1/receipts/%ff").send().await.problem("bad_encoding");
    fixture.get("/v1/search?q=%ff").send().await.problem("bad_encoding");
}

#[tokio::test]
async fn entity_tags_spare_the_body_and_guard_the_write() {
    let fixture = fixture();
    let first = fixture.tag("jira.issue/PROJ-1", "a").await;
    let tag = first.header("etag").to_owned();
    assert_eq!(tag, format!("\"{}\"", first.json()["version"].as_str().unwrap()));

    let same = fixture.get(TAGS).header("if-none-match", &tag).send().await;
    assert_eq!(
        (same.status.as_u16(), same.body.len(), same.header("etag")),
        (304, 0, tag.as_str())
    );
    assert!(!same.header("consistency-token").is_empty(), "a 304 is an answer too");
    let weak = fixture.get(TAGS).header("if-none-match", &format!("\"1\", W/{tag}")).send().await;
    assert_eq!(weak.status, 304);

    let replace = async |tags: &str| {
        fixture.request("PUT", TAGS).header("if-match", &tag).json(tags).send().await
    };
    let replaced = replace(r#"{"tags": ["b"]}"#).await;
    let newer = replaced.ok()["version"].clone();
    let stale = replace(r#"{"tags": ["c"]}"#).await;
    let problem = stale.problem("version_mismatch");
    assert_eq!(problem["current_version"], newer);
    assert_eq!(fixture.get(TAGS).header("if-none-match", &tag).send().await.status, 200);

    let never = fixture
        .request("PUT", "/v1/content/a/b/tags")
        .header("if-match", "\"0\"")
        .json(r#"{"tags": ["c"]}"#);
    never.send().await.ok();
    let any = fixture
        .request("PUT", TAGS)
        .header("if-match", "*")
        .json(r#"{"tags": ["c"]}"#)
        .send()
        .await;
    any.ok();
    for bad in ["x", "\"1", "*, \"1\"", ""] {
        let refused = fixture
            .request("PUT", TAGS)
            .header("if-match", bad)
            .json(r#"{"tags": []}"#)
            .send()
            .await;
        refused.problem("bad_header");
    }
    let unless = fixture
        .request("PUT", TAGS)
        .header("if-none-match", "*")
        .json(r#"{"tags": []}"#)
        .send()
        .await;
    unless.problem("bad_header");
}

#[tokio::test]
async fn an_idempotency_key_makes_a_retry_harmless() {
    let fixture = fixture();
    let put = |tag: &str, key: &str| {
        let uri = format!("{TAGS}/{tag}");
        let (fixture, key) = (&fixture, key.to_owned());
        async move { fixture.request("PUT", &uri).header("idempotency-key", &key).send().await }
    };
    let first = put("a", "k1").await.ok();
    fixture.request("DELETE", &format!("{TAGS}/a")).send().await.ok();
    let retry = put("a", "k1").await.ok();
    assert_eq!(retry["version"], first["version"]);
    assert_eq!((&retry["changed"], &retry["repeated"]), (&json!(true), &json!(true)));
    assert_eq!(
        fixture.get(TAGS).send().await.ok()["tags"],
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
    let fixture = fixture();
    let written = fixture.tag("a/1", "x").await;
    let token = written.header("consistency-token").to_owned();
    let read = fixture.get("/v1/content/a/2/tags").header("consistency-token", &token).send().await;
    read.ok();
    assert!(read.header("consistency-token").len() > token.len(), "it holds both contents");
    for bad in ["x", "AAAA", &format!("{token}A"), &"A".repeat(5000)] {
        fixture.get(TAGS).header("consistency-token", bad).send().await.problem("bad_token");
        fixture
            .request("PUT", &format!("{TAGS}/x"))
            .header("consistency-token", bad)
            .send()
            .await
            .problem("bad_token");
    }
    for good in ["eventual", "session", "strong"] {
        fixture.get(TAGS).header("consistency", good).send().await.ok();
    }
    fixture.get(TAGS).header("consistency", "linearizable").send().await.problem("bad_header");
}

#[tokio::test]
async fn durability_reaches_the_store() {
    let fixture = fixture();
    let ask =
        |value: &str| fixture.request("PUT", &format!("{TAGS}/a")).header("durability", value);
    ask("local").send().await.ok();
    ask("replicated").send().await.problem("not_in_this_mode");
    ask("forever").send().await.problem("bad_header");
}

#[tokio::test]
async fn the_trace_and_the_deadline_reach_the_store() {
    let fixture = fixture();
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    fixture.request("PUT", &format!("{TAGS}/a")).header("traceparent", parent).send().await.ok();
    let last = fixture.store.faults().last_write().unwrap();
    assert_eq!(last.traceparent.as_deref(), Some(parent));
    assert!(last.deadline.is_some());
    assert_eq!(last.write.user.as_str(), "anonymous");

    let refused = fixture
        .get("/v1/search?x=1")
        .header("traceparent", parent)
        .send()
        .await
        .problem("unknown_parameter");
    assert_eq!(refused["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
}

#[tokio::test]
async fn request_ids_are_echoed_when_sane() {
    let fixture = fixture();
    let echoed = fixture.get(TAGS).header("x-request-id", "req-1.a:b_c").send().await;
    assert_eq!(echoed.header("x-request-id"), "req-1.a:b_c");
    let refused = fixture.get("/nowhere").header("x-request-id", "req-2").send().await;
    assert_eq!(refused.problem("not_found")["trace_id"], "req-2");
    let long = "x".repeat(65);
    for odd in ["<script>", long.as_str(), "a b"] {
        let made = fixture.get(TAGS).header("x-request-id", odd).send().await;
        assert_eq!(made.header("x-request-id").len(), 32);
    }
    let (a, b) = (fixture.get(TAGS).send().await, fixture.get(TAGS).send().await);
    assert_ne!(a.header("x-request-id"), b.header("x-request-id"));
}

#[tokio::test]
async fn head_answers_like_get_without_a_body() {
    let fixture = fixture();
    let head = fixture.request("HEAD", TAGS).send().await;
    assert_eq!((head.status.as_u16(), head.body.len(), head.header("etag")), (200, 0, "\"0\""));
}
