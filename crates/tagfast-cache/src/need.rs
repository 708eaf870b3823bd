//! What an answer must show, and whether an entry does.
//!
//! An entry proves that it shows a write in one of two ways only: it is of the same content and its
//! version is not older; or it is of the same epoch and every transaction up to the write's had
//! ended when it was read. A log position read beside the rows proves nothing.

use tagfast_domain::{EpochId, Version};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::token::TOKEN_PAIRS;
use tagfast_store::{ConsistencyToken, History, Position, View};

use crate::entry::Entry;

/// What an answer must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Need {
    /// This version of the content itself.
    pub(crate) version: Option<Version>,
    /// What had been written to the shard up to here.
    pub(crate) floor: Option<Position>,
}

/// What an entry or a view proves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Proof {
    version: Version,
    epoch: EpochId,
    xmin: u64,
}

impl From<&Entry> for Proof {
    fn from(entry: &Entry) -> Self {
        Self { version: entry.version, epoch: entry.position.epoch, xmin: entry.xmin }
    }
}

impl From<&View> for Proof {
    fn from(view: &View) -> Self {
        Self { version: view.version, epoch: view.position.epoch, xmin: view.xmin }
    }
}

/// Whether an entry is part of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// All of it is.
    Valid,
    /// It may show what was lost with a primary.
    Phantom,
    /// This process has not heard of its epoch.
    Unknown,
}

impl Need {
    /// What a client with this token must be shown.
    pub(crate) fn of_token(token: &ConsistencyToken, hash: ContentHash) -> Self {
        let version = token.version_of(hash);
        // With fewer pairs none was pushed out: what the client saw of this content would be among
        // them.
        let pushed_out = version.is_none() && token.pairs.len() >= TOKEN_PAIRS;
        let floor =
            pushed_out.then(|| token.floors.get(&LogicalShard::of_hash(hash)).copied()).flatten();
        Self { version, floor }
    }

    /// Whether anything must be shown.
    pub(crate) fn is_none(&self) -> bool {
        self.version.is_none() && self.floor.is_none()
    }

    /// Whether what is part of the history and proves this shows it.
    pub(crate) fn is_met(&self, proof: Proof, shard: LogicalShard, history: &dyn History) -> bool {
        if let Some(version) = self.version {
            return proof.version >= version;
        }
        let Some(floor) = self.floor else { return true };
        if floor.epoch == proof.epoch {
            return floor.xid < proof.xmin;
        }
        // Ids of transactions begin anew with an epoch. What lies below the fence is in everything
        // of the current one.
        history.current(shard) == Some(proof.epoch)
            && history.fence(shard, floor.epoch).is_some_and(|fence| floor.lsn <= fence)
    }
}

/// Whether an entry, or what was just read, is part of the history.
pub(crate) fn standing(
    position: &Position,
    shard: LogicalShard,
    history: &dyn History,
) -> Standing {
    match history.fence(shard, position.epoch) {
        None => Standing::Unknown,
        Some(fence) if position.lsn <= fence => Standing::Valid,
        Some(_) => Standing::Phantom,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Epoch 2 is current; of epoch 1 everything up to 100 is part of it; epoch 0 is no ancestor.
    struct Two;

    impl History for Two {
        fn current(&self, _: LogicalShard) -> Option<EpochId> {
            Some(EpochId([2; 16]))
        }

        fn fence(&self, _: LogicalShard, epoch: EpochId) -> Option<u64> {
            match epoch.0[0] {
                2 => Some(u64::MAX),
                1 => Some(100),
                0 => Some(0),
                _ => None,
            }
        }
    }

    fn at(epoch: u8, xid: u64, lsn: u64) -> Position {
        Position { epoch: EpochId([epoch; 16]), xid, lsn }
    }

    fn entry(position: Position, version: u64, xmin: u64) -> Entry {
        let version = Version::from_packed(version).unwrap();
        Entry { version, tags: Vec::new(), position, xmin, as_of: 0, read_at: 0, soft_until: 0 }
    }

    fn met(need: Need, entry: &Entry) -> bool {
        need.is_met(entry.into(), LogicalShard::from_number(0).unwrap(), &Two)
    }

    #[test]
    fn the_same_content_is_proven_by_its_version_alone() {
        let need = |v| Need {
            version: Some(Version::from_packed(v).unwrap()),
            floor: Some(at(2, u64::MAX, 0)),
        };
        let entry = entry(at(1, 0, 5), 7, 0);
        assert!(met(need(7), &entry) && met(need(6), &entry) && !met(need(8), &entry));
    }

    #[test]
    fn another_content_is_proven_by_transactions_of_one_epoch() {
        let need = |position| Need { version: None, floor: Some(position) };
        assert!(
            met(need(at(2, 9, 500)), &entry(at(2, 20, 400), 1, 10)),
            "the log position says nothing"
        );
        assert!(
            !met(need(at(2, 10, 5)), &entry(at(2, 20, 400), 1, 10)),
            "it may have been under way"
        );
        assert!(met(need(at(1, 999, 100)), &entry(at(2, 1, 1), 1, 1)), "below the fence");
        assert!(!met(need(at(1, 999, 101)), &entry(at(2, 1, 1), 1, 1)), "past the fence");
        assert!(!met(need(at(2, 0, 0)), &entry(at(1, 1, 1), 1, 900)), "an entry of an older epoch");
        assert!(!met(need(at(9, 0, 0)), &entry(at(2, 1, 1), 1, 900)), "an epoch nobody knows");
        assert!(met(Need::default(), &entry(at(1, 1, 1), 1, 0)));
    }

    #[test]
    fn a_token_needs_a_floor_only_when_it_is_full() {
        let mut token = ConsistencyToken::default();
        // Contents of one shard.
        let hash = |n: u64| ContentHash(n * 64);
        for n in 0..15 {
            token.see(hash(n), Version::from_packed(n + 1).unwrap(), at(2, n, n));
        }
        assert!(Need::of_token(&token, hash(99)).is_none());
        assert_eq!(Need::of_token(&token, hash(3)).version, Some(Version::from_packed(4).unwrap()));
        token.see(hash(15), Version::from_packed(1).unwrap(), at(2, 15, 15));
        assert_eq!(
            Need::of_token(&token, hash(99)),
            Need { version: None, floor: Some(at(2, 15, 15)) }
        );
    }

    #[test]
    fn phantoms_and_unknown_epochs_are_told_apart() {
        let shard = LogicalShard::from_number(0).unwrap();
        assert_eq!(standing(&at(2, 0, u64::MAX), shard, &Two), Standing::Valid);
        assert_eq!(standing(&at(1, 0, 100), shard, &Two), Standing::Valid);
        assert_eq!(standing(&at(1, 0, 101), shard, &Two), Standing::Phantom);
        assert_eq!(standing(&at(0, 0, 1), shard, &Two), Standing::Phantom);
        assert_eq!(standing(&at(7, 0, 0), shard, &Two), Standing::Unknown);
    }
}
