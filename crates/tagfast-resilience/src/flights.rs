//! Single-flight: many who ask for the same thing at once wait for one piece of work.
//!
//! Ten thousand readers of one missing key are one read. The work is a task of its own, so whoever
//! began it may go away without taking the others along; what it answers, an error too, is shared.
//! A caller that must see what happened at a certain time joins only a flight that began at or
//! after it; else it begins a newer one, which those who come later join.
//!
//! How it fails: work that never ends keeps all its waiters; give it a deadline inside, and each
//! waiter its own outside. Work that panics, or that the runtime's end cut off, is told as
//! [`FlightLost`] to all of them.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::Instrument;

/// The work ended without an answer: it panicked or was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work that was under way for several callers ended without an answer")]
pub struct FlightLost;

/// What a flight answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flown<V> {
    /// The answer.
    pub value: V,
    /// Whether another caller had begun the work.
    pub collapsed: bool,
}

struct Flight<V> {
    /// Before the work began.
    started: Instant,
    /// Set once, before everybody is told that it has landed: in the order in which they came, so
    /// that runs can be repeated.
    answer: OnceLock<Result<V, FlightLost>>,
    landed: Notify,
}

impl<V: Clone> Flight<V> {
    fn land(&self, answer: Result<V, FlightLost>) {
        // The first answer counts: a flight that has landed is not lost any more.
        let _ = self.answer.set(answer);
        self.landed.notify_waiters();
    }

    async fn wait(&self) -> Result<V, FlightLost> {
        // Made before the look at the answer: from here on no landing is missed.
        let landed = self.landed.notified();
        if self.answer.get().is_none() {
            landed.await;
        }
        self.answer.get().cloned().unwrap_or(Err(FlightLost))
    }
}

struct Inner<K, V> {
    /// The newest flight of each key; older ones still answer those who joined them.
    newest: HashMap<K, Arc<Flight<V>>>,
}

/// What is under way, by key.
pub struct Flights<K, V> {
    inner: Mutex<Inner<K, V>>,
}

impl<K, V> std::fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flights").field("under_way", &self.under_way()).finish_non_exhaustive()
    }
}

impl<K, V> Flights<K, V> {
    fn lock(&self) -> MutexGuard<'_, Inner<K, V>> {
        // Of others only the keys' hash and equality run under it; were they to panic, the map
        // would be whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keys with work under way.
    pub fn under_way(&self) -> usize {
        self.lock().newest.len()
    }
}

/// Held by the work: whatever ends it, nobody joins it afterwards and everybody who did is
/// answered.
struct Landing<K: Eq + Hash, V: Clone> {
    flights: Arc<Flights<K, V>>,
    key: K,
    flight: Arc<Flight<V>>,
}

impl<K: Eq + Hash, V: Clone> Landing<K, V> {
    fn landed(self, answer: V) {
        self.leave();
        self.flight.land(Ok(answer));
    }

    fn leave(&self) {
        let mut inner = self.flights.lock();
        if inner.newest.get(&self.key).is_some_and(|newest| Arc::ptr_eq(newest, &self.flight)) {
            let ended = inner.newest.remove_entry(&self.key);
            // What is of others is not dropped under the lock.
            drop(inner);
            drop(ended);
        }
    }
}

impl<K: Eq + Hash, V: Clone> Drop for Landing<K, V> {
    fn drop(&mut self) {
        self.leave();
        self.flight.land(Err(FlightLost));
    }
}

