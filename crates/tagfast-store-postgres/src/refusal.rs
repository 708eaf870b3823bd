//! How the store refuses: the errors that more than one subsystem returns, with a jittered
//! `Retry-After`, so that callers that were refused together do not return together.
//!
//! How it fails: it does not.

use tagfast_resilience::jittered_retry_after;
use tagfast_store::StoreError;

/// The cluster cannot serve the call now.
pub(crate) fn unavailable(reason: &'static str, outcome_unknown: bool) -> StoreError {
    StoreError::Unavailable { reason, outcome_unknown, retry_after: jittered_retry_after() }
}

/// A queue or a limit is full.
pub(crate) fn overloaded(queue: &'static str, limit: usize) -> StoreError {
    StoreError::Overloaded { queue, limit, retry_after: jittered_retry_after() }
}
