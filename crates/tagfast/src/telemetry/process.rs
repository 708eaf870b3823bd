//! Metrics of the process itself, from `/proc`; zero where there is none.

use tagfast_client::process_usage::usage;
use tagfast_resilience::{MetricDef, MetricKind, counter, gauge};

const RESIDENT_MEMORY: MetricDef = MetricDef {
    name: "process_resident_memory_bytes",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "Memory in use. Growing for hours at the same load: a leak.",
};
const CPU_SECONDS: MetricDef = MetricDef {
    name: "process_cpu_seconds_total",
    kind: MetricKind::Counter,
    labels: &[],
    help: "Processor time used, user and system.",
};
const OPEN_FDS: MetricDef = MetricDef {
    name: "process_open_fds",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "Open file descriptors. Near the process's limit new connections fail.",
};
const THREADS: MetricDef =
    MetricDef { name: "process_threads", kind: MetricKind::Gauge, labels: &[], help: "Threads." };
const START_TIME: MetricDef = MetricDef {
    name: "process_start_time_seconds",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "Start of the process, seconds since 1970-01-01 UTC.",
};

/// Metrics of the process, by the names that dashboards of other services use too.
pub(crate) const METRICS: &[MetricDef] =
    &[RESIDENT_MEMORY, CPU_SECONDS, OPEN_FDS, THREADS, START_TIME];

/// Sets the metrics to their present values.
pub(crate) fn record(started_at_seconds: f64) {
    let usage = usage(None).unwrap_or_default();
    let fds = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    gauge!(RESIDENT_MEMORY).set(usage.resident_bytes as f64);
    gauge!(OPEN_FDS).set(fds as f64);
    gauge!(THREADS).set(usage.threads as f64);
    gauge!(START_TIME).set(started_at_seconds);
    counter!(CPU_SECONDS).absolute(usage.cpu_seconds as u64);
}
