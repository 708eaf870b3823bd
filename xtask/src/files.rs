//! The files of the project, as git tracks them.

use std::process::Command;

use anyhow::Result;

use crate::run::{output, root};

/// One tracked text file.
pub(crate) struct TextFile {
    /// Path from the workspace's root, with `/`.
    pub(crate) path: String,
    /// Its content.
    pub(crate) text: String,
}

/// Endings of files that are prose, code or configuration of ours.
const TEXT_ENDINGS: &[&str] = &[".rs", ".md", ".toml", ".sh", ".json", ".yml", ".sql"];

/// Every tracked text file that is there; generated lock files are left out.
pub(crate) fn text_files() -> Result<Vec<TextFile>> {
    let list = output(Command::new("git").args(["ls-files"]).current_dir(root()))?;
    let is_text = |path: &&str| {
        TEXT_ENDINGS.iter().any(|ending| path.ends_with(ending)) || *path == ".ci/run"
    };
    // A file that was just deleted is still in the list.
    let read = |path: &str| {
        let text = std::fs::read_to_string(root().join(path)).ok()?;
        Some(TextFile { path: path.to_owned(), text })
    };
    Ok(list.lines().filter(is_text).filter_map(read).collect())
}
