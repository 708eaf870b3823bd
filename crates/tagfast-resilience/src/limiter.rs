//! An adaptive limit of calls under way: what a dependency carries is measured, the rest is refused
//! at once.
//!
//! A limit by hand is wrong on the day it matters: a database with a cold cache carries a tenth of
//! what it carried yesterday. Here the limit follows the latency. Each call gives a sample, its
//! latency divided by what so large a call may cost; a window of samples has a median; a median far
//! above the baseline (what the dependency takes when nothing waits) means that calls wait
//! there, so the limit shrinks by a tenth. Else it grows, but only if it is used.
//!
//! Pure decisions behind a short mutex, with injected time. Only [`Limiter::begin`] waits, and only
//! for what is critical: a place in a short queue, for a short time, the newest first. Who waited
//! longest has the least use for the answer.
//!
//! How it fails: when the baseline was learned while the dependency was slow already, the limit
//! stays too high until the dependency is fast once; `per_second` is the net under it. Places are
//! never lost: dropping an [`InFlight`] gives its place back. But a caller that drops it while the
//! dependency still works takes the limit away from it: hold it until the call has ENDED there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::breaker::Now;
use crate::criticality::Criticality;
use crate::jitter::Jitter;

/// Samples of one window that are kept; later ones replace the oldest.
const SAMPLES: usize = 1024;
/// The baseline is the smallest median of so long a time. A longer pause between two samples begins
/// the window anew.
const BASELINE_SPAN: Duration = Duration::from_secs(10);
/// The baseline rises at most by this factor a second.
const BASELINE_RISE: f64 = 1.02;
/// At the least limit for so long, the baseline is learned anew: hardly anything is under way, so
/// what is measured is the dependency itself.
const RELEARN_AFTER: Duration = Duration::from_secs(5);
/// What the limit is multiplied by when calls wait.
const SHRINK: f64 = 0.9;
/// So many seconds' worth of calls may begin at once under `per_second`.
const BURST: f64 = 0.1;

/// How a limit follows the latency.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimiterOptions {
    /// Calls under way at first. Too high: the first 100 ms overload a cold dependency; too low:
    /// it refuses needlessly for the few windows it takes to grow.
    pub start: usize,
    /// The limit never shrinks below. Too high: several processes together overload a dependency
    /// that is nearly dead; too low: too few samples to notice that it is well again.
    pub least: usize,
    /// The limit never grows above. Too high: a wrong baseline does more harm; too low: a fast
    /// dependency is not used.
    pub most: usize,
    /// How long samples are collected at least. Too long: slow to shrink when it matters; too
    /// short: noise decides.
    pub window: Duration,
    /// So many samples make a window. Too many: with few calls it decides late; too few: one slow
    /// call decides.
    pub min_samples: u32,
    /// What a further unit (a key of a batch) costs, as a share of a call without any: a sample is
    /// latency / (1 + this x units). Too low: large batches look like waiting and the limit
    /// collapses; too high: waiting hides behind the size of batches.
    pub batch_cost: f64,
    /// A median above this multiple of the baseline shrinks the limit. Too low: noise shrinks it;
    /// too high: calls wait long before anything happens.
    pub tolerance: f64,
    /// Calls a second that may begin, whatever the latency says; `None`: no such bound. At most
    /// 0.1 s' worth begin at once. Too high: no net; too low: it refuses what would have been
    /// answered.
    pub per_second: Option<f64>,
    /// How long a critical call waits for a place at most. Too long: the answer comes when nobody
    /// needs it; too short: a burst that the dependency would have carried is refused.
    pub wait: Duration,
    /// Spreads the times to come back; 0: drawn by chance. Fixed only where a run has to be
    /// repeatable.
    pub seed: u64,
}

impl Default for LimiterOptions {
    fn default() -> Self {
        Self {
            start: 16,
            least: 4,
            most: 64,
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

/// Why a call may not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShedReason {
    /// As many are under way as a call of its kind may find.
    Limit,
    /// As many have begun as may begin a second.
    Rate,
}

impl ShedReason {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Rate => "rate",
        }
    }
}

/// A call was refused: the dependency has enough to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too much is under way ({})", reason.as_str())]
pub struct Shed {
    /// Why.
    pub reason: ShedReason,
    /// When to ask again: 1 to 3 s, by chance, so that those who were refused together do not come
    /// back together.
    pub retry_after: Duration,
}

/// A number for each criticality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ByCriticality {
    /// Of [`Criticality::Sheddable`].
    pub sheddable: u64,
    /// Of [`Criticality::Degradable`].
    pub degradable: u64,
    /// Of [`Criticality::Critical`].
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

