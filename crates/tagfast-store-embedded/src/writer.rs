//! One writer thread per file: takes what waits, applies it in one transaction, answers each caller.
//!
//! A batch reads every touched document once, folds its writes in order with the domain's `apply`, writes each changed
//! document with ONE event, and commits with one fsync. A refused write disturbs no other. When the transaction fails
//! nothing of it happened, and every caller is told so; only a failed COMMIT leaves the outcome unknown.

use std::collections::HashMap;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, params};
use tagfast_domain::{
    ApplyContext, Change, ContentKey, Document, Epoch, Limits, Outcome, RecentWrite, TaggingsEvent, UnixMillis,
    Version, Write, apply, codec,
};
use tagfast_events::{BusPosition, DeadLetter, Group, LetterClass};
use tagfast_resilience::Clock;
use tagfast_sharding::LogicalShard;
use tagfast_store::{Position, Receipt, StoreError, WriteAnswer};
use tokio::sync::watch;

use crate::error::commit_error;
use crate::queue::{Batch, ParkJob, Queue, WriteJob};
use crate::schema;

/// Most writes in one group commit.
const BATCH_WRITES: usize = 512;
/// How long group offsets wait for a write to ride with.
const OFFSETS_DELAY: Duration = Duration::from_millis(200);
/// How often retention looks.
const RETENTION_EVERY: Duration = Duration::from_secs(30);
/// Events that every group has are kept this long.
const RETENTION_AGE_MS: i64 = 3_600_000;
/// Events deleted in one transaction: 1,000 take about 3 ms, which writers do not notice.
const RETENTION_CHUNK: i64 = 1000;
/// A group this far behind no longer holds events back; it has to rebuild.
const EXPIRE_AGE_MS: i64 = 7 * 86_400_000;
/// The same in bytes of payload.
const EXPIRE_BYTES: i64 = 2 << 30;

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
    pub(crate) file: Arc<FileState>,
    pub(crate) conn: Connection,
    pub(crate) epoch: Epoch,
    pub(crate) limits: Limits,
    pub(crate) clock: Arc<dyn Clock>,
    /// Told after every commit that made events.
    pub(crate) committed: watch::Sender<u64>,
}

struct Slot {
    key: ContentKey,
    stored_key: Vec<u8>,
    doc: Document,
    changes: Vec<Change>,
    evicted: Vec<RecentWrite>,
    position: u64,
}

enum Answer {
    Ready(Result<WriteAnswer, StoreError>),
    /// The answer's receipt needs the position of the slot's event.
    Slot(usize, WriteAnswer),
}

/// The key of the `content` table: the shard's byte first, so that a shard is a range.
pub(crate) fn stored_key(shard: LogicalShard, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key.len() + 1);
    bytes.push(shard.number());
    bytes.extend_from_slice(key);
    bytes
}

