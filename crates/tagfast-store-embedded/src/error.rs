//! What an SQLite error means for the caller.

use std::time::Duration;

use rusqlite::{Error, ErrorCode, ffi};
use tagfast_store::StoreError;

/// Whether the error says that the disk is full.
pub(crate) fn is_disk_full(error: &Error) -> bool {
    let Error::SqliteFailure(e, _) = error else { return false };
    e.code == ErrorCode::DiskFull
        // The shared-memory index and temporary files cannot grow either when the disk is full.
        || matches!(e.extended_code, ffi::SQLITE_IOERR_SHMSIZE | ffi::SQLITE_IOERR_SHMMAP)
}

/// Whether the error says that the file's content is damaged.
pub(crate) fn is_damaged(error: &Error) -> bool {
    matches!(
        error,
        Error::SqliteFailure(e, _) if matches!(e.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

/// The store error of a failed read.
pub(crate) fn read_error(file: usize, error: Error) -> StoreError {
    if is_damaged(&error) {
        tracing::error!(file, %error, "a store file is damaged");
        return StoreError::Damaged { what: format!("store-{file}.sqlite"), source: None };
    }
    unavailable(file, &error, false)
}

/// The store error of a failed group commit.
pub(crate) fn commit_error(file: usize, error: &Error, commit_sent: bool) -> StoreError {
    if is_disk_full(error) {
        metrics::counter!("tagfast_store_commit_failures_total", "reason" => "disk_full").increment(1);
        tracing::error!(file, %error, "the disk is full; writes of this file are refused until there is space");
        return StoreError::DiskFull;
    }
    metrics::counter!("tagfast_store_commit_failures_total", "reason" => "io").increment(1);
    unavailable(file, error, commit_sent)
}

fn unavailable(file: usize, error: &Error, outcome_unknown: bool) -> StoreError {
    tracing::error!(file, %error, outcome_unknown, "a store file failed");
    StoreError::Unavailable { reason: "a store file failed", outcome_unknown, retry_after: Duration::from_secs(1) }
}
