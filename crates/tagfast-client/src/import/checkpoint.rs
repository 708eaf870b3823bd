//! The checkpoint of an import: where an interrupted import resumes.
//!
//! Every line up to the checkpoint's is acknowledged or reported as bad, and its counts are those
//! of these lines. Later lines may have been imported too; they are sent again with the same
//! idempotency keys, which has no second effect. The checkpoint has the digest of its lines: an
//! import goes on only behind the same lines, wherever they come from; what follows them may have
//! been repaired or appended.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ledger::Done;
use crate::error::CliError;
use crate::input::{Input, lasting_path};
use crate::output::write_file;

/// What to do about a checkpoint that does not fit.
const REFUSED_HINT: &str = "start over with --restart (importing twice is harmless), \
                            or use a different checkpoint with --state FILE";

/// The state of an import, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    /// Id of the import; part of its idempotency keys.
    pub(super) run: String,
    /// URL of the server.
    pub(super) url: String,
    /// The tenant; `None` = unknown to this client.
    pub(super) tenant: Option<String>,
    /// Lines that are acknowledged or were reported as bad.
    pub(super) done: Done,
}

/// Where the checkpoint of an import is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CheckpointFile {
    /// Its path.
    pub(super) path: PathBuf,
    /// The user named it: an import that cannot use it is refused.
    pub(super) named: bool,
}

/// The checkpoint's file: the given one, or one beside the input; `None` = the input is no regular
/// file, so nothing can be kept beside it.
pub(super) fn file_for(file: &Path, input: &Input, given: Option<&Path>) -> Option<CheckpointFile> {
    if let Some(path) = given {
        return Some(CheckpointFile { path: path.to_owned(), named: true });
    }
    let mut path = lasting_path(file, input)?.into_os_string();
    path.push(".tagfast-import");
    Some(CheckpointFile { path: path.into(), named: false })
}

/// The stored checkpoint, or `fresh` if there is none or the import restarts.
///
/// # Errors
/// The checkpoint cannot be read, or belongs to a different server or tenant.
pub(super) fn load(path: &Path, restart: bool, fresh: Checkpoint) -> Result<Checkpoint, CliError> {
    let unreadable =
        |e| CliError::new(format!("cannot read the checkpoint {}", path.display())).with_source(e);
    match path.metadata() {
        Ok(found) if !found.is_file() => {
            let message = format!("{} cannot hold a checkpoint", path.display());
            return Err(CliError::usage(message).hint("--state takes a regular file"));
        }
        Ok(_) if restart => return Ok(fresh),
        Ok(_) => {}
        Err(e) if matches!(e.kind(), ErrorKind::NotFound) => return Ok(fresh),
        Err(e) => return Err(unreadable(e)),
    }
    let text = std::fs::read(path).map_err(unreadable)?;
    let refuse = |why: &str| {
        let message = format!("{} is of an interrupted import, but {why}", path.display());
        CliError::new(message).hint(REFUSED_HINT)
    };
    let stored: Checkpoint =
        tagfast_json::from_slice(&text).map_err(|e| refuse("it cannot be read").with_source(e))?;
    if stored.url != fresh.url || stored.tenant != fresh.tenant {
        return Err(refuse(&format!(
            "it went to {} (tenant {})",
            stored.url,
            stored.tenant.as_deref().unwrap_or("unknown")
        )));
    }
    Ok(stored)
}

/// The lines before the checkpoint's are not those of the input.
pub(super) fn changed(path: &Path, line: u64) -> CliError {
    CliError::new(format!(
        "{} is of an interrupted import, but the input has changed since: its first {line} lines \
         are not those that were imported",
        path.display()
    ))
    .hint(REFUSED_HINT)
}

/// Stores the checkpoint; a crash leaves the old one or the new one.
///
/// # Errors
/// The file cannot be written.
pub(super) fn save(path: &Path, checkpoint: &Checkpoint) -> Result<(), CliError> {
    write_file(path, &serde_json::to_vec(checkpoint)?)
        .map_err(|e| CliError::new(format!("cannot write {}", path.display())).with_source(e))
}

/// Removes the checkpoint of a complete import: it would make the next import skip lines.
///
/// # Errors
/// The file exists and cannot be removed.
pub(super) fn remove(path: &Path) -> Result<(), CliError> {
    let failed = |e| CliError::new(format!("cannot remove {}", path.display())).with_source(e);
    // A link to a checkpoint stays, as it does when the checkpoint is stored.
    match path.canonicalize() {
        Ok(file) => std::fs::remove_file(file).map_err(failed),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    fn fresh() -> Checkpoint {
        Checkpoint { run: "r".to_owned(), url: "u".to_owned(), tenant: None, done: Done::default() }
    }

    #[test]
    fn a_checkpoint_is_used_only_for_the_same_server_and_tenant() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint");
        assert_eq!(load(&path, false, fresh()).unwrap(), fresh());
        let done = Done { line: 7, ..Done::default() };
        let stored = Checkpoint { done, run: "old".to_owned(), ..fresh() };
        save(&path, &stored).unwrap();
        assert_eq!(load(&path, false, fresh()).unwrap(), stored);
        assert_eq!(load(&path, true, fresh()).unwrap().done.line, 0);
        for other in [
            Checkpoint { url: "v".to_owned(), ..fresh() },
            Checkpoint { tenant: Some("t".to_owned()), ..fresh() },
        ] {
            let error = load(&path, false, other).unwrap_err();
            assert!(error.hint.unwrap().contains("--restart"));
        }
        let text = serde_json::to_string(&stored).unwrap();
        let arrays = tagfast_json::testing::arrays_for_objects(&text);
        for damaged in arrays.iter().map(String::as_str).chain(["{"]) {
            std::fs::write(&path, damaged).unwrap();
            assert!(load(&path, false, fresh()).is_err(), "{damaged}");
        }
        remove(&path).unwrap();
        remove(&path).unwrap();
    }

    #[test]
    fn only_a_regular_file_holds_a_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        for path in [Path::new("/dev/null"), dir.path()] {
            for restart in [true, false] {
                assert_eq!(load(path, restart, fresh()).unwrap_err().exit, Exit::Usage);
            }
        }
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for _ in 0..2 {
            save(&link, &fresh()).unwrap();
            assert_eq!(
                load(&link, false, Checkpoint { run: "new".to_owned(), ..fresh() }).unwrap(),
                fresh()
            );
            remove(&link).unwrap();
            assert!(link.is_symlink() && !file.exists());
        }
    }
}
