//! `debug decode`: shows a stored document.

use std::io::Read as _;

use serde_json::{Value, json};
use tagfast_client::error::{CliError, CommandResult, Exit};
use tagfast_client::terminal::Terminal;
use tagfast_domain::{ContentKey, Document, RecordedOutcome, time::rfc3339};

use crate::cli::DecodeArgs;

/// `debug decode`
pub(super) fn decode(args: &DecodeArgs, terminal: &Terminal) -> CommandResult {
    if let (Some(dir), Some(content)) = (&args.data_dir, &args.content) {
        let [content_type, id] = content.as_slice() else {
            return Err(CliError::usage("--content takes a type and an id"));
        };
        let key = ContentKey::parse(&args.tenant, content_type, id)
            .map_err(|e| CliError::usage(e.to_string()).with_source(e))?;
        let found = tagfast_store_embedded::debug_dump(dir, &key)
            .map_err(|e| CliError::new(e.to_string()).with_source(e))?;
        let Some((version, bytes, document)) = found else {
            return Err(CliError::new(format!("{key} has no document: it was never tagged")));
        };
        let mut value = describe(&document, &bytes);
        value["row_version"] = json!(version.to_string());
        terminal.value(&value)?;
        return Ok(Exit::Done);
    }
    let bytes = match (&args.hex, &args.file) {
        (Some(hex), _) => decode_hex(hex)?,
        (None, Some(file)) if file.as_os_str() != "-" => std::fs::read(file)
            .map_err(|e| CliError::new(format!("cannot read {}", file.display())).with_source(e))?,
        (None, Some(_)) => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes)?;
            bytes
        }
        (None, None) => {
            return Err(CliError::usage(
                "nothing to decode: give a file, --hex, or --data-dir with --content",
            ));
        }
    };
    let document = tagfast_domain::codec::decode(&bytes)
        .map_err(|e| CliError::new(e.to_string()).with_source(e))?;
    terminal.value(&describe(&document, &bytes))?;
    Ok(Exit::Done)
}

/// A document as JSON, with its deleted taggings and its recent writes.
fn describe(document: &Document, bytes: &[u8]) -> Value {
    let taggings: Vec<Value> = document
        .taggings
        .iter()
        .map(|t| {
            json!({"tag": t.name.as_str(), "display": &*t.display, "by": t.user.as_str(),
                   "at": rfc3339(t.at), "ord": t.decided_at.to_string(), "present": t.present})
        })
        .collect();
    let names = |list: &[tagfast_domain::TagName]| {
        list.iter().map(|n| n.as_str().to_owned()).collect::<Vec<_>>()
    };
    let recent: Vec<Value> = document
        .recent
        .iter()
        .map(|w| {
            json!({"write_id": w.id.to_string(), "fingerprint": format!("{:016x}", w.fingerprint),
                   "version": w.version.to_string(), "at": rfc3339(w.at),
                   "outcome": outcome_word(w.outcome),
                   "added": names(&w.effect.added), "removed": names(&w.effect.removed)})
        })
        .collect();
    json!({
        "format": bytes.first(),
        "bytes": bytes.len(),
        "version": document.version.to_string(),
        "absent_since": document.absent_since.to_string(),
        "last_conditional": document.last_conditional.to_string(),
        "overflow_until": document.overflow_until,
        "taggings": taggings,
        "recent_writes": recent,
    })
}

fn outcome_word(outcome: RecordedOutcome) -> &'static str {
    match outcome {
        RecordedOutcome::Written => "written",
        RecordedOutcome::Unchanged => "unchanged",
        RecordedOutcome::VersionMismatch => "version_mismatch",
        RecordedOutcome::TooManyTags { .. } => "too_many_tags",
    }
}

/// Decodes pairs of hexadecimal digits; blanks between them are skipped.
fn decode_hex(text: &str) -> Result<Vec<u8>, CliError> {
    let digits: String = text.split_whitespace().collect();
    hex::decode(digits)
        .map_err(|e| CliError::usage("--hex takes pairs of hexadecimal digits").with_source(e))
}

#[cfg(test)]
mod tests {
    use tagfast_domain::codec;

    use super::*;

    fn decode_args() -> DecodeArgs {
        DecodeArgs {
            file: None,
            hex: None,
            data_dir: None,
            content: None,
            tenant: "default".to_owned(),
        }
    }

    #[test]
    fn hex_is_decoded_and_nonsense_refused() {
        assert_eq!(decode_hex("00 fF1a").unwrap(), vec![0, 255, 26]);
        assert!(decode_hex("0").is_err());
        assert!(decode_hex("zz").is_err());
        assert!(decode_hex("é").is_err());
    }

    #[test]
    fn a_document_is_shown_from_hex() {
        let bytes = codec::encode(&Document::default());
        let hex = hex::encode(bytes);
        let (terminal, captured) = Terminal::memory(false);
        assert_eq!(
            decode(&DecodeArgs { hex: Some(hex), ..decode_args() }, &terminal).unwrap(),
            Exit::Done
        );
        let shown: Value = serde_json::from_str(&captured.out()).unwrap();
        assert_eq!(
            (shown["format"].as_u64(), shown["taggings"].as_array().map(Vec::len)),
            (Some(1), Some(0))
        );
    }

    #[test]
    fn exit_codes_tell_usage_from_failure() {
        let (terminal, _) = Terminal::memory(false);
        assert_eq!(decode(&decode_args(), &terminal).unwrap_err().exit, Exit::Usage);
        let damaged = DecodeArgs { hex: Some("ff".to_owned()), ..decode_args() };
        assert_eq!(decode(&damaged, &terminal).unwrap_err().exit, Exit::Failed);
    }
}
