//! Bulkhead: bounds the calls in flight to one dependency and the callers that wait for it, so that
//! one hanging dependency cannot block the whole service.
//!
//! Without it a hanging dependency collects every caller, and requests that do not need it stop
//! too. The queue is short and the wait is bounded; a caller that finds the queue full is refused
//! at once.
//!
//! How it fails: a permit that is never released is lost forever; hold it under a deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bounds of a bulkhead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkheadOptions {
    /// Maximum calls in flight. Too high: no isolation; too low: calls are refused that the
    /// dependency could carry.
    pub max: usize,
    /// Maximum callers that wait for a permit. Too high: many wait in vain when the dependency
    /// hangs; too low: a short burst is refused.
    pub queue: usize,
    /// Maximum wait for a permit. Too long: answers come too late to be useful; too short: as with
    /// a short queue.
    pub wait: Duration,
}

/// The bulkhead refused a call. Names the limit that was reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BulkheadFull {
    /// The queue is full.
    #[error("{name} is full: {max} calls are in flight and {queue} wait, no more may")]
    Queue {
        /// Name of the bulkhead.
        name: Arc<str>,
        /// Maximum calls in flight.
        max: usize,
        /// Maximum waiting callers.
        queue: usize,
    },
    /// No permit became free in time.
    #[error("{name} is full: none of {max} calls ended within {} ms", wait.as_millis())]
    Wait {
        /// Name of the bulkhead.
        name: Arc<str>,
        /// Maximum calls in flight.
        max: usize,
        /// Maximum wait.
        wait: Duration,
    },
}

/// The observable state of a bulkhead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BulkheadSnapshot {
    /// Name of the bulkhead.
    pub name: Arc<str>,
    /// Maximum calls in flight.
    pub max: usize,
    /// Calls in flight.
    pub in_flight: usize,
    /// Waiting callers.
    pub waiting: usize,
}

