//! Queries in OpenSearch's language, and what its answers say.

use serde_json::{Value, json};
use tagfast_domain::{ContentKey, TagName, TenantId, Version};

use super::client::{Client, Failure};
use crate::port::Total;
use crate::query::Query;
use crate::{Hit, SearchError, SearchPage, SearchRequest, Sort, SortKey};

/// Totals are exact up to here unless asked for.
const TOTAL_EXACT: u64 = 10_000;
/// Tags in an answer's facets.
const FACETS: usize = 50;
/// Tags that each shard offers for them: more distinct tags than this, and counts may be too low.
const FACETS_OF_A_SHARD: usize = 500;
/// Most tags a prefix may stand for.
const PREFIX_TAGS: usize = 1024;
/// Most hits of a page.
const PAGE: usize = 200;

fn clause(query: &Query) -> Value {
    match query {
        Query::Tag(name) => json!({"term": {"tags": name.as_str()}}),
        Query::Prefix(prefix) => json!({"prefix": {"tags": prefix}}),
        Query::Type(name) => json!({"term": {"type": name.as_str()}}),
        Query::Not(inner) => json!({"bool": {"must_not": [clause(inner)]}}),
        Query::And(parts) => {
            json!({"bool": {"filter": parts.iter().map(clause).collect::<Vec<_>>()}})
        }
        Query::Or(parts) => {
            json!({"bool": {"should": parts.iter().map(clause).collect::<Vec<_>>(), "minimum_should_match": 1}})
        }
    }
}

/// Live contents of a tenant that match all of these.
fn scoped(tenant: &TenantId, more: impl IntoIterator<Item = Value>) -> Value {
    let own = [json!({"term": {"tenant": tenant.as_str()}}), json!({"term": {"gone": false}})];
    json!({"bool": {"filter": own.into_iter().chain(more).collect::<Vec<_>>()}})
}

fn tag_counts(size: usize) -> Value {
    let order = json!([{"_count": "desc"}, {"_key": "asc"}]);
    json!({"terms": {"field": "tags", "size": size, "shard_size": FACETS_OF_A_SHARD.max(size), "order": order}})
}

/// The request of a page. One hit more than asked for, to know whether there is a next page.
pub(super) fn body(tenant: &TenantId, request: &SearchRequest, query: Option<&Query>) -> Value {
    let of_type =
        request.content_type.as_ref().map(|name| json!({"term": {"type": name.as_str()}}));
    let sort = match request.sort {
        Sort::Updated => json!([{"updated_at": "desc"}, {"type": "asc"}, {"id": "asc"}]),
        Sort::Id => json!([{"type": "asc"}, {"id": "asc"}]),
    };
    let mut body = json!({
        "size": request.limit.clamp(1, PAGE) + 1,
        "query": scoped(tenant, query.map(clause).into_iter().chain(of_type)),
        "sort": sort,
        "track_total_hits": if request.total_exact { json!(true) } else { json!(TOTAL_EXACT) },
    });
    if let Some(after) = &request.after {
        let (name, id) = (after.content.content_type.as_str(), after.content.content_id.as_str());
        body["search_after"] = match request.sort {
            Sort::Updated => json!([after.updated_at, name, id]),
            Sort::Id => json!([name, id]),
        };
    }
    if request.facets {
        body["aggs"] = json!({"tags": tag_counts(FACETS)});
    }
    body
}

/// The tags that occur together with one, without itself.
pub(super) fn related(tenant: &TenantId, tag: &TagName, limit: usize) -> Value {
    let mut counts = tag_counts(limit);
    counts["terms"]["exclude"] = json!([tag.as_str()]);
    json!({"size": 0, "query": scoped(tenant, [clause(&Query::Tag(tag.clone()))]), "aggs": {"tags": counts}})
}

fn prefixes<'a>(query: &'a Query, found: &mut Vec<&'a str>) {
    match query {
        Query::Prefix(prefix) => found.push(prefix),
        Query::Tag(_) | Query::Type(_) => {}
        Query::And(parts) | Query::Or(parts) => parts.iter().for_each(|part| prefixes(part, found)),
        Query::Not(part) => prefixes(part, found),
    }
}

