//! Many contents in one request; each item succeeds or fails alone.

use std::collections::HashMap;

use axum::response::Response;
use http::header;
use tagfast_domain::time::parse_rfc3339;
use tagfast_domain::{Call, ContentKey, Operation, Origin, Tag, TagName, UnixMillis, UserId};
use tagfast_json::Strict;
use tagfast_resilience::Criticality;
use tagfast_sharding::ContentHash;
use tagfast_store::{ConsistencyToken, View, WriteAnswer, WriteRequest};

use super::content::{observe_write, write_body};
use crate::auth::Scope;
use crate::headers::{self, CONSISTENCY_TOKEN};
use crate::problem::{Code, Problem};
use crate::request::{ApiRequest, Read, Write, WriteHeaders};
use crate::wire::batch::{BatchBody, BatchGet, BatchItem, BatchTag, TagInput, TagItem};
use crate::wire::content::{Taggings, VersionText, ViewBody, WriteBody};
use crate::wire::meta::Meta;
use crate::wire::response::json;

/// How far the time of an imported tag may lie in the future, in milliseconds: clocks of two
/// machines differ.
const CLOCK_SKEW_MAX_MS: i64 = 300_000;
/// Longest part of a bad time that the error repeats, in characters.
const SHOWN_TIME_CHARS_MAX: usize = 80;

/// The tags of up to 500 contents
///
/// One result per item, in the order of the items. An item that cannot be read has a problem; the
/// others are not affected.
#[utoipa::path(
    post,
    path = "/v1/content:batchGet",
    operation_id = "batchGetContents",
    tag = "content",
    request_body = BatchGet,
    responses((
        status = 200, description = "One result per item",
        body = BatchBody<'static, ViewBody<'static>>,
    ))
)]
pub(crate) async fn batch_get(Read(mut request, _): Read) -> Result<Response, Problem> {
    let read = request.read_headers()?;
    let batch: BatchGet = request.json().await?;
    check_size(&request, batch.items.len())?;

    let parsed: Vec<Result<ContentKey, Problem>> =
        batch.items.iter().map(|i| request.content_key(&i.content_type, &i.id)).collect();
    let keys: Vec<ContentKey> = parsed.iter().filter_map(|k| k.as_ref().ok()).cloned().collect();
    let options = read.options(Criticality::Degradable);
    let views = request.services().store.view_many(&keys, &options).await;
    let mut views = keys.iter().zip(views);
    let results: Vec<Result<(&ContentKey, View), Problem>> = parsed
        .iter()
        .map(|parsed| match parsed {
            Err(problem) => Err(problem.clone()),
            Ok(_) => match views.next() {
                Some((key, Ok(view))) => Ok((key, view)),
                Some((_, Err(error))) => Err(error.into()),
                None => Err(no_answer()),
            },
        })
        .collect();

    let mut token = read.token.unwrap_or_default();
    let now = request.now();
    let trace = request.trace_id();
    let body = BatchBody {
        results: results
            .iter()
            .zip(&batch.items)
            .map(|(result, item)| match result {
                Err(problem) => {
                    BatchItem::failed(&item.content_type, &item.id, problem.body(&trace))
                }
                Ok((key, view)) => {
                    token.observe(ContentHash::of(key), view.version, view.position);
                    BatchItem::done(ViewBody {
                        content: (&key.content).into(),
                        tags: Taggings(&view.tags),
                        version: VersionText(view.version),
                        meta: Meta::of_view(view, now),
                    })
                }
            })
            .collect(),
    };
    let mut response = json(&body);
    let degraded =
        results.iter().flatten().any(|(_, view)| view.stale || !view.degraded.is_empty());
    response.headers_mut().insert(header::CACHE_CONTROL, headers::cache_control(degraded));
    insert_token(&mut response, &request, &token);
    Ok(response)
}

