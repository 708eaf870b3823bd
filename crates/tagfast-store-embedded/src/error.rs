//! The meaning of an SQLite error for the caller of the store.

use rusqlite::{Error, ErrorCode, ffi};
use tagfast_resilience::{ErrorChain, jittered_retry_after};
use tagfast_store::StoreError;
use tagfast_store::metric::CommitFailureReason;

/// Why a group commit failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommitFailure {
    /// The disk is full; nothing was written.
    DiskFull,
    /// The file is damaged: nothing was written.
    Damaged,
    /// The operating system reported an error. Once COMMIT was sent, its record may be on the disk.
    Io {
        /// Whether the commit may have happened.
        outcome_unknown: bool,
    },
}

impl CommitFailure {
    pub(crate) fn of(error: &Error, commit_sent: bool) -> Self {
        let Error::SqliteFailure(e, _) = error else {
            return Self::Io { outcome_unknown: commit_sent };
        };
        if e.code == ErrorCode::DiskFull {
            // Reported when a page cannot be written; the commit record is the last page of the
            // log.
            return Self::DiskFull;
        }
        // The shared-memory index cannot grow on a full disk either, but only after the log was
        // flushed.
        let index_full =
            matches!(e.extended_code, ffi::SQLITE_IOERR_SHMSIZE | ffi::SQLITE_IOERR_SHMMAP);
        if index_full && !commit_sent {
            return Self::DiskFull;
        }
        if is_damaged(error) { Self::Damaged } else { Self::Io { outcome_unknown: commit_sent } }
    }

    /// The reason in metrics.
    pub(crate) fn reason(self) -> CommitFailureReason {
        match self {
            Self::DiskFull => CommitFailureReason::DiskFull,
            Self::Damaged => CommitFailureReason::Damaged,
            Self::Io { .. } => CommitFailureReason::Io,
        }
    }

    pub(crate) fn store_error(self) -> StoreError {
        match self {
            Self::DiskFull => StoreError::DiskFull,
            Self::Damaged => StoreError::Damaged { what: "a store file".to_owned(), source: None },
            Self::Io { outcome_unknown } => unavailable(outcome_unknown),
        }
    }
}

/// Whether the error means that the file is damaged.
pub(crate) fn is_damaged(error: &Error) -> bool {
    matches!(
        error,
        Error::SqliteFailure(e, _) if matches!(e.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

/// The store error of a failed read.
pub(crate) fn read_error(file: usize, error: &Error) -> StoreError {
    if is_damaged(error) {
        tracing::error!(file, error = %ErrorChain(error), "store file is damaged");
        return StoreError::Damaged { what: format!("store-{file}.sqlite"), source: None };
    }
    tracing::error!(file, error = %ErrorChain(error), "read of a store file failed");
    unavailable(false)
}

fn unavailable(outcome_unknown: bool) -> StoreError {
    StoreError::Unavailable {
        reason: "a store file failed",
        outcome_unknown,
        retry_after: jittered_retry_after(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(extended: std::ffi::c_int, commit_sent: bool) -> CommitFailure {
        CommitFailure::of(&Error::SqliteFailure(ffi::Error::new(extended), None), commit_sent)
    }

    #[test]
    fn a_full_disk_is_recognised_and_a_failed_commit_is_unknown() {
        assert_eq!(failure(ffi::SQLITE_FULL, true), CommitFailure::DiskFull);
        assert_eq!(failure(ffi::SQLITE_IOERR_SHMSIZE, false), CommitFailure::DiskFull);
        assert!(failure(ffi::SQLITE_IOERR_SHMSIZE, true).store_error().is_outcome_unknown());
        assert!(failure(ffi::SQLITE_IOERR_FSYNC, true).store_error().is_outcome_unknown());
        assert!(!failure(ffi::SQLITE_IOERR_WRITE, false).store_error().is_outcome_unknown());
        assert_eq!(failure(ffi::SQLITE_CORRUPT, false), CommitFailure::Damaged);
    }
}
