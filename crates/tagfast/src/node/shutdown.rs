//! The bound of a shutdown: a dependency that hangs does not keep the process.

use std::time::Duration;

/// Longest time that one step of the shutdown of a cluster node takes. What a step leaves undone is
/// repeated by the next start or by another process.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a step of the shutdown to its end or until [`STEP_TIMEOUT`] has passed.
pub(super) async fn bounded(step: &'static str, work: impl Future<Output = ()>) {
    if tokio::time::timeout(STEP_TIMEOUT, work).await.is_err() {
        tracing::warn!(step, "a step of the shutdown did not end in time; the next one begins");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_step_that_hangs_ends_at_its_bound() {
        let began = tokio::time::Instant::now();
        bounded("quick", async {}).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        bounded("hangs", std::future::pending()).await;
        assert_eq!(began.elapsed(), STEP_TIMEOUT);
    }
}
