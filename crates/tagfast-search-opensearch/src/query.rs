//! Request bodies in OpenSearch's query language, and pages from its responses.

use serde_json::{Value, json};
use tagfast_domain::{ContentKey, ContentType, TagName, TenantId, Version};
use tagfast_search::port::{EXACT_TOTAL_MAX, FACETS_MAX, PAGE_HITS_MAX, PREFIX_TAGS_MAX};
use tagfast_search::{Hit, Query, SearchError, SearchPage, SearchRequest, Sort, SortKey, Total};

use crate::error::RequestError;

/// Number of tags that each shard reports for facets; with more distinct tags, counts may be too
/// low.
const SHARD_FACETS_MAX: usize = 500;

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
            let any: Vec<Value> = parts.iter().map(clause).collect();
            json!({"bool": {"should": any, "minimum_should_match": 1}})
        }
    }
}

/// Matches the contents of a tenant that have tags and match all of `more`.
fn scoped(tenant: &TenantId, more: impl IntoIterator<Item = Value>) -> Value {
    let own = [json!({"term": {"tenant": tenant.as_str()}}), json!({"term": {"gone": false}})];
    json!({"bool": {"filter": own.into_iter().chain(more).collect::<Vec<_>>()}})
}

fn tag_counts(size: usize) -> Value {
    let order = json!([{"_count": "desc"}, {"_key": "asc"}]);
    let shard_size = SHARD_FACETS_MAX.max(size);
    json!({"terms": {"field": "tags", "size": size, "shard_size": shard_size, "order": order}})
}

/// Builds the request of a page. It asks for one hit more than the page holds, which tells whether
/// there is a next page.
pub(crate) fn body(tenant: &TenantId, request: &SearchRequest, query: Option<&Query>) -> Value {
    let of_type =
        request.content_type.as_ref().map(|name| json!({"term": {"type": name.as_str()}}));
    let sort = match request.sort {
        Sort::Updated => json!([{"updated_at": "desc"}, {"type": "asc"}, {"id": "asc"}]),
        Sort::Id => json!([{"type": "asc"}, {"id": "asc"}]),
    };
    let mut body = json!({
        "size": request.limit.clamp(1, PAGE_HITS_MAX) + 1,
        "query": scoped(tenant, query.map(clause).into_iter().chain(of_type)),
        "sort": sort,
        "track_total_hits": if request.total_exact { json!(true) } else { json!(EXACT_TOTAL_MAX) },
    });
    if let Some(after) = &request.after {
        let (name, id) = (after.content.content_type.as_str(), after.content.content_id.as_str());
        body["search_after"] = match request.sort {
            Sort::Updated => json!([after.updated_at, name, id]),
            Sort::Id => json!([name, id]),
        };
    }
    if request.facets {
        body["aggs"] = json!({"tags": tag_counts(FACETS_MAX)});
    }
    body
}

/// Builds the request for the tags that occur together with `tag`, without itself.
pub(crate) fn related(tenant: &TenantId, tag: &TagName, limit: usize) -> Value {
    let mut counts = tag_counts(limit);
    counts["terms"]["exclude"] = json!([tag.as_str()]);
    let with_tag = scoped(tenant, [clause(&Query::Tag(tag.clone()))]);
    json!({"size": 0, "query": with_tag, "aggs": {"tags": counts}})
}

/// Builds the request that counts the contents of each term.
pub(crate) fn counts(
    tenant: &TenantId,
    content_type: Option<&ContentType>,
    terms: &[Query],
) -> Value {
    let of_type = content_type.cloned().map(|name| clause(&Query::Type(name)));
    let filters: Vec<Value> = terms.iter().map(clause).collect();
    json!({
        "size": 0,
        "query": scoped(tenant, of_type),
        "aggs": {"terms": {"filters": {"filters": filters}}},
    })
}

