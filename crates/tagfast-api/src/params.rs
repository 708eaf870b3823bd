//! Query parameters: known names only, each at most once, deserialized into a handler's struct.
//!
//! The struct derives `Deserialize` with `deny_unknown_fields` and `IntoParams`, so that the
//! parameters that a handler accepts and those that the OpenAPI document lists are one list.
//!
//! How it fails: an unknown name is `unknown_parameter` and lists the known ones; a repeated name
//! or a value that does not fit is `bad_parameter` and names the parameter; broken percent-encoding
//! is `bad_encoding`.

use std::borrow::Cow;
use std::fmt::Display;

use axum::extract::FromRequestParts;
use http::request::Parts;
use serde::de::value::{CowStrDeserializer, MapAccessDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};
use tagfast_domain::UnixMillis;
use tagfast_domain::time::parse_rfc3339;

use crate::encoding::query_text;
use crate::problem::{Code, Problem};

/// Longest part of an unknown name that an error repeats, in characters.
const SHOWN_NAME_CHARS_MAX: usize = 80;

/// The query parameters of a request, as an extractor.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(head: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::parse(head.uri.query())
    }
}

impl<T: DeserializeOwned> Params<T> {
    /// Parses `a=b&c=d`; `None` is a URL without a query.
    pub(crate) fn parse(query: Option<&str>) -> Result<Self, Problem> {
        let pairs = Pairs { rest: query.unwrap_or_default().split('&'), value: "" };
        serde_path_to_error::deserialize(MapAccessDeserializer::new(pairs)).map(Self).map_err(
            |error| {
                let name = error.path().to_string();
                error.into_inner().problem(&name)
            },
        )
    }
}

/// The parameters of a call that takes none.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoParams {}

/// The value of a parameter is not accepted.
pub(crate) fn bad_parameter(name: &str, reason: &str) -> Problem {
    Problem::new(Code::BadParameter, format!("query parameter {name}: {reason}"))
}

/// The parameter `limit`: items of a page, 1 to `MAX`; `DEFAULT` when it is absent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageItems<const DEFAULT: usize, const MAX: usize>(usize);

impl<const DEFAULT: usize, const MAX: usize> Default for PageItems<DEFAULT, MAX> {
    fn default() -> Self {
        Self(DEFAULT)
    }
}

impl<'de, const DEFAULT: usize, const MAX: usize> Deserialize<'de> for PageItems<DEFAULT, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse_text(deserializer, |text| {
            whole_number(text)
                .map(Self)
                .ok_or_else(|| format!("it must be a whole number from 1 to {MAX}"))
        })
    }
}

impl<const DEFAULT: usize, const MAX: usize> PageItems<DEFAULT, MAX> {
    /// The number of items, checked against its range.
    pub(crate) fn checked(self) -> Result<usize, Problem> {
        if (1..=MAX).contains(&self.0) {
            return Ok(self.0);
        }
        Err(bad_parameter("limit", &format!("it must be 1 to {MAX}")).limit(
            "page_items",
            MAX as u64,
            self.0 as u64,
        ))
    }
}

/// A parameter that is an RFC 3339 time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timestamp(pub(crate) UnixMillis);

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse_text(deserializer, |text| {
            parse_rfc3339(text)
                .map(Self)
                .ok_or("it is not an RFC 3339 time like 2026-01-31T12:00:00Z")
        })
    }
}

