//! Removes the tags that a measurement wrote: a load generator leaves a server as it found it.
//!
//! The tags of a run have a name that no other run and no person uses, so that nothing else is
//! removed. A request that got no answer may be done after the removal; therefore the contents are
//! looked at again until no tag of the run is left.
//!
//! How it fails: contents that keep a tag are counted in the error, which names the tags.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};

use super::workload::Written;
use crate::error::CliError;
use crate::http::{Client, ClientError};
use crate::json::list;

/// Items of a removing request. More would be refused by a server with small limits.
const REMOVE_ITEMS: usize = 100;
/// Tags of one item.
const REMOVE_TAGS: usize = 10;
/// Contents of a request that looks at them.
const VIEW_ITEMS: usize = 100;
/// Requests in flight at the same time.
const PARALLEL_REQUESTS: usize = 8;
/// Rounds of removing and looking.
const ROUNDS_MAX: usize = 5;
/// Attempts at one request.
const ATTEMPTS_MAX: usize = 10;
/// Wait between two rounds or attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// Removes the tags whose names begin with `prefix` from all contents that were written; returns
/// the number of contents.
///
/// # Errors
/// The server does not answer, or contents keep such a tag.
pub(super) async fn remove_written(
    client: &Client,
    written: Vec<Written>,
    prefix: &str,
) -> Result<usize, CliError> {
    let count = written.len();
    let mut left = written;
    for _ in 0..ROUNDS_MAX {
        let removed = remove(client, &left, prefix).await;
        left = match removed {
            Ok(()) => still_tagged(client, left, prefix).await.map_err(|e| failed(e, prefix))?,
            Err(error) => return Err(failed(error, prefix)),
        };
        if left.is_empty() {
            return Ok(count);
        }
        tokio::time::sleep(PAUSE).await;
    }
    let message = format!("{} contents keep a tag of this measurement", left.len());
    Err(CliError::new(message).hint(find_them(prefix)))
}

fn failed(error: ClientError, prefix: &str) -> CliError {
    CliError::new("the tags of this measurement could not be removed")
        .with_source(CliError::from(error))
        .hint(find_them(prefix))
}

fn find_them(prefix: &str) -> String {
    format!("find them with: tagfast search '{prefix}*' --all")
}

async fn remove(client: &Client, written: &[Written], prefix: &str) -> Result<(), ClientError> {
    let items = written.iter().flat_map(|content| {
        let names: Vec<String> = (0..content.tags).map(|n| format!("{prefix}{n}")).collect();
        let item = |names: &[String]| {
            json!({"type": content.content_type, "id": content.id, "remove": names})
        };
        names.chunks(REMOVE_TAGS).map(item).collect::<Vec<Value>>()
    });
    let items: Vec<Value> = items.collect();
    // An item that fails is seen when its content is looked at.
    let bodies: Vec<Value> =
        items.chunks(REMOVE_ITEMS).map(|some| json!({"items": some})).collect();
    post_all(client, "/v1/content:batchTag", bodies).await.map(drop)
}

/// The contents that have a tag of the run, or cannot be read.
async fn still_tagged(
    client: &Client,
    written: Vec<Written>,
    prefix: &str,
) -> Result<Vec<Written>, ClientError> {
    let mut clean = HashSet::new();
    let item = |content: &Written| json!({"type": content.content_type, "id": content.id});
    let body = |some: &[Written]| json!({"items": some.iter().map(item).collect::<Vec<Value>>()});
    let bodies: Vec<Value> = written.chunks(VIEW_ITEMS).map(body).collect();
    let answers = post_all(client, "/v1/content:batchGet", bodies).await?;
    for (chunk, answer) in answers.iter().enumerate() {
        for (n, result) in list(answer, "results").iter().enumerate() {
            let is_of_run = |tag: &Value| {
                tag.get("tag").and_then(Value::as_str).is_some_and(|tag| tag.starts_with(prefix))
            };
            let was_read = result.get("ok").and_then(Value::as_bool) == Some(true);
            if was_read && !list(result, "tags").iter().any(is_of_run) {
                clean.insert(chunk * VIEW_ITEMS + n);
            }
        }
    }
    let numbered = written.into_iter().enumerate();
    Ok(numbered.filter(|(n, _)| !clean.contains(n)).map(|(_, content)| content).collect())
}

/// Some requests at the same time; the answers are in their order.
async fn post_all(
    client: &Client,
    path: &str,
    bodies: Vec<Value>,
) -> Result<Vec<Value>, ClientError> {
    stream::iter(bodies)
        .map(|body| async move { post(client, path, &body).await })
        .buffered(PARALLEL_REQUESTS)
        .try_collect()
        .await
}

/// A request that is repeated while the server is overloaded or starts again.
async fn post(client: &Client, path: &str, body: &Value) -> Result<Value, ClientError> {
    for _ in 1..ATTEMPTS_MAX {
        match client.post(path, body, None).await {
            Err(error) if error.is_retryable() => {
                tokio::time::sleep(error.retry_after().unwrap_or(PAUSE)).await;
            }
            result => return result,
        }
    }
    client.post(path, body, None).await
}
