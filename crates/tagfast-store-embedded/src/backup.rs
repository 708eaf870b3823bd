//! Online backup and restore.
//!
//! A backup copies each file from one read snapshot while a server may keep writing; it takes no
//! lock. The manifest is written last: a backup without it was interrupted and is refused. A
//! restore begins a new epoch: the positions in the manifest become the ends of the past epochs, so
//! receipts and tokens issued after the backup are recognised. The search index and the counts are
//! not in a backup; they are rebuilt, because they belong to a different epoch.
//!
//! How it fails: with an [`OpenError`]; an interrupted backup or restore is never served.

use std::fs::File;
use std::path::Path;

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use tagfast_resilience::Clock;

use crate::directory::{
    self, DirectoryLock, OpenError, create_dir, file_path, io, sqlite, sync_dir,
};
use crate::manifest::{self, Manifest};
use crate::schema;

/// Small files of a data directory that are copied as they are.
const EXTRA_FILES: &[&str] = &["token.key"];
/// Pages copied between two progress reports: 4 MB.
const PAGES_PER_STEP: i32 = 1024;

/// The result of a backup or restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupReport {
    /// Files copied.
    pub files: usize,
    /// Bytes copied.
    pub bytes: u64,
}

fn damaged(file: &Path, detail: impl Into<String>) -> OpenError {
    OpenError::Damaged { file: file.to_owned(), detail: detail.into() }
}

fn refuse_used(dir: &Path) -> Result<(), OpenError> {
    let used = match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(io("look into", dir)(e)),
    };
    if used { Err(OpenError::NotEmpty { dir: dir.to_owned() }) } else { Ok(()) }
}

/// Progress over several files: pages done, total pages.
struct BackupProgress<'a> {
    report: &'a dyn Fn(u64, u64),
    done: u64,
    total: u64,
}

impl BackupProgress<'_> {
    fn of<'a>(
        files: &[std::path::PathBuf],
        report: &'a dyn Fn(u64, u64),
    ) -> Result<BackupProgress<'a>, OpenError> {
        let mut total = 0;
        for file in files {
            total +=
                pages(&schema::open_reader(file, 1 << 20).map_err(sqlite("open", file))?, file)?;
        }
        report(0, total);
        Ok(BackupProgress { report, done: 0, total })
    }

    fn at(&self, done_in_file: u64) {
        // Files may grow while they are copied.
        let done = self.done + done_in_file;
        (self.report)(done, self.total.max(done));
    }
}

fn pages(conn: &Connection, file: &Path) -> Result<u64, OpenError> {
    let pages: i64 = conn
        .pragma_query_value(None, "page_count", |row| row.get(0))
        .map_err(sqlite("read", file))?;
    Ok(pages.unsigned_abs())
}

/// Copies the data directory into `target`, which must be absent or empty; a server may be running.
/// `progress` receives (pages done, total pages).
///
/// # Errors
///
/// [`OpenError::NotEmpty`], [`OpenError::Damaged`], or the error of the operating system or SQLite.
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
    let created_at = clock.now_ms();
    let (files, epoch) = {
        let conn = schema::open_reader(&first, 1 << 20).map_err(sqlite("open", &first))?;
        let files = schema::meta(&conn, "files")
            .map_err(sqlite("read", &first))?
            .and_then(|n| n.parse().ok());
        let epoch = directory::newest(&conn).map_err(sqlite("read", &first))?;
        let files: usize =
            files.ok_or_else(|| damaged(&first, "its number of files is missing"))?;
        (files, epoch.ok_or_else(|| damaged(&first, "its epoch is missing"))?)
    };
    let sources: Vec<_> = (0..files).map(|n| file_path(data_dir, n)).collect();
    let mut pages = BackupProgress::of(&sources, progress)?;
    let (mut positions, mut bytes) = (Vec::new(), 0);
    for (n, from) in sources.iter().enumerate() {
        let to = file_path(target, n);
        copy(from, &to, &mut pages)?;
        // Read from the copy: exactly the snapshot's position.
        let copied = schema::open_reader(&to, 1 << 20).map_err(sqlite("open", &to))?;
        positions.push(schema::last_position(&copied).map_err(sqlite("read", &to))?);
        bytes += sync_file(&to)?;
    }
    copy_extra_files(data_dir, target)?;
    sync_dir(target)?;
    Manifest::new(created_at, epoch, positions).write(target)?;
    sync_dir(target)?;
    Ok(BackupReport { files, bytes })
}

