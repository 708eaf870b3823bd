//! The index as a consumer of the bus.
//!
//! The bus keeps the positions: a batch that was written but not committed is written again, and
//! the server refuses it by version. Written documents are visible after a refresh; only then are
//! their positions done.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use reqwest::Method;
use serde_json::json;
use tagfast_domain::{ContentKey, EpochId, Version};
use tagfast_events::{
    ConsumerGroup, Partition, Positions, RebuildRequest, RecordVerdict, Sink, SinkError,
    SinkRecord, Start, VisibleThrough,
};
use tagfast_resilience::{ErrorChain, gauge, histogram};
use tagfast_search::indexed_state::{
    CONSUMER_GROUP, IndexedState, REBUILD_PAGE_MAX, TOMBSTONE_RETENTION_MS,
};
use tagfast_search::metrics::{COMMIT_SECONDS, LAG_SECONDS};
use tokio::time::Instant;

use crate::bulk::{self, Destination, Outcome};
use crate::engine::OpenSearchIndex;
use crate::error::systemic;
use crate::index_state::KnownIndex;
use crate::index_watch::{CheckTimeout, Usable};
use crate::write_progress::WriteProgress;

impl OpenSearchIndex {
    fn destination<'a>(&'a self, alias: &'a str, index: &'a KnownIndex) -> Destination<'a> {
        let now = self.clock.now_ms();
        Destination { client: &self.client, alias, index: &index.name, now }
    }

    /// Writes states to the index that a rebuild fills, if there is one.
    async fn write_next(
        &self,
        usable: &Usable,
        states: &[IndexedState<'_>],
    ) -> Result<(), SinkError> {
        let Some(next) = &usable.next else { return Ok(()) };
        let alias = self.client.next_alias();
        let Err(error) = self.destination(&alias, next).write(states).await else {
            return Ok(());
        };
        // It may just have become the served one, or its rebuild has ended.
        let now = self.watch.writable_now().await?;
        if now.next.as_ref() == Some(next) { Err(error) } else { Ok(()) }
    }

    /// Writes states to both indices. The next one first: a state in the served index is then in
    /// both.
    async fn write_both(
        &self,
        usable: &Usable,
        states: &[IndexedState<'_>],
    ) -> Result<Vec<RecordVerdict>, SinkError> {
        self.write_next(usable, states).await?;
        self.write_served(usable, states).await
    }

    /// Writes states to the served index.
    async fn write_served(
        &self,
        usable: &Usable,
        states: &[IndexedState<'_>],
    ) -> Result<Vec<RecordVerdict>, SinkError> {
        let destination = self.destination(&self.client.options.alias, &usable.served);
        let outcomes = match destination.write(states).await {
            Ok(outcomes) => outcomes,
            Err(error) => return Err(self.explained(error).await),
        };
        if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Refused(_))) {
            // The index that refuses a record must be the right one, before and after.
            let now = self.watch.writable_now().await?;
            if now.served != usable.served {
                return Err(systemic("the index was replaced while it refused a record"));
            }
        }
        let verdict = |outcome| match outcome {
            Outcome::Written => RecordVerdict::Applied,
            Outcome::Superseded => RecordVerdict::Superseded,
            Outcome::Refused(message) => RecordVerdict::Poison { code: "index_refused", message },
        };
        Ok(outcomes.into_iter().map(verdict).collect())
    }

    /// The state of the index if that is the cause of a failed write.
    async fn explained(&self, error: SinkError) -> SinkError {
        self.watch.suspect();
        let state = self.watch.now(CheckTimeout::Short).await;
        if !state.is_of_index() {
            return error;
        }
        let problem = state.problem(&self.client.options.alias);
        problem.map_or(error, |problem| systemic(problem.full_text()))
    }

    /// Runs `work` until it ends or the index is closed, which waits for it.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.lock().clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// Starts a refresh, which makes everything written so far visible, while writes go on.
    fn refresh(&self, positions: Positions) {
        let (client, progress) = (Arc::clone(&self.client), Arc::clone(&self.progress));
        self.spawn(async move {
            let path = format!("{}/_refresh", client.options.alias);
            let started = Instant::now();
            let refreshed = client.write(Method::POST, &path, None).await;
            if refreshed.is_ok() {
                histogram!(COMMIT_SECONDS).record(started.elapsed().as_secs_f64());
            }
            progress.lock().end_refresh(refreshed.map(|_| positions).map_err(systemic));
        });
    }

    /// Starts to remove expired tombstones while writes go on. If it fails, the next day's sweep
    /// repeats it.
    fn sweep_tombstones(&self, served: KnownIndex) {
        let oldest = self.clock.now_ms() - TOMBSTONE_RETENTION_MS;
        let client = Arc::clone(&self.client);
        self.spawn(async move {
            // An index without any document counts as emptied: the canary stays.
            let query = json!({"bool": {
                "filter": [{"term": {"gone": true}}, {"range": {"updated_at": {"lt": oldest}}}],
                "must_not": [{"term": {"tenant": bulk::CANARY_TENANT}}],
            }});
            match bulk::remove(&client, &served.name, &query).await {
                Ok(0) => {}
                Ok(removed) => {
                    tracing::info!(removed, "expired tombstones were removed from the search index")
                }
                Err(error) => {
                    let error = ErrorChain(&error);
                    tracing::warn!(
                        %error,
                        "expired tombstones were not removed from the search index"
                    )
                }
            }
        });
    }
}

