//! Commands that need no server: backup and restore, stored bytes, configuration, descriptions.

use std::io::Read as _;

use serde_json::{Value, json};
use tagfast_domain::{ContentKey, Document, time::rfc3339};
use tagfast_resilience::SystemClock;
use tagfast_store_embedded::backup::{self, BackupReport};

use crate::cli::{BackupArgs, ConfigFile, DecodeArgs, RestoreArgs};
use crate::config::{Config, docs, env, raw, resolved};
use crate::failure::{CommandResult, Exit, Failure};
use crate::progress::Progress;
use crate::telemetry::metrics;
use crate::term::Term;

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text.push_str(&format!(": {e}"));
        source = e.source();
    }
    text
}

/// Runs a copy with its progress in pages of all files together.
fn copying<T>(term: &Term, what: &str, copy: impl FnOnce(&dyn Fn(u64, u64)) -> T) -> T {
    let progress = std::cell::RefCell::new(Progress::new(term, what, None));
    copy(&|done, total| {
        progress.borrow_mut().set_total(total);
        progress.borrow().set(done);
    })
}

fn report(done: &BackupReport, sentence: &str, term: &Term) -> CommandResult {
    if term.json {
        term.value(&json!({"files": done.files, "bytes": done.bytes}))?;
    } else {
        term.line(format_args!("{} files, {} bytes {sentence}", done.files, done.bytes))?;
    }
    Ok(Exit::Done)
}

/// `backup`
pub(super) fn backup(args: &BackupArgs, term: &Term) -> CommandResult {
    if !args.data_dir.join("store-0.sqlite").is_file() {
        return Err(Failure::new(format!("{} is not a data directory", args.data_dir.display()))
            .hint("name the server's data directory with --data-dir"));
    }
    let copy =
        |show: &dyn Fn(u64, u64)| backup::backup(&args.data_dir, &args.dir, &SystemClock, show);
    let done = copying(term, "backup, pages", copy)
        .map_err(|e| Failure::new(format!("the backup failed: {}", with_sources(&e))))?;
    report(&done, &format!("copied to {}", args.dir.display()), term)
}

/// `restore`
pub(super) fn restore(args: &RestoreArgs, term: &Term) -> CommandResult {
    if !args.dir.is_dir() {
        return Err(Failure::new(format!(
            "{} is not a backup: there is no such directory",
            args.dir.display()
        ))
        .hint("make one with: tagfast backup DIR --data-dir ./tagfast-data"));
    }
    let copy =
        |show: &dyn Fn(u64, u64)| backup::restore(&args.dir, &args.data_dir, &SystemClock, show);
    let done = copying(term, "restore, pages", copy)
        .map_err(|e| Failure::new(format!("the restore failed: {}", with_sources(&e))))?;
    let sentence = format!(
        "restored to {}; the index and the counts are rebuilt at the next start",
        args.data_dir.display()
    );
    report(&done, &sentence, term)
}

/// `debug decode`
pub(super) fn decode(args: &DecodeArgs, term: &Term) -> CommandResult {
    if let (Some(dir), Some(content)) = (&args.data_dir, &args.content) {
        let [content_type, id] = content.as_slice() else {
            return Err(Failure::usage("--content takes a type and an id"));
        };
        let key = ContentKey::parse(&args.tenant, content_type, id)
            .map_err(|e| Failure::usage(e.to_string()))?;
        let found = tagfast_store_embedded::debug_dump(dir, &key)
            .map_err(|e| Failure::new(with_sources(&e)))?;
        let Some((version, bytes, document)) = found else {
            return Err(Failure::new(format!("{key} has no document: nobody ever tagged it")));
        };
        let mut value = describe(&document, &bytes);
        value["row_version"] = json!(version.to_string());
        term.value(&value)?;
        return Ok(Exit::Done);
    }
    let bytes = match (&args.hex, &args.file) {
        (Some(hex), _) => {
            unhex(hex).ok_or_else(|| Failure::usage("--hex takes pairs of hexadecimal digits"))?
        }
        (None, Some(file)) if file != "-" => {
            std::fs::read(file).map_err(|e| Failure::new(format!("cannot read {file}: {e}")))?
        }
        (None, Some(_)) => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes)?;
            bytes
        }
        (None, None) => {
            return Err(Failure::usage(
                "nothing to decode: give a file, --hex, or --data-dir with --content",
            ));
        }
    };
    let document =
        tagfast_domain::codec::decode(&bytes).map_err(|e| Failure::new(e.to_string()))?;
    term.value(&describe(&document, &bytes))?;
    Ok(Exit::Done)
}

