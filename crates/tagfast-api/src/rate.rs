//! Requests per second of each (tenant, user): one theoretical arrival time per caller (GCRA), in
//! bounded memory.
//!
//! When the table is full of callers that are all active, the oldest knowledge of some of them is
//! forgotten, which lets them through rather than refusing strangers.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use crate::auth::Caller;
use crate::parts::ApiLimits;
use crate::problem::{Code, Problem};

const STRIPES: usize = 16;
const CALLERS_PER_STRIPE: usize = 4096;

/// The state of a caller's allowance, for the `RateLimit-*` headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Admission {
    limit: u64,
    remaining: u64,
    reset_seconds: u64,
}

impl Admission {
    /// Writes `RateLimit-Limit` (requests at once), `RateLimit-Remaining` and `RateLimit-Reset`
    /// (seconds until full).
    pub(crate) fn write(self, headers: &mut HeaderMap) {
        headers.insert(HeaderName::from_static("ratelimit-limit"), HeaderValue::from(self.limit));
        headers.insert(
            HeaderName::from_static("ratelimit-remaining"),
            HeaderValue::from(self.remaining),
        );
        headers.insert(
            HeaderName::from_static("ratelimit-reset"),
            HeaderValue::from(self.reset_seconds),
        );
    }
}

pub(crate) struct RateLimiter {
    start: Instant,
    hasher: RandomState,
    /// Per caller the nanosecond since `start` at which its bucket is full again.
    stripes: Vec<Mutex<HashMap<u64, u64>>>,
    interval: u64,
    tolerance: u64,
    burst: u64,
    per_second: u64,
}

impl RateLimiter {
    /// `None` when the limit is off.
    pub(crate) fn new(limits: &ApiLimits) -> Option<Self> {
        let per_second = u64::from(limits.requests_per_second);
        let interval = 1_000_000_000u64.checked_div(per_second)?;
        let burst = u64::from(limits.burst).max(1);
        Some(Self {
            start: Instant::now(),
            hasher: RandomState::new(),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            interval,
            tolerance: interval.saturating_mul(burst),
            burst,
            per_second,
        })
    }

    /// Takes one request from the caller's allowance, or refuses it.
    pub(crate) fn admit(&self, who: &Caller) -> Result<Admission, Problem> {
        let key = self.hasher.hash_one((who.tenant.as_str(), who.user.as_str()));
        let now = self.start.elapsed().as_nanos() as u64;
        // A poisoned stripe holds plain numbers; they stay usable.
        let mut stripe = self.stripes[key as usize % STRIPES]
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if stripe.len() >= CALLERS_PER_STRIPE && !stripe.contains_key(&key) {
            make_room(&mut stripe, now);
        }
        let full_at = stripe.entry(key).or_insert(now);
        let next = (*full_at).max(now) + self.interval;
        if next - now > self.tolerance {
            let wait = Duration::from_nanos(next - now - self.tolerance);
            let reset = seconds(*full_at - now);
            drop(stripe);
            return Err(self.refuse(wait, reset));
        }
        *full_at = next;
        Ok(Admission {
            limit: self.burst,
            remaining: (self.tolerance - (next - now)) / self.interval,
            reset_seconds: seconds(next - now),
        })
    }

    fn refuse(&self, wait: Duration, reset: u64) -> Problem {
        metrics::counter!("tagfast_rate_limited_total").increment(1);
        let detail = format!("more than {} requests per second by this user", self.per_second);
        Problem::new(Code::RateLimited, detail)
            .limit("requests_per_second", self.per_second, self.per_second + 1)
            .retry_after(wait)
            .rate(Admission { limit: self.burst, remaining: 0, reset_seconds: reset })
    }
}

fn make_room(stripe: &mut HashMap<u64, u64>, now: u64) {
    stripe.retain(|_, full_at| *full_at > now);
    let excess = (stripe.len() + 1).saturating_sub(CALLERS_PER_STRIPE);
    let forgotten: Vec<u64> = stripe.keys().take(excess).copied().collect();
    for key in forgotten {
        stripe.remove(&key);
    }
}

fn seconds(nanos: u64) -> u64 {
    nanos.div_ceil(1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(user: &str) -> Caller {
        Caller::for_tests("acme", user)
    }

    fn limiter(per_second: u32, burst: u32) -> RateLimiter {
        RateLimiter::new(&ApiLimits {
            requests_per_second: per_second,
            burst,
            ..ApiLimits::default()
        })
        .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn burst_then_rate_then_recovery() {
        let limiter = limiter(10, 3);
        let (a, b) = (caller("a"), caller("b"));
        let remaining: Vec<_> = (0..3).map(|_| limiter.admit(&a).unwrap().remaining).collect();
        assert_eq!(remaining, [2, 1, 0]);
        assert_eq!(limiter.admit(&a).unwrap_err().code(), Code::RateLimited);
        assert!(limiter.admit(&b).is_ok(), "another user has an allowance of its own");
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(limiter.admit(&a).is_ok());
        assert!(limiter.admit(&a).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let limiter = limiter(1, 1);
        for n in 0..(STRIPES * CALLERS_PER_STRIPE * 2) {
            let _ = limiter.admit(&caller(&n.to_string()));
        }
        assert!(limiter.stripes.iter().all(|s| s.lock().unwrap().len() <= CALLERS_PER_STRIPE));
    }

    #[test]
    fn zero_is_off() {
        assert!(RateLimiter::new(&ApiLimits::default()).is_none());
    }
}
