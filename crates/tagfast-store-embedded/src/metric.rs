//! Metrics of the embedded store. Those that every store records are in [`tagfast_store::metric`].

use tagfast_resilience::metric::{LabelDef, MetricDef, MetricKind};

const FILE: LabelDef = LabelDef::bounded("file", "files of the data directory");

pub(crate) const STORE_QUEUE_WRITES: MetricDef = MetricDef {
    name: "tagfast_store_queue_writes",
    kind: MetricKind::Gauge,
    labels: &[FILE],
    help: "Writes waiting for a file's writer. Above 8000: writes are about to be refused.",
};

pub(crate) const STORE_SLOW_READS: MetricDef = MetricDef {
    name: "tagfast_store_slow_reads_total",
    kind: MetricKind::Counter,
    labels: &[],
    help: "Reads slower than 2 ms: the disk is slow or the cache too small.",
};

pub(crate) const BUS_EVENTS: MetricDef = MetricDef {
    name: "tagfast_bus_events_total",
    kind: MetricKind::Counter,
    labels: &[],
    help: "Events written to the durable bus.",
};

pub(crate) const BUS_DELETED: MetricDef = MetricDef {
    name: "tagfast_bus_deleted_total",
    kind: MetricKind::Counter,
    labels: &[],
    help: "Events deleted from the bus one hour after every consumer group had read them.",
};

pub(crate) const BUS_RETAINED_EVENTS: MetricDef = MetricDef {
    name: "tagfast_bus_retained_events",
    kind: MetricKind::Gauge,
    labels: &[FILE],
    help: "Events that a file retains. Grows without end: a consumer group has stopped.",
};

/// Metrics of this crate.
pub const METRICS: &[MetricDef] =
    &[STORE_QUEUE_WRITES, STORE_SLOW_READS, BUS_EVENTS, BUS_DELETED, BUS_RETAINED_EVENTS];
