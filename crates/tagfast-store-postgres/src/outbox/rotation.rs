//! Rotation: the outbox, the evicted write ids and the idempotency keys are three tables each,
//! written in turn, so that a TRUNCATE empties a drained one. With it goes a sweep of the rows that
//! only remember the refusals of contents which were never written.
//!
//! How it fails: a script whose table is in use gives up after 100 ms and runs again with the next
//! rotation.

use std::time::Duration;

use tagfast_domain::{EpochId, UnixMillis, codec};
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::connect::{Connection, PgError, within};
use crate::options::limit;
use crate::sql::epoch_check;

/// Between two rotations of the outbox.
const ROTATION_INTERVAL: Duration = Duration::from_secs(5);

const ROTATE_OUTBOX: &str = "
UPDATE rotation SET outbox = ($1 + 1) % 3 WHERE outbox = $1
RETURNING outbox, (pg_snapshot_xmax(pg_current_snapshot()))::text::bigint";

/// Rotates the tables of evicted write ids and of idempotency keys. Those that are truncated were
/// written until a whole rotation ago, and a rotation takes longer than an id is remembered. It
/// waits for the batches that bind keys in the active table, so that the same key is not bound in
/// two tables at once.
const TRUNCATE_WRITE_IDS: &str = "BEGIN; SET LOCAL lock_timeout = '100ms';
DO $$ DECLARE active int; BEGIN
    SELECT applied INTO active FROM rotation
    WHERE applied_since < clock_timestamp() - interval '11 minutes';
    IF NOT FOUND THEN RETURN; END IF;
    EXECUTE format('LOCK TABLE idempotency_key_%s IN SHARE MODE', active);
    UPDATE rotation SET applied = (active + 1) % 3, applied_since = clock_timestamp()
    WHERE applied = active;
    IF FOUND THEN EXECUTE format('TRUNCATE applied_%s, idempotency_key_%1$s', (active + 2) % 3);
    END IF;
END $$; COMMIT";

/// Rows of contents that were never written, looked at in one rotation.
const NEVER_WRITTEN_BATCH: i64 = 500;
const SELECT_NEVER_WRITTEN: &str =
    "SELECT k, doc, rev FROM content WHERE ver = 0 AND k > $1 ORDER BY k LIMIT $2";
/// A row that is locked or was written in between stays.
const DELETE_NEVER_WRITTEN: &str = concat!(
    "DELETE FROM content t USING (
    SELECT t.k FROM unnest($1::bytea[], $2::bigint[]) x(k, rev) JOIN content t
    ON t.k = x.k AND t.ver = 0 AND t.rev = x.rev WHERE ",
    epoch_check!("$3"),
    " = 1 FOR UPDATE OF t SKIP LOCKED) d WHERE t.k = d.k"
);

/// The rotation of a cluster's outbox, as the active relay drives it.
pub(crate) struct Rotation {
    /// The outbox table that is written.
    active_table: i32,
    rotated_at: Instant,
    /// The last content that the sweep looked at; empty: it begins.
    swept_to: Vec<u8>,
    /// The table written before is drained once every transaction below this xid has ended;
    /// `None`: it is drained and truncated.
    drained_at: Option<u64>,
}

impl Rotation {
    /// Reads which table is written.
    pub(crate) async fn read(server: &Connection) -> Result<Self, PgError> {
        let row = server.client.query_one("SELECT outbox FROM rotation", &[]);
        let row = within("reading the rotation", limit::COMMIT_TIMEOUT, row).await?;
        Ok(Self {
            active_table: row.get(0),
            rotated_at: Instant::now(),
            swept_to: Vec::new(),
            drained_at: None,
        })
    }

