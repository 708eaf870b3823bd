//! The error type of a store: what happened, whether a retry can help, and when.

use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::{DomainError, Refusal};
use tagfast_resilience::jittered_retry_after;

/// Added to the jittered delay after [`StoreError::DiskFull`]: space does not appear in a second.
const DISK_FULL_RETRY_MIN: Duration = Duration::from_secs(4);

/// An error of a store. `Display` is safe to show to a client; details for the operator go to the
/// log.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The write broke a rule. Nothing happened.
    #[error("the write was refused: {}", refusal_text(.0))]
    Refused(Refusal),
    /// The feature does not exist in this mode (embedded or cluster). Nothing happened.
    #[error("{0} is not available in this mode")]
    NotInThisMode(&'static str),
    /// A queue is full (backpressure). Nothing happened.
    #[error("the {queue} queue is full ({limit})")]
    Overloaded {
        /// The queue.
        queue: &'static str,
        /// Its capacity.
        limit: usize,
        /// When the caller should retry.
        retry_after: Duration,
    },
    /// The deadline passed. With `outcome_unknown` the write may still commit.
    #[error("the deadline passed while waiting for {waiting_for}")]
    Deadline {
        /// What the caller waited for.
        waiting_for: &'static str,
        /// Whether the write may have happened.
        outcome_unknown: bool,
    },
    /// The disk is full. Nothing happened; writes resume when there is space again.
    #[error("the disk of the data directory is full; nothing was written")]
    DiskFull,
    /// The store cannot serve the request now. With `outcome_unknown` the write may have happened.
    #[error("the store is unavailable: {reason}")]
    Unavailable {
        /// The reason, a stable phrase.
        reason: &'static str,
        /// Whether the write may have happened.
        outcome_unknown: bool,
        /// When the caller should retry.
        retry_after: Duration,
    },
    /// Too few replicas have the newest writes: a failover could lose more than is allowed, or this
    /// write asked for them. With `outcome_unknown` the write may have happened.
    #[error("the replicas lag: {reason}")]
    ReplicationLag {
        /// The reason, a stable phrase.
        reason: &'static str,
        /// Whether the write may have happened.
        outcome_unknown: bool,
        /// When the caller should retry.
        retry_after: Duration,
    },
    /// Stored data cannot be read.
    #[error("stored data of {what} is damaged")]
    Damaged {
        /// The damaged file or content.
        what: String,
        /// The decoding error; `None` when a whole file is damaged.
        #[source]
        source: Option<DomainError>,
    },
    /// A bug or an unexpected error; details are in the log.
    #[error("internal error of the store")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn refusal_text(refusal: &Refusal) -> String {
    match refusal {
        Refusal::TooManyTags { allowed, given } => {
            format!("the content would have {given} tags; at most {allowed} are allowed")
        }
        Refusal::VersionMismatch { current } => format!("the content has version {current}"),
        Refusal::WriteIdReused => {
            "the idempotency key was used for a different operation".to_owned()
        }
        Refusal::KeyReused => {
            "the idempotency key came with a different call or different contents before".to_owned()
        }
    }
}

/// An error shared by several callers.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct SharedError(Arc<StoreError>);

impl StoreError {
    /// The same error for another caller that waited for the same work.
    #[must_use]
    pub fn share(self: &Arc<Self>) -> Self {
        match &**self {
            Self::Refused(refusal) => Self::Refused(*refusal),
            Self::NotInThisMode(feature) => Self::NotInThisMode(feature),
            Self::Overloaded { queue, limit, retry_after } => {
                Self::Overloaded { queue, limit: *limit, retry_after: *retry_after }
            }
            Self::Deadline { waiting_for, outcome_unknown } => {
                Self::Deadline { waiting_for, outcome_unknown: *outcome_unknown }
            }
            Self::DiskFull => Self::DiskFull,
            Self::Unavailable { reason, outcome_unknown, retry_after } => Self::Unavailable {
                reason,
                outcome_unknown: *outcome_unknown,
                retry_after: *retry_after,
            },
            Self::ReplicationLag { reason, outcome_unknown, retry_after } => Self::ReplicationLag {
                reason,
                outcome_unknown: *outcome_unknown,
                retry_after: *retry_after,
            },
            Self::Damaged { what, source } => {
                Self::Damaged { what: what.clone(), source: source.clone() }
            }
            Self::Internal(_) => Self::Internal(Box::new(SharedError(Arc::clone(self)))),
        }
    }

    /// Whether the same request can succeed later, unchanged.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Overloaded { .. }
            | Self::Deadline { .. }
            | Self::DiskFull
            | Self::Unavailable { .. }
            | Self::ReplicationLag { .. } => true,
            Self::Refused(_)
            | Self::NotInThisMode(_)
            | Self::Damaged { .. }
            | Self::Internal(_) => false,
        }
    }

    /// Whether the write may have happened. If so, the caller must retry it with the same id, never
    /// with a new one.
    pub fn is_outcome_unknown(&self) -> bool {
        match self {
            Self::Deadline { outcome_unknown, .. }
            | Self::Unavailable { outcome_unknown, .. }
            | Self::ReplicationLag { outcome_unknown, .. } => *outcome_unknown,
            Self::Internal(_) => true,
            Self::Refused(_)
            | Self::NotInThisMode(_)
            | Self::Overloaded { .. }
            | Self::DiskFull
            | Self::Damaged { .. } => false,
        }
    }

    /// When the caller should retry, jittered; `None` when a retry cannot help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after, .. }
            | Self::Unavailable { retry_after, .. }
            | Self::ReplicationLag { retry_after, .. } => Some(*retry_after),
            Self::Deadline { .. } => Some(jittered_retry_after()),
            Self::DiskFull => Some(DISK_FULL_RETRY_MIN + jittered_retry_after()),
            Self::Refused(_)
            | Self::NotInThisMode(_)
            | Self::Damaged { .. }
            | Self::Internal(_) => None,
        }
    }
}
