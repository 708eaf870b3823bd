//! Many contents in one request; each item succeeds or fails alone.
//!
//! A content that a batch names more than once is read and rendered once. Large contents are read a
//! few at a time, and what is rendered counts as bytes in flight as it grows: a batch whose answer
//! finds no room is refused with 503 `overloaded` before it holds more.

use std::collections::HashMap;
use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use http::header;
use serde::Serialize;
use tagfast_domain::time::parse_rfc3339;
use tagfast_domain::{
    Call, ContentKey, Operation, Origin, Refusal, Tag, TagName, UnixMillis, UserId,
};
use tagfast_json::Strict;
use tagfast_resilience::{Criticality, ErrorChain};
use tagfast_store::{ConsistencyToken, StoreError, View, WriteAnswer, WriteRequest};

use super::content::{observe_view, observe_write, write_body};
use super::paths::check_new_data;
use crate::auth::Scope;
use crate::body::{AnswerBytes, Rope};
use crate::byte_budget::HeldBytes;
use crate::headers::{self, CONSISTENCY_TOKEN};
use crate::metric::Held;
use crate::problem::{Code, Problem, bad_header};
use crate::request::{ApiRequest, Read, Write, WriteHeaders};
use crate::session_writes::SessionWrites;
use crate::wire::batch::{BatchBody, BatchGet, BatchItem, BatchTag, TagInput, TagItem};
use crate::wire::content::{Taggings, VersionText, ViewBody, WriteBody};
use crate::wire::meta::Meta;
use crate::wire::response::{json, with_type};

/// How far the time of an imported tag may lie in the future, in milliseconds: clocks of two
/// machines differ.
const CLOCK_SKEW_MAX_MS: i64 = 300_000;
/// Contents that a batch reads first, in one call of the store: their size is not known yet.
const FIRST_SLICE_CONTENTS: usize = 32;
/// Fewest contents that a batch reads in one call of the store.
const SLICE_CONTENTS_MIN: usize = 8;
/// What a batch reads in one call of the store after the first, in bytes of the answer, if the
/// contents are as large as those before: the memory of a batch beside its answer.
const SLICE_BYTES: usize = 512 * 1024;
/// Longest part of a bad time that the error repeats, in characters.
const SHOWN_TIME_CHARS_MAX: usize = 80;

/// The tags of up to 500 contents
///
/// One result per item, in the order of the items. An item that cannot be read has a problem; the
/// others are not affected. A content that is named twice is read once.
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

    let (contents, places) = distinct(&request, &batch);
    let session = SessionWrites::of(&*request.services().store, &read.receipts).await;
    let options = session.options(read.options(Criticality::Degradable));
    let mut token = read.token.clone().unwrap_or_default();
    let mut views = RenderedViews::new(&request, session);
    let mut slice = FIRST_SLICE_CONTENTS;
    while views.items.len() < contents.len() {
        let left = &contents[views.items.len()..];
        let keys = &left[..slice.min(left.len())];
        let read = request.services().store.view_many(keys, &options).await;
        let bytes = views.render(keys, read, &mut token)?;
        slice = next_slice(keys.len(), bytes);
    }
    let (mut response, degraded) = views.answer(&batch, &places);
    response.headers_mut().insert(header::CACHE_CONTROL, headers::cache_control(degraded));
    insert_token(&mut response, &request, &token);
    Ok(response)
}

/// The contents of a batch, each once, and for each item the place of its content among them.
fn distinct(
    request: &ApiRequest,
    batch: &BatchGet,
) -> (Vec<ContentKey>, Vec<Result<usize, Problem>>) {
    let mut known: HashMap<ContentKey, usize> = HashMap::new();
    let mut contents = Vec::new();
    let places = batch.items.iter().map(|item| {
        let key = request.content_key(&item.content_type, &item.id)?;
        Ok(*known.entry(key).or_insert_with_key(|key| {
            contents.push(key.clone());
            contents.len() - 1
        }))
    });
    let places = places.collect();
    (contents, places)
}

/// How many contents are read next, when `bytes` is the size of the last `contents` ones.
fn next_slice(contents: usize, bytes: usize) -> usize {
    let each = bytes.div_ceil(contents.max(1)).max(1);
    (SLICE_BYTES / each).max(SLICE_CONTENTS_MIN)
}

/// The views of a batch, each rendered once; an item begins with the comma that separates it from
/// the one before.
struct RenderedViews {
    items: Vec<Bytes>,
    held: HeldBytes,
    trace: String,
    now: UnixMillis,
    /// What every view has to say about the session's writes.
    session: SessionWrites,
    /// Whether one of the views is stale or lacks a guarantee.
    degraded: bool,
}

impl RenderedViews {
    fn new(request: &ApiRequest, session: SessionWrites) -> Self {
        Self {
            session,
            items: Vec::new(),
            held: request.services().byte_budget.holder(Held::Answer),
            trace: request.trace_id(),
            now: request.now(),
            degraded: false,
        }
    }

