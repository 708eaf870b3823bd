//! Files that a user named.
//!
//! A regular file is replaced when everything is written: a reader finds the old content or the
//! whole new one, never a part, and after an error the old one. Owner and mode stay; a new file
//! gets what the umask leaves; a symbolic link stays, and the file that it leads to is replaced.
//! Whatever is not a regular file (a pipe, a device, an open descriptor) is written through: it is
//! never replaced.
//!
//! It fails before anything is written when the file may not be written or replaced. The new
//! content waits in a file of the same folder, which is removed when this process gives up; only a
//! process that is killed leaves it behind (`.NAME.XXXXXX.part`).

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{Error, ErrorKind, Result, Write};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, fchown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Names of open descriptors, and folders of such names.
const DESCRIPTOR_NAMES: &[&str] = &["/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/proc"];
/// Mode of a new file before the umask.
const NEW_FILE_MODE: u32 = 0o666;
/// Mode of the new content of an old file until it has the old one's.
const PRIVATE_MODE: u32 = 0o600;
/// The bits of a mode that are kept.
const MODE_BITS: u32 = 0o7777;
/// Longest beginning of a file's name that the name of its new content repeats, in bytes: a name
/// has at most 255.
const PART_NAME_BYTES_MAX: usize = 200;
/// Longest chain of symbolic links that is followed.
const LINKS_MAX: usize = 40;

/// Why a file cannot be replaced.
#[derive(Debug, thiserror::Error)]
enum NotReplaceable {
    #[error("no file can be made beside it")]
    Folder(#[source] Error),
    #[error("its owner (user {user}, group {group}) cannot be kept")]
    Owner {
        user: u32,
        group: u32,
        #[source]
        source: Error,
    },
}

/// A file that is being written.
pub struct OutputFile(Sink);

enum Sink {
    /// The new content waits in `part` until it replaces `path`.
    Replace {
        part: NamedTempFile,
        path: PathBuf,
    },
    Through(Box<dyn Write + Send>),
}

/// Whether `path` leads to the stdout of this process: what is there must not be replaced, and a
/// note on stdout would land in it. `-` is not known here.
pub fn is_stdout(path: &Path) -> bool {
    is_same(path, std::io::stdout().as_fd())
}

/// Whether `path` leads to what is open as `descriptor`.
fn is_same(path: &Path, descriptor: BorrowedFd<'_>) -> bool {
    let same = || {
        let open = File::from(descriptor.try_clone_to_owned().ok()?).metadata().ok()?;
        let named = path.metadata().ok()?;
        Some((open.dev(), open.ino()) == (named.dev(), named.ino()))
    };
    same().unwrap_or(false)
}

/// Whether `path`, or a link that it leads to, names an open descriptor: the file behind it has no
/// name that this process was told, so nothing is kept beside it and it is not replaced.
pub(crate) fn names_descriptor(path: &Path) -> bool {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        if DESCRIPTOR_NAMES.iter().any(|name| path.starts_with(name)) {
            return true;
        }
        match path.read_link() {
            Ok(target) => path = folder_of(&path).join(target),
            Err(_) => return false,
        }
    }
    false
}

impl OutputFile {
    /// Opens `path` for a whole new content. Waits for the reader of a pipe.
    ///
    /// # Errors
    /// The path names a folder, or what it names must not be written or cannot be replaced.
    pub fn open(path: &Path) -> Result<Self> {
        let old = match path.metadata() {
            Ok(old) => old,
            Err(e) if e.kind() == ErrorKind::NotFound => return new_file(behind_links(path)?),
            Err(e) => return Err(e),
        };
        if old.is_dir() {
            return Err(ErrorKind::IsADirectory.into());
        }
        if is_stdout(path) {
            return Ok(Self(Sink::Through(Box::new(std::io::stdout()))));
        }
        if is_same(path, std::io::stderr().as_fd()) {
            return Ok(Self(Sink::Through(Box::new(std::io::stderr()))));
        }
        if old.file_type().is_socket() {
            return Ok(Self(Sink::Through(Box::new(UnixStream::connect(path)?))));
        }
        if !old.is_file() {
            let through = OpenOptions::new().write(true).open(path)?;
            return Ok(Self(Sink::Through(Box::new(through))));
        }
        // Opened without changing anything: a file that must not be written is refused here.
        let through = OpenOptions::new().append(true).open(path)?;
        if names_descriptor(path) {
            return Ok(Self(Sink::Through(Box::new(through))));
        }
        replacement(path.canonicalize()?, &old)
    }

