//! The state of the index as this process knows it.
//!
//! The caller says how old the state may be; a newer one is read from the server, once for
//! all who wait for it. A problem is logged when it begins and when it ends, and is shown by a
//! gauge while it lasts.
//!
//! How it fails: a server that does not answer is a state too, so no caller waits longer than the
//! timeout of a check.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_events::SinkError;
use tagfast_resilience::{Bounded, gauge};
use tagfast_search::metrics::INDEX_PROBLEM;
use tagfast_search::{IndexProblem, SearchEffect, SearchError};
use tokio::time::Instant;

use crate::client::Client;
use crate::error::systemic;
use crate::facts::{self, Facts};
use crate::index;
use crate::index_state::{self, IndexState, KnownIndex, Remembered, ServerTrouble};

/// How long a caller waits for a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckTimeout {
    /// That of callers who must name a problem soon.
    Short,
    /// That of the indexer, which waits for a slow server as its writes do.
    Long,
}

impl CheckTimeout {
    fn duration(self) -> Duration {
        match self {
            Self::Short => SHORT_TIMEOUT,
            Self::Long => LONG_TIMEOUT,
        }
    }
}

/// Timeout of a check that must name a problem. Shorter: a busy server looks like one that is away.
/// Longer: an outage is named late.
const SHORT_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of a check by the indexer.
const LONG_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a process may use what it read about the index. A rebuild waits for longer before it
/// starts to copy, so that every indexer writes to both indices.
pub(crate) const STATE_TTL: Duration = Duration::from_secs(1);

/// A state and when it was asked for.
#[derive(Clone)]
struct Seen {
    asked_at: Instant,
    state: Arc<IndexState>,
    problem: Option<IndexProblem>,
    /// Whether something has happened since that it does not explain.
    outdated: bool,
}

impl Seen {
    fn refuses_searches(&self) -> bool {
        self.problem.as_ref().is_some_and(|problem| problem.searches == SearchEffect::Refused)
    }
}

/// The oldest time at which a state that is still recent was asked for.
fn oldest_recent() -> Instant {
    let now = Instant::now();
    now.checked_sub(STATE_TTL).unwrap_or(now)
}

/// The problem that the log and the gauge show.
struct Shown {
    code: &'static str,
    since: Instant,
}

/// The index as this process may use it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Usable {
    pub(crate) served: KnownIndex,
    pub(crate) next: Option<KnownIndex>,
}

/// What this process knows of the index.
pub(crate) struct IndexWatch {
    client: Arc<Client>,
    seen: Mutex<Option<Seen>>,
    /// Held by who reads from the server; the others wait for what it reads.
    reading: tokio::sync::Mutex<()>,
    remembered: Mutex<Remembered>,
    shown: Mutex<Option<Shown>>,
}

impl IndexWatch {
    pub(crate) fn new(client: Arc<Client>) -> Self {
        Self {
            client,
            seen: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            remembered: Mutex::default(),
            shown: Mutex::default(),
        }
    }

    /// The state as it was asked for at `since` or later.
    async fn since(&self, since: Instant, timeout: CheckTimeout) -> Seen {
        let young =
            || self.seen.lock().clone().filter(|seen| seen.asked_at >= since && !seen.outdated);
        if let Some(seen) = young() {
            return seen;
        }
        // A caller with the short timeout must not wait for one with the long timeout.
        let _reading = match timeout {
            CheckTimeout::Short => Some(self.reading.lock().await),
            CheckTimeout::Long => None,
        };
        if let Some(seen) = young() {
            return seen;
        }
        self.read(timeout.duration()).await
    }

    async fn read(&self, timeout: Duration) -> Seen {
        let asked_at = Instant::now();
        let read = facts::read(&self.client, timeout).await;
        let facts = read.as_ref().map(Facts::clone).map_err(ServerTrouble::from);
        let state = {
            let mut remembered = self.remembered.lock();
            let state = index_state::judge(&facts, &remembered, &index::expected(&self.client));
            index_state::remember(&mut remembered, &facts, &state);
            state
        };
        let problem = state.problem(&self.client.options.alias);
        let seen = Seen { asked_at, state: Arc::new(state), problem, outdated: false };
        let mut known = self.seen.lock();
        if known.as_ref().is_none_or(|known| known.asked_at <= asked_at) {
            self.show(seen.problem.as_ref());
            *known = Some(seen.clone());
        }
        seen
    }

