//! One writer thread per file: takes what waits, applies it in one transaction, answers each
//! caller.
//!
//! A batch reads every touched document once, folds its writes in order with the domain's `apply`,
//! writes each changed document with ONE event, and commits with one fsync. A refused write
//! disturbs no other. When the transaction fails nothing of it happened, and every caller is told
//! so; only a failed COMMIT leaves the outcome unknown.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tagfast_domain::{
    ApplyContext, Change, ContentKey, Effect, Epoch, Limits, Outcome, UnixMillis, apply,
};
use tagfast_events::{BusPosition, Group};
use tagfast_resilience::Clock;
use tagfast_sharding::LogicalShard;
use tagfast_store::{CacheUse, Position, Receipt, Source, StoreError, View, WriteAnswer};
use tokio::sync::watch;

use crate::error::CommitFailure;
use crate::queue::{Batch, Queue, WriteJob};
use crate::retention::{RETENTION_EVERY, Retention};
use crate::rows::{self, Slot, stored_key};
use crate::schema;

/// Most writes in one group commit.
const BATCH_WRITES: usize = 512;
/// How long group offsets wait for a write to ride with.
const OFFSETS_DELAY: Duration = Duration::from_millis(200);

/// What the writer shares with readers and the bus.
pub(crate) struct FileState {
    pub(crate) index: usize,
    pub(crate) queue: Queue,
    /// The newest committed event position.
    pub(crate) newest: AtomicU64,
    /// The first position that retention has not deleted.
    pub(crate) retained_from: AtomicU64,
}

/// The writer of one file.
pub(crate) struct Writer {
    file: Arc<FileState>,
    conn: Connection,
    epoch: Epoch,
    limits: Limits,
    clock: Arc<dyn Clock>,
    /// Told after every commit that made events.
    committed: watch::Sender<u64>,
    retention: Retention,
    /// The last commit failed: the next success is worth a line too.
    failing: bool,
    metrics: WriterMetrics,
}

/// Handles, so that a commit does not look them up.
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
            waiting: metrics::gauge!("tagfast_store_queue_writes", "file" => file.to_string()),
            batch: metrics::histogram!("tagfast_store_batch_writes"),
            commit: metrics::histogram!("tagfast_store_commit_seconds"),
            events: metrics::counter!("tagfast_bus_events_total"),
            late: metrics::counter!("tagfast_store_refused_total", "reason" => "deadline"),
        }
    }
}

enum Answer {
    Ready(Result<WriteAnswer, StoreError>),
    /// The answer's receipt needs the position of the slot's event.
    Slot(usize, WriteAnswer),
}

/// Tells whoever waits when the writer ends, also when it panics.
struct Abandon(Arc<FileState>);

