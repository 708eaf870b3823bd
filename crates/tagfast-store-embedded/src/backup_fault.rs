//! What is wrong with a backup, file by file.

use std::fmt;

/// Faults that a message lists; it counts the others.
const LISTED_MAX: usize = 20;

/// What is wrong with one file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackupFault {
    /// The manifest lists it, and it is not there.
    #[error("it is missing")]
    Missing,
    /// It is a directory or a device.
    #[error("it is not a regular file")]
    NotAFile,
    /// It is there, and the manifest does not list it.
    #[error("it does not belong to the backup")]
    Unlisted,
    /// Its length is not the listed one.
    #[error("it has {found} bytes, the manifest lists {listed}")]
    Length {
        /// Its length in bytes.
        found: u64,
        /// The length that the manifest lists.
        listed: u64,
    },
    /// Its SHA-256 is not the listed one.
    #[error("its SHA-256 is not the one that the manifest lists: its content was changed")]
    Checksum,
    /// Its newest event is not the listed one: it belongs to a different backup.
    #[error("its newest event is {found}, the manifest lists {listed}")]
    Position {
        /// The position of its newest event.
        found: u64,
        /// The position that the manifest lists.
        listed: u64,
    },
    /// SQLite finds it damaged; SQLite's words.
    #[error("it is a damaged database: {0}")]
    Database(String),
    /// The manifest is not what a backup writes.
    #[error("it is not what `tagfast backup` writes: {0}")]
    Manifest(&'static str),
    /// A newer program wrote it.
    #[error("its schema version is {found}, this program knows up to {known}; run a newer tagfast")]
    Schema {
        /// Its schema version.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// The manifest is not of a format that this program knows.
    #[error("its format is {found}, this program knows up to {known}; run a newer tagfast")]
    Format {
        /// Its format.
        found: u64,
        /// The newest format that this program knows.
        known: u32,
    },
}

/// All faults of a backup, each with the name of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupFaults(pub Vec<(String, BackupFault)>);

impl fmt::Display for BackupFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (file, fault)) in self.0.iter().take(LISTED_MAX).enumerate() {
            let separator = if n == 0 { "" } else { "; " };
            // The name of an unlisted file may hold anything.
            write!(f, "{separator}{}: {fault}", file.escape_debug())?;
        }
        match self.0.len().saturating_sub(LISTED_MAX) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl std::error::Error for BackupFaults {}
