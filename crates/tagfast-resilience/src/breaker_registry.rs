//! The registry of a process's breakers: lookup by name, and their last transitions.
//!
//! Every transition is logged with its reason, counted, and kept in a short list for operators.
//! Names are `dependency/...` and must be a bounded set, because they are metric labels.
//!
//! How it fails: the list drops the oldest transitions; the log has them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::breaker::{
    BREAKER_OPEN, BREAKER_TRANSITIONS, Breaker, BreakerOptions, BreakerSnapshot, BreakerState,
    Transition,
};
use crate::clock::Clock;
use crate::metric::Bounded;
use crate::{counter, gauge};

/// Transitions kept in memory.
const EVENTS_KEPT: usize = 200;

/// A transition and its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerEvent {
    /// When it happened, Unix ms.
    pub at: i64,
    /// The transition.
    pub transition: Transition,
}

/// The registry of a process's breakers.
pub struct Breakers {
    clock: Arc<dyn Clock>,
    began: Instant,
    all: Mutex<BTreeMap<String, Arc<Breaker>>>,
    events: Mutex<VecDeque<BreakerEvent>>,
}

impl std::fmt::Debug for Breakers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.all.lock().keys()).finish()
    }
}

impl Breakers {
    /// An empty registry.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            clock,
            began: Instant::now(),
            all: Mutex::default(),
            events: Mutex::default(),
        })
    }

    /// The breaker with that name; created with `options` when there is none.
    pub fn make(self: &Arc<Self>, name: &str, options: BreakerOptions) -> Arc<Breaker> {
        let mut all = self.all.lock();
        if let Some(breaker) = all.get(name) {
            return Arc::clone(breaker);
        }
        let began = self.began;
        let registry = Arc::downgrade(self);
        let on_transition = move |transition: &Transition| {
            if let Some(breakers) = registry.upgrade() {
                breakers.record(transition);
            }
        };
        // Jitters the open times of breakers that open together.
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let seed = seed ^ u64::from(std::process::id()) << 32;
        let breaker = Breaker::new(
            name,
            options,
            Arc::new(move || began.elapsed()),
            Arc::new(on_transition),
            seed,
        );
        gauge!(BREAKER_OPEN, "breaker" => Bounded(name.to_owned())).set(0.0);
        all.insert(name.to_owned(), Arc::clone(&breaker));
        breaker
    }

    fn record(&self, transition: &Transition) {
        let Transition { name, from, to, reason, .. } = transition;
        tracing::warn!(
            breaker = name,
            from = from.as_str(),
            to = to.as_str(),
            reason,
            "breaker transition"
        );
        let open = match to {
            BreakerState::Closed | BreakerState::ForcedClosed => 0.0,
            BreakerState::HalfOpen => 0.5,
            BreakerState::Open | BreakerState::ForcedOpen => 1.0,
        };
        gauge!(BREAKER_OPEN, "breaker" => Bounded(name.clone())).set(open);
        counter!(BREAKER_TRANSITIONS,
            "breaker" => Bounded(name.clone()), "to" => *to, "reason" => Bounded(*reason))
        .increment(1);
        let mut events = self.events.lock();
        if events.len() >= EVENTS_KEPT {
            events.pop_front();
        }
        events.push_back(BreakerEvent { at: self.clock.now_ms(), transition: transition.clone() });
    }

    /// The breaker with that name.
    pub fn get(&self, name: &str) -> Option<Arc<Breaker>> {
        self.all.lock().get(name).cloned()
    }

    /// Snapshots of all breakers, sorted by name.
    pub fn snapshot(&self) -> Vec<BreakerSnapshot> {
        let all: Vec<Arc<Breaker>> = self.all.lock().values().cloned().collect();
        all.iter().map(|breaker| breaker.snapshot()).collect()
    }

    /// The last transitions, oldest first.
    pub fn events(&self) -> Vec<BreakerEvent> {
        self.events.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn transitions_are_kept_up_to_a_bound() {
        let breakers = Breakers::new(Arc::new(ManualClock::new(7)));
        let index = breakers.make("index", BreakerOptions::default());
        assert!(
            Arc::ptr_eq(&index, &breakers.make("index", BreakerOptions::default())),
            "one breaker per name"
        );
        for n in 0..EVENTS_KEPT {
            index.force(Some(n % 2 == 0));
        }
        index.force(Some(true));
        let events = breakers.events();
        assert_eq!((events.len(), events[0].at), (EVENTS_KEPT, 7));
        assert_eq!(events.last().map(|e| e.transition.to), Some(BreakerState::ForcedOpen));
        let all = breakers.snapshot();
        assert_eq!(
            (all[0].name.as_str(), all[0].state, all[0].reason),
            ("index", BreakerState::ForcedOpen, "by_hand")
        );
        assert!(breakers.get("nothing").is_none());
    }
}
