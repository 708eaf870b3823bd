//! Entity tags in conditions: `If-Match` and `If-None-Match` (RFC 9110, sections 8.8.3 and 13.1).
//!
//! An entity tag of this service is a version in quotes. Every other one is legal and matches
//! nothing. `*` matches every content: one that was never tagged has a representation too, the
//! empty list with the entity tag `"0"`.
//!
//! How it fails: a value that is neither `*` nor a list of entity tags is refused with 400, because
//! a condition that is silently ignored lets a write through that the client wanted stopped.

use http::{HeaderMap, HeaderName};
use tagfast_domain::Version;

use crate::problem::{Problem, bad_header as bad};

/// Most entity tags that one condition may list. Too low: clients that keep many versions are
/// refused. Too high: one request makes the service compare many.
const ENTITY_TAGS_MAX: usize = 100;

/// The value of a condition.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum EntityTags {
    /// `*`.
    Any,
    /// At least one entity tag.
    Listed(Vec<EntityTag>),
}

/// One entity tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntityTag {
    weak: bool,
    /// `None`: it is not one of this service.
    version: Option<Version>,
}

impl EntityTags {
    /// The condition of this header; `None` when it is absent. Several lines are one list.
    pub(crate) fn parse(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Self>, Problem> {
        let (mut any, mut listed) = (false, Vec::new());
        for value in headers.get_all(name) {
            let mut rest = trim_start(value.as_bytes());
            while let Some(first) = rest.first() {
                rest = match first {
                    b',' => &rest[1..],
                    b'*' => {
                        any = true;
                        &rest[1..]
                    }
                    _ => {
                        let (tag, after) = EntityTag::split(rest).ok_or_else(|| malformed(name))?;
                        listed.push(tag);
                        after
                    }
                };
                rest = trim_start(rest);
                // What was read ends here or at a comma.
                if *first != b',' && rest.first().is_some_and(|next| *next != b',') {
                    return Err(malformed(name));
                }
            }
        }
        if listed.len() > ENTITY_TAGS_MAX {
            let reason = format!("it lists more than {ENTITY_TAGS_MAX} entity tags");
            let (allowed, given) = (ENTITY_TAGS_MAX as u64, listed.len() as u64);
            return Err(bad(name, &reason).limit("entity_tags", allowed, given));
        }
        match (any, listed.is_empty()) {
            (true, true) => Ok(Some(Self::Any)),
            (false, false) => Ok(Some(Self::Listed(listed))),
            (false, true) if !headers.contains_key(name) => Ok(None),
            (true, false) | (false, true) => Err(malformed(name)),
        }
    }

    /// The versions that match by the strong comparison, which `If-Match` uses: a weak entity tag
    /// matches none. `None`: every version matches.
    pub(crate) fn strong(&self) -> Option<Vec<Version>> {
        match self {
            Self::Any => None,
            Self::Listed(tags) => {
                Some(tags.iter().filter(|tag| !tag.weak).filter_map(|tag| tag.version).collect())
            }
        }
    }

    /// Whether this version matches by the weak comparison, which `If-None-Match` uses.
    pub(crate) fn match_weakly(&self, version: Version) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(tags) => tags.iter().any(|tag| tag.version == Some(version)),
        }
    }
}

impl EntityTag {
    /// The entity tag at the beginning of a list and what follows it; `None`: there is none.
    fn split(list: &[u8]) -> Option<(Self, &[u8])> {
        let (weak, opaque) = match list.strip_prefix(b"W/") {
            Some(opaque) => (true, opaque),
            None => (false, list),
        };
        let opaque = opaque.strip_prefix(b"\"")?;
        // No escapes: a backslash is a character like others.
        let end = opaque.iter().position(|byte| *byte == b'"')?;
        let (text, after) = (&opaque[..end], &opaque[end + 1..]);
        let legal = |byte: &u8| matches!(byte, 0x21 | 0x23..=0x7e | 0x80..);
        text.iter().all(legal).then_some((Self { weak, version: version_of(text) }, after))
    }
}

