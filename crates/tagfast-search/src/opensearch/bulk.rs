//! Batches of documents: what became of each.

use futures_util::future::try_join_all;
use reqwest::Method;
use serde::Serialize;
use serde_json::{Value, json};
use tagfast_domain::{ContentKey, UnixMillis, Version};
use tagfast_events::{RecordVerdict, SinkError};

use super::client::{Client, Failure};
use crate::entry::Entry;

/// Documents of one request.
const BULK: usize = 500;
/// Documents that are removed at once.
const REMOVED: usize = 1000;

pub(super) fn systemic(failure: impl std::fmt::Display) -> SinkError {
    SinkError { code: "search_index", message: failure.to_string() }
}

/// At most 386 bytes by the domain's limits; OpenSearch refuses more than 512, and with one such id
/// the whole request.
fn id(key: &ContentKey) -> String {
    format!("{}:{}:{}", key.tenant, key.content.content_type, key.content.content_id)
}

/// The line before a document. The index is in the path: what stands in every line is parsed as
/// often.
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

fn lines(entries: &[&Entry<'_>]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(entries.len() * 300);
    for entry in entries {
        let (id, version) = (id(entry.key), entry.version.packed());
        let action = Action { index: Target { id: &id, version, version_type: "external" } };
        let document = Document {
            tenant: entry.key.tenant.as_str(),
            content_type: entry.key.content.content_type.as_str(),
            id: entry.key.content.content_id.as_str(),
            tags: &entry.tags,
            updated_at: entry.updated_at,
            ver: version,
            gone: entry.tags.is_empty(),
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
        // The index has this version or a newer one.
        Some(409) => RecordVerdict::Superseded,
        Some(429 | 503) => {
            RecordVerdict::Failed { code: "index_overloaded", message: format!("{kind}: {reason}") }
        }
        Some(400) => {
            RecordVerdict::Poison { code: "index_refused", message: format!("{kind}: {reason}") }
        }
        // A missing index, one that may not be written, anything else: no record is to blame.
        other => return Err(systemic(format!("an item was answered {other:?}: {kind}: {reason}"))),
    })
}

/// Writes entries to what an alias leads to; one verdict for each, in their order.
pub(super) async fn write(
    client: &Client,
    target: &str,
    entries: &[Entry<'_>],
) -> Result<Vec<RecordVerdict>, SinkError> {
    let all: Vec<&Entry<'_>> = entries.iter().collect();
    // Side by side: no content is in two of them, and the server has nothing to do while a request
    // is made.
    let pieces = all.chunks(BULK).map(|piece| piece_of(client, target, piece));
    Ok(try_join_all(pieces).await?.concat())
}

/// Removes the documents that a query finds, each unless it was written meanwhile; how many were
/// found. Without `_delete_by_query`, which is a module of its own that a server need not have.
pub(super) async fn remove(client: &Client, target: &str, query: &Value) -> Result<usize, Failure> {
    let mut removed = 0;
    loop {
        let body =
            json!({"size": REMOVED, "_source": false, "seq_no_primary_term": true, "query": query});
        let answer = client.change(Method::POST, &format!("{target}/_search"), Some(&body)).await?;
        let hits = answer["hits"]["hits"].as_array().map_or(&[][..], Vec::as_slice);
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
        let answer = client.remove(lines).await?;
        let gone = |item: &&Value| matches!(item["delete"]["status"].as_u64(), Some(200 | 404));
        let gone = answer["items"].as_array().into_iter().flatten().filter(gone).count();
        if gone == 0 {
            // Whatever keeps them would keep them for ever.
            return Err(Failure::Odd(format!(
                "nothing is removed: {}",
                answer["items"][0]["delete"]["error"]
            )));
        }
        removed += gone;
    }
}

/// The versions of contents, searchable or not.
pub(super) async fn versions(
    client: &Client,
    keys: &[ContentKey],
) -> Result<Vec<Option<Version>>, SinkError> {
    let path = format!(
        "{}/_mget?_source=false&filter_path=docs.found,docs._version,docs.error",
        client.options.alias
    );
    let ids: Vec<String> = keys.iter().map(id).collect();
    let answer =
        client.change(Method::POST, &path, Some(&json!({"ids": ids}))).await.map_err(systemic)?;
    let docs = answer["docs"].as_array().filter(|docs| docs.len() == keys.len());
    let docs = docs.ok_or_else(|| systemic("fewer documents were answered than asked"))?;
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

/// One request; one that is refused as a whole is halved until the record that is to blame is
/// alone.
async fn piece_of(
    client: &Client,
    target: &str,
    entries: &[&Entry<'_>],
) -> Result<Vec<RecordVerdict>, SinkError> {
    let answer = match client.bulk(target, lines(entries)).await {
        Ok(answer) => answer,
        Err(Failure::Refused { status, reason }) if matches!(status.as_u16(), 400 | 413) => {
            if let [_] = entries {
                return Ok(vec![RecordVerdict::Poison { code: "index_refused", message: reason }]);
            }
            let (left, right) = entries.split_at(entries.len() / 2);
            let mut verdicts = Box::pin(piece_of(client, target, left)).await?;
            verdicts.extend(Box::pin(piece_of(client, target, right)).await?);
            return Ok(verdicts);
        }
        Err(failure) => return Err(systemic(failure)),
    };
    let items = answer["items"].as_array().filter(|items| items.len() == entries.len());
    let items = items.ok_or_else(|| systemic("fewer items were answered than asked"))?;
    let verdicts = items.iter().map(verdict).collect::<Result<Vec<_>, _>>()?;
    // An index that takes nothing at all is overloaded as a whole.
    if verdicts.iter().all(|v| matches!(v, RecordVerdict::Failed { .. })) {
        return Err(systemic("the index is overloaded: it refuses every document"));
    }
    Ok(verdicts)
}
