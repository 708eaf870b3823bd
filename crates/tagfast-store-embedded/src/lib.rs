//! The embedded store: SQLite files in one directory, group commit, the outbox as the durable bus.
//!
//! Why files: fsyncs of several files overlap while each still joins many writes. A content lives
//! in file `shard % files`; the number of files is kept in the data directory and never changes.
//!
//! How it fails: a write is acknowledged after COMMIT with `synchronous=FULL`, so neither `kill -9`
//! nor a power cut takes it back. A full disk refuses writes and harms nothing. A damaged file is
//! refused at open, by name. Another process in the same directory is refused, by pid.

pub mod backup;
mod bus;
mod directory;
mod error;
mod inspect;
mod letters;
mod manifest;
mod queue;
mod reader;
mod retention;
mod rows;
mod schema;
mod store;
mod writer;

pub use bus::EmbeddedBus;
pub use directory::{OpenError, OpenOptions};
pub use inspect::debug_dump;
pub use letters::EmbeddedLetters;
pub use store::EmbeddedStore;

use tagfast_resilience::{LabelDef, MetricDef, MetricKind};

/// Number of files of a new data directory: fsyncs overlap while batches stay above ten writes.
pub const DEFAULT_FILES: u8 = 8;

/// Metrics of this crate.
pub const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "tagfast_store_batch_writes",
        kind: MetricKind::Histogram,
        labels: &[],
        help: "Writes per group commit. Near 512 for long: the disk is the bottleneck.",
    },
    MetricDef {
        name: "tagfast_store_commit_seconds",
        kind: MetricKind::Histogram,
        labels: &[],
        help: "Time of one group commit including its fsync.",
    },
    MetricDef {
        name: "tagfast_store_queue_writes",
        kind: MetricKind::Gauge,
        labels: &[LabelDef::bounded("file", "TO DO: values")],
        help: "Writes waiting for a file's writer. Above 8000: writes are about to be refused.",
    },
    MetricDef {
        name: "tagfast_store_refused_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("reason", "TO DO: values")],
        help: "Writes refused before they were applied: queue_full, tenant_share or deadline.",
    },
    MetricDef {
        name: "tagfast_store_commit_failures_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("reason", "TO DO: values")],
        help: "Group commits that failed: disk_full, io or damaged. Any increase needs an operator.",
    },
    MetricDef {
        name: "tagfast_store_slow_reads_total",
        kind: MetricKind::Counter,
        labels: &[],
        help: "Reads slower than 2 ms: the disk is slow or the cache too small.",
    },
    MetricDef {
        name: "tagfast_bus_events_total",
        kind: MetricKind::Counter,
        labels: &[],
        help: "Events written to the durable bus.",
    },
    MetricDef {
        name: "tagfast_bus_deleted_total",
        kind: MetricKind::Counter,
        labels: &[],
        help: "Events deleted from the bus after every group had them for an hour.",
    },
    MetricDef {
        name: "tagfast_bus_retained_events",
        kind: MetricKind::Gauge,
        labels: &[LabelDef::bounded("file", "TO DO: values")],
        help: "Events a file keeps. Grows without end: a consumer group has stopped.",
    },
];
