//! Chance for what is only to be spread: no dependency, and repeatable where a test needs that.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number in [0, 1), another one for every caller of the process; good enough to spread, for
/// nothing else.
pub fn chance() -> f64 {
    static DRAWN: AtomicU64 = AtomicU64::new(0);
    // SplitMix64.
    let mut x = DRAWN.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// When somebody who was refused should ask again: 1 to 3 s, so that those who were refused
/// together do not come back together.
pub fn comes_back() -> Duration {
    Duration::from_secs_f64(1.0 + 2.0 * chance())
}

/// The `Retry-After` of a refusal: a random time of 1 to 3 s, so that clients which were refused
/// together do not return together.
pub fn jittered_retry_after() -> Duration {
    Duration::from_secs_f64(1.0 + 2.0 * fastrand::f64())
}

/// A xorshift generator: good enough to keep apart what failed together, for nothing else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Jitter(u64);

impl Jitter {
    /// Of that seed; 0: drawn by chance.
    pub(crate) fn new(seed: u64) -> Self {
        Self(if seed == 0 { RandomState::new().build_hasher().finish() } else { seed } | 1)
    }

    /// The next number in [0, 1).
    pub(crate) fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_even_and_never_the_same() {
        let mut tenths = [0u32; 10];
        (0..10_000).for_each(|_| tenths[(chance() * 10.0) as usize] += 1);
        assert!(tenths.iter().all(|count| (850..1150).contains(count)), "{tenths:?}");
        let times: std::collections::HashSet<Duration> = (0..1000).map(|_| comes_back()).collect();
        assert!(
            times.len() > 990 && times.iter().all(|time| (1.0..3.0).contains(&time.as_secs_f64()))
        );
    }

    #[test]
    fn it_spreads_evenly_and_repeats() {
        let mut jitter = Jitter::new(7);
        let mut same = Jitter::new(7);
        let mut tenths = [0u32; 10];
        for _ in 0..10_000 {
            let number = jitter.next();
            assert!((0.0..1.0).contains(&number));
            assert_eq!(number.to_bits(), same.next().to_bits());
            tenths[(number * 10.0) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| (850..1150).contains(count)), "{tenths:?}");
        assert_ne!(Jitter::new(0).0, Jitter::new(0).0, "drawn by chance");
    }
}
