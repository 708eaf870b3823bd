//! Single-flight: concurrent callers with the same key share one execution of the work.
//!
//! Ten thousand readers of one missing key cause one read. The work runs in its own task, so the
//! caller that started it may be cancelled without affecting the others; its result, also an error,
//! is shared. A caller that must observe an event at a given time joins only work that started at
//! or after that time; otherwise it starts newer work, which later callers join.
//!
//! What happens when all callers have left is the callers' choice: [`SingleFlight::run`] and
//! [`SingleFlight::start`] let the work end, because its result is kept somewhere;
//! [`SingleFlight::run_while_wanted`] drops it, because no caller would look at the result.
//!
//! How it fails: work that never ends holds all its callers; give the work a deadline inside and
//! each caller its own outside. Work that panics, or that the runtime cuts off at shutdown, returns
//! [`LeaderLost`] to all callers.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::Instrument;

use crate::task::{StopSignal, TaskTracker};

/// The shared work ended without a result: it panicked or was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work shared by several callers ended without a result")]
pub struct LeaderLost;

/// The result of shared work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedResult<V> {
    /// The result.
    pub value: V,
    /// Whether a different caller had started the work.
    pub collapsed: bool,
}

struct Flight<V> {
    /// Taken before the work starts.
    started: Instant,
    /// Set once, before the callers are woken; they are woken in the order of their arrival, so
    /// that runs are repeatable.
    answer: OnceLock<Result<V, LeaderLost>>,
    done: Notify,
    /// Callers that wait. Changes, like `kept`, only under the lock of the flights, so that no
    /// caller joins work that the last one has just given up.
    callers: AtomicUsize,
    /// Whether the work ends by itself, also without callers.
    kept: AtomicBool,
    /// Drops the work.
    stop: StopSignal,
}

impl<V: Clone> Flight<V> {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            answer: OnceLock::new(),
            done: Notify::new(),
            callers: AtomicUsize::new(0),
            kept: AtomicBool::new(false),
            stop: StopSignal::new(),
        }
    }

    fn complete(&self, answer: Result<V, LeaderLost>) {
        // The first result counts: completed work cannot be lost any more.
        let _ = self.answer.set(answer);
        self.done.notify_waiters();
    }

    async fn wait(&self) -> Result<V, LeaderLost> {
        // Registered before the result is read, so that no completion is missed.
        let done = self.done.notified();
        if self.answer.get().is_none() {
            done.await;
        }
        self.answer.get().cloned().unwrap_or(Err(LeaderLost))
    }
}

struct Inner<K, V> {
    /// The newest work of each key; older work still answers the callers that joined it.
    newest: HashMap<K, Arc<Flight<V>>>,
}

/// Work in progress, by key.
pub struct SingleFlight<K, V> {
    inner: Mutex<Inner<K, V>>,
    /// The work in progress.
    tasks: TaskTracker,
}

impl<K, V> std::fmt::Debug for SingleFlight<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SingleFlight")
            .field("in_progress", &self.in_progress())
            .finish_non_exhaustive()
    }
}

impl<K, V> SingleFlight<K, V> {
    /// Number of keys with work in progress.
    pub fn in_progress(&self) -> usize {
        self.inner.lock().newest.len()
    }
}

/// Held by the work. However the work ends, no caller joins it afterwards and every caller that
/// joined gets a result.
struct FlightGuard<K: Eq + Hash, V: Clone> {
    flights: Arc<SingleFlight<K, V>>,
    key: K,
    flight: Arc<Flight<V>>,
}

impl<K: Eq + Hash, V: Clone> FlightGuard<K, V> {
    fn finish(self, answer: V) {
        self.unregister();
        self.flight.complete(Ok(answer));
    }

    fn unregister(&self) {
        let mut inner = self.flights.inner.lock();
        let ended = inner.remove(&self.key, &self.flight);
        // The caller's key and value are dropped outside the lock.
        drop(inner);
        drop(ended);
    }
}

impl<K: Eq + Hash, V> Inner<K, V> {
    /// Removes this work unless newer work has taken its place.
    fn remove(&mut self, key: &K, flight: &Arc<Flight<V>>) -> Option<(K, Arc<Flight<V>>)> {
        let is_newest = self.newest.get(key).is_some_and(|newest| Arc::ptr_eq(newest, flight));
        is_newest.then(|| self.newest.remove_entry(key)).flatten()
    }
}

/// One caller that waits for work that ends with its last caller.
struct Caller<K: Eq + Hash, V> {
    flights: Arc<SingleFlight<K, V>>,
    key: K,
    flight: Arc<Flight<V>>,
}

impl<K: Eq + Hash, V> Drop for Caller<K, V> {
    fn drop(&mut self) {
        let mut inner = self.flights.inner.lock();
        let was_last = self.flight.callers.fetch_sub(1, Ordering::Relaxed) == 1;
        if !was_last || self.flight.kept.load(Ordering::Relaxed) {
            return;
        }
        // From here on no caller can join it.
        let given_up = inner.remove(&self.key, &self.flight);
        drop(inner);
        drop(given_up);
        self.flight.stop.cancel();
    }
}

