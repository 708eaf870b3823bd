//! Circuit breaker: stops calls to a dependency that does not answer and probes with a few calls
//! until it does.
//!
//! Trip conditions, over a sliding window of 10 s: the share of failed calls, the share of failed
//! or slow calls, and stalled calls (started but not ended), so that a dependency that swallows
//! calls is noticed before the first of them times out. Recovery condition: half-open, probes are
//! admitted in growing steps, and 80 % of each step must succeed. A permit that is dropped without
//! a result counts neither way and is issued again. Results of an earlier generation are ignored.
//! An operator can force the breaker open or closed.
//!
//! ```text
//! Closed   => Open       too many failed, slow or stalled calls
//! Open     => HalfOpen   the open time is over
//! HalfOpen => Open       a step of probes failed, or a probe takes too long
//! HalfOpen => Closed     all steps of probes succeeded
//! any      => Forced*    by an operator
//! Forced*  => Closed     the operator releases it
//! ```
//!
//! How it fails: with a clock that stands still the breaker keeps its state; no call ever waits
//! here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::counter;
use crate::jitter::seeded_rng;
use crate::metric::Bounded;

mod metric;
mod types;

pub use metric::METRICS;
use metric::{BREAKER_IGNORED, IgnoredReason};
pub(crate) use metric::{BREAKER_OPEN, BREAKER_TRANSITIONS};
pub use types::{BreakerOptions, BreakerSnapshot, BreakerState, Refused, Transition};

/// Buckets of the sliding window, one per second.
const BUCKETS: usize = 10;
/// Unfinished calls are counted in slots of this length by their start time.
const UNFINISHED_SLOT_MS: u64 = 10;
/// Probes admitted in each step of the half-open state.
const PROBE_STEPS: [u32; 5] = [1, 2, 4, 8, 16];
/// Share of a probe step's results that must succeed.
const PROBE_SUCCESS_SHARE: f64 = 0.8;
/// A probe that takes longer than this multiple of `slow_after` reopens the breaker.
const PROBE_SLOW_FACTOR: u32 = 4;

/// A monotonic clock: the time since an arbitrary origin.
pub type Now = Arc<dyn Fn() -> Duration + Send + Sync>;
/// Called after every transition, outside the breaker's lock.
pub type OnTransition = Arc<dyn Fn(&Transition) + Send + Sync>;

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    tick: u64,
    ok: u32,
    failed: u32,
    slow: u32,
}

#[derive(Debug, Clone, Copy)]
struct Step {
    number: usize,
    given: u32,
    good: u32,
    bad: u32,
    /// Lower bound of the start of the oldest unfinished probe.
    began: Duration,
}

impl Step {
    /// Unfinished probes.
    fn outstanding(&self) -> u32 {
        self.given - self.good - self.bad
    }
}

#[derive(Debug)]
struct Inner {
    state: BreakerState,
    generation: u64,
    buckets: [Bucket; BUCKETS],
    /// Unfinished calls by the slot they started in.
    unfinished: BTreeMap<u64, u32>,
    last_good: Option<Duration>,
    step: Step,
    opens: u32,
    open_until: Duration,
    closed_since: Duration,
    transitioned: Duration,
    reason: &'static str,
    cancelled: u64,
    late: u64,
    rng: fastrand::Rng,
}

/// The number of the bucket that a moment belongs to; 0 is never used.
fn tick(now: Duration) -> u64 {
    now.as_secs() + 1
}

impl Inner {
    /// Calls of the last 10 s: succeeded, failed, slow.
    fn window(&self, now: Duration) -> (u32, u32, u32) {
        let live = self.buckets.iter().filter(|bucket| bucket.tick + BUCKETS as u64 > tick(now));
        live.fold((0, 0, 0), |sum, bucket| {
            (sum.0 + bucket.ok, sum.1 + bucket.failed, sum.2 + bucket.slow)
        })
    }
}

/// A circuit breaker.
pub struct Breaker {
    name: String,
    options: BreakerOptions,
    now: Now,
    on_transition: OnTransition,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for Breaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Breaker")
            .field("name", &self.name)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// Permission for one call. Dropped without a result, it counts neither way.
#[derive(Debug)]
pub struct Permit {
    breaker: Arc<Breaker>,
    generation: u64,
    began: Duration,
    /// Issued half-open: its result decides about recovery.
    probe: bool,
    ended: bool,
}

impl Permit {
    /// Whether the call is a probe of a half-open breaker.
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// Reports success; a call that took `slow_after` or longer counts as slow.
    pub fn ok(mut self) {
        self.end(Some(true));
    }

