//! Epochs: who mints one, for which reign, with which ordinal; which connection writes in it.
//!
//! A reign is one acquisition of Patroni's leader key, named by the key's creation revision.
//! Neither the node's name nor the timeline names it: a node can take the free key again without a
//! promotion, and timelines repeat across forks.

use tagfast_domain::{EpochId, EpochOrdinal, UnixMillis};

/// An ordinal this far ahead of our clock is refused: one broken clock must not use up the ordinals
/// of all others.
pub const MOST_AHEAD_MS: u64 = 86_400_000;

/// Patroni's leader key as read from etcd, linearizably.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderKey {
    /// Names the reign.
    pub create_revision: u64,
    /// The member that holds it.
    pub member: String,
}

/// An epoch as etcd keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochRecord {
    /// Its identity.
    pub id: EpochId,
    /// Its place among the others.
    pub ordinal: EpochOrdinal,
    /// The creation revision of the leader key it belongs to.
    pub reign: u64,
    /// The primary's member name.
    pub member: String,
    /// The primary's timeline.
    pub timeline: u32,
    /// Where this timeline left its parent; none on the first.
    pub fork_lsn: Option<u64>,
    /// The epoch before.
    pub parent_id: Option<EpochId>,
    /// When it was minted.
    pub minted_at: UnixMillis,
    /// The node that minted it.
    pub minted_by: String,
}

/// What the leader's own PostgreSQL says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrimaryFacts {
    /// Whether it is in recovery: then the promotion is under way.
    pub in_recovery: bool,
    /// The timeline it writes.
    pub timeline: u32,
    /// The last line of the timeline's history.
    pub fork_lsn: Option<u64>,
    /// The largest ordinal in its `epoch` table.
    pub newest_row: Option<EpochOrdinal>,
}

/// Everything that minting looks at.
#[derive(Debug, Clone)]
pub struct MintFacts<'a> {
    /// The leader key; none: nobody reigns.
    pub leader: Option<&'a LeaderKey>,
    /// The epoch in etcd and its modification revision.
    pub current: Option<(&'a EpochRecord, u64)>,
    /// What the member that holds the key answered; none: it was not reached.
    pub primary: Option<PrimaryFacts>,
    /// The largest ordinal this node has seen anywhere.
    pub known: Option<EpochOrdinal>,
    /// A shard came from a cluster with this ordinal: ours must lie above it.
    pub above: Option<EpochOrdinal>,
    /// Our wall clock.
    pub now: UnixMillis,
    /// Fresh random bits.
    pub new_id: EpochId,
    /// Our name.
    pub node: &'a str,
}

/// What etcd compares before it puts a new epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The leader key must be of this creation.
    pub leader_create_revision: u64,
    /// And name this member.
    pub leader_member: String,
    /// The epoch key must have this modification revision; 0: must not exist.
    pub epoch_mod_revision: u64,
}

/// What to do about the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MintDecision {
    /// The epoch in etcd is the leader's.
    Keep,
    /// Put this record if the comparison holds; if not, read again.
    Mint(EpochRecord, Compare),
    /// Not yet: the word says what is missing.
    Wait(&'static str),
    /// Never by itself: an operator must look.
    Refuse(&'static str),
}

/// Decides about the epoch of a cluster.
pub fn mint(facts: &MintFacts<'_>) -> MintDecision {
    let Some(leader) = facts.leader else { return MintDecision::Wait("no leader key") };
    let high_enough = |ordinal| facts.above.is_none_or(|above| ordinal > above);
    if let Some((current, _)) = facts.current
        && current.reign == leader.create_revision
        && high_enough(current.ordinal)
    {
        return MintDecision::Keep;
    }
    let Some(primary) = facts.primary else {
        return MintDecision::Wait("the leader's PostgreSQL was not reached");
    };
    if primary.in_recovery {
        return MintDecision::Wait("the leader is still being promoted");
    }
    let largest = [
        facts.current.map(|(epoch, _)| epoch.ordinal),
        primary.newest_row,
        facts.known,
        facts.above,
    ]
    .into_iter()
    .flatten()
    .max()
    .map_or(0, |ordinal| ordinal.0.saturating_add(1));
    let now = u64::try_from(facts.now).unwrap_or(0);
    let ordinal = largest.max(now);
    if ordinal > now.saturating_add(MOST_AHEAD_MS) {
        return MintDecision::Refuse(
            "the next ordinal lies more than a day ahead of this node's clock",
        );
    }
    let record = EpochRecord {
        id: facts.new_id,
        ordinal: EpochOrdinal(ordinal),
        reign: leader.create_revision,
        member: leader.member.clone(),
        timeline: primary.timeline,
        fork_lsn: primary.fork_lsn,
        parent_id: facts.current.map(|(epoch, _)| epoch.id),
        minted_at: facts.now,
        minted_by: facts.node.to_owned(),
    };
    let compare = Compare {
        leader_create_revision: leader.create_revision,
        leader_member: leader.member.clone(),
        epoch_mod_revision: facts.current.map_or(0, |(_, revision)| revision),
    };
    MintDecision::Mint(record, compare)
}

/// The newest row of a server's `epoch` table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochRow {
    /// The epoch.
    pub id: EpochId,
    /// Its ordinal.
    pub ordinal: EpochOrdinal,
    /// Its timeline.
    pub timeline: u32,
}

