//! Exponential backoff with jitter, as data: the policy says the delays, the caller waits.

use std::time::Duration;

/// How often and how late to try again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// Retries after the first attempt.
    pub retries: u32,
    /// Delay before the first retry.
    pub base: Duration,
    /// Factor from one delay to the next.
    pub factor: u32,
    /// No delay is longer.
    pub cap: Duration,
}

impl Backoff {
    /// The delay before retry `n` (from 0), or `None` when no retry is left. `random` in [0, 1) spreads it over
    /// half to one and a half of its nominal length, so that callers which failed together do not return together.
    pub fn delay(&self, n: u32, random: f64) -> Option<Duration> {
        (n < self.retries).then(|| {
            let nominal = self.base.saturating_mul(self.factor.saturating_pow(n)).min(self.cap);
            nominal.mul_f64(0.5 + random.clamp(0.0, 1.0))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_stay_below_the_cap_and_end() {
        let policy =
            Backoff { retries: 3, base: Duration::from_millis(200), factor: 4, cap: Duration::from_millis(2000) };
        let delays: Vec<_> = (0..4).map(|n| policy.delay(n, 0.5).map(|d| d.as_millis())).collect();
        assert_eq!(delays, [Some(200), Some(800), Some(2000), None]);
        assert_eq!(policy.delay(0, 0.0), Some(Duration::from_millis(100)));
    }
}