    /// Reports failure.
    pub fn failed(mut self) {
        self.end(Some(false));
    }

    fn end(&mut self, good: Option<bool>) {
        if !std::mem::replace(&mut self.ended, true) {
            self.breaker.on_result(self.generation, self.began, good);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.end(None);
    }
}

fn slot(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX) / UNFINISHED_SLOT_MS
}

impl Breaker {
    /// A closed breaker. `seed` jitters the open times, so that breakers which open together do not
    /// probe together; 0: a random seed.
    pub fn new(
        name: impl Into<String>,
        options: BreakerOptions,
        now: Now,
        on_transition: OnTransition,
        seed: u64,
    ) -> Arc<Self> {
        let began = now();
        let step = Step { number: 0, given: 0, good: 0, bad: 0, began };
        let inner = Inner {
            state: BreakerState::Closed,
            generation: 0,
            buckets: [Bucket::default(); BUCKETS],
            unfinished: BTreeMap::new(),
            last_good: None,
            step,
            opens: 0,
            open_until: Duration::ZERO,
            closed_since: began,
            transitioned: began,
            reason: "start",
            cancelled: 0,
            late: 0,
            rng: seeded_rng(seed),
        };
        Arc::new(Self { name: name.into(), options, now, on_transition, inner: Mutex::new(inner) })
    }

    /// Name of the breaker.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The current state, after all transitions that depend on time only.
    pub fn state(&self) -> BreakerState {
        self.snapshot().state
    }

    /// The current snapshot, after all transitions that depend on time only: the end of the open
    /// time, stalled calls, a hanging probe. A caller that polls snapshots needs no timer.
    pub fn snapshot(&self) -> BreakerSnapshot {
        let now = (self.now)();
        let mut transitions = Vec::new();
        let snapshot = {
            let mut inner = self.inner.lock();
            self.advance_time(&mut inner, now, &mut transitions);
            let (ok, failed, slow) = inner.window(now);
            BreakerSnapshot {
                name: self.name.clone(),
                state: inner.state,
                reason: inner.reason,
                since: now.saturating_sub(inner.transitioned),
                generation: inner.generation,
                ok,
                failed,
                slow,
                cancelled: inner.cancelled,
                late: inner.late,
            }
        };
        self.notify(&transitions);
        snapshot
    }

    fn notify(&self, transitions: &[Transition]) {
        transitions.iter().for_each(|transition| (self.on_transition)(transition));
    }

    /// Makes the transitions that depend on time only.
    fn advance_time(&self, inner: &mut Inner, now: Duration, transitions: &mut Vec<Transition>) {
        // Closed => Open: calls stall.
        if inner.state == BreakerState::Closed && self.is_stalled(inner, now) {
            self.open(inner, now, "stall", transitions);
        }
        // Open => HalfOpen: the open time is over.
        if inner.state == BreakerState::Open && now >= inner.open_until {
            self.transition(inner, now, BreakerState::HalfOpen, "open_time_over", transitions);
            inner.step = Step { number: 0, given: 0, good: 0, bad: 0, began: now };
        }
        // HalfOpen => Open: an unfinished probe hangs. Without probes the age of the step means
        // nothing.
        let hangs =
            now.saturating_sub(inner.step.began) > self.options.slow_after * PROBE_SLOW_FACTOR;
        if inner.state == BreakerState::HalfOpen && inner.step.outstanding() > 0 && hangs {
            self.open(inner, now, "probe_takes_too_long", transitions);
        }
    }

