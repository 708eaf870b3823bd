//! Waiting for a condition: level-triggered, bounded, and with the last status in the failure's
//! message.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks at a condition until it holds. `Err` of `look` is not a failure but the status until then;
/// the last one is part of the panic's message.
///
/// # Panics
/// When the condition does not hold within the bound.
#[track_caller]
pub fn wait_for_condition<T, S: Display>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> Result<T, S>,
) -> T {
    let started = Instant::now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(status) if started.elapsed() >= within => give_up(what, within, &status),
            Err(_) => pause(),
        }
    }
}

/// The same for asynchronous looks; it uses tokio's time, which a test can pause.
///
/// # Panics
/// When the condition does not hold within the bound.
#[cfg(feature = "async")]
pub async fn wait_for_condition_async<T, S: Display, F: Future<Output = Result<T, S>>>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> F,
) -> T {
    let started = tokio::time::Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(status) if started.elapsed() >= within => give_up(what, within, &status),
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

#[track_caller]
fn give_up(what: &str, within: Duration, status: &impl Display) -> ! {
    panic!("{what} did not happen within {:.1} s; last status: {status}", within.as_secs_f64())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place where a test may sleep: between two looks at a condition"
)]
fn pause() {
    std::thread::sleep(LOOK_EVERY);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_returns_as_soon_as_the_condition_holds() {
        let mut looks = 0;
        let value = wait_for_condition("three looks", Duration::from_secs(5), || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(format!("{looks} looks")) }
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
    async fn the_asynchronous_one_uses_time_that_can_be_paused() {
        let started = std::time::Instant::now();
        let since = tokio::time::Instant::now();
        wait_for_condition_async("an hour", Duration::from_secs(7200), || async move {
            if since.elapsed() >= Duration::from_secs(3600) { Ok(()) } else { Err("not yet") }
        })
        .await;
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}