/// How a limiter stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimiterLook {
    /// Calls that may be under way.
    pub limit: usize,
    /// Calls that are under way.
    pub in_flight: usize,
    /// Critical calls that wait for a place.
    pub waiting: usize,
    /// What a call without further units takes when nothing waits; `None` until it is known.
    pub baseline: Option<Duration>,
    /// What such a call took in the last window; `None` until it is known. Far above the baseline:
    /// calls wait there.
    pub median: Option<Duration>,
    /// Calls that began since the start.
    pub begun: ByCriticality,
    /// Calls that were refused since the start.
    pub shed: ByCriticality,
}

/// A critical call that waits for a place.
#[derive(Debug)]
struct Waiter {
    number: u64,
    place: oneshot::Sender<InFlight>,
}

#[derive(Debug)]
struct Inner {
    /// A fraction, so that small steps add up.
    limit: f64,
    in_flight: usize,
    /// The most calls under way in this window. What is under way at its end says little: calls of
    /// one batch end together.
    busiest: usize,
    samples: Vec<f64>,
    taken: usize,
    /// When the window began: with its first sample.
    began: Duration,
    sampled: Duration,
    /// Medians of the last ten seconds, in seconds.
    medians: VecDeque<(Duration, f64)>,
    baseline: Option<f64>,
    /// Of the last window.
    median: Option<f64>,
    measured: Duration,
    /// Since when the limit is the least one.
    at_least: Option<Duration>,
    tokens: f64,
    filled: Duration,
    begun: ByCriticality,
    shed: ByCriticality,
    /// The newest last. At most as many as may be under way.
    waiting: Vec<Waiter>,
    numbers: u64,
    jitter: Jitter,
}

/// The limit of one dependency.
pub struct Limiter {
    options: LimiterOptions,
    now: Now,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for Limiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limiter").field("look", &self.look()).finish_non_exhaustive()
    }
}

/// A call under way. Dropped without [`InFlight::ended`] it gives its place back and says nothing
/// about latency.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped: hold it until the call has ended"]
pub struct InFlight {
    limiter: Arc<Limiter>,
    began: Duration,
    done: bool,
}

impl InFlight {
    /// The call has ended after it moved `units` further units (keys of a batch); `good` when it
    /// was answered. A call that failed counts only if it took long: a refused connection says
    /// nothing about load.
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

/// Held by who waits: however the waiting ends, nobody gives a place to it afterwards.
struct Turn<'a> {
    limiter: &'a Limiter,
    number: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.limiter.lock().waiting.retain(|waiter| waiter.number != self.number);
    }
}

