//! Gzip compression of answers that are complete and large enough to be worth it. Streams compress
//! themselves.

use std::io::Write;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderValue, header};
use http_body_util::{BodyExt, Collected};

/// Answers of up to this many bytes fit one packet uncompressed.
const UNCOMPRESSED_BYTES_MAX: u64 = 1024;

/// Compresses the body if the client accepts gzip and the body is large enough.
pub(crate) async fn compress(mut response: Response, accepted: bool) -> Response {
    let Some(size) = response.body().size_hint().exact() else { return response };
    if size <= UNCOMPRESSED_BYTES_MAX {
        return response;
    }
    response.headers_mut().append(header::VARY, HeaderValue::from_static("accept-encoding"));
    if !accepted || response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    let (mut head, body) = response.into_parts();
    // The body is complete: this does not wait.
    let Ok(plain) = body.collect().await.map(Collected::to_bytes) else {
        return Response::from_parts(head, Body::empty());
    };
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 3), Compression::fast());
    match encoder.write_all(&plain).and_then(|()| encoder.finish()) {
        Ok(packed) => {
            head.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            head.headers.remove(header::CONTENT_LENGTH);
            Response::from_parts(head, Body::from(packed))
        }
        Err(_) => Response::from_parts(head, Body::from(plain)),
    }
}
