//! What the guard of loss decided last, as atomics: a write learns of it without the lock of the
//! acknowledgements. And the other way: who waits for the replicas.
//!
//! How it fails: it is as old as the last poll of the replicas. What may be acknowledged is decided
//! under the lock; this only keeps writes from being sent in vain.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use tagfast_failover::GuardState;
use tokio::sync::{Notify, Semaphore};

/// What the guard decided last, for those who must not wait for its lock.
pub(crate) struct GuardSignal {
    /// A [`GuardState`], by its number.
    state: AtomicU8,
    /// More may be lost than is allowed, and writes are acknowledged all the same.
    is_beyond: AtomicBool,
    /// No replica streams, and none is about to.
    has_no_replica: AtomicBool,
    /// Groups whose callers wait for a replica.
    waiting: AtomicUsize,
    /// Makes the poller ask now.
    wanted: Notify,
    /// Nothing is journaled, so nothing is guarded; only benchmarks set it.
    is_off: AtomicBool,
    /// Held by a group commit while writes are throttled, until it is acknowledged.
    pub(crate) throttle: Arc<Semaphore>,
}

impl Default for GuardSignal {
    fn default() -> Self {
        Self {
            state: AtomicU8::new(0),
            is_beyond: AtomicBool::new(false),
            has_no_replica: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            wanted: Notify::new(),
            is_off: AtomicBool::new(false),
            throttle: Arc::new(Semaphore::new(1)),
        }
    }
}

impl GuardSignal {
    /// What is done with writes, as of the last poll.
    pub(crate) fn state(&self) -> GuardState {
        match self.state.load(Ordering::Relaxed) {
            0 => GuardState::Open,
            1 => GuardState::Throttled,
            2 => GuardState::Holding,
            _ => GuardState::Refusing,
        }
    }

    /// Whether more may be lost than is allowed, and writes are acknowledged all the same.
    pub(crate) fn is_beyond(&self) -> bool {
        self.is_beyond.load(Ordering::Relaxed)
    }

    /// Whether no replica streams, and none is about to.
    pub(crate) fn has_no_replica(&self) -> bool {
        self.has_no_replica.load(Ordering::Relaxed)
    }

    /// Whether a benchmark has switched journal and guard off, to measure what they cost.
    pub(crate) fn is_off(&self) -> bool {
        self.is_off.load(Ordering::Relaxed)
    }

    /// Switches journal and guard off, or on again.
    #[cfg(feature = "testing")]
    pub(crate) fn set_off(&self, is_off: bool) {
        self.is_off.store(is_off, Ordering::Relaxed);
    }

    /// Asks for the positions soon: something was journaled.
    pub(crate) fn want(&self) {
        self.wanted.notify_one();
    }

    /// Asks for the positions at the shortest interval, until the result is dropped.
    pub(crate) fn wait(&self) -> ReplicaWait<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.wanted.notify_one();
        ReplicaWait(self)
    }

    /// Whether a caller waits for a replica.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Waits until the positions are wanted.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Publishes what the guard has decided.
    pub(crate) fn publish(&self, state: GuardState, is_beyond: bool, has_no_replica: bool) {
        self.state.store(state as u8, Ordering::Relaxed);
        self.is_beyond.store(is_beyond, Ordering::Relaxed);
        self.has_no_replica.store(has_no_replica, Ordering::Relaxed);
    }
}

/// A group that waits for a replica.
pub(crate) struct ReplicaWait<'a>(&'a GuardSignal);

impl Drop for ReplicaWait<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guards_state_is_told_as_it_was_published() {
        let signal = GuardSignal::default();
        assert_eq!((signal.state(), signal.has_no_replica()), (GuardState::Open, false));
        let states =
            [GuardState::Open, GuardState::Throttled, GuardState::Holding, GuardState::Refusing];
        for state in states {
            signal.publish(state, state == GuardState::Throttled, true);
            assert_eq!((signal.state(), signal.has_no_replica()), (state, true));
            assert_eq!(signal.is_beyond(), state == GuardState::Throttled);
        }
    }

    #[test]
    fn a_wait_ends_with_its_owner() {
        let signal = GuardSignal::default();
        let (one, two) = (signal.wait(), signal.wait());
        drop(one);
        assert!(signal.is_waited_for());
        drop(two);
        assert!(!signal.is_waited_for());
    }
}
