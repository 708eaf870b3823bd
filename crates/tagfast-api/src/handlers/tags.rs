//! Tags by use: suggestions, the most used tags, one tag with its related tags.
//!
//! All of them are optional features: without a fresh result in time the answer has the last good
//! one or omits it, and says so.

use std::sync::Arc;

use axum::response::Response;
use serde::Deserialize;
use tagfast_domain::{TagName, UnixMillis};
use tagfast_popular::{PopularTags, TagCount, Window};
use tagfast_resilience::LabelEnum;
use tagfast_store::Source;
use utoipa::IntoParams;

use super::derived::{cache_use, derived_response, request_feature, tag_rows};
use super::paths::TagPath;
use crate::fallback::FeatureAnswer;
use crate::last_good::{CachedAnswer, FeatureKey};
use crate::metric::Feature;
use crate::params::PageItems;
use crate::problem::{Code, Problem, not_in_this_mode};
use crate::request::{ApiRequest, Read};
use crate::wire::meta::Meta;
use crate::wire::tags::{PopularBody, RelatedBody, SuggestBody, TagBody};

/// Longest prefix in bytes.
const PREFIX_BYTES_MAX: usize = 256;
/// Related tags of one tag.
const RELATED_TAGS_MAX: usize = 10;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SuggestParams {
    /// The beginning of a tag, in any spelling; empty or absent: the most used tags.
    #[serde(default)]
    #[param(
        value_type = Option<String>, required = false, max_length = 256, example = "crit"
    )]
    prefix: String,
    /// Largest number of tags.
    #[serde(default)]
    #[param(
        value_type = Option<u32>, required = false, minimum = 1, maximum = 100, example = 20
    )]
    limit: PageItems<20, 100>,
}

/// Tags by prefix
///
/// Tags whose canonical or display name begins with the prefix, most used first.
#[utoipa::path(
    get,
    path = "/v1/tags",
    tag = "find",
    params(SuggestParams),
    responses((status = 200, description = "Matching tags", body = SuggestBody<'static>))
)]
pub(crate) async fn suggest(
    Read(request, params): Read<SuggestParams>,
) -> Result<Response, Problem> {
    let (prefix, limit) = (params.prefix, params.limit.checked()?);
    if prefix.len() > PREFIX_BYTES_MAX {
        return Err(Problem::new(Code::BadParameter, "query parameter prefix: it is too long")
            .limit("prefix_bytes", PREFIX_BYTES_MAX as u64, prefix.len() as u64));
    }
    let key = FeatureKey::Suggestions(prefix.clone(), limit);
    let (popular, tenant) = (Arc::clone(popular_tags_port(&request)?), request.tenant().clone());
    let (answer, now) = request_feature(&request, Feature::Suggestions, key, async move {
        let found = popular.suggest(&tenant, &prefix, limit).await?;
        Ok(CachedAnswer {
            tags: found.tags,
            approximate: found.approximate,
            stale: found.stale,
            as_of: found.as_of,
            ..CachedAnswer::default()
        })
    })
    .await?;
    let meta = feature_meta(Feature::Suggestions, &answer, now);
    let body = SuggestBody { tags: tag_rows(&answer), meta };
    Ok(derived_response(body, cache_use(answer.is_last_good()), now))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PopularParams {
    /// `1h`, `24h`, `7d`: taggings added within this time; `all`: every tagging that exists.
    #[param(
        value_type = Option<String>,
        required = false,
        pattern = "^(1h|24h|7d|all)$",
        example = "24h"
    )]
    window: Option<WindowParam>,
    /// Largest number of tags.
    #[serde(default)]
    #[param(
        value_type = Option<u32>, required = false, minimum = 1, maximum = 1000, example = 20
    )]
    limit: PageItems<20, 1000>,
}

#[derive(Clone, Copy, Deserialize)]
enum WindowParam {
    #[serde(rename = "1h")]
    Hour,
    #[serde(rename = "24h")]
    Day,
    #[serde(rename = "7d")]
    Week,
    #[serde(rename = "all")]
    All,
}

impl From<WindowParam> for Window {
    fn from(window: WindowParam) -> Self {
        match window {
            WindowParam::Hour => Self::Hour,
            WindowParam::Day => Self::Day,
            WindowParam::Week => Self::Week,
            WindowParam::All => Self::All,
        }
    }
}

/// The most used tags of a window
#[utoipa::path(
    get,
    path = "/v1/tags/popular",
    tag = "find",
    params(PopularParams),
    responses((status = 200, description = "A ranking", body = PopularBody<'static>))
)]
pub(crate) async fn popular_tags(
    Read(request, params): Read<PopularParams>,
) -> Result<Response, Problem> {
    let window = params.window.map_or(Window::All, Window::from);
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
    let body = PopularBody { window: window.as_str(), tags: tag_rows(&answer), meta };
    Ok(derived_response(body, cache_use(answer.is_last_good()), now))
}

/// One tag
///
/// How many contents carry it and which tags occur together with it. A tag that no content carries
/// has the count 0. The tag named `popular` is read as `/v1/tags/%70opular`.
#[utoipa::path(
    get,
    path = "/v1/tags/{tag}",
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
    let clock = Arc::clone(&request.services().clock);
    let key = FeatureKey::Count(name.clone());
    let count = request_feature(request, Feature::Count, key, async move {
        let as_of = clock.now_ms();
        let found = popular.count(&tenant, &tag).await?;
        Ok(CachedAnswer { tags: found.into_iter().collect(), as_of, ..CachedAnswer::default() })
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
