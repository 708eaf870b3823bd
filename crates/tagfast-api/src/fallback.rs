//! Fallback for the optional features of answers: popular tags, suggestions, counts, related tags,
//! facets, exact totals.
//!
//! A request waits [`WAIT_NORMAL`] for a feature that works and [`WAIT_DEGRADED`] for one that
//! failed within the last [`FAILURE_COOLDOWN`]. A feature that fails or is late is replaced by its
//! last good answer; without one that is young enough it is omitted. Either way the answer says so
//! in `meta`. A late result is completed in the background: it becomes the last good answer and
//! shows whether the feature works again.
//!
//! All requests of a tenant for the same thing share one call, which is dropped when the last of
//! them has left and nothing completes it in the background. A call has an end of its own
//! ([`call_timeout`]), so that one that hangs does not hold the requests that come later.
//!
//! How it fails: an answer lacks a feature and names it (`features_limited`). Only a client that
//! refuses stale and partial answers (`Cache-Control: no-cache`) gets an error, after the normal
//! wait.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_domain::{TenantId, UnixMillis};
use tagfast_popular::PopularError;
use tagfast_resilience::task::TaskGroup;
use tagfast_resilience::{Bounded, LabelEnum, SingleFlight, counter, jittered_retry_after};
use tagfast_search::SearchError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use crate::last_good::{CachedAnswer, FeatureKey, LastGoodCache};
use crate::metric::{DEGRADED_ANSWERS, DegradedOutcome, Feature};
use crate::problem::{Code, Problem};
use crate::time::age;
use crate::wire::meta::{Meta, STALE_AFTER};

/// How long a request waits for a feature that works.
const WAIT_NORMAL: Duration = Duration::from_millis(500);
/// How long a request waits for a feature that failed recently.
const WAIT_DEGRADED: Duration = Duration::from_millis(30);
/// A feature counts as failing for this long after a failure. Longer than [`COMPLETION_TIMEOUT`],
/// so that a feature that hangs fails again before the cooldown ends.
const FAILURE_COOLDOWN: Duration = Duration::from_secs(3);
/// More callers than this that wait longer than [`SLOW_FACTOR`] times the usual count as a failure.
const SLOW_CALLERS_MAX: usize = 8;
/// A wait of more than this many times the usual duration is slow.
const SLOW_FACTOR: u32 = 4;
/// A late result that takes longer than this is a failure of the feature.
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the ranking of a tenant with very many tags may take when it is not in memory. Too
/// short: it is dropped and begun again for ever.
const RANKING_TIMEOUT: Duration = Duration::from_secs(20);
/// Late results that may be in progress in the background.
const LATE_COMPLETIONS_MAX: usize = 64;
/// Weight of one sample in the moving average of the duration: 1 in this many.
const AVERAGE_SAMPLES: u64 = 16;

/// The reason of a feature that took too long.
const TOO_SLOW: &str = "too_slow";
/// The reason of a feature that cannot be reached.
const UNAVAILABLE: &str = "unavailable";

/// When a call that several requests share ends at the latest.
fn call_timeout(feature: Feature) -> Duration {
    match feature {
        Feature::Popular | Feature::Suggestions => RANKING_TIMEOUT,
        Feature::Count | Feature::Related | Feature::Facets | Feature::Total => COMPLETION_TIMEOUT,
    }
}

fn unavailable(feature: Feature, detail: String) -> Problem {
    let code = match feature {
        Feature::Popular | Feature::Suggestions | Feature::Count => Code::PopularUnavailable,
        Feature::Related | Feature::Facets | Feature::Total => Code::SearchUnavailable,
    };
    Problem::new(code, detail).retry_after(jittered_retry_after())
}

/// Why a feature has no result.
#[derive(Debug, Clone)]
pub(crate) struct FeatureError {
    /// The stable reason; `None`: the request is wrong, the feature did not fail.
    reason: Option<&'static str>,
    problem: Problem,
}

impl From<FeatureError> for Problem {
    fn from(error: FeatureError) -> Self {
        error.problem
    }
}

impl From<SearchError> for FeatureError {
    fn from(error: SearchError) -> Self {
        let reason = match &error {
            SearchError::Unavailable(_) | SearchError::Unusable(_) => Some(UNAVAILABLE),
            SearchError::Refused { reason, .. } => Some(*reason),
            SearchError::Syntax { .. }
            | SearchError::Limit { .. }
            | SearchError::PrefixTooBroad { .. } => None,
        };
        Self { reason, problem: error.into() }
    }
}