/// Reads the counts of a response to [`counts`].
pub(crate) fn read_counts(response: &Value, terms: usize) -> Result<Vec<u64>, RequestError> {
    let buckets = response["aggregations"]["terms"]["buckets"].as_array();
    let count = |bucket: &Value| bucket["doc_count"].as_u64();
    let counts: Option<Vec<u64>> = buckets.and_then(|all| all.iter().map(count).collect());
    counts
        .filter(|counts| counts.len() == terms)
        .ok_or_else(|| RequestError::BadResponse("no counts of terms".to_owned()))
}

/// The prefixes in a query.
pub(crate) fn prefixes(query: &Query) -> Vec<&str> {
    fn collect<'a>(query: &'a Query, found: &mut Vec<&'a str>) {
        match query {
            Query::Prefix(prefix) => found.push(prefix),
            Query::Tag(_) | Query::Type(_) => {}
            Query::And(parts) | Query::Or(parts) => {
                parts.iter().for_each(|part| collect(part, found));
            }
            Query::Not(part) => collect(part, found),
        }
    }
    let mut found = Vec::new();
    collect(query, &mut found);
    found
}

/// Builds a Lucene regular expression that matches every tag with this prefix.
fn prefix_pattern(prefix: &str) -> String {
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

/// Builds the request for the tags of the tenant that have a prefix.
pub(crate) fn tags_with_prefix(tenant: &TenantId, prefix: &str) -> Value {
    let mut counts = tag_counts(PREFIX_TAGS_MAX + 1);
    counts["terms"]["include"] = json!(prefix_pattern(prefix));
    let with_prefix = json!({"prefix": {"tags": prefix}});
    json!({"size": 0, "query": scoped(tenant, [with_prefix]), "aggs": {"tags": counts}})
}

/// Refuses a prefix that matches too many tags, by the response to [`tags_with_prefix`].
pub(crate) fn check_prefix(prefix: &str, response: &Value) -> Result<(), SearchError> {
    let tags = response["aggregations"]["tags"]["buckets"].as_array().map_or(0, Vec::len);
    if tags > PREFIX_TAGS_MAX {
        let prefix = prefix.to_owned();
        return Err(SearchError::PrefixTooBroad { prefix, allowed: PREFIX_TAGS_MAX });
    }
    Ok(())
}

/// Reads the tag counts of a response, and whether some may be too low.
pub(crate) fn facets(response: &Value) -> Result<(Vec<(TagName, u64)>, bool), RequestError> {
    let tags = &response["aggregations"]["tags"];
    let buckets = tags["buckets"]
        .as_array()
        .ok_or_else(|| RequestError::BadResponse("no counts of tags".to_owned()))?;
    let one = |bucket: &Value| {
        Some((TagName::from_canonical(bucket["key"].as_str()?), bucket["doc_count"].as_u64()?))
    };
    let counts: Option<Vec<_>> = buckets.iter().map(one).collect();
    let counts = counts
        .ok_or_else(|| RequestError::BadResponse("a count of tags without a number".to_owned()))?;
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

/// Reads the page of a response.
pub(crate) fn page(response: &Value, request: &SearchRequest) -> Result<SearchPage, RequestError> {
    let bad = |what: &str| RequestError::BadResponse(what.to_owned());
    let found = response["hits"]["hits"].as_array().ok_or_else(|| bad("no hits"))?;
    let hits: Option<Vec<Hit>> = found.iter().map(hit).collect();
    let mut hits = hits.ok_or_else(|| bad("a hit that is not a content"))?;
    let more = hits.len() > request.limit.clamp(1, PAGE_HITS_MAX);
    hits.truncate(request.limit.clamp(1, PAGE_HITS_MAX));
    let total = &response["hits"]["total"];
    let value = total["value"].as_u64().ok_or_else(|| bad("no total"))?;
    let total = if total["relation"] == "gte" {
        Total::AtLeast(EXACT_TOTAL_MAX)
    } else {
        Total::Exactly(value)
    };
    let facets = if request.facets { Some(facets(response)?) } else { None };
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
        assert_eq!(prefix_pattern("c++"), r"c\+\+.*");
        assert_eq!(prefix_pattern("日本"), "日本.*");
        assert_eq!(prefix_pattern("a.b\"#@&<~"), r#"a\.b\"\#\@\&\<\~.*"#);
    }
}
