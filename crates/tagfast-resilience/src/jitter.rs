//! Randomness that only spreads load: jittered delays, and seeded generators for repeatable tests.

use std::time::Duration;

/// The `Retry-After` of a refusal: a random time of 1 to 3 s, so that clients which were refused
/// together do not return together.
pub fn jittered_retry_after() -> Duration {
    retry_after(fastrand::f64())
}

/// A duration of 80 % to 120 % of `nominal`, so that entries created together do not expire
/// together.
pub fn jittered(nominal: Duration) -> Duration {
    nominal.mul_f64(0.8 + 0.4 * fastrand::f64())
}

/// The `Retry-After` for `random` in [0, 1).
pub(crate) fn retry_after(random: f64) -> Duration {
    Duration::from_secs_f64(1.0 + 2.0 * random)
}

/// A generator with that seed; 0: a random seed.
pub(crate) fn seeded_rng(seed: u64) -> fastrand::Rng {
    if seed == 0 { fastrand::Rng::new() } else { fastrand::Rng::with_seed(seed) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn delays_are_spread_within_their_bounds() {
        let seconds = |delay: &Duration| delay.as_secs_f64();
        let delays: HashSet<Duration> = (0..1000).map(|_| jittered_retry_after()).collect();
        assert!(delays.len() > 990);
        assert!(delays.iter().all(|delay| (1.0..3.0).contains(&seconds(delay))));
        let expiries: HashSet<Duration> =
            (0..1000).map(|_| jittered(Duration::from_secs(10))).collect();
        assert!(expiries.len() > 990);
        assert!(expiries.iter().all(|expiry| (8.0..=12.0).contains(&seconds(expiry))));
    }

    #[test]
    fn a_seeded_generator_is_even_and_repeatable() {
        let (mut rng, mut same) = (seeded_rng(7), seeded_rng(7));
        let mut tenths = [0u32; 10];
        for _ in 0..10_000 {
            let number = rng.f64();
            assert_eq!(number.to_bits(), same.f64().to_bits());
            tenths[(number * 10.0) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| (850..1150).contains(count)), "{tenths:?}");
        assert_ne!(seeded_rng(0).u64(..), seeded_rng(0).u64(..), "seed 0 draws a random seed");
    }
}
