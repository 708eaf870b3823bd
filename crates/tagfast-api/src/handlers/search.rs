//! Search by tags. Eventually consistent: every answer tells its age.
//!
//! The hits are one request to the index; facets and an exact total are requests of their own,
//! because an answer can go without them.

use std::sync::Arc;

use axum::response::Response;
use serde::Deserialize;
use tagfast_domain::{ContentType, TagName, TenantId, UnixMillis};
use tagfast_popular::{PopularTags, TagCount};
use tagfast_resilience::{Criticality, jittered_retry_after};
use tagfast_search::hints::hints;
use tagfast_search::{SearchIndex, SearchRequest, Sort, Total};
use tagfast_store::Source;
use utoipa::{IntoParams, ToSchema};

use super::derived::{cache_use, derived_response, request_feature, tag_rows};
use crate::cursor;
use crate::fallback::FeatureAnswer;
use crate::last_good::{CachedAnswer, FeatureKey};
use crate::metric::Feature;
use crate::params::PageItems;
use crate::problem::{Code, Problem, not_in_this_mode};
use crate::request::{ApiRequest, Read};
use crate::time::{Rfc3339, age};
use crate::wire::content::Names;
use crate::wire::meta::{Meta, STALE_AFTER_MS};
use crate::wire::search::{HintBody, HitBody, RelationName, SearchBody, TotalBody};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SearchParams {
    /// The query: tags with `AND`, `OR`, `NOT`, parentheses, quotes and `type:`; a list of tags
    /// requires all of them. Without it everything matches.
    #[param(required = false, example = "critical AND (ui OR api) AND NOT wontfix")]
    q: Option<String>,
    /// Only contents of this type.
    #[serde(rename = "type")]
    #[param(required = false, pattern = "^[a-z0-9._-]{1,64}$", min_length = 1, max_length = 64)]
    content_type: Option<String>,
    /// `updated`: newest first; `id`: by type and id.
    #[param(value_type = SortParam, inline, required = false, example = "updated")]
    sort: Option<SortParam>,
    /// Largest number of hits.
    #[serde(default)]
    #[param(
        value_type = Option<u32>, required = false, minimum = 1, maximum = 100, example = 20
    )]
    limit: PageItems<20, 100>,
    /// `next_cursor` of the previous page, with the same query, type and order.
    #[param(required = false)]
    cursor: Option<String>,
    /// Also count the tags of all matching contents.
    #[serde(default)]
    #[param(value_type = Option<bool>, required = false)]
    facets: bool,
    /// `exact`: count beyond 10,000.
    #[param(value_type = TotalParam, inline, required = false, example = "exact")]
    total: Option<TotalParam>,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum SortParam {
    Updated,
    Id,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum TotalParam {
    Exact,
}

/// Contents by tags
#[utoipa::path(
    get,
    path = "/v1/search",
    operation_id = "searchContents",
    tag = "find",
    params(SearchParams),
    responses((status = 200, description = "A page of hits", body = SearchBody<'static>))
)]
pub(crate) async fn search(Read(request, params): Read<SearchParams>) -> Result<Response, Problem> {
    let index = search_index(&request)?;
    let now = request.now();
    let query = search_request(&request, params, now)?;
    let max_stale = request.max_stale()?;
    let hits = SearchRequest { facets: false, total_exact: false, ..query.clone() };
    let (page, facets) =
        tokio::join!(index.search(request.tenant(), &hits), facets(&request, index, &query));
    let (page, facets) = (page?, facets?);
    let old = age(now, page.as_of);
    if i64::try_from(old.as_millis()).is_ok_and(|ms| ms > STALE_AFTER_MS)
        && max_stale.is_some_and(|oldest| old > oldest)
    {
        let detail = format!(
            "the search index lags by {} s, which is more than Cache-Control allows",
            old.as_secs()
        );
        return Err(
            Problem::new(Code::SearchUnavailable, detail).retry_after(jittered_retry_after())
        );
    }

    let mut meta = Meta::new(Source::Index, page.as_of, now);
    let (mut value, mut relation) = match page.total {
        Total::Exactly(n) => (n, RelationName::Eq),
        Total::AtLeast(n) => (n, RelationName::Gte),
    };
    let mut is_last_good = facets.as_ref().is_some_and(FeatureAnswer::is_last_good);
    if let Some(facets) = &facets {
        facets.annotate(Feature::Facets, &mut meta, now);
    }
    if query.total_exact && relation == RelationName::Gte {
        let total = exact_total(&request, index, &query).await?;
        total.annotate(Feature::Total, &mut meta, now);
        is_last_good |= total.is_last_good();
        if let Some(total) = total.result() {
            (value, relation) = (total.number, RelationName::Eq);
        }
    }
    // Later pages are those of a query that finds something.
    let hints = match query.after {
        Some(_) => Vec::new(),
        None => {
            let found_nothing = page.total == Total::Exactly(0);
            hints(index.as_ref(), request.tenant(), &query, found_nothing).await
        }
    };
    let next_cursor = page
        .next
        .as_ref()
        .map(|next| cursor::seal(&request.services().sealer, request.tenant(), &query, next, now));
    let body = SearchBody {
        hits: page
            .hits
            .iter()
            .map(|hit| HitBody {
                content_type: hit.content.content_type.as_str(),
                id: hit.content.content_id.as_str(),
                tags: Names(&hit.tags),
                updated_at: Rfc3339(hit.updated_at),
            })
            .collect(),
        total: TotalBody { value, relation },
        facets: facets.as_ref().map(tag_rows),
        next_cursor,
        hints: hints.into_iter().map(HintBody::from).collect(),
        meta,
    };
    Ok(derived_response(body, cache_use(is_last_good), now))
}

/// The tags of all matching contents; `None` if the request does not ask for them.
async fn facets(
    request: &ApiRequest,
    index: &Arc<dyn SearchIndex>,
    query: &SearchRequest,
) -> Result<Option<FeatureAnswer>, Problem> {
    if !query.facets {
        return Ok(None);
    }
    let key = FeatureKey::Facets(query.query.clone(), query.content_type.clone());
    let (index, popular) = (Arc::clone(index), request.services().popular.clone());
    let (tenant, query) = (request.tenant().clone(), feature_query(query, true));
    let answer = request_feature(request, Feature::Facets, key, async move {
        let page = index.search(&tenant, &query).await?;
        let facets = page.facets.unwrap_or_default();
        let names: Vec<TagName> = facets.iter().map(|(name, _)| name.clone()).collect();
        let displays = displays(popular.as_deref(), &tenant, &names).await;
        let shown = displays
            .as_ref()
            .map_or_else(|| names.iter().map(TagName::shared).collect(), Clone::clone);
        let rows = facets.into_iter().zip(shown);
        Ok(CachedAnswer {
            tags: rows.map(|((tag, count), display)| TagCount { tag, display, count }).collect(),
            approximate: page.facets_approximate,
            canonical_spellings: displays.is_none(),
            as_of: page.as_of,
            ..CachedAnswer::default()
        })
    });
    answer.await.map(|(answer, _)| Some(answer))
}

/// How many contents match, also beyond 10,000.
async fn exact_total(
    request: &ApiRequest,
    index: &Arc<dyn SearchIndex>,
    query: &SearchRequest,
) -> Result<FeatureAnswer, Problem> {
    let key = FeatureKey::Total(query.query.clone(), query.content_type.clone());
    let (index, tenant, query) =
        (Arc::clone(index), request.tenant().clone(), feature_query(query, false));
    let answer = request_feature(request, Feature::Total, key, async move {
        let page = index.search(&tenant, &query).await?;
        let (Total::Exactly(number) | Total::AtLeast(number)) = page.total;
        Ok(CachedAnswer { number, as_of: page.as_of, ..CachedAnswer::default() })
    });
    answer.await.map(|(answer, _)| answer)
}

/// The request for the facets or for the exact total of a search; sheddable, unlike its hits.
fn feature_query(query: &SearchRequest, facets: bool) -> SearchRequest {
    SearchRequest {
        after: None,
        limit: 1,
        facets,
        total_exact: !facets,
        criticality: Criticality::Sheddable,
        ..query.clone()
    }
}

fn search_request(
    request: &ApiRequest,
    params: SearchParams,
    now: UnixMillis,
) -> Result<SearchRequest, Problem> {
    let mut query = SearchRequest {
        query: params.q.filter(|q| !q.trim().is_empty()),
        content_type: params.content_type.map(|t| ContentType::parse(&t)).transpose()?,
        sort: match params.sort {
            None | Some(SortParam::Updated) => Sort::Updated,
            Some(SortParam::Id) => Sort::Id,
        },
        after: None,
        limit: params.limit.checked()?,
        facets: params.facets,
        total_exact: matches!(params.total, Some(TotalParam::Exact)),
        criticality: Criticality::Degradable,
    };
    if let Some(sealed) = params.cursor {
        let sealer = &request.services().sealer;
        query.after = Some(cursor::open(sealer, request.tenant(), &query, &sealed, now)?);
    }
    Ok(query)
}

/// The tenant's spellings; `None` when they are not available.
async fn displays(
    popular: Option<&dyn PopularTags>,
    tenant: &TenantId,
    names: &[TagName],
) -> Option<Vec<Arc<str>>> {
    let Some(popular) = popular else { return Some(names.iter().map(TagName::shared).collect()) };
    popular.displays(tenant, names).await.ok().filter(|displays| displays.len() == names.len())
}

pub(super) fn search_index(request: &ApiRequest) -> Result<&Arc<dyn SearchIndex>, Problem> {
    request.services().search.as_ref().ok_or_else(|| not_in_this_mode("search"))
}
