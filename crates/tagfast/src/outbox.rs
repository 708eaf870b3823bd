//! Publishes the outbox rows of the PostgreSQL store to Kafka.
//!
//! How it fails: a row that cannot be decoded, because a newer program wrote it or it is damaged,
//! stops the relay of its cluster, and the log names it; nothing is skipped. While the breaker
//! `kafka` is open, or an operator holds it open, rows wait in the outbox.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{DomainError, UnixMillis};
use tagfast_events::{BusError, DivergedContent, EndedEpoch};
use tagfast_events_kafka::{EpochHistory, Publisher};
use tagfast_failover::EpochRecord;
use tagfast_resilience::{Breaker, BreakerOptions, Breakers};
use tagfast_store_postgres::{OutboxBatch, OutboxSink, PublishError};

/// Publishes outbox rows.
pub struct KafkaOutbox {
    publisher: Publisher,
    breaker: Arc<Breaker>,
}

impl KafkaOutbox {
    /// Creates the sink behind the breaker `kafka`.
    pub fn new(publisher: Publisher, breakers: &Arc<Breakers>) -> Self {
        let options = BreakerOptions {
            // A relay has one batch in flight: few calls are enough, and each takes long.
            min_calls: 3,
            stalled_calls: 0,
            slow_after: Duration::from_secs(5),
            open_cap: Duration::from_secs(2),
            ..BreakerOptions::default()
        };
        Self { publisher, breaker: breakers.make("kafka", options) }
    }

    /// Runs a call to Kafka; its result counts for the breaker.
    async fn guarded<T>(
        &self,
        work: impl Future<Output = Result<T, BusError>>,
    ) -> Result<T, PublishError> {
        let permit = self.breaker.acquire().map_err(PublishError::new)?;
        match work.await {
            Ok(done) => {
                permit.ok();
                Ok(done)
            }
            Err(error) => {
                permit.failed();
                Err(PublishError::new(error))
            }
        }
    }
}

/// A row that this program cannot decode.
#[derive(Debug)]
struct UndecodableRow {
    xid: u64,
    n: i32,
    source: DomainError,
}

impl fmt::Display for UndecodableRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "outbox row ({}, {}) cannot be decoded", self.xid, self.n)
    }
}

impl Error for UndecodableRow {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

#[async_trait]
impl OutboxSink for KafkaOutbox {
    async fn begin_epoch(&self, cluster: &str, epoch: &EpochRecord) -> Result<(), PublishError> {
        self.guarded(self.publisher.marker(cluster, epoch.ordinal, epoch.minted_at)).await
    }

    async fn publish(&self, batch: OutboxBatch<'_>) -> Result<(), PublishError> {
        let OutboxBatch { cluster, epoch, rows, hi } = batch;
        let mut events = Vec::with_capacity(rows.len());
        for row in rows {
            let undecodable = |source| UndecodableRow { xid: row.xid, n: row.n, source };
            let mut event = row.decode().map_err(|e| PublishError::new(undecodable(e)))?;
            // Rows left by an older epoch belong to the history of this one now.
            event.publisher_epoch = epoch.ordinal;
            events.push(event);
        }
        let documents: BTreeMap<usize, &[u8]> = rows
            .iter()
            .enumerate()
            .filter_map(|(n, row)| Some((n, row.document.as_deref()?)))
            .collect();
        let published = self.publisher.publish_with_documents(cluster, &events, &documents, hi);
        self.guarded(published).await
    }

    async fn diverged_contents(
        &self,
        cluster: &str,
        epoch: &EpochRecord,
        past: &[EndedEpoch],
    ) -> Result<Vec<DivergedContent>, PublishError> {
        let history = EpochHistory::new(epoch.ordinal, epoch.minted_at, past);
        let found = self.publisher.diverged_contents(cluster, history);
        found.await.map_err(PublishError::new)
    }

    async fn complete_through(&self, cluster: &str, epoch: &EpochRecord, at: UnixMillis, hi: u64) {
        self.publisher.heartbeat(cluster, epoch.ordinal, at, hi).await;
    }
}
