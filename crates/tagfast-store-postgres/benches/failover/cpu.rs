//! Processor time of PostgreSQL and of this process's callers and store, in nanoseconds, as the
//! scheduler counts it. The threads of the fault proxy, which run in this process too, are left
//! out.

use std::path::Path;

use tagfast_testkit::stack::host;

/// The name of the threads that callers and stores run on; at most 15 characters.
pub(crate) const THREADS: &str = "bench-failover";

/// Processor time so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CpuTime {
    servers_ns: u64,
    process_ns: u64,
}

/// Processor time for each operation, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CpuEach {
    /// Of the PostgreSQL server.
    pub(crate) server_us: f64,
    /// Of the store and its callers.
    pub(crate) process_us: f64,
}

impl CpuEach {
    pub(crate) fn total_us(self) -> f64 {
        self.server_us + self.process_us
    }
}

/// The first number of a `schedstat`: the time on a processor.
fn time_ns(schedstat: &Path) -> u64 {
    let text = std::fs::read_to_string(schedstat).unwrap_or_default();
    text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

impl CpuTime {
    /// Of the server with this data directory, and of this process. Sessions that have ended do not
    /// count.
    pub(crate) fn now(data_dir: &Path) -> Self {
        let servers = host::processes_in(data_dir).into_iter();
        let servers_ns = servers
            .map(|process| time_ns(Path::new(&format!("/proc/{}/schedstat", process.pid))))
            .sum();
        let threads = std::fs::read_dir("/proc/self/task").expect("this process has threads");
        let is_ours = |dir: &Path| {
            std::fs::read_to_string(dir.join("comm")).is_ok_and(|comm| comm.trim() == THREADS)
        };
        let process_ns = threads
            .flatten()
            .map(|thread| thread.path())
            .filter(|dir| is_ours(dir))
            .map(|dir| time_ns(&dir.join("schedstat")))
            .sum();
        assert!(process_ns > 0, "the kernel counts no processor time in /proc/self/task");
        Self { servers_ns, process_ns }
    }

    /// For each of so many operations since an earlier moment.
    pub(crate) fn each_since(self, before: Self, operations: f64) -> CpuEach {
        let each = |now: u64, before: u64| now.saturating_sub(before) as f64 / 1000.0 / operations;
        CpuEach {
            server_us: each(self.servers_ns, before.servers_ns),
            process_us: each(self.process_ns, before.process_ns),
        }
    }
}
