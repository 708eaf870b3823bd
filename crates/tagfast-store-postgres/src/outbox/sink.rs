//! The port between relays and the bus.
//!
//! How it fails: a sink that cannot take rows returns [`PublishError`]; the relay offers the same
//! rows again.

use async_trait::async_trait;
use tagfast_domain::{ContentKey, DomainError, TaggingsEvent, UnixMillis, codec};
use tagfast_events::{DivergedContent, EndedEpoch};
use tagfast_failover::EpochRecord;

/// One outbox row on its way to the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// The transaction that wrote it.
    pub xid: u64,
    /// Its place in the transaction.
    pub n: i32,
    /// Shard byte and content key.
    pub key: Vec<u8>,
    /// The stored event.
    pub event: Vec<u8>,
    /// The content's encoded document, read after the row. It goes with the last row of a content,
    /// and only where no replica has the batch: a failover that loses the rows is then repaired
    /// with it. `None`: the row goes alone.
    pub document: Option<Vec<u8>>,
}

impl OutboxRow {
    /// The event.
    ///
    /// # Errors
    ///
    /// The stored bytes are a newer program's, or damaged.
    pub fn decode(&self) -> Result<TaggingsEvent, DomainError> {
        let key = self.key.get(1..).unwrap_or_default();
        codec::decode_event(ContentKey::from_bytes(key)?, &self.event)
    }
}

/// The sink could not take the rows; they are offered again.
#[derive(Debug, thiserror::Error)]
#[error("the sink failed")]
pub struct PublishError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl PublishError {
    /// A failure with its cause: an error, or a text.
    pub fn new(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(cause.into())
    }
}

/// Outbox rows of one cluster that a relay publishes together.
#[derive(Debug, Clone, Copy)]
pub struct OutboxBatch<'a> {
    /// Name of the cluster.
    pub cluster: &'a str,
    /// The epoch in which the relay publishes.
    pub epoch: &'a EpochRecord,
    /// The rows, in the order of their commits.
    pub rows: &'a [OutboxRow],
    /// A log position at or after the commit of each row.
    pub hi: u64,
}

/// Where a relay publishes.
#[async_trait]
pub trait OutboxSink: Send + Sync {
    /// A relay begins to publish in this epoch; everything after it belongs to the epoch, also rows
    /// that were published before. Returns when the sink has it durably.
    ///
    /// # Errors
    ///
    /// The sink is not available; the relay calls again.
    async fn begin_epoch(&self, cluster: &str, epoch: &EpochRecord) -> Result<(), PublishError>;

    /// Takes the rows of a batch in their order, all of them. Returns when the sink has them
    /// durably.
    ///
    /// # Errors
    ///
    /// The sink is not available, or a row cannot be decoded; the relay offers all rows again.
    async fn publish(&self, batch: OutboxBatch<'_>) -> Result<(), PublishError>;

    /// The contents that may have diverged: something was published about them that the history of
    /// `epoch` may lack, given the epochs before it; with the documents that its repair may join
    /// ([`DivergedContents`](tagfast_events::DivergedContents)). Called after
    /// [`OutboxSink::begin_epoch`], before anything of the epoch is published.
    ///
    /// # Errors
    ///
    /// The sink is not available; the relay calls again.
    async fn diverged_contents(
        &self,
        cluster: &str,
        epoch: &EpochRecord,
        past: &[EndedEpoch],
    ) -> Result<Vec<DivergedContent>, PublishError>;

    /// Every event that was committed before `at` (Unix ms) is published; `hi` as in
    /// [`OutboxBatch`].
    async fn complete_through(&self, cluster: &str, epoch: &EpochRecord, at: UnixMillis, hi: u64);
}

/// Acknowledges and keeps nothing: where there is no bus.
#[derive(Debug, Clone, Copy, Default)]
pub struct NullSink;

#[async_trait]
impl OutboxSink for NullSink {
    async fn begin_epoch(&self, _cluster: &str, _epoch: &EpochRecord) -> Result<(), PublishError> {
        Ok(())
    }

    async fn publish(&self, _: OutboxBatch<'_>) -> Result<(), PublishError> {
        Ok(())
    }

    async fn diverged_contents(
        &self,
        _: &str,
        _: &EpochRecord,
        _: &[EndedEpoch],
    ) -> Result<Vec<DivergedContent>, PublishError> {
        Ok(Vec::new())
    }

    async fn complete_through(&self, _: &str, _: &EpochRecord, _: UnixMillis, _: u64) {}
}
