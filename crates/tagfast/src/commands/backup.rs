//! `backup` and `restore`: copies of a data directory.

use serde_json::json;
use tagfast_client::error::{CliError, CommandResult, Exit};
use tagfast_client::progress::Progress;
use tagfast_client::terminal::Terminal;
use tagfast_resilience::SystemClock;
use tagfast_store_embedded::backup::{self, BackupReport};

use crate::cli::{BackupArgs, RestoreArgs};

/// The file by which a data directory is recognised.
const STORE_FILE: &str = "store-0.sqlite";

/// Runs a copy and shows its progress, in database pages of all files together.
fn copying<T>(terminal: &Terminal, what: &str, copy: impl FnOnce(&dyn Fn(u64, u64)) -> T) -> T {
    let progress = std::cell::RefCell::new(Progress::new(terminal, what, None));
    copy(&|done, total| {
        progress.borrow_mut().set_total(total);
        progress.borrow().set(done);
    })
}

/// Writes what was copied; `sentence` says where to.
fn report(done: &BackupReport, sentence: &str, terminal: &Terminal) -> CommandResult {
    if terminal.json {
        terminal.value(&json!({"files": done.files, "bytes": done.bytes}))?;
    } else {
        terminal.line(format_args!("{} files, {} bytes {sentence}", done.files, done.bytes))?;
    }
    Ok(Exit::Done)
}

/// `backup`
pub(super) fn backup(args: &BackupArgs, terminal: &Terminal) -> CommandResult {
    if !args.data_dir.join(STORE_FILE).is_file() {
        return Err(CliError::new(format!("{} is not a data directory", args.data_dir.display()))
            .hint("name the server's data directory with --data-dir"));
    }
    let copy =
        |show: &dyn Fn(u64, u64)| backup::backup(&args.data_dir, &args.dir, &SystemClock, show);
    let done = copying(terminal, "backup, pages", copy)
        .map_err(|e| CliError::new("the backup failed").with_source(e))?;
    report(&done, &format!("copied to {}", args.dir.display()), terminal)
}

/// `restore`
pub(super) fn restore(args: &RestoreArgs, terminal: &Terminal) -> CommandResult {
    if !args.dir.is_dir() {
        return Err(CliError::new(format!(
            "{} is not a backup: there is no such directory",
            args.dir.display()
        ))
        .hint("make one with: tagfast backup DIR --data-dir ./tagfast-data"));
    }
    let copy =
        |show: &dyn Fn(u64, u64)| backup::restore(&args.dir, &args.data_dir, &SystemClock, show);
    let done = copying(terminal, "restore, pages", copy)
        .map_err(|e| CliError::new("the restore failed").with_source(e))?;
    let sentence = format!(
        "restored to {}; the index and the counts are rebuilt at the next start",
        args.data_dir.display()
    );
    report(&done, &sentence, terminal)
}
