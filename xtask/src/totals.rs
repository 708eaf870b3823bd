//! What ran, in the words of the test runner.

/// Counts of tests.
#[derive(Default, Clone, Copy)]
pub(crate) struct Totals {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// Reads a line of libtest: what follows `test result: `.
    pub(crate) fn parse(result: &str) -> Self {
        let count = |word: &str| {
            result
                .split([';', '.'])
                .filter_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
                .next()
                .unwrap_or(0)
        };
        Self { passed: count("passed"), failed: count("failed"), ignored: count("ignored") }
    }
}

#[cfg(test)]
mod tests {
    use super::Totals;

    #[test]
    fn totals_are_read_from_the_result_line() {
        let totals = Totals::parse(
            "FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s",
        );
        assert_eq!((totals.passed, totals.failed, totals.ignored), (12, 3, 1));
    }
}
