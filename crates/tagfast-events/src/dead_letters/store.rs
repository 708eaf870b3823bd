//! The dead-letter store port.

use async_trait::async_trait;
use tagfast_domain::UnixMillis;

use super::model::{
    AuditCursor, AuditEntry, AuditPage, DeadLetterCursor, DeadLetterFilter, DeadLetterPage,
    GroupDeadLetters, NewReplayJob, ReplayJob, ReplayResult, StoredDeadLetter,
};
use super::policy::AutoReplayPolicy;
use crate::bus::{ConsumerGroup, Partition};
use crate::error::BoxError;

/// Why a call of the dead-letter store failed.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterStoreError {
    /// It cannot be reached, read or written now; the caller tries again.
    #[error("the dead-letter store is unavailable")]
    Unavailable(#[source] BoxError),
    /// A stored row does not have the format of this program.
    #[error("the {0} of a stored dead letter cannot be read")]
    Damaged(&'static str),
}

impl DeadLetterStoreError {
    /// The store cannot be used now because of `source`, an error or a sentence.
    pub fn unavailable(source: impl Into<BoxError>) -> Self {
        Self::Unavailable(source.into())
    }
}

/// Stores dead letters, replay jobs and the audit log.
///
/// # Errors
///
/// Every call returns [`DeadLetterStoreError::Unavailable`] while the store cannot be used, and
/// calls that return dead letters [`DeadLetterStoreError::Damaged`] for a row they cannot read.
#[async_trait]
pub trait DeadLetterStore: Send + Sync {
    /// Dead letters of a filter, newest failures first; at most `limit` and
    /// [`DEAD_LETTERS_PAGE_MAX`](super::model::DEAD_LETTERS_PAGE_MAX).
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Damaged`.
    async fn list(
        &self,
        filter: &DeadLetterFilter,
        after: Option<&DeadLetterCursor>,
        limit: usize,
    ) -> Result<DeadLetterPage, DeadLetterStoreError>;

    /// Counts the open dead letters of every group.
    ///
    /// # Errors
    ///
    /// `Unavailable`.
    async fn open_counts(
        &self,
        policy: AutoReplayPolicy,
    ) -> Result<Vec<GroupDeadLetters>, DeadLetterStoreError>;

    /// Creates a replay job and assigns it the open, unassigned dead letters of a filter.
    ///
    /// # Errors
    ///
    /// `Unavailable`: the job may exist with none, some or all of them.
    async fn create_job(
        &self,
        job: &NewReplayJob,
        filter: &DeadLetterFilter,
    ) -> Result<ReplayJob, DeadLetterStoreError>;

    /// A replay job; `None` if its id is unknown or was purged.
    ///
    /// # Errors
    ///
    /// `Unavailable`.
    async fn job(&self, id: &str) -> Result<Option<ReplayJob>, DeadLetterStoreError>;

    /// Up to `limit` dead letters of the oldest unfinished job, of these partitions of a group, by
    /// offset; `None` if no job has any. They stay assigned.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Damaged`.
    async fn take_batch(
        &self,
        group: ConsumerGroup,
        partitions: &[Partition],
        limit: usize,
    ) -> Result<Option<(ReplayJob, Vec<StoredDeadLetter>)>, DeadLetterStoreError>;

    /// Stores the outcomes of a job's dead letters. One that is no longer in the job stays as it
    /// is.
    ///
    /// # Errors
    ///
    /// `Unavailable`: some outcomes may be stored; storing them again is harmless.
    async fn complete(
        &self,
        job: &ReplayJob,
        results: &[ReplayResult],
        at: UnixMillis,
    ) -> Result<(), DeadLetterStoreError>;

    /// Discards the open dead letters of a filter; returns how many.
    ///
    /// # Errors
    ///
    /// `Unavailable`: some may be discarded.
    async fn discard(
        &self,
        filter: &DeadLetterFilter,
        reason: &str,
        at: UnixMillis,
    ) -> Result<u64, DeadLetterStoreError>;

    /// Appends to the audit log.
    ///
    /// # Errors
    ///
    /// `Unavailable`.
    async fn audit(&self, entry: &AuditEntry) -> Result<(), DeadLetterStoreError>;

    /// The audit log behind a position, newest first, at most `limit` entries.
    ///
    /// # Errors
    ///
    /// `Unavailable`.
    async fn audit_log(
        &self,
        after: AuditCursor,
        limit: usize,
    ) -> Result<AuditPage, DeadLetterStoreError>;

    /// Leader election: whether this process is the leader, which replays automatically and sends
    /// notifications. Correctness must not depend on there being one leader only.
    ///
    /// # Errors
    ///
    /// `Unavailable`: the process must act as if it did not lead.
    async fn try_lead(&self) -> Result<bool, DeadLetterStoreError>;

    /// Deletes closed dead letters, finished jobs and audit entries older than `before` (Unix ms).
    ///
    /// # Errors
    ///
    /// `Unavailable`.
    async fn purge_closed_before(&self, before: UnixMillis) -> Result<(), DeadLetterStoreError>;
}
