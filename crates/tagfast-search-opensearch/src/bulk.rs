//! Batches of documents and the outcome of each.
//!
//! How it fails: an error blames no record. A document counts as refused only if the same index
//! took another one (the canary) after it.

use std::time::Duration;

use futures_util::future::try_join_all;
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use tagfast_domain::{Content, ContentId, ContentKey, ContentType, TenantId, UnixMillis, Version};
use tagfast_events::SinkError;
use tagfast_resilience::Backoff;
use tagfast_search::IndexedState;

use crate::client::Client;
use crate::error::{RequestError, systemic};
use crate::item_class::{ItemClass, classify_item};

/// Maximum number of documents in a write request.
const WRITE_BATCH_MAX: usize = 500;
/// Maximum number of refused documents in a request that asks once more.
const SUSPECTS_MAX: usize = 100;
/// Maximum number of documents in a removal request.
const REMOVE_BATCH_MAX: usize = 1000;

/// Tenant of the canary.
pub(crate) const CANARY_TENANT: &str = "_canary";
/// Attempts with documents that an overloaded server refuses. Fewer: a short burst repeats a whole
/// batch. More: the indexer says late that it waits.
const OVERLOAD_BACKOFF: Backoff = Backoff {
    retries: 3,
    base: Duration::from_millis(100),
    factor: 3,
    cap: Duration::from_secs(1),
};

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

/// What the index did with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was written.
    Written,
    /// The index holds this version or a newer one.
    Superseded,
    /// The index refuses it, and takes others; with OpenSearch's reason.
    Refused(String),
}

/// An index and the alias through which it is written, so that no missing index is created.
#[derive(Clone, Copy)]
pub(crate) struct Destination<'a> {
    pub(crate) client: &'a Client,
    pub(crate) alias: &'a str,
    /// Name of the index to which the alias must lead.
    pub(crate) index: &'a str,
    /// Present time, Unix ms: the version of canaries.
    pub(crate) now: UnixMillis,
}

/// What one attempt to write a document gave.
enum Attempt {
    Ended(Outcome),
    Overloaded(String),
}

/// What one request gave.
enum Reply {
    /// An attempt for each document, in order.
    Items(Vec<Attempt>),
    /// The server refuses the request as a whole, perhaps because of a document.
    RefusedWhole(String),
}

fn canary_key() -> Result<ContentKey, SinkError> {
    Ok(ContentKey {
        tenant: TenantId::reserved(CANARY_TENANT),
        content: Content {
            content_type: ContentType::parse("canary").map_err(systemic)?,
            content_id: ContentId::parse("1").map_err(systemic)?,
        },
    })
}

