//! Many contents in one request; each item succeeds or fails by itself.

use axum::response::Response;
use http::header;
use tagfast_domain::time::parse_rfc3339;
use tagfast_domain::{ContentKey, Operation, Origin, Tag, TagName, UserId};
use tagfast_resilience::Criticality;
use tagfast_sharding::ContentHash;
use tagfast_store::{View, WriteAnswer, WriteRequest};

use super::content::{body, see};
use crate::auth::Scope;
use crate::call::{Call, Read, Write, Writing};
use crate::headers::{self, CONSISTENCY_TOKEN};
use crate::problem::{Code, Problem};
use crate::wire::{
    self, BatchBody, BatchGet, BatchItem, BatchTag, Meta, Object, TagInput, TagItem, Taggings,
    VersionText, ViewBody, WriteBody,
};

/// How far a carried-over time may lie in the future: clocks of two machines differ.
const FUTURE_MS: i64 = 300_000;

/// The tags of up to 500 contents
///
/// One result per item in the order asked; an item that cannot be read has a problem and fails no
/// other.
#[utoipa::path(
    post,
    path = "/v1/content:batchGet",
    tag = "content",
    request_body = BatchGet,
    responses((status = 200, description = "One result per item", body = BatchBody<'static, ViewBody<'static>>))
)]
pub(crate) async fn batch_get(Read(mut call): Read) -> Result<Response, Problem> {
    call.no_query()?;
    let reading = call.reading()?;
    let batch: BatchGet = call.json().await?;
    check_size(&call, batch.items.len())?;

    let parsed: Vec<Result<ContentKey, Problem>> =
        batch.items.iter().map(|i| call.content_of(&i.0.content_type, &i.0.id)).collect();
    let keys: Vec<ContentKey> = parsed.iter().filter_map(|k| k.as_ref().ok()).cloned().collect();
    let views =
        call.app.parts.store.view_many(&keys, &reading.options(Criticality::Degradable)).await;
    let mut views = keys.iter().zip(views);
    let results: Vec<Result<(&ContentKey, View), Problem>> = parsed
        .iter()
        .map(|parsed| match parsed {
            Err(problem) => Err(problem.clone()),
            Ok(_) => match views.next() {
                Some((key, Ok(view))) => Ok((key, view)),
                Some((_, Err(error))) => Err(error.into()),
                None => Err(missing()),
            },
        })
        .collect();

    let mut token = reading.token.unwrap_or_default();
    let now = call.app.parts.clock.now_ms();
    let trace = call.trace_id();
    let body = BatchBody {
        results: results
            .iter()
            .zip(&batch.items)
            .map(|(result, item)| match result {
                Err(problem) => {
                    BatchItem::failed(&item.0.content_type, &item.0.id, problem.body(&trace))
                }
                Ok((key, view)) => {
                    token.see(ContentHash::of(key), view.version, view.position);
                    BatchItem::done(ViewBody {
                        content: (&key.content).into(),
                        tags: Taggings(&view.tags),
                        version: VersionText(view.version),
                        meta: Meta::of(view, now),
                    })
                }
            })
            .collect(),
    };
    let mut response = wire::json(&body);
    let worse = results.iter().flatten().any(|(_, view)| view.stale || !view.degraded.is_empty());
    response.headers_mut().insert(header::CACHE_CONTROL, headers::cache_control(worse));
    if let Some(token) = call.seal(&token) {
        response.headers_mut().insert(CONSISTENCY_TOKEN.clone(), token);
    }
    Ok(response)
}

