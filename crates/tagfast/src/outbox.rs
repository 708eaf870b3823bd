//! What joins the relays of the PostgreSQL store to Kafka: stored rows in, published events out.
//!
//! How it fails: a row that cannot be decoded, because a newer program wrote it or it is damaged, stops the relay of its cluster
//! and is named in the log; nothing is skipped.

use std::collections::HashMap;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, EpochOrdinal, UnixMillis};
use tagfast_events_kafka::{Past, Publisher};
use tagfast_failover::EpochRecord;
use tagfast_store_postgres::{OutboxRow, OutboxSink, PastEpoch, PublishError};

/// Publishes outbox rows.
pub struct KafkaOutbox(pub Publisher);

fn failed(error: impl std::fmt::Display) -> PublishError {
    PublishError(error.to_string())
}

#[async_trait]
impl OutboxSink for KafkaOutbox {
    async fn begin_epoch(&self, cluster: &str, epoch: &EpochRecord) -> Result<(), PublishError> {
        self.0.marker(cluster, epoch.ordinal, epoch.minted_at).await.map_err(failed)
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
            let mut event = decoded.map_err(|e| failed(format!("outbox row ({}, {}): {e}", row.xid, row.n)))?;
            // Rows of an older epoch that are still there belong to this one's history now.
            event.emit = epoch.ordinal;
            events.push(event);
        }
        self.0.publish(cluster, &events, hi).await.map_err(failed)
    }

    async fn doubtful(
        &self,
        cluster: &str,
        epoch: &EpochRecord,
        past: &[PastEpoch],
    ) -> Result<Vec<ContentKey>, PublishError> {
        let current = epoch.ordinal;
        let known: HashMap<EpochOrdinal, Past> =
            past.iter().map(|p| (p.ordinal, Past::Ended { fence: p.fence, reconciled: p.reconciled })).collect();
        let past = move |ordinal| {
            // Of an epoch that nobody knows nothing is believed.
            let unknown = Past::Ended { fence: 0, reconciled: false };
            if ordinal == current { Past::Current } else { known.get(&ordinal).copied().unwrap_or(unknown) }
        };
        self.0.doubtful(cluster, past).await.map_err(failed)
    }

    async fn complete_through(&self, cluster: &str, epoch: &EpochRecord, at: UnixMillis, hi: u64) {
        self.0.heartbeat(cluster, epoch.ordinal, at, hi).await;
    }
}
