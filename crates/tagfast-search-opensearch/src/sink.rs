//! The index as a consumer of the bus.
//!
//! The bus keeps the positions: a batch that was written but not committed is written again, and
//! the server refuses it by version. Written documents are visible after a refresh; only then are
//! their positions done.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Method;
use serde_json::json;
use tagfast_domain::{Content, ContentId, ContentKey, ContentType, EpochId, TenantId, Version};
use tagfast_events::{
    ConsumerGroup, Partition, Positions, RebuildRequest, RecordVerdict, Sink, SinkError,
    SinkRecord, Start, VisibleThrough,
};
use tagfast_resilience::{ErrorChain, counter, gauge, histogram};
use tagfast_search::indexed_state::{
    CONSUMER_GROUP, IndexedState, REBUILD_PAGE_MAX, TOMBSTONE_RETENTION_MS,
};
use tagfast_search::metrics::{COMMIT_SECONDS, LAG_SECONDS, REBUILDS_TOTAL};
use tagfast_sharding::LogicalShard;
use tagfast_store::ScanRequest;
use tokio::time::Instant;

use crate::engine::OpenSearchIndex;
use crate::error::systemic;
use crate::rebuild_lock::RebuildLock;
use crate::write_progress::{LOCK_CACHE_TTL, WriteProgress};
use crate::{bulk, index};

/// Interval at which a rebuild renews its lock.
const LOCK_RENEW_INTERVAL: Duration = Duration::from_secs(5);

