//! A bound on calls under way and on those that wait: what one dependency swallows does not fill
//! the whole service.
//!
//! Without it a dependency that hangs collects every caller there is, and what has nothing to do
//! with it stops too. Its queue is short and its wait is bounded; who finds the queue full is
//! refused at once.
//!
//! How it fails: a place that is held for ever is gone for ever; hold it under a deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkheadOptions {
    /// Calls under way. Too high: no bulkhead; too low: it refuses what the dependency would
    /// carry.
    pub most: usize,
    /// Callers that may wait for a place. Too high: all of them wait for nothing when the
    /// dependency hangs; too low: a short burst is refused.
    pub queue: usize,
    /// How long one waits at most. Too long: the answer comes when nobody needs it; too short: as
    /// with a short queue.
    pub wait: Duration,
}

/// A call was refused: the dependency has enough of them. Names the limit that was hit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BulkheadFull {
    /// As many wait as may.
    #[error("{name} is full: {most} calls are under way and {queue} wait, no more may")]
    Queue {
        /// Of the bulkhead.
        name: Arc<str>,
        /// Calls that may be under way.
        most: usize,
        /// Calls that may wait.
        queue: usize,
    },
    /// No place became free in time.
    #[error("{name} is full: none of {most} calls ended within {} ms", wait.as_millis())]
    Wait {
        /// Of the bulkhead.
        name: Arc<str>,
        /// Calls that may be under way.
        most: usize,
        /// How long one waits at most.
        wait: Duration,
    },
}

/// How a bulkhead stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BulkheadLook {
    /// Its name.
    pub name: Arc<str>,
    /// Calls that may be under way.
    pub most: usize,
    /// Calls that are under way.
    pub under_way: usize,
    /// Callers that wait.
    pub waiting: usize,
}

/// The bound of one dependency.
#[derive(Debug)]
pub struct Bulkhead {
    name: Arc<str>,
    options: BulkheadOptions,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// A place; dropping it gives it to the next who waits.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped: hold it until the call has ended"]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// Counts one who waits, for as long as it does.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Bulkhead {
    /// An empty one. At least one call may be under way.
    pub fn new(name: &str, options: BulkheadOptions) -> Arc<Self> {
        let options =
            BulkheadOptions { most: options.most.clamp(1, Semaphore::MAX_PERMITS), ..options };
        let places = Arc::new(Semaphore::new(options.most));
        Arc::new(Self { name: name.into(), options, places, waiting: AtomicUsize::new(0) })
    }

    /// A place, waited for if there is a queue. [`BulkheadFull::Queue`] at once when the queue is
    /// full, [`BulkheadFull::Wait`] when no place became free in time. Who waited longest comes
    /// first; a caller that is cancelled leaves no trace.
    pub async fn enter(&self) -> Result<Place, BulkheadFull> {
        if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(Place { _permit: permit });
        }
        let BulkheadOptions { most, queue, wait } = self.options;
        let longer = |waiting: usize| (waiting < queue).then_some(waiting + 1);
        if self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, longer).is_err() {
            return Err(BulkheadFull::Queue { name: Arc::clone(&self.name), most, queue });
        }
        let _waiting = Waiting(&self.waiting);
        match tokio::time::timeout(wait, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Place { _permit: permit }),
            // Nobody closes the semaphore; were it closed, there would be no place either.
            Ok(Err(_)) | Err(_) => {
                Err(BulkheadFull::Wait { name: Arc::clone(&self.name), most, wait })
            }
        }
    }

    /// How it stands now.
    pub fn look(&self) -> BulkheadLook {
        BulkheadLook {
            name: Arc::clone(&self.name),
            most: self.options.most,
            under_way: self.options.most - self.places.available_permits(),
            waiting: self.waiting.load(Ordering::Acquire),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;
    use tokio::time::{Instant, advance};

    use super::*;

    fn bulkhead(most: usize, queue: usize) -> Arc<Bulkhead> {
        Bulkhead::new("index", BulkheadOptions { most, queue, wait: Duration::from_millis(100) })
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
            bulkhead.look(),
            BulkheadLook { name: "index".into(), most: 2, under_way: 2, waiting: 1 }
        );
        let refused = bulkhead.enter().await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "index is full: 2 calls are under way and 1 wait, no more may"
        );
        assert!(began.elapsed().is_zero());
        let late = waits.await.unwrap().unwrap_err();
        assert_eq!(late.to_string(), "index is full: none of 2 calls ended within 100 ms");
        assert!(began.elapsed() < Duration::from_millis(102));
        drop(held);
        assert_eq!(
            bulkhead.look(),
            BulkheadLook { name: "index".into(), most: 2, under_way: 0, waiting: 0 }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_waited_longest_comes_first() {
        let bulkhead = bulkhead(1, 9);
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let held = bulkhead.enter().await.unwrap();
        let mut callers = tokio::task::JoinSet::new();
        for n in 0..9 {
            let (bulkhead, order) = (Arc::clone(&bulkhead), Arc::clone(&order));
            callers.spawn(async move {
                let _place = bulkhead.enter().await.unwrap();
                order.lock().unwrap().push(n);
            });
            tokio::task::yield_now().await;
        }
        drop(held);
        callers.join_all().await;
        assert_eq!(*order.lock().unwrap(), (0..9).collect::<Vec<_>>());
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

    type Entering = Pin<Box<dyn Future<Output = Result<Place, BulkheadFull>>>>;

    proptest! {
        /// Whatever is cancelled when: never more under way or waiting than may, and in the end every place is free.
        #[test]
        fn no_order_of_callers_leaves_a_trace(moves in moves(), most in 1usize..5, queue in 0usize..5) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async move {
                let bulkhead = bulkhead(most, queue);
                let mut entering: Vec<Entering> = Vec::new();
                let mut held: Vec<Place> = Vec::new();
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
                                    Ok(place) => held.push(place),
                                    Err(BulkheadFull::Queue { .. }) => assert_eq!(bulkhead.look().waiting, queue),
                                    Err(BulkheadFull::Wait { .. }) => {}
                                }
                            }
                        }
                        Move::Cancel(n) if !entering.is_empty() => drop(entering.swap_remove(n % entering.len())),
                        Move::Leave(n) if !held.is_empty() => drop(held.swap_remove(n % held.len())),
                        Move::Pass(ms) => advance(Duration::from_millis(ms)).await,
                        Move::Poll(_) | Move::Cancel(_) | Move::Leave(_) => {}
                    }
                    // Gives back what this task may do at once, so that no poll is put off.
                    tokio::task::yield_now().await;
                    let look = bulkhead.look();
                    assert!(held.len() <= look.under_way && look.under_way <= most, "{look:?}, {} held", held.len());
                    assert!(look.waiting <= queue, "{look:?}");
                }
                drop((entering, held));
                let look = bulkhead.look();
                assert_eq!((look.under_way, look.waiting), (0, 0));
                let mut all = Vec::new();
                for _ in 0..most {
                    all.push(bulkhead.enter().await.unwrap());
                }
                assert_eq!(bulkhead.look().under_way, most);
            });
        }
    }
}