impl From<PopularError> for FeatureError {
    fn from(error: PopularError) -> Self {
        let reason = match &error {
            PopularError::Unavailable(_) => Some(UNAVAILABLE),
            PopularError::UnknownWindow(_) => None,
        };
        Self { reason, problem: error.into() }
    }
}

/// A request for a feature.
pub(crate) struct FeatureRequest<'a> {
    pub(crate) tenant: &'a TenantId,
    pub(crate) feature: Feature,
    pub(crate) key: FeatureKey,
    /// The largest age of a stale answer that the client accepts; `None`: up to the service's own
    /// limit; zero: neither a stale answer nor one without the feature.
    pub(crate) max_stale: Option<Duration>,
    pub(crate) now: UnixMillis,
}

impl FeatureRequest<'_> {
    fn refuses_fallback(&self) -> bool {
        self.max_stale.is_some_and(|oldest| oldest.is_zero())
    }
}

/// What a feature contributes to an answer.
#[derive(Debug)]
pub(crate) enum FeatureAnswer {
    /// A fresh result.
    Fresh(Arc<CachedAnswer>),
    /// The last good answer, and the reason why there is no fresh one.
    LastGood(Arc<CachedAnswer>, &'static str),
    /// Nothing: the answer goes out without the feature.
    Omitted,
}

impl FeatureAnswer {
    /// The result; `None` when the feature is omitted.
    pub(crate) fn result(&self) -> Option<&CachedAnswer> {
        match self {
            Self::Fresh(answer) | Self::LastGood(answer, _) => Some(answer),
            Self::Omitted => None,
        }
    }

    /// Whether this is a last good answer.
    pub(crate) fn is_last_good(&self) -> bool {
        matches!(self, Self::LastGood(..))
    }

    /// Writes into `meta` how old the feature is and what it lacks.
    pub(crate) fn annotate(&self, feature: Feature, meta: &mut Meta, now: UnixMillis) {
        if let Some(answer) = self.result() {
            meta.cap_as_of(answer.as_of, now);
        }
        match self {
            Self::Fresh(_) => {}
            Self::LastGood(_, reason) => {
                meta.stale = true;
                meta.degrade(feature.as_str(), reason);
            }
            Self::Omitted => meta.degrade(feature.as_str(), DegradedOutcome::Omitted.as_str()),
        }
        if self.result().is_some_and(|answer| answer.approximate) {
            meta.degrade(feature.as_str(), "approximate");
        }
        if self.result().is_some_and(|answer| answer.canonical_spellings) {
            meta.degrade("display", UNAVAILABLE);
        }
    }
}

/// The health of one feature, as its callers see it.
struct FeatureHealth {
    /// Moving average of the duration of successful calls, in microseconds.
    usual_micros: AtomicU64,
    /// Callers that wait longer than usual.
    slow_callers: AtomicUsize,
    /// Time and reason of the last failure; `None` before the first.
    last_failure: Mutex<Option<(Instant, &'static str)>>,
}

impl FeatureHealth {
    fn new() -> Self {
        let usual = u64::try_from((WAIT_NORMAL / SLOW_FACTOR).as_micros()).unwrap_or(u64::MAX);
        Self {
            usual_micros: AtomicU64::new(usual),
            slow_callers: AtomicUsize::new(0),
            last_failure: Mutex::new(None),
        }
    }

    /// The reason of a failure within the cooldown.
    fn recent_failure(&self) -> Option<&'static str> {
        let last = *self.last_failure.lock();
        last.filter(|(at, _)| at.elapsed() < FAILURE_COOLDOWN).map(|(_, reason)| reason)
    }

    fn record_failure(&self, reason: &'static str) {
        *self.last_failure.lock() = Some((Instant::now(), reason));
    }

    /// A caller that waits longer than this waits longer than usual.
    fn slow_after(&self) -> Duration {
        (Duration::from_micros(self.usual_micros.load(Ordering::Relaxed)) * SLOW_FACTOR)
            .clamp(WAIT_DEGRADED, WAIT_NORMAL)
    }

    fn record(&self, took: Duration, result: &FeatureResult) {
        match result {
            Ok(answer) if answer.stale => self.record_failure(UNAVAILABLE),
            Ok(_) if took >= WAIT_NORMAL => self.record_failure(TOO_SLOW),
            Ok(_) => {
                let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                // Two concurrent updates may lose one sample, which an average can bear.
                let usual = self.usual_micros.load(Ordering::Relaxed);
                let next = usual - usual / AVERAGE_SAMPLES + took / AVERAGE_SAMPLES;
                self.usual_micros.store(next, Ordering::Relaxed);
            }
            Err(FeatureError { reason: Some(reason), .. }) => self.record_failure(reason),
            Err(FeatureError { reason: None, .. }) => {}
        }
    }
}

/// Counts one caller that waits longer than usual, until it is dropped.
struct SlowCaller<'a>(&'a AtomicUsize);

