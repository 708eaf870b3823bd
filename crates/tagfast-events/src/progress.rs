//! How far a consumer is: read, done, durable, visible.

use std::collections::{BTreeMap, VecDeque};

use tagfast_domain::{EpochOrdinal, UnixMillis};

use crate::bus::{BusPosition, BusRecord, Frontier, Partition, Positions};

#[derive(Default)]
struct PartitionProgress {
    /// Behind the last record read.
    read: BusPosition,
    /// Durable and visible.
    durable: u64,
    /// (offset behind a polled run, commit time of its first record), oldest first; those not yet durable.
    runs: VecDeque<(u64, UnixMillis)>,
    /// Everything committed before this moment is durable and visible.
    visible: Option<UnixMillis>,
}

/// Positions of one consumer.
#[derive(Default)]
pub(crate) struct Progress {
    partitions: BTreeMap<Partition, PartitionProgress>,
}

impl Progress {
    pub(crate) fn new(partitions: &[Partition], from: Positions) -> Self {
        let start = |p: &Partition| {
            let read = from.get(p).copied().unwrap_or_default();
            (*p, PartitionProgress { read, durable: read.next, ..Default::default() })
        };
        Self { partitions: partitions.iter().map(start).collect() }
    }

    /// Whether an event is of the newest epoch seen in its partition; a smaller `emit` is dropped.
    pub(crate) fn accepts(&mut self, partition: Partition, emit: EpochOrdinal) -> bool {
        let known = self.partitions.entry(partition).or_default();
        let newest = known.read.emit <= emit.0;
        known.read.emit = known.read.emit.max(emit.0);
        newest
    }

    /// Takes note of a polled batch.
    pub(crate) fn read(&mut self, records: &[BusRecord]) {
        for record in records {
            let known = self.partitions.entry(record.partition).or_default();
            known.read.next = known.read.next.max(record.offset + 1);
            match known.runs.back_mut() {
                // One entry per 100 records is exact enough for a lag in milliseconds and keeps the memory small.
                Some((end, _)) if record.offset + 1 > *end && record.offset % 100 != 0 => *end = record.offset + 1,
                _ => known.runs.push_back((record.offset + 1, record.at)),
            }
        }
    }

    /// Everything below these positions is done, given what waits at the smallest offset of each partition. The `emit`
    /// is that record's: a larger one read behind it would drop the record itself after a restart.
    pub(crate) fn done(&self, waiting: &Positions) -> Positions {
        self.partitions
            .iter()
            .map(|(p, known)| {
                let held = waiting.get(p).filter(|w| w.next < known.read.next);
                (*p, held.copied().unwrap_or(known.read))
            })
            .collect()
    }

    /// How far reading is ahead of what is done.
    pub(crate) fn ahead(&self, done: &Positions) -> Vec<(Partition, u64)> {
        self.partitions
            .iter()
            .map(|(p, known)| (*p, known.read.next.saturating_sub(done.get(p).map_or(0, |d| d.next))))
            .collect()
    }

    /// Remembers what is durable; true if it moved.
    pub(crate) fn commit(&mut self, durable: &Positions) -> bool {
        let mut moved = false;
        for (partition, position) in durable {
            let known = self.partitions.entry(*partition).or_default();
            moved |= position.next > known.durable;
            known.durable = known.durable.max(position.next);
            while known.runs.front().is_some_and(|(end, _)| *end <= known.durable) {
                known.runs.pop_front();
            }
        }
        moved
    }

    /// Per partition the moment before which everything committed is visible. It never goes back.
    pub(crate) fn visible(
        &mut self,
        durable: &Positions,
        frontiers: &BTreeMap<Partition, Frontier>,
    ) -> BTreeMap<Partition, UnixMillis> {
        let mut visible = BTreeMap::new();
        for (partition, known) in &mut self.partitions {
            let Some(frontier) = frontiers.get(partition) else { continue };
            let next = durable.get(partition).map_or(0, |p| p.next);
            let now = if next >= frontier.next || frontier.next <= 1 {
                Some(frontier.complete_through)
            } else {
                known.runs.front().map(|(_, at)| *at)
            };
            known.visible = now.max(known.visible);
            if let Some(at) = known.visible {
                visible.insert(*partition, at);
            }
        }
        visible
    }

    /// Whether everything the bus has is durable and visible.
    pub(crate) fn has_all(&self, durable: &Positions, frontiers: &BTreeMap<Partition, Frontier>) -> bool {
        frontiers.iter().all(|(p, f)| f.next <= 1 || durable.get(p).is_some_and(|d| d.next >= f.next))
    }
}
