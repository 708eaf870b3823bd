//! Retention of a file: deletes expired write ids and idempotency keys, rows of contents that were
//! never written when all that they remember has expired, and events that every consumer group read
//! more than an hour ago.
//!
//! Rows are deleted in small batches between group commits, so writers do not notice. A group that
//! is too far behind no longer retains events: it is expired, its consumer gets an error and
//! rebuilds from the shards. No event is ever skipped silently.
//!
//! How it fails: an SQLite error leaves the rows; the next run retries.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};
use tagfast_domain::{Document, UnixMillis, codec, limits};
use tagfast_resilience::metric::{Bounded, metrics};
use tagfast_resilience::{counter, gauge};

use crate::file::FileState;
use crate::metric::{BUS_DELETED, BUS_RETAINED_EVENTS};
use crate::rows::key_slice;
use crate::schema;

/// Pause between two runs when there is nothing to delete.
pub(crate) const RETENTION_INTERVAL: Duration = Duration::from_secs(30);
/// Events that every group has read are kept this long, in ms (1 h).
const READ_EVENTS_KEPT_MS: i64 = 3_600_000;
/// Rows deleted in one transaction: 1,000 take about 3 ms.
const DELETE_BATCH: i64 = 1000;
/// Rows of contents that were never written, looked at in one run.
const NEVER_WRITTEN_BATCH: usize = 100;
/// A group this far behind is expired; a file without any group keeps its events this long, in ms
/// (7 days).
const EXPIRE_AGE_MS: i64 = 7 * 86_400_000;

/// Maximum lag of a group, in bytes of payload per file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExpireBytes(pub(crate) i64);

/// The state of retention in one file.
pub(crate) struct Retention {
    expire: ExpireBytes,
    expired: BTreeSet<String>,
    /// The last content that the sweep of those never written looked at; empty: it begins.
    swept_to: Vec<u8>,
    rows: metrics::Gauge,
    deleted: metrics::Counter,
}

/// Events that may be deleted: below a position and older than an age.
struct RetentionBatch {
    below: i64,
    age_ms: i64,
}

impl Retention {
    pub(crate) fn new(file: usize, expire: ExpireBytes) -> Self {
        Self {
            expire,
            expired: BTreeSet::new(),
            swept_to: Vec::new(),
            rows: gauge!(BUS_RETAINED_EVENTS, "file" => Bounded(file.to_string())),
            deleted: counter!(BUS_DELETED),
        }
    }

    /// Deletes one batch. Returns whether there is more to delete.
    pub(crate) fn run(
        &mut self,
        conn: &Connection,
        file: &FileState,
        now: UnixMillis,
    ) -> rusqlite::Result<bool> {
        let ids = conn
            .prepare_cached(
                "DELETE FROM applied WHERE (k, wid) IN (SELECT k, wid FROM applied WHERE at <= ?1 LIMIT ?2)",
            )?
            .execute(params![now - limits::WRITE_ID_MEMORY_MS, DELETE_BATCH])?;
        // What is deleted lies together: few pages change.
        let keys = conn
            .prepare_cached(
                "DELETE FROM idempotency_key WHERE (slice, id) IN
                 (SELECT slice, id FROM idempotency_key WHERE slice < ?1 ORDER BY slice, id LIMIT ?2)",
            )?
            .execute(params![key_slice(now) - 1, DELETE_BATCH])?;
        let has_more_contents = self.sweep_never_written(conn, now)?;
        let events = self.delete_events(conn, file, now)?;
        let newest = file.newest.load(Ordering::Acquire);
        self.rows
            .set((newest + 1).saturating_sub(file.retained_from.load(Ordering::Acquire).max(1))
                as f64);
        let has_more = |deleted: usize| deleted as i64 == DELETE_BATCH;
        Ok(has_more(ids) || has_more(keys) || has_more(events) || has_more_contents)
    }

