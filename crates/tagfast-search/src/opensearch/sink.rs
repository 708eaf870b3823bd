//! The index as a consumer of the bus.
//!
//! The bus remembers the position: a batch that was written but not committed is written again, and
//! refused by version. What is written is visible after a refresh; only then is it done.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Method;
use serde_json::json;
use tagfast_domain::{Content, ContentId, ContentKey, ContentType, EpochId, TenantId, Version};
use tagfast_events::{
    Group, Partition, Positions, RecordVerdict, Sink, SinkError, SinkRecord, Start, Visible,
};
use tagfast_sharding::LogicalShard;
use tokio::time::Instant;

use super::OpenSearchIndex;
use super::bulk::{self, systemic};
use super::index;
use super::lock::{Lock, NotTaken};
use crate::entry::{Entry, GONE_AGE_MS, GROUP, PAGE};

/// Between two refreshes.
const REFRESH: Duration = Duration::from_millis(200);
/// Between two refreshes while much is written: each costs as much as thousands of documents and
/// makes segments to merge.
const REFRESH_BUSY: Duration = Duration::from_secs(2);
/// Documents a second that are much.
const BUSY: u64 = 3000;
/// How long what is known of a rebuild may be used. A rebuild waits for longer before it begins to
/// copy.
const KNOWN_FOR: Duration = Duration::from_secs(1);
/// Between two words of a rebuild that it lives.
const RENEW: Duration = Duration::from_secs(5);
/// Between two sweeps of old tombstones.
const SWEEP: Duration = Duration::from_secs(86_400);

/// What was written and is not visible yet.
#[derive(Default)]
pub(super) struct Progress {
    visible: Positions,
    /// Something was written since the last refresh began.
    dirty: bool,
    /// A refresh is under way: what it will have made visible is not told before it ends.
    refreshing: bool,
    /// Why the last one failed, until somebody is told.
    failed: Option<SinkError>,
    refreshed_at: Option<Instant>,
    written: u64,
    /// Whether another index is being filled, and when that was seen.
    rebuilding: Option<(Instant, bool)>,
    swept_at: Option<Instant>,
}

impl OpenSearchIndex {
    /// Whether writes go to a second index, too.
    async fn is_rebuilding(&self) -> Result<bool, SinkError> {
        if let Some((seen, rebuilding)) = self.progress().rebuilding
            && seen.elapsed() < KNOWN_FOR
        {
            return Ok(rebuilding);
        }
        let asked = Instant::now();
        let rebuilding = index::is_rebuilding(&self.client).await.map_err(systemic)?;
        self.progress().rebuilding = Some((asked, rebuilding));
        Ok(rebuilding)
    }

    /// Makes visible what was written until now, while more is written.
    fn refresh(&self, positions: Positions) {
        let (client, progress) = (Arc::clone(&self.client), Arc::clone(&self.progress));
        tokio::spawn(async move {
            let path = format!("{}/_refresh", client.options.alias);
            let started = Instant::now();
            let refreshed = client.change(Method::POST, &path, None).await;
            let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
            progress.refreshing = false;
            progress.refreshed_at = Some(Instant::now());
            match refreshed {
                Ok(_) => {
                    metrics::histogram!("tagfast_search_commit_seconds")
                        .record(started.elapsed().as_secs_f64());
                    progress.visible = positions;
                }
                Err(error) => {
                    progress.dirty = true;
                    progress.failed = Some(systemic(error));
                }
            }
        });
    }

    /// Removes tombstones that no late event can need any more, while more is written. It may fail:
    /// the next day it is tried again.
    fn sweep(&self) {
        let oldest = self.clock.now_ms() - GONE_AGE_MS;
        let client = Arc::clone(&self.client);
        tokio::spawn(async move {
            let query = json!({"bool": {"filter": [
                {"term": {"gone": true}}, {"range": {"updated_at": {"lt": oldest}}},
            ]}});
            match bulk::remove(&client, &client.options.alias, &query).await {
                Ok(0) => {}
                Ok(removed) => {
                    tracing::info!(removed, "old tombstones were removed from the search index")
                }
                Err(error) => {
                    tracing::warn!(%error, "old tombstones were not removed from the search index")
                }
            }
        });
    }

