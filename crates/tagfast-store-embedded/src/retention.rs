//! What a file forgets: old write ids, and events that every group has had for an hour.
//!
//! Deleting runs in chunks between group commits, so that writers do not notice it. A group that
//! fell too far behind no longer holds events back: it is expired, its consumer is told so and
//! rebuilds from the shards; nothing is ever skipped silently.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};
use tagfast_domain::{UnixMillis, limits};

use crate::schema;
use crate::writer::FileState;

/// How often it looks when there is nothing to delete.
pub(crate) const RETENTION_EVERY: Duration = Duration::from_secs(30);
/// Events that every group has are kept this long.
const KEEP_MS: i64 = 3_600_000;
/// Rows deleted in one transaction: 1,000 take about 3 ms.
const CHUNK: i64 = 1000;
/// A group this far behind is expired; a file without any group keeps its events this long.
const EXPIRE_AGE_MS: i64 = 7 * 86_400_000;

/// How far behind a group may be, in bytes of payload per file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExpireBytes(pub(crate) i64);

/// The state of retention in one file.
pub(crate) struct Retention {
    expire: ExpireBytes,
    expired: BTreeSet<String>,
    rows: metrics::Gauge,
    deleted: metrics::Counter,
}

/// What may be deleted: events below a position that are older than an age.
struct Deletable {
    below: i64,
    age_ms: i64,
}

impl Retention {
    pub(crate) fn new(file: usize, expire: ExpireBytes) -> Self {
        Self {
            expire,
            expired: BTreeSet::new(),
            rows: metrics::gauge!("tagfast_bus_retained_events", "file" => file.to_string()),
            deleted: metrics::counter!("tagfast_bus_deleted_total"),
        }
    }

    /// Deletes one chunk. True when there is more to delete.
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
            .execute(params![now - limits::WRITE_ID_MEMORY_MS, CHUNK])?;
        let events = self.delete_events(conn, file, now)?;
        let newest = file.newest.load(Ordering::Acquire);
        self.rows
            .set((newest + 1).saturating_sub(file.retained_from.load(Ordering::Acquire).max(1))
                as f64);
        Ok(ids as i64 == CHUNK || events as i64 == CHUNK)
    }

    fn delete_events(
        &mut self,
        conn: &Connection,
        file: &FileState,
        now: UnixMillis,
    ) -> rusqlite::Result<usize> {
        let Deletable { below, age_ms } = self.deletable(conn, file, now)?;
        let select = "SELECT pos FROM bus_event WHERE pos < ?1 AND at < ?2 ORDER BY pos LIMIT ?3";
        let tx = conn.unchecked_transaction()?;
        let deleted = tx
            .prepare_cached(&format!("DELETE FROM bus_event WHERE pos IN ({select})"))?
            .execute(params![below, now - age_ms, CHUNK])?;
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
    ) -> rusqlite::Result<Deletable> {
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
                        "the group is too far behind; it has to rebuild"
                    );
                }
                expired.insert(group);
            } else {
                needed = Some(needed.map_or(pos, |n: i64| n.min(pos)));
            }
        }
        let age_ms = if needed.is_none() && expired.is_empty() { EXPIRE_AGE_MS } else { KEEP_MS };
        self.expired = expired;
        Ok(Deletable { below: needed.unwrap_or(newest + 1), age_ms })
    }
}

#[cfg(test)]
mod tests;
