//! The tags of one content.

use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use tagfast_domain::{Call, ContentKey, Operation, Tag, TagName, Version};
use tagfast_resilience::Criticality;
use tagfast_sharding::ContentHash;
use tagfast_store::{ConsistencyToken, Degraded, Source, View, WriteAnswer, WriteRequest};

use super::paths::{ContentPath, TagPath, check_new_data};
use crate::headers::{self, CACHE_STATUS, CONSISTENCY_TOKEN};
use crate::problem::Problem;
use crate::request::{ApiRequest, Read, Write};
use crate::session_writes::SessionWrites;
use crate::time::age;
use crate::wire::content::{
    Names, PatchTags, ReplaceTags, Taggings, VersionText, ViewBody, WriteBody,
};
use crate::wire::meta::Meta;
use crate::wire::response::json;

/// The tags of a content
///
/// A content that was never tagged has an empty list. The `ETag` names the version, not the bytes:
/// send it back in `If-None-Match` to be answered 304 while nothing changed, or in `If-Match` of a
/// write. `*` matches every content. An answer that is stale or degraded is never 304.
#[utoipa::path(
    get,
    path = "/v1/content/{type}/{id}/tags",
    operation_id = "getContentTags",
    tag = "content",
    params(ContentPath),
    responses(
        (status = 200, description = "The tags", body = ViewBody<'static>),
        (status = 304, description = "The client has this version already"),
    )
)]
pub(crate) async fn view(Read(request, _): Read) -> Result<Response, Problem> {
    let key = ContentPath::key(&request)?;
    let read = request.read_headers()?;
    let store = &request.services().store;
    let session = SessionWrites::of(&**store, &read.receipts).await;
    let options = session.options(read.options(Criticality::Critical));
    let view = store.view(&key, &options).await?;

    let now = request.now();
    let mut meta = Meta::of_view(&view, now);
    session.mark(&mut meta, &view.degraded);
    let degraded = meta.is_degraded();
    let unchanged = headers::client_has_version(&request.head.headers, view.version)?;
    // 304 has no body that could say that an answer is stale or degraded.
    let mut response = if unchanged && !degraded {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        json(&ViewBody {
            content: (&key.content).into(),
            tags: Taggings(&view.tags),
            version: VersionText(view.version),
            meta,
        })
    };
    let mut token = read.token.unwrap_or_default();
    observe_view(&mut token, &key, &view);
    let out = response.headers_mut();
    out.insert(header::ETAG, etag(view.version));
    out.insert(header::CACHE_CONTROL, headers::cache_control(degraded));
    out.insert(CACHE_STATUS.clone(), headers::cache_status(view.cache));
    out.insert(header::AGE, HeaderValue::from(age(now, view.as_of).as_secs()));
    if let Some(token) = request.sealed(&token) {
        out.insert(CONSISTENCY_TOKEN.clone(), token);
    }
    Ok(response)
}

/// Adds one tag
///
/// Adding a tag that the content already has changes nothing, whatever its spelling.
#[utoipa::path(
    put,
    path = "/v1/content/{type}/{id}/tags/{tag}",
    operation_id = "addContentTag",
    tag = "content",
    params(ContentPath, TagPath),
    responses((status = 200, description = "The effect of the write", body = WriteBody<'static>))
)]
pub(crate) async fn add_tag(Write(request, _): Write) -> Result<Response, Problem> {
    let key = ContentPath::key(&request)?;
    let tag = TagPath::tag(&request, 6)?;
    let operation = Operation::patch(vec![tag], Vec::new(), &request.services().domain_limits)?;
    write(&request, Call::AddTag, key, operation).await
}

/// Removes one tag
///
/// Removing a tag that the content does not have changes nothing.
#[utoipa::path(
    delete,
    path = "/v1/content/{type}/{id}/tags/{tag}",
    operation_id = "removeContentTag",
    tag = "content",
    params(ContentPath, TagPath),
    responses((status = 200, description = "The effect of the write", body = WriteBody<'static>))
)]
pub(crate) async fn remove_tag(Write(request, _): Write) -> Result<Response, Problem> {
    let key = ContentPath::key(&request)?;
    let tag = TagPath::name(&request, 6)?;
    let operation = Operation::patch(Vec::new(), vec![tag], &request.services().domain_limits)?;
    write(&request, Call::RemoveTag, key, operation).await
}

