//! The writer of a file: one thread that applies queued writes in group commits.
//!
//! A batch loads every touched document once, folds its writes in order ([`WriteBatch`]), writes
//! each changed document with ONE event, and commits with one fsync. A document in which only an
//! outcome was remembered is written without an event. The idempotency key of a write is bound to
//! its request in the same transaction. A refused write disturbs no other. When the
//! transaction fails nothing of it happened, and every caller gets that error; only a failed COMMIT
//! leaves the outcome unknown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tagfast_domain::{Document, Epoch, Limits, UnixMillis};
use tagfast_events::{BusPosition, ConsumerGroup};
use tagfast_resilience::metric::{Bounded, metrics};
use tagfast_resilience::{Clock, ErrorChain, OutageLog, counter, gauge, histogram};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::metric::{
    RefusalReason, STORE_BATCH_WRITES, STORE_COMMIT_FAILURES, STORE_COMMIT_SECONDS, STORE_REFUSED,
};
use tagfast_store::write_batch::{CommitPosition, ItemResult, SlotCommit};
use tagfast_store::{CommitContext, Position, StoreError, WriteAnswer, WriteBatch, stored_key};
use tokio::sync::watch;

use crate::error::CommitFailure;
use crate::file::FileState;
use crate::metric::{BUS_EVENTS, STORE_QUEUE_WRITES};
use crate::queue::{Batch, DeadlineRace, WriteJob};
use crate::retention::{RETENTION_INTERVAL, Retention};
use crate::rows;
use crate::schema;

/// Maximum writes in one group commit.
const BATCH_WRITES_MAX: usize = 512;
/// How long group offsets wait for a write to share its commit.
const OFFSETS_DELAY: Duration = Duration::from_millis(200);

/// The writer of one file.
pub(crate) struct Writer {
    file: Arc<FileState>,
    conn: Connection,
    epoch: Epoch,
    limits: Limits,
    clock: Arc<dyn Clock>,
    /// Notified after every commit that made events.
    committed: watch::Sender<u64>,
    retention: Retention,
    outage: OutageLog,
    metrics: WriterMetrics,
}

/// Metric handles, so that a commit does not look them up.
struct WriterMetrics {
    waiting: metrics::Gauge,
    batch: metrics::Histogram,
    commit: metrics::Histogram,
    events: metrics::Counter,
    late: metrics::Counter,
}

impl WriterMetrics {
    fn new(file: usize) -> Self {
        Self {
            waiting: gauge!(STORE_QUEUE_WRITES, "file" => Bounded(file.to_string())),
            batch: histogram!(STORE_BATCH_WRITES),
            commit: histogram!(STORE_COMMIT_SECONDS),
            events: counter!(BUS_EVENTS),
            late: counter!(STORE_REFUSED, "reason" => RefusalReason::Deadline),
        }
    }
}

/// Fails all waiting callers when the writer ends, also when it panics.
struct FailWaitersOnDrop(Arc<FileState>);

impl Drop for FailWaitersOnDrop {
    fn drop(&mut self) {
        self.0.queue.abandon();
    }
}

impl Writer {
    pub(crate) fn new(
        file: Arc<FileState>,
        conn: Connection,
        epoch: Epoch,
        limits: Limits,
        clock: Arc<dyn Clock>,
        committed: watch::Sender<u64>,
        retention: Retention,
    ) -> Self {
        let metrics = WriterMetrics::new(file.index);
        let outage = OutageLog::of("group commit", format!("store-{}.sqlite", file.index));
        Self { file, conn, epoch, limits, clock, committed, retention, outage, metrics }
    }

