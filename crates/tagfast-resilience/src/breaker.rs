//! A circuit breaker: it stops calls to what does not answer, and finds out by few calls when it
//! does again.
//!
//! Results are counted in a window that really slides, failures and slow calls apart; calls that
//! have begun and not ended count, too, so that something that swallows calls is noticed before the
//! first of them times out. Half open, permits are given in growing steps; a permit that is dropped
//! without a result counts neither way and is given again. Results of an earlier generation change
//! nothing. It can be held open or closed by hand.
//!
//! How it fails: a clock that stands still keeps it in its state; nothing waits here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::jitter::Jitter;

/// Buckets of the window, one a second.
const BUCKETS: usize = 10;
/// Calls that began within a slot are counted together.
const SLOT_MS: u64 = 10;
/// Permits of the steps half open.
const STEPS: [u32; 5] = [1, 2, 4, 8, 16];
/// Of a step's results so many must be good.
const GOOD_SHARE: f64 = 0.8;

/// What time it is, from any beginning; it never goes back.
pub type Now = Arc<dyn Fn() -> Duration + Send + Sync>;
/// Is told of every transition, after it.
pub type Told = Arc<dyn Fn(&Transition) + Send + Sync>;

/// When a breaker opens and for how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerOptions {
    /// Fewer calls in the window decide nothing. Too high: it opens late; too low: one bad call
    /// opens it.
    pub min_calls: u32,
    /// It opens when at least this share of calls failed; at 0 with the first failure.
    pub failed_share: f64,
    /// It opens when at least this share of calls failed or was slow; above 1 never.
    pub failed_or_slow_share: f64,
    /// A call that takes longer is slow.
    pub slow_after: Duration,
    /// So many calls that are slow already, without any success for as long, open it; 0: never.
    pub stalled_calls: u32,
    /// How long it is open the first time; doubled with every time.
    pub open_first: Duration,
    /// The longest time.
    pub open_cap: Duration,
    /// Closed for so long, the next opening is a first one.
    pub reset_after: Duration,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        Self {
            min_calls: 20,
            failed_share: 0.5,
            failed_or_slow_share: 0.6,
            slow_after: Duration::from_millis(500),
            stalled_calls: 20,
            open_first: Duration::from_millis(500),
            open_cap: Duration::from_secs(10),
            reset_after: Duration::from_secs(30),
        }
    }
}

/// What a breaker does with calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Lets them through.
    Closed,
    /// Refuses them.
    Open,
    /// Lets a few through.
    HalfOpen,
    /// Refuses them until somebody says otherwise.
    ForcedOpen,
    /// Lets them through until somebody says otherwise.
    ForcedClosed,
}

impl BreakerState {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::ForcedOpen => "forced_open",
            Self::ForcedClosed => "forced_closed",
        }
    }
}

/// A change of state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// Whose.
    pub name: String,
    /// Before.
    pub from: BreakerState,
    /// After.
    pub to: BreakerState,
    /// Why.
    pub reason: &'static str,
    /// Counts the changes.
    pub generation: u64,
}

/// How a breaker stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerLook {
    /// Its name.
    pub name: String,
    /// What it does with calls.
    pub state: BreakerState,
    /// Why it came to that; `start` before any change.
    pub reason: &'static str,
    /// For how long.
    pub since: Duration,
    /// Counts the changes.
    pub generation: u64,
    /// Calls of the window that succeeded in time.
    pub ok: u32,
    /// Calls of the window that failed.
    pub failed: u32,
    /// Calls of the window that succeeded late.
    pub slow: u32,
    /// Permits that were dropped without a result since the start. They count neither way.
    pub cancelled: u64,
    /// Results of an earlier generation since the start. They change nothing.
    pub late: u64,
}

/// A call was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the breaker is open")]
pub struct Refused {
    /// When to ask again.
    pub retry_after: Duration,
}

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
    /// When the oldest probe that has not ended may have begun.
    began: Duration,
}

impl Step {
    /// Probes that have not ended.
    fn outstanding(&self) -> u32 {
        self.given - self.good - self.bad
    }
}

#[derive(Debug)]
struct Inner {
    state: BreakerState,
    generation: u64,
    buckets: [Bucket; BUCKETS],
    /// Calls that have not ended, by the slot they began in.
    unfinished: BTreeMap<u64, u32>,
    last_good: Option<Duration>,
    step: Step,
    opens: u32,
    open_until: Duration,
    closed_since: Duration,
    turned: Duration,
    reason: &'static str,
    cancelled: u64,
    late: u64,
    jitter: Jitter,
}

