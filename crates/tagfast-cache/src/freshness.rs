//! Freshness: what an answer must show to a client, and whether an entry has the evidence for it.
//!
//! The cache asks two questions of every entry, and of every view from a replica.
//!
//! **Does it belong to the history?** ([`lineage`]) After a failover a new *epoch* starts, and what
//! the old primary had not replicated is lost. Every epoch in the past has an *epoch end*: the log
//! position (LSN) up to which its writes are part of the current history. An entry whose position
//! lies beyond the end of its epoch may show lost writes.
//!
//! **Is it fresh enough for this client?** ([`FreshnessRequirement`]) The client's token, or its
//! session positions, name what it has written or seen. There are only two kinds of evidence:
//!
//! - The entry is of the same content and its version is not older.
//! - Its snapshot contains every write to the shard that the client knows of: it is of the same
//!   epoch and all transactions up to the client's *floor* had ended when it was read (the floor is
//!   below the snapshot's `xmin`); or the floor lies in an earlier epoch, before that epoch's end.
//!
//! A log position that was read beside the rows is no evidence: a transaction can commit in the log
//! before its rows become visible.
//!
//! Pure functions of facts; nothing here can fail. What is not proven is read from the store.

use tagfast_domain::{EpochId, Version};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::token::TOKEN_PAIRS;
use tagfast_store::{ConsistencyToken, History, Position, View};

use crate::entry::Entry;

/// What an answer must show. With neither field, any state of the content will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct FreshnessRequirement {
    /// This version of the content or a newer one; `None` when the client knows no version.
    pub(crate) version: Option<Version>,
    /// Every write to the shard up to this position; `None` when the client knows of none. Only
    /// used without a version.
    pub(crate) floor: Option<Position>,
}

/// What an entry or a view can prove.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FreshnessEvidence {
    version: Version,
    epoch: EpochId,
    /// All transactions with a smaller id had ended when it was read; 0 when unknown.
    xmin: u64,
}

impl From<&Entry> for FreshnessEvidence {
    fn from(entry: &Entry) -> Self {
        Self { version: entry.version, epoch: entry.position.epoch, xmin: entry.xmin }
    }
}

impl From<&View> for FreshnessEvidence {
    fn from(view: &View) -> Self {
        Self { version: view.version, epoch: view.position.epoch, xmin: view.xmin }
    }
}

/// How an entry relates to the current history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lineage {
    /// Everything it shows is part of the history.
    Current,
    /// It may show writes that a failover lost.
    Diverged,
    /// This process does not know its epoch (yet).
    UnknownEpoch,
}

impl FreshnessRequirement {
    /// What the client with this token must see of a content.
    pub(crate) fn from_token(token: &ConsistencyToken, content: ContentHash) -> Self {
        let version = token.version_of(content);
        // Only a full token may have dropped the content's version; then the shard's floor stands
        // for it. In any other token a missing version means that the client never saw the content.
        let may_be_dropped = version.is_none() && token.pairs.len() >= TOKEN_PAIRS;
        let floor = token.floors.get(&LogicalShard::of_hash(content)).copied();
        Self { version, floor: floor.filter(|_| may_be_dropped) }
    }

    /// Whether any state of the content will do.
    pub(crate) fn is_unconstrained(&self) -> bool {
        self.version.is_none() && self.floor.is_none()
    }

    /// Whether this evidence, of an entry or view that belongs to the history, meets the
    /// requirement.
    pub(crate) fn is_met(
        &self,
        evidence: FreshnessEvidence,
        shard: LogicalShard,
        history: &dyn History,
    ) -> bool {
        if let Some(version) = self.version {
            return evidence.version >= version;
        }
        let Some(floor) = self.floor else { return true };
        if floor.epoch == evidence.epoch {
            return floor.xid < evidence.xmin;
        }
        // Transaction ids of different epochs cannot be compared. But every snapshot of the current
        // epoch contains all that an earlier epoch wrote before its end.
        history.current(shard) == Some(evidence.epoch)
            && history.epoch_end(shard, floor.epoch).is_some_and(|epoch_end| floor.lsn <= epoch_end)
    }
}

