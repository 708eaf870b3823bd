//! Online backup and restore.
//!
//! A backup copies each file from one read snapshot while a server may go on writing; it needs no lock. The manifest is
//! written last: a backup without it was interrupted and is refused. A restore begins a new epoch: the positions in the
//! manifest become the fences of the older ones, so receipts and tokens from after the backup are told apart. The search
//! index and the counts are not in a backup; they are rebuilt, because they belong to another epoch.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use tagfast_resilience::Clock;

use crate::directory::{self, DirectoryLock, OpenError, create_dir, file_path, io, sqlite, sync_dir};
use crate::schema;

const MANIFEST: &str = "manifest.txt";
const MANIFEST_HEAD: &str = "tagfast backup 1";
/// Small files that belong to a data directory.
const COMPANIONS: &[&str] = &["token.key"];

/// What a backup or restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupReport {
    /// Files copied.
    pub files: usize,
    /// Bytes copied.
    pub bytes: u64,
}

fn damaged(file: &Path, detail: &str) -> OpenError {
    OpenError::Damaged { file: file.to_owned(), detail: detail.to_owned() }
}

fn refuse_used(dir: &Path) -> Result<(), OpenError> {
    let used = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if used {
        let source = std::io::Error::new(std::io::ErrorKind::AlreadyExists, "the directory is not empty");
        return Err(OpenError::Io { doing: "write into", path: dir.to_owned(), source });
    }
    Ok(())
}

/// Copies the data directory into `target`, which must be absent or empty. `progress` gets (pages done, pages in all).
pub fn backup(
    data_dir: &Path,
    target: &Path,
    clock: &dyn Clock,
    progress: &dyn Fn(u64, u64),
) -> Result<BackupReport, OpenError> {
    let first = file_path(data_dir, 0);
    if !first.is_file() {
        return Err(damaged(&first, "there is no such file: not a data directory"));
    }
    refuse_used(target)?;
    create_dir(target)?;
    let conn = schema::open_reader(&first, 1 << 20).map_err(sqlite("open", &first))?;
    let files = schema::meta(&conn, "files").map_err(sqlite("read", &first))?.and_then(|n| n.parse().ok());
    let files: usize = files.ok_or_else(|| damaged(&first, "its number of files is missing"))?;
    let mut positions = Vec::new();
    let mut bytes = 0;
    for n in 0..files {
        let (from, to) = (file_path(data_dir, n), file_path(target, n));
        copy(&from, &to, progress)?;
        // From the copy: exactly what the snapshot held.
        let copied = Connection::open(&to).map_err(sqlite("open", &to))?;
        positions.push(schema::last_position(&copied).map_err(sqlite("read", &to))?);
        bytes += sync_file(&to)?;
    }
    for name in COMPANIONS {
        let from = data_dir.join(name);
        if from.is_file() {
            copy_plain(&from, &target.join(name))?;
        }
    }
    let list = positions.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let manifest = target.join(MANIFEST);
    let text = format!(
        "{MANIFEST_HEAD}\ncreated_at={}\nschema={}\nfiles={files}\npositions={list}\n",
        clock.now_ms(),
        schema::VERSION
    );
    let write = || {
        let mut file = File::create(&manifest)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(io("write", &manifest))?;
    sync_dir(target)?;
    Ok(BackupReport { files, bytes })
}

/// Brings a backup back into `data_dir`, which must be absent or empty, and begins a new epoch.
pub fn restore(
    backup_dir: &Path,
    data_dir: &Path,
    clock: &dyn Clock,
    progress: &dyn Fn(u64, u64),
) -> Result<BackupReport, OpenError> {
    let manifest = backup_dir.join(MANIFEST);
    let text = std::fs::read_to_string(&manifest).map_err(io("read", &manifest))?;
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
    if text.lines().next() != Some(MANIFEST_HEAD) {
        return Err(damaged(&manifest, "it is not a manifest of a backup this program knows"));
    }
    let positions: Option<Vec<u64>> =
        field("positions").and_then(|l| l.split(',').map(|n| n.parse().ok()).collect::<Option<_>>());
    let files: Option<usize> = field("files").and_then(|n| n.parse().ok());
    let (Some(positions), Some(files)) = (positions, files) else {
        return Err(damaged(&manifest, "files or positions are missing"));
    };
    if files == 0 || positions.len() != files {
        return Err(damaged(&manifest, "files and positions do not fit together"));
    }
    refuse_used(data_dir)?;
    create_dir(data_dir)?;
    let lock = DirectoryLock::take(data_dir)?;
    let mut bytes = 0;
    // The first file last: a directory without it is not opened, so an interrupted restore cannot be mistaken for one.
    for n in (0..files).rev() {
        let (from, to) = (file_path(backup_dir, n), file_path(data_dir, n));
        directory::quick_check(&from)?;
        let part = to.with_extension("part");
        copy(&from, &part, progress)?;
        let conn = Connection::open(&part).map_err(sqlite("open", &part))?;
        // Positions of groups belong to the old epoch's sinks.
        conn.execute("DELETE FROM bus_offset", []).map_err(sqlite("prepare", &part))?;
        schema::set_meta(&conn, "clean", "1").map_err(sqlite("prepare", &part))?;
        if n == 0 {
            directory::mint(&conn, clock.now_ms(), &positions).map_err(sqlite("begin an epoch in", &part))?;
        }
        conn.close().map_err(|(_, e)| e).map_err(sqlite("close", &part))?;
        bytes += sync_file(&part)?;
        std::fs::rename(&part, &to).map_err(io("rename to", &to))?;
    }
    for name in COMPANIONS {
        let from = backup_dir.join(name);
        if from.is_file() {
            copy_plain(&from, &data_dir.join(name))?;
        }
    }
    sync_dir(data_dir)?;
    drop(lock);
    Ok(BackupReport { files, bytes })
}

/// Copies a database from one read snapshot.
fn copy(from: &Path, to: &Path, progress: &dyn Fn(u64, u64)) -> Result<(), OpenError> {
    const PAGES_A_STEP: i32 = 1024;
    let source = schema::open_reader(from, 1 << 20).map_err(sqlite("open", from))?;
    // An open read transaction pins the snapshot: without it every commit of the server would restart the copy.
    source.execute_batch("BEGIN; SELECT count(*) FROM meta;").map_err(sqlite("read", from))?;
    let mut target = Connection::open(to).map_err(sqlite("create", to))?;
    {
        let backup = Backup::new(&source, &mut target).map_err(sqlite("copy", from))?;
        loop {
            let step = backup.step(PAGES_A_STEP).map_err(sqlite("copy", from))?;
            let p = backup.progress();
            progress((p.pagecount - p.remaining).unsigned_abs().into(), p.pagecount.unsigned_abs().into());
            if matches!(step, StepResult::Done) {
                break;
            }
            if !matches!(step, StepResult::More) {
                // Busy: the server checkpoints; it is done in a moment.
                std::thread::yield_now();
            }
        }
    }
    // A copy in WAL mode would leave a second file beside it.
    target.pragma_update(None, "journal_mode", "DELETE").map_err(sqlite("close", to))?;
    target.close().map_err(|(_, e)| e).map_err(sqlite("close", to))
}

fn copy_plain(from: &Path, to: &Path) -> Result<(), OpenError> {
    std::fs::copy(from, to).map_err(io("copy to", to))?;
    sync_file(to).map(|_| ())
}

fn sync_file(path: &Path) -> Result<u64, OpenError> {
    let sync = || {
        let file = File::open(path)?;
        file.sync_all()?;
        Ok(file.metadata()?.len())
    };
    sync().map_err(io("sync", path))
}