impl Writer {
    /// Runs until the queue is closed and empty.
    pub(crate) fn run(mut self) {
        let depth = metrics::gauge!("tagfast_store_queue_writes", "file" => self.file.index.to_string());
        let mut next_retention = Instant::now() + RETENTION_EVERY;
        loop {
            let batch = self.file.queue.take(BATCH_WRITES, RETENTION_EVERY, OFFSETS_DELAY);
            depth.set(self.file.queue.waiting() as f64);
            let finished = batch.finished;
            self.run_batch(batch);
            if finished {
                break;
            }
            if Instant::now() >= next_retention {
                // More to delete: go on after the next batch of writes.
                let more = self.retention().unwrap_or_else(|error| {
                    tracing::warn!(file = self.file.index, %error, "retention failed; it is tried again");
                    false
                });
                next_retention = Instant::now() + if more { Duration::ZERO } else { RETENTION_EVERY };
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
        for job in batch.park {
            self.park(job);
        }
        let now = tokio::time::Instant::now();
        let (jobs, late): (Vec<_>, Vec<_>) =
            batch.writes.into_iter().partition(|j| j.request.deadline.is_none_or(|d| d > now));
        for job in late {
            metrics::counter!("tagfast_store_refused_total", "reason" => "deadline").increment(1);
            answer(job, Err(StoreError::Deadline { waiting_for: "the write queue", outcome_unknown: false }));
        }
        if jobs.is_empty() && batch.offsets.is_empty() {
            return;
        }
        let started = Instant::now();
        let mut commit_sent = false;
        match self.transaction(&jobs, &batch.offsets, &mut commit_sent) {
            Ok((answers, events)) => {
                if events > 0 {
                    metrics::counter!("tagfast_bus_events_total").increment(events);
                    self.committed.send_modify(|n| *n += events);
                }
                if !jobs.is_empty() {
                    metrics::histogram!("tagfast_store_batch_writes").record(jobs.len() as f64);
                    metrics::histogram!("tagfast_store_commit_seconds").record(started.elapsed().as_secs_f64());
                }
                jobs.into_iter().zip(answers).for_each(|(job, result)| answer(job, result));
            }
            Err(error) => {
                if !self.conn.is_autocommit()
                    && let Err(error) = self.conn.execute_batch("ROLLBACK")
                {
                    tracing::error!(file = self.file.index, %error, "rollback failed");
                }
                for job in jobs {
                    let result = Err(commit_error(self.file.index, &error, commit_sent));
                    answer(job, result);
                }
                // Offsets are only for retention; the sink repeats them.
            }
        }
    }

    fn transaction(
        &self,
        jobs: &[WriteJob],
        offsets: &std::collections::BTreeMap<Group, BusPosition>,
        commit_sent: &mut bool,
    ) -> rusqlite::Result<(Vec<Result<WriteAnswer, StoreError>>, u64)> {
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let now = self.clock.now_ms();
        let mut slots: Vec<Slot> = Vec::new();
        let mut by_key: HashMap<&ContentKey, usize> = HashMap::with_capacity(jobs.len());
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            let key = &job.request.write.key;
            let slot = match by_key.get(key) {
                Some(slot) => *slot,
                None => {
                    let shard = LogicalShard::of(key);
                    let stored_key = stored_key(shard, &key.to_bytes());
                    match self.load(&stored_key)? {
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
                            answers.push(Answer::Ready(Err(StoreError::Damaged { what, source: Some(source) })));
                            continue;
                        }
                    }
                    by_key.insert(key, slots.len() - 1);
                    slots.len() - 1
                }
            };
            answers.push(self.apply_one(&mut slots[slot], slot, job, now)?);
        }
        let mut newest = self.file.newest.load(Ordering::Acquire);
        let mut events = 0;
        for slot in &mut slots {
            if !slot.changes.is_empty() {
                newest = self.store(slot, now)?;
                events += 1;
            }
            slot.position = newest;
        }
        self.store_offsets(offsets, now)?;
        *commit_sent = true;
        self.conn.prepare_cached("COMMIT")?.execute([])?;
        self.file.newest.store(newest, Ordering::Release);
        let answers = answers
            .into_iter()
            .map(|a| match a {
                Answer::Ready(result) => result,
                Answer::Slot(slot, mut answer) => {
                    let position = slots[slot].position;
                    answer.receipt.inside_lsn = position;
                    answer.receipt.position.xid = position;
                    answer.receipt.position.lsn = position;
                    Ok(answer)
                }
            })
            .collect();
        Ok((answers, events))
    }

    fn load(&self, stored_key: &[u8]) -> rusqlite::Result<Result<Document, tagfast_domain::DomainError>> {
        let mut select = self.conn.prepare_cached("SELECT doc FROM content WHERE k = ?1")?;
        let doc = select.query_row([stored_key], |row| Ok(codec::decode(row.get_ref(0)?.as_blob()?))).optional()?;
        Ok(doc.unwrap_or_else(|| Ok(Document::default())))
    }

