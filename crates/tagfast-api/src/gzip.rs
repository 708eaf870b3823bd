//! Gzip compression of answers that are large enough to be worth it. Streams compress themselves.
//!
//! A large answer is compressed piece by piece while it is sent, so that neither its compressed
//! form nor the time for it exists as a whole.

use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderValue, header};
use http_body_util::{BodyExt, Collected};
use hyper::body::Frame;

/// Answers of up to this many bytes fit one packet uncompressed.
const UNCOMPRESSED_BYTES_MAX: u64 = 1024;
/// Answers of up to this many bytes are compressed at once.
const AT_ONCE_BYTES_MAX: u64 = 64 * 1024;
/// What is compressed without a pause of a larger answer, in bytes.
const PIECE_BYTES: usize = 32 * 1024;

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
    if size > AT_ONCE_BYTES_MAX {
        head.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        head.headers.remove(header::CONTENT_LENGTH);
        return Response::from_parts(head, Body::new(Gzip::new(body)));
    }
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

/// A body that is compressed while it is sent.
struct Gzip {
    body: Body,
    /// What is still to be compressed of the body's last frame.
    piece: Bytes,
    /// `None`: the trailer is written.
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl Gzip {
    fn new(body: Body) -> Self {
        let encoder = Some(GzEncoder::new(Vec::new(), Compression::fast()));
        Self { body, piece: Bytes::new(), encoder }
    }
}

impl HttpBody for Gzip {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        loop {
            if this.piece.is_empty() {
                match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                    // Trailers are not sent by this API.
                    Some(Ok(frame)) => this.piece = frame.into_data().unwrap_or_default(),
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    None => {
                        let rest = this.encoder.take().map(GzEncoder::finish).transpose();
                        let rest = rest.map_err(axum::Error::new).transpose();
                        let frame = rest.map(|rest| rest.map(|rest| Frame::data(rest.into())));
                        return Poll::Ready(frame);
                    }
                }
            }
            let Some(encoder) = &mut this.encoder else { return Poll::Ready(None) };
            let piece = this.piece.split_to(this.piece.len().min(PIECE_BYTES));
            if let Err(error) = encoder.write_all(&piece) {
                return Poll::Ready(Some(Err(axum::Error::new(error))));
            }
            let packed = std::mem::take(encoder.get_mut());
            if !packed.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(packed.into()))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;
    use crate::body::Rope;

    #[tokio::test]
    async fn every_size_is_the_same_after_unpacking() {
        let mut random = fastrand::Rng::with_seed(7);
        for size in [0, 1024, 1025, 65_536, 65_537, 70_000, 1_000_000] {
            let plain: Vec<u8> = (0..size).map(|_| random.u8(b'a'..b'h')).collect();
            let mut rope = Rope::default();
            for part in plain.chunks(3000) {
                rope.push(&Bytes::copy_from_slice(part));
            }
            let response = compress(Response::new(rope.into_body()), true).await;
            let is_packed = response.headers().contains_key(header::CONTENT_ENCODING);
            assert_eq!(is_packed, size > 1024, "{size}");
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            if !is_packed {
                assert!(bytes == plain, "{size}");
                continue;
            }
            assert!(bytes.len() < plain.len() / 2, "{size}: {}", bytes.len());
            let mut unpacked = Vec::new();
            GzDecoder::new(&*bytes).read_to_end(&mut unpacked).unwrap();
            assert!(unpacked == plain, "{size}");
        }
    }
}
