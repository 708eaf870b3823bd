//! The folder of the journals' copies: used by one process at a time, which has the same name in it
//! whenever it is started.
//!
//! How it fails: a folder that a different process uses, or that cannot be created, locked or
//! written, refuses the start. A file `process` that names no process is replaced, with a warning.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tagfast_resilience::private_files::{self, NotPrivate};

use crate::cluster::node_registry::new_process_name;

const LOCK_NAME: &str = "lock";
const PROCESS_NAME: &str = "process";
const CLUSTERS_NAME: &str = "clusters";
/// The length of a process's name, in bytes.
const PROCESS_BYTES_MAX: usize = 255;

/// Why the folder of the journals cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalFolderError {
    /// A different process uses it.
    #[error(
        "store.journal_dir {} is used by process {pid}; stop it first, or give each process a \
         directory of its own", .dir.display()
    )]
    Locked {
        /// The folder.
        dir: PathBuf,
        /// The number of the process; 0: it has not written it yet.
        pid: u32,
    },
    /// Other users may use it.
    #[error("store.journal_dir is not private")]
    NotPrivate(#[from] NotPrivate),
    /// The operating system returned an error.
    #[error("store.journal_dir: cannot {doing} {}", .path.display())]
    Io {
        /// The attempted action.
        doing: &'static str,
        /// Its object.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> JournalFolderError {
    let path = path.to_owned();
    move |source| JournalFolderError::Io { doing, path, source }
}

/// Whether a folder can be used, or be made; nothing is changed.
///
/// # Errors
///
/// What keeps it from being used, as far as it can be seen without using it.
pub fn check_journal_dir(dir: &Path) -> Result<(), JournalFolderError> {
    let absolute = std::path::absolute(dir).map_err(io("find", dir))?;
    let there = absolute.ancestors().find(|path| path.symlink_metadata().is_ok());
    let there = there.unwrap_or(Path::new("/"));
    if !there.is_dir() {
        let source = std::io::Error::other("it is not a directory");
        return Err(JournalFolderError::Io { doing: "use", path: there.to_owned(), source });
    }
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    let access = rustix::fs::access(there, access);
    access.map_err(|errno| io("write to", there)(errno.into()))
}

/// The folder, locked by this process.
#[derive(Debug)]
pub(crate) struct JournalFolder {
    dir: PathBuf,
    /// The name under which this process registers and reports.
    pub(crate) process: String,
    /// Holds the lock until it is dropped.
    _lock: File,
}

impl JournalFolder {
    /// Makes the folder if it is not there, and locks it. `new_process` is the name of the process
    /// in a folder that has none yet.
    pub(crate) fn open(dir: &Path, new_process: &str) -> Result<Self, JournalFolderError> {
        private_files::create_dir(dir).map_err(io("create", dir))?;
        private_files::narrow(dir, |name| {
            [LOCK_NAME, PROCESS_NAME, CLUSTERS_NAME].contains(&name)
        })?;
        let lock = lock(dir)?;
        let process = process_name(dir, new_process)?;
        Ok(Self { dir: dir.to_owned(), process, _lock: lock })
    }

    /// The same for an optional folder, and for a process of this node.
    pub(crate) fn open_some(
        dir: Option<&Path>,
        node: &str,
    ) -> Result<Option<Arc<Self>>, JournalFolderError> {
        let open = |dir| Self::open(dir, &new_process_name(node)).map(Arc::new);
        dir.map(open).transpose()
    }

    /// The folder of a cluster. Whatever a scope is called, it is one name.
    pub(crate) fn of_cluster(&self, scope: &str) -> PathBuf {
        let mut name = String::new();
        for byte in scope.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => {
                    name.push(char::from(byte));
                }
                _ => name.push_str(&format!("%{byte:02x}")),
            }
        }
        self.dir.join(CLUSTERS_NAME).join(name)
    }
}

