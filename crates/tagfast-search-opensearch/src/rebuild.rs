//! Rebuilding the index: for the indexer that needs it, for an operator, and without help when the
//! index is gone or is not the one that was filled.
//!
//! A rebuild fills the next index while every indexer writes to both, proves that it was not
//! changed meanwhile, and makes it the served one. The positions of the bus need no change: what
//! is below them was in the shards before the copy began.
//!
//! How it fails: an index that is changed or deleted from outside while it is filled ends the
//! rebuild, which begins again. A second process waits for its turn and then finds the index
//! usable.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::Method;
use tagfast_events::{RebuildRequest, SinkError};
use tagfast_resilience::task::{BackgroundTask, StopSignal};
use tagfast_resilience::{ErrorChain, OutageLog, counter};
use tagfast_search::IndexedState;
use tagfast_search::indexed_state::REBUILD_PAGE_MAX;
use tagfast_search::metrics::REBUILDS_TOTAL;
use tagfast_sharding::LogicalShard;
use tagfast_store::ScanRequest;
use tokio::sync::MutexGuard;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::bulk::{Destination, Outcome};
use crate::engine::OpenSearchIndex;
use crate::error::{ReindexError, systemic};
use crate::facts;
use crate::index;
use crate::index_state::{Healing, IndexState, KnownIndex, next};
use crate::index_watch::{CheckTimeout, STATE_TTL};
use crate::rebuild_lock::{LockError, RebuildLock};

/// Interval between two checks of the index by a process that has nothing else to ask.
const CHECK_INTERVAL: Duration = Duration::from_millis(800);
/// Checks in a row that must find the index lost before it is rebuilt without help: an alias that
/// is moved in two steps is not lost.
const LOST_CHECKS_MIN: u32 = 3;
/// Interval at which a rebuild renews its lock.
const LOCK_RENEW_INTERVAL: Duration = Duration::from_secs(5);
/// Pause after a rebuild without help that failed.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// Timeout of a look at the facts during a rebuild.
const FACTS_TIMEOUT: Duration = Duration::from_secs(30);

/// The running checks of the index; dropping it ends them.
pub struct IndexKeeper(BackgroundTask);

impl IndexKeeper {
    /// Ends the checks and waits for them. A rebuild without help is left unfinished.
    pub async fn stop(&self) {
        // The task logs its own panic.
        let _ = self.0.stop().await;
    }
}

/// A rebuild in this process; dropping it lets the next one begin.
pub(crate) struct RunningRebuild<'a> {
    index: &'a OpenSearchIndex,
    _alone: MutexGuard<'a, ()>,
}

impl<'a> RunningRebuild<'a> {
    fn begin(index: &'a OpenSearchIndex, alone: MutexGuard<'a, ()>) -> Self {
        index.copied.store(0, Ordering::Relaxed);
        index.rebuilding.store(true, Ordering::Relaxed);
        Self { index, _alone: alone }
    }
}

impl Drop for RunningRebuild<'_> {
    fn drop(&mut self) {
        self.index.rebuilding.store(false, Ordering::Relaxed);
    }
}

impl OpenSearchIndex {
    /// Checks the index about once a second, so that a problem is known without traffic, and
    /// rebuilds it without help if this process indexes.
    pub fn keep(self: &Arc<Self>) -> IndexKeeper {
        let index = Arc::clone(self);
        IndexKeeper(BackgroundTask::spawn("search index keeper", async move |stop: StopSignal| {
            let _ = stop.run_until_cancelled(index.check_for_ever()).await;
        }))
    }

    async fn check_for_ever(&self) {
        let outage = OutageLog::new("rebuilding the search index without help");
        let mut due = tokio::time::interval(CHECK_INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut lost, mut not_before) = (0, Instant::now());
        loop {
            due.tick().await;
            let state = self.watch.now(CheckTimeout::Short).await;
            let heals = state.healing() == Healing::Rebuild;
            lost = if heals && self.indexes.load(Ordering::Relaxed) { lost + 1 } else { 0 };
            if lost < LOST_CHECKS_MIN || Instant::now() < not_before {
                continue;
            }
            // The runtime or an operator may be rebuilding it.
            let Ok(alone) = self.one_rebuild.try_lock() else { continue };
            // The checks go on meanwhile: others must see what becomes of the index.
            let _running = RunningRebuild::begin(self, alone);
            let report = |copied| self.copied.store(copied, Ordering::Relaxed);
            let rebuilt = tokio::select! {
                biased;
                rebuilt = self.rebuild_if_lost(&report) => rebuilt,
                never = self.go_on_checking(&mut due) => match never {},
            };
            *self.rebuild_failure.lock() =
                rebuilt.as_ref().err().map(|e| ErrorChain(e).to_string());
            match rebuilt {
                Ok(()) => {
                    outage.recovered();
                    lost = 0;
                }
                Err(error) => {
                    outage.failed(&error);
                    not_before = Instant::now() + RETRY_DELAY;
                }
            }
        }
    }

