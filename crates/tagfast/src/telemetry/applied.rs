//! Joins the trace of a write to what consumers do with its event.
//!
//! The event carries the `traceparent` of its newest write; while a batch is applied there is a
//! span for each sampled one, as long as the batch takes. Without traces nothing is wrapped and
//! nothing costs anything.

use std::sync::Arc;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, EpochId, Version};
use tagfast_events::{
    Group, Partition, Positions, RecordVerdict, Sink, SinkError, SinkRecord, Start, Visible,
};

use super::trace;

/// Spans of one batch at most: a replay of everything is not to be traced record by record.
const SPANS: usize = 32;

/// A sink whose batches are traced.
pub struct Traced(pub Arc<dyn Sink>);

#[async_trait]
impl Sink for Traced {
    fn group(&self) -> Group {
        self.0.group()
    }

    async fn start(&self, epoch: EpochId, partitions: &[Partition]) -> Result<Start, SinkError> {
        self.0.start(epoch, partitions).await
    }

    fn end(&self, partitions: &[Partition]) {
        self.0.end(partitions);
    }

    async fn apply(&self, records: &[SinkRecord]) -> Result<Vec<RecordVerdict>, SinkError> {
        let sampled = records.iter().filter_map(|record| {
            let parent = record.event.changes.last()?.traceparent.as_deref()?;
            trace::applied(self.group().0, &record.event.key, parent)
        });
        let spans: Vec<tracing::Span> = sampled.take(SPANS).collect();
        let verdicts = self.0.apply(records).await;
        drop(spans);
        verdicts
    }

    async fn canary(&self) -> Result<(), SinkError> {
        self.0.canary().await
    }

    async fn flush(&self) -> Result<(), SinkError> {
        self.0.flush().await
    }

    async fn versions(&self, keys: &[ContentKey]) -> Result<Vec<Option<Version>>, SinkError> {
        self.0.versions(keys).await
    }

    async fn advance(&self, positions: &Positions) -> Result<Positions, SinkError> {
        self.0.advance(positions).await
    }

    async fn rebuild(
        &self,
        from: &Positions,
        epoch: EpochId,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), SinkError> {
        self.0.rebuild(from, epoch, progress).await
    }

    fn visible(&self, visible: &Visible) {
        self.0.visible(visible);
    }

    async fn close(&self) -> Result<(), SinkError> {
        self.0.close().await
    }
}
