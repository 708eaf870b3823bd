//! Checks a backup against its manifest: every file, every byte, nothing missing, nothing more.
//!
//! How it fails: with [`OpenError::BadBackup`], which lists all faults. The files of a backup are
//! opened for reading only.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::backup_fault::{BackupFault, BackupFaults};
use crate::directory::{self, OpenError, file_path, io, sqlite};
use crate::manifest::{self, BackupFile, ContentSum, Manifest};
use crate::schema;

/// Bytes read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Progress in bytes over several passes over several files.
pub(crate) struct ByteProgress<'a> {
    report: &'a dyn Fn(u64, u64),
    done: u64,
    total: u64,
}

impl<'a> ByteProgress<'a> {
    pub(crate) fn new(report: &'a dyn Fn(u64, u64)) -> Self {
        Self { report, done: 0, total: 0 }
    }

    /// Adds work that is known now.
    pub(crate) fn expect(&mut self, bytes: u64) {
        self.total += bytes;
        self.show(0);
    }

    /// Adds work that is done.
    pub(crate) fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        self.show(0);
    }

    /// Shows work that is done in part: `bytes` of what is added as a whole later.
    pub(crate) fn show(&self, bytes: u64) {
        // Files may grow while they are copied.
        let done = self.done + bytes;
        (self.report)(done, self.total.max(done));
    }
}

/// Length and SHA-256 of what `from` holds; what is read is written to `to`.
pub(crate) fn sum(
    from: &mut impl Read,
    to: &mut impl Write,
    progress: &mut ByteProgress<'_>,
) -> std::io::Result<ContentSum> {
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => return Ok(ContentSum { bytes, sha256: hash.finalize().into() }),
            Ok(read) => read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hash.update(&chunk[..read]);
        to.write_all(&chunk[..read])?;
        bytes += read as u64;
        progress.advance(read as u64);
    }
}

/// Length and SHA-256 of a file.
pub(crate) fn sum_of(
    path: &Path,
    progress: &mut ByteProgress<'_>,
) -> Result<ContentSum, OpenError> {
    let sum = File::open(path).and_then(|mut file| sum(&mut file, &mut std::io::sink(), progress));
    sum.map_err(io("read", path))
}

/// The error of one file.
pub(crate) fn bad(dir: &Path, file: &str, fault: BackupFault) -> OpenError {
    let faults = BackupFaults(vec![(file.to_owned(), fault)]);
    OpenError::BadBackup { dir: dir.to_owned(), faults }
}

/// Reads the manifest of a backup and checks everything that it lists.
pub(crate) fn check(dir: &Path, progress: &mut ByteProgress<'_>) -> Result<Manifest, OpenError> {
    let mut manifest = Manifest::read(dir)?;
    let mut faults = unlisted(dir, &mut manifest)?;
    for file in &manifest.files {
        progress.expect(file.sum.map_or(0, |sum| sum.bytes));
    }
    for file in &manifest.files {
        if let Some(fault) = check_content(dir, file, progress)? {
            faults.push((file.name.clone(), fault));
        }
    }
    if faults.is_empty() {
        for (file, position) in manifest.store_files() {
            if let Some(fault) = check_database(&dir.join(&file.name), position)? {
                faults.push((file.name.clone(), fault));
            }
        }
    }
    if faults.is_empty() {
        return Ok(manifest);
    }
    Err(OpenError::BadBackup { dir: dir.to_owned(), faults: BackupFaults(faults) })
}

/// Every name in the directory that the manifest does not list. SQLite would read a log beside a
/// store file as its newest part.
fn unlisted(dir: &Path, manifest: &mut Manifest) -> Result<Vec<(String, BackupFault)>, OpenError> {
    let mut faults = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io("look into", dir))? {
        let name = entry.map_err(io("look into", dir))?.file_name();
        let name = name.to_string_lossy().into_owned();
        if name == manifest::NAME || manifest.files.iter().any(|file| file.name == name) {
            continue;
        }
        if name == manifest::KEY_NAME && !manifest.has_checksums() {
            // Format 1 does not say whether there was one.
            manifest.files.push(BackupFile { name, sum: None, position: None });
        } else {
            faults.push((name, BackupFault::Unlisted));
        }
    }
    faults.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(faults)
}

fn check_content(
    dir: &Path,
    file: &BackupFile,
    progress: &mut ByteProgress<'_>,
) -> Result<Option<BackupFault>, OpenError> {
    let path = dir.join(&file.name);
    let length = match std::fs::metadata(&path) {
        Ok(meta) if meta.is_file() => meta.len(),
        Ok(_) => return Ok(Some(BackupFault::NotAFile)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Some(BackupFault::Missing));
        }
        Err(e) => return Err(io("look at", &path)(e)),
    };
    let Some(listed) = file.sum else { return Ok(None) };
    if length != listed.bytes {
        return Ok(Some(BackupFault::Length { found: length, listed: listed.bytes }));
    }
    Ok((sum_of(&path, progress)? != listed).then_some(BackupFault::Checksum))
}

/// Whether a store file is an intact database of a known version with this newest position.
fn check_database(path: &Path, listed: u64) -> Result<Option<BackupFault>, OpenError> {
    match directory::quick_check(path) {
        Ok(()) => {}
        Err(OpenError::Damaged { detail, .. }) => return Ok(Some(BackupFault::Database(detail))),
        Err(e) => return Err(e),
    }
    let conn = schema::open_reader(path, 1 << 20).map_err(sqlite("open", path))?;
    let found = schema::version(&conn).map_err(sqlite("read", path))?;
    if found > schema::VERSION {
        return Ok(Some(BackupFault::Schema { found, known: schema::VERSION }));
    }
    let found = schema::last_position(&conn).map_err(sqlite("read", path))?;
    Ok((found != listed).then_some(BackupFault::Position { found, listed }))
}

/// What a backup or restore has made so far: removed again unless it is kept.
pub(crate) struct Unfinished<'a> {
    dir: &'a Path,
    files: usize,
    /// Whether the directory itself was made.
    made_dir: bool,
    kept: bool,
}

impl<'a> Unfinished<'a> {
    /// `dir` was empty before, or is made if `made_dir`; `files` store files are made in it.
    pub(crate) fn new(dir: &'a Path, files: usize, made_dir: bool) -> Self {
        Self { dir, files, made_dir, kept: false }
    }

    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // The first file last: a directory without it is never served. What cannot be removed is
        // left; without manifest or first file it is refused.
        let stores = (0..self.files).rev().map(|n| file_path(self.dir, n));
        let parts = stores.flat_map(|path| {
            let journal = |p: &Path| {
                let mut name = p.as_os_str().to_owned();
                name.push("-journal");
                std::path::PathBuf::from(name)
            };
            let part = path.with_extension("part");
            [journal(&part), journal(&path), part, path]
        });
        let others =
            ["lock", manifest::NAME, manifest::PART_NAME, manifest::KEY_NAME, "token.part"];
        let others = others.iter().map(|name| self.dir.join(name));
        for path in others.chain(parts) {
            let _ = std::fs::remove_file(path);
        }
        if self.made_dir {
            let _ = std::fs::remove_dir(self.dir);
        }
    }
}
