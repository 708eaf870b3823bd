//! Records that failed and wait for their next attempt.
//!
//! Per key at most one waits. A newer state of the key replaces it: events are full states, so
//! nothing of the older one is needed any more. An older one is superseded by it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tagfast_domain::{TaggingsEvent, UnixMillis};
use tokio::time::Instant;

use crate::bus::{BusPosition, BusRecord, Emits, Partition, Positions};
use crate::sink::SinkRecord;

/// A record on its way to the sink.
pub(crate) struct Candidate {
    pub(crate) record: BusRecord,
    /// What was seen in its partition when it was read.
    emits: Emits,
    /// Shared with the sink: a batch is handed over without copying its tags.
    pub(crate) event: Arc<TaggingsEvent>,
    /// Failed attempts so far.
    pub(crate) attempts: u32,
}

impl Candidate {
    pub(crate) fn new(record: BusRecord, event: TaggingsEvent, emits: Emits) -> Self {
        Self { record, emits, event: Arc::new(event), attempts: 0 }
    }

    /// One that was given up and begins anew.
    pub(crate) fn again(record: BusRecord, event: Arc<TaggingsEvent>, emits: Emits) -> Self {
        Self { record, emits, event, attempts: 0 }
    }

    pub(crate) fn for_sink(&self) -> SinkRecord {
        SinkRecord {
            partition: self.record.partition,
            offset: self.record.offset,
            event: Arc::clone(&self.event),
        }
    }
}

struct Delayed {
    candidate: Candidate,
    due: Instant,
}

/// The delay queue.
#[derive(Default)]
pub(crate) struct Waiting {
    delayed: BTreeMap<Vec<u8>, Delayed>,
    first_failed: BTreeMap<Vec<u8>, UnixMillis>,
}

impl Waiting {
    /// Lets a failed record wait until `due`.
    pub(crate) fn put(&mut self, mut candidate: Candidate, due: Instant, now: UnixMillis) {
        candidate.attempts += 1;
        let key = candidate.record.key.clone();
        self.first_failed.entry(key.clone()).or_insert(now);
        self.delayed.insert(key, Delayed { candidate, due });
    }

    /// Whether a new record of a key is to be applied: an older waiting one is dropped for it.
    pub(crate) fn supersede(&mut self, newer: &Candidate) -> bool {
        let key = &newer.record.key;
        match self.delayed.get(key) {
            Some(held) if held.candidate.event.version >= newer.event.version => false,
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

    /// Takes out what is due. A record that fails again is put back; one that succeeds is
    /// forgotten.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<Candidate> {
        let due: Vec<Vec<u8>> =
            self.delayed.iter().filter(|(_, d)| d.due <= now).map(|(k, _)| k.clone()).collect();
        due.iter().filter_map(|key| self.delayed.remove(key)).map(|d| d.candidate).collect()
    }

    /// When the next one is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.delayed.values().map(|d| d.due).min()
    }

    /// When the record of this key failed first.
    pub(crate) fn first_failed_at(&self, key: &[u8]) -> Option<UnixMillis> {
        self.first_failed.get(key).copied()
    }

    /// Forgets what waits of these partitions.
    pub(crate) fn end(&mut self, partitions: &[Partition]) {
        self.delayed.retain(|_, delayed| !partitions.contains(&delayed.candidate.record.partition));
    }

    /// What waits at the smallest offset of each partition: the position cannot pass it.
    pub(crate) fn oldest(&self) -> Positions {
        let mut oldest = Positions::new();
        for delayed in self.delayed.values() {
            let record = &delayed.candidate.record;
            let here = BusPosition { next: record.offset, emits: delayed.candidate.emits.clone() };
            let known = oldest.entry(record.partition).or_insert_with(|| here.clone());
            if here.next < known.next {
                *known = here;
            }
        }
        oldest
    }
}
