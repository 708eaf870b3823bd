//! How far a consumer is: read, done, durable, visible.

use std::collections::{BTreeMap, VecDeque};

use tagfast_domain::{EpochOrdinal, UnixMillis};

use crate::bus::{
    BusPosition, BusRecord, ClusterName, Emits, Frontier, Partition, Positions, RecordKind,
};

#[derive(Default)]
struct PartitionProgress {
    /// Behind the last record read.
    read: BusPosition,
    /// Durable and visible.
    durable: u64,
    /// (offset behind a polled run, commit time of its first record), oldest first; those not yet
    /// durable.
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
    /// Partitions that are read from here on.
    pub(crate) fn begin(&mut self, from: Positions) {
        for (partition, read) in from {
            let durable = read.next;
            self.partitions
                .insert(partition, PartitionProgress { read, durable, ..Default::default() });
        }
    }

    /// Partitions that are somebody else's from here on.
    pub(crate) fn end(&mut self, partitions: &[Partition]) {
        self.partitions.retain(|partition, _| !partitions.contains(partition));
    }

    /// Partitions that are read.
    pub(crate) fn len(&self) -> usize {
        self.partitions.len()
    }

    /// Which ones.
    pub(crate) fn partitions(&self) -> Vec<Partition> {
        self.partitions.keys().copied().collect()
    }

    /// Whether a partition is read.
    pub(crate) fn has(&self, partition: Partition) -> bool {
        self.partitions.contains_key(&partition)
    }

    /// Whether an event is of the newest epoch of its cluster seen in its partition; a smaller
    /// `emit` is dropped.
    pub(crate) fn accepts(
        &mut self,
        partition: Partition,
        cluster: &ClusterName,
        emit: EpochOrdinal,
    ) -> bool {
        self.partitions.get_mut(&partition).is_some_and(|known| known.read.emits.see(cluster, emit))
    }

    /// What was seen in a partition.
    pub(crate) fn emits(&self, partition: Partition) -> Emits {
        self.partitions.get(&partition).map(|known| known.read.emits.clone()).unwrap_or_default()
    }

    /// Takes note of a polled batch.
    pub(crate) fn read(&mut self, records: &[BusRecord]) {
        for record in records {
            let Some(known) = self.partitions.get_mut(&record.partition) else { continue };
            known.read.next = known.read.next.max(record.offset + 1);
            if record.kind != RecordKind::Event {
                continue;
            }
            match known.runs.back_mut() {
                // One entry per 100 records is exact enough for a lag in milliseconds and keeps the
                // memory small.
                Some((end, _)) if record.offset + 1 > *end && record.offset % 100 != 0 => {
                    *end = record.offset + 1
                }
                _ => known.runs.push_back((record.offset + 1, record.at)),
            }
        }
    }

    /// Everything below these positions is done, given what waits at the smallest offset of each
    /// partition. Its `emits` are those of when it was read: a larger one read behind it would
    /// drop the record itself after a restart.
    pub(crate) fn done(&self, waiting: &Positions) -> Positions {
        self.partitions
            .iter()
            .map(|(p, known)| {
                let held = waiting.get(p).filter(|w| w.next < known.read.next);
                (*p, held.cloned().unwrap_or_else(|| known.read.clone()))
            })
            .collect()
    }

    /// How far reading is ahead of what is done.
    pub(crate) fn ahead(&self, done: &Positions) -> Vec<(Partition, u64)> {
        self.partitions
            .iter()
            .map(|(p, known)| {
                (*p, known.read.next.saturating_sub(done.get(p).map_or(0, |d| d.next)))
            })
            .collect()
    }

    /// Remembers what is durable; true if it moved.
    pub(crate) fn commit(&mut self, durable: &Positions) -> bool {
        let mut moved = false;
        for (partition, position) in durable {
            let Some(known) = self.partitions.get_mut(partition) else { continue };
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
        frontiers: &BTreeMap<Partition, Vec<Frontier>>,
    ) -> BTreeMap<Partition, UnixMillis> {
        let mut visible = BTreeMap::new();
        for (partition, known) in &mut self.partitions {
            let next = durable.get(partition).map_or(0, |p| p.next);
            let reached = |f: &&Frontier| next >= f.next || f.next <= 1;
            let of_partition = frontiers.get(partition).map_or(&[][..], Vec::as_slice);
            // What is not done yet was committed at or after this; what came before it is done.
            let before_the_first =
                known.runs.front().map(|(_, at)| *at).filter(|_| !of_partition.is_empty());
            let now = of_partition
                .iter()
                .rev()
                .find(reached)
                .map(|f| f.complete_through)
                .or(before_the_first);
            known.visible = now.max(known.visible);
            if let Some(at) = known.visible {
                visible.insert(*partition, at);
            }
        }
        visible
    }

    /// What [`Progress::visible`] said last.
    pub(crate) fn known_visible(&self) -> BTreeMap<Partition, UnixMillis> {
        self.partitions
            .iter()
            .filter_map(|(partition, known)| Some((*partition, known.visible?)))
            .collect()
    }

    /// Whether everything the bus has is durable and visible.
    pub(crate) fn has_all(
        &self,
        durable: &Positions,
        frontiers: &BTreeMap<Partition, Vec<Frontier>>,
    ) -> bool {
        let reached = |p: &Partition, f: &Frontier| {
            f.next <= 1 || durable.get(p).is_some_and(|d| d.next >= f.next)
        };
        self.partitions
            .keys()
            .all(|p| frontiers.get(p).and_then(|f| f.last()).is_some_and(|f| reached(p, f)))
    }
}
