//! Indices of the generations and their aliases.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::Client;
use crate::error::{OpenSearchError, RequestError};

/// Version of the documents and their meaning; `tagfast reindex` rebuilds an index of an older
/// version.
const FORMAT_VERSION: u64 = 1;

fn definition(shards: u32) -> Value {
    let keyword = json!({"type": "keyword"});
    json!({
        // With the default interval, an index that gets no searches stops refreshing.
        "settings": {"number_of_shards": shards, "refresh_interval": "5s"},
        "mappings": {
            "dynamic": "strict",
            "_meta": {"tagfast": {"format": FORMAT_VERSION}},
            "properties": {
                "tenant": keyword, "type": keyword, "id": keyword, "tags": keyword,
                "updated_at": {"type": "long"}, "ver": {"type": "long"},
                "gone": {"type": "boolean"},
            },
        },
    })
}

/// Names of the indices behind an alias.
async fn indices_of(client: &Client, alias: &str) -> Result<Vec<String>, RequestError> {
    match client.get_slow(&format!("_alias/{alias}")).await {
        Ok(response) => {
            Ok(response.as_object().map(|all| all.keys().cloned().collect()).unwrap_or_default())
        }
        Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Returns the served index; `None` if there is none yet.
///
/// # Errors
///
/// [`OpenSearchError::Foreign`] if the alias leads to an index that is not usable.
pub(crate) async fn check(client: &Client) -> Result<Option<String>, OpenSearchError> {
    let alias = &client.options.alias;
    let mut served = indices_of(client, alias).await?;
    let Some(index) = served.pop() else {
        // An index of this name would block the alias.
        return match client.get(&format!("{alias}/_mapping")).await {
            Ok(_) => Err(OpenSearchError::Foreign(format!(
                "{alias} is an index, not our alias: delete it or rename it"
            ))),
            Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(None),
            Err(error) => Err(error.into()),
        };
    };
    if !served.is_empty() {
        return Err(OpenSearchError::Foreign(format!(
            "the alias {alias} leads to several indices: leave only one of {index}, {}",
            served.join(", ")
        )));
    }
    let mapping = client.get(&format!("{index}/_mapping")).await?;
    let mapping = &mapping[&index]["mappings"];
    match mapping["_meta"]["tagfast"]["format"].as_u64() {
        Some(FORMAT_VERSION) if mapping["dynamic"] == "strict" => Ok(Some(index)),
        Some(format) if format > FORMAT_VERSION => Err(OpenSearchError::Foreign(format!(
            "index {index} is of format {format}, this program knows {FORMAT_VERSION}: run the \
             newer program, or delete the index"
        ))),
        _ => Err(OpenSearchError::Foreign(format!(
            "the alias {alias} leads to {index}, which is not an index of ours: remove the alias"
        ))),
    }
}

/// Creates the index of the next generation; writers find it through the `-next` alias.
pub(crate) async fn create_next(client: &Client) -> Result<String, RequestError> {
    let (alias, next) = (&client.options.alias, client.next_alias());
    let all = client.get(&format!("_cat/indices/{alias}-v*?format=json&h=index")).await?;
    let names: Vec<&str> = all
        .as_array()
        .map(|a| a.iter().filter_map(|i| i["index"].as_str()).collect())
        .unwrap_or_default();
    // An interrupted rebuild left its index behind: delete it and start over.
    for left in indices_of(client, &next).await? {
        client.write(Method::DELETE, &left, None).await?;
    }
    let number = |name: &str| name.strip_prefix(&format!("{alias}-v"))?.parse::<u64>().ok();
    let latest = names.into_iter().filter_map(number).max().unwrap_or(0);
    let name = format!("{alias}-v{}", latest + 1);
    let mut definition = definition(client.options.shards);
    definition["aliases"] = json!({next: {}});
    client.write(Method::PUT, &name, Some(&definition)).await?;
    Ok(name)
}

/// Replaces the served index by the new one, atomically, and deletes the old one.
pub(crate) async fn switch(client: &Client, name: &str) -> Result<(), RequestError> {
    let (alias, next) = (&client.options.alias, client.next_alias());
    let old = indices_of(client, alias).await?;
    let mut actions: Vec<Value> =
        old.iter().map(|old| json!({"remove": {"index": old, "alias": alias}})).collect();
    actions.push(json!({"add": {"index": name, "alias": alias}}));
    actions.push(json!({"remove": {"index": name, "alias": next}}));
    client.write(Method::POST, "_aliases", Some(&json!({"actions": actions}))).await?;
    for old in old {
        client.write(Method::DELETE, &old, None).await?;
    }
    Ok(())
}

/// Whether a rebuild fills the next index.
pub(crate) async fn is_rebuilding(client: &Client) -> Result<bool, RequestError> {
    Ok(!indices_of(client, &client.next_alias()).await?.is_empty())
}
