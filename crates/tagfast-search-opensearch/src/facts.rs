//! What the server says about the index: aliases, identity, settings, mapping, shards.
//!
//! Two requests give everything: `GET` of the indices behind our aliases and names, and their
//! statistics. The parsers are pure.
//!
//! How it fails: an answer that lacks a part is an error, never a healthy index.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::client::Client;
use crate::error::RequestError;

/// What the facts of an index are reduced to by the server.
const INDEX_FILTER: &str = "*.aliases,*.mappings,*.settings.index.uuid,*.settings.index.blocks,\
    *.settings.index.verified_before_close,*.settings.index.number_of_shards,\
    *.settings.index.default_pipeline,*.settings.index.final_pipeline,\
    *.settings.index.search.default_pipeline";
/// What the statistics are reduced to by the server.
const SHARDS_FILTER: &str = "indices.*.primaries.docs,indices.*.shards.*.routing.primary,\
    indices.*.shards.*.commit.user_data.history_uuid,indices.*.shards.*.seq_no.max_seq_no,\
    indices.*.shards.*.seq_no.global_checkpoint";

/// What is known of the index and its aliases at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Facts {
    /// The indices that one of our aliases leads to or that have one of our names, by name.
    pub(crate) indices: BTreeMap<String, IndexFacts>,
}

/// What is known of one index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexFacts {
    /// Identity that the server gave it; an index that is created again has a different one.
    pub(crate) uuid: String,
    /// Aliases that lead to it.
    pub(crate) aliases: BTreeSet<String>,
    /// Whether it is closed.
    pub(crate) closed: bool,
    /// Blocks that are set: `write`, `read_only`, `read_only_allow_delete`, `read`, `metadata`.
    pub(crate) blocks: BTreeSet<String>,
    /// Pipelines that change what is written or found.
    pub(crate) pipelines: BTreeSet<String>,
    /// Number of primary shards.
    pub(crate) shards: u64,
    /// The mapping without `_meta`.
    pub(crate) mapping: Value,
    /// `_meta.tagfast` of the mapping; null in an index that this service did not make.
    pub(crate) meta: Value,
    /// Its primary shards; `None` if the statistics do not show the index.
    pub(crate) primaries: Option<Primaries>,
}

/// The primary shards of an index that work.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Primaries {
    /// Documents, as far as they are visible.
    pub(crate) documents: u64,
    /// By number of the shard.
    pub(crate) shards: BTreeMap<u64, ShardFacts>,
}

/// What is known of one primary shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShardFacts {
    /// Identity of its history: the server changes it when operations may be missing, because the
    /// shard was restored from a snapshot, or a copy that is empty or stale was made the primary.
    pub(crate) history: String,
    /// Number of the newest operation, from 0; -1 before the first one.
    pub(crate) newest_operation: i64,
    /// Up to this operation every copy in sync has everything.
    pub(crate) in_every_copy: i64,
}

impl IndexFacts {
    /// Whether this service made it: then the service may delete it as well.
    pub(crate) fn is_ours(&self, name: &str, alias: &str) -> bool {
        generation(name, alias).is_some() && self.meta["format"].is_u64()
    }

    /// What the index must say of itself to prove that a rebuild filled it to the end, and that
    /// it has lost nothing since; `None` while a shard is missing.
    pub(crate) fn proof_of_filling(&self) -> Option<Value> {
        let primaries = self.primaries.as_ref()?;
        let histories: Vec<&str> =
            primaries.shards.values().map(|shard| shard.history.as_str()).collect();
        (histories.len() as u64 == self.shards)
            .then(|| json!({"uuid": self.uuid, "histories": histories}))
    }
}

impl Facts {
    /// The indices that an alias leads to.
    pub(crate) fn behind<'a>(
        &'a self,
        alias: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a IndexFacts)> {
        let has_alias = move |(_, index): &(&String, &IndexFacts)| index.aliases.contains(alias);
        self.indices.iter().filter(has_alias).map(|(name, index)| (name.as_str(), index))
    }
}

/// Number of the generation in the name of an index (`tagfast-content-v7`); `None` for other names.
pub(crate) fn generation(name: &str, alias: &str) -> Option<u32> {
    name.strip_prefix(alias)?.strip_prefix("-v")?.parse().ok()
}

