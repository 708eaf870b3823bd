//! What the real server says about documents and indices, and how each of it is classified.

use serde_json::{Value, json};
use tagfast_search_opensearch::{ItemClass, classify_item};

use crate::support::{self, Engine, must, send};

/// A document as the indexer writes it, with something changed.
fn document(change: Value) -> Value {
    let mut document = json!({
        "tenant": "acme", "type": "t", "id": "1", "tags": ["x"], "updated_at": 1, "ver": 1,
        "gone": false,
    });
    for (field, value) in change.as_object().into_iter().flatten() {
        document[field] = value.clone();
    }
    document
}

/// Writes one document; returns status and type of error, of the item or of the whole request.
async fn write(index: &str, id: &str, version: u64, document: &Value) -> (u16, String) {
    let action = json!({"index": {"_id": id, "version": version, "version_type": "external"}});
    let lines = json!([action, document]);
    let path = format!("{index}/_bulk?require_alias=true&timeout=1s");
    let (status, answer) = send("POST", &path, Some(lines)).await;
    let (status, error) = match answer["items"][0]["index"].as_object() {
        Some(item) => (
            item["status"].as_u64().expect("a status") as u16,
            &answer["items"][0]["index"]["error"],
        ),
        None => (status, &answer["error"]),
    };
    (status, error["type"].as_str().unwrap_or("").to_owned())
}

fn is(answer: &(u16, String), class: ItemClass) {
    assert_eq!(classify_item(answer.0, &answer.1), class, "{answer:?}");
}

/// A document that is wrong is suspected, whatever is wrong with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_documents_are_suspected() {
    let engine = Engine::new().await;
    let alias = &engine.options.alias;
    let good = document(json!({}));
    is(&write(alias, "1", 5, &good).await, ItemClass::Written);
    is(&write(alias, "1", 6, &good).await, ItemClass::Written);
    is(&write(alias, "1", 6, &good).await, ItemClass::Superseded);
    is(&write(alias, "1", 2, &good).await, ItemClass::Superseded);
    let nested: Value = (0..200).fold(json!(1), |inner, _| json!({"a": inner}));
    for wrong in [
        document(json!({"tags": ["x".repeat(40_000)]})),
        document(json!({"unknown": 1})),
        document(json!({"updated_at": "yesterday"})),
        document(json!({"ver": 1e300})),
        document(json!({"gone": "perhaps"})),
        document(json!({"tags": {"a": 1}})),
        document(json!({"tags": [["x"], {"y": 1}]})),
        json!("no object"),
        json!(["a list"]),
        document(json!({"tags": nested})),
    ] {
        is(&write(alias, "2", 1, &wrong).await, ItemClass::Record);
    }
    is(&write(alias, &"i".repeat(600), 1, &good).await, ItemClass::Record);
}

/// What is wrong with the index or its alias blames no document.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_index_blames_no_document() {
    let good = document(json!({}));
    let systemic = async |index: &str| {
        let answer = write(index, "1", 1, &good).await;
        is(&answer, ItemClass::Systemic);
    };
    systemic("nowhere").await;
    for block in ["write", "read_only", "read_only_allow_delete"] {
        let engine = Engine::new().await;
        let path = format!("{}/_settings", engine.options.alias);
        let set = async |value: Value| {
            let block = json!({format!("index.blocks.{block}"): value});
            must("PUT", &path, Some(block)).await;
        };
        set(json!(true)).await;
        systemic(&engine.options.alias).await;
        set(Value::Null).await;
    }
    let engine = Engine::new().await;
    let index = must("GET", &engine.options.alias, None).await;
    let index = index.as_object().and_then(|all| all.keys().next()).expect("an index");
    // By its name instead of its alias.
    systemic(index).await;
    must("POST", &format!("{index}/_close"), None).await;
    systemic(&engine.options.alias).await;
    must("POST", &format!("{index}/_open"), None).await;
    support::delete_shards(index).await;
    // Both shards: whichever the document belongs to is missing.
    systemic(&engine.options.alias).await;
    must("DELETE", index, None).await;
    systemic(&engine.options.alias).await;
}

/// An error that this table takes for a document's is not enough: an alias that leads to two
/// indices, or a pipeline that does not exist, is answered in the same words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_words_may_be_said_of_an_index() {
    let good = document(json!({}));
    let engine = Engine::new().await;
    let alias = &engine.options.alias;
    let theirs = format!("{alias}-theirs");
    must("PUT", &theirs, Some(json!({"aliases": {alias: {}}}))).await;
    is(&write(alias, "1", 1, &good).await, ItemClass::Record);
    must("DELETE", &theirs, None).await;
    let path = format!("{alias}/_settings");
    must("PUT", &path, Some(json!({"index.default_pipeline": "not-there"}))).await;
    is(&write(alias, "1", 1, &good).await, ItemClass::Record);
}
