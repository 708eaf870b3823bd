//! A problem: its code, what happened this time, and the headers that go with it.
//!
//! A handler returns a [`Problem`]; the middleware writes its body, because only the middleware
//! knows the trace id.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, header};
use serde::Serialize;
use tagfast_domain::Version;
use utoipa::ToSchema;

use super::codes::Code;

/// Said of a write that may have been applied.
const MAY_BE_WRITTEN: &str =
    "the write may have been applied, retry it with the same Idempotency-Key";
/// Said of a write that was not applied.
const NOTHING_WRITTEN: &str = "this request has applied nothing";

/// An error answer.
#[derive(Debug, Clone)]
pub struct Problem(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    code: Code,
    detail: Cow<'static, str>,
    limit: Option<ExceededLimit>,
    retry_after: Option<Duration>,
    /// Whether the write may have happened; `None`: the request is no write, or it is plain.
    outcome_unknown: Option<bool>,
    syntax: Option<SyntaxPlace>,
    current_version: Option<Version>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Debug, Clone, Copy)]
struct ExceededLimit {
    name: &'static str,
    allowed: u64,
    given: u64,
}

#[derive(Debug, Clone)]
struct SyntaxPlace {
    position: usize,
    byte: usize,
    expected: String,
}

/// The body of every error: RFC 9457 with a stable `code`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody<'a> {
    /// A page about the code, relative to the service.
    #[serde(rename = "type")]
    #[schema(format = "uri-reference")]
    kind: String,
    /// A short sentence, the same for every problem of the code.
    title: &'a str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What happened this time.
    pub(crate) detail: &'a str,
    /// The stable code.
    code: &'a str,
    /// The name of the limit that was exceeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a str>,
    /// The limit's value.
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed: Option<u64>,
    /// The value in the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    given: Option<u64>,
    /// Milliseconds after which the same request can succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    /// Of a write that failed with a status from 500 on. `true`: it may have been applied; retry it
    /// with the same `Idempotency-Key`. `false`: this request has applied nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome_unknown: Option<bool>,
    /// Of `query_syntax`: the place, in characters from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<u64>,
    /// Of `query_syntax`: the place, in bytes from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    byte: Option<u64>,
    /// Of `query_syntax`: what could stand there.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<&'a str>,
    /// Of `version_mismatch`: the version of the content.
    #[serde(skip_serializing_if = "Option::is_none")]
    current_version: Option<String>,
    /// The request's trace: the trace id of `traceparent`, else the request id.
    trace_id: &'a str,
}

impl Problem {
    /// A problem of this code; `detail` says what happened this time.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            code,
            detail: detail.into(),
            limit: None,
            retry_after: None,
            outcome_unknown: None,
            syntax: None,
            current_version: None,
            headers: Vec::new(),
        }))
    }

    /// Names the limit that was exceeded.
    #[must_use]
    pub(crate) fn limit(mut self, name: &'static str, allowed: u64, given: u64) -> Self {
        self.0.limit = Some(ExceededLimit { name, allowed, given });
        self
    }

    /// Says when the caller may retry.
    #[must_use]
    pub(crate) fn retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// Adds a response header.
    #[must_use]
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// Says that a write may have been applied, if `unknown`.
    #[must_use]
    pub(crate) fn may_be_written(mut self, unknown: bool) -> Self {
        self.0.outcome_unknown = unknown.then_some(true);
        self
    }

    /// The problem as the answer to a write: one that the service is to blame for says whether the
    /// write may have been applied, in the field and in words.
    #[must_use]
    pub(crate) fn of_write(mut self) -> Self {
        if self.0.code.definition().status < 500 || self.0.code.definition().status == 501 {
            return self;
        }
        let inner = &mut *self.0;
        let unknown = *inner.outcome_unknown.get_or_insert(false);
        let words = if unknown { MAY_BE_WRITTEN } else { NOTHING_WRITTEN };
        if !inner.detail.ends_with(words) {
            inner.detail = format!("{}; {words}", inner.detail).into();
        }
        self
    }

    /// Names the place of a syntax error.
    #[must_use]
    pub(super) fn syntax(mut self, position: usize, byte: usize, expected: String) -> Self {
        self.0.syntax = Some(SyntaxPlace { position, byte, expected });
        self
    }

    /// Names the version of the content.
    #[must_use]
    pub(super) fn current_version(mut self, version: Version) -> Self {
        self.0.current_version = Some(version);
        self
    }

    /// The problem as the answer to a call that changes nothing.
    #[must_use]
    pub(crate) fn of_read(mut self) -> Self {
        self.0.outcome_unknown = None;
        self
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The body, for a request with this trace id.
    pub(crate) fn body<'a>(&'a self, trace_id: &'a str) -> ProblemBody<'a> {
        let inner = &*self.0;
        let row = inner.code.definition();
        ProblemBody {
            kind: format!("/docs/problems/{}", row.code),
            title: row.title,
            status: row.status,
            detail: &inner.detail,
            code: row.code,
            limit: inner.limit.map(|limit| limit.name),
            allowed: inner.limit.map(|limit| limit.allowed),
            given: inner.limit.map(|limit| limit.given),
            retry_after_ms: inner.retry_after.map(|after| after.as_millis() as u64),
            outcome_unknown: inner.outcome_unknown,
            position: inner.syntax.as_ref().map(|place| place.position as u64),
            byte: inner.syntax.as_ref().map(|place| place.byte as u64),
            expected: inner.syntax.as_ref().map(|place| place.expected.as_str()),
            current_version: inner.current_version.map(|version| version.to_string()),
            trace_id,
        }
    }
}

/// The value of `Retry-After`: whole seconds, rounded up, because an earlier retry would be refused
/// again.
pub(crate) fn retry_after_header(after: Duration) -> HeaderValue {
    HeaderValue::from(after.as_millis().div_ceil(1000).max(1) as u64)
}

/// The middleware finds the problem among the extensions and writes the body.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let inner = &*self.0;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = inner.code.status();
        if let Some(after) = inner.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, retry_after_header(after));
        }
        for (name, value) in &inner.headers {
            response.headers_mut().insert(name.clone(), value.clone());
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// The problem of a header whose value is not accepted.
pub(crate) fn bad_header(name: &HeaderName, reason: &str) -> Problem {
    Problem::new(Code::BadHeader, format!("header {name}: {reason}"))
}

/// The problem of a call whose part is not wired in.
pub(crate) fn not_in_this_mode(what: &'static str) -> Problem {
    Problem::new(Code::NotInThisMode, format!("{what} is not available in this mode"))
}
