//! Errors as the client sees them: RFC 9457 problem documents with one list of stable codes.
//!
//! A handler returns a [`Problem`]; the gate writes its body, because only the gate knows the
//! trace. The table [`PROBLEM_CODES`] is the one source of the codes: the documentation and the
//! pages below `/docs/problems/` are made from it.

use std::borrow::Cow;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use tagfast_domain::{DomainError, Refusal, Version};
use tagfast_popular::PopularError;
use tagfast_resilience::comes_back;
use tagfast_search::SearchError;
use tagfast_store::StoreError;
use utoipa::ToSchema;

use crate::rate::Admission;

/// One stable code with what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ProblemCode {
    /// The word in `code`, never changed once published.
    pub code: &'static str,
    /// The HTTP status it comes with.
    pub status: u16,
    /// The `title`.
    pub title: &'static str,
    /// When it is answered.
    pub meaning: &'static str,
    /// What the caller does about it.
    pub action: &'static str,
}

macro_rules! codes {
    ($($variant:ident = $code:literal $status:literal $title:literal $meaning:literal $action:literal;)*) => {
        /// The codes, in the order of [`PROBLEM_CODES`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)*
        }

        /// Every code the API answers.
        pub const PROBLEM_CODES: &[ProblemCode] = &[
            $(ProblemCode { code: $code, status: $status, title: $title, meaning: $meaning, action: $action },)*
        ];
    };
}

