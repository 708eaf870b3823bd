//! Tags by use: suggestions, the most used ones, one with its related ones. Each can be done
//! without: what cannot be had in time is answered as it was last, or left out, and the answer says
//! so.

use std::sync::Arc;

use axum::response::Response;
use tagfast_domain::TagName;
use tagfast_popular::{PopularTags, TagCount, Window};
use tagfast_store::{CacheUse, Source};
use utoipa::IntoParams;

use super::TagPath;
use super::find::aged;
use crate::call::{Call, Read};
use crate::encoding::bad_parameter;
use crate::problem::{Code, Problem, not_in_this_mode};
use crate::sheddable::{Ask, Feature, Given};
use crate::snapshots::{Known, Question};
use crate::wire::{FacetBody, Meta, PopularBody, RelatedBody, SuggestBody, TagBody};

/// Longest prefix in bytes.
const PREFIX_BYTES: usize = 256;
const RELATED: usize = 10;

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
        return Err(Problem::new(Code::BadParameter, "query parameter prefix: it is too long")
            .limit("prefix_bytes", PREFIX_BYTES as u64, prefix.len() as u64));
    }
    let question = Question::Suggestions(prefix.clone(), limit);
    let (popular, tenant) = (Arc::clone(popular(&call)?), call.tenant().clone());
    let (given, now) = ask(&call, Feature::Suggestions, question, async move {
        let found = popular.suggest(&tenant, &prefix, limit).await?;
        let (tags, approximate) = (found.tags, found.approximate);
        Ok(Known { tags, approximate, stale: found.stale, as_of: found.as_of, ..Known::default() })
    })
    .await?;
    let meta = meta(&[(Feature::Suggestions, &given)], now);
    Ok(aged(SuggestBody { tags: rows(&given), meta }, used(&given), now))
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
        Some(word) => {
            word.parse().map_err(|_| bad_parameter("window", "it must be 1h, 24h, 7d or all"))?
        }
    };
    let limit = query.number("limit", 20, 1000)?;
    let (popular, tenant) = (Arc::clone(popular(&call)?), call.tenant().clone());
    let (given, now) = ask(&call, Feature::Popular, Question::Popular(window, limit), async move {
        let board = popular.popular(&tenant, window, limit).await?;
        Ok(Known { tags: board.tags, stale: board.stale, as_of: board.as_of, ..Known::default() })
    })
    .await?;
    let meta = meta(&[(Feature::Popular, &given)], now);
    Ok(aged(PopularBody { window: window.as_str(), tags: rows(&given), meta }, used(&given), now))
}

/// One tag
///
/// How many contents carry it and which tags occur together with it. A tag nobody uses has the
/// count 0. The tag named `popular` is read as `/v1/tags/%70opular`.
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
    let (popular, tenant, asked) =
        (Arc::clone(popular(&call)?), call.tenant().clone(), name.clone());
    let clock = Arc::clone(&call.app.parts.clock);
    let count = ask(&call, Feature::Count, Question::Count(name.clone()), async move {
        let as_of = clock.now_ms();
        let found = popular.count(&tenant, &asked).await?;
        Ok(Known { tags: found.into_iter().collect(), as_of, ..Known::default() })
    });
    let related = async {
        let Some(index) = &call.app.parts.search else { return Ok(None) };
        let (index, tenant, asked) = (Arc::clone(index), call.tenant().clone(), name.clone());
        let given = ask(&call, Feature::Related, Question::Related(name.clone()), async move {
            let as_of = index.as_of();
            let found = index.related(&tenant, &asked, RELATED).await?;
            let row = |(tag, count): (TagName, u64)| TagCount { display: tag.shared(), tag, count };
            Ok(Known { tags: found.into_iter().map(row).collect(), as_of, ..Known::default() })
        });
        given.await.map(Some)
    };
    let (count, related) = tokio::join!(count, related);
    let ((count, now), related) = (count?, related?.map(|(given, _)| given));
    let mut meta = meta(&[(Feature::Count, &count)], now);
    match &related {
        None => meta.degrade(Feature::Related.as_str(), "not_in_this_mode"),
        Some(related) => related.mark(Feature::Related, &mut meta, now),
    }
    let found = count.known().and_then(|known| known.tags.first());
    let related_tags = related
        .as_ref()
        .and_then(Given::known)
        .map(|known| known.tags.as_slice())
        .unwrap_or_default();
    let cache = if related.as_ref().is_some_and(Given::is_last) {
        CacheUse::Stale("snapshot")
    } else {
        used(&count)
    };
    let body = TagBody {
        tag: name.as_str(),
        display: found.map_or(name.as_str(), |t| &t.display),
        count: found.map_or(0, |t| t.count),
        related: related_tags
            .iter()
            .map(|t| RelatedBody { tag: t.tag.as_str(), count: t.count })
            .collect(),
        meta,
    };
    Ok(aged(body, cache, now))
}

fn popular(call: &Call) -> Result<&Arc<dyn PopularTags>, Problem> {
    call.app.parts.popular.as_ref().ok_or_else(|| not_in_this_mode("popular tags"))
}

/// Asks for a feature; what is given, and when.
pub(super) async fn ask(
    call: &Call,
    feature: Feature,
    question: Question,
    work: impl Future<Output = Result<Known, crate::sheddable::Failed>> + Send + 'static,
) -> Result<(Given, i64), Problem> {
    let (max_stale, now) = (call.max_stale()?, call.app.parts.clock.now_ms());
    let ask = Ask { tenant: call.tenant(), feature, question, max_stale, now };
    Ok((call.app.sheddable.ask(ask, work).await?, now))
}

fn meta(given: &[(Feature, &Given)], now: i64) -> Meta {
    let mut meta = Meta::new(Source::Snapshot, now, now);
    given.iter().for_each(|(feature, given)| given.mark(*feature, &mut meta, now));
    meta
}

pub(super) fn rows(given: &Given) -> Vec<FacetBody<'_>> {
    given.known().map(|known| known.tags.iter().map(FacetBody::from).collect()).unwrap_or_default()
}

fn used(given: &Given) -> CacheUse {
    if given.is_last() { CacheUse::Stale("snapshot") } else { CacheUse::Bypass }
}
