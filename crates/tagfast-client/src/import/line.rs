//! One line of an import: `{"type", "id", "tags": ["..." | {"tag", "by", "at"}], "tenant"?}`.
//!
//! The client checks only the shape; the server decides what a tag may look like, so that no
//! client accepts what another one refuses. An unknown field is refused, because ignoring it would
//! lose it silently.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde::{Deserialize, Serialize};
use tagfast_json::Strict;

/// Longest line in bytes: ten times a line with 100 tags of 256 bytes.
pub(super) const LINE_BYTES_MAX: usize = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(rename = "type")]
    content_type: String,
    id: String,
    tags: Vec<LineTag>,
    #[serde(default)]
    tenant: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(untagged, expecting = "a tag is a string or an object with tag, by and at")]
enum LineTag {
    Plain(String),
    Imported(Strict<ImportedTag>),
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ImportedTag {
    tag: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<String>,
}

/// The batch item that a line becomes.
#[derive(Serialize)]
struct Item<'a> {
    #[serde(rename = "type")]
    content_type: &'a str,
    id: &'a str,
    add: &'a [LineTag],
}

/// A line that can be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ParsedLine {
    /// The item of a `batchTag` body, as JSON.
    pub(super) item: Vec<u8>,
    /// Number of tags it names.
    pub(super) tags: usize,
    /// Hash of its content: lines with different ones are of different contents.
    pub(super) content: u64,
}

/// Checks the shape of a line. `tenant` is the tenant that the server writes to; `None` = unknown,
/// then the server checks the line's tenant.
///
/// # Errors
/// What is wrong with the line, for the user.
pub(super) fn parse(line: &[u8], tenant: Option<&str>) -> Result<ParsedLine, String> {
    let parsed: Line = tagfast_json::from_slice(line).map_err(|e| without_position(&e))?;
    if let (Some(given), Some(ours)) = (parsed.tenant.as_deref(), tenant)
        && given != ours
    {
        return Err(format!("it is of tenant {given:?}, this import writes to {ours:?}"));
    }
    if parsed.tags.is_empty() {
        return Err("it names no tag".to_owned());
    }
    let item = Item { content_type: &parsed.content_type, id: &parsed.id, add: &parsed.tags };
    let bytes = serde_json::to_vec(&item).map_err(|e| e.to_string())?;
    let content = hash_of(&parsed.content_type, &parsed.id);
    Ok(ParsedLine { item: bytes, tags: parsed.tags.len(), content })
}

/// Hash of a content. Two contents may share one: their lines then wait for each other needlessly.
fn hash_of(content_type: &str, id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (content_type, id).hash(&mut hasher);
    hasher.finish()
}

/// The parser's message without its line number, which is always 1 and not the file's.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.rfind(" at line ").map_or(text.as_str(), |end| &text[..end]);
    let what = if error.is_data() { "" } else { "it is not one JSON object: " };
    format!("{what}{text} (column {})", error.column())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tagfast_json::testing::{arrays_for_objects, repeated_keys};

    use super::*;

    fn item(line: &str) -> Result<String, String> {
        parse(line.as_bytes(), Some("default")).map(|p| String::from_utf8(p.item).unwrap())
    }

    #[test]
    fn lines_become_items() {
        let tags = r#"["u",{"tag":"V","by":"ana","at":"2026-01-01T00:00:00Z"}]"#;
        assert_eq!(
            item(&format!(r#"{{"type":"a","id":"x/é","tags":{tags}}}"#)).unwrap(),
            format!(r#"{{"type":"a","id":"x/é","add":{tags}}}"#)
        );
        assert!(item(r#"{"type":"a","id":"1","tags":["u"],"tenant":"default"}"#).is_ok());
    }

    #[test]
    fn bad_lines_say_why() {
        for (line, word) in [
            (r#"{"type":"a","id":"1","tags":["u"],"tenant":"other"}"#, "tenant \"other\""),
            (r#"{"type":"a","id":"1","tags":[]}"#, "no tag"),
            (r#"{"type":"a","id":"1","tag":["u"]}"#, "unknown field `tag`"),
            (r#"{"type":"a","id":"1"}"#, "missing field `tags`"),
            (r#"{"type":"a","id":1,"tags":["u"]}"#, "expected a string"),
            (r#"{"type":"a","id":"1","tags":[7]}"#, "a tag is a string or an object"),
            (r#"{"type":"a","id":"1","tags":["u"]} x"#, "trailing characters"),
            ("[1,2]", "column"),
            ("nonsense", "column"),
        ] {
            let reason = item(line).unwrap_err();
            assert!(reason.contains(word), "{line}: {reason}");
            assert!(!reason.contains("at line"), "{reason}");
        }
    }

    #[test]
    fn an_array_is_neither_a_line_nor_a_tag() {
        let tag = r#"{"tag":"ui","by":"ana","at":"2026-01-01T00:00:00Z"}"#;
        let line = format!(r#"{{"type":"a","id":"1","tags":["u",{tag}],"tenant":"default"}}"#);
        assert!(item(&line).is_ok());
        for damaged in arrays_for_objects(&line).into_iter().chain(repeated_keys(&line)) {
            let reason = item(&damaged).unwrap_err();
            let clear = [
                "expected an object",
                "a tag is a string or an object",
                "duplicate field",
                "given twice",
            ];
            assert!(clear.iter().any(|words| reason.contains(words)), "{damaged}: {reason}");
        }
        assert!(item(r#"{"type":"a","id":"1","tags":[["ui","critical"]]}"#).is_err());
    }

    #[test]
    fn an_unknown_tenant_is_left_to_the_server() {
        assert!(parse(br#"{"type":"a","id":"1","tags":["u"],"tenant":"other"}"#, None).is_ok());
    }

    /// Lines that are an item, or almost one.
    const NEAR_MISS: &str = concat!(
        r#"\{"type":"[a-z]{0,2}","id":".{0,4}","#,
        r#""tags":\[("[^"\\]{0,3}",?|\{"tag":"x"\},?){0,3}\]"#,
        r#"(,"tenant":"[a-z]")?\}?"#
    );

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes, Some("default"));
        }

        #[test]
        fn near_misses_do_not_panic_and_items_are_json(text in NEAR_MISS) {
            if let Ok(parsed) = parse(text.as_bytes(), None) {
                let value: serde_json::Value = serde_json::from_slice(&parsed.item).unwrap();
                prop_assert_eq!(value["add"].as_array().unwrap().len(), parsed.tags);
            }
        }

        #[test]
        fn every_string_survives(id in ".{1,20}", tag in ".{1,20}") {
            let line = serde_json::json!({"type": "t", "id": id, "tags": [tag]}).to_string();
            let parsed = parse(line.as_bytes(), None).unwrap();
            let value: serde_json::Value = serde_json::from_slice(&parsed.item).unwrap();
            prop_assert_eq!(value["id"].as_str().unwrap(), id);
            prop_assert_eq!(value["add"][0].as_str().unwrap(), tag);
        }
    }
}
