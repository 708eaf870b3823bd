//! Adaptive concurrency limiter: measures how many calls a dependency carries and sheds the rest at
//! once.
//!
//! A fixed limit is wrong when it matters: a database with a cold cache carries a tenth of what it
//! carried yesterday. This limit follows the latency. Each call gives a sample, its latency divided
//! by the cost of its size; each window of samples has a median; a median far above the baseline
//! (the latency without queueing) means that calls queue in the dependency, so the limit shrinks by
//! a tenth. Otherwise it grows, but only while it is used.
//!
//! Decisions are pure, behind a short mutex, with injected time. Only [`Limiter::begin`] waits, and
//! only critical calls do: in a short queue, for a short time, last in first out, because the
//! caller that waited longest has the least use for the answer.
//!
//! How it fails: a baseline learned while the dependency was already slow keeps the limit too high
//! until the dependency is fast once; `per_second` bounds the damage. Slots are never lost:
//! dropping an [`InFlight`] releases its slot. A caller that drops it while the dependency still
//! works defeats the limit: hold it until the call has ENDED in the dependency.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::breaker::Now;
use crate::criticality::Criticality;
use crate::jitter::{retry_after, seeded_rng};

/// Samples kept per window; later ones replace the oldest.
const SAMPLES_MAX: usize = 1024;
/// The baseline is the smallest median of this time. A longer pause between two samples restarts
/// the window.
const BASELINE_SPAN: Duration = Duration::from_secs(10);
/// Maximum factor by which the baseline rises per second.
const BASELINE_RISE_MAX: f64 = 1.02;
/// After this long at the minimum limit the baseline is learned again: with hardly any call in
/// flight, samples measure the dependency itself.
const RELEARN_AFTER: Duration = Duration::from_secs(5);
/// Factor applied to the limit when calls queue in the dependency.
const SHRINK_FACTOR: f64 = 0.9;
/// Burst size under `per_second`, in seconds' worth of calls.
const BURST_SECONDS: f64 = 0.1;

/// Options of a limiter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimiterOptions {
    /// Initial limit. Too high: the first 100 ms overload a cold dependency; too low: calls are
    /// refused needlessly for the few windows it takes to grow.
    pub start: usize,
    /// Minimum limit. Too high: several processes together overload a dependency that is nearly
    /// dead; too low: too few samples to notice its recovery.
    pub min: usize,
    /// Maximum limit. Too high: a wrong baseline does more harm; too low: a fast dependency is not
    /// used.
    pub max: usize,
    /// Minimum length of a window. Too long: slow to shrink when it matters; too short: noise
    /// decides.
    pub window: Duration,
    /// Minimum samples of a window. Too many: decisions come late with few calls; too few: one
    /// slow call decides.
    pub min_samples: u32,
    /// Cost of one additional unit (a key of a batch) relative to a call without any: a sample is
    /// latency / (1 + this x units). Too low: large batches look like queueing and the limit
    /// collapses; too high: queueing hides behind the size of batches.
    pub batch_cost: f64,
    /// A median above this multiple of the baseline shrinks the limit. Too low: noise shrinks it;
    /// too high: calls queue for long before the limit reacts.
    pub tolerance: f64,
    /// Maximum calls started per second, regardless of latency, with bursts of 0.1 s' worth;
    /// `None`: no bound. Too high: no protection; too low: calls are refused that would be
    /// answered.
    pub per_second: Option<f64>,
    /// Maximum wait of a critical call for a slot. Too long: answers come too late to be useful;
    /// too short: a burst that the dependency could carry is refused.
    pub wait: Duration,
    /// Seed of the jitter of `retry_after`; 0: a random seed. Fixed only where a run must be
    /// repeatable.
    pub seed: u64,
}

impl Default for LimiterOptions {
    fn default() -> Self {
        Self {
            start: 16,
            min: 4,
            max: 64,
            window: Duration::from_millis(100),
            min_samples: 10,
            batch_cost: 0.23,
            tolerance: 2.5,
            per_second: None,
            wait: Duration::from_millis(20),
            seed: 0,
        }
    }
}

/// Why a call was shed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShedReason {
    /// The concurrency limit for its criticality is reached.
    Limit,
    /// The rate limit is reached.
    Rate,
}

impl ShedReason {
    /// The stable value in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Rate => "rate",
        }
    }
}

/// A call was shed: the dependency is at its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the concurrency limit is exceeded ({})", reason.as_str())]
pub struct LimitExceeded {
    /// The reason.
    pub reason: ShedReason,
    /// When the caller should retry: 1 to 3 s, jittered.
    pub retry_after: Duration,
}

