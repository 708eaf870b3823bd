//! Successful answers.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, header};
use serde::Serialize;
use tagfast_resilience::ErrorChain;

/// First size of the buffer for a JSON body, in bytes: a view with some tags fits.
const BODY_CAPACITY_BYTES: usize = 1024;

/// 200 with a JSON body.
pub(crate) fn json<T: Serialize>(body: &T) -> Response {
    let mut bytes = Vec::with_capacity(BODY_CAPACITY_BYTES);
    // Writing to memory fails only for a map whose keys are not text, which no body here has.
    if let Err(error) = serde_json::to_writer(&mut bytes, body) {
        tracing::error!(error = %ErrorChain(&error), "an answer cannot be written as JSON");
    }
    with_type(bytes, "application/json")
}

/// 200 with a body of this media type.
pub(crate) fn with_type(body: impl Into<Body>, content_type: &'static str) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
