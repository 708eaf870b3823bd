//! A data directory: its lock, schema version, epoch and integrity.
//!
//! Opening migrates files of an older schema version and logs it. After an unclean stop every file
//! is checked before it serves.
//!
//! How it fails: opening refuses a directory that it cannot serve correctly and tells the operator
//! what to do: it is in use (with the pid), its version is newer, or a file is missing, truncated
//! or damaged.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use tagfast_domain::{Epoch, EpochId, EpochOrdinal, Limits, UnixMillis};
use tagfast_resilience::Clock;
use tagfast_resilience::private_files::{self, NotPrivate};

use crate::backup_fault::BackupFaults;
use crate::schema;

/// Number of files of a new data directory: their fsyncs overlap while batches stay above 10
/// writes.
pub const DEFAULT_FILES: u8 = 8;
/// Maximum number of files of a data directory.
pub(crate) const FILES_MAX: usize = 64;
/// Names in a data directory besides the store files.
const OWN_NAMES: &[&str] =
    &[LOCK_NAME, "cluster.lock", "demo-loaded", "token.key", "token.key.part", "popular", "search"];
const LOCK_NAME: &str = "lock";

/// Options of opening a store.
#[derive(Clone)]
pub struct OpenOptions {
    /// The data directory; created when absent.
    pub data_dir: PathBuf,
    /// Limits of the domain.
    pub limits: Limits,
    /// Page cache of all connections together, in bytes. Too low: hot documents are read from the
    /// operating system again and again; too high: memory is missing for search and the operating
    /// system's cache.
    pub cache_bytes: usize,
    /// The source of wall time.
    pub clock: Arc<dyn Clock>,
    /// Number of files of a NEW directory; an existing one keeps its number.
    pub files: u8,
    /// Maximum lag of a consumer group, in bytes of events per file, before it must rebuild. Too
    /// low: a rebuild after every longer pause; too high: a stopped consumer fills the disk.
    pub expire_bytes: u64,
}

impl OpenOptions {
    /// The default options.
    pub fn new(data_dir: PathBuf, clock: Arc<dyn Clock>) -> Self {
        Self {
            data_dir,
            limits: Limits::default(),
            cache_bytes: 64 << 20,
            clock,
            files: DEFAULT_FILES,
            expire_bytes: 2 << 30,
        }
    }
}

/// Why a data directory could not be opened, backed up or restored.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A different process has it open.
    #[error("the data directory {} is in use by process {pid}; stop it first or use a different --data-dir", .dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// Process id of the owner; 0: it has not written it yet.
        pid: u32,
    },
    /// A newer program wrote it.
    #[error("{} has schema version {found}, this program knows up to {known}; run a newer tagfast", .file.display())]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its schema version.
        found: i64,
        /// The newest version this program knows.
        known: i64,
    },
    /// A file is missing, truncated, damaged, or not a Tagfast file.
    #[error("{} is damaged: {detail}; restore a backup with `tagfast restore`", .file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// The kind of damage.
        detail: String,
    },
    /// The target of a backup or a restore is not empty.
    #[error("{} is not empty; name a directory that is empty or does not exist yet", .dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory is not a finished backup.
    #[error("{} is not a finished backup: it has no manifest.json", .dir.display())]
    NotABackup {
        /// The directory.
        dir: PathBuf,
    },
    /// Files of a backup are missing, changed, or not its own.
    #[error("the backup {} cannot be used", .dir.display())]
    BadBackup {
        /// The directory of the backup.
        dir: PathBuf,
        /// What is wrong with which file.
        #[source]
        faults: BackupFaults,
    },
    /// Other users may use a file of the data directory.
    #[error("the data directory is not private")]
    NotPrivate(#[from] NotPrivate),
    /// The operating system returned an error.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// The attempted action.
        doing: &'static str,
        /// Its object.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// SQLite returned an error.
    #[error("cannot {doing} {}", .file.display())]
    Sqlite {
        /// The attempted action.
        doing: &'static str,
        /// The file.
        file: PathBuf,
        /// SQLite's error.
        #[source]
        source: rusqlite::Error,
    },
}

pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { doing, path, source }
}

pub(crate) fn sqlite(
    doing: &'static str,
    file: &Path,
) -> impl FnOnce(rusqlite::Error) -> OpenError {
    let file = file.to_owned();
    move |source| {
        if crate::error::is_damaged(&source) {
            OpenError::Damaged { file, detail: source.to_string() }
        } else {
            OpenError::Sqlite { doing, file, source }
        }
    }
}