impl OpenSearchIndex {
    /// Whether writes must go to the index of a running rebuild as well.
    async fn is_rebuilding(&self) -> Result<bool, SinkError> {
        let seen = self.progress.lock().rebuild_seen();
        if let Some(rebuilding) = seen {
            return Ok(rebuilding);
        }
        let requested_at = Instant::now();
        let rebuilding = index::is_rebuilding(&self.client).await.map_err(systemic)?;
        self.progress.lock().see_rebuild(requested_at, rebuilding);
        Ok(rebuilding)
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
    fn sweep_tombstones(&self) {
        let oldest = self.clock.now_ms() - TOMBSTONE_RETENTION_MS;
        let client = Arc::clone(&self.client);
        self.spawn(async move {
            let query = json!({"bool": {"filter": [
                {"term": {"gone": true}}, {"range": {"updated_at": {"lt": oldest}}},
            ]}});
            match bulk::remove(&client, &client.options.alias, &query).await {
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

    /// Copies every content of the shards into the index behind `alias`; reports the number copied
    /// so far.
    async fn copy(
        &self,
        alias: &str,
        lock: &mut RebuildLock,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), SinkError> {
        let now = self.clock.now_ms();
        let (mut copied, mut renewed_at) = (0, Instant::now());
        for shard in LogicalShard::all() {
            let mut after = None;
            loop {
                if renewed_at.elapsed() > LOCK_RENEW_INTERVAL {
                    lock.renew(&self.client, self.clock.now_ms()).await.map_err(systemic)?;
                    renewed_at = Instant::now();
                }
                let page = self
                    .scanner
                    .scan(ScanRequest::of_all(shard, after.as_ref(), REBUILD_PAGE_MAX))
                    .await
                    .map_err(systemic)?;
                let states: Vec<IndexedState<'_>> = page
                    .items
                    .iter()
                    .map(|(key, document)| IndexedState::from_document(key, document))
                    .filter(|state| !state.is_expired_tombstone(now))
                    .collect();
                for (verdict, state) in
                    bulk::write(&self.client, alias, &states).await?.iter().zip(&states)
                {
                    match verdict {
                        RecordVerdict::Applied | RecordVerdict::Superseded => {}
                        RecordVerdict::Failed { message, .. } => {
                            return Err(systemic(message.as_str()));
                        }
                        RecordVerdict::Poison { message, .. } => {
                            tracing::error!(
                                content = %state.key,
                                message,
                                "the index refuses a content of the shards"
                            );
                        }
                    }
                }
                copied += page.items.len() as u64;
                progress(copied);
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl OpenSearchIndex {
    /// Creates the next index, fills it and makes it the served one.
    async fn build(
        &self,
        lock: &mut RebuildLock,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), SinkError> {
        let name = index::create_next(&self.client).await.map_err(systemic)?;
        // Other indexers may not know of the next index yet. After this wait they write to both;
        // what they wrote before is in the shards.
        if index::check(&self.client).await.map_err(systemic)?.is_some() {
            tokio::time::sleep(2 * LOCK_CACHE_TTL).await;
        }
        self.copy(&self.client.next_alias(), lock, progress).await?;
        self.client
            .write(Method::POST, &format!("{name}/_refresh"), None)
            .await
            .map_err(systemic)?;
        // The lock is still held: no other process has created an index since.
        lock.renew(&self.client, self.clock.now_ms()).await.map_err(systemic)?;
        index::switch(&self.client, &name).await.map_err(systemic)
    }
}

#[async_trait]
impl Sink for OpenSearchIndex {
    fn group(&self) -> ConsumerGroup {
        CONSUMER_GROUP
    }

    async fn start(&self, _: EpochId, _: &[Partition]) -> Result<Start, SinkError> {
        match index::check(&self.client).await.map_err(systemic)? {
            Some(_) => Ok(Start::Committed),
            None => Ok(Start::Rebuild("there is no index yet")),
        }
    }

    async fn apply(&self, records: &[SinkRecord]) -> Result<Vec<RecordVerdict>, SinkError> {
        let states: Vec<IndexedState<'_>> = records.iter().map(IndexedState::from_event).collect();
        // The next index first: a state in the served index is then in both.
        if self.is_rebuilding().await? {
            let next = self.client.next_alias();
            let written = bulk::write(&self.client, &next, &states).await;
            // The next index may just have become the served one.
            if let Err(error) = written
                && index::is_rebuilding(&self.client).await.map_err(systemic)?
            {
                return Err(error);
            }
        }
        let verdicts = bulk::write(&self.client, &self.client.options.alias, &states).await?;
        self.progress.lock().wrote(records.len() as u64);
        Ok(verdicts)
    }

    async fn canary(&self) -> Result<(), SinkError> {
        let key = ContentKey {
            tenant: TenantId::reserved("_canary"),
            content: Content {
                content_type: ContentType::parse("canary").map_err(systemic)?,
                content_id: ContentId::parse("1").map_err(systemic)?,
            },
        };
        let now = self.clock.now_ms();
        let version = Version::from_packed(now.max(0).unsigned_abs()).map_err(systemic)?;
        // Without tags, no query finds it and no count includes it.
        let state = IndexedState { key: &key, version, updated_at: now, tags: Vec::new() };
        match bulk::write(&self.client, &self.client.options.alias, &[state]).await?.first() {
            Some(RecordVerdict::Applied | RecordVerdict::Superseded) => Ok(()),
            Some(RecordVerdict::Poison { message, .. } | RecordVerdict::Failed { message, .. }) => {
                Err(systemic(message.as_str()))
            }
            None => Err(systemic("the canary has no verdict")),
        }
    }

    /// OpenSearch acknowledges a bulk request when it is in the translog of every copy.
    async fn flush(&self) -> Result<(), SinkError> {
        Ok(())
    }

    async fn versions(&self, keys: &[ContentKey]) -> Result<Vec<Option<Version>>, SinkError> {
        let mut known = Vec::with_capacity(keys.len());
        for batch in keys.chunks(REBUILD_PAGE_MAX) {
            known.extend(bulk::versions(&self.client, batch).await?);
        }
        Ok(known)
    }

    async fn advance(&self, positions: &Positions) -> Result<Positions, SinkError> {
        let (refresh, sweep) = {
            let mut progress = self.progress.lock();
            (progress.start_refresh(positions)?, progress.start_sweep())
        };
        if refresh {
            self.refresh(positions.clone());
        }
        if sweep {
            self.sweep_tombstones();
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
        let mut lock = RebuildLock::acquire(&self.client, &self.owner, self.clock.now_ms())
            .await
            .map_err(systemic)?;
        let built = self.build(&mut lock, request.progress).await;
        lock.release(&self.client).await;
        built?;
        *self.progress.lock() = WriteProgress::default();
        counter!(REBUILDS_TOTAL).increment(1);
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
