//! The OpenAPI document against its golden file, and against what the routes do.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{Fixture, fixture};

fn document() -> Value {
    serde_json::to_value(tagfast_api::openapi()).unwrap()
}

#[test]
fn the_document_is_the_golden_file() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/openapi.json");
    let made = format!("{}\n", serde_json::to_string_pretty(&document()).unwrap());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert!(
        made == golden,
        "the API changed: look at the difference, then run with UPDATE_GOLDEN=1"
    );
}

/// Every operation: (method, path, description).
fn operations(api: &Value) -> Vec<(String, String, Value)> {
    let mut all = Vec::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            all.push((method.to_uppercase(), path.clone(), operation.clone()));
        }
    }
    all
}

#[test]
fn every_operation_documents_the_common_problems() {
    let api = document();
    let all = operations(&api);
    assert_eq!(all.len(), 37);
    for (method, path, operation) in all {
        let responses = operation["responses"].as_object().unwrap();
        for status in ["400", "404", "405", "408", "414", "422", "500", "503", "504"] {
            assert!(responses.contains_key(status), "{method} {path} lacks {status}");
        }
        for (status, response) in responses {
            if status.starts_with(['4', '5']) && path != "/readyz" {
                assert!(
                    response["content"]["application/problem+json"].is_object(),
                    "{method} {path} {status}"
                );
            }
        }
        assert!(
            operation["summary"].as_str().is_some_and(|s| !s.is_empty()),
            "{method} {path} has no summary"
        );
        for part in path.split('/').filter(|p| p.starts_with('{')) {
            let name = part.trim_matches(['{', '}']);
            let documented = operation["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .any(|p| p["name"] == name && p["in"] == "path");
            assert!(documented, "{method} {path} lacks {name}");
        }
    }
}

#[test]
fn request_bodies_refuse_unknown_fields() {
    let api = document();
    for name in [
        "BatchGet",
        "ContentItem",
        "BatchTag",
        "TagItem",
        "ImportedTag",
        "PatchTags",
        "ReplaceTags",
        "Recount",
        "ReplayDeadLetters",
        "DiscardDeadLetters",
        "DeadLetterFilter",
        "AllowStorm",
        "ForceBreaker",
        "CheckReceipts",
    ] {
        assert_eq!(api["components"]["schemas"][name]["additionalProperties"], false, "{name}");
    }
}

/// Resolves what a schema says, far enough to check an answer: types, words, constants, required
/// fields, items, alternatives.
fn check(api: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next()) {
        let target = &api["components"]["schemas"][name];
        assert!(target.is_object(), "{at}: schema {name} is not there");
        return check(api, target, value, at);
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        check(api, part, value, at);
    }
    if let Some(options) = schema["oneOf"].as_array() {
        let fits = |option: &&Value| {
            let target = option["$ref"].as_str().and_then(|r| r.rsplit('/').next());
            let option = target.map_or(*option, |name| &api["components"]["schemas"][name]);
            let parts = option["allOf"].as_array().map_or(vec![option], |all| all.iter().collect());
            value.is_null() == (option["type"] == "null")
                && parts
                    .iter()
                    .flat_map(|p| p["required"].as_array().into_iter().flatten())
                    .all(|name| value.get(name.as_str().unwrap()).is_some())
                && parts.iter().flat_map(|p| p["properties"].as_object()).flatten().all(
                    |(name, field)| field.get("const").is_none_or(|c| value.get(name) == Some(c)),
                )
        };
        let option = options
            .iter()
            .find(fits)
            .unwrap_or_else(|| panic!("{at}: no alternative fits {value}"));
        check(api, option, value, at);
        return;
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let allowed: Vec<&str> = match schema["type"].as_array() {
        Some(many) => many.iter().filter_map(Value::as_str).collect(),
        None => vec![schema["type"].as_str().unwrap_or(kind)],
    };
    assert!(allowed.contains(&kind), "{at}: {kind} is not one of {allowed:?}");
    if let Some(words) = schema["enum"].as_array() {
        assert!(words.contains(value), "{at}: {value} is not one of {words:?}");
    }
    assert!(
        schema.get("const").is_none_or(|constant| constant == value),
        "{at}: {value} is not {}",
        schema["const"]
    );
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(value.get(name.as_str().unwrap()).is_some(), "{at}: lacks {name}: {value}");
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(inner) = value.get(name) {
            check(api, property, inner, &format!("{at}.{name}"));
        }
    }
    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
        check(api, &schema["items"], item, &format!("{at}[{n}]"));
    }
}

