//! Request headers that this API reads, each checked strictly: a header that is not understood is an error, because
//! a condition or a promise that is silently ignored is worse than a refusal.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use tagfast_domain::Version;
use tagfast_store::{Consistency, Durability, Source};

use crate::problem::{Code, Problem};

pub(crate) static CONSISTENCY: HeaderName = HeaderName::from_static("consistency");
pub(crate) static CONSISTENCY_TOKEN: HeaderName = HeaderName::from_static("consistency-token");
pub(crate) static DURABILITY: HeaderName = HeaderName::from_static("durability");
pub(crate) static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
pub(crate) static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(crate) static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) static CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Longest idempotency key in bytes.
pub(crate) const IDEMPOTENCY_KEY_BYTES: usize = 255;

pub(crate) fn bad(name: &HeaderName, reason: &str) -> Problem {
    Problem::new(Code::BadHeader, format!("header {name}: {reason}"))
}

/// The value of a header that may come once.
pub(crate) fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(bad(name, "it is given more than once"));
    }
    value.to_str().map(Some).map_err(|_| bad(name, "it has characters that are not visible ASCII"))
}

pub(crate) fn consistency(headers: &HeaderMap) -> Result<Consistency, Problem> {
    match one(headers, &CONSISTENCY)? {
        None | Some("session") => Ok(Consistency::Session),
        Some("eventual") => Ok(Consistency::Eventual),
        Some("strong") => Ok(Consistency::Strong),
        Some(_) => Err(bad(&CONSISTENCY, "it must be eventual, session or strong")),
    }
}

/// What the acknowledgement must survive. The store decides whether it can.
pub(crate) fn durability(headers: &HeaderMap) -> Result<Durability, Problem> {
    match one(headers, &DURABILITY)? {
        None | Some("local") => Ok(Durability::Local),
        Some("replicated") => Ok(Durability::Replicated),
        Some(_) => Err(bad(&DURABILITY, "it must be local or replicated")),
    }
}

pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(key) = one(headers, &IDEMPOTENCY_KEY)? else { return Ok(None) };
    if key.len() > IDEMPOTENCY_KEY_BYTES {
        return Err(bad(&IDEMPOTENCY_KEY, "it is longer than 255 bytes").limit(
            "idempotency_key_bytes",
            IDEMPOTENCY_KEY_BYTES as u64,
            key.len() as u64,
        ));
    }
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(bad(&IDEMPOTENCY_KEY, "it must be 1 to 255 visible ASCII characters"));
    }
    Ok(Some(key))
}

/// The version a write insists on: one strong entity tag as a read gave it (`"0"` = never tagged), or `*`, which is
/// always true here because every content has a state.
pub(crate) fn if_match(headers: &HeaderMap) -> Result<Option<Version>, Problem> {
    if headers.contains_key(header::IF_NONE_MATCH) {
        return Err(bad(&header::IF_NONE_MATCH, "a write takes If-Match only; If-Match: \"0\" means never tagged"));
    }
    let Some(tag) = one(headers, &header::IF_MATCH)? else { return Ok(None) };
    match tag.trim() {
        "*" => Ok(None),
        weak if weak.starts_with("W/") => Err(bad(&header::IF_MATCH, "weak entity tags never match")),
        tag => version_of(tag)
            .map(Some)
            .ok_or_else(|| bad(&header::IF_MATCH, "it must be one entity tag as a read gave it, for example \"123\"")),
    }
}

/// Whether the client already has this version.
pub(crate) fn has_already(headers: &HeaderMap, version: Version) -> Result<bool, Problem> {
    let mut has = false;
    for value in headers.get_all(header::IF_NONE_MATCH) {
        let text = value.to_str().map_err(|_| bad(&header::IF_NONE_MATCH, "it must be a list of entity tags"))?;
        for tag in text.split(',').map(str::trim) {
            // If-None-Match compares weakly; a foreign tag simply is not this version.
            has |= tag == "*" || version_of(tag.strip_prefix("W/").unwrap_or(tag)) == Some(version);
        }
    }
    Ok(has)
}

fn version_of(tag: &str) -> Option<Version> {
    let digits = tag.strip_prefix('"')?.strip_suffix('"')?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// A valid W3C `traceparent`; an invalid one is left out, as its specification asks.
pub(crate) fn traceparent(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(&TRACEPARENT)?.to_str().ok()?;
    let b = value.as_bytes();
    let hex = |from: usize, to: usize| {
        b.get(from..to).is_some_and(|s| s.iter().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(c)))
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

/// RFC 9211: whether a cache of this service answered. The embedded store has none in front of it.
pub(crate) fn cache_status(source: Source) -> HeaderValue {
    HeaderValue::from_static(match source {
        Source::Cache => "tagfast; hit",
        Source::Primary | Source::Replica | Source::Index | Source::Snapshot => "tagfast; fwd=bypass",
    })
}

/// Whether the client takes gzip.
pub(crate) fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok()).any(|value| {
        value.split(',').any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let refused = parts.any(|p| p.strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q <= 0.0)));
            name.eq_ignore_ascii_case("gzip") && !refused
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(name: &HeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name.clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        headers
    }

    #[test]
    fn if_match_takes_one_strong_tag() {
        let parse = |v| if_match(&with(&header::IF_MATCH, v));
        assert_eq!(parse("\"12\"").unwrap(), Some(Version::from_packed(12).unwrap()));
        assert_eq!(parse("*").unwrap(), None);
        for bad in ["W/\"12\"", "12", "\"12\", \"13\"", "\"x\"", "\"-1\"", "\"\"", "\"99999999999999999999\""] {
            assert_eq!(parse(bad).unwrap_err().code(), Code::BadHeader, "{bad}");
        }
    }

    #[test]
    fn if_none_match_compares_weakly_in_a_list() {
        let version = Version::from_packed(7).unwrap();
        for (value, expect) in
            [("\"7\"", true), ("W/\"7\"", true), ("\"1\", \"7\"", true), ("*", true), ("\"8\"", false), ("7", false)]
        {
            assert_eq!(has_already(&with(&header::IF_NONE_MATCH, value), version).unwrap(), expect, "{value}");
        }
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
    fn gzip_is_negotiated() {
        for (value, expect) in [("gzip", true), ("br, GZIP;q=0.5", true), ("gzip;q=0", false), ("deflate", false)] {
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
            ];
            for name in names {
                let mut headers = HeaderMap::new();
                headers.insert(name.clone(), bytes.clone());
                let _ = (consistency(&headers), durability(&headers), idempotency_key(&headers).is_ok());
                let _ = (if_match(&headers).is_ok(), has_already(&headers, Version::NONE).is_ok());
                let _ = (traceparent(&headers), accepts_gzip(&headers));
            }
        }
    }
}
