//! All contents of a tenant as a stream of JSON lines.
//!
//! A page is read when the client has taken the one before. Its lines count as bytes in flight.
//!
//! How it fails: an error before the first line is a problem document; a later one breaks the
//! stream off, and the client resumes with `after`. A page for which there is no room among the
//! bytes in flight waits, the first one is refused with 503 `overloaded`.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream;
use http::{HeaderValue, header};
use serde::{Deserialize, Deserializer};
use tagfast_domain::{ContentKey, TenantId};
use tagfast_resilience::ErrorChain;
use tagfast_sharding::LogicalShard;
use tagfast_store::{ScanPage, ScanRequest, SharedStore, StoreError};
use utoipa::IntoParams;

use crate::body::{AnswerBytes, held_bytes};
use crate::byte_budget::{ByteBudget, HeldBytes};
use crate::headers;
use crate::metric::Held;
use crate::params::{bad_parameter, parse_text, whole_number};
use crate::problem::Problem;
use crate::request::{ApiRequest, Read};
use crate::wire::export::{ExportLine, ExportLines};
use crate::wire::response::with_type;

/// Contents of the first page of the scan: their size is not known yet.
const FIRST_PAGE_CONTENTS: usize = 32;
/// Most contents of a page.
const PAGE_CONTENTS_MAX: usize = 500;
/// Bytes of the lines of a page, if its contents are as large as those before: what an export
/// whose client does not read holds in memory.
const PAGE_BYTES: usize = 512 * 1024;
/// How often a page that waits for room among the bytes in flight looks for it.
const ROOM_RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// First size of the buffer for the lines of a page, in bytes per content.
const LINE_CAPACITY_BYTES: usize = 160;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ExportParams {
    /// Only this logical shard.
    #[serde(default, deserialize_with = "shard")]
    #[param(value_type = Option<u8>, required = false, minimum = 0, maximum = 63)]
    shard: Option<LogicalShard>,
    /// Resume after this content, written `type/id`: the last line that was received.
    #[param(required = false, min_length = 3, max_length = 321)]
    after: Option<String>,
}

fn shard<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<LogicalShard>, D::Error> {
    parse_text(deserializer, |text| {
        whole_number(text).and_then(LogicalShard::from_number).map(Some).ok_or("it must be 0 to 63")
    })
}

/// All contents with their tags
///
/// One JSON line per content, in a stable order: by logical shard, then by type and id. A content
/// that exists during the whole export is in it. A stream that fails breaks off with an error;
/// resume it with `after`.
#[utoipa::path(
    get,
    path = "/v1/export",
    operation_id = "exportContents",
    tag = "operations",
    params(ExportParams),
    responses((
        status = 200, description = "Lines of JSON", body = ExportLines,
        content_type = "application/x-ndjson",
    ))
)]
pub(crate) async fn export(Read(request, params): Read<ExportParams>) -> Result<Response, Problem> {
    let (shards, after) = scan_range(&request, &params)?;
    let gzip = headers::accepts_gzip(&request.head.headers);
    let mut export = ExportStream {
        store: request.services().store.clone(),
        tenant: request.tenant().clone(),
        shards,
        after,
        page_contents: FIRST_PAGE_CONTENTS,
        budget: request.services().byte_budget.clone(),
        encoder: gzip.then(|| GzEncoder::new(Vec::new(), Compression::fast())),
        done: false,
    };
    // The first page is read before the answer starts, so that an error can still be a problem
    // document.
    let mut held = export.budget.holder(Held::Answer);
    held.grow(PAGE_BYTES)?;
    let first = export.next(held).await?;
    let chunks = stream::unfold((Some(export), first), |(export, ready)| async move {
        let mut export = export?;
        if let Some(chunk) = ready {
            return Some((Ok(chunk), (Some(export), None)));
        }
        let held = export.room().await;
        match export.next(held).await {
            Ok(Some(chunk)) => Some((Ok(chunk), (Some(export), None))),
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "an export broke off");
                Some((Err(error), (None, None)))
            }
        }
    });
    let mut response = with_type(Body::from_stream(chunks), "application/x-ndjson");
    let out = response.headers_mut();
    out.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    if gzip {
        out.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}