/// Up to 500 writes
///
/// One result per item, in the order of the items; each item is atomic. With an `Idempotency-Key`
/// the whole request can be repeated. `by` and `at` of a tag import the user who added it elsewhere
/// and the time (scope `admin`).
#[utoipa::path(
    post,
    path = "/v1/content:batchTag",
    operation_id = "batchTagContents",
    tag = "content",
    request_body = BatchTag,
    responses((
        status = 200, description = "One result per item",
        body = BatchBody<'static, WriteBody<'static>>,
    ))
)]
pub(crate) async fn batch_tag(Write(mut request, _): Write) -> Result<Response, Problem> {
    let batch: BatchTag = request.json().await?;
    check_size(&request, batch.items.len())?;
    if batch.items.iter().any(|item| imports(item)) {
        request.require(Scope::Admin)?;
    }
    let write_headers = request.write_headers()?;
    if write_headers.if_match.is_some() {
        return Err(headers::bad(&header::IF_MATCH, "a batch takes no condition"));
    }

    let mut contents: Vec<(&str, &str)> =
        batch.items.iter().map(|i| (i.0.content_type.as_str(), i.0.id.as_str())).collect();
    contents.sort_unstable();
    request.bind_key(write_headers.idempotency_key, Call::BatchItem, contents)?;

    let mut occurrences = HashMap::new();
    let parsed: Vec<Result<tagfast_domain::Write, Problem>> = batch
        .items
        .iter()
        .map(|item| {
            let write = parse_item(&request, &write_headers, &mut occurrences, item)?;
            write.check_new_data()?;
            Ok(write)
        })
        .collect();
    let writes: Vec<WriteRequest> = parsed
        .iter()
        .filter_map(|w| w.as_ref().ok())
        .map(|write| WriteRequest {
            write: write.clone(),
            keyed: write_headers.idempotency_key.map(|_| Call::BatchItem),
            durability: write_headers.durability,
            deadline: Some(request.deadline),
            traceparent: write_headers.traceparent.clone(),
        })
        .collect();
    let mut answers = request.services().store.write_many(writes).await.into_iter();
    let results: Vec<Result<(&ContentKey, WriteAnswer), Problem>> = parsed
        .iter()
        .map(|parsed| match parsed {
            Err(problem) => Err(problem.clone()),
            Ok(write) => match answers.next() {
                Some(Ok(answer)) => Ok((&write.key, answer)),
                Some(Err(error)) => Err(error.into()),
                None => Err(no_answer()),
            },
        })
        .collect();

    let trace = request.trace_id();
    let mut token = write_headers.read.token.clone().unwrap_or_default();
    let body = BatchBody {
        results: results
            .iter()
            .zip(&batch.items)
            .map(|(result, item)| match result {
                Err(problem) => {
                    BatchItem::failed(&item.content_type, &item.id, problem.body(&trace))
                }
                Ok((key, answer)) => {
                    observe_write(&mut token, key, answer);
                    BatchItem::done(write_body(&request, key, answer))
                }
            })
            .collect(),
    };
    let mut response = json(&body);
    insert_token(&mut response, &request, &token);
    Ok(response)
}

fn insert_token(response: &mut Response, request: &ApiRequest, token: &ConsistencyToken) {
    if let Some(token) = request.sealed(token) {
        response.headers_mut().insert(CONSISTENCY_TOKEN.clone(), token);
    }
}

/// Whether an item sets the user or the time of a tag.
fn imports(item: &TagItem) -> bool {
    item.add
        .iter()
        .any(|t| matches!(t, TagInput::Imported(i) if i.0.by.is_some() || i.0.at.is_some()))
}

fn parse_item(
    request: &ApiRequest,
    headers: &WriteHeaders<'_>,
    occurrences: &mut HashMap<ContentKey, u32>,
    item: &TagItem,
) -> Result<tagfast_domain::Write, Problem> {
    let key = request.content_key(&item.content_type, &item.id)?;
    // Items are counted per content: a key that comes to a content again, alone or at another place
    // of a batch, is the same id there, so the store knows it.
    let occurrence = occurrences.entry(key.clone()).or_default();
    let id = request.write_id(headers.idempotency_key, *occurrence);
    *occurrence += 1;
    let now = request.now();
    let add = item.add.iter().map(|t| parse_tag(t, request, now)).collect::<Result<Vec<_>, _>>()?;
    let remove = item.remove.iter().map(|t| TagName::lookup(t)).collect::<Result<Vec<_>, _>>()?;
    Ok(tagfast_domain::Write {
        id,
        key,
        user: request.caller.user.clone(),
        operation: Operation::patch(add, remove, &request.services().domain_limits)?,
        if_match: None,
    })
}

fn parse_tag(input: &TagInput, request: &ApiRequest, now: UnixMillis) -> Result<Tag, Problem> {
    match input {
        TagInput::Plain(spelling) => Ok(Tag::parse(spelling)?),
        TagInput::Imported(Strict(imported)) => {
            let mut tag = Tag::parse(&imported.tag)?;
            if imported.by.is_none() && imported.at.is_none() {
                return Ok(tag);
            }
            let by =
                imported.by.as_deref().map_or(Ok(request.caller.user.clone()), UserId::parse)?;
            let at = imported.at.as_deref().map_or(Ok(now), |at| import_time(at, now))?;
            tag.origin = Some(Origin { by, at });
            Ok(tag)
        }
    }
}

fn import_time(text: &str, now: UnixMillis) -> Result<UnixMillis, Problem> {
    let latest = now.saturating_add(CLOCK_SKEW_MAX_MS);
    parse_rfc3339(text).filter(|at| (0..=latest).contains(at)).ok_or_else(|| {
        let shown: String = text.chars().take(SHOWN_TIME_CHARS_MAX).collect();
        let detail = format!("{shown:?} is not an RFC 3339 time between 1970 and now");
        Problem::new(Code::BadTime, detail)
    })
}

fn check_size(request: &ApiRequest, given: usize) -> Result<(), Problem> {
    let allowed = request.services().limits.batch_items;
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

fn no_answer() -> Problem {
    Problem::new(Code::Internal, "the store gave no answer for this item")
}
