//! The checkpoint of an import: where an interrupted import resumes.
//!
//! Every line up to the checkpoint's is acknowledged or reported as bad. Later lines may have been
//! imported too; sending them again is harmless, because adding a tag twice has no second effect.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::CliError;

/// Length of the prefix that identifies a file, in bytes.
const FINGERPRINT_BYTES: u64 = 64 * 1024;

/// The state of an import, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    /// Id of the import; part of its idempotency keys.
    pub(super) run: String,
    /// URL of the server.
    pub(super) url: String,
    /// The tenant; `None` = unknown to this client.
    pub(super) tenant: Option<String>,
    /// Identifies the file; `None` = stdin.
    pub(super) file: Option<FileFingerprint>,
    /// Every line up to this one is acknowledged or was reported as bad.
    pub(super) line: u64,
    /// Bad lines so far.
    pub(super) bad: u64,
}

/// Identifies a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileFingerprint {
    /// Size in bytes.
    pub(super) size: u64,
    /// SHA-256 of the first 64 KiB, in hexadecimal digits.
    pub(super) head: String,
}

impl FileFingerprint {
    /// The fingerprint of a file; `None` for stdin.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn of(file: &str) -> Result<Option<Self>, CliError> {
        if file == "-" {
            return Ok(None);
        }
        let read = || {
            let opened = std::fs::File::open(file)?;
            let size = opened.metadata()?.len();
            let mut head = Vec::new();
            opened.take(FINGERPRINT_BYTES).read_to_end(&mut head)?;
            Ok::<_, std::io::Error>(Self { size, head: hex::encode(Sha256::digest(&head)) })
        };
        read().map(Some).map_err(|e| CliError::new(format!("cannot read {file}")).with_source(e))
    }
}

/// Path of the checkpoint: the given one, or one beside the file; `None` = stdin without a given
/// path has no checkpoint.
pub(super) fn path_for(file: &str, given: Option<&Path>) -> Option<PathBuf> {
    match given {
        Some(path) => Some(path.to_owned()),
        None if file == "-" => None,
        None => Some(PathBuf::from(format!("{file}.tagfast-import"))),
    }
}

/// The checkpoint at `path`, or `fresh` if there is none or the import restarts.
///
/// # Errors
/// The checkpoint cannot be read, or belongs to a different file, server or tenant.
pub(super) fn load(
    path: Option<&Path>,
    restart: bool,
    fresh: Checkpoint,
) -> Result<Checkpoint, CliError> {
    let Some(path) = path.filter(|_| !restart) else { return Ok(fresh) };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(fresh),
        Err(e) => {
            let message = format!("cannot read {}", path.display());
            return Err(CliError::new(message).with_source(e));
        }
    };
    let hint = "start over with --restart (importing twice is harmless), \
                or use a different checkpoint with --state FILE";
    let refuse = |why: &str| {
        let message = format!("{} is of an interrupted import, but {why}", path.display());
        CliError::new(message).hint(hint)
    };
    let stored: Checkpoint =
        serde_json::from_str(&text).map_err(|e| refuse("it cannot be read").with_source(e))?;
    if stored.url != fresh.url || stored.tenant != fresh.tenant {
        return Err(refuse(&format!(
            "it went to {} (tenant {})",
            stored.url,
            stored.tenant.as_deref().unwrap_or("unknown")
        )));
    }
    if stored.file != fresh.file {
        return Err(refuse("the file has changed since"));
    }
    Ok(stored)
}

/// Stores the checkpoint: written beside its path and renamed, so that a crash leaves the old one.
///
/// # Errors
/// The file cannot be written.
pub(super) fn save(path: &Path, checkpoint: &Checkpoint) -> Result<(), CliError> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    std::fs::write(&part, serde_json::to_vec(checkpoint)?)
        .and_then(|()| std::fs::rename(&part, path))
        .map_err(|e| CliError::new(format!("cannot write {}", path.display())).with_source(e))
}

/// Removes the checkpoint of a complete import: it would make the next import refuse or skip lines.
///
/// # Errors
/// The file exists and cannot be removed.
pub(super) fn remove(path: &Path) -> Result<(), CliError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(CliError::new(format!("cannot remove {}", path.display())).with_source(e))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Tracks the line up to which everything is acknowledged. The server acknowledges batches in any
/// order; the line only grows.
#[derive(Debug, Default)]
pub(super) struct AckTracker {
    next: u64,
    /// Last line by batch number, of batches acknowledged out of order.
    out_of_order: BTreeMap<u64, u64>,
    line: u64,
}

impl AckTracker {
    /// Starts behind `line`.
    pub(super) fn after(line: u64) -> Self {
        Self { line, ..Self::default() }
    }

    /// Batch number `sequence` (from 0), which ends with line `through`, is acknowledged.
    pub(super) fn acknowledge(&mut self, sequence: u64, through: u64) {
        self.out_of_order.insert(sequence, through);
        while let Some(through) = self.out_of_order.remove(&self.next) {
            self.next += 1;
            self.line = self.line.max(through);
        }
    }

    /// Every line up to this one is acknowledged.
    pub(super) fn line(&self) -> u64 {
        self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> Checkpoint {
        let file = Some(FileFingerprint { size: 3, head: "ab".to_owned() });
        Checkpoint { run: "r".to_owned(), url: "u".to_owned(), tenant: None, file, line: 0, bad: 0 }
    }

    #[test]
    fn the_line_waits_for_the_batches_before_it() {
        let mut acks = AckTracker::after(100);
        acks.acknowledge(1, 300);
        assert_eq!(acks.line(), 100);
        acks.acknowledge(0, 200);
        assert_eq!(acks.line(), 300);
        acks.acknowledge(2, 400);
        assert_eq!(acks.line(), 400);
    }

    #[test]
    fn a_checkpoint_is_used_only_for_the_same_file_and_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint");
        assert_eq!(load(Some(&path), false, fresh()).unwrap(), fresh());
        let stored = Checkpoint { line: 7, run: "old".to_owned(), ..fresh() };
        save(&path, &stored).unwrap();
        assert_eq!(load(Some(&path), false, fresh()).unwrap(), stored);
        assert_eq!(load(Some(&path), true, fresh()).unwrap().line, 0);
        for other in [
            Checkpoint { url: "v".to_owned(), ..fresh() },
            Checkpoint { file: None, ..fresh() },
            Checkpoint { tenant: Some("t".to_owned()), ..fresh() },
        ] {
            let error = load(Some(&path), false, other).unwrap_err();
            assert!(error.hint.unwrap().contains("--restart"));
        }
        std::fs::write(&path, "{").unwrap();
        assert!(load(Some(&path), false, fresh()).is_err());
        remove(&path).unwrap();
        remove(&path).unwrap();
    }
}
