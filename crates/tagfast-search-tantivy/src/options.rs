//! Options of the engine.

use std::time::Duration;

/// When the writer flushes and commits.
#[derive(Debug, Clone)]
pub struct TantivyOptions {
    /// Memory of the writer before it flushes a segment, in bytes; at least 15 MB.
    pub writer_bytes: usize,
    /// Time from applying a change to its commit, after which it is visible. Shorter: more small
    /// segments; longer: search lags behind.
    pub commit_after: Duration,
    /// From this many uncommitted changes on, `commit_after_busy` applies instead.
    pub busy_documents: usize,
    /// Commit delay under load: fewer, larger commits. Shorter: commits and merges eat the
    /// processor; longer: search lags behind.
    pub commit_after_busy: Duration,
    /// Commits early after this many changes.
    pub commit_documents: usize,
}

impl Default for TantivyOptions {
    fn default() -> Self {
        Self {
            writer_bytes: 24 << 20,
            commit_after: Duration::from_millis(200),
            busy_documents: 1_000,
            commit_after_busy: Duration::from_secs(1),
            commit_documents: 10_000,
        }
    }
}
