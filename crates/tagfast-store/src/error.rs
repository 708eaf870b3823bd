//! Why a store could not do what was asked, and whether to ask again.

use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::{DomainError, Refusal};

/// An error of a store. `Display` is safe to show to a client; what only an operator may see goes
/// to the log.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The write broke a rule; nothing happened.
    #[error("the write was refused: {}", refusal_text(.0))]
    Refused(Refusal),
    /// The feature belongs to the other way to run.
    #[error("{0} is not available in this mode")]
    NotInThisMode(&'static str),
    /// A queue is full: nothing happened.
    #[error("the {queue} queue is full ({limit})")]
    Overloaded {
        /// Which queue.
        queue: &'static str,
        /// Its bound.
        limit: usize,
        /// When to come back.
        retry_after: Duration,
    },
    /// The deadline passed. With `outcome_unknown` the write may still commit.
    #[error("the deadline passed while waiting for {waiting_for}")]
    Deadline {
        /// What was waited for.
        waiting_for: &'static str,
        /// Whether the write may have happened.
        outcome_unknown: bool,
    },
    /// The disk is full: nothing happened; writes work again by themselves when there is space.
    #[error("the disk of the data directory is full; nothing was written")]
    DiskFull,
    /// The store cannot serve this now. With `outcome_unknown` the write may have happened.
    #[error("the store is unavailable: {reason}")]
    Unavailable {
        /// The reason, a stable phrase.
        reason: &'static str,
        /// Whether the write may have happened.
        outcome_unknown: bool,
        /// When to come back.
        retry_after: Duration,
    },
    /// Stored data cannot be read.
    #[error("stored data of {what} is damaged")]
    Damaged {
        /// What is damaged: a file's name or a content.
        what: String,
        /// The decoding error, where there is one.
        #[source]
        source: Option<DomainError>,
    },
    /// A bug or an error nobody foresaw; details are in the log.
    #[error("internal error of the store")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn refusal_text(refusal: &Refusal) -> String {
    match refusal {
        Refusal::TooManyTags { allowed, given } => {
            format!("the content would have {given} tags; at most {allowed} are allowed")
        }
        Refusal::VersionMismatch { current } => format!("the content has version {current}"),
        Refusal::WriteIdReused => "the idempotency key was used for another operation".to_owned(),
    }
}

/// An error that several callers were told.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Shared(Arc<StoreError>);

impl StoreError {
    /// The same error for one more caller.
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
            Self::Damaged { what, source } => {
                Self::Damaged { what: what.clone(), source: source.clone() }
            }
            Self::Internal(_) => Self::Internal(Box::new(Shared(Arc::clone(self)))),
        }
    }

    /// Whether the same request can succeed later without being changed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Overloaded { .. }
            | Self::Deadline { .. }
            | Self::DiskFull
            | Self::Unavailable { .. } => true,
            Self::Refused(_)
            | Self::NotInThisMode(_)
            | Self::Damaged { .. }
            | Self::Internal(_) => false,
        }
    }

    /// Whether the write may have happened: retry it with the same id, never with a new one.
    pub fn is_outcome_unknown(&self) -> bool {
        match self {
            Self::Deadline { outcome_unknown, .. } | Self::Unavailable { outcome_unknown, .. } => {
                *outcome_unknown
            }
            Self::Internal(_) => true,
            Self::Refused(_)
            | Self::NotInThisMode(_)
            | Self::Overloaded { .. }
            | Self::DiskFull
            | Self::Damaged { .. } => false,
        }
    }

    /// When to try again.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after, .. } | Self::Unavailable { retry_after, .. } => {
                Some(*retry_after)
            }
            Self::Deadline { .. } => Some(Duration::from_secs(1)),
            Self::DiskFull => Some(Duration::from_secs(5)),
            Self::Refused(_)
            | Self::NotInThisMode(_)
            | Self::Damaged { .. }
            | Self::Internal(_) => None,
        }
    }
}