fn describe(document: &Document, bytes: &[u8]) -> Value {
    let taggings: Vec<Value> = document
        .taggings
        .iter()
        .map(|t| {
            json!({"tag": t.name.as_str(), "display": &*t.display, "by": t.user.as_str(), "at": rfc3339(t.at),
                   "ord": t.ord.to_string(), "present": t.present})
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
                   "added": names(&w.effect.added), "removed": names(&w.effect.removed)})
        })
        .collect();
    json!({
        "format": bytes.first(),
        "bytes": bytes.len(),
        "version": document.version.to_string(),
        "floor": document.floor.to_string(),
        "cond": document.cond.to_string(),
        "overflow_until": document.overflow_until,
        "taggings": taggings,
        "recent_writes": recent,
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// `config check`
pub(super) fn config_check(file: &ConfigFile, term: &Term) -> CommandResult {
    let (config, sources) = crate::config::load(file.config.as_deref(), &env::of_process(), &[])
        .map_err(|e| Failure::config(&e))?;
    let errors = config.check_files();
    if !errors.is_empty() {
        return Err(Failure::config(&errors));
    }
    let idle = resolved::without_effect(&sources);
    if term.json {
        term.value(&json!({"ok": true, "without_effect": idle}))?;
    } else {
        for path in &idle {
            term.note(format_args!("note: {path} has no effect in embedded mode"));
        }
        term.line("the configuration is usable")?;
    }
    Ok(Exit::Done)
}

/// `config print`: also of a configuration that cannot be run, because that is when one wants to
/// see it.
pub(super) fn config_print(file: &ConfigFile, term: &Term) -> CommandResult {
    let text = match &file.config {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .map_err(|e| Failure::usage(format!("cannot read {}: {e}", path.display())))?,
        ),
        None => None,
    };
    let sources = raw::gather(file.config.as_deref().zip(text.as_deref()), &env::of_process(), &[])
        .map_err(|e| Failure::config(&e))?;
    if term.json {
        term.value(&docs::effective_json(&sources))?;
    } else {
        term.bytes(docs::effective(&sources).as_bytes())?;
    }
    if let Err(errors) = Config::resolve(&sources.raw) {
        return Err(Failure::config(&errors));
    }
    Ok(Exit::Done)
}

/// `config docs`
pub(super) fn config_docs(term: &Term) -> CommandResult {
    term.bytes(docs::markdown().as_bytes())?;
    Ok(Exit::Done)
}

/// `debug metrics-docs`
pub(super) fn metrics_docs(term: &Term) -> CommandResult {
    term.bytes(metrics::markdown().as_bytes())?;
    Ok(Exit::Done)
}

/// `openapi`
pub(super) fn openapi(term: &Term) -> CommandResult {
    term.value(&serde_json::to_value(tagfast_api::openapi())?)?;
    Ok(Exit::Done)
}

/// `completions`
pub(super) fn completions(shell: clap_complete::Shell, term: &Term) -> CommandResult {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::cli::command(), "tagfast", &mut script);
    term.bytes(&script)?;
    Ok(Exit::Done)
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
        assert_eq!(unhex("00 fF1a"), Some(vec![0, 255, 26]));
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex("zz"), None);
        assert_eq!(unhex("é"), None);
    }

    #[test]
    fn a_document_is_shown_from_hex() {
        let bytes = codec::encode(&Document::default());
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let (term, captured) = Term::memory(false);
        assert_eq!(
            decode(&DecodeArgs { hex: Some(hex), ..decode_args() }, &term).unwrap(),
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
        let (term, _) = Term::memory(false);
        assert_eq!(decode(&decode_args(), &term).unwrap_err().exit, Exit::Usage);
        let damaged = DecodeArgs { hex: Some("ff".to_owned()), ..decode_args() };
        assert_eq!(decode(&damaged, &term).unwrap_err().exit, Exit::Failed);
        let file = ConfigFile { config: Some("/no/such/file.toml".into()) };
        assert_eq!(config_print(&file, &term).unwrap_err().exit, Exit::Usage);
        assert_eq!(config_check(&file, &term).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn a_check_names_keys_without_effect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.toml");
        std::fs::write(&path, "[kafka]\npartitions = 8\n").unwrap();
        let (term, captured) = Term::memory(false);
        assert_eq!(config_check(&ConfigFile { config: Some(path) }, &term).unwrap(), Exit::Done);
        assert!(captured.err().contains("kafka.partitions has no effect in embedded mode"));
    }
}
