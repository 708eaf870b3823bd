//! Test support: a sink that records what relays publish, one that refuses on request, and the
//! switch with which a benchmark measures what journal and guard cost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use tagfast_domain::{ContentKey, TaggingsEvent, UnixMillis};
use tagfast_failover::EpochRecord;

use crate::PostgresStore;
use crate::outbox::sink::{EndedEpoch, OutboxBatch, OutboxRow, OutboxSink, PublishError};

impl PostgresStore {
    /// Switches journal and guard of every cluster off, or on again, to measure what they cost. No
    /// configuration reaches this: what a failover loses of the writes that are acknowledged
    /// meanwhile is neither bounded nor repaired, and their receipts say `unreported`.
    pub fn set_unguarded(&self, is_unguarded: bool) {
        self.clusters().iter().for_each(|handle| handle.cluster.guard.set_off(is_unguarded));
    }
}

/// A sink that records everything.
#[derive(Debug, Default)]
pub struct RecordingSink {
    /// With the cluster: transaction ids are unique within a cluster only.
    rows: Mutex<Vec<(String, OutboxRow)>>,
    diverged: Mutex<Vec<(String, ContentKey)>>,
    through: Mutex<BTreeMap<String, UnixMillis>>,
}

impl RecordingSink {
    /// The published events, each once: a relay may send rows again.
    ///
    /// # Panics
    ///
    /// A published row cannot be decoded.
    pub fn events(&self) -> Vec<TaggingsEvent> {
        let rows = self.rows.lock();
        let mut seen = BTreeSet::new();
        let fresh = rows.iter().filter(|(cluster, row)| seen.insert((cluster, row.xid, row.n)));
        fresh.map(|(_, row)| row.decode().expect("an event")).collect()
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
        let OutboxBatch { cluster, rows, .. } = batch;
        let named = rows.iter().map(|row| (cluster.to_owned(), row.clone()));
        self.rows.lock().extend(named);
        Ok(())
    }

    async fn diverged_contents(
        &self,
        cluster: &str,
        _: &EpochRecord,
        _: &[EndedEpoch],
    ) -> Result<Vec<ContentKey>, PublishError> {
        let diverged = self.diverged.lock();
        Ok(diverged.iter().filter(|(of, _)| of == cluster).map(|(_, key)| key.clone()).collect())
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
    ) -> Result<Vec<ContentKey>, PublishError> {
        self.inner.diverged_contents(cluster, epoch, past).await
    }

    async fn complete_through(&self, cluster: &str, epoch: &EpochRecord, at: UnixMillis, hi: u64) {
        self.inner.complete_through(cluster, epoch, at, hi).await;
    }
}
