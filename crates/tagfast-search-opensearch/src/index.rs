//! Indices of the generations and their aliases: what they must look like, creating, switching.
//!
//! Only an index that this service made is ever deleted: it has the name of a generation and says
//! so in its mapping. A foreign index loses our alias, nothing else.

use std::sync::LazyLock;

use reqwest::Method;
use serde_json::{Value, json};
use tagfast_resilience::ErrorChain;

use crate::client::Client;
use crate::error::RequestError;
use crate::facts::{Facts, IndexFacts, generation};
use crate::index_state::{Expected, KnownIndex};

/// Version of the documents, their meaning, and what an index says of itself. The indexer rebuilds
/// an index of an older version without help.
const FORMAT_VERSION: u64 = 2;

/// The mapping without `_meta`.
static MAPPING: LazyLock<Value> = LazyLock::new(|| {
    let keyword = json!({"type": "keyword"});
    json!({
        "dynamic": "strict",
        "properties": {
            "tenant": keyword, "type": keyword, "id": keyword, "tags": keyword,
            "updated_at": {"type": "long"}, "ver": {"type": "long"},
            "gone": {"type": "boolean"},
        },
    })
});

/// What an index must be to be usable.
pub(crate) fn expected(client: &Client) -> Expected<'_> {
    Expected {
        alias: &client.options.alias,
        next_alias: client.next_alias(),
        format: FORMAT_VERSION,
        mapping: &MAPPING,
    }
}

fn definition(client: &Client) -> Value {
    let mut mapping = MAPPING.clone();
    mapping["_meta"] = json!({"tagfast": {"format": FORMAT_VERSION}});
    json!({
        // With the default interval, an index that gets no searches stops refreshing.
        "settings": {"number_of_shards": client.options.shards, "refresh_interval": "5s"},
        "mappings": mapping,
        "aliases": {client.next_alias(): {}},
    })
}

/// Creates the index of the next generation, which writers find through the `-next` alias; returns
/// its name. What an interrupted rebuild left behind is deleted.
pub(crate) async fn create_next(client: &Client, facts: &Facts) -> Result<String, RequestError> {
    let (alias, next) = (client.options.alias.as_str(), client.next_alias());
    for (left, index) in facts.behind(&next) {
        if index.is_ours(left, alias) && !index.aliases.contains(alias) {
            client.write(Method::DELETE, left, None).await?;
        } else {
            remove_alias(client, left, &next).await?;
        }
    }
    let latest = facts.indices.keys().filter_map(|name| generation(name, alias)).max();
    let number = latest.unwrap_or(0).checked_add(1).ok_or_else(|| {
        RequestError::BadResponse(format!("{alias}-v{} is the last name", u32::MAX))
    })?;
    let name = format!("{alias}-v{number}");
    client.write(Method::PUT, &name, Some(&definition(client))).await?;
    Ok(name)
}

async fn remove_alias(client: &Client, index: &str, alias: &str) -> Result<(), RequestError> {
    let action = json!({"actions": [{"remove": {"index": index, "alias": alias}}]});
    client.write(Method::POST, "_aliases", Some(&action)).await.map(drop)
}

/// Notes in an index that it is filled to the end: what it must prove from now on.
pub(crate) async fn mark_filled(
    client: &Client,
    name: &str,
    index: &IndexFacts,
) -> Result<(), RequestError> {
    let lacks = || RequestError::BadResponse(format!("{name} has not all of its shards"));
    let proof = index.proof_of_filling().ok_or_else(lacks)?;
    let meta = json!({"_meta": {"tagfast": {"format": FORMAT_VERSION, "filled": proof}}});
    client.write(Method::PUT, &format!("{name}/_mapping"), Some(&meta)).await.map(drop)
}

/// Replaces what is served by the new index, in one step; then deletes the old ones that are ours.
/// A search that is under way in an old one is repeated by its process.
pub(crate) async fn switch(
    client: &Client,
    facts: &Facts,
    new: &KnownIndex,
) -> Result<(), RequestError> {
    let (alias, next) = (client.options.alias.as_str(), client.next_alias());
    let (mut actions, mut old) = (Vec::new(), Vec::new());
    for (name, index) in facts.indices.iter().filter(|(name, _)| **name != new.name) {
        let is_served = index.aliases.contains(alias);
        if is_served {
            actions.push(json!({"remove": {"index": name, "alias": alias}}));
        }
        // Without an alias nothing reads it: what an interrupted rebuild or an operator left.
        if index.is_ours(name, alias) && (is_served || index.aliases.is_empty()) {
            old.push(name);
            unblock(client, name, index).await?;
        }
    }
    actions.push(json!({"add": {"index": new.name, "alias": alias}}));
    actions.push(json!({"remove": {"index": new.name, "alias": next}}));
    client.write(Method::POST, "_aliases", Some(&json!({"actions": actions}))).await?;
    for name in old {
        if let Err(error) = client.write(Method::DELETE, name, None).await {
            let error = ErrorChain(&error);
            tracing::warn!(%error, name, "a replaced index was not deleted; the next rebuild does it");
        }
    }
    Ok(())
}

/// Removes the blocks that forbid to move an alias or to delete the index, which is replaced.
async fn unblock(client: &Client, name: &str, index: &IndexFacts) -> Result<(), RequestError> {
    let blocks: serde_json::Map<String, Value> = ["read_only", "read_only_allow_delete"]
        .into_iter()
        .filter(|block| index.blocks.contains(*block))
        .map(|block| (format!("index.blocks.{block}"), Value::Null))
        .collect();
    if blocks.is_empty() {
        return Ok(());
    }
    client.write(Method::PUT, &format!("{name}/_settings"), Some(&blocks.into())).await.map(drop)
}
