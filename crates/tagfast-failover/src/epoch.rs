//! Epochs: which node mints one, for which leader term, with which ordinal; which connection may
//! write in it.
//!
//! A leader term is one acquisition of Patroni's leader key, named by the key's creation revision.
//! Neither the member's name nor the timeline identifies it: a member can take the free key again
//! without a promotion, and timelines repeat across forks.
//!
//! How it fails: while a fact is missing no epoch is minted and no connection writes; an ordinal
//! beyond the clock skew that is accepted needs an operator.

use tagfast_domain::{EpochId, EpochOrdinal, UnixMillis};

/// An ordinal further ahead of our clock is refused: one broken clock must not use up the ordinals
/// of all others. In milliseconds.
pub const CLOCK_SKEW_MAX_MS: u64 = 86_400_000;

/// Patroni's leader key as read from etcd, linearizably.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderKey {
    /// Identifies the leader term.
    pub create_revision: u64,
    /// The member that holds it.
    pub member: String,
}

/// A line of a timeline's history: an earlier timeline, and the log position at which it was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineSwitch {
    /// The earlier timeline.
    pub timeline: u32,
    /// Where it was left.
    pub at: u64,
}

/// An epoch as etcd keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochRecord {
    /// Its identity.
    pub id: EpochId,
    /// Orders epochs: a later epoch has a larger ordinal.
    pub ordinal: EpochOrdinal,
    /// The leader term: the creation revision of Patroni's leader key.
    pub term: u64,
    /// The primary's member name.
    pub member: String,
    /// The primary's timeline.
    pub timeline: u32,
    /// The log position at which this timeline left its parent; `None` on the first timeline.
    pub fork_lsn: Option<u64>,
    /// The timelines before this one, in their order; `None`: it could not be read, or a program
    /// minted the epoch that did not record it.
    pub timeline_history: Option<Vec<TimelineSwitch>>,
    /// The newest epoch that the primary's own log had when this one was minted. Not the epoch
    /// before, if a server was promoted that had not followed that one. `None`: it had none, or a
    /// program minted the epoch that did not record it.
    pub continues: Option<EpochId>,
    /// The epoch before; `None` for the first.
    pub parent_id: Option<EpochId>,
    /// When it was minted, in Unix ms.
    pub minted_at: UnixMillis,
    /// The node that minted it.
    pub minted_by: String,
}

/// What the leader's own PostgreSQL answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrimaryFacts {
    /// Whether it is in recovery; if so, its promotion is under way.
    pub in_recovery: bool,
    /// The timeline it writes.
    pub timeline: u32,
    /// The timelines before it, in their order; `None`: they cannot be read.
    pub timeline_history: Option<Vec<TimelineSwitch>>,
    /// The newest row of its `epoch` table; `None`: the table is empty.
    pub newest_row: Option<EpochRow>,
}

/// Everything that minting depends on.
#[derive(Debug, Clone)]
pub struct MintFacts<'a> {
    /// The leader key; `None`: no member leads.
    pub leader: Option<&'a LeaderKey>,
    /// The epoch in etcd and its modification revision; `None`: there is none.
    pub current: Option<(&'a EpochRecord, u64)>,
    /// What the member that holds the key answered; `None`: it was not reached.
    pub primary: Option<PrimaryFacts>,
    /// The largest ordinal that this node has seen anywhere.
    pub known: Option<EpochOrdinal>,
    /// The ordinal of the cluster that a shard was moved from: ours must be larger. `None`: no
    /// shard was moved here.
    pub above: Option<EpochOrdinal>,
    /// Our wall clock, in Unix ms.
    pub now: UnixMillis,
    /// Fresh random bits.
    pub new_id: EpochId,
    /// The name of this node of the service.
    pub node: &'a str,
}

/// What etcd compares before it puts a new epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MintCondition {
    /// The leader key must have this creation revision.
    pub leader_create_revision: u64,
    /// The leader key must name this member.
    pub leader_member: String,
    /// The epoch key must have this modification revision; 0: it must not exist.
    pub epoch_mod_revision: u64,
}

