//! Applies the dead letters of replay jobs, in the process that runs their consumer.
//!
//! The worker takes assigned dead letters of its consumer's partitions from the store, hands them
//! to the consumer and stores the outcomes.
//!
//! How it fails: while the store cannot be reached, or the consumer waits for its sink or for the
//! end of a storm, nothing is replayed and nothing is lost: dead letters stay in their job. A crash
//! after the sink applied one replays it again, which finds it superseded.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tagfast_resilience::task::{BackgroundTask, StopSignal};
use tagfast_resilience::{Clock, OutageLog};
use tokio::time::Instant;

use super::model::{
    DEAD_LETTERS_PAGE_MAX, DeadLetterFilter, DeadLetterState, ReplayJob, ReplayResult,
    StoredDeadLetter,
};
use super::store::{DeadLetterStore, DeadLetterStoreError};
use crate::consumer::runtime::{Consumer, ConsumerStopped};
use crate::consumer::state::{ConsumerState, ReplayOutcome};
use crate::metric::{self, ReplayLabel};

/// Dead letters taken from the store at once.
const REPLAY_BATCH_MAX: usize = 1000;
/// Between two polls of the store while no job has dead letters.
const IDLE_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Between two counts of stale contents.
const STALE_COUNT_INTERVAL: Duration = Duration::from_secs(60);
/// Pages of open dead letters that a count reads at most.
const STALE_COUNT_PAGES_MAX: usize = 20;
/// Chunks per second into which a job's rate is divided.
const CHUNKS_PER_SECOND: u32 = 4;

/// Why a round ended early.
enum RoundEnd {
    Store(DeadLetterStoreError),
    ConsumerStopped,
}

impl From<DeadLetterStoreError> for RoundEnd {
    fn from(error: DeadLetterStoreError) -> Self {
        Self::Store(error)
    }
}

impl From<ConsumerStopped> for RoundEnd {
    fn from(_: ConsumerStopped) -> Self {
        Self::ConsumerStopped
    }
}

struct Worker {
    store: Arc<dyn DeadLetterStore>,
    consumer: Arc<Consumer>,
    clock: Arc<dyn Clock>,
    /// `None` before the first count.
    counted_at: Option<Instant>,
    outage: OutageLog,
}

/// The running replay worker of one consumer.
pub struct ReplayWorker(BackgroundTask);

impl ReplayWorker {
    /// Starts replaying dead letters of the consumer's group.
    pub fn spawn(
        store: Arc<dyn DeadLetterStore>,
        consumer: Arc<Consumer>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let outage = OutageLog::of("replaying dead letters", consumer.group().0);
        let mut worker = Worker { store, consumer, clock, counted_at: None, outage };
        Self(BackgroundTask::spawn("dead-letter replay", async move |stop: StopSignal| {
            loop {
                let worked = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    worked = worker.round() => worked,
                };
                let pause = if worked { Duration::ZERO } else { IDLE_POLL_INTERVAL };
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }))
    }

    /// Ends; unfinished dead letters stay in their job and are replayed later, here or elsewhere.
    pub async fn stop(&self) {
        // `stop` has logged a panic; nothing is left to do about it.
        let _ = self.0.stop().await;
    }
}

impl Worker {
    /// One poll of the store; returns true if a job had dead letters.
    async fn round(&mut self) -> bool {
        let status = self.consumer.status();
        if status.state != ConsumerState::Running || status.storm {
            return false;
        }
        match self.work().await {
            Ok(worked) => {
                self.outage.recovered();
                worked
            }
            Err(RoundEnd::ConsumerStopped) => false,
            Err(RoundEnd::Store(error)) => {
                self.outage.failed(&error);
                false
            }
        }
    }

    async fn work(&mut self) -> Result<bool, RoundEnd> {
        let (group, partitions) = (self.consumer.group(), self.consumer.partitions());
        let taken = self.store.take_batch(group, &partitions, REPLAY_BATCH_MAX).await?;
        let worked = match taken {
            None => false,
            Some((job, dead_letters)) => self.replay(&job, dead_letters).await?,
        };
        if self.counted_at.is_none_or(|at| at.elapsed() >= STALE_COUNT_INTERVAL) {
            self.counted_at = Some(Instant::now());
            metric::stale_keys(group, self.count_stale().await?);
        }
        Ok(worked)
    }

    /// Replays dead letters of a job, no faster than its rate; returns true if any got an outcome.
    async fn replay(
        &self,
        job: &ReplayJob,
        dead_letters: Vec<StoredDeadLetter>,
    ) -> Result<bool, RoundEnd> {
        let group = self.consumer.group();
        let rate = job.rate.max(1);
        let chunk = usize::try_from(rate / CHUNKS_PER_SECOND)
            .unwrap_or(REPLAY_BATCH_MAX)
            .clamp(1, REPLAY_BATCH_MAX);
        let mut progressed = false;
        for dead_letters in dead_letters.chunks(chunk) {
            let started = Instant::now();
            let records =
                dead_letters.iter().map(|stored| stored.dead_letter.record.clone()).collect();
            let outcomes = self.consumer.replay(records, job.dry_run).await?;
            let now = self.clock.now_ms();
            let mut results = Vec::with_capacity(dead_letters.len());
            for (stored, outcome) in dead_letters.iter().zip(outcomes) {
                let label = match &outcome {
                    ReplayOutcome::NotHere => continue,
                    ReplayOutcome::Applied => ReplayLabel::Applied,
                    ReplayOutcome::Superseded => ReplayLabel::Superseded,
                    ReplayOutcome::Failed { .. } => ReplayLabel::Failed,
                };
                if !job.dry_run {
                    metric::replayed(group, label);
                }
                results.push(ReplayResult { id: stored.dead_letter.id(), outcome });
            }
            progressed |= !results.is_empty();
            self.store.complete(job, &results, now).await?;
            let at_rate = Duration::from_secs_f64(dead_letters.len() as f64 / f64::from(rate));
            tokio::time::sleep_until(started + at_rate).await;
        }
        Ok(progressed)
    }

    /// Counts contents whose open dead letters hold a newer state than the sink.
    async fn count_stale(&self) -> Result<usize, RoundEnd> {
        let filter = DeadLetterFilter {
            group: Some(self.consumer.group()),
            state: Some(DeadLetterState::Open),
            ..DeadLetterFilter::default()
        };
        let (mut stale, mut after) = (BTreeSet::new(), None);
        for _ in 0..STALE_COUNT_PAGES_MAX {
            let page = self.store.list(&filter, after.as_ref(), DEAD_LETTERS_PAGE_MAX).await?;
            let records: Vec<_> =
                page.dead_letters.into_iter().map(|stored| stored.dead_letter.record).collect();
            let outcomes = self.consumer.replay(records.clone(), true).await?;
            // A record that cannot be decoded may be newer than the sink's state: it counts.
            let counts = |outcome: &ReplayOutcome| match outcome {
                ReplayOutcome::Applied | ReplayOutcome::Failed { .. } => true,
                ReplayOutcome::Superseded | ReplayOutcome::NotHere => false,
            };
            let newer = records.into_iter().zip(outcomes).filter(|(_, outcome)| counts(outcome));
            stale.extend(newer.map(|(record, _)| record.key));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        Ok(stale.len())
    }
}