codes! {
    BadEncoding = "bad_encoding" 400 "The URL is not well encoded"
        "A path segment or query value has a broken percent-encoding or is not UTF-8 after decoding."
        "Percent-encode each path segment once, as UTF-8; in a query value write a plus sign as %2B.";
    BadJson = "bad_json" 400 "The body is not valid JSON"
        "The request body cannot be parsed as JSON; the detail says where."
        "Send one JSON document.";
    UnknownField = "unknown_field" 400 "The body has an unknown field"
        "The request body has a field that this call does not know; the detail names it."
        "Remove the field or correct its spelling.";
    WrongType = "wrong_type" 400 "The body has another shape than this call takes"
        "A field is missing or has another type than expected; the detail names its path."
        "Compare the body with the schema in /openapi.json.";
    BadParameter = "bad_parameter" 400 "A query parameter has a bad value"
        "A query parameter is out of its range, not one of its words, or given twice."
        "Correct the value; the detail says what is accepted.";
    UnknownParameter = "unknown_parameter" 400 "Unknown query parameter"
        "The call does not know this query parameter."
        "Remove it or correct its spelling; the detail lists the known ones.";
    BadHeader = "bad_header" 400 "A header has a bad value"
        "A request header that this call reads has a value it cannot take."
        "Correct the header; the detail says what is accepted.";
    BadToken = "bad_token" 400 "The token is not one of ours"
        "A consistency token or receipt is damaged, of another tenant, or of another service."
        "Send back tokens exactly as they were received; without a token, leave the header out.";
    BadCursor = "bad_cursor" 400 "The cursor does not fit"
        "The cursor is damaged, of another tenant, of another query or sort order, or older than a day."
        "Start again without a cursor.";
    QuerySyntax = "query_syntax" 400 "The search query cannot be parsed"
        "The query breaks the grammar at `position` (characters) and `byte`; `expected` says what could stand there."
        "Correct the query; tags with blanks or operators in them need quotes.";
    Unauthenticated = "unauthenticated" 401 "Authentication is needed"
        "The request carries no bearer token."
        "Send `Authorization: Bearer <token>`.";
    InvalidToken = "invalid_token" 401 "The bearer token is not accepted"
        "The bearer token is malformed, expired, not yet valid, wrongly signed or lacks a claim."
        "Get a new token; the detail and `WWW-Authenticate` say what is wrong.";
    MissingScope = "missing_scope" 403 "The token does not allow this"
        "The token lacks the scope that this call needs."
        "Ask for a token with the scope that the detail names.";
    NotFound = "not_found" 404 "No such page"
        "The path is not one of the API's routes."
        "Compare the path with /openapi.json; encode a slash inside an id or tag as %2F.";
    UnknownLetter = "unknown_letter" 404 "No such dead letter or replay"
        "There is no dead letter or replay with this id, it was forgotten after two weeks, or the letter is another tenant's."
        "List the letters with /v1/dead-letters; encode the slashes of an id as %2F.";
    UnknownBreaker = "unknown_breaker" 404 "No such breaker"
        "The process that was asked has no circuit breaker of this name."
        "List the breakers with /v1/breakers; each process has its own.";
    MethodNotAllowed = "method_not_allowed" 405 "The method is not allowed here"
        "The route exists but not with this method; `Allow` lists those it has."
        "Use one of the methods in `Allow`.";
    RequestTimeout = "request_timeout" 408 "The request did not arrive in time"
        "The body was not received within the request timeout."
        "Send it again, faster or in smaller parts.";
    AlreadyRunning = "already_running" 409 "The operation is already running"
        "A reindex or recount is under way; two of them would only slow each other down."
        "Wait until it is done; /v1/status shows its progress.";
    VersionMismatch = "version_mismatch" 412 "The content has another version"
        "`If-Match` names a version that the content no longer has; `current_version` is the one it has."
        "Read the content again, decide anew, and send the new version.";
    BodyTooLarge = "body_too_large" 413 "The body is too large"
        "The request body exceeds the limit `body_bytes`."
        "Send less in one request.";
    UrlTooLong = "url_too_long" 414 "The URL is too long"
        "Path and query together exceed the limit `url_bytes`."
        "Shorten the query.";
    UnsupportedMediaType = "unsupported_media_type" 415 "The body is not declared as JSON"
        "The call takes a body of type `application/json`."
        "Send `Content-Type: application/json`.";
    Empty = "empty" 422 "A value is empty"
        "A tag, content type, content id, user or reason is empty, also after blanks are trimmed."
        "Give it at least one character.";
    TooLong = "too_long" 422 "A value is too long"
        "A tag, content type, content id, user or reason exceeds the limit that `limit` names."
        "Shorten it.";
    ForbiddenCharacter = "forbidden_character" 422 "A value has a forbidden character"
        "A tag, content type, content id or user contains a character that its rule forbids; the detail names it."
        "Leave the character out.";
    ReservedTenant = "reserved_tenant" 422 "The tenant's name is reserved"
        "A tenant's name begins with an underscore, which the service keeps for itself."
        "Use another name.";
    AddedAndRemoved = "added_and_removed" 422 "A tag is both added and removed"
        "One write adds and removes the same tag."
        "Decide for one of both; spellings with one canonical name are one tag.";
    NothingToDo = "nothing_to_do" 422 "The write names no tag"
        "A write without any tag to add or remove."
        "Name a tag, or leave the write out.";
    TooManyTagsInWrite = "too_many_tags_in_write" 422 "The write names too many tags"
        "One write names more tags than the limit `tags_per_write`."
        "Split the write.";
    Undecodable = "undecodable" 422 "A value cannot be decoded"
        "A value is not in the form that its rule asks for."
        "Correct it; the detail says what is wrong.";
    TooManyTags = "too_many_tags" 422 "The content would have too many tags"
        "After the write the content would exceed the limit `tags_per_content`; nothing was changed."
        "Remove tags first.";
    IdempotencyKeyReused = "idempotency_key_reused" 422 "The idempotency key was used for another write"
        "The same `Idempotency-Key` came with another operation within the last ten minutes."
        "Use a new key for a new operation.";
    BatchTooLarge = "batch_too_large" 422 "The batch has too many items"
        "A batch exceeds the limit `batch_items`."
        "Split the batch.";
    BadTime = "bad_time" 422 "A time is not acceptable"
        "`at` is not an RFC 3339 time between 1970 and now."
        "Correct it, for example 2026-01-31T12:00:00Z.";
    QueryLimit = "query_limit" 422 "The search query is too large"
        "The query exceeds a limit of the query language; `limit` names it."
        "Simplify the query.";
    PrefixTooBroad = "prefix_too_broad" 422 "The prefix matches too many tags"
        "A prefix in the query matches more tags than a search may follow."
        "Make the prefix longer.";
    AllNotMeant = "all_not_meant" 422 "The filter matches every dead letter"
        "A filter without any condition came without `all`; nothing was done."
        "Add a condition, or `\"all\": true` if every open letter is meant.";
    RateOutOfRange = "rate_out_of_range" 422 "The rate is out of its range"
        "The rate of a replay exceeds the limit `replay_rate` or is 0."
        "Choose a rate from 1 to the limit.";
    RateLimited = "rate_limited" 429 "Too many requests"
        "This user of this tenant sent more requests than the configured rate."
        "Wait as long as `Retry-After` says.";
    Internal = "internal" 500 "Internal error"
        "A bug or an unforeseen error; the log has the details under the trace id."
        "Retry a write with the same `Idempotency-Key`; report the trace id if it happens again.";
    Damaged = "damaged" 500 "Stored data is damaged"
        "Stored data cannot be read; the log names the place."
        "An operator restores a backup.";
    OperationFailed = "operation_failed" 500 "The operation failed"
        "A reindex or recount ended with an error; what it serves is as before."
        "Look at the detail and the log, then start it again.";
    NotInThisMode = "not_in_this_mode" 501 "Not available in this mode"
        "The feature belongs to another way to run the service."
        "Leave it out, or run the service with the part that has it.";
    Overloaded = "overloaded" 503 "Too much to do"
        "A queue is full; nothing happened."
        "Wait as long as `Retry-After` says, then send the same request.";
    Unavailable = "unavailable" 503 "The store is not available"
        "The store cannot serve this content now. With `outcome_unknown` a write may have happened."
        "Wait as long as `Retry-After` says; retry a write with the same `Idempotency-Key`.";
    SearchUnavailable = "search_unavailable" 503 "Search is not available"
        "The search index cannot answer now; tags of single contents still can be read and written."
        "Wait as long as `Retry-After` says.";
    PopularUnavailable = "popular_unavailable" 503 "Popular tags are not available"
        "The counts of tags cannot be read now; tags of single contents still can be read and written."
        "Wait as long as `Retry-After` says.";
    LettersUnavailable = "letters_unavailable" 503 "Dead letters are not available"
        "The book of dead letters cannot be reached now; consuming and parking go on."
        "Wait as long as `Retry-After` says.";
    KeysUnavailable = "keys_unavailable" 503 "Keys to check tokens are not available"
        "No key set could be loaded yet, so that no token can be checked."
        "Wait as long as `Retry-After` says; an operator checks `auth.jwks`.";
    Deadline = "deadline" 504 "The deadline passed"
        "The request could not be finished in time. With `outcome_unknown` a write may have happened."
        "Retry with the same `Idempotency-Key`.";
    DiskFull = "disk_full" 507 "The disk is full"
        "The disk of the data directory is full; nothing was written. Reads go on."
        "An operator makes space; writes then work again by themselves.";
}

