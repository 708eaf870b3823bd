//! Test support: a sink that records what relays publish, one that refuses on request, and the
//! switch with which a benchmark measures what journal and guard cost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use tagfast_domain::{ContentKey, EpochOrdinal, TaggingsEvent, UnixMillis};
use tagfast_events::{DivergedContent, DivergedContents, DivergedEvent, EndedEpoch};
use tagfast_failover::EpochRecord;

use crate::PostgresStore;
use crate::outbox::sink::{OutboxBatch, OutboxRow, OutboxSink, PublishError};

impl PostgresStore {
    /// Switches journal and guard of every cluster off, or on again, to measure what they cost. No
    /// configuration reaches this: what a failover loses of the writes that are acknowledged
    /// meanwhile is neither bounded nor repaired, and their receipts say `unreported`.
    pub fn set_unguarded(&self, is_unguarded: bool) {
        self.clusters().iter().for_each(|handle| handle.cluster.guard.set_off(is_unguarded));
    }
}

/// A published row, as a record of a bus.
#[derive(Debug)]
struct Recorded {
    cluster: String,
    publisher_epoch: EpochOrdinal,
    hi: u64,
    row: OutboxRow,
}

/// A sink that records everything.
#[derive(Debug, Default)]
pub struct RecordingSink {
    rows: Mutex<Vec<Recorded>>,
    scans: bool,
    diverged: Mutex<Vec<(String, ContentKey)>>,
    through: Mutex<BTreeMap<String, UnixMillis>>,
}

impl RecordingSink {
    /// A sink that finds in its records which contents have diverged, as a bus does.
    pub fn scanning() -> Self {
        Self { scans: true, ..Self::default() }
    }

    /// The published events, each once: a relay may send rows again. Ids of transactions do not
    /// tell, because a new primary uses those of lost transactions again.
    ///
    /// # Panics
    ///
    /// A published row cannot be decoded.
    pub fn events(&self) -> Vec<TaggingsEvent> {
        let rows = self.rows.lock();
        let events = rows.iter().map(|r| (&r.cluster, r.row.decode().expect("an event")));
        let mut seen = BTreeSet::new();
        let fresh = events.filter(|(cluster, event)| {
            seen.insert(((*cluster).clone(), event.key.clone(), event.version))
        });
        fresh.map(|(_, event)| event).collect()
    }

    /// Sets the contents that the sink reports as diverged, with their cluster.
    pub fn set_diverged(&self, contents: Vec<(String, ContentKey)>) {
        *self.diverged.lock() = contents;
    }

    /// Per cluster, the time (Unix ms) before which every event is published.
    pub fn through(&self) -> BTreeMap<String, UnixMillis> {
        self.through.lock().clone()
    }
}

#[async_trait]
impl OutboxSink for RecordingSink {
    async fn begin_epoch(&self, _: &str, _: &EpochRecord) -> Result<(), PublishError> {
        Ok(())
    }

    async fn publish(&self, batch: OutboxBatch<'_>) -> Result<(), PublishError> {
        let OutboxBatch { cluster, rows, hi, epoch } = batch;
        let recorded = rows.iter().map(|row| Recorded {
            cluster: cluster.to_owned(),
            publisher_epoch: epoch.ordinal,
            hi,
            row: row.clone(),
        });
        self.rows.lock().extend(recorded);
        Ok(())
    }

    async fn diverged_contents(
        &self,
        cluster: &str,
        epoch: &EpochRecord,
        past: &[EndedEpoch],
    ) -> Result<Vec<DivergedContent>, PublishError> {
        let mut found = DivergedContents::new(epoch.minted_at);
        let rows = self.rows.lock();
        let rows = rows.iter().rev().filter(|row| self.scans && row.cluster == cluster);
        for Recorded { publisher_epoch, hi, row, .. } in rows {
            found.fence(*publisher_epoch);
            let ended = past.iter().find(|ended| ended.ordinal == *publisher_epoch);
            if *publisher_epoch == epoch.ordinal || ended.is_some_and(|e| *hi <= e.epoch_end) {
                continue;
            }
            let event = row.decode().map_err(PublishError::new)?;
            let (at, document) = (event.at, row.document.as_deref());
            let published =
                DivergedEvent { publisher_epoch: *publisher_epoch, hi: Some(*hi), at, document };
            found.add(event.key, &published);
        }
        let mut found = found.into_contents(cluster);
        let diverged = self.diverged.lock();
        let set = diverged.iter().filter(|(of, _)| of == cluster).map(|(_, key)| key.clone());
        found.extend(set.map(|key| DivergedContent { key, documents: Vec::new() }));
        Ok(found)
    }

    async fn complete_through(&self, cluster: &str, _: &EpochRecord, at: UnixMillis, _: u64) {
        self.through.lock().insert(cluster.to_owned(), at);
    }
}

/// A gate in front of a sink: while it is closed, rows are refused and wait in the outbox.
#[derive(Debug, Default)]
pub struct GatedSink<S> {
    inner: S,
    is_closed: AtomicBool,
    refused: AtomicU64,
}

impl<S> GatedSink<S> {
    /// An open gate.
    pub fn new(inner: S) -> Self {
        Self { inner, is_closed: AtomicBool::new(false), refused: AtomicU64::new(0) }
    }

    /// Refuses rows from now on.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
    }

    /// Lets rows pass from now on.
    pub fn open(&self) {
        self.is_closed.store(false, Ordering::SeqCst);
    }

    /// Calls refused so far.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }

    /// The sink behind the gate.
    pub fn inner(&self) -> &S {
        &self.inner
    }
}

#[async_trait]
impl<S: OutboxSink> OutboxSink for GatedSink<S> {
    async fn begin_epoch(&self, cluster: &str, epoch: &EpochRecord) -> Result<(), PublishError> {
        self.inner.begin_epoch(cluster, epoch).await
    }

    async fn publish(&self, batch: OutboxBatch<'_>) -> Result<(), PublishError> {
        if self.is_closed.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(PublishError::new("the gate is closed"));
        }
        self.inner.publish(batch).await
    }

    async fn diverged_contents(
        &self,
        cluster: &str,
        epoch: &EpochRecord,
        past: &[EndedEpoch],
    ) -> Result<Vec<DivergedContent>, PublishError> {
        self.inner.diverged_contents(cluster, epoch, past).await
    }

    async fn complete_through(&self, cluster: &str, epoch: &EpochRecord, at: UnixMillis, hi: u64) {
        self.inner.complete_through(cluster, epoch, at, hi).await;
    }
}