/// The bulkhead of one dependency.
#[derive(Debug)]
pub struct Bulkhead {
    name: Arc<str>,
    options: BulkheadOptions,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// Permission for one call; dropping it passes it to the next waiting caller.
#[derive(Debug)]
#[must_use = "the permit is released when this is dropped: hold it until the call has ended"]
pub struct BulkheadPermit {
    _permit: OwnedSemaphorePermit,
}

/// Counts a waiting caller while it lives.
struct WaitingGuard<'a>(&'a AtomicUsize);

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Bulkhead {
    /// An empty bulkhead; `options.max` is at least 1.
    pub fn new(name: &str, options: BulkheadOptions) -> Arc<Self> {
        let options =
            BulkheadOptions { max: options.max.clamp(1, Semaphore::MAX_PERMITS), ..options };
        let permits = Arc::new(Semaphore::new(options.max));
        Arc::new(Self { name: name.into(), options, permits, waiting: AtomicUsize::new(0) })
    }

    /// A permit, after waiting for one if necessary. Waiting callers are served first come, first
    /// served; a cancelled caller leaves no trace.
    ///
    /// # Errors
    ///
    /// [`BulkheadFull::Queue`] at once when the queue is full, [`BulkheadFull::Wait`] when no
    /// permit became free in time.
    pub async fn enter(&self) -> Result<BulkheadPermit, BulkheadFull> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(BulkheadPermit { _permit: permit });
        }
        let BulkheadOptions { max, queue, wait } = self.options;
        let longer = |waiting: usize| (waiting < queue).then_some(waiting + 1);
        if self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, longer).is_err() {
            return Err(BulkheadFull::Queue { name: Arc::clone(&self.name), max, queue });
        }
        let _waiting = WaitingGuard(&self.waiting);
        match tokio::time::timeout(wait, Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(BulkheadPermit { _permit: permit }),
            // The semaphore is never closed; if it were, there would be no permit either.
            Ok(Err(_)) | Err(_) => {
                Err(BulkheadFull::Wait { name: Arc::clone(&self.name), max, wait })
            }
        }
    }

    /// The current snapshot.
    pub fn snapshot(&self) -> BulkheadSnapshot {
        BulkheadSnapshot {
            name: Arc::clone(&self.name),
            max: self.options.max,
            in_flight: self.options.max - self.permits.available_permits(),
            waiting: self.waiting.load(Ordering::Acquire),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use parking_lot::Mutex;
    use proptest::prelude::*;
    use tokio::time::{Instant, advance};

    use super::*;

    fn bulkhead(max: usize, queue: usize) -> Arc<Bulkhead> {
        Bulkhead::new("index", BulkheadOptions { max, queue, wait: Duration::from_millis(100) })
    }

    #[tokio::test(start_paused = true)]
    async fn it_refuses_at_once_when_the_queue_is_full_and_names_its_limit() {
        let bulkhead = bulkhead(2, 1);
        let held = (bulkhead.enter().await.unwrap(), bulkhead.enter().await.unwrap());
        let began = Instant::now();
        let waits = tokio::spawn({
            let bulkhead = Arc::clone(&bulkhead);
            async move { bulkhead.enter().await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert_eq!(
            bulkhead.snapshot(),
            BulkheadSnapshot { name: "index".into(), max: 2, in_flight: 2, waiting: 1 }
        );
        let refused = bulkhead.enter().await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "index is full: 2 calls are in flight and 1 wait, no more may"
        );
        assert!(began.elapsed().is_zero());
        let late = waits.await.unwrap().unwrap_err();
        assert_eq!(late.to_string(), "index is full: none of 2 calls ended within 100 ms");
        assert!(began.elapsed() < Duration::from_millis(102));
        drop(held);
        assert_eq!(
            bulkhead.snapshot(),
            BulkheadSnapshot { name: "index".into(), max: 2, in_flight: 0, waiting: 0 }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_waiting_caller_comes_first() {
        let bulkhead = bulkhead(1, 9);
        let order = Arc::new(Mutex::new(Vec::new()));
        let held = bulkhead.enter().await.unwrap();
        let mut callers = tokio::task::JoinSet::new();
        for n in 0..9 {
            let (bulkhead, order) = (Arc::clone(&bulkhead), Arc::clone(&order));
            callers.spawn(async move {
                let _permit = bulkhead.enter().await.unwrap();
                order.lock().push(n);
            });
            tokio::task::yield_now().await;
        }
        drop(held);
        callers.join_all().await;
        assert_eq!(*order.lock(), (0..9).collect::<Vec<_>>());
    }

    #[derive(Debug, Clone, Copy)]
    enum Move {
        Enter,
        Poll(usize),
        Cancel(usize),
        Leave(usize),
        Pass(u64),
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let one = prop_oneof![
            4 => Just(Move::Enter),
            3 => any::<usize>().prop_map(Move::Poll),
            2 => any::<usize>().prop_map(Move::Cancel),
            3 => any::<usize>().prop_map(Move::Leave),
            1 => (0u64..150).prop_map(Move::Pass),
        ];
        proptest::collection::vec(one, 1..200)
    }

    type Entering = Pin<Box<dyn Future<Output = Result<BulkheadPermit, BulkheadFull>>>>;

    proptest! {
        /// Whichever caller is cancelled at any time: the bounds hold, and in the end every permit
        /// is free.
        #[test]
        fn no_order_of_callers_leaves_a_trace(moves in moves(), max in 1usize..5, queue in 0usize..5) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async move {
                let bulkhead = bulkhead(max, queue);
                let mut entering: Vec<Entering> = Vec::new();
                let mut held: Vec<BulkheadPermit> = Vec::new();
                for step in moves {
                    match step {
                        Move::Enter => {
                            let bulkhead = Arc::clone(&bulkhead);
                            entering.push(Box::pin(async move { bulkhead.enter().await }));
                        }
                        Move::Poll(n) if !entering.is_empty() => {
                            let n = n % entering.len();
                            if let Poll::Ready(entered) = entering[n].as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                                drop(entering.swap_remove(n));
                                match entered {
                                    Ok(permit) => held.push(permit),
                                    Err(BulkheadFull::Queue { .. }) => assert_eq!(bulkhead.snapshot().waiting, queue),
                                    Err(BulkheadFull::Wait { .. }) => {}
                                }
                            }
                        }
                        Move::Cancel(n) if !entering.is_empty() => drop(entering.swap_remove(n % entering.len())),
                        Move::Leave(n) if !held.is_empty() => drop(held.swap_remove(n % held.len())),
                        Move::Pass(ms) => advance(Duration::from_millis(ms)).await,
                        Move::Poll(_) | Move::Cancel(_) | Move::Leave(_) => {}
                    }
                    // Resets this task's cooperative budget, so that no poll is postponed.
                    tokio::task::yield_now().await;
                    let now = bulkhead.snapshot();
                    assert!(held.len() <= now.in_flight && now.in_flight <= max, "{now:?}, {} held", held.len());
                    assert!(now.waiting <= queue, "{now:?}");
                }
                drop((entering, held));
                let end = bulkhead.snapshot();
                assert_eq!((end.in_flight, end.waiting), (0, 0));
                let mut all = Vec::new();
                for _ in 0..max {
                    all.push(bulkhead.enter().await.unwrap());
                }
                assert_eq!(bulkhead.snapshot().in_flight, max);
            });
        }
    }
}
