//! Generations of derived data: a new folder is built beside the current one and activated in one
//! step.
//!
//! Data that can be rebuilt is built into a new folder while the old one serves. The file `CURRENT`
//! names the active folder; renaming it is the switch, so a crash leaves either the old or the new
//! generation, never half of one.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

const CURRENT: &str = "CURRENT";
const PREFIX: &str = "generation-";

/// The active folder; `None`: there is none yet.
pub fn current(root: &Path) -> Option<PathBuf> {
    let name = std::fs::read_to_string(root.join(CURRENT)).ok()?;
    let name = name.trim();
    name.starts_with(PREFIX).then(|| root.join(name))
}

/// Creates a new, empty, inactive folder.
///
/// # Errors
///
/// The operating system's error.
pub fn create(root: &Path) -> io::Result<PathBuf> {
    std::fs::create_dir_all(root)?;
    for number in 0u32.. {
        let path = root.join(format!("{PREFIX}{number}"));
        match std::fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            // The active one, or one left half-built by a crash: `switch` removes it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("no number is left for a generation"))
}

/// Activates `generation` durably and removes all others.
///
/// # Errors
///
/// The operating system's error; the old or the new generation is active.
pub fn switch(root: &Path, generation: &Path) -> io::Result<()> {
    let name = generation.file_name().ok_or_else(|| io::Error::other("a generation has a name"))?;
    let part = root.join("CURRENT.part");
    std::fs::write(&part, name.as_encoded_bytes())?;
    File::open(&part)?.sync_all()?;
    std::fs::rename(&part, root.join(CURRENT))?;
    File::open(root)?.sync_all()?;
    remove_others(root, generation)
}

/// Removes all generations except `keep`, for example those left half-built by a crash.
///
/// # Errors
///
/// The operating system's error.
pub fn remove_others(root: &Path, keep: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        if entry.path() != keep && entry.file_name().to_str().is_some_and(|n| n.starts_with(PREFIX))
        {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_active_only_after_the_switch() {
        let root = std::env::temp_dir().join(format!("tagfast-generation-{}", std::process::id()));
        let first = create(&root).expect("created");
        assert_eq!(current(&root), None);
        switch(&root, &first).expect("switched");
        let second = create(&root).expect("created");
        assert_ne!(first, second);
        assert_eq!(current(&root), Some(first.clone()));
        switch(&root, &second).expect("switched");
        assert_eq!(current(&root), Some(second));
        assert!(!first.exists());
        let half_built = create(&root).expect("created");
        let counts = current(&root).expect("one counts");
        remove_others(&root, &counts).expect("removed");
        assert!(!half_built.exists() && counts.exists());
        std::fs::remove_dir_all(&root).expect("removed");
    }
}
