//! Finding contents by tags, and tags by use. Eventually consistent: every answer says how old it is.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderValue, header};
use tagfast_domain::{ContentType, TagName};
use tagfast_popular::{PopularTags, Window};
use tagfast_search::{SearchIndex, SearchRequest, Sort, Total};
use tagfast_store::{CacheUse, Source};
use utoipa::IntoParams;

use super::TagPath;
use crate::call::{Call, Read, age};
use crate::cursor;
use crate::encoding::bad_parameter;
use crate::headers::{self, CACHE_STATUS};
use crate::problem::{Code, Problem, not_in_this_mode};
use crate::time::Stamp;
use crate::wire::{
    self, FacetBody, HitBody, Meta, Names, PopularBody, RelatedBody, SearchBody, SuggestBody, TagBody, TotalBody,
};

/// Longest prefix in bytes.
const PREFIX_BYTES: usize = 256;
const RELATED: usize = 10;

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query to the OpenAPI document")]
struct SearchParameters {
    /// The query: tags with `AND`, `OR`, `NOT`, parentheses, quotes and `type:`; a list of tags means all of them.
    /// Without it everything matches.
    #[param(required = false, example = "critical AND (ui OR api) AND NOT wontfix")]
    q: Option<String>,
    /// Only contents of this type.
    #[param(rename = "type", required = false, pattern = "^[a-z0-9._-]{1,64}$", min_length = 1, max_length = 64)]
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
    let page = index.search(call.tenant(), &request).await?;

    let mut meta = Meta::new(Source::Index, page.as_of, now);
    if page.facets_approximate {
        meta.degrade("facets", "approximate");
    }
    let shown = match &page.facets {
        None => Vec::new(),
        Some(facets) => {
            let names: Vec<TagName> = facets.iter().map(|(name, _)| name.clone()).collect();
            displays(&call, &names, &mut meta).await
        }
    };
    let facets = page.facets.as_ref().map(|facets| {
        let rows = facets.iter().zip(&shown);
        rows.map(|((tag, count), display)| FacetBody { tag: tag.as_str(), display, count: *count }).collect()
    });
    let next_cursor =
        page.next.as_ref().map(|next| cursor::seal(&call.app.parts.sealer, call.tenant(), &request, next, now));
    let (value, relation) = match page.total {
        Total::Exactly(n) => (n, "eq"),
        Total::AtLeast(n) => (n, "gte"),
    };
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
        facets,
        next_cursor,
        meta,
    };
    Ok(aged(wire::json(&body), now, page.as_of))
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
    };
    if let Some(sealed) = query.take("cursor") {
        request.after = Some(cursor::open(&call.app.parts.sealer, call.tenant(), &request, &sealed, now)?);
    }
    Ok(request)
}

