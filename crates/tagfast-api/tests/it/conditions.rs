//! Conditions and repeated headers as RFC 9110 has them, and names that no URL can hold.

use serde_json::{Value, json};

use crate::support::{Answer, Fixture, fixture, jwt_fixture, keys};

const TAGS: &str = "/v1/content/a/1/tags";

/// One of the four writes of a content under a condition; each would change something.
async fn write(fixture: &Fixture, number: usize, condition: &[String]) -> Answer {
    let (method, path, body) = [
        ("PUT", format!("{TAGS}/new"), None),
        ("DELETE", format!("{TAGS}/x"), None),
        ("PATCH", TAGS.to_owned(), Some(r#"{"add": ["new"]}"#)),
        ("PUT", TAGS.to_owned(), Some(r#"{"tags": ["new"]}"#)),
    ][number]
        .clone();
    let request = fixture.request(method, &path);
    let request = condition.iter().fold(request, |r, line| r.header("if-match", line));
    match body {
        Some(body) => request.json(body).send().await,
        None => request.send().await,
    }
}

/// What `If-Match` with these lines does to every write of a content of the version `current`.
#[tokio::test]
async fn a_write_happens_only_if_a_strong_entity_tag_matches() {
    for (lines, holds) in [
        (&["\"NOW\""][..], true),
        (&["\"1\", \"NOW\", \"foreign\""], true),
        (&["\"1\"", "W/\"2\", \"NOW\""], true),
        (&["*"], true),
        (&["\"1\""], false),
        (&["W/\"NOW\""], false),
        (&["W/\"NOW\", \"1\"", "W/\"NOW\""], false),
        (&["\"foreign\""], false),
        (&["\"0NOW\""], false),
    ] {
        for number in 0..4 {
            // A content of its own for each write: the first one changes the version.
            let fixture = fixture();
            let current = fixture.tag("a/1", "x").await.header("etag").replace('"', "");
            let lines: Vec<String> = lines.iter().map(|l| l.replace("NOW", &current)).collect();
            let read = lines.iter().fold(fixture.get(TAGS), |r, line| r.header("if-match", line));
            let (read, answer) = (read.send().await, write(&fixture, number, &lines).await);
            if holds {
                read.ok();
                assert_eq!(answer.ok()["changed"], true, "{lines:?}");
            } else {
                read.problem("version_mismatch");
                let problem = answer.problem("version_mismatch");
                assert_eq!(problem["current_version"], current, "{lines:?}");
                let view = fixture.get(TAGS).send().await.ok();
                assert_eq!(view["version"], current, "nothing was written");
            }
        }
    }
}

#[tokio::test]
async fn never_tagged_content_has_a_representation() {
    let fixture = fixture();
    let get = |name: &'static str, value: &'static str| {
        fixture.get("/v1/content/a/never/tags").header(name, value).send()
    };
    assert_eq!(get("if-none-match", "*").await.status, 304);
    assert_eq!(get("if-none-match", "W/\"0\", \"7\"").await.status, 304);
    assert_eq!(get("if-none-match", "\"7\"").await.status, 200);
    assert_eq!(get("if-match", "*").await.status, 200);
    assert_eq!(get("if-match", "\"0\"").await.status, 200);
    get("if-match", "\"7\"").await.problem("version_mismatch");
    get("if-none-match", "7").await.problem("bad_header");
    get("if-none-match", "*, \"7\"").await.problem("bad_header");
}

#[tokio::test]
async fn a_retry_under_a_list_of_entity_tags_gets_its_first_answer() {
    let fixture = fixture();
    let seen = fixture.tag("a/1", "x").await.header("etag").to_owned();
    let put = |list: String| {
        let request = fixture.request("PUT", TAGS).header("idempotency-key", "k");
        request.header("if-match", &list).json(r#"{"tags": ["y"]}"#).send()
    };
    let first = put(format!("\"1\", {seen}")).await.ok();
    let retry = put(format!("{seen}, \"1\"")).await.ok();
    assert_eq!((&retry["version"], &retry["repeated"]), (&first["version"], &json!(true)));
    put(seen).await.problem("idempotency_key_reused");
}

/// One answer of each method and kind of route, with this header twice.
#[tokio::test]
async fn a_header_with_one_value_is_refused_when_it_is_repeated() {
    let fixture = jwt_fixture();
    let token = format!("Bearer {}", keys::user("acme"));
    for (name, value) in [
        ("authorization", token.as_str()),
        ("consistency", "session"),
        ("durability", "local"),
        ("host", "localhost"),
        ("idempotency-key", "k"),
        ("content-type", "application/json"),
    ] {
        for (method, path) in [
            ("GET", TAGS),
            ("PUT", "/v1/content/a/1/tags/x"),
            ("POST", "/v1/content:batchGet"),
            ("GET", "/v1/search?q=x"),
            ("GET", "/healthz"),
            ("GET", "/nowhere"),
        ] {
            let mut request = fixture.request(method, path).header(name, value).header(name, value);
            if name != "authorization" {
                request = request.header("authorization", &token);
            }
            let problem = request.send().await.problem("bad_header");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains(name) && detail.contains("more than once"), "{detail}");
        }
    }
    let twice = fixture.get(TAGS).header("authorization", &token);
    let lists = [("cache-control", "no-cache"), ("accept", "*/*"), ("accept-encoding", "gzip")];
    let twice = lists
        .iter()
        .fold(twice, |request, (name, value)| request.header(name, value).header(name, value));
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let twice = twice.header("traceparent", parent).header("traceparent", parent);
    let answer = twice.header("x-request-id", "a").header("x-request-id", "b").send().await;
    answer.ok();
    assert_eq!(answer.header("x-request-id").len(), 32, "neither of two counts");
}

#[tokio::test]
async fn a_body_in_a_coding_is_refused_with_what_is_accepted() {
    let fixture = fixture();
    let put = |coding: &'static str, body: &'static str| {
        fixture.request("PATCH", TAGS).header("content-encoding", coding).json(body).send()
    };
    for coding in ["gzip", "identity, gzip", "br", "aes128gcm"] {
        let answer = put(coding, r#"{"add": ["x"]}"#).await;
        answer.problem("unsupported_media_type");
        assert_eq!(answer.header("accept-encoding"), "identity");
    }
    put("identity", r#"{"add": ["x"]}"#).await.ok();
    for content_type in ["application/json, text/plain", "application/x, application/y+json"] {
        let answer = fixture.request("PATCH", TAGS).raw(content_type, br#"{"add": ["x"]}"#);
        answer.send().await.problem("unsupported_media_type");
    }
}

#[tokio::test]
async fn calls_without_a_token_ignore_a_query() {
    let fixture = fixture();
    for path in
        ["/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/problems/empty"]
    {
        for query in ["?x=1", "?", "?%ff", "?x=1&x=1"] {
            let answer = fixture.get(&format!("{path}{query}")).send().await;
            assert_eq!(answer.status, 200, "{path}{query}");
        }
    }
    fixture.get("/v1/status?x=1").send().await.problem("unknown_parameter");
}

/// Names that no URL can hold, in every place of every write.
#[tokio::test]
async fn dots_are_refused_for_new_data_and_stay_readable_and_removable() {
    let fixture = fixture();
    // U+2025 is ".." after normalisation.
    for dots in [".", "..", " .. ", "\u{2025}"] {
        let encoded = dots.replace('.', "%2e").replace(' ', "%20").replace('\u{2025}', "%E2%80%A5");
        let one = fixture.tag("a/1", &encoded).await;
        one.problem("dot_segment");
        for (method, body) in [("PATCH", json!({"add": [dots]})), ("PUT", json!({"tags": [dots]}))]
        {
            let answer = fixture.request(method, TAGS).json(&body.to_string()).send().await;
            answer.problem("dot_segment");
        }
        let items = json!({"items": [
            {"type": "a", "id": "1", "add": [dots]}, {"type": "a", "id": "1", "add": ["good"]},
        ]});
        let answer = batch(&fixture, "batchTag", &items).await;
        assert_eq!(answer["results"][0]["problem"]["code"], "dot_segment");
        assert_eq!(answer["results"][1]["ok"], true);
    }
    for (kind, id) in [("a", "."), ("a", ".."), (".", "1"), ("..", "1")] {
        let path = format!("{}/{}", kind.replace('.', "%2E"), id.replace('.', "%2E"));
        fixture.tag(&path, "x").await.problem("dot_segment");
        let items = json!({"items": [{"type": kind, "id": id, "add": ["x"]}]});
        let answer = batch(&fixture, "batchTag", &items).await;
        assert_eq!(answer["results"][0]["problem"]["code"], "dot_segment", "{kind} {id}");
        // Reading and removing.
        let view = fixture.get(&format!("/v1/content/{path}/tags")).send().await.ok();
        assert_eq!(view["content"], json!({"type": kind, "id": id}));
        let gone = fixture.request("DELETE", &format!("/v1/content/{path}/tags/%2e%2e"));
        assert_eq!(gone.send().await.ok()["changed"], false);
        let none = fixture.request("PUT", &format!("/v1/content/{path}/tags"));
        none.json(r#"{"tags": []}"#).send().await.ok();
        let items = json!({"items": [{"type": kind, "id": id, "remove": ["..", "x"]}]});
        assert_eq!(batch(&fixture, "batchTag", &items).await["results"][0]["ok"], true);
        let items = json!({"items": [{"type": kind, "id": id}]});
        assert_eq!(batch(&fixture, "batchGet", &items).await["results"][0]["ok"], true);
    }
    for fine in ["...", ".x", "x..", "a.b"] {
        fixture.tag(&format!("a/{fine}"), fine).await.ok();
    }
}

async fn batch(fixture: &Fixture, call: &str, body: &Value) -> Value {
    let request = fixture.request("POST", &format!("/v1/content:{call}"));
    request.json(&body.to_string()).send().await.ok()
}

#[tokio::test]
async fn several_consistency_tokens_are_merged_into_one() {
    let fixture = fixture();
    let mut tokens = Vec::new();
    for n in 0..3 {
        let written = fixture.tag(&format!("a/{n}"), "x").await;
        tokens.push(written.header("consistency-token").to_owned());
    }
    let path = "/v1/content/a/0/tags";
    let lines = tokens.iter().fold(fixture.get(path), |r, t| r.header("consistency-token", t));
    let lines = lines.send().await;
    lines.ok();
    let listed = fixture.get(path).header("consistency-token", &tokens.join(", ")).send().await;
    listed.ok();
    let merged = lines.header("consistency-token").to_owned();
    assert_eq!(lines.headers.get_all("consistency-token").iter().count(), 1);
    assert!(merged.len() > tokens[2].len(), "it holds all three contents");
    for request in [
        fixture.request("PUT", "/v1/content/a/9/tags/x"),
        fixture.request("POST", "/v1/content:batchGet").json(r#"{"items": []}"#),
        fixture.request("POST", "/v1/content:batchTag").json(r#"{"items": []}"#),
    ] {
        let answer = tokens.iter().fold(request, |r, t| r.header("consistency-token", t));
        let answer = answer.send().await;
        answer.ok();
        assert_eq!(answer.headers.get_all("consistency-token").iter().count(), 1);
        assert!(answer.header("consistency-token").len() >= merged.len());
    }

    let bad = fixture.get(path).header("consistency-token", &format!("{merged}, AAAA"));
    let problem = bad.send().await.problem("bad_token");
    assert!(problem["detail"].as_str().unwrap().contains("token 2 of 2"), "{problem}");
    let many = vec![tokens[0].as_str(); 17].join(",");
    let problem = fixture.get(path).header("consistency-token", &many).send().await;
    let problem = problem.problem("bad_header");
    assert_eq!(
        (&problem["limit"], &problem["allowed"], &problem["given"]),
        (&json!("consistency_tokens"), &json!(16), &json!(17))
    );
}
