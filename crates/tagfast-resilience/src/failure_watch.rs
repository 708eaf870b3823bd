//! Which share of some calls fails lately, and why: when a cause of failures begins and ends.
//!
//! Calls count their outcomes ([`OutcomeCounts`]: one atomic addition, no lock). A task compares
//! the counts a few times a second ([`FailureWatch`], pure): it looks at the calls of the last
//! three seconds and keeps the totals at the ends of that window only, so its memory is bounded
//! whatever the traffic is.
//!
//! | a cause | when |
//! |---|---|
//! | begins | more than half of the calls in the window failed, it is the most frequent reason, and this has been so for half a second, or no call has succeeded for two |
//! | ends | it has failed no call for 3.5 s, and a call has succeeded since, or a different cause has taken its place |
//!
//! A single failure that its retry mends begins nothing. A fault that fails one long call after the
//! other is not told as many short ones. Without calls nothing changes: silence proves nothing, so
//! the owner of the calls must try one now and then.
//!
//! How it fails: a clock that goes back is taken as one that stands.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How far back the share is looked at. Too short: a fault that fails a call every few seconds is
/// not seen; too long: what is over is told for longer.
pub const FAILURE_WINDOW: Duration = Duration::from_secs(3);
/// How long most calls must have failed while others still succeed.
pub const FAILURE_PERSISTENCE: Duration = Duration::from_millis(500);
/// After this long without a success, failures begin a cause at once.
pub const SUCCESS_GAP_MAX: Duration = Duration::from_secs(2);
/// How long a cause must have failed no call to be over. Longer than one call can take to fail.
pub const CAUSE_CALM: Duration = Duration::from_millis(3500);

/// Samples in a window: closer ones are merged.
const SAMPLES_MAX: u32 = 32;

/// The outcomes of calls since the start.
#[derive(Debug)]
pub struct OutcomeCounts {
    succeeded: AtomicU64,
    /// By cause.
    failed: Box<[AtomicU64]>,
}

/// [`OutcomeCounts`] at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutcomeTotals {
    /// Calls that succeeded.
    pub succeeded: u64,
    /// Calls that failed, by cause.
    pub failed: Box<[u64]>,
}

impl OutcomeCounts {
    /// No call yet; `causes` is the number of causes.
    pub fn new(causes: usize) -> Self {
        let failed = (0..causes).map(|_| AtomicU64::new(0)).collect();
        Self { succeeded: AtomicU64::new(0), failed }
    }

    /// Counts calls that succeeded.
    pub fn succeeded(&self, calls: u64) {
        self.succeeded.fetch_add(calls, Ordering::Relaxed);
    }

    /// Counts calls that failed; a cause that was not announced is the last one.
    pub fn failed(&self, cause: usize, calls: u64) {
        if let Some(count) = self.failed.get(cause).or(self.failed.last()) {
            count.fetch_add(calls, Ordering::Relaxed);
        }
    }

    /// The counts now.
    pub fn totals(&self) -> OutcomeTotals {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        OutcomeTotals {
            succeeded: read(&self.succeeded),
            failed: self.failed.iter().map(read).collect(),
        }
    }
}

/// A cause that fails calls now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OngoingCause {
    /// Its number.
    pub cause: usize,
    /// When it began, on the clock of [`FailureWatch::observe`].
    pub began: Duration,
    /// Calls that it failed since then, and in the window before.
    pub failures: u64,
}

/// What [`FailureWatch::observe`] noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CauseChange {
    /// The cause begins to fail calls.
    Began(OngoingCause),
    /// The cause is over.
    Ended(OngoingCause),
}

/// Watches the counts of one kind of calls.
#[derive(Debug)]
pub struct FailureWatch {
    /// Totals by time, oldest first: the newest one that is not in the window, then those in it.
    samples: VecDeque<(Duration, OutcomeTotals)>,
    last: OutcomeTotals,
    now: Duration,
    /// When a call succeeded last; the start before the first one.
    succeeded_at: Duration,
    /// When each cause failed a call last; `None`: it never did.
    failed_at: Box<[Option<Duration>]>,
    /// Since when most calls fail; `None`: they do not.
    failing_since: Option<Duration>,
    ongoing: Box<[Option<OngoingCause>]>,
}

