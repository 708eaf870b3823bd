//! Where a partition begins: the one decision that every start, rebuild and hand-over of a
//! partition goes through. Facts in, decision out.
//!
//! A position is used only if the partition is proven to be the one in which it was reached. A
//! position without a proof would skip, in silence, what was published before it: a topic that was
//! made again has the same offsets as the old one as soon as it is long enough.

use std::collections::BTreeMap;

use crate::bus::{BusPosition, Continuity, Partition, PartitionFacts, Positions};

/// The sink has nothing of the partition.
pub(super) const NO_STATE: &str = "the sink has no state of some partitions";
/// Retention, or an operator, deleted records that were not read.
pub(super) const FELL_BEHIND: &str = "the group fell behind what the bus retained";
/// The partition is a different one.
pub(super) const REPLACED: &str =
    "a partition is not the one that was read: its topic was made again, or its log was cut";
/// Nothing proves that the partition is the same.
pub(super) const UNPROVEN: &str =
    "nothing on the bus proves that a partition is the one that was read";
/// The committed offsets are gone: Kafka deletes them with their topic.
pub(super) const NO_COMMIT: &str = "the group has no committed offset of some partitions";

/// Who knows how far the sink has applied a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Claim {
    /// The sink; `None` if it has no usable state of the partition.
    Sink(Option<BusPosition>),
    /// The group's commit.
    Committed,
    /// A rebuild that has just ended: the copy has everything below this position.
    Rebuilt(BusPosition),
}

impl Claim {
    /// The claimed position; `None` if only the group knows it, or it is unknown.
    pub(super) fn position(&self) -> Option<&BusPosition> {
        match self {
            Self::Sink(position) => position.as_ref(),
            Self::Rebuilt(position) => Some(position),
            Self::Committed => None,
        }
    }
}

/// How a partition begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Reading goes on here.
    From(BusPosition),
    /// What the sink has of the partition is copied from the shards first. The text says why.
    Rebuild(&'static str),
    /// The bus does not say what the partition holds.
    Wait,
}

/// Decides where a partition begins. `facts` are those of the claimed position; `None` if the bus
/// knows nothing of the partition.
pub(super) fn decide(claim: &Claim, facts: Option<&PartitionFacts>) -> Decision {
    let position = match claim {
        Claim::Sink(None) => return Decision::Rebuild(NO_STATE),
        Claim::Sink(Some(position)) | Claim::Rebuilt(position) => position,
        Claim::Committed => match facts.map(|facts| &facts.committed) {
            None => return Decision::Wait,
            Some(None) => return Decision::Rebuild(NO_COMMIT),
            Some(Some(position)) => position,
        },
    };
    let Some(facts) = facts else { return Decision::Wait };
    if position.next < facts.first {
        return Decision::Rebuild(FELL_BEHIND);
    }
    if position.next > facts.end {
        return Decision::Rebuild(REPLACED);
    }
    match (facts.continuity, claim) {
        (Continuity::Proven, _) => Decision::From(behind_anchor(position)),
        (Continuity::Broken, _) => Decision::Rebuild(REPLACED),
        // The sink has applied nothing: nothing before the position can be missing in it.
        (Continuity::Unknown, Claim::Sink(_)) if position.next == 0 => {
            Decision::From(position.clone())
        }
        // The partition was empty at the end of the copy: there is no record to know it by.
        (Continuity::Unknown, Claim::Rebuilt(_)) => Decision::From(position.clone()),
        (Continuity::Unknown, Claim::Sink(_) | Claim::Committed) => Decision::Rebuild(UNPROVEN),
    }
}

/// The position from which everything is read that the anchor does not prove: what lies between the
/// anchor and the position may have been cut off and written again. Reading it again is harmless.
fn behind_anchor(position: &BusPosition) -> BusPosition {
    let next = position.anchor.map_or(position.next, |at| position.next.min(at.offset + 1));
    BusPosition { next, ..position.clone() }
}

/// How several partitions begin.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Plan {
    /// Where reading goes on without a rebuild.
    pub(super) from: Positions,
    /// The partitions to rebuild, and why the first of them.
    pub(super) rebuild: Vec<Partition>,
    pub(super) reason: Option<&'static str>,
    /// The partitions of which the bus says nothing.
    pub(super) waiting: Vec<Partition>,
}

impl Plan {
    /// The decisions for these partitions.
    pub(super) fn of(
        claims: &BTreeMap<Partition, Claim>,
        facts: &BTreeMap<Partition, PartitionFacts>,
    ) -> Self {
        let mut plan = Self::default();
        for (partition, claim) in claims {
            match decide(claim, facts.get(partition)) {
                Decision::From(position) => drop(plan.from.insert(*partition, position)),
                Decision::Rebuild(reason) => {
                    plan.rebuild.push(*partition);
                    plan.reason.get_or_insert(reason);
                }
                Decision::Wait => plan.waiting.push(*partition),
            }
        }
        plan
    }
}

#[cfg(test)]
#[path = "begin/tests.rs"]
mod tests;