impl Limiter {
    /// One with nothing under way. Bounds that contradict each other are put in order: `least` is
    /// at least 1 and wins over `most`.
    pub fn new(options: LimiterOptions, now: Now) -> Arc<Self> {
        let least = options.least.max(1);
        let most = options.most.max(least);
        let start = options.start.clamp(least, most);
        let options = LimiterOptions { start, least, most, ..options };
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
            at_least: (start == least).then_some(began),
            tokens: options.per_second.map_or(0.0, bucket),
            filled: began,
            begun: ByCriticality::default(),
            shed: ByCriticality::default(),
            waiting: Vec::new(),
            numbers: 0,
            jitter: Jitter::new(options.seed),
        };
        Arc::new(Self { options, now, inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code of others runs under it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave to begin a call now. Refused at once when as many are under way as its criticality may
    /// find (its share of the limit, at least one) or as many have begun as may a second. A
    /// place of every limit above one is left to what matters more.
    pub fn try_begin(self: &Arc<Self>, criticality: Criticality) -> Result<InFlight, Shed> {
        let now = (self.now)();
        let mut inner = self.lock();
        self.admit(&mut inner, now, criticality).map_err(|reason| inner.refuse(criticality, reason))
    }

    /// As [`Limiter::try_begin`], but a critical call waits for a place for a short time, unless
    /// the rate is what refuses it. The newest comes first; when more wait than may be under
    /// way, the oldest is refused. A caller that is cancelled leaves no trace.
    pub async fn begin(self: &Arc<Self>, criticality: Criticality) -> Result<InFlight, Shed> {
        let (place, number, oldest) = {
            let now = (self.now)();
            let mut inner = self.lock();
            match (self.admit(&mut inner, now, criticality), criticality) {
                (Ok(call), _) => return Ok(call),
                (Err(ShedReason::Limit), Criticality::Critical) => {}
                (Err(reason), _) => return Err(inner.refuse(criticality, reason)),
            }
            let (sender, place) = oneshot::channel();
            inner.numbers += 1;
            let number = inner.numbers;
            let full = inner.waiting.len() >= inner.limit as usize;
            let oldest = full.then(|| inner.waiting.remove(0));
            inner.waiting.push(Waiter { number, place: sender });
            (place, number, oldest)
        };
        drop(oldest);
        let turn = Turn { limiter: self, number };
        let given = tokio::time::timeout(self.options.wait, place).await;
        drop(turn);
        match given {
            Ok(Ok(call)) => Ok(call),
            // Pushed out by newer ones.
            Ok(Err(_)) => Err(self.lock().refuse(criticality, ShedReason::Limit)),
            // A place that only the rate withheld may be there now.
            Err(_) => self.try_begin(criticality),
        }
    }

    fn admit(
        self: &Arc<Self>,
        inner: &mut Inner,
        now: Duration,
        criticality: Criticality,
    ) -> Result<InFlight, ShedReason> {
        if inner.in_flight >= criticality.most_of(inner.limit as usize) {
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

    /// How long a call of so many further units will take, going by the last window; `None` until
    /// that is known. What has less time left need not begin.
    pub fn expects(&self, units: usize) -> Option<Duration> {
        let median = self.lock().median?;
        Duration::try_from_secs_f64(median * self.cost(units)).ok()
    }

    fn cost(&self, units: usize) -> f64 {
        1.0 + self.options.batch_cost.max(0.0) * units as f64
    }

    /// How it stands now.
    pub fn look(&self) -> LimiterLook {
        let inner = self.lock();
        LimiterLook {
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
        let mut given = Vec::new();
        {
            let mut inner = self.lock();
            inner.in_flight = inner.in_flight.saturating_sub(1);
            if let Some((began, units, good)) = call {
                self.measure(&mut inner, now, now.saturating_sub(began), units, good);
            }
            while !inner.waiting.is_empty()
                && let Ok(call) = self.admit(&mut inner, now, Criticality::Critical)
            {
                given.extend(inner.waiting.pop().map(|waiter| (waiter, call)));
            }
        }
        // Whoever was cancelled meanwhile does not take it: dropped here, not under the lock, the
        // place goes to the next.
        for (waiter, call) in given {
            drop(waiter.place.send(call));
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
            self.judge(inner, now);
        }
    }

    /// The window is over: what it says about the limit.
    fn judge(&self, inner: &mut Inner, now: Duration) {
        let middle = inner.samples.len() / 2;
        let (_, median, _) = inner.samples.select_nth_unstable_by(middle, f64::total_cmp);
        let median = *median;
        inner.median = Some(median);
        let busiest = inner.busiest;
        (inner.taken, inner.busiest) = (0, inner.in_flight);
        inner.samples.clear();

        let baseline = inner.learn(now, median);
        let least = self.options.least as f64;
        if median > self.options.tolerance * baseline {
            inner.limit = (inner.limit * SHRINK).max(least);
        } else if busiest as f64 >= inner.limit / 2.0 {
            inner.limit =
                (inner.limit + (inner.limit.sqrt() / 2.0).max(1.0)).min(self.options.most as f64);
        }
        if inner.limit > least {
            inner.at_least = None;
        } else if now.saturating_sub(*inner.at_least.get_or_insert(now)) >= RELEARN_AFTER {
            // The next window says what it takes.
            (inner.baseline, inner.at_least) = (None, Some(now));
            inner.medians.clear();
        }
    }
}

/// Calls that may begin at once at that rate a second.
fn bucket(rate: f64) -> f64 {
    (rate * BURST).max(1.0)
}

impl Inner {
    fn sample(&mut self, now: Duration, sample: f64) {
        if now.saturating_sub(self.sampled) > BASELINE_SPAN {
            // What was long ago says nothing about now.
            self.taken = 0;
            self.samples.clear();
        }
        if self.taken == 0 {
            self.began = now;
        }
        self.sampled = now;
        if self.samples.len() < SAMPLES {
            self.samples.push(sample);
        } else {
            self.samples[self.taken % SAMPLES] = sample;
        }
        self.taken += 1;
    }

    fn refuse(&mut self, criticality: Criticality, reason: ShedReason) -> Shed {
        *self.shed.of(criticality) += 1;
        Shed { reason, retry_after: Duration::from_secs_f64(1.0 + 2.0 * self.jitter.next()) }
    }

    /// Takes a median in and answers the baseline: the smallest of ten seconds, risen by no more
    /// than may be.
    fn learn(&mut self, now: Duration, median: f64) -> f64 {
        // A time in which nothing was measured says nothing for a rise.
        let passed = now.saturating_sub(self.measured).min(BASELINE_SPAN).as_secs_f64();
        self.measured = now;
        self.medians.push_back((now, median));
        while self.medians.front().is_some_and(|(at, _)| now.saturating_sub(*at) > BASELINE_SPAN) {
            self.medians.pop_front();
        }
        let smallest = self.medians.iter().map(|(_, median)| *median).fold(median, f64::min);
        let highest =
            self.baseline.map_or(f64::INFINITY, |baseline| baseline * BASELINE_RISE.powf(passed));
        let baseline = smallest.min(highest);
        self.baseline = Some(baseline);
        baseline
    }
}

#[cfg(test)]
mod tests;
