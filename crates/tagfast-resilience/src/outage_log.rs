//! Logs an outage when it begins, now and then while it lasts, and when it is over.
//!
//! A loop that fails ten times a second would otherwise bury the log; one that logs only its first
//! failure hides that the outage goes on.

use std::error::Error;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::ErrorChain;

/// While an outage lasts it is logged again after this long.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);

/// The log of one thing that can fail over and over: reading etcd, sending to Kafka.
#[derive(Debug)]
pub struct OutageLog {
    what: &'static str,
    /// Which of several: a cluster, a partition. Empty when there is only one.
    instance: String,
    outage: Mutex<Option<Outage>>,
}

#[derive(Debug, Clone, Copy)]
struct Outage {
    began: Instant,
    logged: Instant,
    failures: u64,
}

impl OutageLog {
    /// A log for `what`, for example `"reading etcd"`.
    pub fn new(what: &'static str) -> Self {
        Self::of(what, "")
    }

    /// A log for `what` of one `instance`, for example a cluster.
    pub fn of(what: &'static str, instance: impl Into<String>) -> Self {
        Self { what, instance: instance.into(), outage: Mutex::new(None) }
    }

    /// Notes a failure. Returns whether it was logged: the first one, then one a minute.
    pub fn failed(&self, error: &(dyn Error + 'static)) -> bool {
        let now = Instant::now();
        let mut outage = self.outage.lock();
        let (lasted, failures) = match &mut *outage {
            Some(known) => {
                known.failures += 1;
                if now.duration_since(known.logged) < REPEAT_INTERVAL {
                    return false;
                }
                known.logged = now;
                (now.duration_since(known.began), known.failures)
            }
            None => {
                *outage = Some(Outage { began: now, logged: now, failures: 1 });
                (Duration::ZERO, 1)
            }
        };
        drop(outage);
        let (what, instance) = (self.what, self.instance.as_str());
        let error = ErrorChain(error);
        tracing::warn!(instance, %error, ?lasted, failures, "{what} fails");
        true
    }

    /// Notes a success. Returns how long the outage lasted if there was one.
    pub fn recovered(&self) -> Option<Duration> {
        let outage = self.outage.lock().take()?;
        let lasted = outage.began.elapsed();
        let (what, instance) = (self.what, self.instance.as_str());
        tracing::info!(instance, ?lasted, failures = outage.failures, "{what} works again");
        Some(lasted)
    }

    /// How long the present outage has lasted; `None` when there is none.
    pub fn failing_for(&self) -> Option<Duration> {
        self.outage.lock().map(|outage| outage.began.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_logged_at_its_begin_and_once_a_minute() {
        let log = OutageLog::of("reading etcd", "c1");
        let error = std::io::Error::other("refused");
        assert_eq!(log.recovered(), None);
        let mut logged = 0;
        for _ in 0..1_250 {
            logged += u32::from(log.failed(&error));
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert_eq!(logged, 3, "at 0, 60 and 120 s");
        assert_eq!(log.failing_for(), Some(Duration::from_secs(125)));
        assert_eq!(log.recovered(), Some(Duration::from_secs(125)));
        assert_eq!(log.failing_for(), None);
        assert!(log.failed(&error), "a new outage is logged at once");
    }
}