    /// Copies every content of the shards into the index behind an alias.
    async fn copy(
        &self,
        alias: &str,
        lock: &mut Lock,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), SinkError> {
        let now = self.clock.now_ms();
        let (mut copied, mut renewed_at) = (0, Instant::now());
        for shard in LogicalShard::all() {
            let mut after = None;
            loop {
                if renewed_at.elapsed() > RENEW {
                    lock.renew(&self.client, self.clock.now_ms()).await.map_err(systemic)?;
                    renewed_at = Instant::now();
                }
                let page =
                    self.scanner.scan(shard, None, after.as_ref(), PAGE).await.map_err(systemic)?;
                let entries: Vec<Entry<'_>> = page
                    .items
                    .iter()
                    .map(|(key, document)| Entry::of_document(key, document))
                    .filter(|entry| !entry.is_swept(now))
                    .collect();
                for (verdict, entry) in
                    bulk::write(&self.client, alias, &entries).await?.iter().zip(&entries)
                {
                    match verdict {
                        RecordVerdict::Applied | RecordVerdict::Superseded => {}
                        RecordVerdict::Failed { message, .. } => return Err(systemic(message)),
                        RecordVerdict::Poison { message, .. } => {
                            tracing::error!(content = %entry.key, message, "the index refuses a content of the shards");
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
    /// Makes the next index, fills it and serves it.
    async fn build(
        &self,
        lock: &mut Lock,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), SinkError> {
        let name = index::begin(&self.client).await.map_err(systemic)?;
        // Until here others may not know of it: what they write after this they write to both, what
        // they wrote before is in the shards.
        if index::check(&self.client).await.map_err(systemic)?.is_some() {
            tokio::time::sleep(2 * KNOWN_FOR).await;
        }
        self.copy(&self.client.next_alias(), lock, progress).await?;
        self.client
            .change(Method::POST, &format!("{name}/_refresh"), None)
            .await
            .map_err(systemic)?;
        // Still ours: nobody else has begun another one.
        lock.renew(&self.client, self.clock.now_ms()).await.map_err(systemic)?;
        index::switch(&self.client, &name).await.map_err(systemic)
    }
}

#[async_trait]
impl Sink for OpenSearchIndex {
    fn group(&self) -> Group {
        GROUP
    }

    async fn start(&self, _: EpochId, _: &[Partition]) -> Result<Start, SinkError> {
        match index::check(&self.client).await.map_err(systemic)? {
            Some(_) => Ok(Start::Committed),
            None => Ok(Start::Rebuild("there is no index yet")),
        }
    }

    async fn apply(&self, records: &[SinkRecord]) -> Result<Vec<RecordVerdict>, SinkError> {
        let entries: Vec<Entry<'_>> = records.iter().map(Entry::of_event).collect();
        // The next index first: what is in the served one is then in both.
        if self.is_rebuilding().await? {
            let next = self.client.next_alias();
            let written = bulk::write(&self.client, &next, &entries).await;
            // It may just have been switched: the served one is it then.
            if let Err(error) = written
                && index::is_rebuilding(&self.client).await.map_err(systemic)?
            {
                return Err(error);
            }
        }
        let verdicts = bulk::write(&self.client, &self.client.options.alias, &entries).await?;
        let mut progress = self.progress();
        progress.dirty = true;
        progress.written += records.len() as u64;
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
        // Without tags: no query finds it, no count counts it.
        let entry = Entry { key: &key, version, updated_at: now, tags: Vec::new() };
        match bulk::write(&self.client, &self.client.options.alias, &[entry]).await?.first() {
            Some(RecordVerdict::Applied | RecordVerdict::Superseded) => Ok(()),
            Some(RecordVerdict::Poison { message, .. } | RecordVerdict::Failed { message, .. }) => {
                Err(systemic(message))
            }
            None => Err(systemic("the canary was not answered")),
        }
    }

    /// A bulk is acknowledged when it is in the translog of every copy.
    async fn flush(&self) -> Result<(), SinkError> {
        Ok(())
    }

    async fn versions(&self, keys: &[ContentKey]) -> Result<Vec<Option<Version>>, SinkError> {
        let mut known = Vec::with_capacity(keys.len());
        for piece in keys.chunks(PAGE) {
            known.extend(bulk::versions(&self.client, piece).await?);
        }
        Ok(known)
    }

    async fn advance(&self, positions: &Positions) -> Result<Positions, SinkError> {
        let sweep = {
            let mut progress = self.progress();
            if let Some(failed) = progress.failed.take() {
                return Err(failed);
            }
            let since = progress.refreshed_at.map(|at| at.elapsed());
            let busy = since.is_some_and(|since| {
                progress.written as f64 > BUSY as f64 * since.as_secs_f64().max(0.2)
            });
            let pause = if busy { REFRESH_BUSY } else { REFRESH };
            if progress.dirty && !progress.refreshing && since.is_none_or(|since| since >= pause) {
                (progress.dirty, progress.refreshing, progress.written) = (false, true, 0);
                // The runtime calls one after the other: everything below these positions was
                // written before.
                self.refresh(positions.clone());
            } else if !progress.dirty && !progress.refreshing {
                progress.visible.clone_from(positions);
            }
            let sweep = progress.swept_at.is_none_or(|at| at.elapsed() > SWEEP);
            if sweep {
                progress.swept_at = Some(Instant::now());
            }
            sweep
        };
        if sweep {
            self.sweep();
        }
        Ok(self.progress().visible.clone())
    }

    fn visible(&self, visible: &Visible) {
        let whole = {
            let mut shared = super::shared::lock(&self.shared);
            shared.see(visible);
            shared.oldest()
        };
        if let Some(at) = whole {
            self.visible.fetch_max(at, Ordering::AcqRel);
        }
        let Some(at) = visible.oldest() else { return };
        metrics::gauge!("tagfast_search_lag_seconds")
            .set((self.clock.now_ms() - at).max(0) as f64 / 1000.0);
    }

    async fn rebuild(
        &self,
        _: &Positions,
        _: EpochId,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), SinkError> {
        let mut lock = match Lock::take(&self.client, &self.owner, self.clock.now_ms()).await {
            Ok(lock) => lock,
            Err(NotTaken::Busy) => {
                return Err(systemic(
                    "another process rebuilds the index; this one waits for its turn",
                ));
            }
            Err(NotTaken::Failed(failure)) => return Err(systemic(failure)),
        };
        let built = self.build(&mut lock, progress).await;
        lock.release(&self.client).await;
        built?;
        *self.progress() = Progress::default();
        metrics::counter!("tagfast_search_rebuilds_total").increment(1);
        Ok(())
    }

    async fn close(&self) -> Result<(), SinkError> {
        Ok(())
    }
}
