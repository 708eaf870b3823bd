//! All contents of a tenant as a stream of lines.

use std::io::Write;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream;
use http::{HeaderValue, header};
use tagfast_domain::ContentKey;
use tagfast_sharding::LogicalShard;
use tagfast_store::{ScanPage, SharedStore, StoreError};
use utoipa::IntoParams;

use crate::call::{Call, Read};
use crate::encoding::bad_parameter;
use crate::headers;
use crate::problem::Problem;
use crate::wire::ExportLine;

/// Contents per page of the scan: a few hundred kilobytes at most, so that memory stays small.
const PAGE: usize = 500;

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query to the OpenAPI document")]
struct ExportParameters {
    /// Only this logical shard.
    #[param(required = false, minimum = 0, maximum = 63)]
    shard: Option<u8>,
    /// Resume after this content, written `type/id`: the last line that was received.
    #[param(required = false, min_length = 3, max_length = 321)]
    after: Option<String>,
}

/// All contents with their tags
///
/// One JSON line a content, in an order that stays the same: by logical shard, then by type and id.
/// A content that exists during the whole export is in it. A stream that ends early breaks off with
/// an error; resume it with `after`.
#[utoipa::path(
    get,
    path = "/v1/export",
    tag = "operations",
    params(ExportParameters),
    responses((status = 200, description = "Lines of JSON", body = ExportLine<'static>, content_type = "application/x-ndjson"))
)]
pub(crate) async fn export(Read(call): Read) -> Result<Response, Problem> {
    let (shards, after) = place(&call)?;
    let mut walk = Walk {
        store: call.app.parts.store.clone(),
        tenant: call.tenant().clone(),
        shards,
        after,
        encoder: headers::accepts_gzip(&call.head.headers)
            .then(|| GzEncoder::new(Vec::new(), Compression::fast())),
        done: false,
    };
    let zipped = walk.encoder.is_some();
    // The first page is read before the answer begins, so that an error can still be a problem
    // document.
    let first = walk.next().await?;
    let rest = stream::unfold((Some(walk), first), |(walk, ready)| async move {
        let mut walk = walk?;
        if let Some(chunk) = ready {
            return Some((Ok(chunk), (Some(walk), None)));
        }
        match walk.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), (Some(walk), None))),
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%error, "an export broke off");
                Some((Err(error), (None, None)))
            }
        }
    });
    let mut response = Response::new(Body::from_stream(rest));
    let out = response.headers_mut();
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    out.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    if zipped {
        out.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}

/// The shards to walk, the last one first, and where in the first of them to start.
fn place(call: &Call) -> Result<(Vec<LogicalShard>, Option<ContentKey>), Problem> {
    let mut query = call.query(&["shard", "after"])?;
    let only = query
        .take("shard")
        .map(|text| {
            let number = text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
            number
                .and_then(LogicalShard::from_number)
                .ok_or_else(|| bad_parameter("shard", "it must be 0 to 63"))
        })
        .transpose()?;
    let after = query
        .take("after")
        .map(|text| {
            let parts =
                text.split_once('/').ok_or_else(|| bad_parameter("after", "it must be type/id"))?;
            call.content_of(parts.0, parts.1)
        })
        .transpose()?;
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

struct Walk {
    store: SharedStore,
    tenant: tagfast_domain::TenantId,
    shards: Vec<LogicalShard>,
    after: Option<ContentKey>,
    encoder: Option<GzEncoder<Vec<u8>>>,
    done: bool,
}

impl Walk {
    /// The next chunk that is not empty; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        while let Some(shard) = self.shards.last().copied() {
            let page =
                self.store.scan(shard, Some(&self.tenant), self.after.as_ref(), PAGE).await?;
            let lines = lines(&page);
            self.after = page.next;
            if self.after.is_none() {
                self.shards.pop();
            }
            let chunk = self.pack(lines);
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
        if std::mem::replace(&mut self.done, true) {
            return Ok(None);
        }
        let last =
            self.encoder.take().and_then(|e| e.finish().ok()).filter(|bytes| !bytes.is_empty());
        Ok(last.map(Bytes::from))
    }

    fn pack(&mut self, lines: Vec<u8>) -> Bytes {
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

fn lines(page: &ScanPage) -> Vec<u8> {
    let mut out = Vec::with_capacity(page.items.len() * 160);
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
