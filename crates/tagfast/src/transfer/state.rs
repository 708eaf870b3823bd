//! How far an import has come, so that an interrupted one goes on where it stopped.
//!
//! The noted line is the last one before which everything is acknowledged. Lines after it may have
//! been imported too; sending them again changes nothing, because adding a tag twice is adding it
//! once.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::failure::Failure;

/// How much of a file is looked at to recognise it.
const HEAD_BYTES: u64 = 64 * 1024;

/// A noted import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// Names the import; part of its idempotency keys.
    pub run: String,
    /// The server it goes to.
    pub url: String,
    /// The tenant, where it is known.
    pub tenant: Option<String>,
    /// What the file looked like; `None` for stdin.
    pub file: Option<FileMark>,
    /// Everything up to this line is acknowledged or was reported as bad.
    pub line: u64,
    /// Bad lines so far.
    pub bad: u64,
}

/// Recognises a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMark {
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of its first 64 KiB.
    pub head: String,
}

impl FileMark {
    /// The mark of a file; `None` for stdin.
    pub fn of(file: &str) -> Result<Option<Self>, Failure> {
        if file == "-" {
            return Ok(None);
        }
        let read = || {
            let opened = std::fs::File::open(file)?;
            let size = opened.metadata()?.len();
            let mut head = Vec::new();
            opened.take(HEAD_BYTES).read_to_end(&mut head)?;
            Ok::<_, std::io::Error>(Self { size, head: hex(&Sha256::digest(&head)) })
        };
        read().map(Some).map_err(|e| Failure::new(format!("cannot read {file}: {e}")))
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Where it is noted: the given path, or beside the file; nowhere for stdin without a path.
pub fn path_for(file: &str, given: Option<&Path>) -> Option<PathBuf> {
    match given {
        Some(path) => Some(path.to_owned()),
        None if file == "-" => None,
        None => Some(PathBuf::from(format!("{file}.tagfast-import"))),
    }
}

/// Begins an import, or takes up the one that is noted at `path`.
pub fn begin(path: Option<&Path>, restart: bool, fresh: Noted) -> Result<Noted, Failure> {
    let Some(path) = path.filter(|_| !restart) else { return Ok(fresh) };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(fresh),
        Err(e) => return Err(Failure::new(format!("cannot read {}: {e}", path.display()))),
    };
    let hint = "begin again with --restart (importing twice is harmless), or note it elsewhere with --state FILE";
    let refuse = |why: &str| {
        Failure::new(format!("{} notes an interrupted import, but {why}", path.display()))
            .hint(hint)
    };
    let noted: Noted =
        serde_json::from_str(&text).map_err(|e| refuse(&format!("it cannot be read: {e}")))?;
    if noted.url != fresh.url || noted.tenant != fresh.tenant {
        return Err(refuse(&format!(
            "it went to {} (tenant {})",
            noted.url,
            noted.tenant.as_deref().unwrap_or("unknown")
        )));
    }
    if noted.file != fresh.file {
        return Err(refuse("the file has changed since"));
    }
    Ok(noted)
}

/// Notes how far it has come: written beside and renamed, so that a crash leaves the old note.
pub fn save(path: &Path, noted: &Noted) -> Result<(), Failure> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    std::fs::write(&part, serde_json::to_vec(noted)?)
        .and_then(|()| std::fs::rename(&part, path))
        .map_err(|e| Failure::new(format!("cannot note the progress in {}: {e}", path.display())))
}

/// The import is complete. A note that stays would only make the next one refuse or skip.
pub fn remove(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::new(format!("cannot remove {}: {e}", path.display())))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Batches are acknowledged in any order; the line before which everything is acknowledged only
/// grows.
#[derive(Debug, Default)]
pub struct Acknowledged {
    next: u64,
    waiting: BTreeMap<u64, u64>,
    line: u64,
}

impl Acknowledged {
    /// Starting behind `line`.
    pub fn after(line: u64) -> Self {
        Self { line, ..Self::default() }
    }

    /// Batch number `sequence` (from 0), which ends with line `through`, is acknowledged.
    pub fn done(&mut self, sequence: u64, through: u64) {
        self.waiting.insert(sequence, through);
        while let Some(through) = self.waiting.remove(&self.next) {
            self.next += 1;
            self.line = self.line.max(through);
        }
    }

    /// The line.
    pub fn line(&self) -> u64 {
        self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> Noted {
        let file = Some(FileMark { size: 3, head: "ab".to_owned() });
        Noted { run: "r".to_owned(), url: "u".to_owned(), tenant: None, file, line: 0, bad: 0 }
    }

    #[test]
    fn the_line_waits_for_the_batches_before_it() {
        let mut acknowledged = Acknowledged::after(100);
        acknowledged.done(1, 300);
        assert_eq!(acknowledged.line(), 100);
        acknowledged.done(0, 200);
        assert_eq!(acknowledged.line(), 300);
        acknowledged.done(2, 400);
        assert_eq!(acknowledged.line(), 400);
    }

    #[test]
    fn a_noted_import_is_taken_up_only_for_the_same_file_and_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("note");
        assert_eq!(begin(Some(&path), false, fresh()).unwrap(), fresh());
        let noted = Noted { line: 7, run: "old".to_owned(), ..fresh() };
        save(&path, &noted).unwrap();
        assert_eq!(begin(Some(&path), false, fresh()).unwrap(), noted);
        assert_eq!(begin(Some(&path), true, fresh()).unwrap().line, 0);
        for other in [
            Noted { url: "v".to_owned(), ..fresh() },
            Noted { file: None, ..fresh() },
            Noted { tenant: Some("t".to_owned()), ..fresh() },
        ] {
            let failure = begin(Some(&path), false, other).unwrap_err();
            assert!(failure.hint.unwrap().contains("--restart"));
        }
        std::fs::write(&path, "{").unwrap();
        assert!(begin(Some(&path), false, fresh()).is_err());
        remove(&path).unwrap();
        remove(&path).unwrap();
    }
}
