//! Online backup, its check, and restore.
//!
//! A backup copies each file from one read snapshot while a server may keep writing; it takes no
//! lock. The manifest is written last, with the SHA-256 of every file: a backup without it was
//! interrupted and is refused. A restore compares every byte of the backup with the manifest before
//! it makes anything, and again while it copies; then it begins a new epoch: the positions in the
//! manifest become the ends of the past epochs, so receipts and tokens issued after the backup are
//! recognised. The search index and the counts are not in a backup; they are rebuilt, because they
//! belong to a different epoch.
//!
//! How it fails: with an [`OpenError`]. What a failed backup or restore made is removed; an
//! interrupted one is never used.

use std::fs::File;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use tagfast_domain::Epoch;
use tagfast_resilience::{Clock, private_files};

use crate::backup_check::{self, ByteProgress, Unfinished, bad, sum, sum_of};
use crate::backup_fault::BackupFault;
use crate::directory::{
    self, DirectoryLock, OpenError, file_path, io, make_private, sqlite, store_file_name, sync_dir,
};
use crate::manifest::{self, BackupFile, KEY_NAME, Manifest};
use crate::schema;

/// Pages copied between two progress reports: 4 MB.
const PAGES_PER_STEP: i32 = 1024;

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupReport {
    /// Store files.
    pub files: usize,
    /// Bytes of all files, in a restored data directory of its store files.
    pub bytes: u64,
    /// When the backup began, Unix ms.
    pub created_at: i64,
    /// Whether the signing key of tokens, receipts and cursors is in it.
    pub signing_key: bool,
    /// Whether every byte was compared with the manifest; false for a backup of an earlier version,
    /// whose manifest has no checksums.
    pub checksums: bool,
    /// Whether other users could use the directory that was filled, which was empty; they no longer
    /// can.
    pub made_private: bool,
}

impl BackupReport {
    fn of(manifest: &Manifest, bytes: u64, made_private: bool) -> Self {
        Self {
            files: manifest.store_files().count(),
            bytes,
            created_at: manifest.created_at,
            signing_key: manifest.files.iter().any(|file| file.name == KEY_NAME),
            checksums: manifest.has_checksums(),
            made_private,
        }
    }
}

fn refuse_used(dir: &Path) -> Result<(), OpenError> {
    let used = match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(io("look into", dir)(e)),
    };
    if used { Err(OpenError::NotEmpty { dir: dir.to_owned() }) } else { Ok(()) }
}

/// The number of files and the epoch of a data directory.
fn describe(data_dir: &Path) -> Result<(usize, Epoch), OpenError> {
    let first = file_path(data_dir, 0);
    let damaged =
        |detail: &str| OpenError::Damaged { file: first.clone(), detail: detail.to_owned() };
    if !first.is_file() {
        return Err(damaged("there is no such file: not a data directory"));
    }
    let conn = schema::open_reader(&first, 1 << 20).map_err(sqlite("open", &first))?;
    let files = schema::meta(&conn, "files").map_err(sqlite("read", &first))?;
    let files = files.and_then(|n| n.parse().ok());
    let epoch = directory::newest(&conn).map_err(sqlite("read", &first))?;
    Ok((
        files.ok_or_else(|| damaged("its number of files is missing"))?,
        epoch.ok_or_else(|| damaged("its epoch is missing"))?,
    ))
}

