//! The writes of this process: no cache of this process may answer with an older version than the
//! process itself wrote.
//!
//! A write with an unknown outcome bars the caches from answering for its content for a while:
//! either version may be the current one. Memory is bounded; above [`CONTENTS_MAX`] contents the
//! oldest writes are forgotten before their time.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_domain::Version;
use tagfast_sharding::ContentHash;
use tokio::time::Instant;

/// Contents that are remembered, about 4 MB.
const CONTENTS_MAX: usize = 65_536;

/// What a cached entry must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequiredVersion {
    /// This version or a newer one.
    AtLeast(Version),
    /// A write's outcome is unknown: no cached entry is sufficient.
    OutcomeUnknown,
}

#[derive(Default)]
struct State {
    required: HashMap<ContentHash, (RequiredVersion, Instant)>,
    /// Expiry times in ascending order. A content that was written again has several.
    expiries: VecDeque<(Instant, ContentHash)>,
}

/// The recent writes of this process.
pub(crate) struct LocalWrites {
    ttl: Duration,
    state: Mutex<State>,
    /// Whether there was any write: a process that only reads skips the lock.
    any: AtomicBool,
}

impl LocalWrites {
    /// Remembers each write for `ttl`.
    pub(crate) fn new(ttl: Duration) -> Self {
        Self { ttl, state: Mutex::default(), any: AtomicBool::new(false) }
    }

    /// Records a write that was acknowledged or whose outcome is unknown.
    pub(crate) fn record(&self, content: ContentHash, required: RequiredVersion) {
        use RequiredVersion::{AtLeast, OutcomeUnknown};
        let now = Instant::now();
        let mut state = self.state.lock();
        let expires_at = now + self.ttl;
        let required = match (state.required.get(&content), required) {
            // A later acknowledgement does not settle a lost one: their order is unknown.
            (Some((OutcomeUnknown, until)), AtLeast(_)) if *until > now => return,
            (Some((AtLeast(known), _)), AtLeast(new)) => AtLeast(new.max(*known)),
            (_, new) => new,
        };
        self.any.store(true, Ordering::Release);
        state.required.insert(content, (required, expires_at));
        state.expiries.push_back((expires_at, content));
        while let Some((at, oldest)) = state.expiries.front().copied()
            && (at <= now || state.expiries.len() > CONTENTS_MAX)
        {
            state.expiries.pop_front();
            if state.required.get(&oldest).is_some_and(|(_, until)| *until == at) {
                state.required.remove(&oldest);
            }
        }
    }

    /// What a cached entry of this content must show; `None` when any entry will do.
    pub(crate) fn required(&self, content: ContentHash) -> Option<RequiredVersion> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let state = self.state.lock();
        let (required, until) = state.required.get(&content)?;
        (*until > Instant::now()).then_some(*required)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(n: u64) -> RequiredVersion {
        RequiredVersion::AtLeast(Version::from_packed(n).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_write_counts_until_it_expires() {
        let writes = LocalWrites::new(Duration::from_secs(30));
        let content = ContentHash(1);
        writes.record(content, version(7));
        writes.record(content, version(5));
        assert_eq!(
            writes.required(content),
            Some(version(7)),
            "acknowledgements arrive in any order"
        );
        tokio::time::advance(Duration::from_secs(29)).await;
        writes.record(content, RequiredVersion::OutcomeUnknown);
        writes.record(content, version(9));
        assert_eq!(writes.required(content), Some(RequiredVersion::OutcomeUnknown));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(writes.required(content), None);
        writes.record(content, version(9));
        assert_eq!(writes.required(content), Some(version(9)));
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let writes = LocalWrites::new(Duration::from_secs(30));
        for n in 0..2 * CONTENTS_MAX as u64 {
            writes.record(ContentHash(n), version(1));
        }
        assert!(
            writes.state.lock().required.len() <= CONTENTS_MAX
                && writes.state.lock().expiries.len() <= CONTENTS_MAX
        );
        assert_eq!(writes.required(ContentHash(0)), None);
        tokio::time::advance(Duration::from_secs(31)).await;
        writes.record(ContentHash(0), version(1));
        assert_eq!(writes.state.lock().required.len(), 1, "expired writes are removed");
    }
}
