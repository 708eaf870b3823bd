//! How far a consumer is: read, done, durable, visible.

use std::collections::{BTreeMap, VecDeque};

use tagfast_domain::{EpochOrdinal, UnixMillis};

use crate::bus::{
    Anchor, BusPosition, BusRecord, ClusterName, Partition, Positions, PublisherEpochs, RecordKind,
    Watermark,
};

#[derive(Default)]
struct PartitionProgress {
    /// Behind the last record read.
    read: BusPosition,
    /// First offset that is not yet durable and visible.
    durable: u64,
    /// Polled runs that are not yet durable, oldest first: (offset behind the run, oldest
    /// commit time of its records in Unix ms).
    runs: VecDeque<(u64, UnixMillis)>,
    /// Everything committed before this time (Unix ms) is durable and visible; `None` if unknown.
    visible: Option<UnixMillis>,
}

/// Positions of one consumer.
#[derive(Default)]
pub(crate) struct Progress {
    partitions: BTreeMap<Partition, PartitionProgress>,
}

impl Progress {
    /// Adds partitions that are read from these positions on.
    pub(crate) fn begin(&mut self, from: Positions) {
        for (partition, read) in from {
            let durable = read.next;
            self.partitions
                .insert(partition, PartitionProgress { read, durable, ..Default::default() });
        }
    }

    /// Removes partitions that a different member reads from now on.
    pub(crate) fn end(&mut self, partitions: &[Partition]) {
        self.partitions.retain(|partition, _| !partitions.contains(partition));
    }

    /// Number of assigned partitions.
    pub(crate) fn len(&self) -> usize {
        self.partitions.len()
    }

    /// The assigned partitions.
    pub(crate) fn partitions(&self) -> Vec<Partition> {
        self.partitions.keys().copied().collect()
    }

    /// Whether a partition is assigned.
    pub(crate) fn has(&self, partition: Partition) -> bool {
        self.partitions.contains_key(&partition)
    }

    /// Records an event's publisher epoch; returns false if the event must be dropped because a
    /// newer epoch of its cluster was seen in the partition.
    pub(crate) fn accepts(
        &mut self,
        partition: Partition,
        cluster: &ClusterName,
        epoch: EpochOrdinal,
    ) -> bool {
        self.partitions
            .get_mut(&partition)
            .is_some_and(|known| known.read.publisher_epochs.observe(cluster, epoch))
    }

    /// The publisher epochs seen in a partition.
    pub(crate) fn publisher_epochs(&self, partition: Partition) -> PublisherEpochs {
        self.partitions
            .get(&partition)
            .map(|known| known.read.publisher_epochs.clone())
            .unwrap_or_default()
    }

    /// Notes what proves the identity of each partition: the positions of
    /// [`Progress::done`] carry it.
    pub(crate) fn set_anchors(&mut self, anchors: BTreeMap<Partition, Anchor>) {
        for (partition, anchor) in anchors {
            if let Some(known) = self.partitions.get_mut(&partition) {
                known.read.anchor = Some(anchor);
            }
        }
    }

    /// Moves the read positions behind a polled batch.
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
                Some((end, at)) if record.offset + 1 > *end && record.offset % 100 != 0 => {
                    *end = record.offset + 1;
                    *at = record.at.min(*at);
                }
                _ => known.runs.push_back((record.offset + 1, record.at)),
            }
        }
    }

    /// Everything below these positions is done, given the lowest unfinished record of each
    /// partition. The publisher epochs of an unfinished record are those of when it was read: a
    /// newer epoch read behind it would drop the record itself after a restart.
    pub(crate) fn done(&self, unfinished: &Positions) -> Positions {
        self.partitions
            .iter()
            .map(|(p, known)| {
                let held = unfinished.get(p).filter(|w| w.next < known.read.next);
                let at = held.cloned().unwrap_or_else(|| known.read.clone());
                (*p, BusPosition { anchor: known.read.anchor, ..at })
            })
            .collect()
    }

    /// How many offsets reading is ahead of the done positions.
    pub(crate) fn ahead(&self, done: &Positions) -> Vec<(Partition, u64)> {
        self.partitions
            .iter()
            .map(|(p, known)| {
                (*p, known.read.next.saturating_sub(done.get(p).map_or(0, |d| d.next)))
            })
            .collect()
    }

    /// Records durable positions; returns true if one moved.
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

    /// Computes per partition the commit time before which everything is visible. The newest
    /// reached watermark decides, also one that is older than an earlier one: then a clock was put
    /// back, and the earlier one said too much.
    pub(crate) fn visible(
        &mut self,
        durable: &Positions,
        watermarks: &BTreeMap<Partition, Vec<Watermark>>,
    ) -> BTreeMap<Partition, UnixMillis> {
        let mut visible = BTreeMap::new();
        for (partition, known) in &mut self.partitions {
            let next = durable.get(partition).map_or(0, |p| p.next);
            let reached = |w: &&Watermark| next >= w.next || w.next <= 1;
            let of_partition = watermarks.get(partition).map_or(&[][..], Vec::as_slice);
            // Everything committed before the oldest record that is not durable is done, as far as
            // some watermark says that all of it was read: a different cluster may be far behind.
            let oldest_undone = known.runs.iter().map(|(_, at)| *at).min();
            let before_the_first = oldest_undone
                .zip(of_partition.last())
                .map(|(at, newest)| at.min(newest.complete_through));
            let proven = of_partition.iter().rev().find(reached).map(|w| w.complete_through);
            known.visible = proven.or_else(|| known.visible.max(before_the_first));
            if let Some(at) = known.visible {
                visible.insert(*partition, at);
            }
        }
        visible
    }

    /// The last result of [`Progress::visible`].
    pub(crate) fn known_visible(&self) -> BTreeMap<Partition, UnixMillis> {
        self.partitions
            .iter()
            .filter_map(|(partition, known)| Some((*partition, known.visible?)))
            .collect()
    }

    /// Whether everything on the bus is durable and visible.
    pub(crate) fn has_all(
        &self,
        durable: &Positions,
        watermarks: &BTreeMap<Partition, Vec<Watermark>>,
    ) -> bool {
        let reached = |p: &Partition, w: &Watermark| {
            w.next <= 1 || durable.get(p).is_some_and(|d| d.next >= w.next)
        };
        self.partitions
            .keys()
            .all(|p| watermarks.get(p).and_then(|w| w.last()).is_some_and(|w| reached(p, w)))
    }
}
