//! Answers that can be done without: popular tags, suggestions, counts, related tags, facets, exact
//! totals.
//!
//! One that cannot be had in time is answered with the last good one, marked, or left out, marked.
//! It is waited for as long as it may take in a service that works; once it failed, or several wait
//! longer than it usually takes, for a moment nobody waits longer than 30 ms. What comes too late
//! for its caller is finished in the background and answers the next one.
//!
//! How it fails: an answer lacks a feature and names it (`features_limited`); only a client that
//! refuses such answers gets an error.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tagfast_domain::{TenantId, UnixMillis};
use tagfast_popular::PopularError;
use tagfast_resilience::comes_back;
use tagfast_search::SearchError;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::call::age;
use crate::problem::{Code, Problem};
use crate::snapshots::{Known, Question, Snapshots};
use crate::wire::{Meta, STALE_MS};

/// How long a feature is waited for while it works.
const PATIENT: Duration = Duration::from_millis(500);
/// How long it is waited for while it does not.
const HASTY: Duration = Duration::from_millis(30);
/// After a failure it does not work for so long: longer than [`DEADLINE`], so that what hangs says
/// so again in time.
const TROUBLE: Duration = Duration::from_secs(3);
/// So many that wait longer than usual are a failure.
const CROWD: usize = 8;
/// Longer than so many times the usual is long.
const USUAL: u32 = 4;
/// How long an answer may take that nobody waits for.
const DEADLINE: Duration = Duration::from_secs(2);
/// Answers that nobody waits for, at once.
const LATE: usize = 64;

/// The reason of a feature that was left out.
pub(crate) const FEATURES_LIMITED: &str = "features_limited";

/// A part of answers that can be done without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feature {
    Popular,
    Suggestions,
    Count,
    Related,
    Facets,
    Total,
}

impl Feature {
    const ALL: [Self; 6] =
        [Self::Popular, Self::Suggestions, Self::Count, Self::Related, Self::Facets, Self::Total];

    /// The stable word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Popular => "popular",
            Self::Suggestions => "suggestions",
            Self::Count => "count",
            Self::Related => "related",
            Self::Facets => "facets",
            Self::Total => "total",
        }
    }

    fn problem(self, detail: String) -> Problem {
        let code = match self {
            Self::Popular | Self::Suggestions | Self::Count => Code::PopularUnavailable,
            Self::Related | Self::Facets | Self::Total => Code::SearchUnavailable,
        };
        Problem::new(code, detail).retry_after(comes_back())
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) struct Failed {
    /// The stable word; `None`: the caller is to blame.
    cause: Option<&'static str>,
    problem: Problem,
}

impl From<SearchError> for Failed {
    fn from(error: SearchError) -> Self {
        let cause = match &error {
            SearchError::Unavailable(_) => Some("unavailable"),
            SearchError::Refused { reason, .. } => Some(*reason),
            SearchError::Syntax { .. }
            | SearchError::Limit { .. }
            | SearchError::PrefixTooBroad { .. } => None,
        };
        Self { cause, problem: error.into() }
    }
}

impl From<PopularError> for Failed {
    fn from(error: PopularError) -> Self {
        let cause = match &error {
            PopularError::Unavailable(_) => Some("unavailable"),
            PopularError::UnknownWindow(_) => None,
        };
        Self { cause, problem: error.into() }
    }
}

/// What is asked.
pub(crate) struct Ask<'a> {
    pub(crate) tenant: &'a TenantId,
    pub(crate) feature: Feature,
    pub(crate) question: Question,
    /// The oldest stale answer that the client prefers to none.
    pub(crate) max_stale: Option<Duration>,
    pub(crate) now: UnixMillis,
}

/// What can be answered.
#[derive(Debug)]
pub(crate) enum Given {
    /// As usual.
    Good(Arc<Known>),
    /// The last good one, and why.
    Last(Arc<Known>, &'static str),
    /// Nothing.
    Nothing,
}

impl Given {
    /// What is known.
    pub(crate) fn known(&self) -> Option<&Known> {
        match self {
            Self::Good(known) | Self::Last(known, _) => Some(known),
            Self::Nothing => None,
        }
    }

