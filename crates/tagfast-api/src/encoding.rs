//! Percent-encoding of paths and queries, decoded exactly once and strictly, and JSON objects.
//!
//! The router matches paths in their raw form, so that an encoded slash stays inside its segment.
//! In a path a plus sign is a plus sign; in a query value it is a blank, as HTML forms and every
//! client library write it.
//!
//! How it fails: text that is not percent-encoded UTF-8 is refused with `bad_encoding`.

use std::borrow::Cow;

use crate::problem::{Code, Problem};

/// Decodes one path segment.
pub(crate) fn path_segment(raw: &str) -> Result<Cow<'_, str>, Problem> {
    decode(raw, false).ok_or_else(|| bad_encoding("path segment", raw))
}

/// Decodes the name or the value of a query parameter; `what` names it in the error.
pub(crate) fn query_text<'a>(what: &str, raw: &'a str) -> Result<Cow<'a, str>, Problem> {
    decode(raw, true).ok_or_else(|| bad_encoding(what, raw))
}

fn bad_encoding(what: &str, raw: &str) -> Problem {
    let shown: String = raw.chars().take(80).collect();
    Problem::new(Code::BadEncoding, format!("the {what} {shown:?} is not percent-encoded UTF-8"))
}

/// `None`: a broken escape, or bytes that are not UTF-8.
fn decode(raw: &str, plus_is_blank: bool) -> Option<Cow<'_, str>> {
    if !raw.bytes().any(|b| b == b'%' || (plus_is_blank && b == b'+')) {
        return Some(Cow::Borrowed(raw));
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => hex_digit(bytes.next()?)? << 4 | hex_digit(bytes.next()?)?,
            b'+' if plus_is_blank => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|d| d as u8)
}

/// Whether a text is a token of RFC 9110: the name of a header, a directive or a media type.
pub(crate) fn is_token(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;

    #[test]
    fn a_segment_is_decoded_once_and_plus_stays() {
        assert_eq!(path_segment("a%2Fb+c%2525").unwrap(), "a/b+c%25");
        assert_eq!(path_segment("%F0%9F%8E%89").unwrap(), "🎉");
    }

    #[test]
    fn broken_escapes_and_bytes_are_refused() {
        for bad in ["%", "%2", "%zz", "%+1", "%ff", "a%C3", "%ed%a0%80"] {
            assert_eq!(path_segment(bad).unwrap_err().code(), Code::BadEncoding, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn encoded_text_decodes_to_itself(s in "\\PC{0,60}") {
            let encoded = utf8_percent_encode(&s, NON_ALPHANUMERIC).to_string();
            prop_assert_eq!(path_segment(&encoded).unwrap(), s);
        }

        #[test]
        fn no_text_panics(s in "\\PC{0,60}|[%0-9a-f+&=]{0,60}") {
            let _ = (path_segment(&s).is_ok(), query_text("query value", &s).is_ok());
        }
    }
}