    /// A permit for a call that starts now.
    ///
    /// # Errors
    ///
    /// [`Refused`] while the breaker is open, or half-open with all probes of the step issued.
    pub fn acquire(self: &Arc<Self>) -> Result<Permit, Refused> {
        let now = (self.now)();
        let mut transitions = Vec::new();
        let given = {
            let mut inner = self.inner.lock();
            self.advance_time(&mut inner, now, &mut transitions);
            match inner.state {
                BreakerState::Closed => {
                    *inner.unfinished.entry(slot(now)).or_default() += 1;
                    Ok((inner.generation, false))
                }
                BreakerState::ForcedClosed => Ok((inner.generation, false)),
                BreakerState::HalfOpen if inner.step.given < PROBE_STEPS[inner.step.number] => {
                    if inner.step.outstanding() == 0 {
                        inner.step.began = now;
                    }
                    inner.step.given += 1;
                    Ok((inner.generation, true))
                }
                BreakerState::HalfOpen => Err(Refused { retry_after: self.options.slow_after }),
                BreakerState::Open => {
                    Err(Refused { retry_after: inner.open_until.saturating_sub(now) })
                }
                BreakerState::ForcedOpen => Err(Refused { retry_after: self.options.open_cap }),
            }
        };
        self.notify(&transitions);
        let (generation, probe) = given?;
        Ok(Permit { breaker: Arc::clone(self), generation, began: now, probe, ended: false })
    }

    /// Forces the breaker open (`Some(true)`) or closed (`Some(false)`), or releases it (`None`).
    pub fn force(&self, open: Option<bool>) {
        let now = (self.now)();
        let mut transitions = Vec::new();
        {
            let mut inner = self.inner.lock();
            let to = match open {
                Some(true) => BreakerState::ForcedOpen,
                Some(false) => BreakerState::ForcedClosed,
                None => BreakerState::Closed,
            };
            let forced =
                matches!(inner.state, BreakerState::ForcedOpen | BreakerState::ForcedClosed);
            if inner.state != to && (open.is_some() || forced) {
                // any => ForcedOpen | ForcedClosed, or Forced* => Closed.
                self.transition(&mut inner, now, to, "by_hand", &mut transitions);
                (inner.opens, inner.closed_since) = (0, now);
            }
        }
        self.notify(&transitions);
    }

    /// Closes the breaker because the dependency was replaced, so past failures do not count.
    /// Forced states stay.
    pub fn reset(&self, reason: &'static str) {
        let now = (self.now)();
        let mut transitions = Vec::new();
        {
            let mut inner = self.inner.lock();
            if !matches!(inner.state, BreakerState::ForcedOpen | BreakerState::ForcedClosed) {
                // Closed | Open | HalfOpen => Closed: the dependency was replaced.
                self.transition(&mut inner, now, BreakerState::Closed, reason, &mut transitions);
                (inner.opens, inner.closed_since) = (0, now);
            }
        }
        self.notify(&transitions);
    }

    fn on_result(&self, generation: u64, began: Duration, good: Option<bool>) {
        let now = (self.now)();
        let slow = now.saturating_sub(began) >= self.options.slow_after;
        let mut transitions = Vec::new();
        let late = {
            let mut inner = self.inner.lock();
            // The state has changed since the call started.
            let late = inner.generation != generation;
            match good {
                None => inner.cancelled += 1,
                Some(_) => inner.late += u64::from(late),
            }
            if !late {
                match inner.state {
                    BreakerState::Closed => {
                        self.count(&mut inner, now, began, good, slow, &mut transitions)
                    }
                    BreakerState::HalfOpen => self.on_probe_result(
                        &mut inner,
                        now,
                        good.map(|good| good && !slow),
                        &mut transitions,
                    ),
                    BreakerState::Open | BreakerState::ForcedOpen | BreakerState::ForcedClosed => {}
                }
            }
            late
        };
        self.notify(&transitions);
        let ignored = match good {
            None => Some(IgnoredReason::Cancelled),
            Some(_) => late.then_some(IgnoredReason::Late),
        };
        if let Some(why) = ignored {
            let breaker = Bounded(self.name.clone());
            counter!(BREAKER_IGNORED, "breaker" => breaker, "why" => why).increment(1);
        }
    }

