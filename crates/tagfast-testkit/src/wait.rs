//! Waits for a condition: polled, with a timeout, and with the last status in the failure message.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Interval between two polls.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Polls until the condition holds. `Err` of `poll` is no failure but the current status; the panic
/// message shows the last one.
///
/// # Panics
/// The condition does not hold within the timeout.
#[track_caller]
pub fn wait_for_condition<T, S: Display>(
    what: &str,
    timeout: Duration,
    mut poll: impl FnMut() -> Result<T, S>,
) -> T {
    let started = Instant::now();
    loop {
        match poll() {
            Ok(value) => return value,
            Err(status) if started.elapsed() >= timeout => give_up(what, timeout, &status),
            Err(_) => pause(),
        }
    }
}

/// As [`wait_for_condition`], for an asynchronous poll. Uses tokio's time, which a test can pause.
///
/// # Panics
/// The condition does not hold within the timeout.
#[cfg(feature = "async")]
pub async fn wait_for_condition_async<T, S: Display, F: Future<Output = Result<T, S>>>(
    what: &str,
    timeout: Duration,
    mut poll: impl FnMut() -> F,
) -> T {
    let started = tokio::time::Instant::now();
    loop {
        match poll().await {
            Ok(value) => return value,
            Err(status) if started.elapsed() >= timeout => give_up(what, timeout, &status),
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

#[track_caller]
fn give_up(what: &str, timeout: Duration, status: &impl Display) -> ! {
    panic!("{what} did not happen within {:.1} s; last status: {status}", timeout.as_secs_f64())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place where a test may sleep: between two polls of a condition"
)]
fn pause() {
    std::thread::sleep(POLL_INTERVAL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_returns_as_soon_as_the_condition_holds() {
        let mut polls = 0;
        let value = wait_for_condition("three polls", Duration::from_secs(5), || {
            polls += 1;
            if polls == 3 { Ok(polls) } else { Err(format!("{polls} polls")) }
        });
        assert_eq!(value, 3);
    }

    #[test]
    #[should_panic(expected = "a miracle did not happen within 0.0 s; last status: nothing seen")]
    fn it_fails_with_the_last_status() {
        wait_for_condition::<(), _>("a miracle", Duration::from_millis(20), || Err("nothing seen"));
    }

    #[cfg(feature = "async")]
    #[tokio::test(start_paused = true)]
    async fn the_asynchronous_variant_uses_time_that_can_be_paused() {
        let started = std::time::Instant::now();
        let since = tokio::time::Instant::now();
        wait_for_condition_async("an hour", Duration::from_secs(7200), || async move {
            if since.elapsed() >= Duration::from_secs(3600) { Ok(()) } else { Err("not yet") }
        })
        .await;
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}
