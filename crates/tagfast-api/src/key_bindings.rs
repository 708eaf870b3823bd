//! Which request each idempotency key of the last ten minutes came with first.
//!
//! The store remembers a key with the content that it wrote, so it cannot see the key again on a
//! different content. This memory of the process can: a key that comes with a different call or
//! different contents is refused before anything is written. It is an aid to find mistakes of
//! clients; that a retry does nothing is promised by the store alone.
//!
//! Memory is bounded to [`KEY_BINDINGS_MAX`] keys, about 10 MB. How it fails: beyond that the
//! oldest keys are forgotten early, and every key at a restart. A process does not know the keys
//! that came to a different one.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use parking_lot::Mutex;
use tagfast_domain::limits::WRITE_ID_MEMORY_MS;
use tagfast_domain::{Call, UnixMillis, WriteId};

/// Keys that one process remembers.
const KEY_BINDINGS_MAX: usize = 131_072;

#[derive(Default)]
struct Bindings {
    /// The hash of the request that a key came with first.
    requests: HashMap<WriteId, u64>,
    /// Oldest first.
    order: VecDeque<(UnixMillis, WriteId)>,
}

/// The bindings of this process.
pub(crate) struct KeyBindings {
    hasher: RandomState,
    bindings: Mutex<Bindings>,
    max: usize,
}

impl Default for KeyBindings {
    fn default() -> Self {
        Self::bounded(KEY_BINDINGS_MAX)
    }
}

impl KeyBindings {
    fn bounded(max: usize) -> Self {
        Self { hasher: RandomState::new(), bindings: Mutex::default(), max }
    }

    /// Binds a key to the call and the contents (type and id) of a request; a batch sorts them.
    /// `false`: it is bound to a different request.
    pub(crate) fn bind<'a>(
        &self,
        key: WriteId,
        call: Call,
        contents: impl IntoIterator<Item = (&'a str, &'a str)>,
        now: UnixMillis,
    ) -> bool {
        let mut hasher = self.hasher.build_hasher();
        call.hash(&mut hasher);
        contents.into_iter().for_each(|content| content.hash(&mut hasher));
        let request = hasher.finish();
        let mut bindings = self.bindings.lock();
        let Bindings { requests, order } = &mut *bindings;
        while let Some((_, expired)) =
            order.pop_front_if(|(at, _)| now.saturating_sub(*at) >= WRITE_ID_MEMORY_MS)
        {
            requests.remove(&expired);
        }
        if let Some(first) = requests.get(&key) {
            return *first == request;
        }
        if requests.len() >= self.max
            && let Some((_, oldest)) = order.pop_front()
        {
            requests.remove(&oldest);
        }
        requests.insert(key, request);
        order.push_back((now, key));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> WriteId {
        WriteId([n; 16])
    }

    #[test]
    fn a_key_is_bound_to_its_first_request_for_ten_minutes() {
        let keys = KeyBindings::default();
        let bind = |call, contents: &[(&str, &str)], now| {
            keys.bind(key(1), call, contents.iter().copied(), now)
        };
        assert!(bind(Call::AddTag, &[("t", "1")], 0));
        assert!(bind(Call::AddTag, &[("t", "1")], 1));
        assert!(!bind(Call::AddTag, &[("t", "2")], 1), "a different content");
        assert!(!bind(Call::Patch, &[("t", "1")], 1), "a different call");
        assert!(!bind(Call::AddTag, &[("t", "1"), ("t", "1")], 1), "more contents");
        assert!(!bind(Call::AddTag, &[], 1), "fewer contents");
        assert!(
            !bind(Call::AddTag, &[("t1", "")], 1),
            "the parts of a content do not run together"
        );
        assert!(!bind(Call::Patch, &[("t", "1")], WRITE_ID_MEMORY_MS - 1));
        assert!(bind(Call::Patch, &[("t", "1")], WRITE_ID_MEMORY_MS), "then it is free again");
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_keys_leave_first() {
        let keys = KeyBindings::bounded(3);
        let bind = |n, id: &str| keys.bind(key(n), Call::AddTag, [("t", id)], 0);
        assert!((1..=4).all(|n| bind(n, "1")));
        let bindings = keys.bindings.lock();
        assert_eq!((bindings.requests.len(), bindings.order.len()), (3, 3));
        drop(bindings);
        assert!((2..=4).all(|n| !bind(n, "2")), "the newest are known");
        assert!(bind(1, "2"), "the oldest is forgotten");
    }
}
