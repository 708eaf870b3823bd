//! `backup`, `backup verify` and `restore`: copies of a data directory.
//!
//! How it fails: a backup that is not what was saved is refused before anything is made from it,
//! and every wrong file is named.

use std::path::Path;

use serde_json::{Value, json};
use tagfast_client::error::{CliError, CommandResult, Exit};
use tagfast_client::progress::Progress;
use tagfast_client::terminal::Terminal;
use tagfast_resilience::SystemClock;
use tagfast_store_embedded::OpenError;
use tagfast_store_embedded::backup::{self, BackupReport};

use crate::cli::{BackupArgs, BackupCommand, RestoreArgs, VerifyArgs};

/// The file by which a data directory is recognised.
const STORE_FILE: &str = "store-0.sqlite";
/// Said of a backup without a signing key.
const NO_KEY: &str = "the backup holds no signing key: keep the files of server.signing_key_file \
     apart, or tokens, receipts and cursors from before a restore are worthless after it";
/// Said of a backup whose manifest is of format 1.
const NO_CHECKSUMS: &str = "the backup was made by an earlier version and has no checksums: its \
     databases are whole, whether their content is what was saved cannot be known";

/// Runs a copy and shows its progress, in bytes of all files together.
fn running<T>(terminal: &Terminal, what: &str, work: impl FnOnce(&dyn Fn(u64, u64)) -> T) -> T {
    let progress = std::cell::RefCell::new(Progress::new(terminal, what, None));
    work(&|done, total| {
        progress.borrow_mut().set_total(total);
        progress.borrow().set(done);
    })
}

fn failed(what: &str, error: OpenError) -> CliError {
    let spoiled = matches!(error, OpenError::BadBackup { .. });
    let failure = CliError::new(format!("the {what} failed")).with_source(error);
    if !spoiled {
        return failure;
    }
    failure.hint("make a new backup or use a different one; nothing was made from this one")
}

/// Writes what is in a backup: as JSON, or as `sentence`, and what is missing in it as notes.
fn report(done: &BackupReport, dir: &Path, sentence: &str, terminal: &Terminal) -> CommandResult {
    let notes = [
        (!done.checksums).then(|| NO_CHECKSUMS.to_owned()),
        (!done.signing_key).then(|| NO_KEY.to_owned()),
        done.made_private.then(|| {
            format!("other users could use {}; it is its owner's alone now", dir.display())
        }),
    ];
    for note in notes.into_iter().flatten() {
        terminal.note(format_args!("note: {note}"));
    }
    if terminal.json {
        terminal.value(&as_json(done))?;
    } else {
        terminal.line(format_args!("{} files, {} bytes {sentence}", done.files, done.bytes))?;
    }
    Ok(Exit::Done)
}

fn as_json(done: &BackupReport) -> Value {
    json!({
        "files": done.files,
        "bytes": done.bytes,
        "created_at_ms": done.created_at,
        "signing_key": done.signing_key,
        "checksums": done.checksums,
    })
}

/// `backup`
pub(super) fn backup(args: &BackupArgs, terminal: &Terminal) -> CommandResult {
    let dir = match (&args.command, &args.dir) {
        (Some(BackupCommand::Verify(args)), _) => return verify(args, terminal),
        (None, Some(dir)) => dir,
        (None, None) => return Err(CliError::usage("name the directory to create")),
    };
    if !args.data_dir.join(STORE_FILE).is_file() {
        return Err(CliError::new(format!("{} is not a data directory", args.data_dir.display()))
            .hint("name the server's data directory with --data-dir"));
    }
    let copy = |show: &dyn Fn(u64, u64)| backup::backup(&args.data_dir, dir, &SystemClock, show);
    let done = running(terminal, "backup, bytes", copy).map_err(|e| failed("backup", e))?;
    report(&done, dir, &format!("copied to {}", dir.display()), terminal)
}

fn refuse_missing(dir: &Path) -> Result<(), CliError> {
    if dir.is_dir() {
        return Ok(());
    }
    Err(CliError::new(format!("{} is not a backup: there is no such directory", dir.display()))
        .hint("make one with: tagfast backup DIR --data-dir ./tagfast-data"))
}

/// `backup verify`
fn verify(args: &VerifyArgs, terminal: &Terminal) -> CommandResult {
    refuse_missing(&args.dir)?;
    let check = |show: &dyn Fn(u64, u64)| backup::verify(&args.dir, show);
    let done = running(terminal, "verify, bytes", check).map_err(|e| failed("check", e))?;
    let sentence = if done.checksums { "are what was saved" } else { "are whole databases" };
    report(&done, &args.dir, sentence, terminal)?;
    Ok(if done.checksums { Exit::Done } else { Exit::Partly })
}

/// `restore`
pub(super) fn restore(args: &RestoreArgs, terminal: &Terminal) -> CommandResult {
    refuse_missing(&args.dir)?;
    let copy =
        |show: &dyn Fn(u64, u64)| backup::restore(&args.dir, &args.data_dir, &SystemClock, show);
    let done = running(terminal, "restore, bytes", copy).map_err(|e| failed("restore", e))?;
    let sentence = format!(
        "restored to {}; the index and the counts are rebuilt at the next start",
        args.data_dir.display()
    );
    report(&done, &args.data_dir, &sentence, terminal)
}