impl<K: Eq + Hash, V: Clone> Drop for FlightGuard<K, V> {
    fn drop(&mut self) {
        self.unregister();
        self.flight.complete(Err(LeaderLost));
    }
}

impl<K: Eq + Hash + Clone + Send + 'static, V: Clone + Send + Sync + 'static> SingleFlight<K, V> {
    /// No work in progress.
    pub fn new() -> Arc<Self> {
        let inner = Mutex::new(Inner { newest: HashMap::new() });
        Arc::new(Self { inner, tasks: TaskTracker::new() })
    }

    /// Whether work of this key is in progress.
    pub fn is_in_progress(&self, key: &K) -> bool {
        self.inner.lock().newest.contains_key(key)
    }

    /// Waits at shutdown until no work is in progress. Work that starts meanwhile is waited for.
    pub async fn wait_until_idle(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Joins the work of `key` that started at or after `not_before` (`None`: any), else starts
    /// `work` in its own task, which continues when this caller is cancelled.
    ///
    /// # Errors
    ///
    /// [`LeaderLost`] when the work panicked or was cut off.
    pub async fn run<F: Future<Output = V> + Send + 'static>(
        self: &Arc<Self>,
        key: K,
        not_before: Option<Instant>,
        work: impl FnOnce() -> F,
    ) -> Result<SharedResult<V>, LeaderLost> {
        let (flight, started) = self.join(key, not_before, JoinAs::Keeper);
        let collapsed = started.is_none();
        self.begin(started, work);
        flight.wait().await.map(|value| SharedResult { value, collapsed })
    }

    /// Starts `work` in its own task unless work of `key` is in progress, which then goes on also
    /// without callers. Does not wait for it.
    pub fn start<F: Future<Output = V> + Send + 'static>(
        self: &Arc<Self>,
        key: K,
        work: impl FnOnce() -> F,
    ) {
        let (_, started) = self.join(key, None, JoinAs::Keeper);
        self.begin(started, work);
    }

    /// Joins the work of `key` in progress, else starts `work` in its own task. The work is dropped
    /// when its last caller leaves, unless it was joined by [`SingleFlight::run`] or
    /// [`SingleFlight::start`].
    ///
    /// # Errors
    ///
    /// [`LeaderLost`] when the work panicked or was cut off.
    pub async fn run_while_wanted<F: Future<Output = V> + Send + 'static>(
        self: &Arc<Self>,
        key: K,
        work: impl FnOnce() -> F,
    ) -> Result<SharedResult<V>, LeaderLost> {
        let (flight, started) = self.join(key.clone(), None, JoinAs::Caller);
        let caller = Caller { flights: Arc::clone(self), key, flight };
        let collapsed = started.is_none();
        self.begin(started, work);
        caller.flight.wait().await.map(|value| SharedResult { value, collapsed })
    }

    fn begin<F: Future<Output = V> + Send + 'static>(
        &self,
        started: Option<FlightGuard<K, V>>,
        work: impl FnOnce() -> F,
    ) {
        let Some(guard) = started else { return };
        let (work, stop) = (work(), guard.flight.stop.clone());
        // The work answers its callers through the guard.
        let task = async move {
            if let Some(answer) = stop.run_until_cancelled(work).await {
                guard.finish(answer);
            }
        };
        self.tasks.spawn(task.in_current_span());
    }

    /// The work to wait for, with its guard if it must be started.
    fn join(
        self: &Arc<Self>,
        key: K,
        not_before: Option<Instant>,
        join: JoinAs,
    ) -> (Arc<Flight<V>>, Option<FlightGuard<K, V>>) {
        let enter = |flight: &Flight<V>| match join {
            JoinAs::Keeper => flight.kept.store(true, Ordering::Relaxed),
            JoinAs::Caller => {
                flight.callers.fetch_add(1, Ordering::Relaxed);
            }
        };
        let mut inner = self.inner.lock();
        if let Some(flight) = inner.newest.get(&key)
            && not_before.is_none_or(|at| flight.started >= at)
        {
            enter(flight);
            return (Arc::clone(flight), None);
        }
        let flight = Arc::new(Flight::new());
        enter(&flight);
        let older = inner.newest.insert(key.clone(), Arc::clone(&flight));
        drop(inner);
        drop(older);
        (Arc::clone(&flight), Some(FlightGuard { flights: Arc::clone(self), key, flight }))
    }
}

/// What a call means for the end of the work.
#[derive(Clone, Copy)]
enum JoinAs {
    /// The work must end by itself.
    Keeper,
    /// The work may be dropped when this caller and all others have left.
    Caller,
}

#[cfg(test)]
mod tests;