    /// The state now: it is asked for after this call began.
    pub(crate) async fn now(&self, timeout: CheckTimeout) -> Arc<IndexState> {
        self.since(Instant::now(), timeout).await.state
    }

    /// Lets the next caller read the state again: something did not go as it should have.
    pub(crate) fn suspect(&self) {
        if let Some(seen) = &mut *self.seen.lock() {
            seen.outdated = true;
        }
    }

    /// The last problem that was seen; `None` if there was none.
    pub(crate) fn problem(&self) -> Option<IndexProblem> {
        self.seen.lock().as_ref()?.problem.clone()
    }

    /// The index, for a write.
    ///
    /// # Errors
    ///
    /// The index cannot be written; no record is to blame.
    pub(crate) async fn writable(&self) -> Result<Usable, SinkError> {
        let since = oldest_recent();
        // A check that ended after the short timeout says nothing about the index.
        let known =
            self.seen.lock().clone().filter(|seen| {
                seen.asked_at >= since && !seen.outdated && seen.state.is_of_index()
            });
        let seen = match known {
            Some(seen) => seen,
            None => self.read(CheckTimeout::Long.duration()).await,
        };
        self.usable(&seen.state)
    }

    /// The index, for a write, as it is now.
    ///
    /// # Errors
    ///
    /// As [`IndexWatch::writable`].
    pub(crate) async fn writable_now(&self) -> Result<Usable, SinkError> {
        let state = self.now(CheckTimeout::Long).await;
        self.usable(&state)
    }

    fn usable(&self, state: &IndexState) -> Result<Usable, SinkError> {
        if let IndexState::Usable { served, next } = state {
            return Ok(Usable { served: served.clone(), next: next.clone() });
        }
        let problem = state.problem(&self.client.options.alias);
        Err(systemic(problem.map(|problem| problem.full_text()).unwrap_or_default()))
    }

    /// The index that a search may ask; `fresh`: as it is now. `None`: its server does not answer
    /// checks, so the search finds out by itself.
    ///
    /// # Errors
    ///
    /// [`SearchError::Unusable`] if an answer would be wrong.
    pub(crate) async fn searchable(&self, fresh: bool) -> Result<Option<KnownIndex>, SearchError> {
        let known = self
            .seen
            .lock()
            .clone()
            .filter(|seen| !fresh && !seen.outdated && !seen.refuses_searches());
        let seen = match known {
            Some(seen) => seen,
            None => {
                let since = if fresh { Instant::now() } else { oldest_recent() };
                self.since(since, CheckTimeout::Short).await
            }
        };
        match (seen.state.searched(), seen.problem) {
            (Some(served), _) => Ok(Some(served.clone())),
            (None, Some(problem)) if fresh || problem.searches == SearchEffect::Refused => {
                Err(SearchError::Unusable(problem))
            }
            (None, _) => Ok(None),
        }
    }

    /// Logs and shows where a problem begins and ends.
    fn show(&self, problem: Option<&IndexProblem>) {
        let mut shown = self.shown.lock();
        let code = problem.map(|problem| problem.code);
        if shown.as_ref().map(|shown| shown.code) == code {
            return;
        }
        if let Some(shown) = shown.take() {
            gauge!(INDEX_PROBLEM, "problem" => Bounded(shown.code)).set(0.0);
            let lasted = shown.since.elapsed();
            match code {
                None => tracing::info!(
                    problem = shown.code,
                    ?lasted,
                    "the search index is usable again"
                ),
                Some(next) => {
                    tracing::info!(
                        problem = shown.code,
                        ?lasted,
                        next,
                        "the search index has a different problem"
                    )
                }
            }
        }
        if let Some(IndexProblem { code, cause, remedy, .. }) = problem {
            gauge!(INDEX_PROBLEM, "problem" => Bounded(*code)).set(1.0);
            tracing::warn!(
                problem = code,
                cause,
                remedy,
                "the search index cannot be used; the indexer waits"
            );
            *shown = Some(Shown { code, since: Instant::now() });
        }
    }
}
