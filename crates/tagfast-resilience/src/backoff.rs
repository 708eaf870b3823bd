//! Exponential backoff with jitter, as data: the policy computes the delays, the caller waits.

use std::time::Duration;

/// A retry policy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// Retries after the first attempt.
    pub retries: u32,
    /// Delay before the first retry.
    pub base: Duration,
    /// Factor from one delay to the next.
    pub factor: u32,
    /// Maximum nominal delay.
    pub cap: Duration,
}

impl Backoff {
    /// The delay before retry `n` (from 0); `None`: no retry is left. `random` in [0, 1) jitters it
    /// to 50 % to 150 % of its nominal length, so that callers which failed together do not return
    /// together.
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
        let policy = Backoff {
            retries: 3,
            base: Duration::from_millis(200),
            factor: 4,
            cap: Duration::from_millis(2000),
        };
        let delays: Vec<_> = (0..4).map(|n| policy.delay(n, 0.5).map(|d| d.as_millis())).collect();
        assert_eq!(delays, [Some(200), Some(800), Some(2000), None]);
        assert_eq!(policy.delay(0, 0.0), Some(Duration::from_millis(100)));
        assert_eq!(policy.delay(1, 0.999), Some(Duration::from_micros(1_199_200)));
    }

    #[test]
    fn no_number_of_retries_overflows() {
        let policy = Backoff {
            retries: u32::MAX,
            base: Duration::MAX,
            factor: u32::MAX,
            cap: Duration::from_secs(60),
        };
        for n in [0, 1, 31, 1000, u32::MAX - 1] {
            assert_eq!(policy.delay(n, 0.5), Some(Duration::from_secs(60)));
        }
        for random in [-1.0, 2.0, f64::INFINITY] {
            let delay = policy.delay(3, random).expect("a delay");
            assert!(
                (Duration::from_secs(30)..=Duration::from_secs(90)).contains(&delay),
                "{random}: {delay:?}"
            );
        }
        assert_eq!(Backoff { retries: 0, ..policy }.delay(0, 0.5), None);
    }
}
