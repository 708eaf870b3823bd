//! Tags: all of them, completions, the most used ones, one tag with its related tags.
//!
//! All but the list of all tags are optional features: without a fresh result in time the answer
//! has the last good one or omits it, and says so.

use std::sync::Arc;

use axum::response::Response;
use serde::Deserialize;
use tagfast_domain::{ContentType, TagName, TenantId, UnixMillis};
use tagfast_popular::{MatchPlace, PopularTags, TagCount, Window};
use tagfast_resilience::{LabelEnum, jittered_retry_after};
use tagfast_search::port::COUNTED_TERMS_MAX;
use tagfast_search::{Query, SearchIndex};
use tagfast_store::Source;
use utoipa::IntoParams;

use super::derived::{cache_use, derived_response, request_feature, tag_rows};
use super::paths::TagPath;
use super::search::search_index;
use crate::cursor;
use crate::fallback::{FeatureAnswer, FeatureError};
use crate::last_good::{CachedAnswer, FeatureKey};
use crate::metric::Feature;
use crate::params::{PageItems, bad_parameter};
use crate::problem::{Code, Problem, not_in_this_mode};
use crate::request::{ApiRequest, Read};
use crate::time::age;
use crate::wire::meta::{Meta, STALE_AFTER};
use crate::wire::tags::{PopularBody, RelatedBody, TagBody, TagPageBody, TagUseBody, WindowName};

/// Longest prefix in bytes.
const PREFIX_BYTES_MAX: usize = 256;
/// Related tags of one tag.
const RELATED_TAGS_MAX: usize = 10;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct TagsParams {
    /// The text that was typed so far, in any spelling: tags that begin with it or have it inside,
    /// by use. Empty: the most used tags. Absent: all tags in the order of their names.
    #[param(required = false, max_length = 256, example = "crit")]
    prefix: Option<String>,
    /// Only tags of contents of this type; counts are those of the type.
    #[serde(rename = "type")]
    #[param(required = false, pattern = "^[a-z0-9._-]{1,64}$", min_length = 1, max_length = 64)]
    content_type: Option<String>,
    /// Largest number of tags.
    #[serde(default)]
    #[param(
        value_type = Option<u32>, required = false, minimum = 1, maximum = 1000, example = 20
    )]
    limit: PageItems<20, 1000>,
    /// `next_cursor` of the previous page of all tags, with the same type.
    #[param(required = false)]
    cursor: Option<String>,
}

/// All tags, or tags by prefix
///
/// Without `prefix`: every tag that contents carry, in the order of canonical names (bytes of
/// UTF-8), in pages. A tag that contents carry during the whole walk is on exactly one page. With
/// `type` a page looks at 500 tags at most and may have fewer tags than `limit`, or none, although
/// `next_cursor` leads on.
///
/// With `prefix`: tags whose canonical or display name begins with the text, then tags that have a
/// word inside that begins with it, then tags that have it anywhere inside; each group most used
/// first.
#[utoipa::path(
    get,
    path = "/v1/tags",
    operation_id = "listTags",
    tag = "find",
    params(TagsParams),
    responses((status = 200, description = "A page of tags", body = TagPageBody<'static>))
)]
pub(crate) async fn tags(Read(request, params): Read<TagsParams>) -> Result<Response, Problem> {
    let content_type = params.content_type.map(|t| ContentType::parse(&t)).transpose()?;
    let limit = params.limit.checked()?;
    let source = TagSource {
        popular: Arc::clone(popular_tags_port(&request)?),
        of_type: match content_type {
            Some(content_type) => Some((Arc::clone(search_index(&request)?), content_type)),
            None => None,
        },
        tenant: request.tenant().clone(),
    };
    match (params.prefix, params.cursor) {
        (None, cursor) => list(&request, source, cursor.as_deref(), limit).await,
        (Some(typed), None) => complete(&request, source, typed, limit).await,
        (Some(_), Some(_)) => {
            Err(bad_parameter("cursor", "it belongs to the list of all tags, without prefix"))
        }
    }
}

/// Where tags with their counts come from.
struct TagSource {
    popular: Arc<dyn PopularTags>,
    /// The index and the only type that counts; `None`: contents of every type count.
    of_type: Option<(Arc<dyn SearchIndex>, ContentType)>,
    tenant: TenantId,
}

impl TagSource {
    fn content_type(&self) -> Option<&ContentType> {
        self.of_type.as_ref().map(|(_, content_type)| content_type)
    }

    /// Replaces the counts by those of the type; also returns the time (Unix ms) before which every
    /// write is counted.
    async fn count_type(
        &self,
        tags: &mut [TagCount],
        as_of: UnixMillis,
    ) -> Result<UnixMillis, FeatureError> {
        let Some((index, content_type)) = &self.of_type else { return Ok(as_of) };
        let as_of = as_of.min(index.as_of());
        let terms: Vec<Query> = tags.iter().map(|t| Query::Tag(t.tag.clone())).collect();
        let counts = index.counts(&self.tenant, Some(content_type), &terms).await?;
        tags.iter_mut().zip(counts).for_each(|(tag, count)| tag.count = count);
        Ok(as_of)
    }

