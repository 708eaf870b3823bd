//! One line of an import: `{"type", "id", "tags": ["..." | {"tag", "by", "at"}], "tenant"?}`.
//!
//! Only the shape is judged here; what a tag may look like is the server's to say, so that one
//! import never accepts what another refuses. A field that we do not know is refused: ignoring it
//! would lose it silently.

use serde::{Deserialize, Serialize};

/// Longest line in bytes; 100 tags of 256 bytes with everything around them fit ten times.
pub const LINE_BYTES: usize = 1 << 20;

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
    Imported(ImportedTag),
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
pub struct Parsed {
    /// The item of a `batchTag` body, as JSON.
    pub item: Vec<u8>,
    /// How many tags it names.
    pub tags: usize,
}

/// Judges a line's shape. `tenant` is the one the server will write to, where we know it.
pub fn parse(line: &[u8], tenant: Option<&str>) -> Result<Parsed, String> {
    let parsed: Line = serde_json::from_slice(line).map_err(|e| short(&e))?;
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
    Ok(Parsed { item: bytes, tags: parsed.tags.len() })
}

/// The parser's words without its line number, which is always 1 and not the file's.
fn short(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.rfind(" at line ").map_or(text.as_str(), |end| &text[..end]);
    let what = if error.is_data() { "" } else { "it is not one JSON object: " };
    format!("{what}{text} (column {})", error.column())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(line: &str) -> Result<String, String> {
        parse(line.as_bytes(), Some("default")).map(|p| String::from_utf8(p.item).unwrap())
    }

    #[test]
    fn lines_become_items() {
        assert_eq!(
            item(r#"{"type":"a","id":"x/é","tags":["u",{"tag":"V","by":"ana","at":"2026-01-01T00:00:00Z"}]}"#).unwrap(),
            r#"{"type":"a","id":"x/é","add":["u",{"tag":"V","by":"ana","at":"2026-01-01T00:00:00Z"}]}"#
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
    fn an_unknown_tenant_leaves_the_judgement_to_the_server() {
        assert!(parse(br#"{"type":"a","id":"1","tags":["u"],"tenant":"other"}"#, None).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes, Some("default"));
        }

        #[test]
        fn near_misses_do_not_panic_and_items_are_json(text in r#"\{"type":"[a-z]{0,2}","id":".{0,4}","tags":\[("[^"\\]{0,3}",?|\{"tag":"x"\},?){0,3}\](,"tenant":"[a-z]")?\}?"#) {
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