    /// Whether it is a last good one.
    pub(crate) fn is_last(&self) -> bool {
        matches!(self, Self::Last(..))
    }

    /// Says in the answer what is not as usual.
    pub(crate) fn mark(&self, feature: Feature, meta: &mut Meta, now: UnixMillis) {
        if let Some(known) = self.known() {
            meta.not_newer_than(known.as_of, now);
        }
        match self {
            Self::Good(_) => {}
            Self::Last(_, cause) => {
                meta.stale = true;
                meta.degrade(feature.as_str(), cause);
            }
            Self::Nothing => meta.degrade(feature.as_str(), FEATURES_LIMITED),
        }
        if self.known().is_some_and(|known| known.approximate) {
            meta.degrade(feature.as_str(), "approximate");
        }
        if self.known().is_some_and(|known| known.plain) {
            meta.degrade("display", "unavailable");
        }
    }
}

/// How a feature does.
struct Mood {
    /// How long it usually takes, in microseconds.
    usual: AtomicU64,
    /// Callers that wait longer.
    crowd: AtomicUsize,
    /// When it failed last, and how.
    trouble: Mutex<Option<(Instant, &'static str)>>,
}

impl Mood {
    fn new() -> Self {
        let usual = u64::try_from((PATIENT / USUAL).as_micros()).unwrap_or(u64::MAX);
        Self { usual: AtomicU64::new(usual), crowd: AtomicUsize::new(0), trouble: Mutex::new(None) }
    }

    fn trouble(&self) -> Option<&'static str> {
        let last = *self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        last.filter(|(at, _)| at.elapsed() < TROUBLE).map(|(_, cause)| cause)
    }

    fn failed(&self, cause: &'static str) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), cause));
    }

    /// After how long a caller waits longer than usual.
    fn long(&self) -> Duration {
        (Duration::from_micros(self.usual.load(Ordering::Relaxed)) * USUAL).clamp(HASTY, PATIENT)
    }

    fn ended(&self, took: Duration, result: &Result<Known, Failed>) {
        match result {
            Ok(known) if known.stale => self.failed("unavailable"),
            Ok(_) if took >= PATIENT => self.failed("too_slow"),
            Ok(_) => {
                let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                // Two at once may lose one of both: it is an average.
                let usual = self.usual.load(Ordering::Relaxed);
                self.usual.store(usual - usual / 16 + took / 16, Ordering::Relaxed);
            }
            Err(Failed { cause: Some(cause), .. }) => self.failed(cause),
            Err(Failed { cause: None, .. }) => {}
        }
    }
}

/// One of those who wait longer than usual.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    /// `None`: they are too many already.
    fn enter(crowd: &'a AtomicUsize) -> Option<Self> {
        let enter = |waiting| (waiting < CROWD).then_some(waiting + 1);
        crowd.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter).ok().map(|_| Self(crowd))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

type Work = Pin<Box<dyn Future<Output = Result<Known, Failed>> + Send>>;

/// Answers that can be done without.
pub(crate) struct Sheddable {
    snapshots: Snapshots,
    moods: [Mood; Feature::ALL.len()],
    late: Arc<Semaphore>,
    /// The oldest stale answer that is given.
    allowed: Duration,
}

impl Sheddable {
    pub(crate) fn new(allowed: Duration) -> Arc<Self> {
        Arc::new(Self {
            snapshots: Snapshots::new(),
            moods: std::array::from_fn(|_| Mood::new()),
            late: Arc::new(Semaphore::new(LATE)),
            allowed,
        })
    }

    fn mood(&self, feature: Feature) -> &Mood {
        &self.moods[feature as usize]
    }

    /// The features that do not work now, and why.
    pub(crate) fn troubled(&self) -> Vec<(&'static str, &'static str)> {
        let all = Feature::ALL.into_iter();
        all.filter_map(|feature| Some((feature.as_str(), self.mood(feature).trouble()?))).collect()
    }