impl<'a> SlowCaller<'a> {
    /// `None`: too many callers wait already.
    fn enter(count: &'a AtomicUsize) -> Option<Self> {
        let enter = |waiting| (waiting < SLOW_CALLERS_MAX).then_some(waiting + 1);
        count.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter).ok().map(|_| Self(count))
    }
}

impl Drop for SlowCaller<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the requests that share a call get.
type FeatureResult = Result<Arc<CachedAnswer>, FeatureError>;

type FeatureFuture = Pin<Box<dyn Future<Output = FeatureResult> + Send>>;

/// What requests must have in common to share a call.
type CallKey = (TenantId, FeatureKey);

/// Completes a call in the background; no second one completes the same call meanwhile.
struct LateCompletion {
    fallback: Arc<FeatureFallback>,
    key: CallKey,
    _permit: OwnedSemaphorePermit,
}

impl Drop for LateCompletion {
    fn drop(&mut self) {
        self.fallback.late_calls.lock().remove(&self.key);
    }
}

/// Runs the calls to optional features and falls back to their last good answers.
pub(crate) struct FeatureFallback {
    last_good: LastGoodCache,
    health: [FeatureHealth; Feature::ALL.len()],
    /// The calls in progress.
    calls: Arc<SingleFlight<CallKey, FeatureResult>>,
    /// The calls that are completed in the background.
    late_calls: Mutex<HashSet<CallKey>>,
    /// One permit per late result in the background.
    late_completions: Arc<Semaphore>,
    /// The tasks of late results; each ends with its call.
    tasks: TaskGroup,
    /// The largest age of a last good answer that the service gives.
    max_stale: Duration,
}

impl FeatureFallback {
    pub(crate) fn new(max_stale: Duration, tasks: TaskGroup) -> Arc<Self> {
        Arc::new(Self {
            last_good: LastGoodCache::new(),
            health: std::array::from_fn(|_| FeatureHealth::new()),
            calls: SingleFlight::new(),
            late_calls: Mutex::default(),
            late_completions: Arc::new(Semaphore::new(LATE_COMPLETIONS_MAX)),
            tasks,
            max_stale,
        })
    }

    fn health(&self, feature: Feature) -> &FeatureHealth {
        &self.health[feature as usize]
    }

    /// The features that failed recently: (feature, reason).
    pub(crate) fn degraded_features(&self) -> Vec<(&'static str, &'static str)> {
        let recent = |feature: Feature| {
            self.health(feature).recent_failure().map(|reason| (feature.as_str(), reason))
        };
        Feature::ALL.into_iter().filter_map(recent).collect()
    }

