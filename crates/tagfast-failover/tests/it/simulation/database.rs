//! Database nodes: logs of whole states, replication record by record, promotion of any prefix.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tagfast_domain::{Document, EpochId, EpochOrdinal, RecentWrite, WriteId};
use tagfast_failover::{ConnectionFacts, EpochRow, PrimaryFacts, RecordedVerdict};

use super::step::Db;

/// Log positions that a record takes.
pub(super) const RECORD_BYTES: u64 = 10;

/// The whole database after a transaction.
#[derive(Debug, Clone, Default)]
pub(super) struct Database {
    pub(super) document: Document,
    pub(super) newest_row: Option<EpochRow>,
    pub(super) verdicts: BTreeMap<WriteId, RecordedVerdict>,
    pub(super) applied: BTreeMap<WriteId, RecentWrite>,
    /// Epochs whose repair is closed.
    pub(super) closed: BTreeSet<EpochOrdinal>,
}

/// A committed transaction.
#[derive(Debug, Clone)]
pub(super) struct Record {
    /// Unique over all logs.
    pub(super) serial: u64,
    /// The client's write that it applied.
    pub(super) client: Option<usize>,
    pub(super) after: Rc<Database>,
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) log: Vec<Record>,
    pub(super) is_up: bool,
    pub(super) is_primary: bool,
    pub(super) timeline: u32,
    /// The node that it streams from.
    pub(super) follows: Option<Db>,
}

impl Node {
    pub(super) fn database(&self) -> Rc<Database> {
        self.log.last().map(|record| Rc::clone(&record.after)).unwrap_or_default()
    }

    pub(super) fn end(&self) -> u64 {
        self.log.len() as u64 * RECORD_BYTES
    }

    pub(super) fn writes(&self) -> bool {
        self.is_up && self.is_primary
    }

    pub(super) fn connection_facts(&self) -> ConnectionFacts {
        ConnectionFacts {
            in_recovery: !self.is_primary,
            timeline: self.timeline,
            newest_row: self.database().newest_row,
        }
    }

    pub(super) fn primary_facts(&self) -> PrimaryFacts {
        PrimaryFacts {
            in_recovery: !self.is_primary,
            timeline: self.timeline,
            timeline_history: None,
            newest_row: self.database().newest_row,
        }
    }

    /// How many records two logs have in common.
    pub(super) fn common(&self, serials: impl Iterator<Item = u64>) -> usize {
        self.log.iter().zip(serials).take_while(|(record, serial)| record.serial == *serial).count()
    }
}

/// The whole log of each epoch, as its primary last had it.
#[derive(Debug, Clone, Default)]
pub(super) struct EpochLogs(BTreeMap<EpochId, Vec<u64>>);

impl EpochLogs {
    pub(super) fn note(&mut self, epoch: EpochId, node: &Node) {
        self.0.insert(epoch, node.log.iter().map(|record| record.serial).collect());
    }

    /// Up to where an epoch's log is part of a node's log; `None`: the epoch is unknown.
    pub(super) fn end_in(&self, epoch: EpochId, node: &Node) -> Option<u64> {
        let serials = self.0.get(&epoch)?;
        Some(node.common(serials.iter().copied()) as u64 * RECORD_BYTES)
    }
}