    async fn go_on_checking(&self, due: &mut Interval) -> Infallible {
        loop {
            due.tick().await;
            self.watch.now(CheckTimeout::Short).await;
        }
    }

    /// Rebuilds the index unless another process has done so meanwhile.
    async fn rebuild_if_lost(
        &self,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), SinkError> {
        let lock = match self.acquire_lock().await {
            Ok(lock) => lock,
            // Its rebuild is this one's.
            Err(LockError::Busy) => return Ok(()),
            Err(error) => return Err(systemic(error)),
        };
        if self.watch.now(CheckTimeout::Long).await.healing() != Healing::Rebuild {
            lock.release(&self.client).await;
            return Ok(());
        }
        tracing::info!("the search index is rebuilt from the shards");
        let copied = self.build_with(lock, progress).await?;
        tracing::info!(contents = copied, "the search index is rebuilt");
        Ok(())
    }

    /// Rebuilds the index for an operator, in whatever state it is; returns the contents copied.
    /// The consumer goes on meanwhile.
    ///
    /// # Errors
    ///
    /// [`ReindexError::AlreadyRunning`] while this process rebuilds it,
    /// [`ReindexError::Impossible`] in a state that a rebuild cannot end,
    /// [`ReindexError::Failed`] if another process rebuilds it or a step failed. Never waits for a
    /// server that does not answer longer than for one request.
    pub async fn reindex(&self) -> Result<u64, ReindexError> {
        let Ok(alone) = self.one_rebuild.try_lock() else {
            let copied = self.copied.load(Ordering::Relaxed);
            return Err(ReindexError::AlreadyRunning { copied });
        };
        let _running = RunningRebuild::begin(self, alone);
        let state = self.watch.now(CheckTimeout::Short).await;
        if let Some(problem) = state.problem(&self.client.options.alias)
            && state.healing() == Healing::Outside
        {
            return Err(ReindexError::Impossible(problem.full_text()));
        }
        let lock = self.acquire_lock().await.map_err(|e| ReindexError::Failed(systemic(e)))?;
        let report = |copied| self.copied.store(copied, Ordering::Relaxed);
        self.build_with(lock, &report).await.map_err(ReindexError::Failed)
    }

    /// Contents that the running rebuild of this process has copied; `None` if none runs.
    pub fn rebuilding(&self) -> Option<u64> {
        let running = self.rebuilding.load(Ordering::Relaxed);
        running.then(|| self.copied.load(Ordering::Relaxed))
    }

    /// Rebuilds the index for the consumer runtime.
    pub(crate) async fn rebuild_for_runtime(
        &self,
        request: &RebuildRequest<'_>,
    ) -> Result<(), SinkError> {
        let alone = self.one_rebuild.lock().await;
        let _running = RunningRebuild::begin(self, alone);
        let lock = self.acquire_lock().await.map_err(systemic)?;
        let report = |copied| {
            self.copied.store(copied, Ordering::Relaxed);
            (request.progress)(copied);
        };
        self.build_with(lock, &report).await.map(drop)
    }

    async fn acquire_lock(&self) -> Result<RebuildLock, LockError> {
        let seen = &self.lock_seen;
        RebuildLock::acquire(&self.client, &self.owner, self.clock.now_ms(), seen).await
    }