/// Copies the data directory into `target`, which must be absent or empty; a server may be running.
/// `progress` receives (bytes done, bytes in all); each byte is copied, then read again.
///
/// # Errors
///
/// [`OpenError::NotEmpty`], [`OpenError::Damaged`], [`OpenError::NotPrivate`], or the error of the
/// operating system or SQLite.
pub fn backup(
    data_dir: &Path,
    target: &Path,
    clock: &dyn Clock,
    progress: &dyn Fn(u64, u64),
) -> Result<BackupReport, OpenError> {
    let created_at = clock.now_ms();
    let (files, epoch) = describe(data_dir)?;
    refuse_used(target)?;
    let made_dir = !target.exists();
    let made_private = make_private(target)?;
    let unfinished = Unfinished::new(target, files, made_dir);
    let mut progress = ByteProgress::new(progress);
    let sources: Vec<PathBuf> = (0..files).map(|n| file_path(data_dir, n)).collect();
    for from in &sources {
        let source = schema::open_reader(from, 1 << 20).map_err(sqlite("open", from))?;
        progress.expect(2 * database_bytes(&source, from)?);
    }
    let mut manifest = Manifest { created_at, files: Vec::new() };
    for (n, from) in sources.iter().enumerate() {
        let to = file_path(target, n);
        copy_database(from, &to, &mut progress)?;
        // A copy of damaged pages would be of no use later.
        directory::quick_check(&to).map_err(|e| of_source(e, from))?;
        let sum = Some(sum_of(&to, &mut progress)?);
        // Read from the copy: exactly the snapshot's position.
        let copied = schema::open_reader(&to, 1 << 20).map_err(sqlite("open", &to))?;
        let position = Some(schema::last_position(&copied).map_err(sqlite("read", &to))?);
        manifest.files.push(BackupFile { name: store_file_name(n), sum, position });
        sync_file(&to)?;
    }
    let key = data_dir.join(KEY_NAME);
    if key.try_exists().map_err(io("look at", &key))? {
        let sum = Some(copy_file(&key, &target.join(KEY_NAME), &mut progress)?);
        manifest.files.push(BackupFile { name: KEY_NAME.to_owned(), sum, position: None });
    }
    sync_dir(target)?;
    manifest::write(target, &manifest, epoch)?;
    sync_dir(target)?;
    unfinished.keep();
    let bytes = manifest.files.iter().filter_map(|file| file.sum).map(|sum| sum.bytes).sum();
    Ok(BackupReport::of(&manifest, bytes, made_private))
}

/// Damage of a copy is damage of what was copied.
fn of_source(error: OpenError, from: &Path) -> OpenError {
    if let OpenError::Damaged { detail, .. } = error {
        OpenError::Damaged { file: from.to_owned(), detail }
    } else {
        error
    }
}

/// Compares every file of a backup with its manifest. `progress` receives (bytes done, bytes in
/// all).
///
/// # Errors
///
/// [`OpenError::NotABackup`], [`OpenError::BadBackup`], or the error of the operating system or
/// SQLite.
pub fn verify(backup_dir: &Path, progress: &dyn Fn(u64, u64)) -> Result<BackupReport, OpenError> {
    let manifest = backup_check::check(backup_dir, &mut ByteProgress::new(progress))?;
    let mut bytes = 0;
    for file in &manifest.files {
        let path = backup_dir.join(&file.name);
        bytes += std::fs::metadata(&path).map_err(io("look at", &path))?.len();
    }
    Ok(BackupReport::of(&manifest, bytes, false))
}

/// Restores a backup into `data_dir`, which must be absent or empty, and begins a new epoch.
/// `progress` receives (bytes done, bytes in all); each byte is checked, then copied.
///
/// # Errors
///
/// [`OpenError::NotABackup`] and [`OpenError::BadBackup`] before anything is made;
/// [`OpenError::NotEmpty`], [`OpenError::NotPrivate`], or the error of the operating system or
/// SQLite.
pub fn restore(
    backup_dir: &Path,
    data_dir: &Path,
    clock: &dyn Clock,
    progress: &dyn Fn(u64, u64),
) -> Result<BackupReport, OpenError> {
    let mut progress = ByteProgress::new(progress);
    let manifest = backup_check::check(backup_dir, &mut progress)?;
    refuse_used(data_dir)?;
    let made_dir = !data_dir.exists();
    let made_private = make_private(data_dir)?;
    let positions: Vec<u64> = manifest.store_files().map(|(_, position)| position).collect();
    let unfinished = Unfinished::new(data_dir, positions.len(), made_dir);
    let lock = DirectoryLock::take(data_dir)?;
    for file in &manifest.files {
        progress.expect(file.sum.map_or(0, |sum| sum.bytes));
    }
    let mut bytes = 0;
    // The key first, the first store file last: a directory without that is refused, so an
    // interrupted restore is never served.
    for (n, file) in manifest.files.iter().enumerate().rev() {
        let (from, to) = (backup_dir.join(&file.name), data_dir.join(&file.name));
        let part = to.with_extension("part");
        let copied = copy_file(&from, &part, &mut progress)?;
        if file.sum.is_some_and(|listed| listed != copied) {
            // It was changed after it was checked.
            return Err(bad(backup_dir, &file.name, BackupFault::Checksum));
        }
        if file.position.is_some() {
            let now = clock.now_ms();
            let epoch_ends = (n == 0).then_some(positions.as_slice());
            prepare(&part, now, epoch_ends)?;
            bytes += sync_file(&part)?;
        }
        std::fs::rename(&part, &to).map_err(io("rename to", &to))?;
        sync_dir(data_dir)?;
    }
    drop(lock);
    unfinished.keep();
    Ok(BackupReport::of(&manifest, bytes, made_private))
}