impl<K: Eq + Hash + Clone + Send + 'static, V: Clone + Send + Sync + 'static> Flights<K, V> {
    /// Nothing under way.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(Inner { newest: HashMap::new() }) })
    }

    /// Joins the flight of `key` when one is under way that started at or after `not_before`, else
    /// starts `work` as a task of its own: it goes on when its starter is cancelled.
    /// [`FlightLost`] when the work panicked or was cut off.
    pub async fn fly<F: Future<Output = V> + Send + 'static>(
        self: &Arc<Self>,
        key: K,
        not_before: Option<Instant>,
        work: impl FnOnce() -> F,
    ) -> Result<Flown<V>, FlightLost> {
        let (flight, begins) = self.join(key, not_before);
        let collapsed = begins.is_none();
        if let Some(landing) = begins {
            let work = work();
            tokio::spawn(async move { landing.landed(work.await) }.in_current_span());
        }
        flight.wait().await.map(|value| Flown { value, collapsed })
    }

    /// The flight to wait for; and if it is a new one, its landing.
    fn join(
        self: &Arc<Self>,
        key: K,
        not_before: Option<Instant>,
    ) -> (Arc<Flight<V>>, Option<Landing<K, V>>) {
        let mut inner = self.lock();
        if let Some(flight) = inner.newest.get(&key)
            && not_before.is_none_or(|at| flight.started >= at)
        {
            return (Arc::clone(flight), None);
        }
        let flight =
            Flight { started: Instant::now(), answer: OnceLock::new(), landed: Notify::new() };
        let flight = Arc::new(flight);
        let older = inner.newest.insert(key.clone(), Arc::clone(&flight));
        drop(inner);
        drop(older);
        (Arc::clone(&flight), Some(Landing { flights: Arc::clone(self), key, flight }))
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

    /// Lets every task that can run do so. Time stands still meanwhile.
    async fn all_begin() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn vc8_ten_thousand_callers_are_one_run() {
        let (flights, runs) = (Flights::<&str, usize>::new(), Arc::new(AtomicUsize::new(0)));
        let mut callers = JoinSet::new();
        for _ in 0..10_000 {
            let (flights, runs) = (Arc::clone(&flights), Arc::clone(&runs));
            callers.spawn(async move { flights.fly("key", None, || slowly(runs)).await });
        }
        let answers = callers.join_all().await;
        assert!(answers.iter().all(|answer| answer.is_ok_and(|flown| flown.value == 1)));
        assert_eq!(
            answers.iter().filter(|answer| answer.is_ok_and(|flown| !flown.collapsed)).count(),
            1
        );
        assert_eq!((runs.load(Ordering::SeqCst), flights.under_way()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_began_it_may_go_away() {
        let (flights, runs) = (Flights::<u32, usize>::new(), Arc::new(AtomicUsize::new(0)));
        let call = |flights: &Arc<Flights<u32, usize>>| {
            let (flights, runs) = (Arc::clone(flights), Arc::clone(&runs));
            tokio::spawn(async move { flights.fly(1, None, || slowly(runs)).await })
        };
        let first = call(&flights);
        all_begin().await;
        let second = call(&flights);
        all_begin().await;
        first.abort();
        assert!(first.await.is_err_and(|ended| ended.is_cancelled()));
        assert_eq!(second.await.unwrap(), Ok(Flown { value: 1, collapsed: true }));
        assert_eq!((runs.load(Ordering::SeqCst), flights.under_way()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn without_any_caller_left_it_still_ends() {
        let (flights, runs) = (Flights::<u32, usize>::new(), Arc::new(AtomicUsize::new(0)));
        let alone = tokio::time::timeout(
            Duration::from_millis(10),
            flights.fly(1, None, || slowly(Arc::clone(&runs))),
        )
        .await;
        assert!(alone.is_err(), "it gave up");
        assert_eq!(flights.under_way(), 1);
        sleep(Duration::from_millis(100)).await;
        assert_eq!((runs.load(Ordering::SeqCst), flights.under_way()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_needs_a_newer_one_begins_it_and_later_ones_join_that() {
        let (flights, runs) = (Flights::<u32, usize>::new(), Arc::new(AtomicUsize::new(0)));
        let call = |not_before: Option<Instant>| {
            let (flights, runs) = (Arc::clone(&flights), Arc::clone(&runs));
            tokio::spawn(async move { flights.fly(1, not_before, || slowly(runs)).await })
        };
        let began = Instant::now();
        let old = call(None);
        all_begin().await;
        let at_that_time = call(Some(began));
        advance(Duration::from_millis(10)).await;
        let written = Instant::now();
        let needs_newer = call(Some(written));
        all_begin().await;
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        advance(Duration::from_millis(10)).await;
        let needs_it_too = call(Some(written));
        let any = call(None);
        assert_eq!(old.await.unwrap(), Ok(Flown { value: 1, collapsed: false }));
        assert_eq!(at_that_time.await.unwrap(), Ok(Flown { value: 1, collapsed: true }));
        assert_eq!(flights.under_way(), 1, "the old one's end leaves the newer one alone");
        assert_eq!(needs_newer.await.unwrap(), Ok(Flown { value: 2, collapsed: false }));
        assert_eq!(needs_it_too.await.unwrap(), Ok(Flown { value: 2, collapsed: true }));
        assert_eq!(any.await.unwrap(), Ok(Flown { value: 2, collapsed: true }));
        assert_eq!((runs.load(Ordering::SeqCst), flights.under_way()), (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_ended_is_not_joined() {
        let (flights, runs) = (Flights::<u32, usize>::new(), Arc::new(AtomicUsize::new(0)));
        for run in 1..=3 {
            let flown = flights.fly(1, None, || slowly(Arc::clone(&runs))).await;
            assert_eq!(flown, Ok(Flown { value: run, collapsed: false }));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_told_to_all_and_the_next_one_begins_anew() {
        let flights = Flights::<u32, Result<u32, String>>::new();
        let mut callers = JoinSet::new();
        for _ in 0..100 {
            let flights = Arc::clone(&flights);
            callers.spawn(async move {
                let work = async || {
                    sleep(Duration::from_millis(1)).await;
                    panic!("on purpose")
                };
                flights.fly(1, None, work).await
            });
        }
        assert!(callers.join_all().await.iter().all(|answer| *answer == Err(FlightLost)));
        assert_eq!(flights.under_way(), 0);
        let flown = flights.fly(1, None, async || Err("told".to_owned())).await;
        assert_eq!(flown, Ok(Flown { value: Err("told".to_owned()), collapsed: false }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_before_the_work_is_told_too() {
        let flights = Flights::<u32, u32>::new();
        let broken = {
            let flights = Arc::clone(&flights);
            tokio::spawn(async move {
                flights.fly(1, None, || -> std::future::Ready<u32> { panic!("on purpose") }).await
            })
        };
        assert!(broken.await.is_err_and(|ended| ended.is_panic()));
        assert_eq!(flights.under_way(), 0);
        assert_eq!(
            flights.fly(1, None, async || 7).await,
            Ok(Flown { value: 7, collapsed: false })
        );
    }

    #[tokio::test(start_paused = true)]
    async fn keys_do_not_wait_for_each_other() {
        let (flights, runs) = (Flights::<usize, usize>::new(), Arc::new(AtomicUsize::new(0)));
        let mut callers = JoinSet::new();
        for n in 0..1000 {
            let (flights, runs) = (Arc::clone(&flights), Arc::clone(&runs));
            callers.spawn(async move { flights.fly(n % 10, None, || slowly(runs)).await });
        }
        let began = Instant::now();
        assert!(callers.join_all().await.iter().all(Result::is_ok));
        assert_eq!((runs.load(Ordering::SeqCst), flights.under_way()), (10, 0));
        assert!(began.elapsed() < Duration::from_millis(110));
    }

    /// On several threads, so that flights land while others join: nobody waits for ever and nobody
    /// gets another key's answer.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn on_several_threads_everybody_is_answered() {
        let flights = Flights::<usize, usize>::new();
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
                let call = flights.fly(key, None, work);
                if n % 11 == 0 {
                    // Gives up at once, after it has joined or begun.
                    let mut call = pin!(call);
                    let polled =
                        std::future::poll_fn(|context| std::task::Poll::Ready(call.as_mut().poll(context))).await;
                    return polled.is_pending()
                        || matches!(polled, std::task::Poll::Ready(Ok(flown)) if flown.value == key);
                }
                call.await.is_ok_and(|flown| flown.value == key)
            });
            if n % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        assert!(callers.join_all().await.iter().all(|right| *right));
        while flights.under_way() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