/// The path of a store file.
pub(crate) fn file_path(dir: &Path, index: usize) -> PathBuf {
    dir.join(store_file_name(index))
}

/// The name of a store file.
pub(crate) fn store_file_name(index: usize) -> String {
    format!("store-{index}.sqlite")
}

/// Whether a name in a data directory is one of this program's files, or of what it derives.
fn is_ours(name: &str) -> bool {
    name.starts_with("store-") || OWN_NAMES.contains(&name)
}

/// The lock of a directory, held until this is dropped.
pub(crate) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    pub(crate) fn take(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join(LOCK_NAME);
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io("open the lock file", &path))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // Without a readable pid the directory is still in use.
                let _ = file.read_to_string(&mut pid);
                return Err(OpenError::Locked {
                    dir: dir.to_owned(),
                    pid: pid.trim().parse().unwrap_or(0),
                });
            }
            Err(errno) => return Err(io("lock", &path)(errno.into())),
        }
        let write_pid = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write_pid(&mut file).map_err(io("write the lock file", &path))?;
        Ok(Self { _file: file })
    }
}

/// An opened and intact directory.
pub(crate) struct Directory {
    pub(crate) lock: DirectoryLock,
    pub(crate) epoch: Epoch,
    /// Past epochs with their epoch ends: the position per file up to which they are part of the
    /// current history.
    pub(crate) epoch_ends: Vec<(EpochId, Vec<u64>)>,
    pub(crate) writers: Vec<Connection>,
}

/// Opens or creates a data directory.
pub(crate) fn open(options: &OpenOptions) -> Result<Directory, OpenError> {
    let dir = &options.data_dir;
    make_private(dir)?;
    let lock = DirectoryLock::take(dir)?;
    let first = file_path(dir, 0);
    check_first(dir, &first)?;
    let cache = writer_cache(options.cache_bytes, usize::from(options.files));
    let (mut conn, found) = prepare_file(&first, cache)?;
    let mut found_versions = vec![found];
    let known = schema::meta(&conn, "files").map_err(sqlite("read", &first))?;
    let (files, created) = match known.as_deref().map(str::parse::<usize>) {
        Some(Ok(n)) if (1..=FILES_MAX).contains(&n) => {
            (n, schema::meta(&conn, "created").map_err(sqlite("read", &first))?.is_some())
        }
        Some(_) => {
            return Err(OpenError::Damaged {
                file: first,
                detail: "its number of files is not a number".to_owned(),
            });
        }
        None => {
            let n = usize::from(options.files.clamp(1, FILES_MAX as u8));
            schema::set_meta(&conn, "files", &n.to_string()).map_err(sqlite("write", &first))?;
            (n, false)
        }
    };
    if created {
        (0..files).try_for_each(|n| check_present(&file_path(dir, n)))?;
    }
    let epoch = newest_or_minted(&mut conn, options.clock.now_ms())
        .map_err(sqlite("read the epoch of", &first))?;
    let epoch_ends = read_epoch_ends(&conn).map_err(sqlite("read the epochs of", &first))?;

    let mut writers = vec![conn];
    for n in 1..files {
        let (conn, found) = prepare_file(&file_path(dir, n), cache)?;
        writers.push(conn);
        found_versions.push(found);
    }
    log_migration(dir, &found_versions);
    check_all(dir, &writers)?;
    for (n, conn) in writers.iter().enumerate() {
        let path = file_path(dir, n);
        schema::set_meta(conn, "clean", "0").map_err(sqlite("write", &path))?;
    }
    if !created {
        schema::set_meta(&writers[0], "created", "1").map_err(sqlite("write", &first))?;
        sync_dir(dir)?;
    }
    Ok(Directory { lock, epoch, epoch_ends, writers })
}

/// Creates a data directory if there is none; one that other users may use is made private. Returns
/// whether one was.
///
/// # Errors
///
/// [`OpenError::NotPrivate`], or the error of the operating system.
pub fn make_private(dir: &Path) -> Result<bool, OpenError> {
    private_files::create_dir(dir).map_err(io("create", dir))?;
    let narrowed = private_files::narrow(dir, is_ours)?;
    if let Some(first) = narrowed.first() {
        tracing::warn!(
            dir = %dir.display(),
            paths = narrowed.len(),
            first = %first.display(),
            "other users could use the data directory; it is its owner's alone now"
        );
    }
    Ok(!narrowed.is_empty())
}