    fn apply_one(&self, slot: &mut Slot, index: usize, job: &WriteJob, now: UnixMillis) -> rusqlite::Result<Answer> {
        let write = &job.request.write;
        let prior = self.prior(slot, write, now)?;
        let context = ApplyContext { epoch: &self.epoch, now, limits: &self.limits };
        let (version, effect, repeated) = match apply(&mut slot.doc, write, prior.as_ref(), &context) {
            Outcome::Refused(refusal) => return Ok(Answer::Ready(Err(StoreError::Refused(refusal)))),
            Outcome::Unchanged { version } => (version, Default::default(), false),
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
        let receipt = Receipt {
            cluster: 0,
            shard: LogicalShard::of(&write.key),
            inside_lsn: 0,
            position: Position { epoch: self.epoch.id, xid: 0, lsn: 0 },
            write_id: write.id,
        };
        let changed = !effect.added.is_empty() || !effect.removed.is_empty();
        let answer = WriteAnswer { version, changed, added: effect.added, removed: effect.removed, repeated, receipt };
        Ok(Answer::Slot(index, answer))
    }

    /// The memory of an id that its document pushed out: in this batch or in the table.
    fn prior(&self, slot: &Slot, write: &Write, now: UnixMillis) -> rusqlite::Result<Option<RecentWrite>> {
        if slot.doc.overflow_until <= now || slot.doc.recent_write(write.id).is_some() {
            return Ok(None);
        }
        if let Some(evicted) = slot.evicted.iter().find(|w| w.id == write.id) {
            return Ok(Some(evicted.clone()));
        }
        let mut select = self
            .conn
            .prepare_cached("SELECT fingerprint, effect, ver, at FROM applied WHERE wid = ?1 AND k = ?2 AND at > ?3")?;
        let oldest = now - tagfast_domain::limits::WRITE_ID_MEMORY_MS;
        let row = select
            .query_row(params![write.id.0.as_slice(), slot.stored_key, oldest], |row| {
                let effect = codec::decode_effect(row.get_ref(1)?.as_blob()?);
                Ok((row.get::<_, i64>(0)?, effect, row.get::<_, i64>(2)?, row.get::<_, i64>(3)?))
            })
            .optional()?;
        Ok(row.and_then(|(fingerprint, effect, version, at)| {
            let (effect, version) = (effect.ok()?, Version::from_packed(version as u64).ok()?);
            Some(RecentWrite { id: write.id, fingerprint: fingerprint as u64, version, at, effect })
        }))
    }

    /// Writes a changed document, its pushed-out ids and its event; returns the event's position.
    fn store(&self, slot: &mut Slot, now: UnixMillis) -> rusqlite::Result<u64> {
        let version = slot.doc.version;
        self.conn
            .prepare_cached(
                "INSERT INTO content (k, ver, doc) VALUES (?1, ?2, ?3)
                 ON CONFLICT (k) DO UPDATE SET ver = excluded.ver, doc = excluded.doc",
            )?
            .execute(params![slot.stored_key, version.packed() as i64, codec::encode(&slot.doc)])?;
        for w in slot.evicted.drain(..) {
            self.conn
                .prepare_cached("INSERT OR REPLACE INTO applied (wid, k, fingerprint, effect, ver, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
                .execute(params![
                    w.id.0.as_slice(),
                    slot.stored_key,
                    w.fingerprint as i64,
                    codec::encode_effect(&w.effect),
                    w.version.packed() as i64,
                    w.at
                ])?;
        }
        let event = TaggingsEvent {
            key: slot.key.clone(),
            version,
            at: now,
            emit: self.epoch.ordinal,
            tags: slot.doc.live().cloned().collect(),
            changes: std::mem::take(&mut slot.changes),
        };
        let mut insert = self.conn.prepare_cached(
            "INSERT INTO bus_event (stripe, key, ver, at, emit, payload) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        let pos = insert.insert(params![
            slot.stored_key[0],
            &slot.stored_key[1..],
            version.packed() as i64,
            now,
            self.epoch.ordinal.0 as i64,
            tagfast_events::encode(&event)
        ])?;
        Ok(pos as u64)
    }

    fn store_offsets(
        &self,
        offsets: &std::collections::BTreeMap<Group, BusPosition>,
        now: UnixMillis,
    ) -> rusqlite::Result<()> {
        for (group, position) in offsets {
            self.conn
                .prepare_cached(
                    "INSERT INTO bus_offset (grp, pos, emit, updated_at) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (grp) DO UPDATE SET pos = ?2, emit = ?3, updated_at = ?4",
                )?
                .execute(params![group.0, position.next as i64, position.emit as i64, now])?;
        }
        Ok(())
    }

    fn park(&self, job: ParkJob) {
        let result = self.insert_letter(&job.letter).map_err(|e| commit_error(self.file.index, &e, true));
        // The consumer may have stopped waiting; it parks the letter again, which changes nothing.
        let _ = job.reply.send(result);
    }

    fn insert_letter(&self, letter: &DeadLetter) -> rusqlite::Result<()> {
        let class = match letter.class {
            LetterClass::Poison => "poison",
            LetterClass::Exhausted => "exhausted",
        };
        let record = &letter.record;
        self.conn
            .prepare_cached(
                "INSERT OR IGNORE INTO bus_dlq (letter_id, grp, pos, key, ver, at, emit, payload, headers, class, code,
                     message, attempts, replays, state, first_failed_at, last_failed_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, '{}', ?9, ?10, ?11, ?12, 0, 'open', ?13, ?14)",
            )?
            .execute(params![
                letter.id(),
                letter.group.0,
                record.offset as i64,
                record.key,
                record.version.packed() as i64,
                record.at,
                record.emit.0 as i64,
                record.payload,
                class,
                letter.code,
                letter.message,
                letter.attempts,
                letter.first_failed_at,
                letter.last_failed_at
            ])?;
        Ok(())
    }