/// Reads the facts; each request ends after `timeout`.
///
/// # Errors
///
/// The server does not answer, refuses the request, or answers something else.
pub(crate) async fn read(client: &Client, timeout: Duration) -> Result<Facts, RequestError> {
    let (alias, next) = (&client.options.alias, client.next_alias());
    let names = format!("{alias},{next},{alias}-v*");
    let all = "ignore_unavailable=true&allow_no_indices=true&expand_wildcards=all";
    let of_indices = format!("{names}?{all}&filter_path={INDEX_FILTER}");
    // An alias may lead to a closed index, of which there are no statistics.
    let of_shards = format!(
        "{names}/_stats/docs?level=shards&ignore_unavailable=true&expand_wildcards=open,hidden\
         &forbid_closed_indices=false&filter_path={SHARDS_FILTER}"
    );
    let within = |path: String| async move {
        let answer = tokio::time::timeout(timeout, client.get_slow(&path));
        answer.await.map_err(|_| RequestError::Timeout)?
    };
    let (indices, shards) = tokio::join!(within(of_indices), within(of_shards));
    let shards = match shards {
        Ok(shards) => shards,
        // None of them exists, or all of them are closed.
        Err(error) if error.is(StatusCode::NOT_FOUND) || error.is(StatusCode::BAD_REQUEST) => {
            json!({})
        }
        Err(error) => return Err(error),
    };
    match indices {
        Ok(indices) => parse(&indices, &shards),
        Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(Facts::default()),
        Err(error) => Err(error),
    }
}

fn parse(indices: &Value, shards: &Value) -> Result<Facts, RequestError> {
    let bad = |what: &str| RequestError::BadResponse(format!("the answer lacks {what}"));
    let all = indices.as_object().ok_or_else(|| bad("the indices"))?;
    let mut facts = Facts::default();
    for (name, index) in all {
        let settings = &index["settings"]["index"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let mut mapping = index["mappings"].clone();
        let meta = mapping["_meta"]["tagfast"].clone();
        if let Some(mapping) = mapping.as_object_mut() {
            mapping.remove("_meta");
        }
        let is_set = |value: &Value| value == "true" || value == &json!(true);
        let blocks = settings["blocks"].as_object().into_iter().flatten();
        let pipelines = [
            &settings["default_pipeline"],
            &settings["final_pipeline"],
            &settings["search"]["default_pipeline"],
        ];
        let known = IndexFacts {
            uuid: text(&settings["uuid"]).ok_or_else(|| bad("an index's uuid"))?,
            aliases: index["aliases"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(a, _)| a.clone())
                .collect(),
            closed: is_set(&settings["verified_before_close"]),
            blocks: blocks.filter(|(_, set)| is_set(set)).map(|(block, _)| block.clone()).collect(),
            pipelines: pipelines
                .into_iter()
                .filter_map(text)
                .filter(|name| name != "_none")
                .collect(),
            shards: number(&settings["number_of_shards"])
                .ok_or_else(|| bad("a number of shards"))?,
            mapping,
            meta,
            primaries: primaries(&shards["indices"][name])?,
        };
        facts.indices.insert(name.clone(), known);
    }
    Ok(facts)
}

/// A number that OpenSearch writes as a number or, in settings, as a text.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn primaries(stats: &Value) -> Result<Option<Primaries>, RequestError> {
    let Some(shards) = stats["shards"].as_object() else { return Ok(None) };
    let bad = |what: &str| RequestError::BadResponse(format!("a shard without {what}"));
    let mut known = Primaries {
        documents: stats["primaries"]["docs"]["count"].as_u64().unwrap_or(0),
        shards: BTreeMap::new(),
    };
    for (shard, copies) in shards {
        let shard = shard.parse().map_err(|_| bad("a number"))?;
        let copies = copies.as_array().into_iter().flatten();
        for copy in copies.filter(|copy| copy["routing"]["primary"] == true) {
            let history = copy["commit"]["user_data"]["history_uuid"].as_str();
            // A shard that starts has no commit yet: it counts as missing.
            let Some(history) = history else { continue };
            let sequence = |name: &str| copy["seq_no"][name].as_i64();
            known.shards.insert(
                shard,
                ShardFacts {
                    history: history.to_owned(),
                    newest_operation: sequence("max_seq_no").ok_or_else(|| bad("max_seq_no"))?,
                    in_every_copy: sequence("global_checkpoint").unwrap_or(-1),
                },
            );
        }
    }
    Ok(Some(known))
}
