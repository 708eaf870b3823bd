//! An index behind a deadline, a bulkhead and the breaker `index`: an index that hangs, fails or is
//! slow costs its callers little and other requests nothing.
//!
//! The deadline surrounds the bulkhead, which surrounds the breaker. No call waits for a permit: a
//! call without one is refused at once. Load shedding follows criticality: sheddable calls may take
//! half of the permits, degradable calls four fifths. Only the index's own errors count as
//! failures: no answer, a late answer, an error. A query that breaks a rule, a shed call and a
//! caller that leaves count neither way.
//!
//! How it fails: an index that is known to be unusable is not called, and its state is the answer.
//! While the breaker is open, every search is refused with the time after which to retry. Until the
//! deadline passes, a hanging index holds its permits, and further calls are refused as
//! `overloaded`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{ContentType, TagName, TenantId, UnixMillis};
use tagfast_resilience::{
    Breaker, BreakerOptions, Breakers, Criticality, LabelEnum, counter, gauge, jittered_retry_after,
};

use crate::error::SearchError;
use crate::metrics::{GuardRefusal, IN_FLIGHT, SHED_TOTAL};
use crate::port::{RelatedTags, SearchIndex, SearchPage, SearchRequest, SearchResult};
use crate::problem::{IndexProblem, SearchEffect};
use crate::query::Query;

/// The breaker counts a call that takes longer as slow.
const SLOW_AFTER: Duration = Duration::from_millis(500);

/// Bounds of the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardOptions {
    /// Maximum duration of a call. Too long: a hanging index holds its callers. Too short: large
    /// searches never succeed.
    pub deadline: Duration,
    /// Maximum number of calls in flight. Too high: a slow index gets slower still. Too low:
    /// searches are refused that the index could carry.
    pub calls: usize,
}

impl Default for GuardOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(2), calls: 32 }
    }
}

/// State of the bulkhead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardSnapshot {
    /// Maximum number of calls in flight.
    pub limit: usize,
    /// Calls in flight.
    pub in_flight: usize,
    /// Calls refused as `overloaded` since the start.
    pub shed: u64,
}

/// An index behind the guard.
pub struct GuardedIndex {
    inner: Arc<dyn SearchIndex>,
    breaker: Arc<Breaker>,
    options: GuardOptions,
    in_flight: AtomicUsize,
    shed: AtomicU64,
}

/// A permit of the bulkhead; dropping it returns it.
struct BulkheadPermit<'a>(&'a AtomicUsize);

impl Drop for BulkheadPermit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
        gauge!(IN_FLIGHT).decrement(1.0);
    }
}

impl GuardedIndex {
    /// Guards an index with this process's breaker `index`.
    pub fn new(
        inner: Arc<dyn SearchIndex>,
        breakers: &Arc<Breakers>,
        options: GuardOptions,
    ) -> Arc<Self> {
        Self::with_breaker(inner, breakers.make("index", Self::breaker_options()), options)
    }

    /// Options of the breaker `index`.
    pub fn breaker_options() -> BreakerOptions {
        BreakerOptions { slow_after: SLOW_AFTER, ..BreakerOptions::default() }
    }

    /// Guards an index with the given breaker.
    pub fn with_breaker(
        inner: Arc<dyn SearchIndex>,
        breaker: Arc<Breaker>,
        options: GuardOptions,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner,
            breaker,
            options,
            in_flight: AtomicUsize::new(0),
            shed: AtomicU64::new(0),
        })
    }

    /// Current state of the bulkhead.
    pub fn snapshot(&self) -> GuardSnapshot {
        GuardSnapshot {
            limit: self.options.calls,
            in_flight: self.in_flight.load(Ordering::Acquire),
            shed: self.shed.load(Ordering::Relaxed),
        }
    }

    fn refuse(
        &self,
        criticality: Criticality,
        refusal: GuardRefusal,
        retry_after: Duration,
    ) -> SearchError {
        counter!(SHED_TOTAL, "criticality" => criticality, "reason" => refusal).increment(1);
        SearchError::Refused { reason: refusal.as_str(), retry_after }
    }

    /// The known problem of the index, in place of an error that does not name it.
    fn explained(&self, error: SearchError) -> SearchError {
        let problem = self.inner.problem().filter(|p| p.searches != SearchEffect::Answered);
        problem.map_or(error, SearchError::Unusable)
    }

    fn acquire(&self, criticality: Criticality) -> Result<BulkheadPermit<'_>, SearchError> {
        let max = criticality.max_of(self.options.calls);
        let acquired = self.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, |calls| {
            (calls < max).then_some(calls + 1)
        });
        if acquired.is_err() {
            self.shed.fetch_add(1, Ordering::Relaxed);
            return Err(self.refuse(criticality, GuardRefusal::Overloaded, jittered_retry_after()));
        }
        gauge!(IN_FLIGHT).increment(1.0);
        Ok(BulkheadPermit(&self.in_flight))
    }

    async fn call<T>(
        &self,
        criticality: Criticality,
        call: impl Future<Output = Result<T, SearchError>> + Send,
    ) -> Result<T, SearchError> {
        // A known state of the index is a better answer than an open breaker or a full bulkhead.
        let problem = self.inner.problem();
        if let Some(problem) = problem.filter(|p| p.searches == SearchEffect::Refused) {
            return Err(SearchError::Unusable(problem));
        }
        let _bulkhead = self.acquire(criticality)?;
        let permit = match self.breaker.acquire() {
            Ok(permit) => permit,
            Err(refused) => {
                let refusal = GuardRefusal::BreakerOpen;
                let error = self.refuse(criticality, refusal, refused.retry_after);
                return Err(self.explained(error));
            }
        };
        match tokio::time::timeout(self.options.deadline, call).await {
            Err(_) => {
                permit.failed();
                let deadline = self.options.deadline;
                let error = SearchError::unavailable(format!("no answer within {deadline:?}"));
                Err(self.explained(error))
            }
            Ok(Ok(answer)) => {
                permit.ok();
                Ok(answer)
            }
            Ok(Err(error)) => {
                match &error {
                    SearchError::Unavailable(_) => {
                        permit.failed();
                        return Err(self.explained(error));
                    }
                    // The query is to blame, the index shed the call, or its server works and the
                    // index does not: the permit counts neither way.
                    SearchError::Unusable(_)
                    | SearchError::Syntax { .. }
                    | SearchError::Limit { .. }
                    | SearchError::PrefixTooBroad { .. }
                    | SearchError::Refused { .. } => drop(permit),
                }
                Err(error)
            }
        }
    }
}

#[async_trait]
impl SearchIndex for GuardedIndex {
    async fn search(&self, tenant: &TenantId, request: &SearchRequest) -> SearchResult<SearchPage> {
        self.call(request.criticality, self.inner.search(tenant, request)).await
    }

    async fn related(&self, tenant: &TenantId, tag: &TagName, limit: usize) -> RelatedTags {
        self.call(Criticality::Sheddable, self.inner.related(tenant, tag, limit)).await
    }

    async fn counts(
        &self,
        tenant: &TenantId,
        content_type: Option<&ContentType>,
        terms: &[Query],
    ) -> SearchResult<Vec<u64>> {
        let counts = self.inner.counts(tenant, content_type, terms);
        self.call(Criticality::Sheddable, counts).await
    }

    fn problem(&self) -> Option<IndexProblem> {
        self.inner.problem()
    }

    fn as_of(&self) -> UnixMillis {
        self.inner.as_of()
    }

    async fn documents(&self) -> Result<u64, SearchError> {
        self.call(Criticality::Degradable, self.inner.documents()).await
    }
}
