//! What this process wrote last: no cache of this process may answer with less.
//!
//! A write whose outcome is not known makes its content unanswerable by caches for a while, since
//! nobody knows what they should show. Bounded: the oldest contents are forgotten first, earlier
//! than they would be.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tagfast_domain::Version;
use tagfast_sharding::ContentHash;
use tokio::time::Instant;

/// Most contents remembered; about 4 MB.
const CONTENTS: usize = 65_536;

/// What a cache must at least show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtLeast {
    /// This version.
    Version(Version),
    /// More than any cache can prove.
    TheStore,
}

#[derive(Default)]
struct State {
    of: HashMap<ContentHash, (AtLeast, Instant)>,
    order: VecDeque<(Instant, ContentHash)>,
}

/// The last writes.
pub(crate) struct Recent {
    kept_for: Duration,
    state: Mutex<State>,
    /// Whether there is anything: a process that only reads need not look.
    any: AtomicBool,
}

impl Recent {
    pub(crate) fn new(kept_for: Duration) -> Self {
        Self { kept_for, state: Mutex::default(), any: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write was acknowledged with this version, or its outcome is not known.
    pub(crate) fn note(&self, content: ContentHash, at_least: AtLeast) {
        let now = Instant::now();
        let mut state = self.lock();
        let until = now + self.kept_for;
        let newest = match (state.of.get(&content), at_least) {
            // What a lost answer left open, a later answer of this content does not settle: the
            // order is not known.
            (Some((AtLeast::TheStore, known_until)), AtLeast::Version(_)) if *known_until > now => {
                return;
            }
            (Some((AtLeast::Version(known), _)), AtLeast::Version(new)) => {
                AtLeast::Version(new.max(*known))
            }
            (_, new) => new,
        };
        self.any.store(true, Ordering::Release);
        state.of.insert(content, (newest, until));
        state.order.push_back((until, content));
        while let Some((at, oldest)) = state.order.front().copied()
            && (at <= now || state.order.len() > CONTENTS)
        {
            state.order.pop_front();
            if state.of.get(&oldest).is_some_and(|(_, until)| *until == at) {
                state.of.remove(&oldest);
            }
        }
    }

    /// What a cache must show of a content.
    pub(crate) fn of(&self, content: ContentHash) -> Option<AtLeast> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let state = self.lock();
        let (at_least, until) = state.of.get(&content)?;
        (*until > Instant::now()).then_some(*at_least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(n: u64) -> AtLeast {
        AtLeast::Version(Version::from_packed(n).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_write_counts_until_its_time_is_over() {
        let recent = Recent::new(Duration::from_secs(30));
        let content = ContentHash(1);
        recent.note(content, version(7));
        recent.note(content, version(5));
        assert_eq!(recent.of(content), Some(version(7)), "answers come in any order");
        tokio::time::advance(Duration::from_secs(29)).await;
        recent.note(content, AtLeast::TheStore);
        recent.note(content, version(9));
        assert_eq!(recent.of(content), Some(AtLeast::TheStore));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(recent.of(content), None);
        recent.note(content, version(9));
        assert_eq!(recent.of(content), Some(version(9)));
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let recent = Recent::new(Duration::from_secs(30));
        for n in 0..2 * CONTENTS as u64 {
            recent.note(ContentHash(n), version(1));
        }
        assert!(recent.lock().of.len() <= CONTENTS && recent.lock().order.len() <= CONTENTS);
        assert_eq!(recent.of(ContentHash(0)), None);
        tokio::time::advance(Duration::from_secs(31)).await;
        recent.note(ContentHash(0), version(1));
        assert_eq!(recent.lock().of.len(), 1, "what is over goes");
    }
}
