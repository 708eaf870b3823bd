//! Answers to what never became a request, as bytes.

use std::sync::LazyLock;
use std::time::SystemTime;

use http::{HeaderMap, StatusCode};
use tagfast_resilience::{Bounded, counter};

use crate::head::Head;
use crate::metric::HTTP_REQUESTS;
use crate::middleware::request_id;
use crate::problem::Problem;

/// The statuses that the HTTP library answers by itself.
static BARE_STATUSES: LazyLock<[(Vec<u8>, StatusCode); 3]> = LazyLock::new(|| {
    [StatusCode::BAD_REQUEST, StatusCode::URI_TOO_LONG, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE]
        .map(|status| (format!(" {status}\r\n").into_bytes(), status))
});
/// Bytes of the last header of such an answer and the blank line behind it.
const DATE_BYTES: usize = "date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n".len();

/// Where a bare answer of the HTTP library begins at the end of these bytes, and its status.
pub(crate) fn bare_refusal(bytes: &[u8]) -> Option<(usize, StatusCode)> {
    let (before, date) = bytes.split_at_checked(bytes.len().checked_sub(DATE_BYTES)?)?;
    let before = before.strip_suffix(b"content-length: 0\r\n")?;
    if !date.starts_with(b"date: ") || !date.ends_with(b"\r\n\r\n") {
        return None;
    }
    let before = before.strip_suffix(b"connection: close\r\n").unwrap_or(before);
    BARE_STATUSES.iter().find_map(|(line, status)| {
        let before = before.strip_suffix(line.as_slice())?;
        let before = before.strip_suffix(b"HTTP/1.1").or(before.strip_suffix(b"HTTP/1.0"))?;
        Some((before.len(), *status))
    })
}

/// The complete answer to this head, after which the connection ends.
pub(crate) fn refusal(problem: &Problem, head: &Head<'_>) -> Vec<u8> {
    let id = request_id(&HeaderMap::new());
    let id = id.to_str().unwrap_or_default();
    let status = problem.code().status();
    counter!(
        HTTP_REQUESTS,
        "route" => Bounded("malformed"),
        "method" => Bounded("other"),
        "status" => Bounded(status.as_str().to_owned()),
    )
    .increment(1);
    let body = serde_json::to_string(&problem.body(id)).unwrap_or_default();
    let date = httpdate::fmt_http_date(SystemTime::now());
    let mut text = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n\
         x-request-id: {id}\r\nconnection: close\r\ncontent-length: {}\r\ndate: {date}\r\n\r\n",
        body.len(),
    );
    // An answer to HEAD has no body.
    if !head.0.starts_with(b"HEAD ") {
        text.push_str(&body);
    }
    text.into_bytes()
}
