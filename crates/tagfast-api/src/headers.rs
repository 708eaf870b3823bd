//! Request headers that this API reads and response headers that it computes.
//!
//! Request headers are checked strictly: a value that is not understood is an error, because a
//! condition or a promise that is silently ignored is worse than a refusal.

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest as _, Sha256};
use tagfast_domain::{IfMatch, Refusal, Version};
use tagfast_store::{CacheUse, Consistency, Durability, StoreError};

use crate::docs::STYLE;
use crate::encoding::is_token;
use crate::entity_tags::EntityTags;
use crate::problem::{Problem, bad_header as bad};

pub(crate) static CONSISTENCY: HeaderName = HeaderName::from_static("consistency");
pub(crate) static CONSISTENCY_TOKEN: HeaderName = HeaderName::from_static("consistency-token");
pub(crate) static RECEIPT: HeaderName = HeaderName::from_static("receipt");
pub(crate) static DURABILITY: HeaderName = HeaderName::from_static("durability");
pub(crate) static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
pub(crate) static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(crate) static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static CROSS_ORIGIN_RESOURCE_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-resource-policy");
pub(crate) static CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Longest idempotency key in bytes.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Most consistency tokens, and most receipts, of one request. Too low: a client with more requests
/// in flight has to drop some. Too high: one request makes the service check many.
const SEALED_TEXTS_MAX: usize = 16;
/// Largest sum of their lengths, in bytes: ten of the longest ones, half of a request's head.
const SEALED_TEXT_BYTES_MAX: usize = 32 * 1024;
/// Why a value that is no text is refused.
const NOT_ASCII: &str = "it has characters that are not visible ASCII";

/// What browsers may do with a page: show its own style, load nothing, run nothing, send nothing,
/// and never inside of another page.
static PAGE_POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let style = STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// Adds what keeps browsers from guessing media types and other sites from embedding the answer;
/// with `is_page` also what protects a page that people look at.
pub(crate) fn protect(headers: &mut HeaderMap, is_page: bool) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(&CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    if is_page {
        headers.insert(header::CONTENT_SECURITY_POLICY, PAGE_POLICY.clone());
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    }
}

/// The value of a header that comes at most once, which the middleware ensures;
/// `None` when it is absent.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let value = headers.get(name).map(HeaderValue::to_str).transpose();
    value.map_err(|_| bad(name, NOT_ASCII))
}

/// The consistency that the read asks for; `session` when the header is absent.
pub(crate) fn consistency(headers: &HeaderMap) -> Result<Consistency, Problem> {
    match one(headers, &CONSISTENCY)? {
        None | Some("session") => Ok(Consistency::Session),
        Some("eventual") => Ok(Consistency::Eventual),
        Some("strong") => Ok(Consistency::Strong),
        Some(_) => Err(bad(&CONSISTENCY, "it must be eventual, session or strong")),
    }
}

/// The durability that the acknowledgement must have; `local` when the header is absent. The store
/// decides whether it can give it.
pub(crate) fn durability(headers: &HeaderMap) -> Result<Durability, Problem> {
    match one(headers, &DURABILITY)? {
        None | Some("local") => Ok(Durability::Local),
        Some("replicated") => Ok(Durability::Replicated),
        Some(_) => Err(bad(&DURABILITY, "it must be local or replicated")),
    }
}

/// The idempotency key; `None` when the header is absent.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(key) = one(headers, &IDEMPOTENCY_KEY)? else { return Ok(None) };
    if key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        return Err(bad(&IDEMPOTENCY_KEY, "it is longer than 255 bytes").limit(
            "idempotency_key_bytes",
            IDEMPOTENCY_KEY_BYTES_MAX as u64,
            key.len() as u64,
        ));
    }
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(bad(&IDEMPOTENCY_KEY, "it must be 1 to 255 visible ASCII characters"));
    }
    Ok(Some(key))
}