fn lock(dir: &Path) -> Result<File, JournalFolderError> {
    let path = dir.join(LOCK_NAME);
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true).mode(0o600);
    let mut file = options.open(&path).map_err(io("open", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // Without a readable number the folder is still in use.
            let _ = file.read_to_string(&mut pid);
            let pid = pid.trim().parse().unwrap_or(0);
            return Err(JournalFolderError::Locked { dir: dir.to_owned(), pid });
        }
        Err(errno) => return Err(io("lock", &path)(errno.into())),
    }
    let write_pid = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write_pid(&mut file).map_err(io("write", &path))?;
    Ok(file)
}

/// The name that the folder has for its process, or the new one.
fn process_name(dir: &Path, new_process: &str) -> Result<String, JournalFolderError> {
    let path = dir.join(PROCESS_NAME);
    match std::fs::read(&path) {
        Ok(bytes) => match std::str::from_utf8(&bytes).map(str::trim_end) {
            Ok(name) if is_name(name) => return Ok(name.to_owned()),
            Ok(_) | Err(_) => tracing::warn!(
                file = %path.display(),
                "it names no process and is replaced: what its journals hold is of a process that \
                 reports under a different name"
            ),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(io("read", &path)(error)),
    }
    let part = dir.join(format!("{PROCESS_NAME}.part"));
    let write = || {
        // A process may have ended before it renamed it.
        match std::fs::remove_file(&part) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = private_files::create_file(&part)?;
        writeln!(file, "{new_process}")?;
        file.sync_all()?;
        std::fs::rename(&part, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(io("write", &path))?;
    Ok(new_process.to_owned())
}

/// Whether a text can be the name of a process in a key of etcd.
fn is_name(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_graphic() && c != '/';
    !text.is_empty() && text.len() <= PROCESS_BYTES_MAX && text.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_stays_and_a_second_process_is_refused() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("journal");
        let first = JournalFolder::open(&dir, "api-1.aa").expect("a folder");
        let error = JournalFolder::open(&dir, "api-2.bb").expect_err("it is locked");
        let pid = std::process::id();
        assert!(matches!(error, JournalFolderError::Locked { pid: by, .. } if by == pid));
        assert!(error.to_string().contains(&format!("used by process {pid}")), "{error}");
        drop(first);
        let again = JournalFolder::open(&dir, "api-2.bb").expect("a folder");
        assert_eq!(again.process, "api-1.aa");
    }

    #[test]
    fn a_name_that_is_none_is_replaced() {
        let root = tempfile::tempdir().expect("a directory");
        for bad in ["", "\n", "a/b", "a b", "\u{e9}", &"x".repeat(256)] {
            std::fs::write(root.path().join(PROCESS_NAME), bad).expect("written");
            let folder = JournalFolder::open(root.path(), "api-1.aa").expect("a folder");
            assert_eq!(folder.process, "api-1.aa", "{bad:?}");
        }
    }

    #[test]
    fn every_scope_has_one_folder_of_its_own() {
        let root = tempfile::tempdir().expect("a directory");
        let folder = JournalFolder::open(root.path(), "p").expect("a folder");
        let scopes = ["c0", "..", ".", "a/b", "a%2fb", "a%b", "", "\u{e9}"];
        let dirs: std::collections::BTreeSet<PathBuf> =
            scopes.iter().map(|scope| folder.of_cluster(scope)).collect();
        // An empty scope is refused by the configuration; its folder is the one of all.
        assert_eq!(dirs.len(), scopes.len());
        let parent = root.path().join("clusters");
        assert!(dirs.iter().all(|dir| *dir == parent || dir.parent() == Some(&parent)), "{dirs:?}");
    }

    #[test]
    fn what_is_no_directory_is_refused_before_it_is_used() {
        let root = tempfile::tempdir().expect("a directory");
        let file = root.path().join("file");
        std::fs::write(&file, "x").expect("written");
        assert!(check_journal_dir(&file).is_err() && check_journal_dir(&file.join("x")).is_err());
        assert!(check_journal_dir(&root.path().join("a").join("b")).is_ok());
        let error = JournalFolder::open(&file.join("x"), "p").expect_err("no directory");
        assert!(error.to_string().starts_with("store.journal_dir: cannot create"), "{error}");
    }
}