    /// Deletes some rows that only remembered the refusals of a content which was never written.
    fn sweep_never_written(
        &mut self,
        conn: &Connection,
        now: UnixMillis,
    ) -> rusqlite::Result<bool> {
        let rows: Vec<(Vec<u8>, Option<Document>)> = conn
            .prepare_cached(
                "SELECT k, doc FROM content WHERE ver = 0 AND k > ?1 ORDER BY k LIMIT ?2",
            )?
            .query_map(params![self.swept_to, NEVER_WRITTEN_BATCH as i64], |row| {
                Ok((row.get(0)?, codec::decode(row.get_ref(1)?.as_blob()?).ok()))
            })?
            .collect::<Result<_, _>>()?;
        // A document that cannot be decoded stays: its reader reports it.
        let is_forgotten = |(_, doc): &&(Vec<u8>, Option<Document>)| {
            doc.as_ref().is_some_and(|doc| doc.is_forgotten(now))
        };
        let mut delete = conn.prepare_cached("DELETE FROM content WHERE k = ?1 AND ver = 0")?;
        for (k, _) in rows.iter().filter(is_forgotten) {
            delete.execute([k])?;
        }
        let has_more = rows.len() == NEVER_WRITTEN_BATCH;
        self.swept_to =
            rows.into_iter().next_back().filter(|_| has_more).map_or_else(Vec::new, |(k, _)| k);
        Ok(has_more)
    }

    fn delete_events(
        &mut self,
        conn: &Connection,
        file: &FileState,
        now: UnixMillis,
    ) -> rusqlite::Result<usize> {
        let RetentionBatch { below, age_ms } = self.deletable(conn, file, now)?;
        let select = "SELECT pos FROM bus_event WHERE pos < ?1 AND at < ?2 ORDER BY pos LIMIT ?3";
        let tx = conn.unchecked_transaction()?;
        let deleted = tx
            .prepare_cached(&format!("DELETE FROM bus_event WHERE pos IN ({select})"))?
            .execute(params![below, now - age_ms, DELETE_BATCH])?;
        if deleted == 0 {
            return Ok(0);
        }
        let first: Option<i64> =
            tx.query_row("SELECT min(pos) FROM bus_event", [], |row| row.get(0))?;
        let retained_from =
            first.map_or(file.newest.load(Ordering::Acquire) + 1, i64::unsigned_abs);
        schema::set_meta(&tx, "retained_from", &retained_from.to_string())?;
        tx.commit()?;
        file.retained_from.store(retained_from, Ordering::Release);
        self.deleted.increment(deleted as u64);
        Ok(deleted)
    }

    fn deletable(
        &mut self,
        conn: &Connection,
        file: &FileState,
        now: UnixMillis,
    ) -> rusqlite::Result<RetentionBatch> {
        let newest = file.newest.load(Ordering::Acquire).cast_signed();
        let groups: Vec<(String, i64)> = conn
            .prepare_cached("SELECT grp, pos FROM bus_offset")?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let average: Option<f64> = conn
            .prepare_cached(
                "SELECT avg(length(payload)) FROM (SELECT payload FROM bus_event ORDER BY pos DESC LIMIT 100)",
            )?
            .query_row([], |row| row.get(0))?;
        let average = average.unwrap_or(0.0);
        let (mut needed, mut expired) = (None, BTreeSet::new());
        for (group, pos) in groups {
            let next_at: Option<i64> = conn
                .prepare_cached("SELECT at FROM bus_event WHERE pos >= ?1 ORDER BY pos LIMIT 1")?
                .query_row([pos], |row| row.get(0))
                .optional()?;
            let behind = (newest + 1 - pos).max(0) as f64 * average;
            if next_at.is_some_and(|at| now - at > EXPIRE_AGE_MS) || behind > self.expire.0 as f64 {
                if !self.expired.contains(&group) {
                    tracing::error!(
                        file = file.index,
                        group,
                        "consumer group is too far behind and must rebuild"
                    );
                }
                expired.insert(group);
            } else {
                needed = Some(needed.map_or(pos, |n: i64| n.min(pos)));
            }
        }
        let age_ms = if needed.is_none() && expired.is_empty() {
            EXPIRE_AGE_MS
        } else {
            READ_EVENTS_KEPT_MS
        };
        self.expired = expired;
        Ok(RetentionBatch { below: needed.unwrap_or(newest + 1), age_ms })
    }
}

#[cfg(test)]
mod tests;