    /// Makes what was written the content of the file, durably.
    ///
    /// # Errors
    /// The rest cannot be written, or the file cannot be replaced; then the old content stays.
    pub fn finish(self) -> Result<()> {
        match self.0 {
            Sink::Through(mut out) => out.flush(),
            Sink::Replace { part, path } => {
                part.as_file().sync_all()?;
                part.persist(&path).map_err(|e| e.error)?;
                // The file is replaced, also if its folder must not be read.
                let Ok(folder) = File::open(folder_of(&path)) else { return Ok(()) };
                match folder.sync_all() {
                    // Some file systems cannot flush a folder.
                    Err(e) if e.kind() != ErrorKind::InvalidInput => Err(e),
                    Ok(()) | Err(_) => Ok(()),
                }
            }
        }
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        match &mut self.0 {
            Sink::Replace { part, .. } => part.write(bytes),
            Sink::Through(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> Result<()> {
        match &mut self.0 {
            Sink::Replace { part, .. } => part.flush(),
            Sink::Through(out) => out.flush(),
        }
    }
}

/// Writes a whole file, as [`OutputFile`] does.
///
/// # Errors
/// The file cannot be written; then the old content stays.
pub fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    let mut out = OutputFile::open(path)?;
    out.write_all(content)?;
    out.finish()
}

fn new_file(path: PathBuf) -> Result<OutputFile> {
    let part = part_beside(&path, NEW_FILE_MODE)?;
    Ok(OutputFile(Sink::Replace { part, path }))
}

fn replacement(path: PathBuf, old: &Metadata) -> Result<OutputFile> {
    let part = part_beside(&path, PRIVATE_MODE)?;
    let made = part.as_file().metadata()?;
    if (made.uid(), made.gid()) != (old.uid(), old.gid()) {
        fchown(part.as_file(), Some(old.uid()), Some(old.gid())).map_err(|source| {
            let (user, group) = (old.uid(), old.gid());
            Error::new(source.kind(), NotReplaceable::Owner { user, group, source })
        })?;
    }
    // After the owner: a change of the owner takes bits of the mode away.
    part.as_file().set_permissions(Permissions::from_mode(old.mode() & MODE_BITS))?;
    Ok(OutputFile(Sink::Replace { part, path }))
}

fn part_beside(path: &Path, mode: u32) -> Result<NamedTempFile> {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let name = OsStr::from_bytes(&name[..name.len().min(PART_NAME_BYTES_MAX)]);
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".part")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder_of(path))
        .map_err(|e| Error::new(e.kind(), NotReplaceable::Folder(e)))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The file that does not exist yet and that the links at `path` lead to.
fn behind_links(path: &Path) -> Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match path.read_link() {
            Ok(target) => path = folder_of(&path).join(target),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => {
                return Ok(path);
            }
            Err(e) => return Err(e),
        }
    }
    Err(ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn entries(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & MODE_BITS
    }

    #[test]
    fn a_regular_file_is_replaced_whole_and_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        for kept in [0o600, 0o640, 0o644, 0o664, 0o777, 0o4711] {
            std::fs::write(&path, "old").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(kept)).unwrap();
            let mut out = OutputFile::open(&path).unwrap();
            out.write_all(b"new").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
            drop(out);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
            write_file(&path, b"new").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
            assert_eq!((mode(&path), entries(dir.path())), (kept, vec!["out".to_owned()]));
        }
    }

    #[test]
    fn a_new_file_gets_the_mode_that_others_get() {
        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join("by others")).unwrap();
        write_file(&dir.path().join("ours"), b"x").unwrap();
        write_file(&dir.path().join("n".repeat(255)), b"x").unwrap();
        assert_eq!(mode(&dir.path().join("ours")), mode(&dir.path().join("by others")));
    }

    #[test]
    fn links_stay_and_what_they_lead_to_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("deep");
        std::fs::create_dir(&deep).unwrap();
        let (file, link) = (deep.join("file"), dir.path().join("link"));
        symlink("deep/second", &link).unwrap();
        symlink("file", deep.join("second")).unwrap();
        for content in ["new", "newer"] {
            write_file(&link, content.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), content);
            assert!(link.is_symlink() && deep.join("second").is_symlink() && !file.is_symlink());
        }
        assert_eq!(entries(&deep), ["file", "second"]);
        let endless = dir.path().join("endless");
        symlink("endless", &endless).unwrap();
        assert!(write_file(&endless, b"x").is_err() && endless.is_symlink());
    }

    #[test]
    fn what_is_no_regular_file_is_written_through() {
        use std::io::Read as _;
        let dir = tempfile::tempdir().unwrap();
        let null = dir.path().join("null");
        symlink("/dev/null", &null).unwrap();
        write_file(&null, b"x").unwrap();
        assert!(null.is_symlink() && Path::new("/dev/null").metadata().unwrap().len() == 0);
        assert!(Path::new("/dev/null").metadata().unwrap().file_type().is_char_device());

        let socket = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        write_file(&socket, b"through").unwrap();
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert!(socket.metadata().unwrap().file_type().is_socket());

        // A descriptor of a regular file: appended, whatever the file is called.
        let path = dir.path().join("log");
        let log = File::create(&path).unwrap();
        std::fs::write(&path, "before ").unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&log);
        let link = dir.path().join("link");
        symlink(format!("/dev/fd/{number}"), &link).unwrap();
        write_file(Path::new(&format!("/proc/self/fd/{number}")), b"and ").unwrap();
        write_file(&link, b"after").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before and after");
        assert_eq!(entries(dir.path()), ["link", "log", "null", "socket"]);
        assert!(write_file(dir.path(), b"x").is_err(), "a folder is no file");
    }
}