/// A counter per criticality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ByCriticality {
    /// [`Criticality::Sheddable`].
    pub sheddable: u64,
    /// [`Criticality::Degradable`].
    pub degradable: u64,
    /// [`Criticality::Critical`].
    pub critical: u64,
}

impl ByCriticality {
    fn of(&mut self, criticality: Criticality) -> &mut u64 {
        match criticality {
            Criticality::Sheddable => &mut self.sheddable,
            Criticality::Degradable => &mut self.degradable,
            Criticality::Critical => &mut self.critical,
        }
    }
}

/// The observable state of a limiter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimiterSnapshot {
    /// The current limit of calls in flight.
    pub limit: usize,
    /// Calls in flight.
    pub in_flight: usize,
    /// Critical calls that wait for a slot.
    pub waiting: usize,
    /// Latency of a call without additional units and without queueing; `None`: not yet known.
    pub baseline: Option<Duration>,
    /// Latency of such a call in the last window; `None`: not yet known. Far above the baseline:
    /// calls queue in the dependency.
    pub median: Option<Duration>,
    /// Calls admitted since the start.
    pub begun: ByCriticality,
    /// Calls shed since the start.
    pub shed: ByCriticality,
}

/// A critical call that waits for a slot.
#[derive(Debug)]
struct Waiter {
    number: u64,
    slot: oneshot::Sender<InFlight>,
}

#[derive(Debug)]
struct Inner {
    /// Fractional, so that small steps add up.
    limit: f64,
    in_flight: usize,
    /// Maximum calls in flight in this window. The number at its end says little, because the
    /// calls of one batch end together.
    busiest: usize,
    samples: Vec<f64>,
    taken: usize,
    /// Start of the window: its first sample.
    began: Duration,
    sampled: Duration,
    /// Medians of the last 10 s, in seconds, with their times.
    medians: VecDeque<(Duration, f64)>,
    baseline: Option<f64>,
    /// Median of the last window, in seconds.
    median: Option<f64>,
    measured: Duration,
    /// Since when the limit is at its minimum; `None`: it is above.
    at_min_since: Option<Duration>,
    tokens: f64,
    filled: Duration,
    begun: ByCriticality,
    shed: ByCriticality,
    /// The newest last; at most as many as the limit.
    waiting: Vec<Waiter>,
    last_number: u64,
    rng: fastrand::Rng,
}

/// The limiter of one dependency.
pub struct Limiter {
    options: LimiterOptions,
    now: Now,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for Limiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limiter").field("snapshot", &self.snapshot()).finish_non_exhaustive()
    }
}

/// A call in flight. Dropped without [`InFlight::ended`], it releases its slot without a latency
/// sample.
#[derive(Debug)]
#[must_use = "the slot is released when this is dropped: hold it until the call has ended"]
pub struct InFlight {
    limiter: Arc<Limiter>,
    began: Duration,
    done: bool,
}

impl InFlight {
    /// Reports the end of a call with `units` additional units (keys of a batch); `good`: it was
    /// answered. A failed call counts only if it took long: a refused connection says nothing about
    /// load.
    pub fn ended(mut self, units: usize, good: bool) {
        self.done = true;
        self.limiter.end(Some((self.began, units, good)));
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.done {
            self.limiter.end(None);
        }
    }
}

/// Held by a waiting caller: however the wait ends, no slot is passed to it afterwards.
struct WaiterGuard<'a> {
    limiter: &'a Limiter,
    number: u64,
}

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        self.limiter.inner.lock().waiting.retain(|waiter| waiter.number != self.number);
    }
}

impl Limiter {
    /// A limiter without calls in flight. `min` is at least 1 and wins over a smaller `max`.
    pub fn new(options: LimiterOptions, now: Now) -> Arc<Self> {
        let min = options.min.max(1);
        let max = options.max.max(min);
        let start = options.start.clamp(min, max);
        let options = LimiterOptions { start, min, max, ..options };
        let began = now();
        let inner = Inner {
            limit: start as f64,
            in_flight: 0,
            busiest: 0,
            samples: Vec::new(),
            taken: 0,
            began,
            sampled: began,
            medians: VecDeque::new(),
            baseline: None,
            median: None,
            measured: began,
            at_min_since: (start == min).then_some(began),
            tokens: options.per_second.map_or(0.0, bucket),
            filled: began,
            begun: ByCriticality::default(),
            shed: ByCriticality::default(),
            waiting: Vec::new(),
            last_number: 0,
            rng: seeded_rng(options.seed),
        };
        Arc::new(Self { options, now, inner: Mutex::new(inner) })
    }

