//! What joins the relays of the PostgreSQL store to Kafka: stored rows in, published events out.
//!
//! How it fails: a row that cannot be decoded, because a newer program wrote it or it is damaged, stops the relay of its cluster
//! and is named in the log; nothing is skipped.

use async_trait::async_trait;
use tagfast_domain::UnixMillis;
use tagfast_events_kafka::Publisher;
use tagfast_failover::EpochRecord;
use tagfast_store_postgres::{OutboxRow, OutboxSink, PublishError};

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

    async fn complete_through(&self, cluster: &str, epoch: &EpochRecord, at: UnixMillis) {
        self.0.heartbeat(cluster, epoch.ordinal, at).await;
    }
}
