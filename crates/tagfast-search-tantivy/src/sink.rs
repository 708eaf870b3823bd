//! The index as a sink of the bus. A rebuild fills a new generation while the old one serves.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, Document, EpochId, UnixMillis, Version};
use tagfast_events::{
    ConsumerGroup, Partition, Positions, RebuildRequest, RecordVerdict, Sink, SinkError,
    SinkRecord, Start, VisibleThrough,
};
use tagfast_resilience::{ErrorChain, counter, gauge, generation, task};
use tagfast_search::indexed_state::{CONSUMER_GROUP, IndexedState, REBUILD_PAGE_MAX};
use tagfast_search::metrics::{LAG_SECONDS, REBUILDS_TOTAL};
use tagfast_sharding::LogicalShard;
use tagfast_store::ScanRequest;

use crate::engine::TantivyIndex;
use crate::error::systemic;
use crate::index_writer::IndexWriterState;

/// A generation under construction; dropping it removes its directory unless it is finished.
struct GenerationBuilder {
    dir: PathBuf,
    finished: bool,
}

impl Drop for GenerationBuilder {
    fn drop(&mut self) {
        // The next start removes what cannot be removed now.
        if !self.finished {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SinkError> + Send + 'static,
) -> Result<T, SinkError> {
    task::blocking(work).await.map_err(systemic)?
}

impl TantivyIndex {
    /// Runs `work` with the writer on the blocking pool.
    async fn with_writer<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut IndexWriterState) -> tantivy::Result<T> + Send + 'static,
    ) -> Result<T, SinkError> {
        let (writer, snapshot) = (Arc::clone(&self.writer), Arc::clone(&self.snapshot));
        blocking(move || {
            let mut guard = writer.lock();
            let state = guard.as_mut().ok_or_else(|| systemic("there is no index yet"))?;
            let result = state.attempt(work).map_err(systemic)?;
            *snapshot.write() = Some(state.snapshot());
            Ok(result)
        })
        .await
    }

    /// Copies every content of the shards into a new generation; reports the number copied so far.
    async fn copy(
        &self,
        mut state: IndexWriterState,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<IndexWriterState, SinkError> {
        let now = self.clock.now_ms();
        let mut copied = 0;
        for shard in LogicalShard::all() {
            let mut after = None;
            loop {
                let page = self
                    .scanner
                    .scan(ScanRequest::of_all(shard, after.as_ref(), REBUILD_PAGE_MAX))
                    .await
                    .map_err(systemic)?;
                copied += page.items.len() as u64;
                state = blocking(move || copy_page(state, &page.items, now)).await?;
                progress(copied);
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(state)
    }
}

fn copy_page(
    mut state: IndexWriterState,
    items: &[(ContentKey, Document)],
    now: UnixMillis,
) -> Result<IndexWriterState, SinkError> {
    for (key, doc) in items {
        let indexed = IndexedState::from_document(key, doc);
        if !indexed.is_expired_tombstone(now) {
            state.copy(&indexed).map_err(systemic)?;
        }
    }
    Ok(state)
}

#[async_trait]
impl Sink for TantivyIndex {
    fn group(&self) -> ConsumerGroup {
        CONSUMER_GROUP
    }

    async fn start(&self, epoch: EpochId, _: &[Partition]) -> Result<Start, SinkError> {
        let state = self.writer.lock();
        Ok(match state.as_ref() {
            None => Start::Rebuild("there is no usable index"),
            Some(state) if state.epoch() != epoch.to_string() => {
                Start::Rebuild("the index belongs to a different epoch")
            }
            Some(state) => Start::From(state.committed().clone()),
        })
    }

    async fn apply(&self, records: &[SinkRecord]) -> Result<Vec<RecordVerdict>, SinkError> {
        let records = records.to_vec();
        self.with_writer(move |state| {
            records
                .iter()
                .map(|r| {
                    Ok(if state.put(&IndexedState::from_event(r))? {
                        RecordVerdict::Applied
                    } else {
                        RecordVerdict::Superseded
                    })
                })
                .collect()
        })
        .await
    }

    async fn flush(&self) -> Result<(), SinkError> {
        self.with_writer(|state| {
            // With the positions already committed: after a crash the consumer reads the records
            // beyond them again.
            let positions = state.committed().clone();
            state.commit(&positions)
        })
        .await
    }

    async fn versions(&self, keys: &[ContentKey]) -> Result<Vec<Option<Version>>, SinkError> {
        let keys = keys.to_vec();
        let known = self
            .with_writer(move |state| keys.iter().map(|key| state.version(key)).collect())
            .await?;
        let known: Vec<Option<u64>> = known;
        Ok(known.into_iter().map(|version| Version::from_packed(version?).ok()).collect())
    }

    async fn advance(&self, positions: &Positions) -> Result<Positions, SinkError> {
        let (positions, options, now) =
            (positions.clone(), self.options.clone(), self.clock.now_ms());
        self.with_writer(move |state| state.advance(&positions, &options, now)).await
    }

    fn visible(&self, visible: &VisibleThrough) {
        let Some(at) = visible.oldest() else { return };
        self.visible.fetch_max(at, Ordering::AcqRel);
        gauge!(LAG_SECONDS).set((self.clock.now_ms() - at).max(0) as f64 / 1000.0);
    }

    async fn rebuild(&self, request: RebuildRequest<'_>) -> Result<(), SinkError> {
        let RebuildRequest { from, epoch, progress } = request;
        let (root, options, epoch) = (self.dir.clone(), self.options.clone(), epoch.to_string());
        let (mut builder, state) = blocking(move || {
            let dir = generation::create(&root).map_err(systemic)?;
            let builder = GenerationBuilder { dir, finished: false };
            let state =
                IndexWriterState::create(&builder.dir, &options, epoch).map_err(systemic)?;
            Ok((builder, state))
        })
        .await?;
        let mut state = self.copy(state, progress).await?;
        let (from, root) = (from.clone(), self.dir.clone());
        let (writer, snapshot) = (Arc::clone(&self.writer), Arc::clone(&self.snapshot));
        blocking(move || {
            state.commit(&from).map_err(systemic)?;
            let mut serving = writer.lock();
            // The old writer ends before its files are removed; its searcher goes on serving.
            if let Some(Err(error)) = serving.take().map(IndexWriterState::abandon) {
                let error = ErrorChain(&error);
                tracing::warn!(%error, "the replaced search index did not end cleanly");
            }
            // From here on the new directory may be the current one, whatever the switch
            // returns.
            builder.finished = true;
            generation::switch(&root, &builder.dir).map_err(systemic)?;
            *snapshot.write() = Some(state.snapshot());
            *serving = Some(state);
            Ok(())
        })
        .await?;
        counter!(REBUILDS_TOTAL).increment(1);
        Ok(())
    }

    async fn close(&self) -> Result<(), SinkError> {
        let writer = Arc::clone(&self.writer);
        blocking(move || {
            let state = writer.lock().take();
            state.map_or(Ok(()), IndexWriterState::close).map_err(systemic)
        })
        .await
    }
}
