//! An index behind a deadline, a bulkhead and the breaker `index`: one that hangs, fails or is slow
//! costs its callers little and nobody else anything.
//!
//! Deadline around bulkhead around breaker. Nothing waits here: what finds no place is refused at
//! once, sheddable calls first (they may fill half of the places), then degradable ones. A failure
//! is what the index did wrong: no answer, not in time, an error of its own. A query that breaks a
//! rule, a call that was shed, and a caller who left are none.
//!
//! How it fails: while the breaker is open, every search is refused with the time after which to
//! ask again; up to the deadline a hanging index holds the places, and further calls are refused as
//! `overloaded`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{TagName, TenantId, UnixMillis};
use tagfast_resilience::{Breaker, BreakerOptions, Breakers, Criticality};

use crate::{SearchError, SearchIndex, SearchPage, SearchRequest};

/// A call that takes longer is slow to the breaker.
const SLOW: Duration = Duration::from_millis(500);
/// When to come back after there was no place.
const FULL: Duration = Duration::from_secs(1);

/// How an index is guarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardOptions {
    /// How long a call may take. Too long: a hanging index holds its callers. Too short: large
    /// searches never end well.
    pub deadline: Duration,
    /// Calls at once. Too many: a slow index gets slower still. Too few: searches are refused that
    /// it could carry.
    pub calls: usize,
}

impl Default for GuardOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(2), calls: 32 }
    }
}

/// How the bulkhead stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardLook {
    /// Most calls at once.
    pub limit: usize,
    /// Calls that have not ended.
    pub in_flight: usize,
    /// Calls that found no place since the start.
    pub shed: u64,
}

/// An index that is guarded.
pub struct GuardedIndex {
    inner: Arc<dyn SearchIndex>,
    breaker: Arc<Breaker>,
    options: GuardOptions,
    in_flight: AtomicUsize,
    shed: AtomicU64,
}

/// A place in the bulkhead.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
        metrics::gauge!("tagfast_search_in_flight").decrement(1.0);
    }
}

impl GuardedIndex {
    /// Guards an index with the breaker `index` of this process.
    pub fn new(
        inner: Arc<dyn SearchIndex>,
        breakers: &Arc<Breakers>,
        options: GuardOptions,
    ) -> Arc<Self> {
        Self::behind(inner, breakers.make("index", Self::breaker()), options)
    }

    /// When its breaker opens.
    pub fn breaker() -> BreakerOptions {
        BreakerOptions { slow_after: SLOW, ..BreakerOptions::default() }
    }

    /// Guards an index with this breaker.
    pub fn behind(
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

    /// How the bulkhead stands now.
    pub fn look(&self) -> GuardLook {
        GuardLook {
            limit: self.options.calls,
            in_flight: self.in_flight.load(Ordering::Acquire),
            shed: self.shed.load(Ordering::Relaxed),
        }
    }

    fn refuse(
        &self,
        criticality: Criticality,
        reason: &'static str,
        retry_after: Duration,
    ) -> SearchError {
        metrics::counter!("tagfast_search_shed_total",
            "criticality" => criticality.as_str(), "reason" => reason)
        .increment(1);
        SearchError::Refused { reason, retry_after }
    }

    fn place(&self, criticality: Criticality) -> Result<Place<'_>, SearchError> {
        let most = criticality.most_of(self.options.calls);
        let taken = self.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, |calls| {
            (calls < most).then_some(calls + 1)
        });
        if taken.is_err() {
            self.shed.fetch_add(1, Ordering::Relaxed);
            return Err(self.refuse(criticality, "overloaded", FULL));
        }
        metrics::gauge!("tagfast_search_in_flight").increment(1.0);
        Ok(Place(&self.in_flight))
    }

    async fn call<T>(
        &self,
        criticality: Criticality,
        call: impl Future<Output = Result<T, SearchError>> + Send,
    ) -> Result<T, SearchError> {
        let _place = self.place(criticality)?;
        let permit = match self.breaker.acquire() {
            Ok(permit) => permit,
            Err(refused) => {
                return Err(self.refuse(criticality, "breaker_open", refused.retry_after));
            }
        };
        match tokio::time::timeout(self.options.deadline, call).await {
            Err(_) => {
                permit.failed();
                Err(SearchError::Unavailable(format!(
                    "no answer within {:?}",
                    self.options.deadline
                )))
            }
            Ok(Ok(answer)) => {
                permit.ok();
                Ok(answer)
            }
            Ok(Err(error)) => {
                match &error {
                    SearchError::Unavailable(_) => permit.failed(),
                    // Of the query, or shed by the index itself: it says nothing of how the index
                    // is. The permit counts neither way.
                    SearchError::Syntax { .. }
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
    async fn search(
        &self,
        tenant: &TenantId,
        request: &SearchRequest,
    ) -> Result<SearchPage, SearchError> {
        self.call(request.criticality, self.inner.search(tenant, request)).await
    }

    async fn related(
        &self,
        tenant: &TenantId,
        tag: &TagName,
        limit: usize,
    ) -> Result<Vec<(TagName, u64)>, SearchError> {
        self.call(Criticality::Sheddable, self.inner.related(tenant, tag, limit)).await
    }

    fn as_of(&self) -> UnixMillis {
        self.inner.as_of()
    }

    async fn documents(&self) -> Result<u64, SearchError> {
        self.call(Criticality::Degradable, self.inner.documents()).await
    }
}