    /// Deletes a chunk of what nobody needs any more. True when there is more to delete.
    fn retention(&self) -> rusqlite::Result<bool> {
        let now = self.clock.now_ms();
        let oldest_id = now - tagfast_domain::limits::WRITE_ID_MEMORY_MS;
        let ids = self
            .conn
            .prepare_cached(
                "DELETE FROM applied WHERE (k, wid) IN (SELECT k, wid FROM applied WHERE at <= ?1 LIMIT ?2)",
            )?
            .execute(params![oldest_id, RETENTION_CHUNK])?;
        let Some(below) = self.needed_from(now)? else { return Ok(ids as i64 == RETENTION_CHUNK) };
        let tx = self.conn.unchecked_transaction()?;
        let deleted = tx
            .prepare_cached(
                "DELETE FROM bus_event WHERE pos IN
                     (SELECT pos FROM bus_event WHERE pos < ?1 AND at < ?2 ORDER BY pos LIMIT ?3)",
            )?
            .execute(params![below, now - RETENTION_AGE_MS, RETENTION_CHUNK])?;
        let first: Option<i64> = tx.query_row("SELECT min(pos) FROM bus_event", [], |row| row.get(0))?;
        let retained_from = first.map_or(self.file.newest.load(Ordering::Acquire) + 1, |pos| pos as u64);
        schema::set_meta(&tx, "retained_from", &retained_from.to_string())?;
        tx.commit()?;
        self.file.retained_from.store(retained_from, Ordering::Release);
        metrics::counter!("tagfast_bus_deleted_total").increment(deleted as u64);
        Ok(deleted as i64 == RETENTION_CHUNK || ids as i64 == RETENTION_CHUNK)
    }

    /// The first position that a group still needs; groups that fell too far behind do not count (they rebuild).
    fn needed_from(&self, now: UnixMillis) -> rusqlite::Result<Option<i64>> {
        let newest = self.file.newest.load(Ordering::Acquire) as i64;
        let mut groups = self.conn.prepare_cached("SELECT grp, pos FROM bus_offset")?;
        let groups: Vec<(String, i64)> =
            groups.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        let mut needed = None;
        for (group, pos) in groups {
            let behind: Option<(i64, i64)> = self
                .conn
                .prepare_cached("SELECT at, length(payload) FROM bus_event WHERE pos >= ?1 ORDER BY pos LIMIT 1")?
                .query_row([pos], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let expired = behind.is_some_and(|(at, bytes)| {
                now - at > EXPIRE_AGE_MS || (newest - pos).saturating_mul(bytes) > EXPIRE_BYTES
            });
            if expired {
                tracing::error!(file = self.file.index, group, "the group is too far behind; it has to rebuild");
            } else {
                needed = Some(needed.map_or(pos, |n: i64| n.min(pos)));
            }
        }
        Ok(needed)
    }
}

fn answer(job: WriteJob, result: Result<WriteAnswer, StoreError>) {
    // A caller that stopped waiting has its answer in the document: a retry with the same id finds it.
    let _ = job.reply.send(result);
}
