//! Metrics of the process itself, from `/proc`; zero where there is none.

use tagfast_client::process_usage::usage;
use tagfast_resilience::{counter, define_metrics, gauge};

define_metrics! {
    /// Metrics of the process, by the names that dashboards of other services use too.
    pub(crate) const METRICS;

    /// Memory in use. Growing for hours at the same load: a leak.
    gauge RESIDENT_MEMORY = "process_resident_memory_bytes";

    /// Processor time used, user and system.
    counter CPU_SECONDS = "process_cpu_seconds_total";

    /// Open file descriptors. Near the process's limit new connections fail.
    gauge OPEN_FDS = "process_open_fds";

    /// Threads.
    gauge THREADS = "process_threads";

    /// Start of the process, seconds since 1970-01-01 UTC.
    gauge START_TIME = "process_start_time_seconds";
}

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
