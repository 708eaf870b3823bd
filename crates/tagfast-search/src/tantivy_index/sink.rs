//! The index as a sink of the bus: events in, a rebuild aside while the old generation serves.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use tagfast_domain::{ContentKey, Document, EpochId, UnixMillis, Version};
use tagfast_events::{
    Group, Partition, Positions, RecordVerdict, Sink, SinkError, SinkRecord, Start, Visible,
};
use tagfast_resilience::generation;
use tagfast_sharding::LogicalShard;

use super::TantivyIndex;
use super::writer::WriterState;
use crate::entry::{Entry, GROUP, PAGE};

fn systemic(error: impl std::fmt::Display) -> SinkError {
    SinkError { code: "search_index", message: error.to_string() }
}

/// A generation under construction: its directory goes away with it unless it was finished.
struct Building {
    dir: PathBuf,
    finished: bool,
}

impl Drop for Building {
    fn drop(&mut self) {
        // What cannot be removed now goes with the next start.
        if !self.finished {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SinkError> + Send + 'static,
) -> Result<T, SinkError> {
    tokio::task::spawn_blocking(work).await.map_err(systemic)?
}

impl TantivyIndex {
    /// Runs with the writer on the blocking pool.
    async fn with_writer<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut WriterState) -> tantivy::Result<T> + Send + 'static,
    ) -> Result<T, SinkError> {
        let (writer, live) = (Arc::clone(&self.writer), Arc::clone(&self.live));
        blocking(move || {
            let mut guard = writer.lock().unwrap_or_else(PoisonError::into_inner);
            let state = guard.as_mut().ok_or_else(|| systemic("there is no index yet"))?;
            let result = state.attempt(work).map_err(systemic)?;
            *live.write().unwrap_or_else(PoisonError::into_inner) = Some(state.live());
            Ok(result)
        })
        .await
    }

    /// Copies every content of the shards into a new generation.
    async fn copy(
        &self,
        mut state: WriterState,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<WriterState, SinkError> {
        let now = self.clock.now_ms();
        let mut copied = 0;
        for shard in LogicalShard::all() {
            let mut after = None;
            loop {
                let page =
                    self.scanner.scan(shard, None, after.as_ref(), PAGE).await.map_err(systemic)?;
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
    mut state: WriterState,
    items: &[(ContentKey, Document)],
    now: UnixMillis,
) -> Result<WriterState, SinkError> {
    for (key, doc) in items {
        let entry = Entry::of_document(key, doc);
        if !entry.is_swept(now) {
            state.copy(&entry).map_err(systemic)?;
        }
    }
    Ok(state)
}

#[async_trait]
impl Sink for TantivyIndex {
    fn group(&self) -> Group {
        GROUP
    }

    async fn start(&self, epoch: EpochId, _: &[Partition]) -> Result<Start, SinkError> {
        let state = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match state.as_ref() {
            None => Start::Rebuild("there is no usable index"),
            Some(state) if state.epoch() != epoch.to_string() => {
                Start::Rebuild("the index is of another epoch")
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
                    Ok(if state.put(&Entry::of_event(r))? {
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
            // With the positions it has: what lies between them and the records just put is read
            // once more after a crash.
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

    fn visible(&self, visible: &Visible) {
        let Some(at) = visible.oldest() else { return };
        self.visible.fetch_max(at, Ordering::AcqRel);
        metrics::gauge!("tagfast_search_lag_seconds")
            .set((self.clock.now_ms() - at).max(0) as f64 / 1000.0);
    }

    async fn rebuild(
        &self,
        from: &Positions,
        epoch: EpochId,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), SinkError> {
        let (root, options, epoch) = (self.dir.clone(), self.options.clone(), epoch.to_string());
        let (mut building, state) = blocking(move || {
            let dir = generation::create(&root).map_err(systemic)?;
            let building = Building { dir, finished: false };
            let state = WriterState::create(&building.dir, &options, epoch).map_err(systemic)?;
            Ok((building, state))
        })
        .await?;
        let mut state = self.copy(state, progress).await?;
        let (from, root) = (from.clone(), self.dir.clone());
        let (writer, live) = (Arc::clone(&self.writer), Arc::clone(&self.live));
        blocking(move || {
            state.commit(&from).map_err(systemic)?;
            let mut serving = writer.lock().unwrap_or_else(PoisonError::into_inner);
            // The old writer ends before its files go; its searcher serves on.
            if let Some(Err(error)) = serving.take().map(WriterState::abandon) {
                tracing::warn!(%error, "the replaced search index did not end cleanly");
            }
            // From here on the new directory may be the one that counts, whatever the switch
            // answers.
            building.finished = true;
            generation::switch(&root, &building.dir).map_err(systemic)?;
            *live.write().unwrap_or_else(PoisonError::into_inner) = Some(state.live());
            *serving = Some(state);
            Ok(())
        })
        .await?;
        metrics::counter!("tagfast_search_rebuilds_total").increment(1);
        Ok(())
    }

    async fn close(&self) -> Result<(), SinkError> {
        let writer = Arc::clone(&self.writer);
        blocking(move || {
            let state = writer.lock().unwrap_or_else(PoisonError::into_inner).take();
            state.map_or(Ok(()), WriterState::close).map_err(systemic)
        })
        .await
    }
}