/// Whether [`make_private`] would succeed for a directory that exists; changes nothing.
///
/// # Errors
///
/// [`OpenError::NotPrivate`], or the error of the operating system.
pub fn check_private(dir: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(dir).map_err(io("look at", dir))?;
    if meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    let names = std::fs::read_dir(dir).map_err(io("look into", dir))?.filter_map(Result::ok);
    let names: Vec<_> = names.map(|entry| entry.file_name()).collect();
    let used = !names.is_empty() && !names.iter().any(|n| n.to_str().is_some_and(is_ours));
    let user = rustix::process::geteuid();
    let foreign = !user.is_root() && meta.uid() != user.as_raw();
    if meta.mode() & 0o1000 == 0 && !used && !foreign {
        return Ok(());
    }
    let why = if foreign { "it belongs to a different user" } else { "it is used otherwise too" };
    Err(NotPrivate {
        path: dir.to_owned(),
        mode: meta.mode() & 0o7777,
        source: std::io::Error::other(why),
    }
    .into())
}

pub(crate) fn sync_dir(dir: &Path) -> Result<(), OpenError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io("sync", dir))
}

/// The writer's share of the page cache: a quarter.
fn writer_cache(all: usize, files: usize) -> usize {
    all / 4 / files.max(1)
}

/// The first file describes the others. When it is missing and others exist, a new one would hide
/// them.
fn check_first(dir: &Path, first: &Path) -> Result<(), OpenError> {
    let others = (1..FILES_MAX).map(|n| file_path(dir, n)).any(|path| path.exists());
    if others { check_present(first) } else { Ok(()) }
}

/// SQLite treats an empty file as a new database; a created directory must not have one.
fn check_present(path: &Path) -> Result<(), OpenError> {
    let detail = match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() && meta.len() > 0 => return Ok(()),
        Ok(_) => "the file is empty",
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => "the file is missing",
        Err(e) => return Err(io("look at", path)(e)),
    };
    Err(OpenError::Damaged { file: path.to_owned(), detail: detail.to_owned() })
}

/// Logs that files of an older schema version were migrated.
fn log_migration(dir: &Path, found_versions: &[i64]) {
    let (older, to) = (1..schema::VERSION, schema::VERSION);
    if let Some(from) = found_versions.iter().copied().filter(|v| older.contains(v)).min() {
        tracing::info!(dir = %dir.display(), from, to, "data directory migrated to a newer schema");
    }
}

/// Opens one file, refuses a foreign or newer one, and migrates an older one. Returns the
/// connection and the schema version that was found; 0: the file is new.
fn prepare_file(path: &Path, cache_bytes: usize) -> Result<(Connection, i64), OpenError> {
    let before = std::fs::metadata(path).map(|m| m.len()).unwrap_or(0);
    if before == 0 && !path.exists() {
        // SQLite would make it readable by others, and gives its log the mode of the file.
        private_files::create_file(path).map_err(io("create", path))?;
    }
    let mut conn = schema::open_writer(path, cache_bytes).map_err(sqlite("open", path))?;
    let damaged = |detail: String| OpenError::Damaged { file: path.to_owned(), detail };
    let application: i32 = conn
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(sqlite("read", path))?;
    let found = schema::version(&conn).map_err(sqlite("read", path))?;
    if found > 0 && application != schema::APPLICATION_ID {
        return Err(damaged("it is not a tagfast file".to_owned()));
    }
    if found > schema::VERSION {
        return Err(OpenError::Newer { file: path.to_owned(), found, known: schema::VERSION });
    }
    if before > 0 {
        check_length(&conn, path, before)?;
    }
    schema::migrate(&mut conn, schema::MIGRATIONS).map_err(sqlite("migrate", path))?;
    Ok((conn, found))
}