/// Restores a backup into `data_dir`, which must be absent or empty, and begins a new epoch.
///
/// # Errors
///
/// [`OpenError::NotABackup`], [`OpenError::NotEmpty`], [`OpenError::Newer`],
/// [`OpenError::Damaged`], or the error of the operating system or SQLite.
pub fn restore(
    backup_dir: &Path,
    data_dir: &Path,
    clock: &dyn Clock,
    progress: &dyn Fn(u64, u64),
) -> Result<BackupReport, OpenError> {
    let manifest = Manifest::read(backup_dir)?;
    let files = manifest.positions.len();
    let sources: Vec<_> = (0..files).map(|n| file_path(backup_dir, n)).collect();
    for (file, position) in sources.iter().zip(&manifest.positions) {
        verify(file, *position)?;
    }
    refuse_used(data_dir)?;
    create_dir(data_dir)?;
    let lock = DirectoryLock::take(data_dir)?;
    copy_extra_files(backup_dir, data_dir)?;
    let mut pages = BackupProgress::of(&sources, progress)?;
    let mut bytes = 0;
    // The first file is restored last: a directory without it is refused, so an interrupted restore
    // is never served.
    for (n, from) in sources.iter().enumerate().rev() {
        let to = file_path(data_dir, n);
        let part = to.with_extension("part");
        copy(from, &part, &mut pages)?;
        let mut conn = Connection::open(&part).map_err(sqlite("open", &part))?;
        // The backup may have an older schema version.
        schema::migrate(&mut conn, schema::MIGRATIONS).map_err(sqlite("migrate", &part))?;
        // Group positions belong to sinks of the old epoch.
        conn.execute("DELETE FROM bus_offset", []).map_err(sqlite("prepare", &part))?;
        schema::set_meta(&conn, "clean", "1").map_err(sqlite("prepare", &part))?;
        if n == 0 {
            directory::mint(&conn, clock.now_ms(), &manifest.positions)
                .map_err(sqlite("begin an epoch in", &part))?;
        }
        conn.close().map_err(|(_, e)| e).map_err(sqlite("close", &part))?;
        bytes += sync_file(&part)?;
        std::fs::rename(&part, &to).map_err(io("rename to", &to))?;
        sync_dir(data_dir)?;
    }
    drop(lock);
    Ok(BackupReport { files, bytes })
}

/// Checks that a backup file is intact, of a known version, and the one named in the manifest.
fn verify(file: &Path, position: u64) -> Result<(), OpenError> {
    if !file.is_file() {
        return Err(damaged(file, "the file is missing"));
    }
    directory::quick_check(file)?;
    let conn = schema::open_reader(file, 1 << 20).map_err(sqlite("open", file))?;
    let found = schema::version(&conn).map_err(sqlite("read", file))?;
    if found > schema::VERSION {
        return Err(OpenError::Newer { file: file.to_owned(), found, known: schema::VERSION });
    }
    let found_position = schema::last_position(&conn).map_err(sqlite("read", file))?;
    if found_position != position {
        return Err(damaged(
            file,
            format!("its position is {found_position}, {} says {position}", manifest::NAME),
        ));
    }
    Ok(())
}

/// Copies a database from one read snapshot.
fn copy(from: &Path, to: &Path, pages: &mut BackupProgress<'_>) -> Result<(), OpenError> {
    let source = schema::open_reader(from, 1 << 20).map_err(sqlite("open", from))?;
    // An open read transaction pins the snapshot; otherwise every commit of the server would
    // restart the copy.
    source.execute_batch("BEGIN; SELECT count(*) FROM meta;").map_err(sqlite("read", from))?;
    let mut target = Connection::open(to).map_err(sqlite("create", to))?;
    {
        let backup = Backup::new(&source, &mut target).map_err(sqlite("copy", from))?;
        loop {
            let step = backup.step(PAGES_PER_STEP).map_err(sqlite("copy", from))?;
            let p = backup.progress();
            pages.at((p.pagecount - p.remaining).unsigned_abs().into());
            if matches!(step, StepResult::Done) {
                pages.done += u64::from(p.pagecount.unsigned_abs());
                break;
            }
            if !matches!(step, StepResult::More) {
                // Busy: the server is about to release its lock.
                std::thread::yield_now();
            }
        }
    }
    // A copy in WAL mode would leave a second file.
    target.pragma_update(None, "journal_mode", "DELETE").map_err(sqlite("close", to))?;
    target.close().map_err(|(_, e)| e).map_err(sqlite("close", to))
}

fn copy_extra_files(from_dir: &Path, to_dir: &Path) -> Result<(), OpenError> {
    for name in EXTRA_FILES {
        let (from, to) = (from_dir.join(name), to_dir.join(name));
        if from.is_file() {
            // Permissions are copied too: a key stays private.
            std::fs::copy(&from, &to).map_err(io("copy to", &to))?;
            sync_file(&to)?;
        }
    }
    Ok(())
}

fn sync_file(path: &Path) -> Result<u64, OpenError> {
    let sync = || {
        let file = File::open(path)?;
        file.sync_all()?;
        Ok(file.metadata()?.len())
    };
    sync().map_err(io("sync", path))
}
