//! Percent-encoding of paths and queries, decoded exactly once and strictly.
//!
//! Paths are routed in their raw form, so that an encoded slash stays inside its segment. In a path
//! a plus sign is a plus sign; in a query value it is a blank, as forms and every client library
//! write it.

use std::borrow::Cow;

use crate::problem::{Code, Problem};

/// Decodes one path segment.
pub(crate) fn segment(raw: &str) -> Result<Cow<'_, str>, Problem> {
    decode(raw, false).ok_or_else(|| bad("path segment", raw))
}

fn bad(what: &str, raw: &str) -> Problem {
    let shown: String = raw.chars().take(80).collect();
    Problem::new(Code::BadEncoding, format!("the {what} {shown:?} is not percent-encoded UTF-8"))
}

fn decode(raw: &str, plus_is_blank: bool) -> Option<Cow<'_, str>> {
    if !raw.bytes().any(|b| b == b'%' || (plus_is_blank && b == b'+')) {
        return Some(Cow::Borrowed(raw));
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            b'+' if plus_is_blank => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|d| d as u8)
}

/// The query of a URL: known names only, each at most once.
#[derive(Debug)]
pub(crate) struct Query {
    values: Vec<(&'static str, String)>,
}

impl Query {
    /// Parses `a=b&c=d`; refuses names that are not in `known`.
    pub(crate) fn parse(
        raw: Option<&str>,
        known: &'static [&'static str],
    ) -> Result<Self, Problem> {
        let mut values: Vec<(&'static str, String)> = Vec::new();
        for pair in raw.unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name, true).ok_or_else(|| bad("query parameter", name))?;
            let Some(name) = known.iter().find(|k| **k == name) else {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let name: String = name.chars().take(80).collect();
                let detail = format!("unknown query parameter {name:?}; known here: {known}");
                return Err(Problem::new(Code::UnknownParameter, detail));
            };
            if values.iter().any(|(n, _)| n == name) {
                return Err(bad_parameter(name, "it is given twice"));
            }
            let value = decode(value, true).ok_or_else(|| bad("query value", value))?;
            values.push((name, value.into_owned()));
        }
        Ok(Self { values })
    }

    /// Takes a value out.
    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.values.iter().position(|(n, _)| *n == name)?;
        Some(self.values.swap_remove(at).1)
    }

    /// A whole number within a range.
    pub(crate) fn number(
        &mut self,
        name: &str,
        default: usize,
        max: usize,
    ) -> Result<usize, Problem> {
        let Some(text) = self.take(name) else { return Ok(default) };
        let number =
            text.parse::<usize>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
        match number {
            Some(n) if (1..=max).contains(&n) => Ok(n),
            Some(n) => Err(bad_parameter(name, &format!("it must be 1 to {max}")).limit(
                limit_name(name),
                max as u64,
                n as u64,
            )),
            None => Err(bad_parameter(name, &format!("it must be a whole number from 1 to {max}"))),
        }
    }

    /// `true` or `false`.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, Problem> {
        match self.take(name).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(bad_parameter(name, "it must be true or false")),
        }
    }
}

fn limit_name(parameter: &str) -> &'static str {
    if parameter == "limit" { "page_items" } else { "parameter" }
}

/// A parameter's value is not accepted.
pub(crate) fn bad_parameter(name: &str, reason: &str) -> Problem {
    Problem::new(Code::BadParameter, format!("query parameter {name}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;

    #[test]
    fn a_segment_is_decoded_once_and_plus_stays() {
        assert_eq!(segment("a%2Fb+c%2525").unwrap(), "a/b+c%25");
        assert_eq!(segment("%F0%9F%8E%89").unwrap(), "🎉");
    }

    #[test]
    fn broken_escapes_and_bytes_are_refused() {
        for bad in ["%", "%2", "%zz", "%+1", "%ff", "a%C3", "%ed%a0%80"] {
            assert_eq!(segment(bad).unwrap_err().code(), Code::BadEncoding, "{bad}");
        }
    }

    #[test]
    fn a_query_takes_known_names_once() {
        let mut query = Query::parse(Some("q=a+b%2Bc&limit=5"), &["q", "limit"]).unwrap();
        assert_eq!(query.take("q").as_deref(), Some("a b+c"));
        assert_eq!(query.number("limit", 20, 100).unwrap(), 5);
        assert_eq!(Query::parse(Some("z=1"), &["q"]).unwrap_err().code(), Code::UnknownParameter);
        assert_eq!(Query::parse(Some("q=1&q=2"), &["q"]).unwrap_err().code(), Code::BadParameter);
        assert_eq!(Query::parse(Some("q=%f"), &["q"]).unwrap_err().code(), Code::BadEncoding);
    }

    proptest! {
        #[test]
        fn what_was_encoded_comes_back(s in "\\PC{0,60}") {
            let encoded = utf8_percent_encode(&s, NON_ALPHANUMERIC).to_string();
            prop_assert_eq!(segment(&encoded).unwrap(), s);
        }

        #[test]
        fn nothing_panics(s in "\\PC{0,60}|[%0-9a-f+&=]{0,60}") {
            let _ = segment(&s);
            let _ = Query::parse(Some(&s), &["a", "q"]);
        }
    }
}