/// Makes a copied store file ready to be served; the first one begins an epoch after those that
/// ended at `epoch_ends`.
fn prepare(path: &Path, now: i64, epoch_ends: Option<&[u64]>) -> Result<(), OpenError> {
    let mut conn = Connection::open(path).map_err(sqlite("open", path))?;
    // The backup may have an older schema version.
    schema::migrate(&mut conn, schema::MIGRATIONS).map_err(sqlite("migrate", path))?;
    // Group positions belong to sinks of the old epoch.
    conn.execute("DELETE FROM bus_offset", []).map_err(sqlite("prepare", path))?;
    schema::set_meta(&conn, "clean", "1").map_err(sqlite("prepare", path))?;
    if let Some(ends) = epoch_ends {
        directory::mint(&conn, now, ends).map_err(sqlite("begin an epoch in", path))?;
    }
    conn.close().map_err(|(_, e)| e).map_err(sqlite("close", path))
}

fn page_bytes(conn: &Connection, file: &Path) -> Result<u64, OpenError> {
    let bytes: i64 = conn
        .pragma_query_value(None, "page_size", |row| row.get(0))
        .map_err(sqlite("read", file))?;
    Ok(bytes.unsigned_abs())
}

fn database_bytes(conn: &Connection, file: &Path) -> Result<u64, OpenError> {
    let pages: i64 = conn
        .pragma_query_value(None, "page_count", |row| row.get(0))
        .map_err(sqlite("read", file))?;
    Ok(pages.unsigned_abs() * page_bytes(conn, file)?)
}

/// Copies a database from one read snapshot.
fn copy_database(from: &Path, to: &Path, progress: &mut ByteProgress<'_>) -> Result<(), OpenError> {
    let source = schema::open_reader(from, 1 << 20).map_err(sqlite("open", from))?;
    // An open read transaction pins the snapshot; otherwise every commit of the server would
    // restart the copy.
    source.execute_batch("BEGIN; SELECT count(*) FROM meta;").map_err(sqlite("read", from))?;
    let page_bytes = page_bytes(&source, from)?;
    private_files::create_file(to).map_err(io("create", to))?;
    let mut target = Connection::open(to).map_err(sqlite("create", to))?;
    {
        let backup = Backup::new(&source, &mut target).map_err(sqlite("copy", from))?;
        loop {
            let step = backup.step(PAGES_PER_STEP).map_err(sqlite("copy", from))?;
            let p = backup.progress();
            let copied = u64::from((p.pagecount - p.remaining).unsigned_abs()) * page_bytes;
            if matches!(step, StepResult::Done) {
                progress.advance(copied);
                break;
            }
            progress.show(copied);
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

/// Copies a file durably; the copy is its owner's alone.
fn copy_file(
    from: &Path,
    to: &Path,
    progress: &mut ByteProgress<'_>,
) -> Result<manifest::ContentSum, OpenError> {
    let mut source = File::open(from).map_err(io("open", from))?;
    let mut target = private_files::create_file(to).map_err(io("create", to))?;
    let copied = sum(&mut source, &mut target, progress).map_err(io("copy to", to))?;
    target.sync_all().map_err(io("sync", to))?;
    Ok(copied)
}

fn sync_file(path: &Path) -> Result<u64, OpenError> {
    let sync = || {
        let file = File::open(path)?;
        file.sync_all()?;
        Ok(file.metadata()?.len())
    };
    sync().map_err(io("sync", path))
}
