//! What the answers from derived data (index, counts) share: the call through the fallback, and the
//! headers that tell the age.

use axum::response::Response;
use http::{HeaderValue, header};
use tagfast_domain::UnixMillis;
use tagfast_store::CacheUse;

use crate::fallback::{FeatureAnswer, FeatureError, FeatureRequest};
use crate::headers::{self, CACHE_STATUS};
use crate::last_good::{CachedAnswer, FeatureKey};
use crate::metric::Feature;
use crate::problem::Problem;
use crate::request::ApiRequest;
use crate::time::age;
use crate::wire::meta::Derived;
use crate::wire::response::json;
use crate::wire::tags::TagUseBody;

/// Calls an optional feature through the fallback; returns its answer and the present time, Unix
/// ms.
pub(super) async fn request_feature(
    request: &ApiRequest,
    feature: Feature,
    key: FeatureKey,
    call: impl Future<Output = Result<CachedAnswer, FeatureError>> + Send + 'static,
) -> Result<(FeatureAnswer, UnixMillis), Problem> {
    let (max_stale, now) = (request.max_stale()?, request.now());
    let wanted = FeatureRequest { tenant: request.tenant(), feature, key, max_stale, now };
    Ok((request.state.fallback.call(wanted, call).await?, now))
}

/// The tags of a feature's answer; none when the feature is omitted.
pub(super) fn tag_rows(answer: &FeatureAnswer) -> Vec<TagUseBody<'_>> {
    let rows = |answer| TagUseBody::from(answer);
    answer.result().map(|answer| answer.tags.iter().map(rows).collect()).unwrap_or_default()
}

/// `Cache-Status` of an answer: whether any part of it is a last good one.
pub(super) fn cache_use(is_last_good: bool) -> CacheUse {
    if is_last_good { CacheUse::Stale("snapshot") } else { CacheUse::Bypass }
}

/// An answer with the headers that tell its age and its source.
pub(super) fn derived_response(body: impl Derived, cache: CacheUse, now: UnixMillis) -> Response {
    let mut response = json(&body);
    let out = response.headers_mut();
    out.insert(header::AGE, HeaderValue::from(age(now, body.meta().as_of()).as_secs()));
    out.insert(header::CACHE_CONTROL, headers::cache_control(body.meta().is_degraded()));
    out.insert(CACHE_STATUS.clone(), headers::cache_status(cache));
    response
}
