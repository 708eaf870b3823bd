//! The rate limit of each (tenant, user): GCRA, that is one theoretical arrival time per caller, in
//! bounded memory.
//!
//! How it fails: when a stripe is full of active callers, the limiter forgets some of them. A
//! forgotten caller gets a full bucket, which is better than refusing new callers.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use tagfast_domain::{TenantId, UserId};
use tagfast_resilience::counter;
use tokio::time::Instant;

use crate::metric::RATE_LIMITED;
use crate::problem::{Code, Problem};
use crate::services::ApiLimits;

const STRIPES: usize = 16;
/// Callers that one stripe remembers.
const STRIPE_CALLERS_MAX: usize = 4096;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// The state of a caller's bucket, for the `RateLimit-*` headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Admission {
    /// Requests that a full bucket allows at once.
    limit: u64,
    remaining: u64,
    /// Seconds until the bucket is full.
    reset_seconds: u64,
}

impl Admission {
    fn headers(self) -> [(HeaderName, HeaderValue); 3] {
        [
            (HeaderName::from_static("ratelimit-limit"), self.limit.into()),
            (HeaderName::from_static("ratelimit-remaining"), self.remaining.into()),
            (HeaderName::from_static("ratelimit-reset"), self.reset_seconds.into()),
        ]
    }

    /// Writes `RateLimit-Limit` (requests at once), `RateLimit-Remaining` and `RateLimit-Reset`
    /// (seconds until the bucket is full).
    pub(crate) fn write(self, headers: &mut HeaderMap) {
        headers.extend(self.headers());
    }
}

/// Limits the requests per second of each (tenant, user).
pub(crate) struct RateLimiter {
    start: Instant,
    hasher: RandomState,
    /// Per caller: the nanosecond since `start` at which its bucket is full again.
    stripes: Vec<Mutex<HashMap<u64, u64>>>,
    /// Nanoseconds that refill one request.
    interval_nanos: u64,
    /// Nanoseconds that refill an empty bucket.
    tolerance_nanos: u64,
    burst: u64,
    per_second: u64,
}

impl RateLimiter {
    /// `None`: the configuration has no rate limit.
    pub(crate) fn new(limits: &ApiLimits) -> Option<Self> {
        let per_second = u64::from(limits.requests_per_second);
        let interval_nanos = NANOS_PER_SECOND.checked_div(per_second)?;
        let burst = u64::from(limits.burst).max(1);
        Some(Self {
            start: Instant::now(),
            hasher: RandomState::new(),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            interval_nanos,
            tolerance_nanos: interval_nanos.saturating_mul(burst),
            burst,
            per_second,
        })
    }

    /// Takes one request from the caller's bucket, or refuses it.
    pub(crate) fn admit(&self, tenant: &TenantId, user: &UserId) -> Result<Admission, Problem> {
        let key = self.hasher.hash_one((tenant.as_str(), user.as_str()));
        let now = self.start.elapsed().as_nanos() as u64;
        let mut stripe = self.stripes[key as usize % STRIPES].lock();
        if stripe.len() >= STRIPE_CALLERS_MAX && !stripe.contains_key(&key) {
            make_room(&mut stripe, now);
        }
        let full_at = stripe.entry(key).or_insert(now);
        let next = (*full_at).max(now) + self.interval_nanos;
        if next - now > self.tolerance_nanos {
            let wait = Duration::from_nanos(next - now - self.tolerance_nanos);
            let reset = seconds(*full_at - now);
            drop(stripe);
            return Err(self.refuse(wait, reset));
        }
        *full_at = next;
        Ok(Admission {
            limit: self.burst,
            remaining: (self.tolerance_nanos - (next - now)) / self.interval_nanos,
            reset_seconds: seconds(next - now),
        })
    }

    fn refuse(&self, wait: Duration, reset_seconds: u64) -> Problem {
        counter!(RATE_LIMITED).increment(1);
        let detail = format!("more than {} requests per second by this user", self.per_second);
        let problem = Problem::new(Code::RateLimited, detail)
            .limit("requests_per_second", self.per_second, self.per_second + 1)
            .retry_after(wait);
        let admission = Admission { limit: self.burst, remaining: 0, reset_seconds };
        admission.headers().into_iter().fold(problem, |problem, (n, v)| problem.header(n, v))
    }
}

/// Forgets callers with full buckets, then arbitrary ones until there is room for one more.
fn make_room(stripe: &mut HashMap<u64, u64>, now: u64) {
    stripe.retain(|_, full_at| *full_at > now);
    let excess = (stripe.len() + 1).saturating_sub(STRIPE_CALLERS_MAX);
    let forgotten: Vec<u64> = stripe.keys().take(excess).copied().collect();
    for key in forgotten {
        stripe.remove(&key);
    }
}

fn seconds(nanos: u64) -> u64 {
    nanos.div_ceil(NANOS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(limiter: &RateLimiter, user: &str) -> Result<Admission, Problem> {
        limiter.admit(&TenantId::parse("acme").unwrap(), &UserId::parse(user).unwrap())
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
        let remaining: Vec<_> = (0..3).map(|_| admit(&limiter, "a").unwrap().remaining).collect();
        assert_eq!(remaining, [2, 1, 0]);
        assert_eq!(admit(&limiter, "a").unwrap_err().code(), Code::RateLimited);
        assert!(admit(&limiter, "b").is_ok(), "each user has a bucket of its own");
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(admit(&limiter, "a").is_ok());
        assert!(admit(&limiter, "a").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let limiter = limiter(1, 1);
        for n in 0..(STRIPES * STRIPE_CALLERS_MAX * 2) {
            let _ = admit(&limiter, &n.to_string());
        }
        assert!(limiter.stripes.iter().all(|s| s.lock().len() <= STRIPE_CALLERS_MAX));
    }

    #[test]
    fn zero_is_off() {
        assert!(RateLimiter::new(&ApiLimits::default()).is_none());
    }
}
