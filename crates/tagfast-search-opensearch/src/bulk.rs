//! Batches of documents and the verdict on each.

use futures_util::future::try_join_all;
use reqwest::Method;
use serde::Serialize;
use serde_json::{Value, json};
use tagfast_domain::{ContentKey, UnixMillis, Version};
use tagfast_events::{RecordVerdict, SinkError};
use tagfast_search::IndexedState;

use crate::client::Client;
use crate::error::{RequestError, systemic};

/// Maximum number of documents in a write request.
const WRITE_BATCH_MAX: usize = 500;
/// Maximum number of documents in a removal request.
const REMOVE_BATCH_MAX: usize = 1000;

/// Document id of a content: at most 386 bytes by the domain's limits. OpenSearch would refuse a
/// whole request that contains an id of more than 512 bytes.
fn document_id(key: &ContentKey) -> String {
    format!("{}:{}:{}", key.tenant, key.content.content_type, key.content.content_id)
}

/// The line before a document. The index is in the path, so that it is not parsed once per line.
#[derive(Serialize)]
struct Action<'a> {
    index: Target<'a>,
}

#[derive(Serialize)]
struct Target<'a> {
    #[serde(rename = "_id")]
    id: &'a str,
    version: u64,
    version_type: &'a str,
}

#[derive(Serialize)]
struct Document<'a> {
    tenant: &'a str,
    #[serde(rename = "type")]
    content_type: &'a str,
    id: &'a str,
    tags: &'a [&'a str],
    updated_at: UnixMillis,
    ver: u64,
    gone: bool,
}