impl Drop for Abandon {
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
        Self { file, conn, epoch, limits, clock, committed, retention, failing: false, metrics }
    }

    /// Runs until the queue is closed and empty.
    pub(crate) fn run(mut self) {
        let _abandon = Abandon(Arc::clone(&self.file));
        let mut next_retention = Instant::now() + RETENTION_EVERY;
        loop {
            let idle = next_retention.saturating_duration_since(Instant::now());
            let batch = self.file.queue.take(BATCH_WRITES, idle, OFFSETS_DELAY);
            self.metrics.waiting.set(self.file.queue.waiting() as f64);
            let finished = batch.finished;
            self.run_batch(batch);
            if finished {
                break;
            }
            if Instant::now() >= next_retention {
                // More to delete: go on after the next batch of writes.
                let now = self.clock.now_ms();
                let more = self.retention.run(&self.conn, &self.file, now).unwrap_or_else(|error| {
                    tracing::warn!(file = self.file.index, %error, "retention failed; it is tried again");
                    false
                });
                next_retention =
                    Instant::now() + if more { Duration::ZERO } else { RETENTION_EVERY };
            }
        }
        let file = self.file.index;
        if let Err(error) = self.close() {
            tracing::warn!(file, %error, "the file was not closed cleanly; it is checked at the next start");
        }
    }

    fn close(self) -> rusqlite::Result<()> {
        schema::set_meta(&self.conn, "clean", "1")?;
        self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        self.conn.close().map_err(|(_, e)| e)
    }

    fn run_batch(&mut self, batch: Batch) {
        for aside in batch.asides {
            if let Err(error) = aside(&self.conn) {
                self.failed(&error, true);
            }
        }
        let jobs = self.claim(batch.writes);
        if jobs.is_empty() && batch.offsets.is_empty() {
            return;
        }
        // Offsets alone may be lost in a power cut (the sinks have their own): no fsync for them.
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
            tracing::error!(file = self.file.index, %error, "rollback failed");
        }
        if relaxed && let Err(error) = self.conn.pragma_update(None, "synchronous", "FULL") {
            // Never acknowledge a write with less than it was promised.
            tracing::error!(file = self.file.index, %error, "full durability cannot be set; the file stops writing");
            self.file.queue.abandon();
        }
        match done {
            Ok((answers, events)) => {
                if events > 0 {
                    self.metrics.events.increment(events);
                    self.committed.send_modify(|n| *n += events);
                }
                if std::mem::take(&mut self.failing) {
                    tracing::info!(file = self.file.index, "the file takes writes again");
                }
                if !relaxed {
                    self.metrics.batch.record(jobs.len() as f64);
                    self.metrics.commit.record(started.elapsed().as_secs_f64());
                }
                // A caller that stopped waiting has its answer in the document: a retry with the
                // same id finds it.
                jobs.into_iter()
                    .zip(answers)
                    .for_each(|(job, result)| drop(job.reply.send(result)));
            }
            Err(error) => {
                self.file.queue.offsets_failed(&batch.offsets);
                let failure = self.failed(&error, commit_sent);
                jobs.into_iter().for_each(|job| drop(job.reply.send(Err(failure.store_error()))));
            }
        }
    }

    /// Takes the writes whose callers still wait; the others are told that nothing happened.
    fn claim(&self, writes: Vec<WriteJob>) -> Vec<WriteJob> {
        let now = tokio::time::Instant::now();
        let mut jobs = Vec::with_capacity(writes.len());
        for job in writes {
            let in_time = job.request.deadline.is_none_or(|d| d > now);
            let claimed = in_time && job.claim.as_ref().is_none_or(crate::queue::Claim::take);
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

    /// Counts and logs a failed commit: once when failing begins, not for every batch of a full
    /// disk.
    fn failed(&mut self, error: &rusqlite::Error, commit_sent: bool) -> CommitFailure {
        let failure = CommitFailure::of(error, commit_sent);
        metrics::counter!("tagfast_store_commit_failures_total", "reason" => failure.reason())
            .increment(1);
        if !std::mem::replace(&mut self.failing, true) || failure != CommitFailure::DiskFull {
            tracing::error!(file = self.file.index, %error, reason = failure.reason(), "a group commit failed");
        }
        failure
    }

    fn transaction(
        &self,
        jobs: &[WriteJob],
        offsets: &BTreeMap<Group, BusPosition>,
        commit_sent: &mut bool,
    ) -> rusqlite::Result<(Vec<Result<WriteAnswer, StoreError>>, u64)> {
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let now = self.clock.now_ms();
        let (mut slots, answers) = self.fold(jobs, now)?;
        let mut newest = self.file.newest.load(Ordering::Acquire);
        let mut events = 0;
        for slot in &mut slots {
            if !slot.changes.is_empty() {
                newest = rows::store(&self.conn, slot, self.epoch.ordinal, now)?;
                events += 1;
            }
            slot.position = newest;
        }
        rows::store_offsets(&self.conn, offsets, now)?;
        *commit_sent = true;
        self.conn.prepare_cached("COMMIT")?.execute([])?;
        self.file.newest.store(newest, Ordering::Release);
        let answers = answers.into_iter().map(|a| match a {
            Answer::Ready(result) => result,
            Answer::Slot(slot, mut answer) => {
                let position = slots[slot].position;
                answer.receipt.inside_lsn = position;
                answer.receipt.position.xid = position;
                answer.receipt.position.lsn = position;
                if answer.changed && !answer.repeated {
                    answer.view = Some(Arc::new(left(&slots[slot], answer.receipt.position, now)));
                }
                Ok(answer)
            }
        });
        Ok((answers.collect(), events))
    }

    /// Applies the writes in order to the documents they touch, each document loaded once.
    fn fold(
        &self,
        jobs: &[WriteJob],
        now: UnixMillis,
    ) -> rusqlite::Result<(Vec<Slot>, Vec<Answer>)> {
        let mut slots: Vec<Slot> = Vec::with_capacity(jobs.len());
        let mut by_key: HashMap<&ContentKey, usize> = HashMap::with_capacity(jobs.len());
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            let key = &job.request.write.key;
            let slot = if let Some(slot) = by_key.get(key) {
                *slot
            } else {
                let bytes = key.to_bytes();
                let stored_key = stored_key(
                    LogicalShard::of_hash(tagfast_sharding::ContentHash::of_bytes(&bytes)),
                    &bytes,
                );
                match rows::document(&self.conn, &stored_key)?
                    .unwrap_or_else(|| Ok(Default::default()))
                {
                    Ok(doc) => slots.push(Slot {
                        key: key.clone(),
                        stored_key,
                        doc,
                        changes: Vec::new(),
                        evicted: Vec::new(),
                        position: 0,
                    }),
                    Err(source) => {
                        tracing::error!(content = %key, %source, "a stored document is damaged");
                        let what = format!("content {key}");
                        answers.push(Answer::Ready(Err(StoreError::Damaged {
                            what,
                            source: Some(source),
                        })));
                        continue;
                    }
                }
                by_key.insert(key, slots.len() - 1);
                slots.len() - 1
            };
            answers.push(self.apply_one(&mut slots[slot], slot, job, now)?);
        }
        Ok((slots, answers))
    }

    fn apply_one(
        &self,
        slot: &mut Slot,
        index: usize,
        job: &WriteJob,
        now: UnixMillis,
    ) -> rusqlite::Result<Answer> {
        let write = &job.request.write;
        let prior =
            if job.request.fresh { None } else { rows::prior(&self.conn, slot, write.id, now)? };
        let context = ApplyContext { epoch: &self.epoch, now, limits: &self.limits };
        let (version, effect, repeated) =
            match apply(&mut slot.doc, write, prior.as_ref(), &context) {
                Outcome::Refused(refusal) => {
                    return Ok(Answer::Ready(Err(StoreError::Refused(refusal))));
                }
                Outcome::Unchanged { version } => (version, Effect::default(), false),
                Outcome::Repeated { version, effect } => (version, effect, true),
                Outcome::Written { version, effect, evicted } => {
                    slot.evicted.extend(evicted);
                    slot.changes.push(Change {
                        write_id: write.id,
                        user: write.user.clone(),
                        version,
                        added: effect.added.clone(),
                        removed: effect.removed.clone(),
                        traceparent: job.request.traceparent.clone(),
                    });
                    (version, effect, false)
                }
            };
        let shard = LogicalShard::from_number(slot.stored_key[0])
            .unwrap_or_else(|| LogicalShard::of(&write.key));
        let receipt = Receipt {
            cluster: 0,
            shard,
            inside_lsn: 0,
            position: Position { epoch: self.epoch.id, xid: 0, lsn: 0 },
            write_id: write.id,
        };
        let changed = !effect.added.is_empty() || !effect.removed.is_empty();
        let answer = WriteAnswer {
            version,
            changed,
            added: effect.added,
            removed: effect.removed,
            repeated,
            receipt,
            view: None,
            degraded: Vec::new(),
        };
        Ok(Answer::Slot(index, answer))
    }
}

/// A content as a batch left it.
fn left(slot: &Slot, position: Position, now: UnixMillis) -> View {
    View {
        version: slot.doc.version,
        tags: slot.doc.live().cloned().collect(),
        position,
        source: Source::Primary,
        as_of: now,
        degraded: Vec::new(),
        // One writer: everything up to here had ended.
        xmin: position.xid + 1,
        stale: false,
        cache: CacheUse::Bypass,
    }
}

#[cfg(test)]
mod tests;