/// What a connection says about its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionFacts {
    /// Whether it is in recovery.
    pub in_recovery: bool,
    /// The timeline it writes.
    pub timeline: u32,
    /// The newest row.
    pub newest_row: Option<EpochRow>,
}

/// Whether a connection may write in an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usable {
    /// Yes.
    Yes,
    /// After the row is put: whoever minted died before it came to that, or the row was lost with a
    /// zombie.
    InsertRow,
    /// No; the word says why.
    No(&'static str),
}

/// Decides whether a connection may write in the epoch that etcd names: the row is a witness, etcd
/// the judge.
pub fn usable(connection: &ConnectionFacts, epoch: &EpochRecord) -> Usable {
    if connection.in_recovery {
        return Usable::No("the server is in recovery");
    }
    if connection.timeline != epoch.timeline {
        return Usable::No("the server writes another timeline");
    }
    match connection.newest_row {
        Some(row) if row.id == epoch.id && row.timeline == epoch.timeline => Usable::Yes,
        Some(row) if row.ordinal >= epoch.ordinal => Usable::No("the server knows a later epoch"),
        _ => Usable::InsertRow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    fn leader(create_revision: u64, member: &str) -> LeaderKey {
        LeaderKey { create_revision, member: member.to_owned() }
    }

    fn record(ordinal: u64, reign: u64, member: &str, timeline: u32) -> EpochRecord {
        EpochRecord {
            id: EpochId([ordinal as u8; 16]),
            ordinal: EpochOrdinal(ordinal),
            reign,
            member: member.to_owned(),
            timeline,
            fork_lsn: None,
            parent_id: None,
            minted_at: NOW,
            minted_by: "a".to_owned(),
        }
    }

    fn primary(timeline: u32, newest: Option<u64>) -> PrimaryFacts {
        PrimaryFacts {
            in_recovery: false,
            timeline,
            fork_lsn: None,
            newest_row: newest.map(EpochOrdinal),
        }
    }

    fn facts<'a>(
        leader: Option<&'a LeaderKey>,
        current: Option<(&'a EpochRecord, u64)>,
        primary: Option<PrimaryFacts>,
    ) -> MintFacts<'a> {
        MintFacts {
            leader,
            current,
            primary,
            known: None,
            above: None,
            now: NOW,
            new_id: EpochId([0xAB; 16]),
            node: "a",
        }
    }

    fn minted(facts: &MintFacts<'_>) -> (EpochRecord, Compare) {
        match mint(facts) {
            MintDecision::Mint(record, compare) => (record, compare),
            other @ (MintDecision::Keep | MintDecision::Wait(_) | MintDecision::Refuse(_)) => {
                panic!("{other:?}")
            }
        }
    }

    #[test]
    fn the_first_epoch_compares_that_there_is_none() {
        let leader = leader(7, "n0");
        let (record, compare) = minted(&facts(Some(&leader), None, Some(primary(1, None))));
        assert_eq!((record.ordinal.0, record.reign, record.parent_id), (NOW as u64, 7, None));
        assert_eq!((compare.leader_create_revision, compare.epoch_mod_revision), (7, 0));
    }

    #[test]
    fn a_reign_keeps_its_epoch() {
        let (leader, epoch) = (leader(7, "n0"), record(5, 7, "n0", 1));
        assert_eq!(mint(&facts(Some(&leader), Some((&epoch, 9)), None)), MintDecision::Keep);
    }

    #[test]
    fn x5_an_ordinal_lost_with_its_row_is_not_given_again() {
        // R1 was promoted, minted and died before its row was shipped: R2's table ends below etcd's
        // ordinal.
        let etcd = record(NOW as u64 + 10, 8, "r1", 2);
        let leader = leader(9, "r2");
        let (next, _) =
            minted(&facts(Some(&leader), Some((&etcd, 3)), Some(primary(2, Some(NOW as u64)))));
        assert!(next.ordinal > etcd.ordinal);
        assert_eq!(next.parent_id, Some(etcd.id));
    }

    #[test]
    fn x5_an_ordinal_that_only_the_table_knows_is_not_given_again() {
        // etcd was restored from a copy.
        let leader = leader(9, "r2");
        let (next, _) =
            minted(&facts(Some(&leader), None, Some(primary(2, Some(NOW as u64 + 77)))));
        assert_eq!(next.ordinal.0, NOW as u64 + 78);
    }

    #[test]
    fn x7_a_key_taken_again_without_a_promotion_is_a_new_reign() {
        // Same member, same timeline, same newest row: only the key's creation differs.
        let old = record(NOW as u64, 7, "p", 1);
        let again = leader(12, "p");
        let (next, compare) =
            minted(&facts(Some(&again), Some((&old, 3)), Some(primary(1, Some(NOW as u64)))));
        assert_eq!((next.reign, next.timeline), (12, 1));
        assert!(next.ordinal > old.ordinal && next.id != old.id);
        assert_eq!(compare.epoch_mod_revision, 3);
    }

    #[test]
    fn x8_a_late_node_cannot_mint_for_a_dead_reign() {
        // It read the key of R1's reign, then slept. The comparison names that reign, so etcd
        // refuses it now.
        let dead = leader(8, "r1");
        let (_, compare) = minted(&facts(Some(&dead), None, Some(primary(2, None))));
        let in_etcd_now = leader(9, "r2");
        assert_ne!(compare.leader_create_revision, in_etcd_now.create_revision);
    }

    #[test]
    fn a_promotion_under_way_is_waited_for() {
        let leader = leader(7, "n0");
        let promoting = PrimaryFacts { in_recovery: true, ..primary(1, None) };
        assert!(matches!(
            mint(&facts(Some(&leader), None, Some(promoting))),
            MintDecision::Wait(_)
        ));
        assert!(matches!(mint(&facts(Some(&leader), None, None)), MintDecision::Wait(_)));
        assert!(matches!(mint(&facts(None, None, Some(primary(1, None)))), MintDecision::Wait(_)));
    }

    #[test]
    fn a_clock_far_behind_mints_nothing() {
        let leader = leader(7, "n0");
        let ahead = primary(1, Some(NOW as u64 + MOST_AHEAD_MS));
        assert!(matches!(mint(&facts(Some(&leader), None, Some(ahead))), MintDecision::Refuse(_)));
    }

    #[test]
    fn a_moved_shard_needs_a_higher_epoch_although_the_reign_is_the_same() {
        let (leader, epoch) = (leader(7, "n0"), record(5, 7, "n0", 1));
        let moved = MintFacts {
            above: Some(EpochOrdinal(NOW as u64 + 100)),
            ..facts(Some(&leader), Some((&epoch, 9)), Some(primary(1, Some(5))))
        };
        let (next, _) = minted(&moved);
        assert_eq!(next.ordinal.0, NOW as u64 + 101);
    }

    #[test]
    fn a_connection_writes_only_where_row_and_timeline_agree_with_etcd() {
        let epoch = record(50, 7, "n0", 3);
        let row = |ordinal: u64, timeline| {
            Some(EpochRow {
                id: EpochId([ordinal as u8; 16]),
                ordinal: EpochOrdinal(ordinal),
                timeline,
            })
        };
        let at = |in_recovery, timeline, newest_row| ConnectionFacts {
            in_recovery,
            timeline,
            newest_row,
        };
        assert_eq!(usable(&at(false, 3, row(50, 3)), &epoch), Usable::Yes);
        assert_eq!(usable(&at(false, 3, row(40, 2)), &epoch), Usable::InsertRow);
        assert_eq!(usable(&at(false, 3, None), &epoch), Usable::InsertRow);
        assert!(matches!(usable(&at(true, 3, row(50, 3)), &epoch), Usable::No(_)));
        assert!(
            matches!(usable(&at(false, 2, row(50, 3)), &epoch), Usable::No(_)),
            "a zombie's timeline"
        );
        assert!(matches!(usable(&at(false, 3, row(60, 3)), &epoch), Usable::No(_)), "we are late");
    }
}