fn lines(states: &[&IndexedState<'_>]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(states.len() * 300);
    for state in states {
        let (id, version) = (document_id(state.key), state.version.packed());
        let action = Action { index: Target { id: &id, version, version_type: "external" } };
        let document = Document {
            tenant: state.key.tenant.as_str(),
            content_type: state.key.content.content_type.as_str(),
            id: state.key.content.content_id.as_str(),
            tags: &state.tags,
            updated_at: state.updated_at,
            ver: version,
            gone: state.tags.is_empty(),
        };
        // Writing to a vector cannot fail.
        let _ = serde_json::to_writer(&mut lines, &action);
        lines.push(b'\n');
        let _ = serde_json::to_writer(&mut lines, &document);
        lines.push(b'\n');
    }
    lines
}

fn verdict(item: &Value) -> Result<RecordVerdict, SinkError> {
    let item = &item["index"];
    let (kind, reason) = (
        item["error"]["type"].as_str().unwrap_or(""),
        item["error"]["reason"].as_str().unwrap_or(""),
    );
    Ok(match item["status"].as_u64() {
        Some(200 | 201) => RecordVerdict::Applied,
        // The index holds this version or a newer one.
        Some(409) => RecordVerdict::Superseded,
        Some(429 | 503) => {
            RecordVerdict::Failed { code: "index_overloaded", message: format!("{kind}: {reason}") }
        }
        Some(400) => {
            RecordVerdict::Poison { code: "index_refused", message: format!("{kind}: {reason}") }
        }
        // A missing or read-only index, or anything else: no record is to blame.
        other => {
            let message = format!("an item was answered {other:?}: {kind}: {reason}");
            return Err(systemic(message));
        }
    })
}

/// Writes states to the index behind the alias `target`; returns one verdict per state, in order.
pub(crate) async fn write(
    client: &Client,
    target: &str,
    states: &[IndexedState<'_>],
) -> Result<Vec<RecordVerdict>, SinkError> {
    let all: Vec<&IndexedState<'_>> = states.iter().collect();
    // Concurrently: no content is in two batches, and the server would idle while a request is
    // built.
    let batches = all.chunks(WRITE_BATCH_MAX).map(|batch| write_batch(client, target, batch));
    Ok(try_join_all(batches).await?.concat())
}

/// Removes the documents that a query finds, except those written meanwhile; returns how many were
/// removed. Does not use `_delete_by_query`, a module that a server need not have.
pub(crate) async fn remove(
    client: &Client,
    target: &str,
    query: &Value,
) -> Result<usize, RequestError> {
    let mut removed = 0;
    loop {
        let body = json!({
            "size": REMOVE_BATCH_MAX, "_source": false, "seq_no_primary_term": true, "query": query,
        });
        let response =
            client.write(Method::POST, &format!("{target}/_search"), Some(&body)).await?;
        let hits = response["hits"]["hits"].as_array().map_or(&[][..], Vec::as_slice);
        if hits.is_empty() {
            return Ok(removed);
        }
        let mut lines = Vec::with_capacity(hits.len() * 150);
        for hit in hits {
            let delete = json!({"delete": {
                "_index": hit["_index"], "_id": hit["_id"],
                "if_seq_no": hit["_seq_no"], "if_primary_term": hit["_primary_term"],
            }});
            lines.extend_from_slice(delete.to_string().as_bytes());
            lines.push(b'\n');
        }
        let response = client.remove(lines).await?;
        let is_gone = |item: &&Value| matches!(item["delete"]["status"].as_u64(), Some(200 | 404));
        let gone = response["items"].as_array().into_iter().flatten().filter(is_gone).count();
        if gone == 0 {
            // Another attempt would fail the same way.
            return Err(RequestError::BadResponse(format!(
                "nothing is removed: {}",
                response["items"][0]["delete"]["error"]
            )));
        }
        removed += gone;
    }
}

/// Returns the indexed versions of contents, with or without tags; `None` for an unknown content.
pub(crate) async fn versions(
    client: &Client,
    keys: &[ContentKey],
) -> Result<Vec<Option<Version>>, SinkError> {
    let path = format!(
        "{}/_mget?_source=false&filter_path=docs.found,docs._version,docs.error",
        client.options.alias
    );
    let ids: Vec<String> = keys.iter().map(document_id).collect();
    let response =
        client.write(Method::POST, &path, Some(&json!({"ids": ids}))).await.map_err(systemic)?;
    let docs = response["docs"].as_array().filter(|docs| docs.len() == keys.len());
    let docs = docs.ok_or_else(|| systemic("OpenSearch answers fewer documents than requested"))?;
    docs.iter()
        .map(|doc| match (doc["found"].as_bool(), doc["_version"].as_u64()) {
            (Some(true), Some(version)) => {
                Version::from_packed(version).map(Some).map_err(systemic)
            }
            (Some(false), _) => Ok(None),
            _ => Err(systemic(format!("a document was answered {}", doc["error"]))),
        })
        .collect()
}

/// Sends one request; halves a request that is refused as a whole until the state to blame is
/// alone.
async fn write_batch(
    client: &Client,
    target: &str,
    states: &[&IndexedState<'_>],
) -> Result<Vec<RecordVerdict>, SinkError> {
    let response = match client.bulk(target, lines(states)).await {
        Ok(response) => response,
        Err(RequestError::Rejected { status, reason }) if matches!(status.as_u16(), 400 | 413) => {
            if let [_] = states {
                return Ok(vec![RecordVerdict::Poison { code: "index_refused", message: reason }]);
            }
            let (left, right) = states.split_at(states.len() / 2);
            let mut verdicts = Box::pin(write_batch(client, target, left)).await?;
            verdicts.extend(Box::pin(write_batch(client, target, right)).await?);
            return Ok(verdicts);
        }
        Err(error) => return Err(systemic(error)),
    };
    let items = response["items"].as_array().filter(|items| items.len() == states.len());
    let items = items.ok_or_else(|| systemic("OpenSearch answers fewer items than requested"))?;
    let verdicts = items.iter().map(verdict).collect::<Result<Vec<_>, _>>()?;
    // An index that refuses every document is overloaded as a whole.
    if verdicts.iter().all(|v| matches!(v, RecordVerdict::Failed { .. })) {
        return Err(systemic("the index is overloaded: it refuses every document"));
    }
    Ok(verdicts)
}
