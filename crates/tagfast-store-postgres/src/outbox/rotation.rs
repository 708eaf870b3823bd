//! Rotation: the outbox and the evicted write ids are three tables each, written in turn, so that
//! a TRUNCATE empties a drained one.
//!
//! How it fails: a script whose table is in use gives up after 100 ms and runs again with the next
//! rotation.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::types::ToSql;

use crate::connect::{Connection, PgError, within};
use crate::options::limit;

/// Between two rotations of the outbox.
const ROTATION_INTERVAL: Duration = Duration::from_secs(5);

const ROTATE_OUTBOX: &str = "
UPDATE rotation SET outbox = ($1 + 1) % 3 WHERE outbox = $1
RETURNING outbox, (pg_snapshot_xmax(pg_current_snapshot()))::text::bigint";

/// Rotates the tables of evicted write ids. The one that is truncated was written until a whole
/// rotation ago, and a rotation takes longer than an id is remembered.
const TRUNCATE_WRITE_IDS: &str = "BEGIN; SET LOCAL lock_timeout = '100ms';
DO $$ DECLARE active int; BEGIN
    UPDATE rotation SET applied = (applied + 1) % 3, applied_since = clock_timestamp()
    WHERE applied_since < clock_timestamp() - interval '11 minutes' RETURNING applied INTO active;
    IF FOUND THEN EXECUTE format('TRUNCATE applied_%s', (active + 1) % 3); END IF;
END $$; COMMIT";

/// The rotation of a cluster's outbox, as the active relay drives it.
pub(crate) struct Rotation {
    /// The outbox table that is written.
    active_table: i32,
    rotated_at: Instant,
    /// The table written before is drained once every transaction below this xid has ended;
    /// `None`: it is drained and truncated.
    drained_at: Option<u64>,
}

impl Rotation {
    /// Reads which table is written.
    pub(crate) async fn read(server: &Connection) -> Result<Self, PgError> {
        let row = server.client.query_one("SELECT outbox FROM rotation", &[]);
        let row = within("reading the rotation", limit::COMMIT_TIMEOUT, row).await?;
        Ok(Self { active_table: row.get(0), rotated_at: Instant::now(), drained_at: None })
    }

    /// Rotates the outbox when it is time, and truncates old write ids.
    pub(crate) async fn rotate_tables(&mut self, server: &Connection) -> Result<(), PgError> {
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
        run_unless_locked(server, "truncating old write ids", TRUNCATE_WRITE_IDS).await
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