    /// Runs until the queue is closed and empty.
    pub(crate) fn run(mut self) {
        let _waiters = FailWaitersOnDrop(Arc::clone(&self.file));
        let mut next_retention = Instant::now() + RETENTION_INTERVAL;
        loop {
            let idle = next_retention.saturating_duration_since(Instant::now());
            let batch = self.file.queue.take(BATCH_WRITES_MAX, idle, OFFSETS_DELAY);
            self.metrics.waiting.set(self.file.queue.waiting() as f64);
            let finished = batch.finished;
            self.run_batch(batch);
            if finished {
                break;
            }
            if Instant::now() >= next_retention {
                let has_more = self.run_retention();
                // More to delete: continue after the next batch of writes.
                let pause = if has_more { Duration::ZERO } else { RETENTION_INTERVAL };
                next_retention = Instant::now() + pause;
            }
        }
        let file = self.file.index;
        if let Err(error) = self.close() {
            let error = ErrorChain(&error);
            tracing::warn!(file, %error, "file not closed cleanly; the next start checks it");
        }
    }

    /// Deletes one chunk of expired rows. Returns whether there is more to delete.
    fn run_retention(&mut self) -> bool {
        let now = self.clock.now_ms();
        self.retention.run(&self.conn, &self.file, now).unwrap_or_else(|error| {
            let (file, error) = (self.file.index, ErrorChain(&error));
            tracing::warn!(file, %error, "retention failed and is retried");
            false
        })
    }

    fn close(self) -> rusqlite::Result<()> {
        schema::set_meta(&self.conn, "clean", "1")?;
        self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        self.conn.close().map_err(|(_, e)| e)
    }

    fn run_batch(&mut self, batch: Batch) {
        for task in batch.tasks {
            if let Err(error) = task(&self.conn) {
                self.record_failure(&error, true);
            }
        }
        let jobs = self.claim(batch.writes);
        if jobs.is_empty() && batch.offsets.is_empty() {
            return;
        }
        // Offsets alone may be lost in a power cut, because sinks store their own: no fsync for
        // them.
        let relaxed = jobs.is_empty();
        if relaxed && self.conn.pragma_update(None, "synchronous", "NORMAL").is_err() {
            return;
        }
        let started = Instant::now();
        let mut commit_sent = false;
        let done = self.transaction(&jobs, &batch.offsets, &mut commit_sent);
        if done.is_err()
            && !self.conn.is_autocommit()
            && let Err(error) = self.conn.execute_batch("ROLLBACK")
        {
            tracing::error!(file = self.file.index, error = %ErrorChain(&error), "rollback failed");
        }
        if relaxed && let Err(error) = self.conn.pragma_update(None, "synchronous", "FULL") {
            // A write must never be acknowledged with less durability than promised.
            let (file, error) = (self.file.index, ErrorChain(&error));
            tracing::error!(file, %error, "cannot restore full durability; the file stops writing");
            self.file.queue.abandon();
        }
        match done {
            Ok((answers, events)) => {
                if events > 0 {
                    self.metrics.events.increment(events);
                    self.committed.send_modify(|n| *n += events);
                }
                self.outage.recovered();
                if !relaxed {
                    self.metrics.batch.record(jobs.len() as f64);
                    self.metrics.commit.record(started.elapsed().as_secs_f64());
                }
                // A caller that stopped waiting finds its answer by a retry with the same id.
                jobs.into_iter()
                    .zip(answers)
                    .for_each(|(job, result)| drop(job.reply.send(result)));
            }
            Err(error) => {
                self.file.queue.offsets_failed(&batch.offsets);
                let failure = self.record_failure(&error, commit_sent);
                jobs.into_iter().for_each(|job| drop(job.reply.send(Err(failure.store_error()))));
            }
        }
    }

    /// Takes the writes whose callers still wait. The other callers get an error: nothing happened.
    fn claim(&self, writes: Vec<WriteJob>) -> Vec<WriteJob> {
        let now = tokio::time::Instant::now();
        let mut jobs = Vec::with_capacity(writes.len());
        for job in writes {
            let in_time = job.request.deadline.is_none_or(|d| d > now);
            let claimed = in_time && job.race.as_ref().is_none_or(DeadlineRace::take);
            if claimed {
                jobs.push(job);
            } else {
                self.metrics.late.increment(1);
                let late =
                    StoreError::Deadline { waiting_for: "the write queue", outcome_unknown: false };
                drop(job.reply.send(Err(late)));
            }
        }
        jobs
    }