async fn conforms(
    fixture: &Fixture,
    api: &Value,
    method: &str,
    path: &str,
    uri: &str,
    body: Option<&str>,
) {
    let ask = fixture.request(method, uri);
    let answer = match body {
        Some(body) => ask.json(body).send().await,
        None => ask.send().await,
    };
    let operation = &api["paths"][path][method.to_lowercase()];
    let response = &operation["responses"][answer.status.as_str()];
    assert!(response.is_object(), "{method} {path}: {} is not documented", answer.status);
    let media = answer.header("content-type").split(';').next().unwrap();
    if answer.body.is_empty() {
        return;
    }
    let content = &response["content"][media];
    assert!(content.is_object(), "{method} {path} {}: {media} is not documented", answer.status);
    if media.ends_with("json") && media != "application/x-ndjson" {
        check(
            api,
            &content["schema"],
            &answer.json(),
            &format!("{method} {path} {}", answer.status),
        );
    }
}

#[tokio::test]
async fn answers_are_what_the_document_says() {
    let api = document();
    let fixture = crate::dead_letters::with_dead_letters(fixture());
    fixture.breakers.make("index", tagfast_resilience::BreakerOptions::default());
    fixture.failovers.fill();
    let receipt = fixture.tag("a/1", "x").await.ok()["receipt"].as_str().unwrap().to_owned();
    fixture.tag("a/2", "x").await.ok();
    fixture.tag("a/2", "y").await.ok();
    let batch = json!({"items": [{"type": "a", "id": "1"}, {"type": "A", "id": "1"}]}).to_string();
    let writes =
        json!({"items": [{"type": "a", "id": "1", "add": ["z", {"tag": "w", "by": "g"}]}, {"type": "a", "id": "1"}]})
            .to_string();
    let one = "/v1/content/{type}/{id}/tags/{tag}";
    let all = "/v1/content/{type}/{id}/tags";
    let receipts = format!("/v1/receipts/{receipt}");
    let check = json!({"receipts": [receipt, "x"]}).to_string();
    let failover = "/v1/failovers/02020202020202020202020202020202";
    let failover_writes = format!("{failover}/writes");
    let calls: Vec<(&str, &str, &str, Option<&str>)> = vec![
        ("GET", all, "/v1/content/a/1/tags", None),
        ("GET", all, "/v1/content/A/1/tags", None),
        ("PUT", one, "/v1/content/a/1/tags/q", None),
        ("PUT", one, "/v1/content/a/1/tags/%3C", None),
        ("DELETE", one, "/v1/content/a/1/tags/q", None),
        ("PATCH", all, "/v1/content/a/1/tags", Some(r#"{"add": ["p"]}"#)),
        ("PATCH", all, "/v1/content/a/1/tags", Some("{")),
        ("PATCH", all, "/v1/content/a/1/tags", None),
        ("PUT", all, "/v1/content/a/1/tags", Some(r#"{"tags": ["p"]}"#)),
        ("POST", "/v1/content:batchGet", "/v1/content:batchGet", Some(&batch)),
        ("POST", "/v1/content:batchTag", "/v1/content:batchTag", Some(&writes)),
        ("GET", "/v1/search", "/v1/search?limit=1&facets=true", None),
        ("GET", "/v1/search", "/v1/search", None),
        ("GET", "/v1/search", "/v1/search?limit=0", None),
        ("GET", "/v1/tags", "/v1/tags?prefix=x", None),
        ("GET", "/v1/tags/popular", "/v1/tags/popular", None),
        ("GET", "/v1/tags/{tag}", "/v1/tags/x", None),
        ("GET", "/v1/export", "/v1/export", None),
        ("GET", "/v1/receipts/{token}", &receipts, None),
        ("GET", "/v1/receipts/{token}", "/v1/receipts/x", None),
        ("GET", "/v1/status", "/v1/status", None),
        ("POST", "/v1/admin/reindex", "/v1/admin/reindex", None),
        ("POST", "/v1/admin/recount", "/v1/admin/recount", Some("{}")),
        ("POST", "/v1/receipts:check", "/v1/receipts:check", Some(&check)),
        ("POST", "/v1/receipts:check", "/v1/receipts:check", Some("{}")),
        ("GET", "/v1/failovers", "/v1/failovers", None),
        ("GET", "/v1/failovers/{epoch}", failover, None),
        ("GET", "/v1/failovers/{epoch}", "/v1/failovers/none", None),
        ("GET", "/v1/failovers/{epoch}/writes", &failover_writes, None),
        ("GET", "/v1/clusters", "/v1/clusters", None),
        ("GET", "/v1/breakers", "/v1/breakers", None),
        (
            "POST",
            "/v1/breakers",
            "/v1/breakers",
            Some(r#"{"name": "index", "state": "open", "reason": "a test"}"#),
        ),
        (
            "POST",
            "/v1/breakers",
            "/v1/breakers",
            Some(r#"{"name": "none", "state": "auto", "reason": "a test"}"#),
        ),
        ("GET", "/v1/breakers", "/v1/breakers", None),
        ("GET", "/v1/status", "/v1/status", None),
        ("GET", "/v1/dead-letters", "/v1/dead-letters", None),
        ("GET", "/v1/dead-letters/{id}", "/v1/dead-letters/indexer%2F3%2F1", None),
        ("GET", "/v1/dead-letters/{id}", "/v1/dead-letters/none", None),
        ("POST", "/v1/dead-letters:replay", "/v1/dead-letters:replay", Some(r#"{"all": true}"#)),
        ("POST", "/v1/dead-letters:replay", "/v1/dead-letters:replay", Some("{}")),
        (
            "POST",
            "/v1/dead-letters:discard",
            "/v1/dead-letters:discard",
            Some(r#"{"all": true, "reason": "a test"}"#),
        ),
        ("GET", "/v1/jobs/{id}", "/v1/jobs/none", None),
        ("GET", "/v1/dead-letters/audit", "/v1/dead-letters/audit", None),
        (
            "POST",
            "/v1/dead-letters:allow-storm",
            "/v1/dead-letters:allow-storm",
            Some(r#"{"group": "indexer", "reason": "a test"}"#),
        ),
        ("POST", "/v1/dead-letters:allow-storm", "/v1/dead-letters:allow-storm", Some("{}")),
        ("GET", "/", "/", None),
        ("GET", "/healthz", "/healthz", None),
        ("GET", "/readyz", "/readyz", None),
        ("GET", "/metrics", "/metrics", None),
        ("GET", "/openapi.json", "/openapi.json", None),
        ("GET", "/docs", "/docs", None),
        ("GET", "/docs/problems/{code}", "/docs/problems/internal", None),
    ];
    let mut covered: BTreeMap<(String, String), usize> = BTreeMap::new();
    for (method, path, uri, body) in calls {
        *covered.entry((method.to_owned(), path.to_owned())).or_default() += 1;
        conforms(&fixture, &api, method, path, uri, body).await;
    }
    let missing: Vec<_> = operations(&api)
        .into_iter()
        .filter(|(m, p, _)| !covered.contains_key(&(m.clone(), p.clone())))
        .collect();
    assert!(missing.is_empty(), "not covered: {missing:?}");
}

#[tokio::test]
async fn documented_query_parameters_are_known_to_the_routes() {
    let api = document();
    let fixture = fixture();
    for (method, path, operation) in operations(&api) {
        for p in
            operation["parameters"].as_array().into_iter().flatten().filter(|p| p["in"] == "query")
        {
            let uri = format!("{path}?{}=", p["name"].as_str().unwrap());
            let answer = fixture.request(&method, &uri).send().await;
            assert!(!String::from_utf8_lossy(&answer.body).contains("unknown_parameter"), "{uri}");
        }
    }
}
