//! Failed records that wait for their next attempt.
//!
//! At most one record waits per key. A newer state of the key replaces the waiting one: events
//! carry full states, so the older state is no longer needed. An older state is superseded by the
//! waiting one.

use std::collections::BTreeMap;
use std::sync::Arc;

use tagfast_domain::{TaggingsEvent, UnixMillis};
use tokio::time::Instant;

use crate::bus::{BusPosition, BusRecord, Partition, Positions, PublisherEpochs};
use crate::sink::SinkRecord;

/// A record on its way to the sink.
pub(super) struct PendingRecord {
    pub(super) record: BusRecord,
    /// The publisher epochs seen in its partition when it was read.
    publisher_epochs: PublisherEpochs,
    /// Shared with the sink: a batch is handed over without copying its tags.
    pub(super) event: Arc<TaggingsEvent>,
    /// Failed attempts so far.
    pub(super) attempts: u32,
}

impl PendingRecord {
    pub(super) fn new(
        record: BusRecord,
        event: Arc<TaggingsEvent>,
        publisher_epochs: PublisherEpochs,
    ) -> Self {
        Self { record, publisher_epochs, event, attempts: 0 }
    }

    pub(super) fn for_sink(&self) -> SinkRecord {
        SinkRecord {
            partition: self.record.partition,
            offset: self.record.offset,
            event: Arc::clone(&self.event),
        }
    }
}

struct DelayedRetry {
    pending: PendingRecord,
    due: Instant,
}

/// Retries ordered by key.
#[derive(Default)]
pub(super) struct RetryQueue {
    delayed: BTreeMap<Vec<u8>, DelayedRetry>,
    /// Key → first failure, Unix ms; also of a record that is being tried.
    first_failed: BTreeMap<Vec<u8>, UnixMillis>,
}

impl RetryQueue {
    /// Counts a failed attempt and lets the record wait until `due`.
    pub(super) fn put(&mut self, mut pending: PendingRecord, due: Instant, now: UnixMillis) {
        pending.attempts += 1;
        let key = pending.record.key.clone();
        self.first_failed.entry(key.clone()).or_insert(now);
        self.delayed.insert(key, DelayedRetry { pending, due });
    }

    /// Whether a newly read record must be applied; a waiting older record of its key is dropped.
    pub(super) fn supersede(&mut self, newer: &PendingRecord) -> bool {
        let key = &newer.record.key;
        match self.delayed.get(key) {
            Some(held) if held.pending.event.version >= newer.event.version => false,
            Some(_) => {
                self.delayed.remove(key);
                self.first_failed.remove(key);
                true
            }
            None => {
                self.first_failed.remove(key);
                true
            }
        }
    }

    /// Removes and returns the due records. The caller puts one that fails again back.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<PendingRecord> {
        let due: Vec<Vec<u8>> =
            self.delayed.iter().filter(|(_, d)| d.due <= now).map(|(k, _)| k.clone()).collect();
        due.iter().filter_map(|key| self.delayed.remove(key)).map(|d| d.pending).collect()
    }

    /// When the next record is due; `None` if no record waits.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.delayed.values().map(|d| d.due).min()
    }

    /// First failure of this key's record, Unix ms; `None` if it has not failed before.
    pub(super) fn first_failed_at(&self, key: &[u8]) -> Option<UnixMillis> {
        self.first_failed.get(key).copied()
    }

    /// Drops the waiting records of these partitions.
    pub(super) fn end(&mut self, partitions: &[Partition]) {
        self.delayed.retain(|_, delayed| !partitions.contains(&delayed.pending.record.partition));
    }

    /// The lowest waiting record of each partition: the position cannot pass it.
    pub(super) fn oldest(&self) -> Positions {
        let mut oldest = Positions::new();
        for delayed in self.delayed.values() {
            let record = &delayed.pending.record;
            let publisher_epochs = delayed.pending.publisher_epochs.clone();
            let here = BusPosition { next: record.offset, publisher_epochs, anchor: None };
            let known = oldest.entry(record.partition).or_insert_with(|| here.clone());
            if here.next < known.next {
                *known = here;
            }
        }
        oldest
    }
}