/// The versions of which the content must have one for the write to apply; `None`: no condition.
/// `*` is none either, because every content has a representation.
pub(crate) fn if_match(headers: &HeaderMap) -> Result<Option<IfMatch>, Problem> {
    if headers.contains_key(header::IF_NONE_MATCH) {
        return Err(bad(
            &header::IF_NONE_MATCH,
            "a write takes If-Match only; If-Match: \"0\" means never tagged",
        ));
    }
    let tags = EntityTags::parse(headers, &header::IF_MATCH)?;
    Ok(tags.as_ref().and_then(EntityTags::strong).map(IfMatch::any_of))
}

/// Whether the client already has this version of the content, which it gets only if `If-Match`
/// holds.
pub(crate) fn client_has_version(headers: &HeaderMap, current: Version) -> Result<bool, Problem> {
    let wanted = EntityTags::parse(headers, &header::IF_MATCH)?;
    let known = EntityTags::parse(headers, &header::IF_NONE_MATCH)?;
    if wanted.as_ref().and_then(EntityTags::strong).is_some_and(|all| !all.contains(&current)) {
        return Err(StoreError::Refused(Refusal::VersionMismatch { current }).into());
    }
    Ok(known.is_some_and(|known| known.match_weakly(current)))
}

/// A header that is a list of sealed texts, with the names of its two limits.
struct SealedList {
    name: &'static HeaderName,
    what: &'static str,
    count_limit: &'static str,
    bytes_limit: &'static str,
}

impl SealedList {
    /// The texts of all lines, as they are; empty when the header is absent.
    fn of<'a>(&self, headers: &'a HeaderMap) -> Result<Vec<&'a str>, Problem> {
        let Self { name, what, count_limit, bytes_limit } = *self;
        let mut all = Vec::new();
        for value in headers.get_all(name) {
            let text = value.to_str().map_err(|_| bad(name, NOT_ASCII))?;
            let texts = text.split(',').map(|t| t.trim_matches([' ', '\t']));
            all.extend(texts.filter(|t| !t.is_empty()));
        }
        let (given, bytes) = (all.len(), all.iter().map(|text| text.len()).sum::<usize>());
        if given > SEALED_TEXTS_MAX {
            let reason = format!("it has more than {SEALED_TEXTS_MAX} {what}s");
            let (allowed, given) = (SEALED_TEXTS_MAX as u64, given as u64);
            return Err(bad(name, &reason).limit(count_limit, allowed, given));
        }
        if bytes > SEALED_TEXT_BYTES_MAX {
            let reason = format!("its {what}s have more than {SEALED_TEXT_BYTES_MAX} bytes");
            let (allowed, given) = (SEALED_TEXT_BYTES_MAX as u64, bytes as u64);
            return Err(bad(name, &reason).limit(bytes_limit, allowed, given));
        }
        if all.is_empty() && headers.contains_key(name) {
            return Err(bad(name, &format!("it has no {what}; without one, omit the header")));
        }
        Ok(all)
    }
}

/// The sealed consistency tokens of all lines, as they are; empty when the header is absent.
pub(crate) fn consistency_tokens(headers: &HeaderMap) -> Result<Vec<&str>, Problem> {
    let list = SealedList {
        name: &CONSISTENCY_TOKEN,
        what: "token",
        count_limit: "consistency_tokens",
        bytes_limit: "consistency_token_bytes",
    };
    list.of(headers)
}

/// The sealed receipts of all lines, as they are; empty when the header is absent.
pub(crate) fn receipts(headers: &HeaderMap) -> Result<Vec<&str>, Problem> {
    let list = SealedList {
        name: &RECEIPT,
        what: "receipt",
        count_limit: "receipts",
        bytes_limit: "receipt_bytes",
    };
    list.of(headers)
}

/// The value of a header that is ignored when it is repeated.
pub(crate) fn lone<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// A valid W3C `traceparent`; an invalid or repeated one is ignored, as its specification requires.
pub(crate) fn traceparent(headers: &HeaderMap) -> Option<&str> {
    let value = lone(headers, &TRACEPARENT)?.to_str().ok()?;
    let b = value.as_bytes();
    let hex = |from: usize, to: usize| {
        b.get(from..to)
            .is_some_and(|s| s.iter().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(c)))
    };
    let some = |from: usize, to: usize| b[from..to].iter().any(|c| *c != b'0');
    let shaped = b.len() == 55
        && b[2] == b'-'
        && b[35] == b'-'
        && b[52] == b'-'
        && hex(0, 2)
        && hex(3, 35)
        && hex(36, 52)
        && hex(53, 55);
    (shaped && &b[..2] != b"ff" && some(3, 35) && some(36, 52)).then_some(value)
}