impl FailureWatch {
    /// Watches from `now` on; `totals` is what happened before.
    pub fn new(now: Duration, totals: OutcomeTotals) -> Self {
        let causes = totals.failed.len();
        Self {
            samples: VecDeque::from([(now, totals.clone())]),
            last: totals,
            now,
            succeeded_at: now,
            failed_at: vec![None; causes].into(),
            failing_since: None,
            ongoing: vec![None; causes].into(),
        }
    }

    /// Compares the counts with those before; what has begun and ended since the last call.
    pub fn observe(&mut self, now: Duration, totals: OutcomeTotals) -> Vec<CauseChange> {
        let now = now.max(self.now);
        self.now = now;
        if totals.succeeded > self.last.succeeded {
            self.succeeded_at = now;
        }
        for (cause, count) in totals.failed.iter().enumerate() {
            let more = count - self.last.failed[cause].min(*count);
            if more > 0 {
                self.failed_at[cause] = Some(now);
            }
            if let Some(ongoing) = &mut self.ongoing[cause] {
                ongoing.failures += more;
            }
        }
        self.last = totals;
        self.slide(now);
        let (succeeded, failed) = self.window();
        let failures: u64 = failed.iter().sum();
        let lately =
            |cause: &usize| self.failed_at[*cause].is_some_and(|at| now - at < FAILURE_WINDOW);
        let most = (0..failed.len())
            .filter(lately)
            .max_by_key(|cause| (failed[*cause], usize::MAX - cause));
        self.failing_since =
            if failures > succeeded { self.failing_since.or(Some(now)) } else { None };
        let mut changes = self.end_causes(now);
        if let (Some(since), Some(cause)) = (self.failing_since, most)
            && self.ongoing[cause].is_none()
            && (now - since >= FAILURE_PERSISTENCE || now - self.succeeded_at >= SUCCESS_GAP_MAX)
        {
            let began = OngoingCause { cause, began: now, failures: failed[cause] };
            self.ongoing[cause] = Some(began);
            changes.push(CauseChange::Began(began));
        }
        changes
    }

    /// Ends the causes that are over.
    fn end_causes(&mut self, now: Duration) -> Vec<CauseChange> {
        let mut changes = Vec::new();
        for cause in 0..self.ongoing.len() {
            let failed_at = self.failed_at[cause].unwrap_or_default();
            let newer = |at: &Option<Duration>| at.is_some_and(|at| at > failed_at);
            let replaced = self.failed_at.iter().any(newer);
            let over = now - failed_at >= CAUSE_CALM && (self.succeeded_at > failed_at || replaced);
            if over && let Some(ended) = self.ongoing[cause].take() {
                changes.push(CauseChange::Ended(ended));
            }
        }
        changes
    }

    /// Moves the window.
    fn slide(&mut self, now: Duration) {
        let merged = self.samples.back().is_some_and(|(at, _)| {
            self.samples.len() > 1 && now - *at < FAILURE_WINDOW / SAMPLES_MAX
        });
        if !merged {
            self.samples.push_back((now, self.last.clone()));
        }
        while self.samples.get(1).is_some_and(|(at, _)| now - *at >= FAILURE_WINDOW) {
            self.samples.pop_front();
        }
    }

    /// What happened in the window: successes, and failures by cause.
    fn window(&self) -> (u64, Vec<u64>) {
        let Some((_, first)) = self.samples.front() else { return (0, Vec::new()) };
        let failed = self.last.failed.iter().zip(&first.failed);
        (
            self.last.succeeded.saturating_sub(first.succeeded),
            failed.map(|(now, then)| now.saturating_sub(*then)).collect(),
        )
    }

    /// The causes that fail calls now, in the order of their numbers.
    pub fn ongoing(&self) -> impl Iterator<Item = OngoingCause> {
        self.ongoing.iter().flatten().copied()
    }

    /// Calls in the window: how many failed, and how many there were.
    pub fn share(&self) -> (u64, u64) {
        let (succeeded, failed) = self.window();
        let failures = failed.iter().sum();
        (failures, failures + succeeded)
    }
}

#[cfg(test)]
mod tests;