impl Code {
    /// The row of the table.
    pub fn definition(self) -> &'static ProblemCode {
        &PROBLEM_CODES[self as usize]
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.definition().status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// An error answer.
#[derive(Debug, Clone)]
pub struct Problem(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    code: Code,
    detail: Cow<'static, str>,
    limit: Option<(&'static str, u64, u64)>,
    retry_after: Option<Duration>,
    outcome_unknown: bool,
    syntax: Option<(usize, usize, String)>,
    current: Option<Version>,
    header: Option<(HeaderName, HeaderValue)>,
    rate: Option<Admission>,
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
    detail: &'a str,
    /// The stable word.
    code: &'a str,
    /// The name of the limit that was exceeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a str>,
    /// The limit's value.
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed: Option<u64>,
    /// What was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    given: Option<u64>,
    /// Milliseconds after which the same request can succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    /// The write may have happened: retry it with the same `Idempotency-Key`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    outcome_unknown: bool,
    /// Of `query_syntax`: where, in characters from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<u64>,
    /// Of `query_syntax`: where, in bytes from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    byte: Option<u64>,
    /// Of `query_syntax`: what could stand there.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<&'a str>,
    /// Of `version_mismatch`: the version the content has.
    #[serde(skip_serializing_if = "Option::is_none")]
    current_version: Option<String>,
    /// The request's trace: the trace id of `traceparent`, else the request id.
    trace_id: &'a str,
}

impl Problem {
    /// With a code and what happened this time.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            code,
            detail: detail.into(),
            limit: None,
            retry_after: None,
            outcome_unknown: false,
            syntax: None,
            current: None,
            header: None,
            rate: None,
        }))
    }

    /// Names the limit that was exceeded.
    #[must_use]
    pub(crate) fn limit(mut self, name: &'static str, allowed: u64, given: u64) -> Self {
        self.0.limit = Some((name, allowed, given));
        self
    }

    /// Says when to try again.
    #[must_use]
    pub(crate) fn retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// Adds a response header.
    #[must_use]
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.header = Some((name, value));
        self
    }

    /// Adds the `RateLimit-*` headers.
    #[must_use]
    pub(crate) fn rate(mut self, admission: Admission) -> Self {
        self.0.rate = Some(admission);
        self
    }

    fn outcome_unknown(mut self, unknown: bool) -> Self {
        self.0.outcome_unknown = unknown;
        self
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The body, for a request with this trace.
    pub(crate) fn body<'a>(&'a self, trace_id: &'a str) -> ProblemBody<'a> {
        let inner = &*self.0;
        let row = inner.code.definition();
        ProblemBody {
            kind: format!("/docs/problems/{}", row.code),
            title: row.title,
            status: row.status,
            detail: &inner.detail,
            code: row.code,
            limit: inner.limit.map(|l| l.0),
            allowed: inner.limit.map(|l| l.1),
            given: inner.limit.map(|l| l.2),
            retry_after_ms: inner.retry_after.map(|d| d.as_millis() as u64),
            outcome_unknown: inner.outcome_unknown,
            position: inner.syntax.as_ref().map(|s| s.0 as u64),
            byte: inner.syntax.as_ref().map(|s| s.1 as u64),
            expected: inner.syntax.as_ref().map(|s| s.2.as_str()),
            current_version: inner.current.map(|v| v.to_string()),
            trace_id,
        }
    }
}