#[async_trait]
impl Sink for OpenSearchIndex {
    fn group(&self) -> ConsumerGroup {
        CONSUMER_GROUP
    }

    async fn start(&self, _: EpochId, _: &[Partition]) -> Result<Start, SinkError> {
        self.indexes.store(true, Ordering::Relaxed);
        let state = self.watch.now(CheckTimeout::Long).await;
        if let Some(reason) = Self::reason_to_rebuild(&state) {
            return Ok(Start::Rebuild(reason));
        }
        self.watch.writable().await.map(|_| Start::Committed)
    }

    async fn apply(&self, records: &[SinkRecord]) -> Result<Vec<RecordVerdict>, SinkError> {
        self.indexes.store(true, Ordering::Relaxed);
        let usable = self.watch.writable().await?;
        let states: Vec<IndexedState<'_>> = records.iter().map(IndexedState::from_event).collect();
        let verdicts = match self.write_both(&usable, &states).await {
            Ok(verdicts) => verdicts,
            Err(error) => {
                // A rebuild may have replaced the index meanwhile.
                let now = self.watch.writable_now().await?;
                if now.served == usable.served {
                    return Err(error);
                }
                self.write_both(&now, &states).await?
            }
        };
        self.progress.lock().wrote(records.len() as u64);
        Ok(verdicts)
    }

    async fn canary(&self) -> Result<(), SinkError> {
        let usable = self.watch.writable_now().await?;
        let destination = self.destination(&self.client.options.alias, &usable.served);
        match destination.write_canary().await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explained(error).await),
        }
    }

    /// OpenSearch acknowledges a bulk request when it is in the translog of every copy.
    async fn flush(&self) -> Result<(), SinkError> {
        Ok(())
    }

    async fn versions(&self, keys: &[ContentKey]) -> Result<Vec<Option<Version>>, SinkError> {
        self.watch.writable().await?;
        let mut known = Vec::with_capacity(keys.len());
        for batch in keys.chunks(REBUILD_PAGE_MAX) {
            known.extend(bulk::versions(&self.client, batch).await?);
        }
        Ok(known)
    }

    async fn advance(&self, positions: &Positions) -> Result<Positions, SinkError> {
        // Before its partitions are assigned the consumer waits for nothing but them.
        if positions.is_empty() {
            return Ok(Positions::new());
        }
        // What the index does not hold any more is not visible, with or without new writes.
        let usable = self.watch.writable().await?;
        let (refresh, sweep) = {
            let mut progress = self.progress.lock();
            (progress.start_refresh(positions)?, progress.start_sweep())
        };
        if refresh {
            self.refresh(positions.clone());
        }
        if sweep {
            self.sweep_tombstones(usable.served);
        }
        Ok(self.progress.lock().visible())
    }

    fn visible(&self, visible: &VisibleThrough) {
        let whole = {
            let mut table = self.progress_table.lock();
            table.set_own(visible);
            table.oldest()
        };
        if let Some(at) = whole {
            self.visible.fetch_max(at, Ordering::AcqRel);
        }
        let Some(at) = visible.oldest() else { return };
        gauge!(LAG_SECONDS).set((self.clock.now_ms() - at).max(0) as f64 / 1000.0);
    }

    async fn rebuild(&self, request: RebuildRequest<'_>) -> Result<(), SinkError> {
        self.rebuild_for_runtime(&request).await?;
        *self.progress.lock() = WriteProgress::default();
        Ok(())
    }

    async fn close(&self) -> Result<(), SinkError> {
        let stop = std::mem::take(&mut *self.stop.lock());
        stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
        self.progress.lock().abort_refresh();
        Ok(())
    }
}
