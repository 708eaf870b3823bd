//! Finding contents by tags. Eventually consistent: every answer says how old it is.
//!
//! Hits are one question to the index; facets and an exact total are others, because they can be
//! done without.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderValue, header};
use tagfast_domain::{ContentType, TagName, TenantId};
use tagfast_popular::{PopularTags, TagCount};
use tagfast_resilience::{Criticality, comes_back};
use tagfast_search::{SearchIndex, SearchRequest, Sort, Total};
use tagfast_store::{CacheUse, Source};
use utoipa::IntoParams;

use super::tags::ask;
use crate::call::{Call, Read, age};
use crate::cursor;
use crate::encoding::bad_parameter;
use crate::headers::{self, CACHE_STATUS};
use crate::problem::{Code, Problem, not_in_this_mode};
use crate::sheddable::{Feature, Given};
use crate::snapshots::{Known, Question};
use crate::time::Stamp;
use crate::wire::{self, Derived, HitBody, Meta, Names, SearchBody, TotalBody};

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query to the OpenAPI document")]
struct SearchParameters {
    /// The query: tags with `AND`, `OR`, `NOT`, parentheses, quotes and `type:`; a list of tags
    /// means all of them. Without it everything matches.
    #[param(required = false, example = "critical AND (ui OR api) AND NOT wontfix")]
    q: Option<String>,
    /// Only contents of this type.
    #[param(
        rename = "type",
        required = false,
        pattern = "^[a-z0-9._-]{1,64}$",
        min_length = 1,
        max_length = 64
    )]
    content_type: Option<String>,
    /// `updated`: newest first; `id`: by type and id.
    #[param(required = false, pattern = "^(updated|id)$", example = "updated")]
    sort: Option<String>,
    /// Most hits.
    #[param(required = false, minimum = 1, maximum = 100, example = 20)]
    limit: Option<u32>,
    /// `next_cursor` of the page before, with the same query, type and order.
    #[param(required = false)]
    cursor: Option<String>,
    /// Also count the tags of all matching contents.
    #[param(required = false)]
    facets: Option<bool>,
    /// `exact`: count beyond 10,000.
    #[param(required = false, pattern = "^exact$", example = "exact")]
    total: Option<String>,
}

const SEARCH_PARAMETERS: &[&str] = &["q", "type", "sort", "limit", "cursor", "facets", "total"];

/// Contents by tags
#[utoipa::path(
    get,
    path = "/v1/search",
    tag = "find",
    params(SearchParameters),
    responses((status = 200, description = "A page of hits", body = SearchBody<'static>))
)]
pub(crate) async fn search(Read(call): Read) -> Result<Response, Problem> {
    let index = index(&call)?;
    let now = call.app.parts.clock.now_ms();
    let request = search_request(&call, now)?;
    let max_stale = call.max_stale()?;
    let hits = SearchRequest { facets: false, total_exact: false, ..request.clone() };
    let (page, facets) =
        tokio::join!(index.search(call.tenant(), &hits), facets(&call, index, &request));
    let (page, facets) = (page?, facets?);
    let old = age(now, page.as_of);
    if i64::try_from(old.as_millis()).is_ok_and(|ms| ms > wire::STALE_MS)
        && max_stale.is_some_and(|most| old > most)
    {
        let detail = format!(
            "the search index is {} s behind, which is more than Cache-Control allows",
            old.as_secs()
        );
        return Err(Problem::new(Code::SearchUnavailable, detail).retry_after(comes_back()));
    }

    let mut meta = Meta::new(Source::Index, page.as_of, now);
    let (mut value, mut relation) = match page.total {
        Total::Exactly(n) => (n, "eq"),
        Total::AtLeast(n) => (n, "gte"),
    };
    let mut last_known = facets.as_ref().is_some_and(Given::is_last);
    if let Some(facets) = &facets {
        facets.mark(Feature::Facets, &mut meta, now);
    }
    if request.total_exact && relation == "gte" {
        let total = exact_total(&call, index, &request).await?;
        total.mark(Feature::Total, &mut meta, now);
        last_known |= total.is_last();
        if let Some(known) = total.known() {
            (value, relation) = (known.number, "eq");
        }
    }
    let next_cursor = page
        .next
        .as_ref()
        .map(|next| cursor::seal(&call.app.parts.sealer, call.tenant(), &request, next, now));
    let body = SearchBody {
        hits: page
            .hits
            .iter()
            .map(|hit| HitBody {
                content_type: hit.content.content_type.as_str(),
                id: hit.content.content_id.as_str(),
                tags: Names(&hit.tags),
                updated_at: Stamp(hit.updated_at),
            })
            .collect(),
        total: TotalBody { value, relation },
        facets: facets.as_ref().map(super::tags::rows),
        next_cursor,
        meta,
    };
    Ok(aged(body, if last_known { CacheUse::Stale("snapshot") } else { CacheUse::Bypass }, now))
}