/// Whether an entry or view with this position belongs to the history.
pub(crate) fn lineage(position: &Position, shard: LogicalShard, history: &dyn History) -> Lineage {
    match history.epoch_end(shard, position.epoch) {
        None => Lineage::UnknownEpoch,
        Some(epoch_end) if position.lsn <= epoch_end => Lineage::Current,
        Some(_) => Lineage::Diverged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Epoch 2 is current, epoch 1 ended at LSN 100, epoch 0 is no ancestor of either.
    struct TwoEpochs;

    impl History for TwoEpochs {
        fn current(&self, _: LogicalShard) -> Option<EpochId> {
            Some(EpochId([2; 16]))
        }

        fn epoch_end(&self, _: LogicalShard, epoch: EpochId) -> Option<u64> {
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

    fn met(requirement: FreshnessRequirement, entry: &Entry) -> bool {
        requirement.is_met(entry.into(), LogicalShard::from_number(0).unwrap(), &TwoEpochs)
    }

    #[test]
    fn the_version_alone_proves_freshness_of_the_same_content() {
        let requirement = |v| FreshnessRequirement {
            version: Some(Version::from_packed(v).unwrap()),
            floor: Some(at(2, u64::MAX, 0)),
        };
        let entry = entry(at(1, 0, 5), 7, 0);
        assert!(
            met(requirement(7), &entry)
                && met(requirement(6), &entry)
                && !met(requirement(8), &entry)
        );
    }

    #[test]
    fn transactions_of_one_epoch_prove_freshness_of_another_content() {
        let requirement = |position| FreshnessRequirement { version: None, floor: Some(position) };
        assert!(
            met(requirement(at(2, 9, 500)), &entry(at(2, 20, 400), 1, 10)),
            "the log position is no evidence"
        );
        assert!(
            !met(requirement(at(2, 10, 5)), &entry(at(2, 20, 400), 1, 10)),
            "the transaction may not have ended"
        );
        assert!(
            met(requirement(at(1, 999, 100)), &entry(at(2, 1, 1), 1, 1)),
            "before the epoch end"
        );
        assert!(
            !met(requirement(at(1, 999, 101)), &entry(at(2, 1, 1), 1, 1)),
            "beyond the epoch end"
        );
        assert!(
            !met(requirement(at(2, 0, 0)), &entry(at(1, 1, 1), 1, 900)),
            "an entry of an older epoch"
        );
        assert!(!met(requirement(at(9, 0, 0)), &entry(at(2, 1, 1), 1, 900)), "an unknown epoch");
        assert!(met(FreshnessRequirement::default(), &entry(at(1, 1, 1), 1, 0)));
    }

    #[test]
    fn only_a_full_token_requires_a_floor() {
        let mut token = ConsistencyToken::default();
        // Contents of the same shard.
        let hash = |n: u64| ContentHash(n * 64);
        for n in 0..15 {
            token.observe(hash(n), Version::from_packed(n + 1).unwrap(), at(2, n, n));
        }
        assert!(FreshnessRequirement::from_token(&token, hash(99)).is_unconstrained());
        assert_eq!(
            FreshnessRequirement::from_token(&token, hash(3)).version,
            Some(Version::from_packed(4).unwrap())
        );
        token.observe(hash(15), Version::from_packed(1).unwrap(), at(2, 15, 15));
        assert_eq!(
            FreshnessRequirement::from_token(&token, hash(99)),
            FreshnessRequirement { version: None, floor: Some(at(2, 15, 15)) }
        );
    }

    #[test]
    fn diverged_entries_and_unknown_epochs_are_distinguished() {
        let shard = LogicalShard::from_number(0).unwrap();
        assert_eq!(lineage(&at(2, 0, u64::MAX), shard, &TwoEpochs), Lineage::Current);
        assert_eq!(lineage(&at(1, 0, 100), shard, &TwoEpochs), Lineage::Current);
        assert_eq!(lineage(&at(1, 0, 101), shard, &TwoEpochs), Lineage::Diverged);
        assert_eq!(lineage(&at(0, 0, 1), shard, &TwoEpochs), Lineage::Diverged);
        assert_eq!(lineage(&at(7, 0, 0), shard, &TwoEpochs), Lineage::UnknownEpoch);
    }
}
