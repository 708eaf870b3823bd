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

/// A commit that no replica has, while no more may be exposed.
pub(crate) const NO_REPLICA_IN_TIME: &str =
    "no replica has the newest writes, and a failover must not lose more (store.max_loss_ms)";
/// A replicated write that the replicas did not confirm.
pub(crate) const NOT_REPLICATED_IN_TIME: &str = "the replicas did not confirm the write in time";
/// A replicated write without a replica to confirm it.
pub(crate) const NO_REPLICA: &str =
    "`Durability: replicated` needs a replica that streams from the primary, and there is none";

/// A content refuses a write that was perhaps taken before a failover.
pub(crate) const REPAIR_OPEN: &str =
    "a failover came between, and its repair may still bring an earlier attempt of the write back";

/// More would be acknowledged than a failover may lose, or a write that asked for replicas lacks
/// them.
pub(crate) fn replication_lag(reason: &'static str, outcome_unknown: bool) -> StoreError {
    StoreError::ReplicationLag { reason, outcome_unknown, retry_after: jittered_retry_after() }
}
