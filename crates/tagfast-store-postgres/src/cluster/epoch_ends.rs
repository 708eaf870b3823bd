//! Epoch ends: up to which log position each epoch is part of the current history.
//!
//! A failover forks the log: what a replaced primary wrote past the fork is lost. The end of an
//! epoch is the smallest fork on the way from it to the current epoch; everything up to it is
//! part of the current history, forever. An epoch that is no ancestor ends at 0.
//!
//! How it fails: pessimistically. Without the history nothing is known of older epochs, and a fork
//! that could not be read ends all of them at 0.

use std::collections::HashMap;

use tagfast_domain::{EpochId, EpochOrdinal};
use tagfast_failover::EpochRecord;

/// The ends of the epochs that this node knows. Replaced as a whole, so that no reader sees a new
/// epoch with an old end.
#[derive(Clone, Default)]
pub(crate) struct EpochEnds {
    /// `None`: no epoch was adopted yet.
    pub(crate) current: Option<EpochId>,
    /// Of every epoch in the history.
    by_id: HashMap<EpochId, u64>,
    /// Ordinals and ends of earlier epochs, also of those that are no ancestors.
    pub(crate) past: Vec<(u64, u64)>,
    /// Of every epoch in the history.
    ordinals: HashMap<EpochId, EpochOrdinal>,
}

impl EpochEnds {
    /// The ends as of `current`; `None` for the history: it could not be read.
    pub(crate) fn new(history: Option<&[EpochRecord]>, current: &EpochRecord) -> Self {
        let mut by_id = ends_of_ancestors(history.unwrap_or_default(), current);
        let end = |epoch: &EpochRecord| by_id.get(&epoch.id).copied().unwrap_or(0);
        let earlier = || history.unwrap_or_default().iter().filter(|epoch| epoch.id != current.id);
        let past = earlier().map(|epoch| (epoch.ordinal.0, end(epoch))).collect();
        for epoch in earlier() {
            by_id.entry(epoch.id).or_insert(0);
        }
        let known = history.unwrap_or_default().iter().chain([current]);
        let ordinals = known.map(|epoch| (epoch.id, epoch.ordinal)).collect();
        Self { current: Some(current.id), by_id, past, ordinals }
    }

    /// The ordinal of an epoch; `None`: the epoch is unknown.
    pub(crate) fn ordinal_of(&self, epoch: EpochId) -> Option<EpochOrdinal> {
        self.ordinals.get(&epoch).copied()
    }

    /// The end of an epoch: `u64::MAX` for the current one; `None`: the epoch is unknown.
    pub(crate) fn of(&self, epoch: EpochId) -> Option<u64> {
        // Nearly always, and every entry of a cache is checked.
        if self.current == Some(epoch) {
            return Some(u64::MAX);
        }
        self.by_id.get(&epoch).copied()
    }
}

/// Where each ancestor's log ends in the current history.
fn ends_of_ancestors(history: &[EpochRecord], current: &EpochRecord) -> HashMap<EpochId, u64> {
    let by_id: HashMap<EpochId, &EpochRecord> = history.iter().map(|e| (e.id, e)).collect();
    let mut ends = HashMap::from([(current.id, u64::MAX)]);
    let (mut child, mut end) = (current, u64::MAX);
    while let Some(parent) = child.parent_id.and_then(|id| by_id.get(&id)) {
        // On the same timeline nothing of the parent's log was left behind.
        if parent.timeline != child.timeline {
            end = end.min(child.fork_lsn.unwrap_or(0));
        }
        if ends.insert(parent.id, end).is_some() {
            break;
        }
        child = parent;
    }
    ends
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn epoch(
        n: u8,
        parent: Option<u8>,
        timeline: u32,
        fork_lsn: Option<u64>,
    ) -> EpochRecord {
        EpochRecord {
            id: EpochId([n; 16]),
            ordinal: EpochOrdinal(u64::from(n)),
            term: u64::from(n),
            member: "n".to_owned(),
            timeline,
            fork_lsn,
            parent_id: parent.map(|p| EpochId([p; 16])),
            minted_at: 0,
            minted_by: "a".to_owned(),
        }
    }

    #[test]
    fn a_second_failover_may_lower_the_end_of_the_first() {
        let (one, two, three) = (
            epoch(1, None, 1, None),
            epoch(2, Some(1), 2, Some(500)),
            epoch(3, Some(2), 3, Some(400)),
        );
        let ends = ends_of_ancestors(&[one, two, three.clone()], &three);
        let of = |n| ends.get(&EpochId([n; 16])).copied().unwrap_or(0);
        assert_eq!((of(3), of(2), of(1), of(9)), (u64::MAX, 400, 400, 0));
    }

    #[test]
    fn a_term_on_the_same_timeline_leaves_nothing_behind() {
        let (one, two) = (epoch(1, None, 1, None), epoch(2, Some(1), 1, None));
        let ends = ends_of_ancestors(&[one, two.clone()], &two);
        assert_eq!(ends[&EpochId([1; 16])], u64::MAX);
    }
}
