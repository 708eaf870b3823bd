//! Metrics that every store records, with the values of their labels.

use tagfast_resilience::label_enum;
use tagfast_resilience::metric::{LabelDef, MetricDef, MetricKind};

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

/// Writes per group commit.
pub const STORE_BATCH_WRITES: MetricDef = MetricDef {
    name: "tagfast_store_batch_writes",
    kind: MetricKind::Histogram,
    labels: &[],
    help: "Writes per group commit. Near its maximum (512) for long: the disk is the bottleneck.",
};

/// Duration of group commits.
pub const STORE_COMMIT_SECONDS: MetricDef = MetricDef {
    name: "tagfast_store_commit_seconds",
    kind: MetricKind::Histogram,
    labels: &[],
    help: "Duration of a group commit, including its fsync.",
};

/// Refused writes.
pub const STORE_REFUSED: MetricDef = MetricDef {
    name: "tagfast_store_refused_total",
    kind: MetricKind::Counter,
    labels: &[LabelDef::of::<RefusalReason>("reason")],
    help: "Writes refused before they were applied. `outbox_full` and `no_primary` occur in clusters only.",
};

/// Failed group commits.
pub const STORE_COMMIT_FAILURES: MetricDef = MetricDef {
    name: "tagfast_store_commit_failures_total",
    kind: MetricKind::Counter,
    labels: &[LabelDef::of::<CommitFailureReason>("reason")],
    help: "Group commits that failed. Embedded: `disk_full`, `io` or `damaged`; any increase needs an operator. Cluster: `unknown` or `aborted`.",
};

/// Metrics of this crate.
pub const METRICS: &[MetricDef] =
    &[STORE_BATCH_WRITES, STORE_COMMIT_SECONDS, STORE_REFUSED, STORE_COMMIT_FAILURES];
