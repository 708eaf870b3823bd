//! The table of problem codes: the one source of the documentation and of the pages below
//! `/docs/problems/`.

use http::StatusCode;
use serde::Serialize;

/// One stable code with its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ProblemCode {
    /// The value of `code`; never changes once it is published.
    pub code: &'static str,
    /// The HTTP status of the answer.
    pub status: u16,
    /// The `title`.
    pub title: &'static str,
    /// When the service answers this code.
    pub meaning: &'static str,
    /// What the caller should do.
    pub action: &'static str,
}

macro_rules! codes {
    ($(
        $variant:ident = $code:literal $status:literal $title:literal
        $meaning:literal $action:literal;
    )*) => {
        /// The codes, in the order of [`PROBLEM_CODES`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)*
        }

        /// Every code the API answers.
        pub const PROBLEM_CODES: &[ProblemCode] = &[
            $(ProblemCode {
                code: $code,
                status: $status,
                title: $title,
                meaning: $meaning,
                action: $action,
            },)*
        ];
    };
}

codes! {
    BadEncoding = "bad_encoding" 400 "The URL is not well encoded"
        "A path segment or query value has a broken percent-encoding or is not UTF-8 after \
         decoding."
        "Percent-encode each path segment once, as UTF-8; in a query value write a plus sign as \
         `%2B`.";
    BadJson = "bad_json" 400 "The body is not valid JSON"
        "The request body cannot be parsed as JSON; the detail says where."
        "Send one JSON document.";
    UnknownField = "unknown_field" 400 "The body has an unknown field"
        "The request body has a field that this call does not know; the detail names it."
        "Remove the field or correct its spelling.";
    WrongType = "wrong_type" 400 "The body does not match the schema of this call"
        "A field is missing or has the wrong type; the detail names its path."
        "Compare the body with the schema in `/openapi.json`.";
    BadParameter = "bad_parameter" 400 "A query parameter has a bad value"
        "A query parameter is out of range, has an unknown word, or is given twice."
        "Correct the value; the detail says what is accepted.";
    UnknownParameter = "unknown_parameter" 400 "Unknown query parameter"
        "The call does not know this query parameter."
        "Remove it or correct its spelling; the detail lists the known ones.";
    BadRequest = "bad_request" 400 "The request is not HTTP/1.1"
        "What was sent is not a request of HTTP/1.1: its first line, a header or the framing of \
         its body is malformed, or it is a different protocol."
        "Use an HTTP library, and `http://` for a port without TLS.";
    BadHeader = "bad_header" 400 "A header has a bad value"
        "A request header has a value that the call does not accept, or comes twice and may not."
        "Correct the header; the detail says what is accepted.";
    BadToken = "bad_token" 400 "The token was not issued by this service"
        "A consistency token or receipt is damaged, belongs to a different tenant, or was issued \
         by a different service."
        "Send tokens back exactly as they were received; without a token, omit the header.";
    BadCursor = "bad_cursor" 400 "The cursor does not fit"
        "The cursor is damaged, belongs to a different tenant, query or sort order, or is older \
         than a day."
        "Start again without a cursor.";
    QuerySyntax = "query_syntax" 400 "The search query cannot be parsed"
        "The query breaks the grammar at `position` (characters) and `byte`; `expected` says what \
         could stand there."
        "Correct the query; tags that contain blanks or operators need quotes.";
    Unauthenticated = "unauthenticated" 401 "Authentication is required"
        "The request carries no bearer token."
        "Send `Authorization: Bearer <token>`.";
    InvalidToken = "invalid_token" 401 "The bearer token is not accepted"
        "The bearer token is malformed, expired, not yet valid, wrongly signed or lacks a claim."
        "Get a new token; the detail and `WWW-Authenticate` say what is wrong.";
    MissingScope = "missing_scope" 403 "The token does not allow this"
        "The token lacks the scope that this call requires."
        "Request a token with the scope that the detail names.";
    CrossSite = "cross_site" 403 "A web page of a different site asks for a change"
        "The request would change something, and its `Origin` or `Sec-Fetch-Site` says that a web \
         page of a different origin sent it."
        "Change tags from a page of this service, from a program, or from a name in \
         `server.allowed_hosts`.";
    NotFound = "not_found" 404 "No such route"
        "The path is not one of the API's routes."
        "Compare the path with `/openapi.json`; encode a slash inside an id or tag as `%2F`.";
    DeadLetterNotFound = "dead_letter_not_found" 404 "No such dead letter or replay job"
        "No dead letter or replay job has this id, it was deleted after two weeks, or the dead \
         letter belongs to a different tenant."
        "List the dead letters with `/v1/dead-letters`; encode the slashes of an id as `%2F`.";
    FailoverNotFound = "failover_not_found" 404 "No such failover"
        "No failover of this service's clusters began an epoch with this id."
        "List the failovers with `/v1/failovers`.";
    BreakerNotFound = "breaker_not_found" 404 "No such breaker"
        "The process that answered has no circuit breaker of this name."
        "List the breakers with `/v1/breakers`; each process has its own.";
    MethodNotAllowed = "method_not_allowed" 405 "The method is not allowed here"
        "The route exists but not with this method; `Allow` lists the methods it has."
        "Use one of the methods in `Allow`.";
    RequestTimeout = "request_timeout" 408 "The request did not arrive in time"
        "The head or the body was not received in time."
        "Send it again, faster or in smaller parts.";
    AlreadyRunning = "already_running" 409 "The operation is already running"
        "A reindex or recount is in progress; a second one would only slow both down."
        "Wait until it is done; `/v1/status` shows its progress.";
    VersionMismatch = "version_mismatch" 412 "The content has a different version"
        "`If-Match` names a version that the content no longer has; `current_version` is its \
         current one."
        "Read the content again, decide again, and send the new version.";
    BodyTooLarge = "body_too_large" 413 "The body is too large"
        "The request body exceeds the limit `body_bytes`."
        "Send less in one request.";
    UrlTooLong = "url_too_long" 414 "The URL is too long"
        "Path and query together exceed the limit `url_bytes`, or the first line alone the limit \
         `head_bytes`."
        "Shorten the query.";
    UnsupportedMediaType = "unsupported_media_type" 415 "The body is not declared as JSON"
        "The call takes a body of type `application/json` without a `Content-Encoding`; a POST must \
         declare it also when its body is empty."
        "Send `Content-Type: application/json` and the body as it is.";
    HostNotAllowed = "host_not_allowed" 421 "The host is not one of this service"
        "The request names a host other than a loopback address, `localhost`, or a name in \
         `server.allowed_hosts`."
        "Call the service by one of its names; an operator adds names to `server.allowed_hosts`.";
    Empty = "empty" 422 "A value is empty"
        "A tag, content type, content id, user or reason is empty, also after blanks are trimmed."
        "Send at least one character.";
    TooLong = "too_long" 422 "A value is too long"
        "A tag, content type, content id, user, reason or list exceeds the limit that `limit` \
         names."
        "Shorten it.";
    ForbiddenCharacter = "forbidden_character" 422 "A value has a forbidden character"
        "A tag, content type, content id or user contains a character that its rule forbids; the \
         detail names it."
        "Remove the character.";
    DotSegment = "dot_segment" 422 "A name cannot be part of a URL"
        "A write gives a tag to a content, or a tag, that is named `.` or `..`: URL libraries \
         remove such path segments, so that their clients could never reach it."
        "Use a different name. What already has such a name can be read and removed.";
    ReservedTenant = "reserved_tenant" 422 "The tenant's name is reserved"
        "The tenant's name begins with an underscore; such names are reserved for the service."
        "Use a different name.";
    AddedAndRemoved = "added_and_removed" 422 "A tag is both added and removed"
        "One write adds and removes the same tag."
        "Choose one of both; spellings with the same canonical name are one tag.";
    NothingToDo = "nothing_to_do" 422 "The write names no tag"
        "The write neither adds nor removes a tag."
        "Name a tag, or omit the write.";
    TooManyTagsInWrite = "too_many_tags_in_write" 422 "The write names too many tags"
        "One write names more tags than the limit `tags_per_write`."
        "Split the write.";
    Undecodable = "undecodable" 422 "A value cannot be decoded"
        "A value does not have the form that its rule requires."
        "Correct it; the detail says what is wrong.";
    TooManyTags = "too_many_tags" 422 "The content would have too many tags"
        "After the write the content would exceed the limit `tags_per_content`; nothing was \
         changed."
        "Remove tags first, and use a new `Idempotency-Key`: the old one gets this answer again.";
    IdempotencyKeyReused = "idempotency_key_reused" 422
        "The idempotency key was used for a different write"
        "The same `Idempotency-Key` came with a different call, content or operation within the \
         last ten minutes."
        "Use a new key for a new operation.";
    BatchTooLarge = "batch_too_large" 422 "The batch has too many items"
        "The batch exceeds the limit `batch_items`."
        "Split the batch.";
    AnswerTooLarge = "answer_too_large" 422 "The answer would be too large"
        "The answer alone would hold more memory than three quarters of the limit \
         `in_flight_bytes`."
        "Ask for fewer contents or a shorter page in one request.";
    BadTime = "bad_time" 422 "A time is not acceptable"
        "A time is not RFC 3339, or `at` is not between 1970 and now."
        "Correct it, for example `2026-01-31T12:00:00Z`.";
    QueryLimit = "query_limit" 422 "The search query is too large"
        "The query exceeds a limit of the query language; `limit` names it."
        "Simplify the query.";
    PrefixTooBroad = "prefix_too_broad" 422 "The prefix matches too many tags"
        "A prefix in the query matches more tags than one search may expand."
        "Make the prefix longer.";
    ConfirmationRequired = "confirmation_required" 422 "The filter matches every dead letter"
        "A filter without any condition came without `all`; nothing was done."
        "Add a condition, or send `\"all\": true` to confirm that every open dead letter is meant.";
    RateOutOfRange = "rate_out_of_range" 422 "The rate is out of range"
        "The rate of a replay exceeds the limit `replay_rate` or is 0."
        "Choose a rate from 1 to the limit.";
    HeadTooLarge = "head_too_large" 431 "The head of the request is too large"
        "The head has more bytes or more headers than the limit that `limit` names."
        "Send fewer or shorter headers.";
    RateLimited = "rate_limited" 429 "Too many requests"
        "This user of this tenant sent more requests than the configured rate."
        "Wait as long as `Retry-After` says.";
    Internal = "internal" 500 "Internal error"
        "A bug or an unforeseen error; the log has the details under the trace id."
        "Retry a write with the same `Idempotency-Key`; report the trace id if it happens again.";
    Damaged = "damaged" 500 "Stored data is damaged"
        "Stored data cannot be read; the log names the place."
        "An operator must restore a backup.";
    OperationFailed = "operation_failed" 500 "The operation failed"
        "A reindex or recount ended with an error; the data that serves requests is unchanged."
        "Read the detail and the log, then start it again.";
    TransferCoding = "transfer_coding" 501 "The transfer coding is not supported"
        "The request has a `Transfer-Encoding` other than `chunked`."
        "Send the body with a `Content-Length` or `chunked` alone.";
    NotInThisMode = "not_in_this_mode" 501 "Not available in this mode"
        "The feature belongs to a different way of running the service."
        "Do without it, or run the service with the part that has it.";
    Overloaded = "overloaded" 503 "The service is overloaded"
        "A queue is full, or requests and answers in flight hold all the memory that they may \
         (limit `in_flight_bytes`); nothing was done."
        "Wait as long as `Retry-After` says, then send the same request.";
    Unavailable = "unavailable" 503 "The store is not available"
        "The store cannot serve this content now; the detail names the cause. \
         `outcome_unknown` says of a write whether it may have been applied."
        "Wait as long as `Retry-After` says; retry a write with the same `Idempotency-Key`.";
    ReplicationLag = "replication_lag" 503 "The replicas lag too far behind"
        "Too few replicas have the newest writes: a failover could lose more acknowledged ones \
         than `store.max_loss_ms` allows, or the write asked for `Durability: replicated`; the \
         detail says which. `outcome_unknown` says whether it may have been applied."
        "Wait as long as `Retry-After` says; retry a write with the same `Idempotency-Key`.";
    SearchUnavailable = "search_unavailable" 503 "Search is not available"
        "The search index cannot answer now; tags of single contents can still be read and written."
        "Wait as long as `Retry-After` says.";
    PopularUnavailable = "popular_unavailable" 503 "Popular tags are not available"
        "The counts of tags cannot be read now; tags of single contents can still be read and \
         written."
        "Wait as long as `Retry-After` says.";
    DeadLettersUnavailable = "dead_letters_unavailable" 503 "Dead letters are not available"
        "The dead-letter store cannot be reached now; consumers continue to consume and to park."
        "Wait as long as `Retry-After` says.";
    KeysUnavailable = "keys_unavailable" 503 "The keys that verify tokens are not available"
        "No key set has been loaded yet, so no token can be verified."
        "Wait as long as `Retry-After` says; an operator checks `auth.jwks`.";
    HttpVersion = "http_version" 505 "The version of HTTP is not supported"
        "The request is of a version other than HTTP/1.1 and HTTP/1.0; HTTP/2 needs a proxy."
        "Use HTTP/1.1.";
    Deadline = "deadline" 504 "The deadline passed"
        "The request could not be finished in time; the detail says what it waited for. \
         `outcome_unknown` says of a write whether it may have been applied."
        "Retry with the same `Idempotency-Key`.";
    DiskFull = "disk_full" 507 "The disk is full"
        "The disk of the data directory is full; nothing was written. Reads continue."
        "An operator frees space; writes then succeed again without a restart.";
}

impl Code {
    /// The row of [`PROBLEM_CODES`].
    pub fn definition(self) -> &'static ProblemCode {
        &PROBLEM_CODES[self as usize]
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.definition().status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_words_with_valid_statuses() {
        for (i, row) in PROBLEM_CODES.iter().enumerate() {
            assert!(row.code.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{}", row.code);
            assert!(PROBLEM_CODES[..i].iter().all(|r| r.code != row.code), "{} twice", row.code);
            assert!((400..600).contains(&row.status));
        }
    }
}