    /// Rotates the outbox when it is time, and deletes what need not be remembered any more.
    pub(crate) async fn rotate_tables(
        &mut self,
        server: &Connection,
        epoch: EpochId,
        now: UnixMillis,
    ) -> Result<(), PgError> {
        // The next table must be empty: it is truncated after the active one was begun and the one
        // before is drained.
        if self.drained_at.is_some() || self.rotated_at.elapsed() < ROTATION_INTERVAL {
            return Ok(());
        }
        let parameters: [&(dyn ToSql + Sync); 1] = [&self.active_table];
        let row = server.client.query_opt(ROTATE_OUTBOX, &parameters);
        let row = within("rotating the outbox", limit::COMMIT_TIMEOUT, row).await?;
        self.rotated_at = Instant::now();
        // Active(n) => Draining(n), Active(n + 1)
        if let Some(row) = row {
            self.active_table = row.get(0);
            self.drained_at = Some(row.get::<_, i64>(1).cast_unsigned() + 1);
        }
        self.sweep_never_written(server, epoch, now).await?;
        run_unless_locked(server, "truncating old write ids", TRUNCATE_WRITE_IDS).await
    }

    /// Deletes some rows of contents that were never written, when all that they remember expired.
    async fn sweep_never_written(
        &mut self,
        server: &Connection,
        epoch: EpochId,
        now: UnixMillis,
    ) -> Result<(), PgError> {
        let parameters: [&(dyn ToSql + Sync); 2] = [&self.swept_to, &NEVER_WRITTEN_BATCH];
        let rows = server.client.query(SELECT_NEVER_WRITTEN, &parameters);
        let rows = within("sweeping contents", limit::COMMIT_TIMEOUT, rows).await?;
        let has_more = rows.len() as i64 == NEVER_WRITTEN_BATCH;
        self.swept_to = rows.last().filter(|_| has_more).map_or_else(Vec::new, |row| row.get(0));
        // A document that cannot be decoded stays: its reader reports it.
        let is_forgotten = |row: &&Row| {
            codec::decode(row.get::<_, &[u8]>(1)).is_ok_and(|doc| doc.is_forgotten(now))
        };
        let forgotten = rows.iter().filter(is_forgotten);
        let (keys, revisions): (Vec<&[u8]>, Vec<i64>) =
            forgotten.map(|row| (row.get::<_, &[u8]>(0), row.get::<_, i64>(2))).unzip();
        if keys.is_empty() {
            return Ok(());
        }
        let id: &[u8] = &epoch.0;
        let parameters: [&(dyn ToSql + Sync); 3] = [&keys, &revisions, &id];
        let deleted = server.client.execute(DELETE_NEVER_WRITTEN, &parameters);
        within("sweeping contents", limit::COMMIT_TIMEOUT, deleted).await?;
        Ok(())
    }

    /// Truncates the drained table; every transaction below the horizon has ended and is published,
    /// and `(xid, n)` is the last row that was.
    pub(crate) async fn truncate_drained(
        &mut self,
        server: &Connection,
        horizon: u64,
        (xid, n): (u64, i32),
    ) -> Result<(), PgError> {
        if self.drained_at.is_none_or(|drained_at| drained_at > horizon) {
            return Ok(());
        }
        // Draining => Empty
        self.drained_at = None;
        let table = (self.active_table + 1) % 3;
        // A writer that still had the old number may have put a row behind the cursor: the check
        // under the lock sees it, and the table is left for the next rotation.
        let script = format!(
            "BEGIN; SET LOCAL lock_timeout = '100ms';
             LOCK TABLE outbox_{table} IN ACCESS EXCLUSIVE MODE;
             DO $$ BEGIN
                 IF NOT EXISTS (SELECT FROM outbox_{table} WHERE (xid, n) > ('{xid}'::xid8, {n}))
                 THEN TRUNCATE outbox_{table};
                 END IF;
             END $$; COMMIT"
        );
        run_unless_locked(server, "truncating an outbox table", &script).await
    }
}

/// Runs a script that gives up when a table is in use; the next rotation retries.
async fn run_unless_locked(
    server: &Connection,
    what: &'static str,
    script: &str,
) -> Result<(), PgError> {
    match within(what, limit::COMMIT_TIMEOUT, server.client.batch_execute(script)).await {
        Err(error) if error.code() == Some("55P03") => {
            let rollback = server.client.batch_execute("ROLLBACK");
            within("giving up a lock", limit::COMMIT_TIMEOUT, rollback).await
        }
        other => other,
    }
}
