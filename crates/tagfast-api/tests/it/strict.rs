//! Arrays where objects belong, and keys given twice: bodies, tokens, key sets.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tagfast_json::testing::{arrays_for_objects, repeated_keys};

use crate::support::keys::{claims, ec, set};
use crate::support::{SECRET, fixture, jwt_fixture};

/// Every call with a body: method, path and the example of the OpenAPI document, which is a body
/// that the call accepts.
fn calls() -> Vec<(String, String, String)> {
    let document = serde_json::to_value(tagfast_api::openapi()).unwrap();
    let mut calls = vec![(
        "POST".to_owned(),
        "/v1/content:batchTag".to_owned(),
        r#"{"items":[{"type":"page","id":"1","add":["x",{"tag":"ui","by":"ana"}],"remove":["y"]}]}"#
            .to_owned(),
    )];
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            let Some(reference) = schema["$ref"].as_str() else { continue };
            let name = reference.rsplit('/').next().unwrap();
            let example = &document["components"]["schemas"][name]["example"];
            assert!(example.is_object(), "{name} has no example");
            let path = path.replace("{type}", "page").replace("{id}", "1");
            calls.push((method.to_uppercase(), path, example.to_string()));
        }
    }
    calls
}

#[tokio::test]
async fn no_body_takes_an_array_for_an_object_or_a_key_twice() {
    let fixture = fixture();
    let calls = calls();
    assert!(calls.len() > 8, "{calls:?}");
    for (method, path, body) in &calls {
        for damaged in arrays_for_objects(body).into_iter().chain(repeated_keys(body)) {
            let answer = fixture.request(method, path).json(&damaged).send().await;
            let problem = answer.json();
            let code = problem["code"].as_str().unwrap_or_default();
            let known = ["wrong_type", "bad_json", "unknown_field"].contains(&code);
            assert!(known, "{method} {path} {damaged}: {problem}");
        }
    }
    let body = r#"{"filter":[["indexer/3/1"]],"reason":"a test"}"#;
    let problem = fixture.request("POST", "/v1/dead-letters:discard").json(body).send().await;
    let detail = problem.problem("wrong_type")["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("the body at filter: invalid type: sequence, expected an object"));
    assert_eq!(fixture.store.faults().writes(), 0, "nothing was written");
}

/// A token of these parts, with a signature that is right.
fn signed(header: &str, claims: &str) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
    let signature = hmac::sign(&key, text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

#[tokio::test]
async fn no_token_takes_an_array_for_an_object_or_a_key_twice() {
    const HEADER: &str = r#"{"typ":"JWT","alg":"HS256"}"#;
    let fixture = jwt_fixture();
    let all = claims("acme", "tags:read");
    // In the order in which the claims are declared.
    let plain =
        format!(r#"{{"tenant":"acme","sub":"ada","scope":"tags:read","exp":{}}}"#, all["exp"]);
    let uri = "/v1/content/a/1/tags";
    fixture.get(uri).bearer(&signed(HEADER, &plain)).send().await.ok();
    for damaged in arrays_for_objects(&plain).into_iter().chain(repeated_keys(&plain)) {
        fixture.get(uri).bearer(&signed(HEADER, &damaged)).send().await.problem("invalid_token");
    }
    for damaged in arrays_for_objects(HEADER).into_iter().chain(repeated_keys(HEADER)) {
        fixture.get(uri).bearer(&signed(&damaged, &plain)).send().await.problem("invalid_token");
    }
}

#[tokio::test]
async fn no_key_set_takes_an_array_for_an_object() {
    let signer = ec("ec-1");
    let good = set(&[&signer]);
    let token = signer.sign(&claims("acme", "tags:read"));
    for damaged in arrays_for_objects(&good).into_iter().chain(repeated_keys(&good)) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &damaged).unwrap();
        let answer = crate::auth::file_fixture(file.path(), false)
            .get("/v1/content/a/1/tags")
            .bearer(&token)
            .send()
            .await;
        assert!(matches!(answer.status.as_u16(), 401 | 503), "{damaged}: {}", answer.status);
    }
}