/// A prefix as a regular expression of Lucene that matches what begins with it.
fn begins_with(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len() + 8);
    for c in prefix.chars() {
        if c.is_ascii() && !c.is_ascii_alphanumeric() {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push_str(".*");
    pattern
}

/// Refuses prefixes that stand for too many tags of the tenant.
pub(super) async fn check_prefixes(
    client: &Client,
    tenant: &TenantId,
    query: &Query,
) -> Result<(), SearchError> {
    let mut found = Vec::new();
    prefixes(query, &mut found);
    for prefix in found {
        let mut counts = tag_counts(PREFIX_TAGS + 1);
        counts["terms"]["include"] = json!(begins_with(prefix));
        let with_prefix = json!({"prefix": {"tags": prefix}});
        let body =
            json!({"size": 0, "query": scoped(tenant, [with_prefix]), "aggs": {"tags": counts}});
        let answer = client.search(&body).await.map_err(super::unavailable)?;
        let tags = answer["aggregations"]["tags"]["buckets"].as_array().map_or(0, Vec::len);
        if tags > PREFIX_TAGS {
            return Err(SearchError::PrefixTooBroad {
                prefix: prefix.to_owned(),
                allowed: PREFIX_TAGS,
            });
        }
    }
    Ok(())
}

/// Counts of tags, and whether some may be too low.
pub(super) fn facets(answer: &Value) -> Result<(Vec<(TagName, u64)>, bool), Failure> {
    let tags = &answer["aggregations"]["tags"];
    let buckets =
        tags["buckets"].as_array().ok_or_else(|| Failure::Odd("no counts of tags".to_owned()))?;
    let one = |bucket: &Value| {
        Some((TagName::from_canonical(bucket["key"].as_str()?), bucket["doc_count"].as_u64()?))
    };
    let counts: Option<Vec<_>> = buckets.iter().map(one).collect();
    let counts =
        counts.ok_or_else(|| Failure::Odd("a count of tags without a number".to_owned()))?;
    Ok((counts, tags["doc_count_error_upper_bound"].as_u64() != Some(0)))
}

fn hit(found: &Value) -> Option<Hit> {
    let source = &found["_source"];
    let part = |name: &str| source[name].as_str();
    let key = [part("tenant")?, part("type")?, part("id")?].join("\0");
    let mut tags: Vec<TagName> = source["tags"]
        .as_array()?
        .iter()
        .map(|tag| tag.as_str().map(TagName::from_canonical))
        .collect::<Option<_>>()?;
    tags.sort();
    Some(Hit {
        content: ContentKey::from_bytes(key.as_bytes()).ok()?.content,
        tags,
        updated_at: source["updated_at"].as_i64()?,
        version: Version::from_packed(source["ver"].as_u64()?).ok()?,
    })
}

/// A page of an answer.
pub(super) fn page(answer: &Value, request: &SearchRequest) -> Result<SearchPage, Failure> {
    let odd = |what: &str| Failure::Odd(what.to_owned());
    let found = answer["hits"]["hits"].as_array().ok_or_else(|| odd("no hits"))?;
    let hits: Option<Vec<Hit>> = found.iter().map(hit).collect();
    let mut hits = hits.ok_or_else(|| odd("a hit that is not a content"))?;
    let more = hits.len() > request.limit.clamp(1, PAGE);
    hits.truncate(request.limit.clamp(1, PAGE));
    let total = &answer["hits"]["total"];
    let value = total["value"].as_u64().ok_or_else(|| odd("no total"))?;
    let total = if total["relation"] == "gte" {
        Total::AtLeast(TOTAL_EXACT)
    } else {
        Total::Exactly(value)
    };
    let facets = if request.facets { Some(facets(answer)?) } else { None };
    let next = hits
        .last()
        .filter(|_| more)
        .map(|hit| SortKey { updated_at: hit.updated_at, content: hit.content.clone() });
    let facets_approximate = facets.as_ref().is_some_and(|(_, approximate)| *approximate);
    Ok(SearchPage {
        hits,
        total,
        facets: facets.map(|(counts, _)| counts),
        facets_approximate,
        next,
        as_of: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_taken_literally() {
        assert_eq!(begins_with("c++"), r"c\+\+.*");
        assert_eq!(begins_with("日本"), "日本.*");
        assert_eq!(begins_with("a.b\"#@&<~"), r#"a\.b\"\#\@\&\<\~.*"#);
    }
}