    /// Counts and logs a failed commit; a full disk is not logged for every batch.
    fn record_failure(&self, error: &rusqlite::Error, commit_sent: bool) -> CommitFailure {
        let failure = CommitFailure::of(error, commit_sent);
        counter!(STORE_COMMIT_FAILURES, "reason" => failure.reason()).increment(1);
        if !self.outage.failed(error) && failure != CommitFailure::DiskFull {
            let (file, error) = (self.file.index, ErrorChain(error));
            tracing::error!(file, %error, "group commit failed");
        }
        failure
    }

    fn transaction(
        &self,
        jobs: &[WriteJob],
        offsets: &BTreeMap<ConsumerGroup, BusPosition>,
        commit_sent: &mut bool,
    ) -> rusqlite::Result<(Vec<Result<WriteAnswer, StoreError>>, u64)> {
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let now = self.clock.now_ms();
        let mut batch = self.fold(jobs, now)?;
        let mut newest = self.file.newest.load(Ordering::Acquire);
        let mut events = 0;
        let mut positions = vec![newest; batch.slot_count()];
        for (n, slot) in batch.slots_to_store_mut() {
            // Without an event: a write that changed nothing was remembered.
            if let Some(position) = rows::store(&self.conn, slot, self.epoch.ordinal, now)? {
                newest = position;
                events += 1;
            }
            positions[n] = newest;
        }
        // An unchanged content stands at the newest position before its place in the batch.
        for n in 1..positions.len() {
            positions[n] = positions[n].max(positions[n - 1]);
        }
        rows::store_offsets(&self.conn, offsets, now)?;
        *commit_sent = true;
        self.conn.prepare_cached("COMMIT")?.execute([])?;
        self.file.newest.store(newest, Ordering::Release);
        let commit_of = |n: usize| {
            let (xid, lsn) = (positions[n], positions[n]);
            let position = Position { epoch: self.epoch.id, xid, lsn };
            // One writer: every transaction up to here has ended.
            SlotCommit::Committed(CommitPosition { inside_lsn: lsn, position, xmin: xid + 1 })
        };
        let answers = batch.finish(commit_of).into_iter().map(|item| match item {
            ItemResult::Done(result) => result,
            ItemResult::Retry => Err(StoreError::Internal("a lost race with one writer".into())),
            ItemResult::Undecided => Err(StoreError::Internal("there are no repairs".into())),
        });
        Ok((answers.collect(), events))
    }

    /// Loads the documents of the batch and folds its writes over them.
    fn fold<'a>(
        &'a self,
        jobs: &'a [WriteJob],
        now: UnixMillis,
    ) -> rusqlite::Result<WriteBatch<'a>> {
        let context = CommitContext { cluster: 0, epoch: &self.epoch, limits: &self.limits, now };
        let mut batch = WriteBatch::new(context, jobs.len());
        for job in jobs {
            let write = &job.request.write;
            if !batch.is_loaded(&write.key) {
                let bytes = write.key.to_bytes();
                let shard = LogicalShard::of_hash(ContentHash::of_bytes(&bytes));
                let stored = stored_key(shard, &bytes);
                let document =
                    rows::document(&self.conn, &stored)?.unwrap_or_else(|| Ok(Document::default()));
                if let Err(error) = &document {
                    let error = ErrorChain(error);
                    tracing::error!(content = %write.key, %error, "stored document is damaged");
                }
                batch.load(&write.key, stored, document);
            }
            if let Some(key) = batch.needs_key(&job.request) {
                let bound = rows::bind_key(&self.conn, &key, now)?;
                if bound != key.request {
                    self.file.keys.correct(key.id, bound);
                }
                batch.bind_key(key.id, bound);
            }
            let prior = match batch.needs_prior(write).filter(|_| job.request.keyed.is_some()) {
                Some(slot) => rows::prior(&self.conn, &slot.stored_key, write.id, now)?,
                None => None,
            };
            batch.apply(&job.request, prior.as_ref());
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests;
