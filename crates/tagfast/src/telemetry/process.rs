//! Metrics of the process itself, from `/proc`; zero where there is none.

use tagfast_resilience::{LabelDef, MetricDef, MetricKind};

/// Clock ticks a second: `USER_HZ`, 100 on every Linux that matters.
const TICKS: f64 = 100.0;

/// Metrics of the process; the names that dashboards of other services use too.
pub const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "tagfast_webhook_messages_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("outcome", "TO DO: values")],
        help: "Messages to people of dead letters that stay: delivered, retried or given_up.",
    },
    MetricDef {
        name: "process_resident_memory_bytes",
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Memory in use. Growing for hours at the same load: a leak.",
    },
    MetricDef {
        name: "process_cpu_seconds_total",
        kind: MetricKind::Counter,
        labels: &[],
        help: "Processor time used, user and system.",
    },
    MetricDef {
        name: "process_open_fds",
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Open file descriptors. Near the process's limit new connections fail.",
    },
    MetricDef { name: "process_threads", kind: MetricKind::Gauge, labels: &[], help: "Threads." },
    MetricDef {
        name: "process_start_time_seconds",
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Start of the process, seconds since 1970-01-01 UTC.",
    },
];

/// What a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Bytes in memory.
    pub resident_bytes: u64,
    /// Processor seconds, user and system.
    pub cpu_seconds: f64,
    /// Threads.
    pub threads: u64,
}

/// What a process uses now; `None` if there is no such process (or no `/proc`).
pub fn usage(pid: Option<u32>) -> Option<Usage> {
    let dir = pid.map_or_else(|| "/proc/self".to_owned(), |p| format!("/proc/{p}"));
    let stat = std::fs::read_to_string(format!("{dir}/stat")).ok()?;
    let (cpu_seconds, threads) = parse_stat(&stat)?;
    let status = std::fs::read_to_string(format!("{dir}/status")).unwrap_or_default();
    Some(Usage { resident_bytes: parse_rss(&status), cpu_seconds, threads })
}

fn parse_stat(stat: &str) -> Option<(f64, u64)> {
    // The program's name may hold blanks and parentheses: the fields are counted after the last
    // one.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |i: usize| fields.get(i)?.parse::<u64>().ok();
    Some(((number(11)? + number(12)?) as f64 / TICKS, number(17)?))
}

fn parse_rss(status: &str) -> u64 {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Sets the metrics to what is true now.
pub fn record(started_at_seconds: f64) {
    let usage = usage(None).unwrap_or_default();
    let fds = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    metrics::gauge!("process_resident_memory_bytes").set(usage.resident_bytes as f64);
    metrics::gauge!("process_open_fds").set(fds as f64);
    metrics::gauge!("process_threads").set(usage.threads as f64);
    metrics::gauge!("process_start_time_seconds").set(started_at_seconds);
    metrics::counter!("process_cpu_seconds_total").absolute(usage.cpu_seconds as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_names_with_parentheses() {
        let stat = "42 (a) b)) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 7 0 100 1000 200";
        assert_eq!(parse_stat(stat), Some((3.0, 7)));
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn this_process_uses_something() {
        let usage = usage(None).expect("tests run on Linux");
        assert!(usage.resident_bytes > 1 << 20 && usage.threads >= 1);
        assert_eq!(super::usage(Some(u32::MAX)), None);
    }
}