    /// Admits a call now, or sheds it at once.
    ///
    /// # Errors
    ///
    /// [`LimitExceeded`] when the share of the limit for its criticality (at least one call) or the
    /// rate is used up. Every limit above one leaves a slot for more critical calls.
    pub fn try_begin(
        self: &Arc<Self>,
        criticality: Criticality,
    ) -> Result<InFlight, LimitExceeded> {
        let now = (self.now)();
        let mut inner = self.inner.lock();
        self.admit(&mut inner, now, criticality).map_err(|reason| inner.refuse(criticality, reason))
    }

    /// As [`Limiter::try_begin`], but a critical call waits for a slot for a short time, unless the
    /// rate is exceeded. The newest is served first; when more calls wait than the limit, the
    /// oldest is shed. A cancelled caller leaves no trace.
    ///
    /// # Errors
    ///
    /// [`LimitExceeded`] as [`Limiter::try_begin`], for a critical call after the wait.
    pub async fn begin(
        self: &Arc<Self>,
        criticality: Criticality,
    ) -> Result<InFlight, LimitExceeded> {
        let (slot, number, oldest) = {
            let now = (self.now)();
            let mut inner = self.inner.lock();
            match (self.admit(&mut inner, now, criticality), criticality) {
                (Ok(call), _) => return Ok(call),
                (Err(ShedReason::Limit), Criticality::Critical) => {}
                (Err(reason), _) => return Err(inner.refuse(criticality, reason)),
            }
            let (sender, slot) = oneshot::channel();
            inner.last_number += 1;
            let number = inner.last_number;
            let full = inner.waiting.len() >= inner.limit as usize;
            let oldest = full.then(|| inner.waiting.remove(0));
            inner.waiting.push(Waiter { number, slot: sender });
            (slot, number, oldest)
        };
        drop(oldest);
        let waiter = WaiterGuard { limiter: self, number };
        let passed = tokio::time::timeout(self.options.wait, slot).await;
        drop(waiter);
        match passed {
            Ok(Ok(call)) => Ok(call),
            // Displaced by newer callers.
            Ok(Err(_)) => Err(self.inner.lock().refuse(criticality, ShedReason::Limit)),
            // A slot that only the rate withheld may be free now.
            Err(_) => self.try_begin(criticality),
        }
    }

    fn admit(
        self: &Arc<Self>,
        inner: &mut Inner,
        now: Duration,
        criticality: Criticality,
    ) -> Result<InFlight, ShedReason> {
        if inner.in_flight >= criticality.max_of(inner.limit as usize) {
            return Err(ShedReason::Limit);
        }
        if !self.take_token(inner, now, criticality) {
            return Err(ShedReason::Rate);
        }
        *inner.begun.of(criticality) += 1;
        inner.in_flight += 1;
        inner.busiest = inner.busiest.max(inner.in_flight);
        Ok(InFlight { limiter: Arc::clone(self), began: now, done: false })
    }

    /// Expected duration of a call with `units` additional units, from the last window; `None`: not
    /// yet known. A call with less time left need not start.
    pub fn expects(&self, units: usize) -> Option<Duration> {
        let median = self.inner.lock().median?;
        Duration::try_from_secs_f64(median * self.cost(units)).ok()
    }

    fn cost(&self, units: usize) -> f64 {
        1.0 + self.options.batch_cost.max(0.0) * units as f64
    }

    /// The current snapshot.
    pub fn snapshot(&self) -> LimiterSnapshot {
        let inner = self.inner.lock();
        LimiterSnapshot {
            limit: inner.limit as usize,
            in_flight: inner.in_flight,
            waiting: inner.waiting.len(),
            baseline: inner.baseline.map(Duration::from_secs_f64),
            median: inner.median.map(Duration::from_secs_f64),
            begun: inner.begun,
            shed: inner.shed,
        }
    }

    fn take_token(&self, inner: &mut Inner, now: Duration, criticality: Criticality) -> bool {
        let Some(rate) = self.options.per_second else { return true };
        let most = bucket(rate);
        let passed = now.saturating_sub(inner.filled).as_secs_f64();
        inner.tokens = (inner.tokens + passed * rate.max(0.0)).min(most);
        inner.filled = now;
        // What matters less leaves the rest of the bucket to what matters more.
        let needed = (most * (1.0 - criticality.share())).max(1.0);
        let given = inner.tokens >= needed;
        if given {
            inner.tokens -= 1.0;
        }
        given
    }