    /// What `work` answers if it does in time, else what is known.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        ask: Ask<'_>,
        work: impl Future<Output = Result<Known, Failed>> + Send + 'static,
    ) -> Result<Given, Problem> {
        let began = Instant::now();
        let mut work: Work = Box::pin(work);
        let refuses = ask.max_stale.is_some_and(|oldest| oldest.is_zero());
        let Some(result) = self.wait(ask.feature, began, refuses, &mut work).await else {
            self.finish_later(&ask, began, work);
            let problem =
                ask.feature.problem(format!("{} did not come in time", ask.feature.as_str()));
            return self.instead(&ask, None, "too_slow", problem);
        };
        self.mood(ask.feature).ended(began.elapsed(), &result);
        match result {
            Ok(known) if known.stale => {
                let problem =
                    ask.feature.problem(format!("{} cannot be read now", ask.feature.as_str()));
                self.instead(&ask, Some(Arc::new(known)), "unavailable", problem)
            }
            Ok(known) => {
                let old = age(ask.now, known.as_of);
                if old > STALE && ask.max_stale.is_some_and(|oldest| old > oldest) {
                    let problem = ask.feature.problem(format!(
                        "{} is {} s old",
                        ask.feature.as_str(),
                        old.as_secs()
                    ));
                    return self.instead(&ask, None, "lagging", problem);
                }
                let known = Arc::new(known);
                self.snapshots.put(ask.tenant, &ask.question, &known);
                Ok(Given::Good(known))
            }
            Err(Failed { cause: None, problem }) => Err(problem),
            Err(Failed { cause: Some(cause), problem }) => self.instead(&ask, None, cause, problem),
        }
    }

    /// `None`: it takes too long.
    async fn wait(
        &self,
        feature: Feature,
        began: Instant,
        refuses: bool,
        work: &mut Work,
    ) -> Option<Result<Known, Failed>> {
        let mood = self.mood(feature);
        // Who refuses anything else waits.
        if !refuses {
            let hasty = mood.trouble().is_some();
            let long = if hasty { HASTY } else { mood.long() };
            if let Ok(result) = timeout_at(began + long, &mut *work).await {
                return Some(result);
            }
            if hasty {
                return None;
            }
        }
        let waiting = Waiting::enter(&mood.crowd);
        if waiting.is_none() && !refuses {
            mood.failed("too_slow");
            return None;
        }
        let result = timeout_at(began + PATIENT, work).await.ok();
        if result.is_none() {
            mood.failed("too_slow");
        }
        result
    }

    /// Finishes what nobody waits for: it answers the next one, and tells how the feature does.
    fn finish_later(self: &Arc<Self>, ask: &Ask<'_>, began: Instant, work: Work) {
        let Ok(place) = Arc::clone(&self.late).try_acquire_owned() else { return };
        let (this, tenant, feature, question) =
            (Arc::clone(self), ask.tenant.clone(), ask.feature, ask.question.clone());
        tokio::spawn(async move {
            let _place = place;
            match timeout_at(began + DEADLINE, work).await {
                Err(_) => this.mood(feature).failed("too_slow"),
                Ok(result) => {
                    this.mood(feature).ended(began.elapsed(), &result);
                    if let Ok(known) = result {
                        this.snapshots.put(&tenant, &question, &Arc::new(known));
                    }
                }
            }
        });
    }

    /// What is answered instead.
    fn instead(
        &self,
        ask: &Ask<'_>,
        known: Option<Arc<Known>>,
        cause: &'static str,
        problem: Problem,
    ) -> Result<Given, Problem> {
        let oldest = ask.max_stale.unwrap_or(self.allowed);
        let count = |outcome: &'static str| {
            metrics::counter!("tagfast_degraded_answers_total",
                "feature" => ask.feature.as_str(), "outcome" => outcome, "reason" => cause)
            .increment(1);
        };
        if ask.max_stale.is_some_and(|oldest| oldest.is_zero()) {
            count("refused");
            return Err(problem);
        }
        let known = known.or_else(|| self.snapshots.get(ask.tenant, &ask.question));
        match known.filter(|known| age(ask.now, known.as_of) <= oldest) {
            Some(known) => {
                count("last_good");
                Ok(Given::Last(known, cause))
            }
            None => {
                count(FEATURES_LIMITED);
                Ok(Given::Nothing)
            }
        }
    }
}

/// As [`STALE_MS`].
const STALE: Duration = Duration::from_millis(STALE_MS as u64);

#[cfg(test)]
mod tests;
