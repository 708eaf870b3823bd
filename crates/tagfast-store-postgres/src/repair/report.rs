//! The report of a failover, made of what etcd has about it. No I/O.
//!
//! How it fails: it does not; what no process saw is `None`.

use tagfast_failover::EpochRecord;
use tagfast_store::failovers::{
    FailoverReport, FailoverTimes, IncompleteLog, NodeRepair, VerdictCounts,
};

use super::verdict_rows::add_counts;
use crate::cluster::etcd::parse_id;
use crate::cluster::etcd::repair_keys::{StoredClosing, StoredRepair};

pub(super) fn node_of((node, stored): (String, StoredRepair)) -> NodeRepair {
    let StoredRepair { counts, began_at, ended_at, incomplete, times } = stored;
    let incomplete = incomplete.into_iter().filter_map(|range| {
        let epoch = parse_id(&range.epoch)?;
        Some(IncompleteLog { epoch, from: range.from, to: range.to, writes: range.writes })
    });
    NodeRepair {
        node,
        counts: VerdictCounts {
            kept: counts.kept,
            repaired: counts.repaired,
            lost: counts.lost,
            unknown: counts.unknown,
        },
        began_at,
        ended_at,
        incomplete: incomplete.collect(),
        times: FailoverTimes {
            suspected_at: times.suspected_at,
            held_at: times.held_at,
            promoted_at: times.promoted_at,
            first_acknowledged_at: times.first_acknowledged_at,
            ..FailoverTimes::default()
        },
    }
}

/// The report of the failover that began an epoch. `previous`: the epoch before it.
pub(super) fn report_of(
    cluster: &str,
    epoch: &EpochRecord,
    previous: Option<&EpochRecord>,
    nodes: Vec<NodeRepair>,
    closing: Option<StoredClosing>,
    missing_now: Vec<String>,
) -> FailoverReport {
    let earliest = |of: fn(&FailoverTimes) -> Option<i64>| {
        nodes.iter().filter_map(|node| of(&node.times)).min()
    };
    let times = FailoverTimes {
        suspected_at: earliest(|times| times.suspected_at),
        held_at: earliest(|times| times.held_at),
        promoted_at: earliest(|times| times.promoted_at),
        minted_at: epoch.minted_at,
        first_acknowledged_at: earliest(|times| times.first_acknowledged_at),
        repair_closed_at: closing.as_ref().map(|closing| closing.closed_at),
    };
    let mut counts = VerdictCounts::default();
    nodes.iter().for_each(|node| add_counts(&mut counts, &node.counts));
    let is_closed = closing.is_some();
    let superseded_by = closing.as_ref().and_then(|closing| closing.superseded_by.as_deref());
    let superseded_by = superseded_by.and_then(parse_id);
    FailoverReport {
        cluster: cluster.to_owned(),
        epoch: epoch.id,
        ordinal: epoch.ordinal,
        previous: epoch.parent_id,
        primary: epoch.member.clone(),
        previous_primary: previous.map(|previous| previous.member.clone()),
        term: epoch.term,
        timeline: epoch.timeline,
        fork_lsn: epoch.fork_lsn,
        times,
        counts,
        // One that reported after the closing is not missing any more.
        missing_nodes: closing
            .map_or(missing_now, |closing| closing.missing)
            .into_iter()
            .filter(|name| !nodes.iter().any(|node| node.node == *name))
            .collect(),
        nodes,
        is_closed,
        superseded_by,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::epoch_ends::tests::epoch;

    fn node(name: &str, repaired: u64, held_at: Option<i64>) -> NodeRepair {
        NodeRepair {
            node: name.to_owned(),
            counts: VerdictCounts { repaired, ..VerdictCounts::default() },
            began_at: 1,
            ended_at: Some(2),
            incomplete: Vec::new(),
            times: FailoverTimes { held_at, ..FailoverTimes::default() },
        }
    }

    #[test]
    fn a_report_sums_its_processes_and_names_those_that_are_missing() {
        let (one, two) = (epoch(1, None, 1, None), epoch(2, Some(1), 2, Some(500)));
        let nodes = || vec![node("a", 2, Some(20)), node("b", 3, Some(10))];
        let open = report_of("c0", &two, Some(&one), nodes(), None, vec!["a".into(), "x".into()]);
        assert_eq!((open.counts.repaired, open.times.held_at), (5, Some(10)));
        assert_eq!((open.is_closed, open.missing_nodes), (false, vec!["x".to_owned()]));
        let mut closing = StoredClosing {
            closed_at: 7,
            missing: vec!["b".into(), "y".into()],
            superseded_by: None,
        };
        let of = |closing: &StoredClosing| {
            report_of("c0", &two, Some(&one), nodes(), Some(closing.clone()), Vec::new())
        };
        let closed = of(&closing);
        // `b` reported late.
        assert_eq!((closed.is_closed, closed.missing_nodes), (true, vec!["y".to_owned()]));
        assert_eq!((closed.times.repair_closed_at, closed.superseded_by), (Some(7), None));
        let three = epoch(3, Some(2), 3, Some(600)).id;
        closing.superseded_by = Some(three.to_string());
        assert_eq!((of(&closing).is_closed, of(&closing).superseded_by), (true, Some(three)));
    }
}
