//! Time since this machine's start, suspended or not: what leases and proofs are measured by.
//!
//! How it fails: it does not; the kernel always has this clock.

use std::time::Duration;

use tagfast_domain::UnixMillis;
use tagfast_failover::BootTime;

/// Time since this machine's start.
pub(crate) fn boot_time() -> BootTime {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
    BootTime(Duration::new(seconds, nanos))
}

/// The present, on both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) boot: BootTime,
    /// In Unix ms.
    pub(crate) wall: UnixMillis,
}

impl Moment {
    /// A time of this machine's uptime, in Unix ms.
    pub(crate) fn wall_time(self, at: BootTime) -> UnixMillis {
        let ago = self.boot.0.saturating_sub(at.0).as_millis();
        self.wall.saturating_sub(i64::try_from(ago).unwrap_or(i64::MAX))
    }
}