    /// Completes a typed text.
    async fn complete(self, typed: &str, limit: usize) -> Result<CachedAnswer, FeatureError> {
        let examined = if self.of_type.is_some() { COUNTED_TERMS_MAX } else { limit };
        let found = self.popular.suggest(&self.tenant, typed, examined).await?;
        let places: Vec<MatchPlace> = found.tags.iter().map(|found| found.place).collect();
        let mut tags: Vec<TagCount> = found.tags.into_iter().map(|found| found.tag).collect();
        let is_cut = self.of_type.is_some() && tags.len() == examined;
        let as_of = self.count_type(&mut tags, found.as_of).await?;
        let mut placed: Vec<(MatchPlace, TagCount)> =
            places.into_iter().zip(tags).filter(|(_, tag)| tag.count > 0).collect();
        // Stable: equal counts keep the order of their names.
        placed.sort_by_key(|(place, tag)| (*place, std::cmp::Reverse(tag.count)));
        Ok(CachedAnswer {
            tags: placed.into_iter().take(limit).map(|(_, tag)| tag).collect(),
            approximate: found.approximate || is_cut,
            stale: found.stale,
            as_of,
            ..CachedAnswer::default()
        })
    }

    /// Lists all tags after one.
    async fn list(
        self,
        after: Option<TagName>,
        limit: usize,
    ) -> Result<CachedAnswer, FeatureError> {
        let examined = if self.of_type.is_some() { COUNTED_TERMS_MAX } else { limit };
        let page = self.popular.list(&self.tenant, after.as_ref(), examined).await?;
        let (mut tags, mut next) = (page.tags, page.next);
        let as_of = self.count_type(&mut tags, page.as_of).await?;
        tags.retain(|tag| tag.count > 0);
        if tags.len() > limit {
            tags.truncate(limit);
            next = tags.last().map(|tag| tag.tag.clone());
        }
        Ok(CachedAnswer { tags, next, as_of, ..CachedAnswer::default() })
    }
}

async fn complete(
    request: &ApiRequest,
    source: TagSource,
    typed: String,
    limit: usize,
) -> Result<Response, Problem> {
    if typed.len() > PREFIX_BYTES_MAX {
        return Err(Problem::new(Code::BadParameter, "query parameter prefix: it is too long")
            .limit("prefix_bytes", PREFIX_BYTES_MAX as u64, typed.len() as u64));
    }
    let key = FeatureKey::Suggestions(typed.clone(), limit, source.content_type().cloned());
    let completions = async move { source.complete(&typed, limit).await };
    let (answer, now) = request_feature(request, Feature::Suggestions, key, completions).await?;
    let meta = feature_meta(Feature::Suggestions, &answer, now);
    let body = TagPageBody { tags: tag_rows(&answer), next_cursor: None, meta };
    Ok(derived_response(body, cache_use(answer.is_last_good()), now))
}

/// A page of all tags. Not an optional feature: a page without its tags would look like the end.
async fn list(
    request: &ApiRequest,
    source: TagSource,
    cursor: Option<&str>,
    limit: usize,
) -> Result<Response, Problem> {
    let (sealer, now) = (&request.services().sealer, request.now());
    let max_stale = request.max_stale()?;
    let content_type = source.content_type().cloned();
    let open =
        |sealed| cursor::open_tag(sealer, request.tenant(), content_type.as_ref(), sealed, now);
    let after = cursor.map(open).transpose()?;
    let key = FeatureKey::List(after.clone(), limit, content_type.clone());
    let page = source.list(after, limit);
    let fallback = &request.state.fallback;
    let page = fallback.share(request.tenant(), Feature::Suggestions, key, page).await?;
    let old = age(now, page.as_of);
    if old > STALE_AFTER && max_stale.is_some_and(|oldest| old > oldest) {
        let detail = format!(
            "the counts of tags lag by {} s, which is more than Cache-Control allows",
            old.as_secs()
        );
        let problem = Problem::new(Code::PopularUnavailable, detail);
        return Err(problem.retry_after(jittered_retry_after()));
    }
    let next_cursor = page
        .next
        .as_ref()
        .map(|next| cursor::seal_tag(sealer, request.tenant(), content_type.as_ref(), next, now));
    let tags = page.tags.iter().map(TagUseBody::from).collect();
    let meta = Meta::new(Source::Snapshot, page.as_of, now);
    let body = TagPageBody { tags, next_cursor, meta };
    Ok(derived_response(body, cache_use(false), now))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PopularParams {
    /// `1h`, `24h`, `7d`: taggings added within this time; `all`: every tagging that exists.
    #[param(value_type = WindowName, inline, required = false, example = "24h")]
    window: Option<WindowName>,
    /// Largest number of tags.
    #[serde(default)]
    #[param(
        value_type = Option<u32>, required = false, minimum = 1, maximum = 1000, example = 20
    )]
    limit: PageItems<20, 1000>,
}