/// The trace id of `traceparent`, else the request id.
pub(crate) fn trace_id<'a>(headers: &'a HeaderMap, request_id: &'a HeaderValue) -> &'a str {
    match traceparent(headers) {
        Some(parent) => parent.get(3..35).unwrap_or_default(),
        None => request_id.to_str().unwrap_or_default(),
    }
}

/// `Cache-Status` (RFC 9211): how the caches of this service served the answer.
pub(crate) fn cache_status(cache: CacheUse) -> HeaderValue {
    let with = |what: &str, layer: &str| {
        HeaderValue::try_from(format!("tagfast; {what}; detail={layer}"))
            .unwrap_or(HeaderValue::from_static("tagfast; fwd=bypass"))
    };
    match cache {
        CacheUse::Bypass => HeaderValue::from_static("tagfast; fwd=bypass"),
        // The most frequent one, without an allocation.
        CacheUse::Hit("l1") => HeaderValue::from_static("tagfast; hit; detail=l1"),
        CacheUse::Hit(layer) => with("hit", layer),
        CacheUse::Miss { collapsed: false } => HeaderValue::from_static("tagfast; fwd=miss"),
        CacheUse::Miss { collapsed: true } => {
            HeaderValue::from_static("tagfast; fwd=miss; collapsed")
        }
        CacheUse::Stale(layer) => with("fwd=stale", layer),
    }
}

/// `Cache-Control` of an answer: clients may keep it and revalidate it, except when it is degraded.
pub(crate) fn cache_control(degraded: bool) -> HeaderValue {
    HeaderValue::from_static(if degraded { "no-store" } else { "private, no-cache" })
}

/// The elements of a comma-separated list with quoted strings; `None`: a quote is not closed.
fn elements(text: &str) -> Option<Vec<&str>> {
    let (mut all, mut begin, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                all.push(text.get(begin..at)?.trim_matches([' ', '\t']));
                begin = at + 1;
            }
            _ => {}
        }
    }
    all.push(text.get(begin..)?.trim_matches([' ', '\t']));
    all.retain(|element| !element.is_empty());
    (!quoted).then_some(all)
}

/// The largest age of a stale answer that the client accepts: `None` means up to `allowed`, zero
/// means no stale answer at all.
///
/// Of several directives the strictest counts. A `max-stale` above `allowed` is capped at it. Other
/// directives (`max-age`, `min-fresh`, `only-if-cached`, unknown ones) are ignored, as RFC 9111
/// permits.
pub(crate) fn max_stale(
    headers: &HeaderMap,
    allowed: Duration,
) -> Result<Option<Duration>, Problem> {
    let bad = |reason| bad(&header::CACHE_CONTROL, reason);
    let mut strictest: Option<Duration> = None;
    for value in headers.get_all(header::CACHE_CONTROL) {
        let text = value.to_str().map_err(|_| bad(NOT_ASCII))?;
        for element in elements(text).ok_or_else(|| bad("a quote is not closed"))? {
            let (name, argument) = match element.split_once('=') {
                Some((name, argument)) => (name, Some(argument)),
                None => (element, None),
            };
            if !is_token(name) {
                return Err(bad("it must be a list of directives"));
            }
            let given =
                if name.eq_ignore_ascii_case("no-cache") || name.eq_ignore_ascii_case("no-store") {
                    if argument.is_some() {
                        return Err(bad("no-cache and no-store take no value"));
                    }
                    Some(Duration::ZERO)
                } else if name.eq_ignore_ascii_case("max-stale") {
                    argument
                        .map(|n| {
                            seconds(n).ok_or_else(|| {
                                bad("max-stale takes whole seconds of at most 19 digits")
                            })
                        })
                        .transpose()?
                        .filter(|given| given.is_zero() || *given < allowed)
                } else {
                    None
                };
            strictest = strictest.into_iter().chain(given).min();
        }
    }
    Ok(strictest)
}

