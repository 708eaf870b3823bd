//! Which request headers may come more than once, and what no request may carry.
//!
//! Intermediaries and libraries disagree about which of two lines counts (RFC 9110, section 5.3),
//! so a header with one value is refused when it is repeated, on every route. The table below is
//! the one list of the headers that the API reads; `docs/reference/api.md` shows it.
//!
//! How it fails: 400 `bad_header` names the header that is repeated; 415 for a content coding and
//! 501 for a transfer coding that the service does not decode.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::headers::{
    CONSISTENCY, CONSISTENCY_TOKEN, DURABILITY, IDEMPOTENCY_KEY, RECEIPT, REQUEST_ID, TRACEPARENT,
};
use crate::problem::{Code, Problem, bad_header as bad};

/// What the connection found wrong with a request, among the request's extensions.
#[derive(Debug, Clone)]
pub(crate) struct WireFault(pub(crate) Problem);

/// How often a header may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeated {
    /// A second line is refused.
    Refused,
    /// Several lines are one list.
    List,
    /// Its specification demands to ignore it then.
    Ignored,
}

/// Every request header that the API reads.
static HEADERS: [(&HeaderName, Repeated); 17] = [
    (&header::ACCEPT, Repeated::List),
    (&header::ACCEPT_ENCODING, Repeated::List),
    (&header::AUTHORIZATION, Repeated::Refused),
    (&header::CACHE_CONTROL, Repeated::List),
    (&CONSISTENCY, Repeated::Refused),
    (&CONSISTENCY_TOKEN, Repeated::List),
    (&header::CONTENT_ENCODING, Repeated::List),
    (&header::CONTENT_TYPE, Repeated::Refused),
    (&DURABILITY, Repeated::Refused),
    (&header::HOST, Repeated::Refused),
    (&IDEMPOTENCY_KEY, Repeated::Refused),
    (&header::IF_MATCH, Repeated::List),
    (&header::IF_NONE_MATCH, Repeated::List),
    (&RECEIPT, Repeated::List),
    (&TRACEPARENT, Repeated::Ignored),
    (&header::TRANSFER_ENCODING, Repeated::List),
    (&REQUEST_ID, Repeated::Ignored),
];

/// Refuses what no route may accept.
pub(crate) fn check(headers: &HeaderMap, body_is_empty: bool) -> Result<(), Problem> {
    // Almost no request repeats anything.
    if headers.len() != headers.keys_len() {
        for (name, repeated) in HEADERS {
            if repeated == Repeated::Refused && headers.get_all(name).iter().nth(1).is_some() {
                return Err(bad(name, "it is given more than once"));
            }
        }
    }
    if headers.contains_key(header::TRANSFER_ENCODING) {
        check_transfer_encoding(headers)?;
    }
    let is_coded =
        |value: &HeaderValue| list(value).any(|coding| !coding.eq_ignore_ascii_case(b"identity"));
    if !body_is_empty && headers.get_all(header::CONTENT_ENCODING).iter().any(is_coded) {
        let detail = "the body has a Content-Encoding; the service decodes none";
        return Err(Problem::new(Code::UnsupportedMediaType, detail)
            .header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity")));
    }
    Ok(())
}

/// Refuses a body whose framing is anything but `chunked` once (RFC 9112, section 6.1).
pub(crate) fn check_transfer_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    let values = headers.get_all(header::TRANSFER_ENCODING).iter();
    let codings: Vec<&[u8]> = values.flat_map(list).collect();
    let is_chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let problem = match codings.as_slice() {
        [coding] if is_chunked(coding) => return Ok(()),
        // Where the body ends is known, but not what it says.
        [before @ .., last] if is_chunked(last) && !before.iter().any(is_chunked) => {
            let detail = "the body has a transfer coding other than chunked";
            Problem::new(Code::TransferCoding, detail)
        }
        _ => bad(&header::TRANSFER_ENCODING, "it must be chunked, once"),
    };
    Err(problem.header(header::CONNECTION, HeaderValue::from_static("close")))
}

/// The elements of a comma-separated list without quoted strings.
fn list(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|e| !e.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One legal value of each header of the table.
    fn value(name: &HeaderName) -> &'static str {
        match name.as_str() {
            "transfer-encoding" => "chunked",
            "content-encoding" => "identity",
            _ => "x",
        }
    }

    #[test]
    fn every_header_is_once_or_a_list_as_the_table_says() {
        for (name, repeated) in HEADERS {
            let mut headers = HeaderMap::new();
            // A repeated header that no call reads does not matter.
            headers.append("x-other", HeaderValue::from_static("1"));
            headers.append("x-other", HeaderValue::from_static("2"));
            headers.append(name, HeaderValue::from_static(value(name)));
            assert_eq!(check(&headers, false).map_err(|p| p.code()), Ok(()), "{name}");
            headers.append(name, HeaderValue::from_static(value(name)));
            let refused = check(&headers, false).map_err(|p| p.body("t").detail.to_owned());
            match repeated {
                Repeated::Refused => {
                    let expect = format!("header {name}: it is given more than once");
                    assert_eq!(refused, Err(expect));
                }
                Repeated::List | Repeated::Ignored if *name == header::TRANSFER_ENCODING => {
                    assert!(refused.is_err_and(|detail| detail.contains("chunked, once")));
                }
                Repeated::List | Repeated::Ignored => assert_eq!(refused, Ok(()), "{name}"),
            }
        }
    }

    #[test]
    fn the_reference_shows_the_table() {
        let page = include_str!("../../../docs/reference/api.md");
        let lower = page.to_ascii_lowercase();
        for (name, repeated) in HEADERS {
            let word = match repeated {
                Repeated::Refused => "refused",
                Repeated::List => "one list",
                Repeated::Ignored => "ignored",
            };
            let row = lower.lines().find(|line| {
                line.starts_with("| ") && line.ends_with(&format!("| {word} |")) && {
                    line.contains(&format!("`{name}`"))
                }
            });
            assert!(row.is_some(), "docs/reference/api.md lacks {name} in the row {word:?}");
        }
    }

    #[test]
    fn codings_that_nothing_here_decodes_are_refused() {
        for (te, expect) in [
            ("chunked", None),
            ("Chunked , ", None),
            ("gzip, chunked", Some(Code::TransferCoding)),
            ("x;a=\"b\", chunked", Some(Code::TransferCoding)),
            ("gzip", Some(Code::BadHeader)),
            ("identity", Some(Code::BadHeader)),
            ("chunked, gzip", Some(Code::BadHeader)),
            ("chunked, chunked", Some(Code::BadHeader)),
            ("chunked;q=1", Some(Code::BadHeader)),
            ("", Some(Code::BadHeader)),
        ] {
            let headers = [(header::TRANSFER_ENCODING, HeaderValue::from_static(te))];
            let refused = check(&headers.into_iter().collect(), true).err().map(|p| p.code());
            assert_eq!(refused, expect, "{te:?}");
        }
        for (coding, body_is_empty, is_refused) in [
            ("gzip", false, true),
            ("identity, br", false, true),
            ("Identity", false, false),
            ("", false, false),
            ("gzip", true, false),
        ] {
            let headers = [(header::CONTENT_ENCODING, HeaderValue::from_static(coding))];
            let refused = check(&headers.into_iter().collect(), body_is_empty);
            assert_eq!(refused.is_err(), is_refused, "{coding:?}");
        }
    }
}
