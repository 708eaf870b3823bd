//! Which request each idempotency key of the last ten minutes came with, as far as this process
//! saw it: an aid for a store whose files or clusters do not know each other's keys.
//!
//! Each file or cluster knows exactly what a key was used for in it. This memory notices that a key
//! comes to a content of a different one. A store asks it before it queues a write, and tells it
//! when a file or cluster knew better.
//!
//! Memory is bounded to [`KEY_MEMORY_MAX`] keys, about 10 MB. How it fails: beyond that the oldest
//! keys are forgotten early, and a process that is started knows only what its store tells it.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use tagfast_domain::limits::WRITE_ID_MEMORY_MS;
use tagfast_domain::{IdempotencyKey, UnixMillis};

/// Keys that one process remembers.
pub const KEY_MEMORY_MAX: usize = 131_072;

#[derive(Default)]
struct State {
    /// The request that a key came with first.
    requests: HashMap<[u8; 16], u64>,
    /// Oldest first.
    order: VecDeque<(UnixMillis, [u8; 16])>,
}

/// The requests of keys, bounded by number and by age.
pub struct KeyMemory {
    state: Mutex<State>,
    max: usize,
}

impl Default for KeyMemory {
    fn default() -> Self {
        Self { state: Mutex::default(), max: KEY_MEMORY_MAX }
    }
}

impl std::fmt::Debug for KeyMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyMemory")
            .field("keys", &self.state.lock().requests.len())
            .finish_non_exhaustive()
    }
}

impl KeyMemory {
    /// Binds a key to its request. `false`: it is bound to a different one.
    pub fn bind(&self, key: &IdempotencyKey, now: UnixMillis) -> bool {
        self.load(key.id, key.request, now) == key.request
    }

    /// Adds what a store knew of a key before this process began, unless the key is known. Returns
    /// the request that it is bound to.
    pub fn load(&self, id: [u8; 16], request: u64, now: UnixMillis) -> u64 {
        let mut state = self.state.lock();
        let State { requests, order } = &mut *state;
        while let Some((_, expired)) =
            order.pop_front_if(|(at, _)| now.saturating_sub(*at) >= WRITE_ID_MEMORY_MS)
        {
            requests.remove(&expired);
        }
        if let Some(first) = requests.get(&id) {
            return *first;
        }
        // Also places of forgotten keys count.
        if order.len() >= self.max
            && let Some((_, oldest)) = order.pop_front()
        {
            requests.remove(&oldest);
        }
        requests.insert(id, request);
        order.push_back((now, id));
        request
    }

    /// Corrects a key that a file or cluster knew with a different request.
    pub fn correct(&self, id: [u8; 16], request: u64) {
        if let Some(bound) = self.state.lock().requests.get_mut(&id) {
            *bound = request;
        }
    }

    /// Forgets a key that a cluster refused: the cluster goes on knowing it.
    pub fn forget(&self, id: [u8; 16]) {
        // Its place in the order stays until it is due.
        self.state.lock().requests.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tagfast_domain::Call;

    fn key(n: u8, request: u64) -> IdempotencyKey {
        IdempotencyKey { id: [n; 16], call: Call::AddTag, request }
    }

    #[test]
    fn a_key_is_bound_to_its_first_request_for_ten_minutes() {
        let keys = KeyMemory::default();
        assert!(keys.bind(&key(1, 7), 0));
        assert!(keys.bind(&key(1, 7), 1));
        assert!(!keys.bind(&key(1, 8), WRITE_ID_MEMORY_MS - 1), "a different request");
        assert!(keys.bind(&key(1, 8), WRITE_ID_MEMORY_MS), "then it is free again");
    }

    #[test]
    fn what_a_file_or_cluster_knows_counts() {
        let keys = KeyMemory::default();
        assert_eq!(keys.load([1; 16], 7, 0), 7);
        assert!(!keys.bind(&key(1, 8), 1), "it was known before the process began");
        assert!(keys.bind(&key(2, 8), 1));
        keys.correct([2; 16], 9);
        assert!(keys.bind(&key(2, 9), 1) && !keys.bind(&key(2, 8), 1));
        keys.forget([2; 16]);
        assert!(keys.bind(&key(2, 10), 1));
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_keys_leave_first() {
        let keys = KeyMemory { max: 3, ..KeyMemory::default() };
        assert!((1..=4).all(|n| keys.bind(&key(n, 1), 0)));
        let state = keys.state.lock();
        assert_eq!((state.requests.len(), state.order.len()), (3, 3));
        drop(state);
        assert!((2..=4).all(|n| !keys.bind(&key(n, 2), 0)), "the newest are known");
        assert!(keys.bind(&key(1, 2), 0), "the oldest is forgotten");
    }
}
