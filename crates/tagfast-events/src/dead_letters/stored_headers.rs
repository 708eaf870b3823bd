//! The text in which stores keep the headers of dead letters: JSON pairs of a name and a value in
//! base64, in the record's order.
//!
//! How it fails: text that a different program wrote, or that is damaged, is no headers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Encodes headers.
pub fn encode_headers<'a>(headers: impl Iterator<Item = (String, &'a [u8])>) -> String {
    let headers: Vec<_> = headers.map(|(name, value)| (name, STANDARD.encode(value))).collect();
    // Names and base64 always serialise.
    serde_json::to_string(&headers).unwrap_or_else(|_| "[]".to_owned())
}

/// Decodes headers; `None`: the text is damaged.
pub fn decode_headers(text: &str) -> Option<Vec<(String, Vec<u8>)>> {
    let named: Vec<(String, String)> = tagfast_json::from_str(text).ok()?;
    named.into_iter().map(|(name, value)| Some((name, STANDARD.decode(value).ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_and_damaged_ones_are_refused() {
        let text = r#"[["ce_id","MQ=="],["ce_type","dA=="]]"#;
        let read = [("ce_id".to_owned(), b"1".to_vec()), ("ce_type".to_owned(), b"t".to_vec())];
        assert_eq!(decode_headers(text).expect("readable"), read);
        let again = read.iter().map(|(name, value)| (name.clone(), value.as_slice()));
        assert_eq!(encode_headers(again), text);
        for part in 0..text.len() {
            assert_eq!(decode_headers(&text[..part]), None, "cut off after {part} bytes");
        }
        for damaged in [
            r#"{"ce_id":"MQ=="}"#,
            r#"[{"ce_id":"MQ=="}]"#,
            r#"[["ce_id"]]"#,
            r#"[["ce_id","MQ==","x"]]"#,
            r#"["ce_id","MQ=="]"#,
            r#"[["ce_id","not base64"]]"#,
            r#"[["ce_id",1]]"#,
            r#"[["ce_id",null]]"#,
            "null",
            "[[]]",
        ] {
            assert_eq!(decode_headers(damaged), None, "{damaged}");
        }
    }
}