/// The tenant's spellings; the canonical names where they cannot be had.
async fn displays(call: &Call, names: &[TagName], meta: &mut Meta) -> Vec<Arc<str>> {
    let canonical = || names.iter().map(TagName::shared).collect();
    let Some(popular) = &call.app.parts.popular else { return canonical() };
    match popular.displays(call.tenant(), names).await {
        Ok(displays) if displays.len() == names.len() => displays,
        Ok(_) | Err(_) => {
            meta.degrade("display", "unavailable");
            canonical()
        }
    }
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query to the OpenAPI document")]
struct SuggestParameters {
    /// The beginning of a tag, in any spelling; empty or absent: the most used tags.
    #[param(required = false, max_length = 256, example = "crit")]
    prefix: Option<String>,
    /// Most tags.
    #[param(required = false, minimum = 1, maximum = 100, example = 20)]
    limit: Option<u32>,
}

/// Tags by prefix
///
/// Tags whose canonical or display name begins with the prefix, most used first.
#[utoipa::path(
    get,
    path = "/v1/tags",
    tag = "find",
    params(SuggestParameters),
    responses((status = 200, description = "Matching tags", body = SuggestBody<'static>))
)]
pub(crate) async fn suggest(Read(call): Read) -> Result<Response, Problem> {
    let mut query = call.query(&["prefix", "limit"])?;
    let prefix = query.take("prefix").unwrap_or_default();
    let limit = query.number("limit", 20, 100)?;
    if prefix.len() > PREFIX_BYTES {
        return Err(Problem::new(Code::BadParameter, "query parameter prefix: it is too long").limit(
            "prefix_bytes",
            PREFIX_BYTES as u64,
            prefix.len() as u64,
        ));
    }
    let found = popular(&call)?.suggest(call.tenant(), &prefix, limit).await?;
    let now = call.app.parts.clock.now_ms();
    let mut meta = Meta::new(Source::Snapshot, found.as_of, now);
    if found.approximate {
        meta.degrade("suggestions", "approximate");
    }
    if found.stale {
        meta.last_known("suggestions");
    }
    let body = SuggestBody { tags: found.tags.iter().map(FacetBody::from).collect(), meta };
    Ok(aged(wire::json(&body), now, found.as_of))
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query to the OpenAPI document")]
struct PopularParameters {
    /// `1h`, `24h`, `7d`: taggings added within; `all`: every tagging that exists.
    #[param(required = false, pattern = "^(1h|24h|7d|all)$", example = "24h")]
    window: Option<String>,
    /// Most tags.
    #[param(required = false, minimum = 1, maximum = 1000, example = 20)]
    limit: Option<u32>,
}

/// The most used tags of a window
#[utoipa::path(
    get,
    path = "/v1/tags/popular",
    tag = "find",
    params(PopularParameters),
    responses((status = 200, description = "A ranking", body = PopularBody<'static>))
)]
pub(crate) async fn popular_tags(Read(call): Read) -> Result<Response, Problem> {
    let mut query = call.query(&["window", "limit"])?;
    let window: Window = match query.take("window") {
        None => Window::All,
        Some(word) => word.parse().map_err(|_| bad_parameter("window", "it must be 1h, 24h, 7d or all"))?,
    };
    let limit = query.number("limit", 20, 1000)?;
    let board = popular(&call)?.popular(call.tenant(), window, limit).await?;
    let now = call.app.parts.clock.now_ms();
    let mut meta = Meta::new(Source::Snapshot, board.as_of, now);
    if board.stale {
        meta.last_known("popular");
    }
    let tags = board.tags.iter().map(FacetBody::from).collect();
    let body = PopularBody { window: window.as_str(), tags, meta };
    Ok(aged(wire::json(&body), now, board.as_of))
}

/// One tag
///
/// How many contents carry it and which tags occur together with it. A tag nobody uses has the count 0. The tag named
/// `popular` is read as `/v1/tags/%70opular`.
#[utoipa::path(
    get,
    path = "/v1/tags/{tag}",
    tag = "find",
    params(TagPath),
    responses((status = 200, description = "The tag", body = TagBody<'static>))
)]
pub(crate) async fn one_tag(Read(call): Read) -> Result<Response, Problem> {
    call.no_query()?;
    let name = TagName::parse(&call.segment(3)?)?;
    let popular = popular(&call)?;
    let now = call.app.parts.clock.now_ms();
    let found = popular.count(call.tenant(), &name).await?;
    let mut related = Vec::new();
    let mut as_of = now;
    let mut degraded = None;
    match &call.app.parts.search {
        None => degraded = Some("not_in_this_mode"),
        Some(index) => match index.related(call.tenant(), &name, RELATED).await {
            Ok(found) => {
                related = found;
                as_of = index.as_of();
            }
            Err(_) => degraded = Some("unavailable"),
        },
    }
    let mut meta = Meta::new(Source::Snapshot, as_of, now);
    if let Some(reason) = degraded {
        meta.degrade("related", reason);
    }
    let body = TagBody {
        tag: name.as_str(),
        display: found.as_ref().map_or(name.as_str(), |t| &t.display),
        count: found.as_ref().map_or(0, |t| t.count),
        related: related.iter().map(|(tag, count)| RelatedBody { tag: tag.as_str(), count: *count }).collect(),
        meta,
    };
    Ok(aged(wire::json(&body), now, as_of))
}

fn index(call: &Call) -> Result<&Arc<dyn SearchIndex>, Problem> {
    call.app.parts.search.as_ref().ok_or_else(|| not_in_this_mode("search"))
}

fn popular(call: &Call) -> Result<&Arc<dyn PopularTags>, Problem> {
    call.app.parts.popular.as_ref().ok_or_else(|| not_in_this_mode("popular tags"))
}

fn aged(mut response: Response, now: i64, as_of: i64) -> Response {
    let out = response.headers_mut();
    out.insert(header::AGE, HeaderValue::from(age(now, as_of).as_secs()));
    out.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    out.insert(CACHE_STATUS.clone(), headers::cache_status(CacheUse::Bypass));
    response
}