/// The tags of all contents that match, if they are asked for.
async fn facets(
    call: &Call,
    index: &Arc<dyn SearchIndex>,
    request: &SearchRequest,
) -> Result<Option<Given>, Problem> {
    if !request.facets {
        return Ok(None);
    }
    let question = Question::Facets(request.query.clone(), request.content_type.clone());
    let (index, popular) = (Arc::clone(index), call.app.parts.popular.clone());
    let (tenant, request) = (call.tenant().clone(), beside(request, true));
    let given = ask(call, Feature::Facets, question, async move {
        let page = index.search(&tenant, &request).await?;
        let facets = page.facets.unwrap_or_default();
        let names: Vec<TagName> = facets.iter().map(|(name, _)| name.clone()).collect();
        let displays = displays(popular.as_deref(), &tenant, &names).await;
        let shown = displays
            .as_ref()
            .map_or_else(|| names.iter().map(TagName::shared).collect(), Clone::clone);
        let rows = facets.into_iter().zip(shown);
        Ok(Known {
            tags: rows.map(|((tag, count), display)| TagCount { tag, display, count }).collect(),
            approximate: page.facets_approximate,
            plain: displays.is_none(),
            as_of: page.as_of,
            ..Known::default()
        })
    });
    given.await.map(|(given, _)| Some(given))
}

/// How many contents match, also beyond 10,000.
async fn exact_total(
    call: &Call,
    index: &Arc<dyn SearchIndex>,
    request: &SearchRequest,
) -> Result<Given, Problem> {
    let question = Question::Total(request.query.clone(), request.content_type.clone());
    let (index, tenant, request) =
        (Arc::clone(index), call.tenant().clone(), beside(request, false));
    let given = ask(call, Feature::Total, question, async move {
        let page = index.search(&tenant, &request).await?;
        let (Total::Exactly(number) | Total::AtLeast(number)) = page.total;
        Ok(Known { number, as_of: page.as_of, ..Known::default() })
    });
    given.await.map(|(given, _)| given)
}

/// What is asked beside the hits: the facets or the exact total.
fn beside(request: &SearchRequest, facets: bool) -> SearchRequest {
    SearchRequest {
        after: None,
        limit: 1,
        facets,
        total_exact: !facets,
        criticality: Criticality::Sheddable,
        ..request.clone()
    }
}

fn search_request(call: &Call, now: i64) -> Result<SearchRequest, Problem> {
    let mut query = call.query(SEARCH_PARAMETERS)?;
    let mut request = SearchRequest {
        query: query.take("q").filter(|q| !q.trim().is_empty()),
        content_type: query.take("type").map(|t| ContentType::parse(&t)).transpose()?,
        sort: match query.take("sort").as_deref() {
            None | Some("updated") => Sort::Updated,
            Some("id") => Sort::Id,
            Some(_) => return Err(bad_parameter("sort", "it must be updated or id")),
        },
        after: None,
        limit: query.number("limit", 20, 100)?,
        facets: query.flag("facets")?,
        total_exact: match query.take("total").as_deref() {
            None => false,
            Some("exact") => true,
            Some(_) => return Err(bad_parameter("total", "it must be exact")),
        },
        criticality: Criticality::Degradable,
    };
    if let Some(sealed) = query.take("cursor") {
        request.after =
            Some(cursor::open(&call.app.parts.sealer, call.tenant(), &request, &sealed, now)?);
    }
    Ok(request)
}

/// The tenant's spellings; `None` where they cannot be had.
async fn displays(
    popular: Option<&dyn PopularTags>,
    tenant: &TenantId,
    names: &[TagName],
) -> Option<Vec<Arc<str>>> {
    let Some(popular) = popular else { return Some(names.iter().map(TagName::shared).collect()) };
    popular.displays(tenant, names).await.ok().filter(|displays| displays.len() == names.len())
}

fn index(call: &Call) -> Result<&Arc<dyn SearchIndex>, Problem> {
    call.app.parts.search.as_ref().ok_or_else(|| not_in_this_mode("search"))
}

/// An answer that says how old it is and where it is from.
pub(super) fn aged(body: impl Derived, cache: CacheUse, now: i64) -> Response {
    let mut response = wire::json(&body);
    let out = response.headers_mut();
    out.insert(header::AGE, HeaderValue::from(age(now, body.meta().as_of()).as_secs()));
    out.insert(header::CACHE_CONTROL, headers::cache_control(body.meta().is_worse()));
    out.insert(CACHE_STATUS.clone(), headers::cache_status(cache));
    response
}