/// Refuses a file that is shorter than its header says. With a WAL the newest pages may not be in
/// the file yet, so such a file is not checked.
fn check_length(conn: &Connection, path: &Path, length: u64) -> Result<(), OpenError> {
    let wal = path.with_extension("sqlite-wal");
    if std::fs::metadata(&wal).is_ok_and(|m| m.len() > 0) {
        return Ok(());
    }
    let pages: u64 = conn
        .pragma_query_value(None, "page_count", |row| row.get::<_, i64>(0))
        .map_err(sqlite("read", path))?
        .unsigned_abs();
    let page: u64 = conn
        .pragma_query_value(None, "page_size", |row| row.get::<_, i64>(0))
        .map_err(sqlite("read", path))?
        .unsigned_abs();
    if length < pages * page {
        let detail = format!("it has {length} bytes, its header says {}", pages * page);
        return Err(OpenError::Damaged { file: path.to_owned(), detail });
    }
    Ok(())
}

/// Checks every file that was not closed cleanly, in parallel.
fn check_all(dir: &Path, writers: &[Connection]) -> Result<(), OpenError> {
    let mut unclean = Vec::new();
    for (n, conn) in writers.iter().enumerate() {
        let path = file_path(dir, n);
        if schema::meta(conn, "clean").map_err(sqlite("read", &path))?.is_some_and(|v| v == "0") {
            unclean.push(path);
        }
    }
    if !unclean.is_empty() {
        tracing::warn!(files = unclean.len(), "unclean stop; checking the files");
    }
    std::thread::scope(|scope| {
        let checks: Vec<_> =
            unclean.iter().map(|path| scope.spawn(move || quick_check(path))).collect();
        checks.into_iter().try_for_each(|c| match c.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// `PRAGMA quick_check` of one file.
pub(crate) fn quick_check(path: &Path) -> Result<(), OpenError> {
    let conn = schema::open_reader(path, 4 << 20).map_err(sqlite("open", path))?;
    let result: String = conn
        .pragma_query_value(None, "quick_check", |row| row.get(0))
        .map_err(sqlite("check", path))?;
    if result == "ok" {
        Ok(())
    } else {
        Err(OpenError::Damaged { file: path.to_owned(), detail: result })
    }
}

fn random_id() -> Result<EpochId, rusqlite::Error> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|e| {
        rusqlite::Error::ToSqlConversionFailure(Box::new(std::io::Error::other(e.to_string())))
    })?;
    Ok(EpochId(id))
}

/// Mints the next epoch. `epoch_ends` are the positions per file at which the past epochs end.
pub(crate) fn mint(
    conn: &Connection,
    now: UnixMillis,
    epoch_ends: &[u64],
) -> rusqlite::Result<Epoch> {
    let newest: Option<i64> =
        conn.query_row("SELECT max(ordinal) FROM epoch", [], |row| row.get(0))?;
    let ordinal = newest.map_or(now, |n| now.max(n + 1));
    let id = random_id()?;
    let list = epoch_ends.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    // All past epochs end at the same place: later writes are not in this history.
    conn.execute("UPDATE epoch SET ends = ?1 WHERE ends IS NULL", [list])?;
    conn.execute(
        "INSERT INTO epoch (ordinal, id, minted_at, ends) VALUES (?1, ?2, ?3, NULL)",
        params![ordinal, id.0.as_slice(), now],
    )?;
    Ok(Epoch { id, ordinal: EpochOrdinal(ordinal.unsigned_abs()) })
}

fn newest_or_minted(conn: &mut Connection, now: UnixMillis) -> rusqlite::Result<Epoch> {
    match newest(conn)? {
        Some(epoch) => Ok(epoch),
        None => mint(conn, now, &[]),
    }
}

/// The newest epoch; `None`: there is none yet.
pub(crate) fn newest(conn: &Connection) -> rusqlite::Result<Option<Epoch>> {
    conn.query_row("SELECT ordinal, id FROM epoch ORDER BY ordinal DESC LIMIT 1", [], |row| {
        let ordinal: i64 = row.get(0)?;
        let id: [u8; 16] = row.get(1)?;
        Ok(Epoch { id: EpochId(id), ordinal: EpochOrdinal(ordinal.unsigned_abs()) })
    })
    .optional()
}

fn read_epoch_ends(conn: &Connection) -> rusqlite::Result<Vec<(EpochId, Vec<u64>)>> {
    let mut select = conn.prepare("SELECT id, ends FROM epoch WHERE ends IS NOT NULL")?;
    select
        .query_map([], |row| {
            let id: [u8; 16] = row.get(0)?;
            let list: String = row.get(1)?;
            Ok((EpochId(id), list.split(',').filter_map(|n| n.parse().ok()).collect()))
        })?
        .collect()
}