/// Adds and removes tags in one write
///
/// Atomic for the content.
#[utoipa::path(
    patch,
    path = "/v1/content/{type}/{id}/tags",
    operation_id = "changeContentTags",
    tag = "content",
    params(ContentPath),
    request_body = PatchTags,
    responses((status = 200, description = "The effect of the write", body = WriteBody<'static>))
)]
pub(crate) async fn patch_tags(Write(mut request, _): Write) -> Result<Response, Problem> {
    let key = ContentPath::key(&request)?;
    let body: PatchTags = request.json().await?;
    let add = body.add.iter().map(|t| Tag::parse(t)).collect::<Result<_, _>>()?;
    let remove = body.remove.iter().map(|t| TagName::lookup(t)).collect::<Result<_, _>>()?;
    let operation = Operation::patch(add, remove, &request.services().domain_limits)?;
    write(&request, Call::Patch, key, operation).await
}

/// Replaces the set of tags
///
/// An empty list removes every tag. With `If-Match` only while the content has that version.
#[utoipa::path(
    put,
    path = "/v1/content/{type}/{id}/tags",
    operation_id = "replaceContentTags",
    tag = "content",
    params(ContentPath),
    request_body = ReplaceTags,
    responses((status = 200, description = "The effect of the write", body = WriteBody<'static>))
)]
pub(crate) async fn replace_tags(Write(mut request, _): Write) -> Result<Response, Problem> {
    let key = ContentPath::key(&request)?;
    let body: ReplaceTags = request.json().await?;
    let tags = body.tags.iter().map(|t| Tag::parse(t)).collect::<Result<_, _>>()?;
    let operation = Operation::replace(tags, &request.services().domain_limits)?;
    write(&request, Call::Replace, key, operation).await
}

async fn write(
    request: &ApiRequest,
    call: Call,
    key: ContentKey,
    operation: Operation,
) -> Result<Response, Problem> {
    let headers = request.write_headers()?;
    let write = tagfast_domain::Write {
        id: request.write_id(headers.idempotency_key, 0),
        key: key.clone(),
        user: request.caller.user.clone(),
        operation,
        if_match: headers.if_match,
    };
    check_new_data(&write)?;
    let content = (key.content.content_type.as_str(), key.content.content_id.as_str());
    let write = WriteRequest {
        write,
        keyed: request.bound_key(headers.idempotency_key, call, [content]),
        durability: headers.durability,
        deadline: Some(request.deadline),
        traceparent: headers.traceparent,
    };
    let answer = request.services().store.write(write).await?;
    let mut response = json(&write_body(request, &key, &answer));
    let mut token = headers.read.token.unwrap_or_default();
    observe_write(&mut token, &key, &answer);
    let out = response.headers_mut();
    out.insert(header::ETAG, etag(answer.version));
    if let Some(token) = request.sealed(&token) {
        out.insert(CONSISTENCY_TOKEN.clone(), token);
    }
    Ok(response)
}

/// The body of an acknowledged write.
pub(super) fn write_body<'a>(
    request: &ApiRequest,
    key: &'a ContentKey,
    answer: &'a WriteAnswer,
) -> WriteBody<'a> {
    WriteBody {
        content: (&key.content).into(),
        changed: answer.changed,
        added: Names(&answer.added),
        removed: Names(&answer.removed),
        version: VersionText(answer.version),
        receipt: answer.receipt.seal(&request.services().sealer, request.tenant()),
        repeated: answer.repeated,
        durability: answer.replicated.map(Into::into),
        degraded: answer.degraded.iter().map(Into::into).collect(),
    }
}

/// Adds a view to what the client has seen. What the primary does not have any more, no later
/// answer will show: the client is told once.
pub(super) fn observe_view(token: &mut ConsistencyToken, key: &ContentKey, view: &View) {
    let content = ContentHash::of(key);
    let is_session = |degraded: &Degraded| degraded.feature == "session";
    if view.source == Source::Primary && view.degraded.iter().any(is_session) {
        token.forget(content);
    }
    token.observe(content, view.version, view.position);
}

/// Adds a write to what the client has seen.
pub(super) fn observe_write(token: &mut ConsistencyToken, key: &ContentKey, answer: &WriteAnswer) {
    token.observe(ContentHash::of(key), answer.version, answer.receipt.position);
}

fn etag(version: Version) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).unwrap_or(HeaderValue::from_static("\"0\""))
}