    fn count(
        &self,
        inner: &mut Inner,
        now: Duration,
        began: Duration,
        good: Option<bool>,
        slow: bool,
        transitions: &mut Vec<Transition>,
    ) {
        if let Some(unfinished) = inner.unfinished.get_mut(&slot(began)) {
            *unfinished = unfinished.saturating_sub(1);
            if *unfinished == 0 {
                inner.unfinished.remove(&slot(began));
            }
        }
        let Some(good) = good else { return };
        let tick = tick(now);
        let bucket = &mut inner.buckets[(tick % BUCKETS as u64) as usize];
        if bucket.tick != tick {
            *bucket = Bucket { tick, ..Bucket::default() };
        }
        match (good, slow) {
            (false, _) => bucket.failed += 1,
            (true, true) => bucket.slow += 1,
            (true, false) => bucket.ok += 1,
        }
        if good {
            inner.last_good = Some(now);
        }
        let (ok, failed, slow) = inner.window(now);
        let calls = ok + failed + slow;
        if calls < self.options.min_calls {
            return;
        }
        let share = |part: u32| f64::from(part) / f64::from(calls);
        // Closed => Open: too many failed or slow calls.
        if failed > 0 && share(failed) >= self.options.failed_share {
            self.open(inner, now, "failures", transitions);
        } else if failed + slow > 0 && share(failed + slow) >= self.options.failed_or_slow_share {
            self.open(inner, now, "slow_calls", transitions);
        }
    }

    fn on_probe_result(
        &self,
        inner: &mut Inner,
        now: Duration,
        good: Option<bool>,
        transitions: &mut Vec<Transition>,
    ) {
        match good {
            // Cancelled: the probe is issued again.
            None => {
                inner.step.given = inner.step.given.saturating_sub(1);
                return;
            }
            Some(true) => inner.step.good += 1,
            Some(false) => inner.step.bad += 1,
        }
        let step = inner.step;
        if step.number == 0 && step.bad > 0 {
            // HalfOpen => Open: the first probe failed.
            return self.open(inner, now, "probe_failed", transitions);
        }
        let reported = step.good + step.bad;
        if reported < PROBE_STEPS[step.number] {
            return;
        }
        if f64::from(step.good) < PROBE_SUCCESS_SHARE * f64::from(reported) {
            // HalfOpen => Open: too few probes of the step succeeded.
            self.open(inner, now, "probes_failed", transitions);
        } else if step.number + 1 < PROBE_STEPS.len() {
            inner.step = Step { number: step.number + 1, given: 0, good: 0, bad: 0, began: now };
        } else {
            // HalfOpen => Closed: all steps succeeded.
            self.transition(inner, now, BreakerState::Closed, "probes_succeeded", transitions);
            inner.closed_since = now;
        }
    }

    /// Whether the dependency swallows calls.
    fn is_stalled(&self, inner: &Inner, now: Duration) -> bool {
        let Some(before) =
            now.checked_sub(self.options.slow_after).filter(|_| self.options.stalled_calls > 0)
        else {
            return false;
        };
        // Not "since the oldest of them started": a call that started before the last success would
        // hide the stall until it ends.
        let stalled: u32 = inner.unfinished.range(..slot(before)).map(|(_, calls)| calls).sum();
        stalled >= self.options.stalled_calls && inner.last_good.is_none_or(|at| at < before)
    }

    fn open(
        &self,
        inner: &mut Inner,
        now: Duration,
        reason: &'static str,
        transitions: &mut Vec<Transition>,
    ) {
        if inner.state == BreakerState::Closed
            && now.saturating_sub(inner.closed_since) >= self.options.reset_after
        {
            inner.opens = 0;
        }
        let nominal =
            self.options.open_first.saturating_mul(2u32.saturating_pow(inner.opens.min(20)));
        let jitter = 0.5 + inner.rng.f64() / 2.0;
        inner.open_until = now + nominal.min(self.options.open_cap).mul_f64(jitter);
        inner.opens = inner.opens.saturating_add(1);
        self.transition(inner, now, BreakerState::Open, reason, transitions);
    }

    fn transition(
        &self,
        inner: &mut Inner,
        now: Duration,
        to: BreakerState,
        reason: &'static str,
        transitions: &mut Vec<Transition>,
    ) {
        let from = std::mem::replace(&mut inner.state, to);
        (inner.transitioned, inner.reason) = (now, reason);
        inner.generation += 1;
        inner.buckets = [Bucket::default(); BUCKETS];
        inner.unfinished.clear();
        inner.last_good = None;
        let generation = inner.generation;
        transitions.push(Transition { name: self.name.clone(), from, to, reason, generation });
    }
}

#[cfg(test)]
mod tests;
