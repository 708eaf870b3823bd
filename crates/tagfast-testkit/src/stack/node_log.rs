//! The log of a node, into which its Patroni and its PostgreSQL both write: what a wait that fails
//! shows of it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::info::NodeInfo;

/// The last lines of a log that count and are shown. A PostgreSQL that waits for its log asks five
/// times a second, and Patroni and its probes write a line each: these are the last second or two.
const LOG_LINES: usize = 20;
/// Bytes at the end of a log that have these lines.
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// The log of the node with this folder.
pub(super) fn log_file(dir: &Path) -> PathBuf {
    dir.join("patroni.log")
}

/// The last lines of the logs of nodes, each with the name of its file.
pub(super) fn logs<'a>(nodes: impl IntoIterator<Item = &'a NodeInfo>) -> String {
    let mut text = String::new();
    for node in nodes {
        let dir = node.data_dir.parent().unwrap_or(&node.data_dir);
        let lines = last_lines(dir).unwrap_or_else(|| "it cannot be read".to_owned());
        let _ = write!(text, "\n--- {}:\n{lines}", log_file(dir).display());
    }
    text
}

/// The last lines of a node's log; `None`: it cannot be read.
pub(super) fn last_lines(dir: &Path) -> Option<String> {
    let mut file = File::open(log_file(dir)).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES))).ok()?;
    let mut tail = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    let lines: Vec<&str> = tail.lines().collect();
    Some(lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"))
}