/// What to do about the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MintDecision {
    /// The epoch in etcd is of the current leader term.
    Keep,
    /// Put this record if the condition holds; if not, read again.
    Mint(EpochRecord, MintCondition),
    /// Not yet; the text says what is missing.
    Wait(&'static str),
    /// Not without an operator; the text says why.
    Refuse(&'static str),
}

/// Decides about the epoch of a cluster.
pub fn mint(facts: &MintFacts<'_>) -> MintDecision {
    let Some(leader) = facts.leader else { return MintDecision::Wait("no leader key") };
    let high_enough = |ordinal| facts.above.is_none_or(|above| ordinal > above);
    // Epoch(term t) => Epoch(term t), unless a moved shard needs a larger ordinal, or the leader
    // was promoted again within its term: a node that is back before its key has expired takes the
    // key as its own, and its server begins a timeline.
    let is_promoted_again = |current: &EpochRecord| {
        facts.primary.as_ref().is_some_and(|p| !p.in_recovery && p.timeline > current.timeline)
    };
    if let Some((current, _)) = facts.current
        && current.term == leader.create_revision
        && high_enough(current.ordinal)
        && !is_promoted_again(current)
    {
        return MintDecision::Keep;
    }
    let Some(primary) = &facts.primary else {
        return MintDecision::Wait("the leader's PostgreSQL was not reached");
    };
    if primary.in_recovery {
        return MintDecision::Wait("the leader is still being promoted");
    }
    let largest = [
        facts.current.map(|(epoch, _)| epoch.ordinal),
        primary.newest_row.map(|row| row.ordinal),
        facts.known,
        facts.above,
    ]
    .into_iter()
    .flatten()
    .max()
    .map_or(0, |ordinal| ordinal.0.saturating_add(1));
    let now = u64::try_from(facts.now).unwrap_or(0);
    let ordinal = largest.max(now);
    if ordinal > now.saturating_add(CLOCK_SKEW_MAX_MS) {
        return MintDecision::Refuse(
            "the next ordinal lies more than a day ahead of this node's clock",
        );
    }
    // NoEpoch | Epoch(term t) => Epoch(term u), u != t
    let record = EpochRecord {
        id: facts.new_id,
        ordinal: EpochOrdinal(ordinal),
        term: leader.create_revision,
        member: leader.member.clone(),
        timeline: primary.timeline,
        fork_lsn: primary.timeline_history.iter().flatten().last().map(|switch| switch.at),
        timeline_history: primary.timeline_history.clone(),
        continues: primary.newest_row.map(|row| row.id),
        parent_id: facts.current.map(|(epoch, _)| epoch.id),
        minted_at: facts.now,
        minted_by: facts.node.to_owned(),
    };
    let condition = MintCondition {
        leader_create_revision: leader.create_revision,
        leader_member: leader.member.clone(),
        epoch_mod_revision: facts.current.map_or(0, |(_, revision)| revision),
    };
    MintDecision::Mint(record, condition)
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

/// What a connection's server answers about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionFacts {
    /// Whether it is in recovery.
    pub in_recovery: bool,
    /// The timeline it writes.
    pub timeline: u32,
    /// The newest row of its `epoch` table; `None`: the table is empty.
    pub newest_row: Option<EpochRow>,
}

/// Whether a connection may write in an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteEligibility {
    /// It may write.
    Eligible,
    /// It may write once the epoch's row is inserted: the node that minted the epoch died before it
    /// could, or the row was lost with a replaced primary.
    InsertRow,
    /// It must not write; the text says why.
    Ineligible(&'static str),
}

/// Decides whether a connection may write in the epoch that etcd names. etcd is authoritative, the
/// row only confirms it.
pub fn check_eligibility(connection: &ConnectionFacts, epoch: &EpochRecord) -> WriteEligibility {
    if connection.in_recovery {
        return WriteEligibility::Ineligible("the server is in recovery");
    }
    if connection.timeline != epoch.timeline {
        return WriteEligibility::Ineligible("the server writes a different timeline");
    }
    match connection.newest_row {
        Some(row) if row.id == epoch.id && row.timeline == epoch.timeline => {
            WriteEligibility::Eligible
        }
        Some(row) if row.ordinal >= epoch.ordinal => {
            WriteEligibility::Ineligible("the server knows a later epoch")
        }
        _ => WriteEligibility::InsertRow,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    fn leader(create_revision: u64, member: &str) -> LeaderKey {
        LeaderKey { create_revision, member: member.to_owned() }
    }

    pub(crate) fn record(ordinal: u64, term: u64, member: &str, timeline: u32) -> EpochRecord {
        EpochRecord {
            id: EpochId([ordinal as u8; 16]),
            ordinal: EpochOrdinal(ordinal),
            term,
            member: member.to_owned(),
            timeline,
            fork_lsn: None,
            timeline_history: None,
            continues: None,
            parent_id: None,
            minted_at: NOW,
            minted_by: "a".to_owned(),
        }
    }

    fn primary(timeline: u32, newest: Option<u64>) -> PrimaryFacts {
        PrimaryFacts {
            in_recovery: false,
            timeline,
            timeline_history: None,
            newest_row: newest.map(|n| EpochRow {
                id: EpochId([n as u8; 16]),
                ordinal: EpochOrdinal(n),
                timeline,
            }),
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

    fn minted(facts: &MintFacts<'_>) -> (EpochRecord, MintCondition) {
        match mint(facts) {
            MintDecision::Mint(record, condition) => (record, condition),
            other @ (MintDecision::Keep | MintDecision::Wait(_) | MintDecision::Refuse(_)) => {
                panic!("{other:?}")
            }
        }
    }

    #[test]
    fn the_first_epoch_is_minted_only_while_there_is_none() {
        let leader = leader(7, "n0");
        let (record, condition) = minted(&facts(Some(&leader), None, Some(primary(1, None))));
        assert_eq!((record.ordinal.0, record.term, record.parent_id), (NOW as u64, 7, None));
        assert_eq!((condition.leader_create_revision, condition.epoch_mod_revision), (7, 0));
    }

    #[test]
    fn a_term_keeps_its_epoch() {
        let (leader, epoch) = (leader(7, "n0"), record(5, 7, "n0", 1));
        assert_eq!(mint(&facts(Some(&leader), Some((&epoch, 9)), None)), MintDecision::Keep);
    }

    #[test]
    fn an_ordinal_lost_with_its_row_is_not_minted_again() {
        // R1 was promoted, minted and died before its row was replicated: R2's table ends below
        // etcd's ordinal.
        let etcd = record(NOW as u64 + 10, 8, "r1", 2);
        let leader = leader(9, "r2");
        let (next, _) =
            minted(&facts(Some(&leader), Some((&etcd, 3)), Some(primary(2, Some(NOW as u64)))));
        assert!(next.ordinal > etcd.ordinal);
        assert_eq!(next.parent_id, Some(etcd.id));
    }

    #[test]
    fn an_ordinal_that_only_the_table_has_is_not_minted_again() {
        // etcd was restored from a backup.
        let leader = leader(9, "r2");
        let (next, _) =
            minted(&facts(Some(&leader), None, Some(primary(2, Some(NOW as u64 + 77)))));
        assert_eq!(next.ordinal.0, NOW as u64 + 78);
    }

    #[test]
    fn a_key_taken_again_without_a_promotion_is_a_new_term() {
        // Same member, same timeline, same newest row: only the key's creation revision differs.
        let old = record(NOW as u64, 7, "p", 1);
        let again = leader(12, "p");
        let (next, condition) =
            minted(&facts(Some(&again), Some((&old, 3)), Some(primary(1, Some(NOW as u64)))));
        assert_eq!((next.term, next.timeline), (12, 1));
        assert!(next.ordinal > old.ordinal && next.id != old.id);
        assert_eq!(condition.epoch_mod_revision, 3);
    }

    #[test]
    fn a_promotion_within_a_leader_term_begins_an_epoch() {
        // The node was killed, and back before its key had expired: the same term, a later
        // timeline. Without an epoch of its own no connection would be eligible for ever.
        let (leader, old) = (leader(7, "p"), record(NOW as u64, 7, "p", 1));
        let newest = Some(NOW as u64);
        let (next, condition) =
            minted(&facts(Some(&leader), Some((&old, 3)), Some(primary(2, newest))));
        assert_eq!((next.term, next.timeline, next.parent_id), (7, 2, Some(old.id)));
        assert!(next.ordinal > old.ordinal);
        assert_eq!((condition.leader_create_revision, condition.epoch_mod_revision), (7, 3));
        for timeline in [0, 1] {
            let same = facts(Some(&leader), Some((&old, 3)), Some(primary(timeline, newest)));
            assert_eq!(mint(&same), MintDecision::Keep, "an earlier timeline is no promotion");
        }
    }

    #[test]
    fn a_late_node_cannot_mint_for_a_dead_term() {
        // It read the key of R1's term, then slept. The condition names that term, so etcd refuses
        // it now.
        let dead = leader(8, "r1");
        let (_, condition) = minted(&facts(Some(&dead), None, Some(primary(2, None))));
        let in_etcd_now = leader(9, "r2");
        assert_ne!(condition.leader_create_revision, in_etcd_now.create_revision);
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
        let ahead = primary(1, Some(NOW as u64 + CLOCK_SKEW_MAX_MS));
        assert!(matches!(mint(&facts(Some(&leader), None, Some(ahead))), MintDecision::Refuse(_)));
    }

    #[test]
    fn a_moved_shard_needs_a_higher_epoch_although_the_term_is_the_same() {
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
        let eligibility = |connection| check_eligibility(&connection, &epoch);
        let refused =
            |connection| matches!(eligibility(connection), WriteEligibility::Ineligible(_));
        assert_eq!(eligibility(at(false, 3, row(50, 3))), WriteEligibility::Eligible);
        assert_eq!(eligibility(at(false, 3, row(40, 2))), WriteEligibility::InsertRow);
        assert_eq!(eligibility(at(false, 3, None)), WriteEligibility::InsertRow);
        assert!(refused(at(true, 3, row(50, 3))));
        assert!(refused(at(false, 2, row(50, 3))), "the timeline of a replaced primary");
        assert!(refused(at(false, 3, row(60, 3))), "the server has a later epoch");
    }
}
