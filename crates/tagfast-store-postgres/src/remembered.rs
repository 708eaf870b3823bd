//! Where the last writes of each content stand: plain clients without tokens read their own writes
//! by it.
//!
//! Bounded: an entry that is pushed out raises the floor of its cluster, so that nothing is
//! forgotten, only remembered less precisely.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use tagfast_sharding::ContentHash;
use tagfast_store::Position;

/// Most contents remembered one by one; about 6 MB.
const CONTENTS: usize = 65_536;

#[derive(Default)]
struct State {
    of: HashMap<ContentHash, (u64, Position)>,
    order: VecDeque<(u64, ContentHash)>,
    next: u64,
    floor: Option<Position>,
}

/// The positions of one cluster's last writes.
#[derive(Default)]
pub(crate) struct Remembered(Mutex<State>);

impl Remembered {
    /// Notes a write.
    pub(crate) fn note(&self, content: ContentHash, position: Position) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.next += 1;
        let stamp = state.next;
        state.of.insert(content, (stamp, position));
        state.order.push_back((stamp, content));
        while state.of.len() > CONTENTS || state.order.len() > 2 * CONTENTS {
            let Some((stamp, oldest)) = state.order.pop_front() else { break };
            if state.of.get(&oldest).is_some_and(|(s, _)| *s == stamp)
                && let Some((_, position)) = state.of.remove(&oldest)
            {
                state.floor = Some(match state.floor {
                    Some(floor) if floor.epoch == position.epoch && floor.lsn >= position.lsn => {
                        floor
                    }
                    _ => position,
                });
            }
        }
    }

    /// What a read of this content must cover.
    pub(crate) fn position(&self, content: ContentHash) -> Option<Position> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.of.get(&content).map(|(_, position)| *position).or(state.floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tagfast_domain::EpochId;

    fn at(lsn: u64) -> Position {
        Position { epoch: EpochId([1; 16]), xid: 0, lsn }
    }

    #[test]
    fn what_is_pushed_out_raises_the_floor() {
        let remembered = Remembered::default();
        assert_eq!(remembered.position(ContentHash(0)), None);
        for n in 0..=CONTENTS as u64 {
            remembered.note(ContentHash(n), at(n + 1));
        }
        assert_eq!(
            remembered.position(ContentHash(0)),
            Some(at(1)),
            "the first one is the floor now"
        );
        assert_eq!(remembered.position(ContentHash(7)), Some(at(8)));
        assert_eq!(remembered.position(ContentHash(1 << 40)), Some(at(1)));
    }

    #[test]
    fn the_newest_position_of_a_content_counts() {
        let remembered = Remembered::default();
        remembered.note(ContentHash(1), at(1));
        remembered.note(ContentHash(1), at(9));
        assert_eq!(remembered.position(ContentHash(1)), Some(at(9)));
    }
}
