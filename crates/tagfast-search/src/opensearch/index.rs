//! Indices and their aliases.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::OpenSearchError;
use super::client::{Client, Failure};

/// Goes up when documents or their meaning change: an index of another format is rebuilt by
/// `tagfast reindex`.
const FORMAT: u64 = 1;

fn definition(shards: u32) -> Value {
    let keyword = json!({"type": "keyword"});
    json!({
        // Unset, an index that nobody searches stops refreshing.
        "settings": {"number_of_shards": shards, "refresh_interval": "5s"},
        "mappings": {
            "dynamic": "strict",
            "_meta": {"tagfast": {"format": FORMAT}},
            "properties": {
                "tenant": keyword, "type": keyword, "id": keyword, "tags": keyword,
                "updated_at": {"type": "long"}, "ver": {"type": "long"}, "gone": {"type": "boolean"},
            },
        },
    })
}

/// The indices behind an alias.
async fn behind(client: &Client, alias: &str) -> Result<Vec<String>, Failure> {
    match client.get_patiently(&format!("_alias/{alias}")).await {
        Ok(answer) => {
            Ok(answer.as_object().map(|all| all.keys().cloned().collect()).unwrap_or_default())
        }
        Err(failure) if failure.status() == Some(StatusCode::NOT_FOUND) => Ok(Vec::new()),
        Err(failure) => Err(failure),
    }
}

/// The index that is served, if there is one and it is ours.
pub(super) async fn check(client: &Client) -> Result<Option<String>, OpenSearchError> {
    let silent = |e: Failure| OpenSearchError::Unavailable(e.to_string());
    let alias = &client.options.alias;
    let mut served = behind(client, alias).await.map_err(silent)?;
    let Some(index) = served.pop() else {
        // An index of that name would take the alias's place.
        return match client.get(&format!("{alias}/_mapping")).await {
            Ok(_) => Err(OpenSearchError::Foreign(format!(
                "{alias} is an index, not our alias: delete it or rename it"
            ))),
            Err(failure) if failure.status() == Some(StatusCode::NOT_FOUND) => Ok(None),
            Err(failure) => Err(silent(failure)),
        };
    };
    if !served.is_empty() {
        return Err(OpenSearchError::Foreign(format!(
            "the alias {alias} leads to several indices: leave only one of {index}, {}",
            served.join(", ")
        )));
    }
    let mapping = client.get(&format!("{index}/_mapping")).await.map_err(silent)?;
    let mapping = &mapping[&index]["mappings"];
    match mapping["_meta"]["tagfast"]["format"].as_u64() {
        Some(FORMAT) if mapping["dynamic"] == "strict" => Ok(Some(index)),
        Some(format) if format > FORMAT => Err(OpenSearchError::Foreign(format!(
            "index {index} is of format {format}, this program knows {FORMAT}: run the newer program, or delete the index"
        ))),
        _ => Err(OpenSearchError::Foreign(format!(
            "the alias {alias} leads to {index}, which is not an index of ours: remove the alias"
        ))),
    }
}

/// Makes the index of the next generation; writers find it under the other alias.
pub(super) async fn begin(client: &Client) -> Result<String, Failure> {
    let (alias, next) = (&client.options.alias, client.next_alias());
    let all = client.get(&format!("_cat/indices/{alias}-v*?format=json&h=index")).await?;
    let names: Vec<&str> = all
        .as_array()
        .map(|a| a.iter().filter_map(|i| i["index"].as_str()).collect())
        .unwrap_or_default();
    // What an interrupted rebuild left behind is begun anew.
    for left in behind(client, &next).await? {
        client.change(Method::DELETE, &left, None).await?;
    }
    let number = |name: &str| name.strip_prefix(&format!("{alias}-v"))?.parse::<u64>().ok();
    let latest = names.into_iter().filter_map(number).max().unwrap_or(0);
    let name = format!("{alias}-v{}", latest + 1);
    let mut definition = definition(client.options.shards);
    definition["aliases"] = json!({next: {}});
    client.change(Method::PUT, &name, Some(&definition)).await?;
    Ok(name)
}

/// Serves the new index in place of the one before, in one step.
pub(super) async fn switch(client: &Client, name: &str) -> Result<(), Failure> {
    let (alias, next) = (&client.options.alias, client.next_alias());
    let old = behind(client, alias).await?;
    let mut actions: Vec<Value> =
        old.iter().map(|old| json!({"remove": {"index": old, "alias": alias}})).collect();
    actions.push(json!({"add": {"index": name, "alias": alias}}));
    actions.push(json!({"remove": {"index": name, "alias": next}}));
    client.change(Method::POST, "_aliases", Some(&json!({"actions": actions}))).await?;
    for old in old {
        client.change(Method::DELETE, &old, None).await?;
    }
    Ok(())
}

/// Whether another index is being filled.
pub(super) async fn is_rebuilding(client: &Client) -> Result<bool, Failure> {
    Ok(!behind(client, &client.next_alias()).await?.is_empty())
}