/// The shards to scan, the last one first, and the content in the first of them after which to
/// start (`None`: at its beginning).
fn scan_range(
    request: &ApiRequest,
    params: &ExportParams,
) -> Result<(Vec<LogicalShard>, Option<ContentKey>), Problem> {
    let only = params.shard;
    let after = params.after.as_deref().map(|text| {
        let (content_type, id) =
            text.split_once('/').ok_or_else(|| bad_parameter("after", "it must be type/id"))?;
        request.content_key(content_type, id)
    });
    let after = after.transpose()?;
    let start = after.as_ref().map(LogicalShard::of);
    if let (Some(only), Some(start)) = (only, start)
        && only != start
    {
        return Err(bad_parameter("after", "it is not in this shard"));
    }
    let mut shards: Vec<LogicalShard> = LogicalShard::all()
        .filter(|s| only.is_none_or(|o| o == *s) && start.is_none_or(|o| *s >= o))
        .collect();
    shards.reverse();
    Ok((shards, after))
}

/// An export in progress.
struct ExportStream {
    store: SharedStore,
    tenant: TenantId,
    /// The shards that are still to be scanned, the next one last.
    shards: Vec<LogicalShard>,
    /// The content after which the next page starts; `None`: at the shard's beginning.
    after: Option<ContentKey>,
    page_contents: usize,
    budget: ByteBudget,
    /// `None`: the answer is not compressed.
    encoder: Option<GzEncoder<Vec<u8>>>,
    done: bool,
}

impl ExportStream {
    /// Waits for the bytes of a page: others give theirs back when they are read, or when their
    /// connection is closed for making no progress.
    async fn room(&self) -> HeldBytes {
        let mut held = self.budget.holder(Held::Answer);
        while held.grow(PAGE_BYTES).is_err() {
            tokio::time::sleep(ROOM_RETRY_INTERVAL).await;
        }
        held
    }

    /// The next chunk that is not empty; `None` at the end.
    async fn next(&mut self, mut held: HeldBytes) -> Result<Option<Bytes>, StoreError> {
        while let Some(shard) = self.shards.last().copied() {
            let scan = self.store.scan(ScanRequest {
                shard,
                tenant: Some(&self.tenant),
                after: self.after.as_ref(),
                limit: self.page_contents,
            });
            let page = scan.await?;
            let lines = encode_lines(&page);
            self.page_contents = page_contents(page.items.len(), lines.len());
            self.after = page.next;
            if self.after.is_none() {
                self.shards.pop();
            }
            let chunk = self.compress(lines);
            if !chunk.is_empty() {
                held.grow_always(chunk.len());
                held.shrink_to(chunk.len());
                return Ok(Some(held_bytes(chunk, AnswerBytes(Arc::new(held)))));
            }
        }
        if std::mem::replace(&mut self.done, true) {
            return Ok(None);
        }
        let trailer =
            self.encoder.take().and_then(|e| e.finish().ok()).filter(|bytes| !bytes.is_empty());
        Ok(trailer.map(Bytes::from))
    }

    /// The compressed bytes that are ready; empty while the encoder buffers them.
    fn compress(&mut self, lines: Vec<u8>) -> Bytes {
        match &mut self.encoder {
            None => lines.into(),
            Some(encoder) => {
                // Writing to memory cannot fail.
                if encoder.write_all(&lines).is_err() {
                    return Bytes::new();
                }
                std::mem::take(encoder.get_mut()).into()
            }
        }
    }
}

/// How many contents the next page has, when the last one had `contents` with lines of `bytes`.
fn page_contents(contents: usize, bytes: usize) -> usize {
    let each = bytes.div_ceil(contents.max(1)).max(1);
    (PAGE_BYTES / each).clamp(1, PAGE_CONTENTS_MAX)
}

/// One line per content that has tags.
fn encode_lines(page: &ScanPage) -> Vec<u8> {
    let mut out = Vec::with_capacity(page.items.len() * LINE_CAPACITY_BYTES);
    for (key, document) in &page.items {
        if document.live().next().is_none() {
            continue;
        }
        if serde_json::to_writer(&mut out, &ExportLine::new(key, document.live())).is_ok() {
            out.push(b'\n');
        }
    }
    out
}
