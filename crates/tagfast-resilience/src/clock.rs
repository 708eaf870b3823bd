//! Wall time, injected, so that windows, expiry and ages are tested without waiting.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A source of wall time.
pub trait Clock: Send + Sync + 'static {
    /// Unix time in ms.
    fn now_ms(&self) -> i64;
}

/// The machine's clock. It may step; the order of writes never depends on it (versions order them).
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
    }
}

/// A clock that a test moves.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// Starts at `now_ms`.
    pub fn new(now_ms: i64) -> Self {
        Self(AtomicI64::new(now_ms))
    }

    /// Moves it by `ms` milliseconds, forwards or backwards.
    pub fn advance(&self, ms: i64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_on_request() {
        let clock = ManualClock::new(1000);
        clock.advance(500);
        assert_eq!(clock.now_ms(), 1500);
        clock.advance(-600);
        assert_eq!(clock.now_ms(), 900, "clocks step back too");
    }

    #[test]
    fn the_machines_clock_is_in_this_century() {
        let (from, to) = (1_767_225_600_000, 4_102_444_800_000);
        assert!((from..to).contains(&SystemClock.now_ms()), "{}", SystemClock.now_ms());
    }
}