/// The bucket that a moment belongs to.
fn tick(now: Duration) -> u64 {
    now.as_secs() + 1
}

impl Inner {
    /// Calls of the last ten seconds: good ones, failed ones, slow ones.
    fn window(&self, now: Duration) -> (u32, u32, u32) {
        let live = self.buckets.iter().filter(|bucket| bucket.tick + BUCKETS as u64 > tick(now));
        live.fold((0, 0, 0), |sum, bucket| {
            (sum.0 + bucket.ok, sum.1 + bucket.failed, sum.2 + bucket.slow)
        })
    }
}

/// A breaker.
pub struct Breaker {
    name: String,
    options: BreakerOptions,
    now: Now,
    told: Told,
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

/// Leave for one call. Dropped without a result it counts neither way.
#[derive(Debug)]
pub struct Permit {
    breaker: Arc<Breaker>,
    generation: u64,
    began: Duration,
    /// It tells whether what failed works again.
    probe: bool,
    ended: bool,
}

impl Permit {
    /// Whether the breaker is half open: the call tells whether what failed works again.
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// The call succeeded; a slow one counts as that.
    pub fn ok(mut self) {
        self.end(Some(true));
    }

    /// The call failed.
    pub fn failed(mut self) {
        self.end(Some(false));
    }

    fn end(&mut self, good: Option<bool>) {
        if !std::mem::replace(&mut self.ended, true) {
            self.breaker.ended(self.generation, self.began, good);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.end(None);
    }
}

fn slot(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX) / SLOT_MS
}

impl Breaker {
    /// A closed one. `seed` spreads the open times of breakers that open together; 0: drawn by
    /// chance.
    pub fn new(
        name: impl Into<String>,
        options: BreakerOptions,
        now: Now,
        told: Told,
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
            turned: began,
            reason: "start",
            cancelled: 0,
            late: 0,
            jitter: Jitter::new(seed),
        };
        Arc::new(Self { name: name.into(), options, now, told, inner: Mutex::new(inner) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code of others runs under it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it does with calls now. What time alone changes has happened by then, though nobody
    /// called.
    pub fn state(&self) -> BreakerState {
        self.look().state
    }

    /// How it stands now. What time alone changes has happened by then, though nobody called: an
    /// open time that is over, calls that are swallowed, a probe that hangs. So who looks every
    /// now and then needs no timer beside it.
    pub fn look(&self) -> BreakerLook {
        let now = (self.now)();
        let mut transitions = Vec::new();
        let look = {
            let mut inner = self.lock();
            self.pass(&mut inner, now, &mut transitions);
            let (ok, failed, slow) = inner.window(now);
            BreakerLook {
                name: self.name.clone(),
                state: inner.state,
                reason: inner.reason,
                since: now.saturating_sub(inner.turned),
                generation: inner.generation,
                ok,
                failed,
                slow,
                cancelled: inner.cancelled,
                late: inner.late,
            }
        };
        transitions.iter().for_each(|transition| (self.told)(transition));
        look
    }

    /// What time alone changes.
    fn pass(&self, inner: &mut Inner, now: Duration, transitions: &mut Vec<Transition>) {
        if inner.state == BreakerState::Closed && self.stalls(inner, now) {
            self.open(inner, now, "stall", transitions);
        }
        if inner.state == BreakerState::Open && now >= inner.open_until {
            self.turn(inner, now, BreakerState::HalfOpen, "open_time_over", transitions);
            inner.step = Step { number: 0, given: 0, good: 0, bad: 0, began: now };
        }
        // Only of probes that have not ended: that nobody called for long says nothing.
        let hangs = now.saturating_sub(inner.step.began) > self.options.slow_after * 4;
        if inner.state == BreakerState::HalfOpen && inner.step.outstanding() > 0 && hangs {
            self.open(inner, now, "probe_takes_too_long", transitions);
        }
    }

    /// Leave for a call that begins now.
    pub fn acquire(self: &Arc<Self>) -> Result<Permit, Refused> {
        let now = (self.now)();
        let mut transitions = Vec::new();
        let given = {
            let mut inner = self.lock();
            self.pass(&mut inner, now, &mut transitions);
            match inner.state {
                BreakerState::Closed => {
                    *inner.unfinished.entry(slot(now)).or_default() += 1;
                    Ok((inner.generation, false))
                }
                BreakerState::ForcedClosed => Ok((inner.generation, false)),
                BreakerState::HalfOpen if inner.step.given < STEPS[inner.step.number] => {
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
        transitions.iter().for_each(|transition| (self.told)(transition));
        let (generation, probe) = given?;
        Ok(Permit { breaker: Arc::clone(self), generation, began: now, probe, ended: false })
    }

    /// Holds it open (`Some(true)`), closed (`Some(false)`), or lets it decide by itself again.
    pub fn force(&self, open: Option<bool>) {
        let now = (self.now)();
        let mut transitions = Vec::new();
        {
            let mut inner = self.lock();
            let to = match open {
                Some(true) => BreakerState::ForcedOpen,
                Some(false) => BreakerState::ForcedClosed,
                None => BreakerState::Closed,
            };
            let forced =
                matches!(inner.state, BreakerState::ForcedOpen | BreakerState::ForcedClosed);
            if inner.state != to && (open.is_some() || forced) {
                self.turn(&mut inner, now, to, "by_hand", &mut transitions);
                (inner.opens, inner.closed_since) = (0, now);
            }
        }
        transitions.iter().for_each(|transition| (self.told)(transition));
    }

    /// What is behind it was replaced: what failed was another one. Forced states stay.
    pub fn begin_anew(&self, reason: &'static str) {
        let now = (self.now)();
        let mut transitions = Vec::new();
        {
            let mut inner = self.lock();
            if !matches!(inner.state, BreakerState::ForcedOpen | BreakerState::ForcedClosed) {
                self.turn(&mut inner, now, BreakerState::Closed, reason, &mut transitions);
                (inner.opens, inner.closed_since) = (0, now);
            }
        }
        transitions.iter().for_each(|transition| (self.told)(transition));
    }

    fn ended(&self, generation: u64, began: Duration, good: Option<bool>) {
        let now = (self.now)();
        let slow = now.saturating_sub(began) >= self.options.slow_after;
        let mut transitions = Vec::new();
        let late = {
            let mut inner = self.lock();
            // Of another generation: the world has changed since.
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
                    BreakerState::HalfOpen => self.judge(
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
        transitions.iter().for_each(|transition| (self.told)(transition));
        if let Some(why) = good.map_or(Some("cancelled"), |_| late.then_some("late")) {
            metrics::counter!("tagfast_breaker_ignored_total", "breaker" => self.name.clone(), "why" => why)
                .increment(1);
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
        if failed > 0 && share(failed) >= self.options.failed_share {
            self.open(inner, now, "failures", transitions);
        } else if failed + slow > 0 && share(failed + slow) >= self.options.failed_or_slow_share {
            self.open(inner, now, "slow_calls", transitions);
        }
    }

    fn judge(
        &self,
        inner: &mut Inner,
        now: Duration,
        good: Option<bool>,
        transitions: &mut Vec<Transition>,
    ) {
        match good {
            // A place in the step for somebody else.
            None => {
                inner.step.given = inner.step.given.saturating_sub(1);
                return;
            }
            Some(true) => inner.step.good += 1,
            Some(false) => inner.step.bad += 1,
        }
        let step = inner.step;
        if step.number == 0 && step.bad > 0 {
            return self.open(inner, now, "probe_failed", transitions);
        }
        let reported = step.good + step.bad;
        if reported < STEPS[step.number] {
            return;
        }
        if f64::from(step.good) < GOOD_SHARE * f64::from(reported) {
            self.open(inner, now, "probes_failed", transitions);
        } else if step.number + 1 < STEPS.len() {
            inner.step = Step { number: step.number + 1, given: 0, good: 0, bad: 0, began: now };
        } else {
            self.turn(inner, now, BreakerState::Closed, "probes_succeeded", transitions);
            inner.closed_since = now;
        }
    }

    /// Whether calls are swallowed.
    fn stalls(&self, inner: &Inner, now: Duration) -> bool {
        let Some(before) =
            now.checked_sub(self.options.slow_after).filter(|_| self.options.stalled_calls > 0)
        else {
            return false;
        };
        // Not "since the oldest of them began": one that began before the last success would hide
        // the stall until it ends itself.
        let swallowed: u32 = inner.unfinished.range(..slot(before)).map(|(_, calls)| calls).sum();
        swallowed >= self.options.stalled_calls && inner.last_good.is_none_or(|at| at < before)
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
        let jitter = 0.5 + inner.jitter.next() / 2.0;
        inner.open_until = now + nominal.min(self.options.open_cap).mul_f64(jitter);
        inner.opens = inner.opens.saturating_add(1);
        self.turn(inner, now, BreakerState::Open, reason, transitions);
    }

    fn turn(
        &self,
        inner: &mut Inner,
        now: Duration,
        to: BreakerState,
        reason: &'static str,
        transitions: &mut Vec<Transition>,
    ) {
        let from = std::mem::replace(&mut inner.state, to);
        (inner.turned, inner.reason) = (now, reason);
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