    /// The result of a call that is shared with all requests of the tenant for the same thing; it
    /// is dropped when the last of them leaves.
    pub(crate) fn share(
        &self,
        tenant: &TenantId,
        feature: Feature,
        key: FeatureKey,
        call: impl Future<Output = Result<CachedAnswer, FeatureError>> + Send + 'static,
    ) -> impl Future<Output = FeatureResult> + Send + 'static {
        let (calls, key) = (Arc::clone(&self.calls), (tenant.clone(), key));
        let late = move || FeatureError {
            reason: Some(TOO_SLOW),
            problem: unavailable(feature, format!("{} did not come in time", feature.as_str())),
        };
        let work = async move {
            let result = timeout(call_timeout(feature), call).await;
            result.unwrap_or_else(|_| Err(late())).map(Arc::new)
        };
        async move {
            match calls.run_while_wanted(key, || work).await {
                Ok(shared) => shared.value,
                Err(lost) => {
                    tracing::error!(error = %lost, "an optional feature has a bug");
                    let problem = unavailable(feature, "the service hit a bug".to_owned());
                    Err(FeatureError { reason: Some(UNAVAILABLE), problem })
                }
            }
        }
    }

    /// The result of `call` if it comes in time, else the fallback. Requests for the same thing
    /// share one call.
    ///
    /// # Errors
    ///
    /// The call refused the request as wrong, or the client accepts no fallback.
    pub(crate) async fn call(
        self: &Arc<Self>,
        request: FeatureRequest<'_>,
        call: impl Future<Output = Result<CachedAnswer, FeatureError>> + Send + 'static,
    ) -> Result<FeatureAnswer, Problem> {
        let feature = request.feature;
        let began = Instant::now();
        let call = self.share(request.tenant, feature, request.key.clone(), call);
        let mut call: FeatureFuture = Box::pin(call);
        let Some(result) = self.wait(&request, began, &mut call).await else {
            self.complete_in_background(&request, began, call);
            let problem =
                unavailable(feature, format!("{} did not come in time", feature.as_str()));
            return self.fall_back(&request, None, TOO_SLOW, problem);
        };
        self.health(feature).record(began.elapsed(), &result);
        match result {
            Ok(answer) if answer.stale => {
                let problem =
                    unavailable(feature, format!("{} cannot be read now", feature.as_str()));
                self.fall_back(&request, Some(answer), UNAVAILABLE, problem)
            }
            Ok(answer) => {
                let old = age(request.now, answer.as_of);
                if old > STALE_AFTER && request.max_stale.is_some_and(|oldest| old > oldest) {
                    let detail = format!("{} is {} s old", feature.as_str(), old.as_secs());
                    let problem = unavailable(feature, detail);
                    return self.fall_back(&request, None, "lagging", problem);
                }
                self.last_good.put(request.tenant, &request.key, &answer);
                Ok(FeatureAnswer::Fresh(answer))
            }
            Err(FeatureError { reason: None, problem }) => Err(problem),
            Err(FeatureError { reason: Some(reason), problem }) => {
                self.fall_back(&request, None, reason, problem)
            }
        }
    }

    /// Waits for the call; `None`: it takes too long.
    async fn wait(
        &self,
        request: &FeatureRequest<'_>,
        began: Instant,
        call: &mut FeatureFuture,
    ) -> Option<FeatureResult> {
        let health = self.health(request.feature);
        // A caller that refuses the fallback always waits the normal time.
        let may_fall_back = !request.refuses_fallback();
        if may_fall_back {
            let failing = health.recent_failure().is_some();
            let wait = if failing { WAIT_DEGRADED } else { health.slow_after() };
            if let Ok(result) = timeout_at(began + wait, &mut *call).await {
                return Some(result);
            }
            if failing {
                return None;
            }
        }
        let slow_caller = SlowCaller::enter(&health.slow_callers);
        if slow_caller.is_none() && may_fall_back {
            health.record_failure(TOO_SLOW);
            return None;
        }
        let result = timeout_at(began + WAIT_NORMAL, call).await.ok();
        if result.is_none() {
            health.record_failure(TOO_SLOW);
        }
        result
    }

    /// Completes a late call: its result is the last good answer of the next request and tells
    /// whether the feature works. Without a free permit the call is dropped, unless other requests
    /// wait for it.
    fn complete_in_background(
        self: &Arc<Self>,
        request: &FeatureRequest<'_>,
        began: Instant,
        mut call: FeatureFuture,
    ) {
        let key = (request.tenant.clone(), request.key.clone());
        let Ok(permit) = Arc::clone(&self.late_completions).try_acquire_owned() else { return };
        if !self.late_calls.lock().insert(key.clone()) {
            // The same call is completed already.
            return;
        }
        let late = LateCompletion { fallback: Arc::clone(self), key, _permit: permit };
        let feature = request.feature;
        self.tasks.spawn(async move {
            let (this, (tenant, key)) = (&late.fallback, &late.key);
            let result = match timeout_at(began + COMPLETION_TIMEOUT, &mut call).await {
                Ok(result) => result,
                Err(_) => {
                    this.health(feature).record_failure(TOO_SLOW);
                    // Has an end of its own.
                    call.await
                }
            };
            this.health(feature).record(began.elapsed(), &result);
            if let Ok(answer) = result {
                this.last_good.put(tenant, key, &answer);
            }
        });
    }

    /// `stale` or else the last good answer if it is young enough, else nothing.
    fn fall_back(
        &self,
        request: &FeatureRequest<'_>,
        stale: Option<Arc<CachedAnswer>>,
        reason: &'static str,
        problem: Problem,
    ) -> Result<FeatureAnswer, Problem> {
        let count = |outcome: DegradedOutcome| {
            counter!(
                DEGRADED_ANSWERS,
                "feature" => request.feature,
                "outcome" => outcome,
                "reason" => Bounded(reason),
            )
            .increment(1);
        };
        if request.refuses_fallback() {
            count(DegradedOutcome::Refused);
            return Err(problem);
        }
        let oldest = request.max_stale.unwrap_or(self.max_stale);
        let answer = stale.or_else(|| self.last_good.get(request.tenant, &request.key));
        match answer.filter(|answer| age(request.now, answer.as_of) <= oldest) {
            Some(answer) => {
                count(DegradedOutcome::LastGood);
                Ok(FeatureAnswer::LastGood(answer, reason))
            }
            None => {
                count(DegradedOutcome::Omitted);
                Ok(FeatureAnswer::Omitted)
            }
        }
    }
}

#[cfg(test)]
mod tests;