/// The gate finds the problem among the extensions and writes the body.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let inner = &*self.0;
        let mut response = Response::new(axum::body::Body::empty());
        *response.status_mut() = inner.code.status();
        if let Some(after) = inner.retry_after {
            // Whole seconds, rounded up: coming back early would be refused again.
            let seconds = after.as_millis().div_ceil(1000).max(1) as u64;
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some((name, value)) = &inner.header {
            response.headers_mut().insert(name.clone(), value.clone());
        }
        if let Some(admission) = inner.rate {
            admission.write(response.headers_mut());
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<DomainError> for Problem {
    fn from(error: DomainError) -> Self {
        let code = match &error {
            DomainError::Empty { .. } => Code::Empty,
            DomainError::TooManyCharacters { .. } | DomainError::TooManyBytes { .. } => {
                Code::TooLong
            }
            DomainError::ForbiddenCharacter { .. } => Code::ForbiddenCharacter,
            DomainError::ReservedTenant(_) => Code::ReservedTenant,
            DomainError::AddedAndRemoved(_) => Code::AddedAndRemoved,
            DomainError::NothingToDo => Code::NothingToDo,
            DomainError::TooManyTagsInWrite { .. } => Code::TooManyTagsInWrite,
            DomainError::Undecodable { .. } => Code::Undecodable,
        };
        let problem = Self::new(code, error.to_string());
        match error.limit() {
            Some((name, allowed, given)) => problem.limit(name, allowed, given),
            None => problem,
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let detail = error.to_string();
        let unknown = error.is_outcome_unknown();
        let code = match &error {
            StoreError::Refused(Refusal::TooManyTags { .. }) => Code::TooManyTags,
            StoreError::Refused(Refusal::VersionMismatch { .. }) => Code::VersionMismatch,
            StoreError::Refused(Refusal::WriteIdReused) => Code::IdempotencyKeyReused,
            StoreError::NotInThisMode(_) => Code::NotInThisMode,
            StoreError::Overloaded { .. } => Code::Overloaded,
            StoreError::Deadline { .. } => Code::Deadline,
            StoreError::DiskFull => Code::DiskFull,
            StoreError::Unavailable { .. } => Code::Unavailable,
            StoreError::Damaged { what, source } => {
                tracing::error!(what, source = ?source, "stored data is damaged");
                Code::Damaged
            }
            StoreError::Internal(source) => {
                tracing::error!(source, "internal error of the store");
                Code::Internal
            }
        };
        // What is damaged is a file's name or another detail of the operator's; the log has it.
        let detail =
            if code == Code::Damaged { "stored data is damaged".to_owned() } else { detail };
        let mut problem = Self::new(code, detail).outcome_unknown(unknown);
        match &error {
            StoreError::Refused(Refusal::TooManyTags { allowed, given }) => {
                problem = problem.limit("tags_per_content", *allowed as u64, *given as u64);
            }
            StoreError::Refused(Refusal::VersionMismatch { current }) => {
                problem.0.current = Some(*current)
            }
            StoreError::Overloaded { queue, limit, .. } => {
                problem.0.limit = Some((queue, *limit as u64, *limit as u64 + 1));
            }
            StoreError::Refused(Refusal::WriteIdReused)
            | StoreError::NotInThisMode(_)
            | StoreError::Deadline { .. }
            | StoreError::DiskFull
            | StoreError::Unavailable { .. }
            | StoreError::Damaged { .. }
            | StoreError::Internal(_) => {}
        }
        match error.retry_after() {
            Some(after) => problem.retry_after(after),
            None => problem,
        }
    }
}

impl From<SearchError> for Problem {
    fn from(error: SearchError) -> Self {
        let detail = error.to_string();
        match error {
            SearchError::Syntax { position, byte, expected, .. } => {
                let mut problem = Self::new(Code::QuerySyntax, detail);
                problem.0.syntax = Some((position, byte, expected));
                problem
            }
            SearchError::Limit { limit, allowed, given } => {
                Self::new(Code::QueryLimit, detail).limit(limit, allowed as u64, given as u64)
            }
            SearchError::PrefixTooBroad { allowed, .. } => Self::new(Code::PrefixTooBroad, detail)
                .limit("prefix_tags", allowed as u64, allowed as u64 + 1),
            SearchError::Unavailable(reason) => {
                tracing::warn!(reason, "search is unavailable");
                Self::new(Code::SearchUnavailable, "the search index cannot answer now")
                    .retry_after(comes_back())
            }
            SearchError::Refused { reason, retry_after } => {
                tracing::debug!(reason, "the search index was not asked");
                Self::new(
                    Code::SearchUnavailable,
                    format!("the search index was not asked: {reason}"),
                )
                .retry_after(retry_after.max(comes_back()))
            }
        }
    }
}

impl From<PopularError> for Problem {
    fn from(error: PopularError) -> Self {
        match error {
            PopularError::UnknownWindow(_) => Self::new(Code::BadParameter, error.to_string()),
            PopularError::Unavailable(reason) => {
                tracing::warn!(reason, "popular tags are unavailable");
                Self::new(Code::PopularUnavailable, "the counts of tags cannot be read now")
                    .retry_after(comes_back())
            }
        }
    }
}

/// The feature's problem where a part is not wired in.
pub(crate) fn not_in_this_mode(what: &'static str) -> Problem {
    Problem::new(Code::NotInThisMode, format!("{what} is not available in this mode"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_together_does_not_come_back_together() {
        let all: std::collections::BTreeSet<Duration> = (0..1000).map(|_| comes_back()).collect();
        assert!(all.len() > 600, "{}", all.len());
        assert!(all.iter().all(|d| (Duration::from_secs(1)..=Duration::from_secs(3)).contains(d)));
    }

    #[test]
    fn codes_are_unique_words_with_valid_statuses() {
        for (i, row) in PROBLEM_CODES.iter().enumerate() {
            assert!(row.code.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{}", row.code);
            assert!(PROBLEM_CODES[..i].iter().all(|r| r.code != row.code), "{} twice", row.code);
            assert!((400..600).contains(&row.status));
        }
    }

    #[test]
    fn domain_codes_are_the_domain_s_own_words() {
        let errors = [
            DomainError::Empty { what: "tag" },
            DomainError::TooManyBytes { what: "tag", allowed: 1, given: 2 },
            DomainError::ReservedTenant("_a".into()),
            DomainError::AddedAndRemoved("a".into()),
            DomainError::NothingToDo,
            DomainError::TooManyTagsInWrite { allowed: 1, given: 2 },
            DomainError::Undecodable { what: "tag", reason: "x" },
            DomainError::ForbiddenCharacter {
                what: "tag",
                character: "U+0000".into(),
                reason: "x",
            },
        ];
        for error in errors {
            assert_eq!(Problem::from(error.clone()).code().definition().code, error.code());
        }
    }
}