/// Deserializes a value by parsing its text; an error becomes the reason in the problem.
pub(crate) fn parse_text<'de, D: Deserializer<'de>, T, E: Display>(
    deserializer: D,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, D::Error> {
    parse(&Cow::<str>::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// Digits only: no sign, no blanks.
pub(crate) fn whole_number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

/// The pairs of a query that are still to be read.
struct Pairs<'q> {
    rest: std::str::Split<'q, char>,
    /// The value of the name that was read last, still encoded.
    value: &'q str,
}

impl<'de> MapAccess<'de> for Pairs<'_> {
    type Error = ParamError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, ParamError> {
        let Some(pair) = self.rest.find(|pair| !pair.is_empty()) else { return Ok(None) };
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        self.value = value;
        let name = query_text("query parameter", name).map_err(ParamError::Encoding)?;
        seed.deserialize(CowStrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, ParamError> {
        let value = query_text("query value", self.value).map_err(ParamError::Encoding)?;
        seed.deserialize(ParamValue(value))
    }
}

/// The text of one value.
struct ParamValue<'q>(Cow<'q, str>);

impl<'de> Deserializer<'de> for ParamValue<'_> {
    type Error = ParamError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParamError> {
        visitor.visit_str(&self.0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParamError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ParamError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParamError> {
        match &*self.0 {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            _ => Err(ParamError::custom("it must be true or false")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ParamError> {
        CowStrDeserializer::new(self.0).deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// Why a query was refused.
#[derive(Debug)]
enum ParamError {
    /// The call does not know the name.
    Unknown { name: String, known: &'static [&'static str] },
    /// A name came more than once.
    GivenTwice(&'static str),
    /// A name or value is not percent-encoded UTF-8.
    Encoding(Problem),
    /// The value does not fit, with the reason.
    Value(String),
}

impl ParamError {
    fn problem(self, at: &str) -> Problem {
        match self {
            Self::Unknown { name, known } => {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let name: String = name.chars().take(SHOWN_NAME_CHARS_MAX).collect();
                let detail = format!("unknown query parameter {name:?}; known here: {known}");
                Problem::new(Code::UnknownParameter, detail)
            }
            Self::GivenTwice(name) => bad_parameter(name, "it is given twice"),
            Self::Encoding(problem) => problem,
            Self::Value(reason) => bad_parameter(at, &reason),
        }
    }
}

impl Display for ParamError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown { name, .. } => write!(f, "unknown query parameter {name:?}"),
            Self::GivenTwice(name) => write!(f, "query parameter {name} is given twice"),
            Self::Encoding(_) => f.write_str("bad encoding"),
            Self::Value(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for ParamError {}

impl serde::de::Error for ParamError {
    fn custom<T: Display>(reason: T) -> Self {
        Self::Value(reason.to_string())
    }

    fn unknown_field(name: &str, known: &'static [&'static str]) -> Self {
        Self::Unknown { name: name.to_owned(), known }
    }

    fn duplicate_field(name: &'static str) -> Self {
        Self::GivenTwice(name)
    }

    fn unknown_variant(_: &str, words: &'static [&'static str]) -> Self {
        Self::Value(match words {
            [] => "it is not accepted".to_owned(),
            [one] => format!("it must be {one}"),
            [head @ .., last] => format!("it must be {} or {last}", head.join(", ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Order {
        Updated,
        Id,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        q: Option<String>,
        #[serde(default)]
        limit: PageItems<20, 100>,
        #[serde(default)]
        facets: bool,
        sort: Option<Order>,
        from: Option<Timestamp>,
    }

    fn parse(query: &str) -> Result<Example, Problem> {
        Params::parse(Some(query)).map(|params| params.0)
    }

    #[track_caller]
    fn refused(query: &str, code: Code, words: &str) {
        let problem = parse(query).unwrap_err();
        let detail = problem.body("t").detail.to_owned();
        assert_eq!((problem.code(), detail.contains(words)), (code, true), "{query}: {detail}");
    }

    #[test]
    fn a_query_takes_known_names_once() {
        let all = parse("q=a+b%2Bc&&limit=5&facets=true&sort=id&from=2026-01-31T12:00:00Z");
        let all = all.unwrap();
        assert_eq!((all.q.as_deref(), all.facets), (Some("a b+c"), true));
        assert_eq!((all.limit.checked().unwrap(), all.sort), (5, Some(Order::Id)));
        assert_eq!(all.from.unwrap().0, 1_769_860_800_000);
        let none = parse("").unwrap();
        assert_eq!((none.q, none.limit.checked().unwrap(), none.facets), (None, 20, false));
        assert!(none.sort.is_none() && none.from.is_none());
        refused("z=1", Code::UnknownParameter, "\"z\"; known here: q, limit, facets, sort, from");
        refused("q=1&q=2", Code::BadParameter, "query parameter q: it is given twice");
        refused("q=%f", Code::BadEncoding, "query value");
        refused("%f=1", Code::BadEncoding, "query parameter");
        let none: Result<Params<NoParams>, _> = Params::parse(Some("x"));
        assert_eq!(none.map(|_| ()).unwrap_err().code(), Code::UnknownParameter);
    }

    #[test]
    fn a_value_that_does_not_fit_names_its_parameter() {
        for (query, words) in [
            ("limit=x", "query parameter limit: it must be a whole number from 1 to 100"),
            ("limit=%2B5", "query parameter limit: it must be a whole number"),
            ("limit=", "query parameter limit: it must be a whole number"),
            ("facets=1", "query parameter facets: it must be true or false"),
            ("sort=up", "query parameter sort: it must be updated or id"),
            ("from=soon", "query parameter from: it is not an RFC 3339 time"),
        ] {
            refused(query, Code::BadParameter, words);
        }
        for outside in ["limit=0", "limit=101"] {
            let problem = parse(outside).unwrap().limit.checked().unwrap_err();
            assert_eq!(problem.code(), Code::BadParameter, "{outside}");
        }
    }

    proptest! {
        #[test]
        fn no_query_panics(s in "\\PC{0,60}|[%0-9a-f+&=qlimt]{0,60}") {
            let _ = parse(&s);
            let _ = Params::<NoParams>::parse(Some(&s)).is_ok();
        }
    }
}
