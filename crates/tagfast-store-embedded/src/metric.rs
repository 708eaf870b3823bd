//! Metrics of the embedded store. Those that every store records are in [`tagfast_store::metric`].

use tagfast_resilience::define_metrics;

/// What bounds the label `file`.
const FILES: &str = "files of the data directory";

define_metrics! {
    /// Metrics of this crate.
    pub const METRICS;

    /// Writes waiting for a file's writer. Above 8000: writes are about to be refused.
    pub(crate) gauge STORE_QUEUE_WRITES = "tagfast_store_queue_writes" { file in FILES };

    /// Reads slower than 2 ms: the disk is slow or the cache too small.
    pub(crate) counter STORE_SLOW_READS = "tagfast_store_slow_reads_total";

    /// Events written to the durable bus.
    pub(crate) counter BUS_EVENTS = "tagfast_bus_events_total";

    /// Events deleted from the bus one hour after every consumer group had read them.
    pub(crate) counter BUS_DELETED = "tagfast_bus_deleted_total";

    /// Events that a file retains. Grows without end: a consumer group has stopped.
    pub(crate) gauge BUS_RETAINED_EVENTS = "tagfast_bus_retained_events" { file in FILES };
}
