//! Time since this machine's start, suspended or not: what leases and proofs are measured by.
//!
//! How it fails: it does not; the kernel always has this clock.

use std::time::Duration;

use tagfast_failover::BootTime;

/// Time since this machine's start.
pub(crate) fn boot_time() -> BootTime {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
    BootTime(Duration::new(seconds, nanos))
}
