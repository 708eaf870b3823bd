//! Continues the trace of a write in the consumers that apply its event.
//!
//! The event carries the `traceparent` of its newest write. While a batch is applied there is one
//! span per sampled event, as long as the batch takes. Without trace export, sinks are not wrapped.

use std::sync::Arc;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, EpochId, Version};
use tagfast_events::{
    ConsumerGroup, Partition, Positions, RebuildRequest, RecordVerdict, Sink, SinkError,
    SinkRecord, Start, VisibleThrough,
};

use super::trace;

/// Spans per batch, at most: a rebuild must not be traced record by record.
const BATCH_SPANS_MAX: usize = 32;

/// A sink whose batches are traced.
pub(crate) struct TracedSink(pub(crate) Arc<dyn Sink>);

#[async_trait]
impl Sink for TracedSink {
    fn group(&self) -> ConsumerGroup {
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
        let spans: Vec<tracing::Span> = sampled.take(BATCH_SPANS_MAX).collect();
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

    fn rebuilds_in_parts(&self) -> bool {
        self.0.rebuilds_in_parts()
    }

    async fn rebuild(&self, request: RebuildRequest<'_>) -> Result<(), SinkError> {
        self.0.rebuild(request).await
    }

    fn visible(&self, visible: &VisibleThrough) {
        self.0.visible(visible);
    }

    async fn close(&self) -> Result<(), SinkError> {
        self.0.close().await
    }
}
