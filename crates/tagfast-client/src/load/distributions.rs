//! The Zipf distribution of the load generator.

use fastrand::Rng;

/// Chooses among `n` keys with skew `s`: rank r has the weight 1 / r^s. Ranks are spread over the
/// keys, so that the hot keys are not neighbours in a file.
#[derive(Debug, Clone)]
pub(super) struct Zipf {
    n: usize,
    /// Cumulative weights by rank; empty for s = 0.
    cumulative: Vec<f64>,
    stride: usize,
}

impl Zipf {
    /// A distribution over `n` > 0 keys.
    pub(super) fn new(n: usize, s: f64) -> Self {
        let mut sum = 0.0;
        let mut cumulative = Vec::new();
        if s > 0.0 {
            cumulative.reserve_exact(n);
            for rank in 1..=n {
                sum += (rank as f64).powf(-s);
                cumulative.push(sum);
            }
        }
        let mut stride = 7_368_787 % n.max(1);
        while gcd(stride, n) != 1 {
            stride += 1;
        }
        Self { n, cumulative, stride }
    }

    /// A key, 0 to n-1.
    pub(super) fn pick(&self, rng: &mut Rng) -> usize {
        let Some(total) = self.cumulative.last() else { return rng.usize(..self.n) };
        let at = rng.f64() * total;
        let rank = self.cumulative.partition_point(|c| *c <= at).min(self.n - 1);
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
        let (zipf, mut rng) = (Zipf::new(n, s), Rng::with_seed(7));
        let mut counts = vec![0; n];
        for _ in 0..100_000 {
            counts[zipf.pick(&mut rng)] += 1;
        }
        counts
    }

    #[test]
    fn without_skew_all_keys_are_equally_likely() {
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