    async fn build_with(
        &self,
        mut lock: RebuildLock,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<u64, SinkError> {
        let built = self.build(&mut lock, progress).await;
        lock.release(&self.client).await;
        self.watch.suspect();
        let copied = built?;
        counter!(REBUILDS_TOTAL).increment(1);
        Ok(copied)
    }

    /// Creates the next index, fills it and makes it the served one; returns the contents copied.
    async fn build(
        &self,
        lock: &mut RebuildLock,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<u64, SinkError> {
        let state = self.watch.now(CheckTimeout::Long).await;
        if state.healing() == Healing::Outside {
            let problem = state.problem(&self.client.options.alias);
            return Err(systemic(problem.map(|p| p.full_text()).unwrap_or_default()));
        }
        let before = facts::read(&self.client, FACTS_TIMEOUT).await.map_err(systemic)?;
        let name = index::create_next(&self.client, &before).await.map_err(systemic)?;
        self.watch.suspect();
        let new = self.next_index().await?;
        if new.name != name {
            return Err(changed_from_outside(&name));
        }
        // Other indexers may not know of the next index yet. After this wait they write to both;
        // what they wrote before is in the shards. Without an alias nothing was written.
        if before.behind(&self.client.options.alias).next().is_some() {
            tokio::time::sleep(2 * STATE_TTL).await;
        }
        let copied = self.copy(&new, lock, progress).await?;
        let write = async |path: &str| {
            let path = format!("{name}/{path}");
            self.client.write(Method::POST, &path, None).await.map_err(systemic)
        };
        // A filled index is never empty, so that one that was emptied is known.
        self.next_destination(&self.client.next_alias(), &new).write_canary().await?;
        write("_refresh").await?;
        write("_flush").await?;
        let filled = facts::read(&self.client, FACTS_TIMEOUT).await.map_err(systemic)?;
        let facts_of_new = filled.indices.get(&name).filter(|index| index.uuid == new.uuid);
        let facts_of_new = facts_of_new.ok_or_else(|| changed_from_outside(&name))?;
        index::mark_filled(&self.client, &name, facts_of_new).await.map_err(systemic)?;
        self.check_unchanged(&new).await?;
        // The lock is still held: no other process has created an index since.
        lock.renew(&self.client, self.clock.now_ms()).await.map_err(systemic)?;
        let now = facts::read(&self.client, FACTS_TIMEOUT).await.map_err(systemic)?;
        index::switch(&self.client, &now, &new).await.map_err(systemic)?;
        // What other indexers wrote to both after the refresh counts as visible for them.
        write("_refresh").await?;
        Ok(copied)
    }

    /// The index behind the `-next` alias.
    async fn next_index(&self) -> Result<KnownIndex, SinkError> {
        let facts = facts::read(&self.client, FACTS_TIMEOUT).await.map_err(systemic)?;
        let alias = self.client.next_alias();
        next(&facts, &index::expected(&self.client))
            .ok_or_else(|| systemic(format!("{alias} leads to no index that can be filled")))
    }

    /// Fails if the index that is filled was changed from outside: other indexers may not have
    /// written to it.
    async fn check_unchanged(&self, new: &KnownIndex) -> Result<(), SinkError> {
        let now = self.next_index().await?;
        if now == *new { Ok(()) } else { Err(changed_from_outside(&new.name)) }
    }

    fn next_destination<'a>(&'a self, alias: &'a str, new: &'a KnownIndex) -> Destination<'a> {
        let now = self.clock.now_ms();
        Destination { client: &self.client, alias, index: &new.name, now }
    }

    /// Copies every content of the shards into the next index; reports the number copied so far.
    async fn copy(
        &self,
        new: &KnownIndex,
        lock: &mut RebuildLock,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<u64, SinkError> {
        let (now, alias) = (self.clock.now_ms(), self.client.next_alias());
        let (mut copied, mut renewed_at) = (0, Instant::now());
        let mut checked_at = Instant::now();
        for shard in LogicalShard::all() {
            let mut after = None;
            loop {
                if renewed_at.elapsed() > LOCK_RENEW_INTERVAL {
                    lock.renew(&self.client, self.clock.now_ms()).await.map_err(systemic)?;
                    renewed_at = Instant::now();
                }
                if checked_at.elapsed() > STATE_TTL {
                    self.check_unchanged(new).await?;
                    checked_at = Instant::now();
                }
                let request = ScanRequest::of_all(shard, after.as_ref(), REBUILD_PAGE_MAX);
                let page = self.scanner.scan(request).await.map_err(systemic)?;
                let states: Vec<IndexedState<'_>> = page
                    .items
                    .iter()
                    .map(|(key, document)| IndexedState::from_document(key, document))
                    .filter(|state| !state.is_expired_tombstone(now))
                    .collect();
                let outcomes = self.next_destination(&alias, new).write(&states).await?;
                for (outcome, state) in outcomes.iter().zip(&states) {
                    if let Outcome::Refused(message) = outcome {
                        tracing::error!(
                            content = %state.key,
                            message,
                            "the index refuses a content of the shards"
                        );
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
        Ok(copied)
    }

    /// Why the index must be rebuilt when the consumer starts; `None` if it need not be.
    pub(crate) fn reason_to_rebuild(state: &IndexState) -> Option<&'static str> {
        match state {
            IndexState::Missing => Some("there is no index yet"),
            IndexState::AliasMissing(_) => Some("the alias of the index is gone"),
            IndexState::Lost { .. } => Some("the index is not the one that was filled"),
            IndexState::Usable { .. }
            | IndexState::AliasAmbiguous(_)
            | IndexState::Foreign(_)
            | IndexState::NameTaken
            | IndexState::Closed(_)
            | IndexState::Blocked { .. }
            | IndexState::Red { .. }
            | IndexState::NewerFormat(_)
            | IndexState::Server(_) => None,
        }
    }
}

fn changed_from_outside(name: &str) -> SinkError {
    systemic(format!("{name} was changed or deleted while it was filled; the rebuild begins again"))
}
