//! Random choices that repeat with the seed: a small generator and a Zipf distribution.

/// SplitMix64: fast, and good enough to choose keys.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// With a seed; equal seeds give equal numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n` (0 for `n` = 0).
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// A number in [0, 1).
    pub fn fraction(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Chooses among `n` keys with skew `s`: rank r has a weight of 1 / r^s. The ranks are spread over
/// the keys, so that neighbours in a file are not all hot.
#[derive(Debug, Clone)]
pub struct Zipf {
    n: usize,
    /// Cumulated weights by rank; empty for s = 0.
    cumulated: Vec<f64>,
    stride: usize,
}

impl Zipf {
    /// For `n` > 0 keys.
    pub fn new(n: usize, s: f64) -> Self {
        let mut sum = 0.0;
        let mut cumulated = Vec::new();
        if s > 0.0 {
            cumulated.reserve_exact(n);
            for rank in 1..=n {
                sum += (rank as f64).powf(-s);
                cumulated.push(sum);
            }
        }
        let mut stride = 7_368_787 % n.max(1);
        while gcd(stride, n) != 1 {
            stride += 1;
        }
        Self { n, cumulated, stride }
    }

    /// A key, 0 to n-1.
    pub fn pick(&self, rng: &mut Rng) -> usize {
        let Some(total) = self.cumulated.last() else { return rng.below(self.n) };
        let at = rng.fraction() * total;
        let rank = self.cumulated.partition_point(|c| *c <= at).min(self.n - 1);
        ((rank as u128 * self.stride as u128) % self.n as u128) as usize
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(n: usize, s: f64) -> Vec<u32> {
        let (zipf, mut rng) = (Zipf::new(n, s), Rng::new(7));
        let mut counts = vec![0; n];
        for _ in 0..100_000 {
            counts[zipf.pick(&mut rng)] += 1;
        }
        counts
    }

    #[test]
    fn without_skew_all_are_alike() {
        assert!(counts(10, 0.0).iter().all(|c| (9_000..11_000).contains(c)));
    }

    #[test]
    fn with_skew_the_first_ranks_get_their_share() {
        let mut counts = counts(1000, 1.0);
        counts.sort_unstable_by(|a, b| b.cmp(a));
        // 1 / H(1000) = 13.4 % and half of it.
        assert!(
            (12_800..14_000).contains(&counts[0]) && (6_200..7_200).contains(&counts[1]),
            "{:?}",
            &counts[..3]
        );
    }

    #[test]
    fn every_key_can_be_chosen_also_a_single_one() {
        assert_eq!(counts(1, 0.99), [100_000]);
        assert!(counts(2, 0.99).iter().all(|c| *c > 0));
    }
}
