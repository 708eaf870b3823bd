//! All breakers of a process: by name, with what they did last.
//!
//! Every transition is a log line with its reason, a metric, and an entry of a short list that
//! operators can ask for. Names are `dependency/...`, a bounded set: they are labels of metrics.
//!
//! How it fails: the list forgets the oldest transitions; the log has them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::breaker::{Breaker, BreakerLook, BreakerOptions, BreakerState, Transition};
use crate::clock::Clock;
use crate::metric::{LabelDef, MetricDef, MetricKind};

/// Transitions that are remembered.
const REMEMBERED: usize = 200;

/// The metrics of breakers.
pub const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "tagfast_breaker_open",
        kind: MetricKind::Gauge,
        labels: &[LabelDef::bounded("breaker", "TO DO: values")],
        help: "1 while calls are refused, 0.5 while a few are tried. Above 0 for minutes: what is behind it needs help.",
    },
    MetricDef {
        name: "tagfast_breaker_transitions_total",
        kind: MetricKind::Counter,
        labels: &[
            LabelDef::bounded("breaker", "TO DO: values"),
            LabelDef::bounded("to", "TO DO: values"),
            LabelDef::bounded("reason", "TO DO: values"),
        ],
        help: "Changes of state. Many a minute: the dependency is half well, or the limits are too narrow.",
    },
    MetricDef {
        name: "tagfast_breaker_ignored_total",
        kind: MetricKind::Counter,
        labels: &[
            LabelDef::bounded("breaker", "TO DO: values"),
            LabelDef::bounded("why", "TO DO: values"),
        ],
        help: "Calls that a breaker did not judge: `cancelled` by their caller, `late` (their result came after it had changed its state). Many cancelled: callers give up before the dependency answers.",
    },
];

/// A transition and when it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerEvent {
    /// When, in milliseconds since 1970.
    pub at: i64,
    /// What.
    pub transition: Transition,
}

/// The breakers of a process.
pub struct Breakers {
    clock: Arc<dyn Clock>,
    began: Instant,
    all: Mutex<BTreeMap<String, Arc<Breaker>>>,
    events: Mutex<VecDeque<BreakerEvent>>,
}

impl std::fmt::Debug for Breakers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.lock().keys()).finish()
    }
}

impl Breakers {
    /// None yet.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            clock,
            began: Instant::now(),
            all: Mutex::default(),
            events: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Breaker>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The breaker of that name, made if there is none.
    pub fn make(self: &Arc<Self>, name: &str, options: BreakerOptions) -> Arc<Breaker> {
        let mut all = self.lock();
        if let Some(breaker) = all.get(name) {
            return Arc::clone(breaker);
        }
        let began = self.began;
        let of = Arc::downgrade(self);
        let told = move |transition: &Transition| {
            if let Some(breakers) = of.upgrade() {
                breakers.told(transition);
            }
        };
        // Spreads the open times of breakers that open together.
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let seed = seed ^ u64::from(std::process::id()) << 32;
        let breaker =
            Breaker::new(name, options, Arc::new(move || began.elapsed()), Arc::new(told), seed);
        metrics::gauge!("tagfast_breaker_open", "breaker" => name.to_owned()).set(0.0);
        all.insert(name.to_owned(), Arc::clone(&breaker));
        breaker
    }

    fn told(&self, transition: &Transition) {
        let Transition { name, from, to, reason, .. } = transition;
        tracing::warn!(
            breaker = name,
            from = from.as_str(),
            to = to.as_str(),
            reason,
            "a breaker changed its state"
        );
        let open = match to {
            BreakerState::Closed | BreakerState::ForcedClosed => 0.0,
            BreakerState::HalfOpen => 0.5,
            BreakerState::Open | BreakerState::ForcedOpen => 1.0,
        };
        metrics::gauge!("tagfast_breaker_open", "breaker" => name.clone()).set(open);
        metrics::counter!("tagfast_breaker_transitions_total",
            "breaker" => name.clone(), "to" => to.as_str(), "reason" => *reason)
        .increment(1);
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() >= REMEMBERED {
            events.pop_front();
        }
        events.push_back(BreakerEvent { at: self.clock.now_ms(), transition: transition.clone() });
    }

    /// The breaker of that name.
    pub fn get(&self, name: &str) -> Option<Arc<Breaker>> {
        self.lock().get(name).cloned()
    }

    /// How each of them stands, by name.
    pub fn look(&self) -> Vec<BreakerLook> {
        let all: Vec<Arc<Breaker>> = self.lock().values().cloned().collect();
        all.iter().map(|breaker| breaker.look()).collect()
    }

    /// The last transitions, oldest first.
    pub fn events(&self) -> Vec<BreakerEvent> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn what_they_did_is_remembered_up_to_a_bound() {
        let breakers = Breakers::new(Arc::new(ManualClock::new(7)));
        let index = breakers.make("index", BreakerOptions::default());
        assert!(
            Arc::ptr_eq(&index, &breakers.make("index", BreakerOptions::default())),
            "one of a name"
        );
        for n in 0..REMEMBERED {
            index.force(Some(n % 2 == 0));
        }
        index.force(Some(true));
        let events = breakers.events();
        assert_eq!((events.len(), events[0].at), (REMEMBERED, 7));
        assert_eq!(events.last().map(|e| e.transition.to), Some(BreakerState::ForcedOpen));
        let look = breakers.look();
        assert_eq!(
            (look[0].name.as_str(), look[0].state, look[0].reason),
            ("index", BreakerState::ForcedOpen, "by_hand")
        );
        assert!(breakers.get("nothing").is_none());
    }
}