    /// Renders the views of some contents; their size in bytes.
    fn render(
        &mut self,
        keys: &[ContentKey],
        views: Vec<Result<View, StoreError>>,
        token: &mut ConsistencyToken,
    ) -> Result<usize, Problem> {
        let mut views = views.into_iter();
        let (mut out, mut ends) = (Vec::new(), Vec::with_capacity(keys.len()));
        for key in keys {
            let view = match views.next() {
                Some(view) => view.map_err(|error| Problem::from(error).of_read()),
                None => Err(no_answer()),
            };
            match &view {
                Err(problem) => {
                    let content = &key.content;
                    let (kind, id) = (content.content_type.as_str(), content.content_id.as_str());
                    let body = problem.body(&self.trace);
                    write_item(&mut out, &BatchItem::<ViewBody<'_>>::failed(kind, id, body));
                }
                Ok(view) => {
                    observe_view(token, key, view);
                    self.degraded |=
                        view.stale || !view.degraded.is_empty() || self.session.is_degraded();
                    let mut meta = Meta::of_view(view, self.now);
                    self.session.mark(&mut meta, &view.degraded);
                    let body = ViewBody {
                        content: (&key.content).into(),
                        tags: Taggings(&view.tags),
                        version: VersionText(view.version),
                        meta,
                    };
                    write_item(&mut out, &BatchItem::done(body));
                }
            }
            ends.push(out.len());
        }
        out.shrink_to_fit();
        self.held.grow(out.capacity())?;
        let (out, mut begin) = (Bytes::from(out), 0);
        self.items.extend(ends.into_iter().map(|end| {
            let item = out.slice(begin..end);
            begin = end;
            item
        }));
        Ok(out.len())
    }

    /// The answer, and whether it is degraded.
    fn answer(self, batch: &BatchGet, places: &[Result<usize, Problem>]) -> (Response, bool) {
        let mut body = Rope::default();
        body.push_copy(b"{\"results\":[");
        let mut bad_bytes = 0;
        for (n, (place, item)) in places.iter().zip(&batch.items).enumerate() {
            let item = match place {
                Ok(place) => self.items[*place].clone(),
                Err(problem) => {
                    let (kind, id) = (&item.content_type, &item.id);
                    let body = problem.body(&self.trace);
                    let mut bad = Vec::new();
                    write_item(&mut bad, &BatchItem::<ViewBody<'_>>::failed(kind, id, body));
                    bad_bytes += bad.len();
                    bad.into()
                }
            };
            // The first item follows nothing.
            body.push(&item.slice(usize::from(n == 0)..));
        }
        body.push_copy(b"]}");
        let mut held = self.held;
        // Both are bounded by the request: small parts by the number of its items, what is wrong
        // with it by its own bytes.
        held.grow_always(body.copied_bytes() + bad_bytes);
        let mut response = with_type(body.into_body(), "application/json");
        response.extensions_mut().insert(AnswerBytes(Arc::new(held)));
        (response, self.degraded)
    }
}

/// Appends a comma and an item.
fn write_item<T: Serialize>(out: &mut Vec<u8>, item: &BatchItem<'_, T>) {
    out.push(b',');
    let begin = out.len();
    // Writing to memory fails only for a map whose keys are not text, which no item has.
    if let Err(error) = serde_json::to_writer(&mut *out, item) {
        tracing::error!(error = %ErrorChain(&error), "an item cannot be written as JSON");
        out.truncate(begin);
        out.extend_from_slice(b"null");
    }
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
    let mut batch: BatchTag = request.json().await?;
    check_size(&request, batch.items.len())?;
    if batch.items.iter().any(imports) {
        request.require(Scope::Admin)?;
    }
    let write_headers = request.write_headers()?;
    if write_headers.if_match.is_some() {
        return Err(bad_header(&header::IF_MATCH, "a batch takes no condition"));
    }

    let contents = batch.items.iter().map(|i| (i.content_type.as_str(), i.id.as_str()));
    let keyed = request.bound_key(write_headers.idempotency_key, Call::BatchItem, contents);
    let mut occurrences = HashMap::new();
    let parsed: Vec<Result<tagfast_domain::Write, Problem>> = batch
        .items
        .iter_mut()
        .map(|item| {
            let parsed = parse_item(&request, &write_headers, &mut occurrences, item);
            // A body of empty tags takes many times its bytes: not while the writes wait.
            (item.add, item.remove) = (Vec::new(), Vec::new());
            parsed
        })
        .collect();
    let writes: Vec<WriteRequest> = parsed
        .iter()
        .filter_map(|w| w.as_ref().ok())
        .map(|write| WriteRequest {
            write: write.clone(),
            keyed,
            durability: write_headers.durability,
            deadline: Some(request.deadline),
            traceparent: write_headers.traceparent.clone(),
        })
        .collect();
    let answers = request.services().store.write_many(writes).await;
    // The key of a different request: no item was looked at, so the request as a whole is refused.
    let is_refused = |answer: &Result<WriteAnswer, StoreError>| {
        matches!(answer, Err(StoreError::Refused(Refusal::KeyReused)))
    };
    if !answers.is_empty() && answers.iter().all(is_refused) {
        return Err(StoreError::Refused(Refusal::KeyReused).into());
    }
    let mut answers = answers.into_iter();
    let results: Vec<Result<(&ContentKey, WriteAnswer), Problem>> = parsed
        .iter()
        .map(|parsed| match parsed {
            Err(problem) => Err(problem.clone()),
            Ok(write) => match answers.next() {
                Some(Ok(answer)) => Ok((&write.key, answer)),
                Some(Err(error)) => Err(Problem::from(error).of_write()),
                None => Err(no_answer().may_be_written(true).of_write()),
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
    let limits = &request.services().domain_limits;
    let now = request.now();
    let add = item.add.iter().map(|t| parse_tag(t, request, now)).collect::<Result<Vec<_>, _>>()?;
    let remove = item.remove.iter().map(|t| TagName::lookup(t)).collect::<Result<Vec<_>, _>>()?;
    let write = tagfast_domain::Write {
        id,
        key,
        user: request.caller.user.clone(),
        operation: Operation::patch(add, remove, limits)?,
        if_match: None,
    };
    check_new_data(&write)?;
    Ok(write)
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

/// Refuses more items than a batch may have.
pub(super) fn check_size(request: &ApiRequest, given: usize) -> Result<(), Problem> {
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

/// The problem of an item that the store forgot.
pub(super) fn no_answer() -> Problem {
    Problem::new(Code::Internal, "the store gave no answer for this item")
}