impl Destination<'_> {
    /// Writes states; returns one outcome per state, in order.
    ///
    /// # Errors
    ///
    /// No record is to blame: nothing of the batch may be parked or passed over, and everything
    /// may be written again.
    pub(crate) async fn write(
        &self,
        states: &[IndexedState<'_>],
    ) -> Result<Vec<Outcome>, SinkError> {
        let all: Vec<&IndexedState<'_>> = states.iter().collect();
        // Concurrently: no content is in two batches, and the server would idle while a request is
        // built.
        let batches = all.chunks(WRITE_BATCH_MAX).map(|batch| self.write_batch(batch));
        let mut outcomes = try_join_all(batches).await?.concat();
        let is_refused = |n: &usize| matches!(outcomes[*n], Outcome::Refused(_));
        let suspects: Vec<usize> = (0..outcomes.len()).filter(is_refused).collect();
        for batch in suspects.chunks(SUSPECTS_MAX) {
            let states: Vec<&IndexedState<'_>> = batch.iter().map(|n| all[*n]).collect();
            for (n, outcome) in batch.iter().zip(self.confirm(&states).await?) {
                outcomes[*n] = outcome;
            }
        }
        Ok(outcomes)
    }

    /// Writes a document that no query finds.
    ///
    /// # Errors
    ///
    /// The index does not take it: no record is to blame for what it refuses.
    pub(crate) async fn write_canary(&self) -> Result<(), SinkError> {
        let key = canary_key()?;
        match self.request(&[&self.canary(&key)?]).await? {
            Reply::Items(mut items) => takes_canary(items.pop()),
            Reply::RefusedWhole(why) => Err(takes_nothing(&why)),
        }
    }

    /// The canary: without tags, no query finds it and no count includes it.
    fn canary<'a>(&self, key: &'a ContentKey) -> Result<IndexedState<'a>, SinkError> {
        let version = Version::from_packed(self.now.max(0).unsigned_abs()).map_err(systemic)?;
        Ok(IndexedState { key, version, updated_at: self.now, tags: Vec::new() })
    }

    /// Writes documents that were refused once more, each request with the canary before them: what
    /// is refused beside a canary that is taken is refused for its own sake.
    async fn confirm(&self, suspects: &[&IndexedState<'_>]) -> Result<Vec<Outcome>, SinkError> {
        let key = canary_key()?;
        let canary = self.canary(&key)?;
        let all: Vec<&IndexedState<'_>> =
            std::iter::once(&canary).chain(suspects.iter().copied()).collect();
        let why = match self.request(&all).await? {
            Reply::Items(items) => {
                let mut items = items.into_iter();
                takes_canary(items.next())?;
                let outcome = |attempt| match attempt {
                    Attempt::Ended(outcome) => Ok(outcome),
                    Attempt::Overloaded(why) => Err(overloaded(&why)),
                };
                return items.map(outcome).collect();
            }
            Reply::RefusedWhole(why) => why,
        };
        // The server refuses whole requests: a canary before and after the document must do.
        self.write_canary().await?;
        if let [_] = suspects {
            let Reply::RefusedWhole(_) = self.request(suspects).await? else {
                return Err(systemic(format!("the server refuses now and then: {why}")));
            };
            self.write_canary().await?;
            return Ok(vec![Outcome::Refused(why)]);
        }
        let (left, right) = suspects.split_at(suspects.len() / 2);
        let mut outcomes = Box::pin(self.confirm(left)).await?;
        outcomes.extend(Box::pin(self.confirm(right)).await?);
        Ok(outcomes)
    }

    /// Writes a batch; repeats what an overloaded server refuses a few times.
    async fn write_batch(&self, states: &[&IndexedState<'_>]) -> Result<Vec<Outcome>, SinkError> {
        let mut outcomes: Vec<Option<Outcome>> = vec![None; states.len()];
        let mut left: Vec<usize> = (0..states.len()).collect();
        let mut attempt = 0;
        loop {
            let batch: Vec<&IndexedState<'_>> = left.iter().map(|n| states[*n]).collect();
            let (mut again, mut why) = (Vec::new(), String::new());
            for (n, answer) in left.iter().zip(self.halve_until_taken(&batch).await?) {
                match answer {
                    Attempt::Ended(outcome) => outcomes[*n] = Some(outcome),
                    Attempt::Overloaded(reason) => {
                        again.push(*n);
                        why = reason;
                    }
                }
            }
            if again.is_empty() {
                let all: Option<Vec<Outcome>> = outcomes.into_iter().collect();
                return all.ok_or_else(|| systemic("a document has no outcome"));
            }
            // Nothing got through, or not enough of it: the indexer waits for longer.
            let delay = OVERLOAD_BACKOFF.delay(attempt, fastrand::f64());
            let Some(delay) = delay.filter(|_| again.len() < batch.len()) else {
                return Err(overloaded(&why));
            };
            tokio::time::sleep(delay).await;
            left = again;
            attempt += 1;
        }
    }

    /// Halves a request that is refused as a whole until the document to blame is alone.
    async fn halve_until_taken(
        &self,
        states: &[&IndexedState<'_>],
    ) -> Result<Vec<Attempt>, SinkError> {
        let why = match self.request(states).await? {
            Reply::Items(items) => return Ok(items),
            Reply::RefusedWhole(why) => why,
        };
        if let [_] = states {
            return Ok(vec![Attempt::Ended(Outcome::Refused(why))]);
        }
        // An index that takes no document at all is not asked for each of them.
        self.write_canary().await?;
        let (left, right) = states.split_at(states.len() / 2);
        let mut attempts = Box::pin(self.halve_until_taken(left)).await?;
        attempts.extend(Box::pin(self.halve_until_taken(right)).await?);
        Ok(attempts)
    }

    async fn request(&self, states: &[&IndexedState<'_>]) -> Result<Reply, SinkError> {
        let response = match self.client.bulk(self.alias, lines(states)).await {
            Ok(response) => response,
            Err(RequestError::Rejected { status, kind, reason })
                if status == StatusCode::PAYLOAD_TOO_LARGE
                    || classify_item(status.as_u16(), &kind) == ItemClass::Record =>
            {
                return Ok(Reply::RefusedWhole(reason));
            }
            Err(error) => return Err(systemic(error)),
        };
        let items = response["items"].as_array().filter(|items| items.len() == states.len());
        let items =
            items.ok_or_else(|| systemic("OpenSearch answers fewer items than requested"))?;
        let attempts = items.iter().map(|item| self.read_item(&item["index"]));
        Ok(Reply::Items(attempts.collect::<Result<_, _>>()?))
    }

    fn read_item(&self, item: &Value) -> Result<Attempt, SinkError> {
        let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
        let (kind, reason) = (text(&item["error"]["type"]), text(&item["error"]["reason"]));
        let status = item["status"].as_u64().and_then(|status| u16::try_from(status).ok());
        let why = format!("{kind}: {reason}");
        let class = status.map_or(ItemClass::Systemic, |status| classify_item(status, &kind));
        let in_index = item["_index"] == self.index;
        Ok(match class {
            ItemClass::Overload => Attempt::Overloaded(why),
            ItemClass::Written | ItemClass::Superseded | ItemClass::Record if !in_index => {
                let (alias, other) = (self.alias, &item["_index"]);
                let message = format!("{alias} leads to {other} instead of {}", self.index);
                return Err(systemic(message));
            }
            ItemClass::Written => Attempt::Ended(Outcome::Written),
            ItemClass::Superseded => Attempt::Ended(Outcome::Superseded),
            ItemClass::Record => Attempt::Ended(Outcome::Refused(why)),
            ItemClass::Systemic => {
                let message = format!("a document was answered {}: {why}", item["status"]);
                return Err(systemic(message));
            }
        })
    }
}

fn takes_canary(canary: Option<Attempt>) -> Result<(), SinkError> {
    match canary {
        Some(Attempt::Ended(Outcome::Written | Outcome::Superseded)) => Ok(()),
        Some(Attempt::Overloaded(why)) => Err(overloaded(&why)),
        Some(Attempt::Ended(Outcome::Refused(why))) => Err(takes_nothing(&why)),
        None => Err(systemic("the canary has no outcome")),
    }
}

fn takes_nothing(why: &str) -> SinkError {
    systemic(format!("the index takes no document: {why}"))
}

fn overloaded(why: &str) -> SinkError {
    systemic(format!("the index is overloaded: {why}"))
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
