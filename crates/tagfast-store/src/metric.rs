//! Metrics that every store records, with the values of their labels.

use tagfast_resilience::{counter, define_metrics, label_enum};

use crate::fair_queue::QueueFull;

label_enum! {
    /// Why a write was refused before it was applied.
    pub enum RefusalReason {
        /// The write queue is full.
        QueueFull = "queue_full",
        /// The tenant has used its share of the write queue.
        TenantShare = "tenant_share",
        /// The deadline passed in the queue.
        Deadline = "deadline",
        /// The outbox is full: its events cannot be published.
        OutboxFull = "outbox_full",
        /// The cluster has no primary.
        NoPrimary = "no_primary",
        /// The replicas lag, and a failover must not lose more.
        ReplicationLag = "replication_lag",
        /// The content refuses it, and a repair may bring back what an earlier attempt did.
        RepairOpen = "repair_open",
    }
}

label_enum! {
    /// Why a group commit failed.
    pub enum CommitFailureReason {
        /// The disk is full.
        DiskFull = "disk_full",
        /// The operating system reported an error.
        Io = "io",
        /// A store file is damaged.
        Damaged = "damaged",
        /// The connection ended during the commit: its outcome is unknown.
        Unknown = "unknown",
        /// The transaction was rolled back.
        Aborted = "aborted",
    }
}

define_metrics! {
    /// Metrics of this crate.
    pub const METRICS;

    /// Writes per group commit. Near its maximum (512) for long: the disk is the bottleneck.
    pub histogram STORE_BATCH_WRITES = "tagfast_store_batch_writes";

    /// Duration of a group commit, including its fsync.
    pub histogram STORE_COMMIT_SECONDS = "tagfast_store_commit_seconds";

    /// Writes refused before they were applied. `outbox_full` and `no_primary` occur in clusters
    /// only.
    pub counter STORE_REFUSED = "tagfast_store_refused_total" { reason: RefusalReason };

    /// Group commits that failed. Embedded: `disk_full`, `io` or `damaged`; any increase needs an
    /// operator. Cluster: `unknown` or `aborted`.
    pub counter STORE_COMMIT_FAILURES = "tagfast_store_commit_failures_total" {
        reason: CommitFailureReason,
    };
}

/// Counts a write that a full queue refused; returns what is full, for the caller of the write.
pub fn count_queue_full(full: QueueFull) -> &'static str {
    let (what, reason) = match full {
        QueueFull::Full => ("write", RefusalReason::QueueFull),
        QueueFull::TenantShare => ("tenant's share of the write", RefusalReason::TenantShare),
    };
    counter!(STORE_REFUSED, "reason" => reason).increment(1);
    what
}