/// A number of whole seconds, as a token or in quotes.
fn seconds(text: &str) -> Option<Duration> {
    let digits = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    let fits = (1..=19).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    fits.then(|| digits.parse().ok().map(Duration::from_secs)).flatten()
}

/// Whether the client accepts gzip.
pub(crate) fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok()).any(|value| {
        value.split(',').any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let refused = parts.any(|p| {
                p.strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q <= 0.0))
            });
            name.eq_ignore_ascii_case("gzip") && !refused
        })
    })
}

/// Whether the client prefers HTML to JSON, as browsers do. Without a preference JSON wins.
pub(crate) fn prefers_html(headers: &HeaderMap) -> bool {
    quality(headers, "text", "html") > quality(headers, "application", "json")
}

/// The quality from 0 to 1 at which the client accepts a media type: that of the most specific
/// range that matches; 0 when none does, and 1 without an `Accept` header.
fn quality(headers: &HeaderMap, kind: &str, subtype: &str) -> f32 {
    if !headers.contains_key(header::ACCEPT) {
        return 1.0;
    }
    let (mut best, mut specificity) = (0.0, 0);
    for value in headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()) {
        for range in value.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let Some((range_kind, range_subtype)) = parts.next().and_then(|r| r.split_once('/'))
            else {
                continue;
            };
            let rank = match (range_kind, range_subtype) {
                ("*", "*") => 1,
                (k, "*") if k.eq_ignore_ascii_case(kind) => 2,
                (k, s) if k.eq_ignore_ascii_case(kind) && s.eq_ignore_ascii_case(subtype) => 3,
                _ => continue,
            };
            let q = parts
                .find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")))
                .and_then(|q| q.parse::<f32>().ok())
                .unwrap_or(1.0);
            if rank > specificity {
                (best, specificity) = (q, rank);
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Code;
    use proptest::prelude::*;

    fn with(name: &HeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name.clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        headers
    }

    #[test]
    fn tokens_of_all_lines_are_one_list_within_its_limits() {
        let of = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(CONSISTENCY_TOKEN.clone(), HeaderValue::from_str(line).unwrap());
            }
            let tokens = consistency_tokens(&headers).map(|all| all.join(" "));
            tokens.map_err(|problem| serde_json::to_value(problem.body("t")).unwrap())
        };
        for (lines, expect) in [
            (&[][..], ""),
            (&["a"], "a"),
            (&["a", "b"], "a b"),
            (&["a,b , c\t", ",, d"], "a b c d"),
        ] {
            assert_eq!(of(lines).unwrap(), expect, "{lines:?}");
        }
        assert_eq!(of(&[" ,"]).unwrap_err()["code"], "bad_header");
        let most = ["a"; SEALED_TEXTS_MAX];
        assert!(of(&most).is_ok() && of(&[&most.join(",")]).is_ok());
        let more = [&most[..], &["a"]].concat();
        for lines in [&more[..], &[&more.join(",")]] {
            assert_eq!(of(lines).unwrap_err()["limit"], "consistency_tokens");
        }
        let long = "a".repeat(SEALED_TEXT_BYTES_MAX / 2);
        assert!(of(&[&long, &long]).is_ok());
        assert_eq!(of(&[&long, &long, "a"]).unwrap_err()["limit"], "consistency_token_bytes");
    }

    #[test]
    fn traceparent_is_valid_or_ignored() {
        let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traceparent(&with(&TRACEPARENT, valid)), Some(valid));
        for bad in [
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf9",
        ] {
            assert_eq!(traceparent(&with(&TRACEPARENT, bad)), None, "{bad}");
        }
    }

    #[test]
    fn the_strictest_of_all_directives_counts() {
        let allowed = Duration::from_secs(3600);
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(
                    header::CACHE_CONTROL,
                    HeaderValue::from_bytes(value.as_bytes()).unwrap(),
                );
            }
            max_stale(&headers, allowed)
        };
        let age_max = |n| Some(Duration::from_secs(n));
        for (values, expect) in [
            (&[][..], None),
            (&[""], None),
            (&["max-stale"], None),
            (&["Max-Stale=60"], age_max(60)),
            (&["max-stale=\"60\""], age_max(60)),
            (&["max-stale=0"], age_max(0)),
            (&["max-stale=3600"], None),
            (&["max-stale=99999999999"], None),
            (&["max-stale=9999999999999999999"], None),
            (&["max-stale=60, max-stale=30", "max-stale=99"], age_max(30)),
            (&["max-stale", "max-stale=7"], age_max(7)),
            (&["no-cache"], age_max(0)),
            (&["NO-STORE"], age_max(0)),
            (&["max-stale=60,no-cache"], age_max(0)),
            (&["no-cache", "max-stale=60"], age_max(0)),
            (
                &[
                    "max-age=0, min-fresh=9, only-if-cached, x-ours=\"no-cache, max-stale=1\\\",\",,",
                ],
                None,
            ),
        ] {
            assert_eq!(of(values).unwrap(), expect, "{values:?}");
        }
        for bad in [
            "max-stale=",
            "max-stale=x",
            "max-stale=-1",
            "max-stale=+1",
            "max-stale= 1",
            "max-stale=1.5",
            "max-stale=99999999999999999999",
            "max-stale=\"1",
            "no-cache=x",
            "no-store=\"\"",
            "=1",
            "max stale=1",
            "no-cach\u{e9}",
        ] {
            assert_eq!(of(&[bad]).unwrap_err().code(), Code::BadHeader, "{bad}");
        }
    }

    #[test]
    fn cache_status_names_the_layer() {
        for (cache, expect) in [
            (CacheUse::Bypass, "tagfast; fwd=bypass"),
            (CacheUse::Hit("l1"), "tagfast; hit; detail=l1"),
            (CacheUse::Hit("redis"), "tagfast; hit; detail=redis"),
            (CacheUse::Miss { collapsed: false }, "tagfast; fwd=miss"),
            (CacheUse::Miss { collapsed: true }, "tagfast; fwd=miss; collapsed"),
            (CacheUse::Stale("redis"), "tagfast; fwd=stale; detail=redis"),
        ] {
            assert_eq!(cache_status(cache), expect);
        }
    }

    #[test]
    fn browsers_prefer_html_and_tools_get_json() {
        for (value, expect) in [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", true),
            ("text/html", true),
            ("text/*", true),
            ("application/json;q=0.5, text/html;q=0.6", true),
            ("*/*", false),
            ("", false),
            ("application/json", false),
            ("application/json, text/html", false),
            ("text/html;q=0, */*", false),
            ("text/html;q=x", true),
        ] {
            assert_eq!(prefers_html(&with(&header::ACCEPT, value)), expect, "{value}");
        }
        assert!(!prefers_html(&HeaderMap::new()));
    }

    #[test]
    fn gzip_is_negotiated() {
        for (value, expect) in
            [("gzip", true), ("br, GZIP;q=0.5", true), ("gzip;q=0", false), ("deflate", false)]
        {
            assert_eq!(accepts_gzip(&with(&header::ACCEPT_ENCODING, value)), expect, "{value}");
        }
    }

    proptest! {
        #[test]
        fn no_header_value_panics(value in "[\\x20-\\x7e]{0,80}|\\PC{0,40}") {
            let bytes = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            let names = [
                &CONSISTENCY, &CONSISTENCY_TOKEN, &DURABILITY, &IDEMPOTENCY_KEY, &TRACEPARENT,
                &header::IF_MATCH, &header::IF_NONE_MATCH, &header::ACCEPT_ENCODING,
                &header::CACHE_CONTROL, &header::ACCEPT,
            ];
            for name in names {
                let mut headers = HeaderMap::new();
                headers.insert(name.clone(), bytes.clone());
                let _ = (consistency(&headers), durability(&headers));
                let _ = (idempotency_key(&headers).is_ok(), if_match(&headers).is_ok());
                let _ = client_has_version(&headers, Version::NONE).is_ok();
                let _ = consistency_tokens(&headers).is_ok();
                let _ = receipts(&headers).is_ok();
                let _ = (traceparent(&headers), accepts_gzip(&headers), prefers_html(&headers));
                let allowed = Duration::from_secs(60);
                let given = max_stale(&headers, allowed).ok().flatten();
                prop_assert!(given.is_none_or(|given| given < allowed));
            }
        }
    }
}