/// Up to 500 writes
///
/// One result per item in the order asked; each item is atomic by itself. With an `Idempotency-Key`
/// the whole request can be sent again. `by` and `at` of a tag carry over who added it and when
/// from elsewhere (scope `admin`).
#[utoipa::path(
    post,
    path = "/v1/content:batchTag",
    tag = "content",
    request_body = BatchTag,
    responses((status = 200, description = "One result per item", body = BatchBody<'static, WriteBody<'static>>))
)]
pub(crate) async fn batch_tag(Write(mut call): Write) -> Result<Response, Problem> {
    call.no_query()?;
    let batch: BatchTag = call.json().await?;
    check_size(&call, batch.items.len())?;
    let imports = |item: &TagItem| {
        item.add
            .iter()
            .any(|t| matches!(t, TagInput::Imported(i) if i.0.by.is_some() || i.0.at.is_some()))
    };
    if batch.items.iter().any(|i| imports(&i.0)) {
        call.need(Scope::Admin)?;
    }
    let writing = call.writing()?;
    if writing.if_match.is_some() {
        return Err(headers::bad(&http::header::IF_MATCH, "a batch takes no condition"));
    }

    let parsed: Vec<Result<tagfast_domain::Write, Problem>> = batch
        .items
        .iter()
        .enumerate()
        .map(|(n, item)| parse(&call, &writing, n, &item.0))
        .collect();
    let requests: Vec<WriteRequest> = parsed
        .iter()
        .filter_map(|w| w.as_ref().ok())
        .map(|write| WriteRequest {
            write: write.clone(),
            fresh: writing.key.is_none(),
            durability: writing.durability,
            deadline: Some(call.deadline),
            traceparent: writing.traceparent.clone(),
        })
        .collect();
    let mut answers = call.app.parts.store.write_many(requests).await.into_iter();
    let results: Vec<Result<(&ContentKey, WriteAnswer), Problem>> = parsed
        .iter()
        .map(|parsed| match parsed {
            Err(problem) => Err(problem.clone()),
            Ok(write) => match answers.next() {
                Some(Ok(answer)) => Ok((&write.key, answer)),
                Some(Err(error)) => Err(error.into()),
                None => Err(missing()),
            },
        })
        .collect();

    let trace = call.trace_id();
    let mut token = writing.reading.token.clone().unwrap_or_default();
    let body = BatchBody {
        results: results
            .iter()
            .zip(&batch.items)
            .map(|(result, item)| match result {
                Err(problem) => {
                    BatchItem::failed(&item.0.content_type, &item.0.id, problem.body(&trace))
                }
                Ok((key, answer)) => {
                    see(&mut token, key, answer);
                    BatchItem::done(body(&call, key, answer))
                }
            })
            .collect(),
    };
    let mut response = wire::json(&body);
    if let Some(token) = call.seal(&token) {
        response.headers_mut().insert(CONSISTENCY_TOKEN.clone(), token);
    }
    Ok(response)
}

fn parse(
    call: &Call,
    writing: &Writing<'_>,
    n: usize,
    item: &TagItem,
) -> Result<tagfast_domain::Write, Problem> {
    let key = call.content_of(&item.content_type, &item.id)?;
    let now = call.app.parts.clock.now_ms();
    let add = item.add.iter().map(|t| tag(t, call, now)).collect::<Result<Vec<_>, _>>()?;
    let remove = item.remove.iter().map(|t| TagName::parse(t)).collect::<Result<Vec<_>, _>>()?;
    Ok(tagfast_domain::Write {
        id: call.write_id(writing.key, n as u32),
        key,
        user: call.who.user.clone(),
        operation: Operation::patch(add, remove, &call.app.parts.domain_limits)?,
        if_match: None,
    })
}

fn tag(input: &TagInput, call: &Call, now: i64) -> Result<Tag, Problem> {
    match input {
        TagInput::Plain(spelling) => Ok(Tag::parse(spelling)?),
        TagInput::Imported(Object(imported)) => {
            let mut tag = Tag::parse(&imported.tag)?;
            if imported.by.is_none() && imported.at.is_none() {
                return Ok(tag);
            }
            let by = imported.by.as_deref().map_or(Ok(call.who.user.clone()), UserId::parse)?;
            let at = imported.at.as_deref().map_or(Ok(now), |at| {
                parse_rfc3339(at)
                    .filter(|t| (0..=now.saturating_add(FUTURE_MS)).contains(t))
                    .ok_or_else(|| {
                        let at: String = at.chars().take(80).collect();
                        Problem::new(
                            Code::BadTime,
                            format!("{at:?} is not an RFC 3339 time between 1970 and now"),
                        )
                    })
            })?;
            tag.origin = Some(Origin { by, at });
            Ok(tag)
        }
    }
}

fn check_size(call: &Call, given: usize) -> Result<(), Problem> {
    let allowed = call.app.parts.limits.batch_items;
    if given <= allowed {
        return Ok(());
    }
    let detail = format!("the batch has {given} items; at most {allowed} are allowed");
    Err(Problem::new(Code::BatchTooLarge, detail).limit(
        "batch_items",
        allowed as u64,
        given as u64,
    ))
}

fn missing() -> Problem {
    Problem::new(Code::Internal, "the store gave no answer for this item")
}