    fn end(self: &Arc<Self>, call: Option<(Duration, usize, bool)>) {
        let now = (self.now)();
        let mut passed = Vec::new();
        {
            let mut inner = self.inner.lock();
            inner.in_flight = inner.in_flight.saturating_sub(1);
            if let Some((began, units, good)) = call {
                self.measure(&mut inner, now, now.saturating_sub(began), units, good);
            }
            while !inner.waiting.is_empty()
                && let Ok(call) = self.admit(&mut inner, now, Criticality::Critical)
            {
                passed.extend(inner.waiting.pop().map(|waiter| (waiter, call)));
            }
        }
        // A caller that was cancelled meanwhile does not take its slot: dropped here, outside the
        // lock, it passes to the next.
        for (waiter, call) in passed {
            drop(waiter.slot.send(call));
        }
    }

    fn measure(
        &self,
        inner: &mut Inner,
        now: Duration,
        latency: Duration,
        units: usize,
        good: bool,
    ) {
        let sample = latency.as_secs_f64() / self.cost(units);
        if !good && inner.baseline.is_none_or(|baseline| sample <= baseline) {
            return;
        }
        inner.sample(now, sample);
        let full = inner.taken as u64 >= u64::from(self.options.min_samples.max(1));
        if full && now.saturating_sub(inner.began) >= self.options.window {
            self.adjust(inner, now);
        }
    }

    /// Adjusts the limit at the end of a window.
    fn adjust(&self, inner: &mut Inner, now: Duration) {
        let middle = inner.samples.len() / 2;
        let (_, median, _) = inner.samples.select_nth_unstable_by(middle, f64::total_cmp);
        let median = *median;
        inner.median = Some(median);
        let busiest = inner.busiest;
        (inner.taken, inner.busiest) = (0, inner.in_flight);
        inner.samples.clear();

        let baseline = inner.learn_baseline(now, median);
        let min = self.options.min as f64;
        if median > self.options.tolerance * baseline {
            inner.limit = (inner.limit * SHRINK_FACTOR).max(min);
        } else if busiest as f64 >= inner.limit / 2.0 {
            inner.limit =
                (inner.limit + (inner.limit.sqrt() / 2.0).max(1.0)).min(self.options.max as f64);
        }
        if inner.limit > min {
            inner.at_min_since = None;
        } else if now.saturating_sub(*inner.at_min_since.get_or_insert(now)) >= RELEARN_AFTER {
            // The next window sets the baseline.
            (inner.baseline, inner.at_min_since) = (None, Some(now));
            inner.medians.clear();
        }
    }
}

/// Size of the token bucket for that rate per second.
fn bucket(rate: f64) -> f64 {
    (rate * BURST_SECONDS).max(1.0)
}

impl Inner {
    fn sample(&mut self, now: Duration, sample: f64) {
        if now.saturating_sub(self.sampled) > BASELINE_SPAN {
            // Old samples say nothing about the present.
            self.taken = 0;
            self.samples.clear();
        }
        if self.taken == 0 {
            self.began = now;
        }
        self.sampled = now;
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(sample);
        } else {
            self.samples[self.taken % SAMPLES_MAX] = sample;
        }
        self.taken += 1;
    }

    fn refuse(&mut self, criticality: Criticality, reason: ShedReason) -> LimitExceeded {
        *self.shed.of(criticality) += 1;
        LimitExceeded { reason, retry_after: retry_after(self.rng.f64()) }
    }

    /// Adds a median and returns the baseline: the smallest median of the last 10 s, rising no
    /// faster than allowed.
    fn learn_baseline(&mut self, now: Duration, median: f64) -> f64 {
        // Time without samples does not justify a rise.
        let passed = now.saturating_sub(self.measured).min(BASELINE_SPAN).as_secs_f64();
        self.measured = now;
        self.medians.push_back((now, median));
        while self.medians.front().is_some_and(|(at, _)| now.saturating_sub(*at) > BASELINE_SPAN) {
            self.medians.pop_front();
        }
        let smallest = self.medians.iter().map(|(_, median)| *median).fold(median, f64::min);
        let highest = self
            .baseline
            .map_or(f64::INFINITY, |baseline| baseline * BASELINE_RISE_MAX.powf(passed));
        let baseline = smallest.min(highest);
        self.baseline = Some(baseline);
        baseline
    }
}

#[cfg(test)]
mod tests;
