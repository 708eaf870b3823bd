//! Chance for what is only to be spread: no dependency, and repeatable where a test needs that.

use std::hash::{BuildHasher, Hasher, RandomState};

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