/// The most used tags of a window
#[utoipa::path(
    get,
    path = "/v1/tags/popular",
    operation_id = "getPopularTags",
    tag = "find",
    params(PopularParams),
    responses((status = 200, description = "A ranking", body = PopularBody<'static>))
)]
pub(crate) async fn popular_tags(
    Read(request, params): Read<PopularParams>,
) -> Result<Response, Problem> {
    let name = params.window.unwrap_or(WindowName::All);
    let window = Window::from(name);
    let limit = params.limit.checked()?;
    let (popular, tenant) = (Arc::clone(popular_tags_port(&request)?), request.tenant().clone());
    let key = FeatureKey::Popular(window, limit);
    let (answer, now) = request_feature(&request, Feature::Popular, key, async move {
        let ranking = popular.popular(&tenant, window, limit).await?;
        Ok(CachedAnswer {
            tags: ranking.tags,
            stale: ranking.stale,
            as_of: ranking.as_of,
            ..CachedAnswer::default()
        })
    })
    .await?;
    let meta = feature_meta(Feature::Popular, &answer, now);
    let body = PopularBody { window: name, tags: tag_rows(&answer), meta };
    Ok(derived_response(body, cache_use(answer.is_last_good()), now))
}

/// One tag
///
/// How many contents carry it and which tags occur together with it. A tag that no content carries
/// has the count 0. The tag named `popular` is read as `/v1/tags/%70opular`.
#[utoipa::path(
    get,
    path = "/v1/tags/{tag}",
    operation_id = "getTag",
    tag = "find",
    params(TagPath),
    responses((status = 200, description = "The tag", body = TagBody<'static>))
)]
pub(crate) async fn one_tag(Read(request, _): Read) -> Result<Response, Problem> {
    let mut name = TagPath::name(&request, 3)?;
    let ((count, now), related) = tag_in_use(&request, &name).await?;
    let unused = count.result().is_some_and(|answer| answer.tags.is_empty());
    let ((count, now), related) = if unused && name.is_former() {
        name = TagName::parse(name.as_str())?;
        tag_in_use(&request, &name).await?
    } else {
        ((count, now), related)
    };
    let mut meta = feature_meta(Feature::Count, &count, now);
    let mut is_last_good = count.is_last_good();
    match &related {
        None => meta.degrade(Feature::Related.as_str(), "not_in_this_mode"),
        Some(related) => {
            related.annotate(Feature::Related, &mut meta, now);
            is_last_good |= related.is_last_good();
        }
    }
    let found = count.result().and_then(|answer| answer.tags.first());
    let related = related.as_ref().and_then(FeatureAnswer::result);
    let related = related.map(|answer| answer.tags.as_slice()).unwrap_or_default();
    let body = TagBody {
        tag: name.as_str(),
        display: found.map_or(name.as_str(), |t| &t.display),
        count: found.map_or(0, |t| t.count),
        related: related
            .iter()
            .map(|t| RelatedBody { tag: t.tag.as_str(), count: t.count })
            .collect(),
        meta,
    };
    Ok(derived_response(body, cache_use(is_last_good), now))
}

/// The count of a name with the time of its answer, and its related tags.
async fn tag_in_use(
    request: &ApiRequest,
    name: &TagName,
) -> Result<((FeatureAnswer, UnixMillis), Option<FeatureAnswer>), Problem> {
    let (popular, tenant, tag) =
        (Arc::clone(popular_tags_port(request)?), request.tenant().clone(), name.clone());
    let key = FeatureKey::Count(name.clone());
    let count = request_feature(request, Feature::Count, key, async move {
        let found = popular.count(&tenant, &tag).await?;
        Ok(CachedAnswer {
            tags: found.tag.into_iter().collect(),
            stale: found.stale,
            as_of: found.as_of,
            ..CachedAnswer::default()
        })
    });
    let (count, related) = tokio::join!(count, related_tags(request, name));
    Ok((count?, related?))
}

/// The tags that occur together with a tag; `None`: this mode has no search index.
async fn related_tags(
    request: &ApiRequest,
    name: &TagName,
) -> Result<Option<FeatureAnswer>, Problem> {
    let Some(index) = &request.services().search else { return Ok(None) };
    let (index, tenant, tag) = (Arc::clone(index), request.tenant().clone(), name.clone());
    let key = FeatureKey::Related(name.clone());
    let answer = request_feature(request, Feature::Related, key, async move {
        let as_of = index.as_of();
        let found = index.related(&tenant, &tag, RELATED_TAGS_MAX).await?;
        let row = |(tag, count): (TagName, u64)| TagCount { display: tag.shared(), tag, count };
        let tags = found.into_iter().map(row).collect();
        Ok(CachedAnswer { tags, as_of, ..CachedAnswer::default() })
    });
    answer.await.map(|(answer, _)| Some(answer))
}

fn popular_tags_port(request: &ApiRequest) -> Result<&Arc<dyn PopularTags>, Problem> {
    request.services().popular.as_ref().ok_or_else(|| not_in_this_mode("popular tags"))
}

/// The meta of an answer that has this feature only.
fn feature_meta(feature: Feature, answer: &FeatureAnswer, now: UnixMillis) -> Meta {
    let mut meta = Meta::new(Source::Snapshot, now, now);
    answer.annotate(feature, &mut meta, now);
    meta
}
