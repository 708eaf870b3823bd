//! Single-flight: concurrent callers with the same key share one execution of the work.
//!
//! Ten thousand readers of one missing key cause one read. The work runs in its own task, so the
//! caller that started it may be cancelled without affecting the others; its result, also an error,
//! is shared. A caller that must observe an event at a given time joins only work that started at
//! or after that time; otherwise it starts newer work, which later callers join.
//!
//! How it fails: work that never ends holds all its callers; give the work a deadline inside and
//! each caller its own outside. Work that panics, or that the runtime cuts off at shutdown, returns
//! [`LeaderLost`] to all callers.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::Instrument;

use crate::task::TaskTracker;

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
}

impl<V: Clone> Flight<V> {
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
        if inner.newest.get(&self.key).is_some_and(|newest| Arc::ptr_eq(newest, &self.flight)) {
            let ended = inner.newest.remove_entry(&self.key);
            // The caller's key and value are dropped outside the lock.
            drop(inner);
            drop(ended);
        }
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
        let (flight, started) = self.join(key, not_before);
        let collapsed = started.is_none();
        if let Some(guard) = started {
            let work = work();
            // The work answers its callers through the guard.
            self.tasks.spawn(async move { guard.finish(work.await) }.in_current_span());
        }
        flight.wait().await.map(|value| SharedResult { value, collapsed })
    }

    /// The work to wait for, with its guard if it must be started.
    fn join(
        self: &Arc<Self>,
        key: K,
        not_before: Option<Instant>,
    ) -> (Arc<Flight<V>>, Option<FlightGuard<K, V>>) {
        let mut inner = self.inner.lock();
        if let Some(flight) = inner.newest.get(&key)
            && not_before.is_none_or(|at| flight.started >= at)
        {
            return (Arc::clone(flight), None);
        }
        let flight =
            Flight { started: Instant::now(), answer: OnceLock::new(), done: Notify::new() };
        let flight = Arc::new(flight);
        let older = inner.newest.insert(key.clone(), Arc::clone(&flight));
        drop(inner);
        drop(older);
        (Arc::clone(&flight), Some(FlightGuard { flights: Arc::clone(self), key, flight }))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::task::JoinSet;
    use tokio::time::{advance, sleep};

    use super::*;

    async fn slowly(runs: Arc<AtomicUsize>) -> usize {
        let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
        sleep(Duration::from_millis(100)).await;
        run
    }

    /// Lets every runnable task run. Time stands still meanwhile.
    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_callers_are_one_run() {
        let (flights, runs) = (SingleFlight::<&str, usize>::new(), Arc::new(AtomicUsize::new(0)));
        let mut callers = JoinSet::new();
        for _ in 0..10_000 {
            let (flights, runs) = (Arc::clone(&flights), Arc::clone(&runs));
            callers.spawn(async move { flights.run("key", None, || slowly(runs)).await });
        }
        let answers = callers.join_all().await;
        assert!(answers.iter().all(|answer| answer.is_ok_and(|shared| shared.value == 1)));
        assert_eq!(
            answers.iter().filter(|answer| answer.is_ok_and(|shared| !shared.collapsed)).count(),
            1
        );
        assert_eq!((runs.load(Ordering::SeqCst), flights.in_progress()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_caller_that_started_it_may_be_cancelled() {
        let (flights, runs) = (SingleFlight::<u32, usize>::new(), Arc::new(AtomicUsize::new(0)));
        let call = |flights: &Arc<SingleFlight<u32, usize>>| {
            let (flights, runs) = (Arc::clone(flights), Arc::clone(&runs));
            tokio::spawn(async move { flights.run(1, None, || slowly(runs)).await })
        };
        let first = call(&flights);
        settle().await;
        let second = call(&flights);
        settle().await;
        first.abort();
        assert!(first.await.is_err_and(|ended| ended.is_cancelled()));
        assert_eq!(second.await.unwrap(), Ok(SharedResult { value: 1, collapsed: true }));
        assert_eq!((runs.load(Ordering::SeqCst), flights.in_progress()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn without_any_caller_left_the_work_still_ends() {
        let (flights, runs) = (SingleFlight::<u32, usize>::new(), Arc::new(AtomicUsize::new(0)));
        let alone = tokio::time::timeout(
            Duration::from_millis(10),
            flights.run(1, None, || slowly(Arc::clone(&runs))),
        )
        .await;
        assert!(alone.is_err(), "it gave up");
        assert_eq!(flights.in_progress(), 1);
        sleep(Duration::from_millis(100)).await;
        assert_eq!((runs.load(Ordering::SeqCst), flights.in_progress()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_needs_newer_work_starts_it_and_later_callers_join_it() {
        let (flights, runs) = (SingleFlight::<u32, usize>::new(), Arc::new(AtomicUsize::new(0)));
        let call = |not_before: Option<Instant>| {
            let (flights, runs) = (Arc::clone(&flights), Arc::clone(&runs));
            tokio::spawn(async move { flights.run(1, not_before, || slowly(runs)).await })
        };
        let began = Instant::now();
        let old = call(None);
        settle().await;
        let at_that_time = call(Some(began));
        advance(Duration::from_millis(10)).await;
        let written = Instant::now();
        let needs_newer = call(Some(written));
        settle().await;
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        advance(Duration::from_millis(10)).await;
        let needs_it_too = call(Some(written));
        let any = call(None);
        assert_eq!(old.await.unwrap(), Ok(SharedResult { value: 1, collapsed: false }));
        assert_eq!(at_that_time.await.unwrap(), Ok(SharedResult { value: 1, collapsed: true }));
        assert_eq!(flights.in_progress(), 1, "the end of older work leaves newer work alone");
        assert_eq!(needs_newer.await.unwrap(), Ok(SharedResult { value: 2, collapsed: false }));
        assert_eq!(needs_it_too.await.unwrap(), Ok(SharedResult { value: 2, collapsed: true }));
        assert_eq!(any.await.unwrap(), Ok(SharedResult { value: 2, collapsed: true }));
        assert_eq!((runs.load(Ordering::SeqCst), flights.in_progress()), (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn finished_work_is_not_joined() {
        let (flights, runs) = (SingleFlight::<u32, usize>::new(), Arc::new(AtomicUsize::new(0)));
        for run in 1..=3 {
            let shared = flights.run(1, None, || slowly(Arc::clone(&runs))).await;
            assert_eq!(shared, Ok(SharedResult { value: run, collapsed: false }));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_returned_to_all_and_the_next_call_starts_again() {
        let flights = SingleFlight::<u32, Result<u32, String>>::new();
        let mut callers = JoinSet::new();
        for _ in 0..100 {
            let flights = Arc::clone(&flights);
            callers.spawn(async move {
                let work = async || {
                    sleep(Duration::from_millis(1)).await;
                    panic!("on purpose")
                };
                flights.run(1, None, work).await
            });
        }
        assert!(callers.join_all().await.iter().all(|answer| *answer == Err(LeaderLost)));
        assert_eq!(flights.in_progress(), 0);
        let shared = flights.run(1, None, async || Err("an error".to_owned())).await;
        assert_eq!(
            shared,
            Ok(SharedResult { value: Err("an error".to_owned()), collapsed: false })
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_before_the_work_is_returned_too() {
        let flights = SingleFlight::<u32, u32>::new();
        let broken = {
            let flights = Arc::clone(&flights);
            tokio::spawn(async move {
                flights.run(1, None, || -> std::future::Ready<u32> { panic!("on purpose") }).await
            })
        };
        assert!(broken.await.is_err_and(|ended| ended.is_panic()));
        assert_eq!(flights.in_progress(), 0);
        assert_eq!(
            flights.run(1, None, async || 7).await,
            Ok(SharedResult { value: 7, collapsed: false })
        );
    }

    #[tokio::test(start_paused = true)]
    async fn keys_do_not_wait_for_each_other() {
        let (flights, runs) = (SingleFlight::<usize, usize>::new(), Arc::new(AtomicUsize::new(0)));
        let mut callers = JoinSet::new();
        for n in 0..1000 {
            let (flights, runs) = (Arc::clone(&flights), Arc::clone(&runs));
            callers.spawn(async move { flights.run(n % 10, None, || slowly(runs)).await });
        }
        let began = Instant::now();
        assert!(callers.join_all().await.iter().all(Result::is_ok));
        assert_eq!((runs.load(Ordering::SeqCst), flights.in_progress()), (10, 0));
        assert!(began.elapsed() < Duration::from_millis(110));
    }

    /// On several threads, so that work completes while callers join: no caller waits forever and
    /// no caller gets the result of a different key.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn on_several_threads_every_caller_is_answered() {
        let flights = SingleFlight::<usize, usize>::new();
        let mut callers = JoinSet::new();
        for n in 0..40_000 {
            let flights = Arc::clone(&flights);
            callers.spawn(async move {
                let key = n % 7;
                let work = async move || {
                    for _ in 0..n % 3 {
                        tokio::task::yield_now().await;
                    }
                    key
                };
                let call = flights.run(key, None, work);
                if n % 11 == 0 {
                    // Gives up at once, after it has joined or begun.
                    let mut call = pin!(call);
                    let polled =
                        std::future::poll_fn(|context| std::task::Poll::Ready(call.as_mut().poll(context))).await;
                    return polled.is_pending()
                        || matches!(polled, std::task::Poll::Ready(Ok(shared)) if shared.value == key);
                }
                call.await.is_ok_and(|shared| shared.value == key)
            });
            if n % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        assert!(callers.join_all().await.iter().all(|right| *right));
        while flights.in_progress() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