/// The version that an entity tag of this service holds: its only spelling, as comparisons are by
/// characters.
fn version_of(text: &[u8]) -> Option<Version> {
    let digits = std::str::from_utf8(text).ok()?;
    let only = !digits.starts_with('0') || digits == "0";
    (only && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
}

fn trim_start(text: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    &text[text.iter().position(|byte| !blank(byte)).unwrap_or(text.len())..]
}

fn malformed(name: &HeaderName) -> Problem {
    bad(name, "it must be * or a list of entity tags in quotes, for example \"123\", \"124\"")
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header};
    use proptest::prelude::*;

    use super::*;
    use crate::problem::Code;

    fn parse(lines: &[&[u8]]) -> Result<Option<EntityTags>, Problem> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::IF_MATCH, HeaderValue::from_bytes(line).unwrap());
        }
        EntityTags::parse(&headers, &header::IF_MATCH)
    }

    fn version(n: u64) -> Version {
        Version::from_packed(n).unwrap()
    }

    /// The versions that match strongly and those that match weakly, of 0 to 9.
    fn matches(lines: &[&[u8]]) -> (Vec<u64>, Vec<u64>) {
        let tags = parse(lines).unwrap().unwrap();
        let of = |f: &dyn Fn(Version) -> bool| (0..10).filter(|n| f(version(*n))).collect();
        let strong = tags.strong();
        (of(&|v| strong.as_ref().is_none_or(|all| all.contains(&v))), of(&|v| tags.match_weakly(v)))
    }

    #[test]
    fn lists_match_strongly_and_weakly() {
        let all: Vec<u64> = (0..10).collect();
        for (lines, strong, weak) in [
            (&[&b"\"7\""[..]][..], vec![7], vec![7]),
            (&[b"W/\"7\""], vec![], vec![7]),
            (&[b"\"1\", W/\"2\" ,\t\"3\""], vec![1, 3], vec![1, 2, 3]),
            (&[b"\"1\"", b"\"2\",W/\"3\""], vec![1, 2], vec![1, 2, 3]),
            (&[b",, \"1\",,\"0\" ,"], vec![0, 1], vec![0, 1]),
            (&[b"\"a,b\", \"x\\\", \"\", \"\xff\", \"5\""], vec![5], vec![5]),
            (&[b"\"007\", \"+7\""], vec![], vec![]),
            (&[b"\"99999999999999999999\""], vec![], vec![]),
            (&[b"*"], all.clone(), all.clone()),
            (&[b" * ,"], all.clone(), all),
        ] {
            assert_eq!(matches(lines), (strong, weak), "{lines:?}");
        }
        assert_eq!(parse(&[]).unwrap(), None);
    }

    #[test]
    fn what_is_no_list_of_entity_tags_is_refused() {
        for bad in [
            &b"7"[..],
            b"",
            b" , ",
            b"\"7",
            b"7\"",
            b"w/\"7\"",
            b"W/7",
            b"W /\"7\"",
            b"\"7\"\"8\"",
            b"\"7\" \"8\"",
            b"\"7\";q=1",
            b"*, \"7\"",
            b"\"7\", *",
            b"**",
            b"\"a b\"",
            b"'7'",
        ] {
            let problem = parse(&[bad]).unwrap_err();
            assert_eq!(problem.code(), Code::BadHeader, "{}", String::from_utf8_lossy(bad));
        }
        let many = vec!["\"1\""; ENTITY_TAGS_MAX + 1].join(",");
        let problem = parse(&[many.as_bytes()]).unwrap_err();
        assert_eq!(serde_json::to_value(problem.body("t")).unwrap()["limit"], "entity_tags");
        assert!(parse(&[&many.as_bytes()[4..]]).is_ok());
    }

    proptest! {
        /// Written by a generator that knows the grammar, read back the same.
        #[test]
        fn every_list_is_read_as_it_is_written(
            tags in prop::collection::vec((any::<bool>(), 0u64..10, "[ \t]{0,2}", "[ \t]{0,2}"), 1..20),
        ) {
            let text: Vec<String> = tags
                .iter()
                .map(|(weak, n, before, after)| {
                    format!("{before}{}\"{n}\"{after}", if *weak { "W/" } else { "" })
                })
                .collect();
            let (strong, weak) = matches(&[text.join(",").as_bytes()]);
            for n in 0..10 {
                prop_assert_eq!(strong.contains(&n), tags.iter().any(|t| !t.0 && t.1 == n));
                prop_assert_eq!(weak.contains(&n), tags.iter().any(|t| t.1 == n));
            }
        }

        #[test]
        fn no_value_panics(value in "[W/\"*, 0-9a]{0,40}") {
            let _ = parse(&[value.as_bytes()]).is_ok();
        }
    }
}
