//! The tags of one content.

use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use tagfast_domain::{ContentKey, Operation, Tag, TagName, Version};
use tagfast_resilience::Criticality;
use tagfast_sharding::ContentHash;
use tagfast_store::{ConsistencyToken, WriteAnswer, WriteRequest};

use super::{ContentPath, TagPath};
use crate::call::{Call, Read, Write, age};
use crate::headers::{self, CACHE_STATUS, CONSISTENCY_TOKEN};
use crate::problem::Problem;
use crate::wire::{
    self, Meta, Names, PatchTags, ReplaceTags, Taggings, VersionText, ViewBody, WriteBody,
};

/// The tags of a content
///
/// Content nobody tagged is an empty list. The `ETag` names the version, not the bytes: send it
/// back in `If-None-Match` to be answered 304 while nothing changed, or in `If-Match` of a write.
/// An answer that is stale or degraded is never 304.
#[utoipa::path(
    get,
    path = "/v1/content/{type}/{id}/tags",
    tag = "content",
    params(ContentPath),
    responses(
        (status = 200, description = "The tags", body = ViewBody<'static>),
        (status = 304, description = "The client has this version already"),
    )
)]
pub(crate) async fn view(Read(call): Read) -> Result<Response, Problem> {
    call.no_query()?;
    let key = call.content()?;
    let reading = call.reading()?;
    let view = call.app.parts.store.view(&key, &reading.options(Criticality::Critical)).await?;

    let now = call.app.parts.clock.now_ms();
    let meta = Meta::of(&view, now);
    let worse = meta.is_worse();
    let has_already = headers::has_already(&call.head.headers, view.version)?;
    // 304 has no body to say that an answer is stale or lacks a promise, so such a one is never
    // 304.
    let mut response = if has_already && !worse {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        wire::json(&ViewBody {
            content: (&key.content).into(),
            tags: Taggings(&view.tags),
            version: VersionText(view.version),
            meta,
        })
    };
    let mut token = reading.token.unwrap_or_default();
    token.see(ContentHash::of(&key), view.version, view.position);
    let out = response.headers_mut();
    out.insert(header::ETAG, etag(view.version));
    out.insert(header::CACHE_CONTROL, headers::cache_control(worse));
    out.insert(CACHE_STATUS.clone(), headers::cache_status(view.cache));
    out.insert(header::AGE, HeaderValue::from(age(now, view.as_of).as_secs()));
    if let Some(token) = call.seal(&token) {
        out.insert(CONSISTENCY_TOKEN.clone(), token);
    }
    Ok(response)
}

/// Adds one tag
///
/// Adding a tag that is there changes nothing, whatever its spelling.
#[utoipa::path(
    put,
    path = "/v1/content/{type}/{id}/tags/{tag}",
    tag = "content",
    params(ContentPath, TagPath),
    responses((status = 200, description = "What the write did", body = WriteBody<'static>))
)]
pub(crate) async fn add_tag(Write(call): Write) -> Result<Response, Problem> {
    call.no_query()?;
    let key = call.content()?;
    let tag = Tag::parse(&call.segment(6)?)?;
    let operation = Operation::patch(vec![tag], Vec::new(), &call.app.parts.domain_limits)?;
    write(&call, key, operation).await
}

/// Removes one tag
///
/// Removing a tag that is not there changes nothing.
#[utoipa::path(
    delete,
    path = "/v1/content/{type}/{id}/tags/{tag}",
    tag = "content",
    params(ContentPath, TagPath),
    responses((status = 200, description = "What the write did", body = WriteBody<'static>))
)]
pub(crate) async fn remove_tag(Write(call): Write) -> Result<Response, Problem> {
    call.no_query()?;
    let key = call.content()?;
    let tag = TagName::parse(&call.segment(6)?)?;
    let operation = Operation::patch(Vec::new(), vec![tag], &call.app.parts.domain_limits)?;
    write(&call, key, operation).await
}

/// Adds and removes tags at once
///
/// Atomic for the content.
#[utoipa::path(
    patch,
    path = "/v1/content/{type}/{id}/tags",
    tag = "content",
    params(ContentPath),
    request_body = PatchTags,
    responses((status = 200, description = "What the write did", body = WriteBody<'static>))
)]
pub(crate) async fn patch_tags(Write(mut call): Write) -> Result<Response, Problem> {
    call.no_query()?;
    let key = call.content()?;
    let body: PatchTags = call.json().await?;
    let add = body.add.iter().map(|t| Tag::parse(t)).collect::<Result<_, _>>()?;
    let remove = body.remove.iter().map(|t| TagName::parse(t)).collect::<Result<_, _>>()?;
    let operation = Operation::patch(add, remove, &call.app.parts.domain_limits)?;
    write(&call, key, operation).await
}

/// Replaces the set of tags
///
/// An empty list removes every tag. With `If-Match` only while the content has that version.
#[utoipa::path(
    put,
    path = "/v1/content/{type}/{id}/tags",
    tag = "content",
    params(ContentPath),
    request_body = ReplaceTags,
    responses((status = 200, description = "What the write did", body = WriteBody<'static>))
)]
pub(crate) async fn replace_tags(Write(mut call): Write) -> Result<Response, Problem> {
    call.no_query()?;
    let key = call.content()?;
    let body: ReplaceTags = call.json().await?;
    let tags = body.tags.iter().map(|t| Tag::parse(t)).collect::<Result<_, _>>()?;
    let operation = Operation::replace(tags, &call.app.parts.domain_limits)?;
    write(&call, key, operation).await
}

async fn write(call: &Call, key: ContentKey, operation: Operation) -> Result<Response, Problem> {
    let writing = call.writing()?;
    let request = WriteRequest {
        write: tagfast_domain::Write {
            id: call.write_id(writing.key, 0),
            key: key.clone(),
            user: call.who.user.clone(),
            operation,
            if_match: writing.if_match,
        },
        fresh: writing.key.is_none(),
        durability: writing.durability,
        deadline: Some(call.deadline),
        traceparent: writing.traceparent,
    };
    let answer = call.app.parts.store.write(request).await?;
    let mut response = wire::json(&body(call, &key, &answer));
    let mut token = writing.reading.token.unwrap_or_default();
    see(&mut token, &key, &answer);
    let out = response.headers_mut();
    out.insert(header::ETAG, etag(answer.version));
    if let Some(token) = call.seal(&token) {
        out.insert(CONSISTENCY_TOKEN.clone(), token);
    }
    Ok(response)
}

/// The body of an acknowledged write.
pub(crate) fn body<'a>(call: &Call, key: &'a ContentKey, answer: &'a WriteAnswer) -> WriteBody<'a> {
    WriteBody {
        content: (&key.content).into(),
        changed: answer.changed,
        added: Names(&answer.added),
        removed: Names(&answer.removed),
        version: VersionText(answer.version),
        receipt: answer.receipt.seal(&call.app.parts.sealer, call.tenant()),
        repeated: answer.repeated,
        degraded: answer.degraded.iter().map(Into::into).collect(),
    }
}

/// Takes a write into what the client has seen.
pub(crate) fn see(token: &mut ConsistencyToken, key: &ContentKey, answer: &WriteAnswer) {
    token.see(ContentHash::of(key), answer.version, answer.receipt.position);
}

fn etag(version: Version) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).unwrap_or(HeaderValue::from_static("\"0\""))
}
