//! What joins the relays of the PostgreSQL store to Kafka: stored rows in, published events out.
//!
//! How it fails: a row that cannot be decoded, because a newer program wrote it or it is damaged,
//! stops the relay of its cluster and is named in the log; nothing is skipped. While the breaker
//! `kafka` is open, or held open by hand, rows wait in the outbox.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, EpochOrdinal, UnixMillis};
use tagfast_events_kafka::{Past, Publisher};
use tagfast_failover::EpochRecord;
use tagfast_resilience::{Breaker, BreakerOptions, Breakers};
use tagfast_store_postgres::{OutboxRow, OutboxSink, PastEpoch, PublishError};

/// Publishes outbox rows.
pub struct KafkaOutbox {
    publisher: Publisher,
    breaker: Arc<Breaker>,
}

impl KafkaOutbox {
    /// Behind the breaker `kafka`.
    pub fn new(publisher: Publisher, breakers: &Arc<Breakers>) -> Self {
        let options = BreakerOptions {
            // A relay has one batch under way: few calls say enough, and each takes its time.
            min_calls: 3,
            stalled_calls: 0,
            slow_after: Duration::from_secs(5),
            open_cap: Duration::from_secs(2),
            ..BreakerOptions::default()
        };
        Self { publisher, breaker: breakers.make("kafka", options) }
    }

    /// What was asked of Kafka counts for the breaker.
    async fn asked<T, E: std::fmt::Display>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, PublishError> {
        let permit = self.breaker.acquire().map_err(failed)?;
        match work.await {
            Ok(done) => {
                permit.ok();
                Ok(done)
            }
            Err(error) => {
                permit.failed();
                Err(failed(error))
            }
        }
    }
}

fn failed(error: impl std::fmt::Display) -> PublishError {
    PublishError(error.to_string())
}

#[async_trait]
impl OutboxSink for KafkaOutbox {
    async fn begin_epoch(&self, cluster: &str, epoch: &EpochRecord) -> Result<(), PublishError> {
        self.asked(self.publisher.marker(cluster, epoch.ordinal, epoch.minted_at)).await
    }

    async fn publish(
        &self,
        cluster: &str,
        epoch: &EpochRecord,
        rows: &[OutboxRow],
        hi: u64,
    ) -> Result<(), PublishError> {
        let mut events = Vec::with_capacity(rows.len());
        for row in rows {
            let decoded = row.decode();
            let mut event =
                decoded.map_err(|e| failed(format!("outbox row ({}, {}): {e}", row.xid, row.n)))?;
            // Rows of an older epoch that are still there belong to this one's history now.
            event.emit = epoch.ordinal;
            events.push(event);
        }
        self.asked(self.publisher.publish(cluster, &events, hi)).await
    }

    async fn doubtful(
        &self,
        cluster: &str,
        epoch: &EpochRecord,
        past: &[PastEpoch],
    ) -> Result<Vec<ContentKey>, PublishError> {
        let current = epoch.ordinal;
        let known: HashMap<EpochOrdinal, Past> = past
            .iter()
            .map(|p| (p.ordinal, Past::Ended { fence: p.fence, reconciled: p.reconciled }))
            .collect();
        let past = move |ordinal| {
            // Of an epoch that nobody knows nothing is believed.
            let unknown = Past::Ended { fence: 0, reconciled: false };
            if ordinal == current {
                Past::Current
            } else {
                known.get(&ordinal).copied().unwrap_or(unknown)
            }
        };
        self.publisher.doubtful(cluster, past).await.map_err(failed)
    }

    async fn complete_through(&self, cluster: &str, epoch: &EpochRecord, at: UnixMillis, hi: u64) {
        self.publisher.heartbeat(cluster, epoch.ordinal, at, hi).await;
    }
}
