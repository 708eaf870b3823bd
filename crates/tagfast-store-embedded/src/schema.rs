//! The tables, their schema versions and the setup of connections.
//!
//! `PRAGMA user_version` is the schema version. Migrations run in order, one transaction each per
//! file. A file of a newer version is refused, because an older program would misread it.
//!
//! How it fails: a failing migration leaves the file at the version before it.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

/// "TagF": identifies a Tagfast file.
pub(crate) const APPLICATION_ID: i32 = 0x5461_6746;

/// Migration `n` brings a file from version `n` to `n + 1`. A migration that ran on any data
/// directory must never be edited.
pub(crate) const MIGRATIONS: &[&str] = &["
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE epoch (ordinal INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, minted_at INTEGER NOT NULL, fences TEXT);
CREATE TABLE content (k BLOB PRIMARY KEY, ver INTEGER NOT NULL, doc BLOB NOT NULL);
CREATE TABLE applied (k BLOB NOT NULL, wid BLOB NOT NULL, fingerprint INTEGER NOT NULL, effect BLOB NOT NULL,
                      ver INTEGER NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (k, wid)) WITHOUT ROWID;
CREATE INDEX applied_at ON applied (at);
CREATE TABLE bus_event (pos INTEGER PRIMARY KEY AUTOINCREMENT, stripe INTEGER NOT NULL, key BLOB NOT NULL,
                        ver INTEGER NOT NULL, at INTEGER NOT NULL, emit INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE TABLE bus_offset (grp TEXT PRIMARY KEY, pos INTEGER NOT NULL, emit INTEGER NOT NULL,
                         updated_at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE bus_dlq (letter_id TEXT PRIMARY KEY, grp TEXT NOT NULL, pos INTEGER NOT NULL, key BLOB NOT NULL,
                      ver INTEGER NOT NULL, at INTEGER NOT NULL, emit INTEGER NOT NULL, payload BLOB NOT NULL,
                      headers TEXT NOT NULL, class TEXT NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL,
                      attempts INTEGER NOT NULL, replays INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT,
                      first_failed_at INTEGER NOT NULL, last_failed_at INTEGER NOT NULL) WITHOUT ROWID;
","
ALTER TABLE bus_dlq ADD COLUMN tenant TEXT;
ALTER TABLE bus_dlq ADD COLUMN content_type TEXT;
ALTER TABLE bus_dlq ADD COLUMN content_id TEXT;
ALTER TABLE bus_dlq ADD COLUMN closed_at INTEGER;
ALTER TABLE bus_dlq ADD COLUMN job TEXT;
UPDATE bus_dlq SET tenant = CAST(substr(key, 1, instr(key, x'00') - 1) AS TEXT),
    content_type = CAST(substr(substr(key, instr(key, x'00') + 1), 1,
                               instr(substr(key, instr(key, x'00') + 1), x'00') - 1) AS TEXT),
    content_id = CAST(substr(substr(key, instr(key, x'00') + 1),
                             instr(substr(key, instr(key, x'00') + 1), x'00') + 1) AS TEXT)
    WHERE instr(key, x'00') > 0;
CREATE INDEX bus_dlq_order ON bus_dlq (last_failed_at, letter_id);
CREATE INDEX bus_dlq_state ON bus_dlq (state, last_failed_at, letter_id);
CREATE INDEX bus_dlq_job ON bus_dlq (job, grp, pos) WHERE job IS NOT NULL;
CREATE TABLE letter_job (id TEXT PRIMARY KEY, dry_run INTEGER NOT NULL, rate INTEGER NOT NULL, at INTEGER NOT NULL,
                         letters INTEGER NOT NULL, closed INTEGER NOT NULL, busy INTEGER NOT NULL,
                         applied INTEGER NOT NULL DEFAULT 0, superseded INTEGER NOT NULL DEFAULT 0,
                         failed INTEGER NOT NULL DEFAULT 0, dropped INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE letter_act (n INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, by TEXT NOT NULL, action TEXT NOT NULL,
                         detail TEXT NOT NULL, letters INTEGER NOT NULL);
","
ALTER TABLE epoch RENAME COLUMN fences TO ends;
ALTER TABLE bus_dlq RENAME TO dead_letter;
ALTER TABLE dead_letter RENAME COLUMN letter_id TO id;
DROP INDEX bus_dlq_order;
DROP INDEX bus_dlq_state;
DROP INDEX bus_dlq_job;
CREATE INDEX dead_letter_order ON dead_letter (last_failed_at, id);
CREATE INDEX dead_letter_state ON dead_letter (state, last_failed_at, id);
CREATE INDEX dead_letter_job ON dead_letter (job, grp, pos) WHERE job IS NOT NULL;
ALTER TABLE letter_job RENAME TO replay_job;
ALTER TABLE replay_job RENAME COLUMN letters TO dead_letters;
ALTER TABLE letter_act RENAME TO dead_letter_audit;
ALTER TABLE dead_letter_audit RENAME COLUMN n TO id;
ALTER TABLE dead_letter_audit RENAME COLUMN by TO actor;
ALTER TABLE dead_letter_audit RENAME COLUMN letters TO dead_letters;
","
-- No table changes. Documents may have format 2 from here on, which an older program cannot read: the version
-- makes it refuse the file.
","
CREATE TABLE idempotency_key (slice INTEGER NOT NULL, id BLOB NOT NULL, request INTEGER NOT NULL,
                              PRIMARY KEY (slice, id)) WITHOUT ROWID;
CREATE INDEX content_never_written ON content (k) WHERE ver = 0;
"];

/// The schema version that this program writes.
pub(crate) const VERSION: i64 = MIGRATIONS.len() as i64;

/// WAL pages before a checkpoint. More pages: more writes and a longer tail latency; 4000 pages are
/// 16 MB per file.
const AUTOCHECKPOINT_PAGES: i64 = 4000;

/// A WAL that grew beyond this during a long read (a backup) is truncated to it, in bytes.
const WAL_BYTES_MAX: i64 = 32 << 20;

/// How long a statement waits for a lock of a different process (a backup).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens a read-write connection.
pub(crate) fn open_writer(path: &Path, cache_bytes: usize) -> rusqlite::Result<Connection> {
    let conn = Connection::open(path)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "wal_autocheckpoint", AUTOCHECKPOINT_PAGES)?;
    conn.pragma_update(None, "journal_size_limit", WAL_BYTES_MAX)?;
    conn.pragma_update(None, "cache_size", -((cache_bytes / 1024) as i64))?;
    conn.set_prepared_statement_cache_capacity(32);
    Ok(conn)
}

/// Opens a read-only connection.
pub(crate) fn open_reader(path: &Path, cache_bytes: usize) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.pragma_update(None, "query_only", true)?;
    conn.pragma_update(None, "cache_size", -((cache_bytes / 1024) as i64))?;
    conn.set_prepared_statement_cache_capacity(16);
    Ok(conn)
}

/// The schema version of a file; 0 for a new one.
pub(crate) fn version(conn: &Connection) -> rusqlite::Result<i64> {
    conn.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Migrates a file to the newest version of `migrations`, one transaction per step.
pub(crate) fn migrate(conn: &mut Connection, migrations: &[&str]) -> rusqlite::Result<()> {
    let from = version(conn)?;
    for (n, statements) in migrations.iter().enumerate().skip(usize::try_from(from).unwrap_or(0)) {
        let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        tx.execute_batch(statements)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", n as i64 + 1)?;
        tx.commit()?;
    }
    Ok(())
}

pub(crate) fn meta(conn: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    use rusqlite::OptionalExtension;
    conn.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()
}

pub(crate) fn set_meta(conn: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    conn.execute(
        "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
        [key, value],
    )?;
    Ok(())
}

/// The largest position ever assigned, also after retention emptied the table.
pub(crate) fn last_position(conn: &Connection) -> rusqlite::Result<u64> {
    use rusqlite::OptionalExtension;
    let seq: Option<i64> = conn
        .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'bus_event'", [], |row| row.get(0))
        .optional()?;
    Ok(seq.map_or(0, |n| n as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_run_once_each_and_a_failing_one_leaves_the_file_as_it_was() {
        let mut conn = Connection::open_in_memory().expect("a database");
        migrate(&mut conn, &["CREATE TABLE a (x)"]).expect("the first version");
        conn.execute("INSERT INTO a VALUES (1)", []).expect("a row");
        let broken = ["CREATE TABLE a (x)", "ALTER TABLE a ADD COLUMN y; CREATE TABLE a (x);"];
        migrate(&mut conn, &broken).expect_err("the second step fails half-way");
        assert_eq!(version(&conn), Ok(1));
        conn.prepare("SELECT y FROM a").expect_err("its first half is undone");
        migrate(&mut conn, &["CREATE TABLE a (x)", "ALTER TABLE a ADD COLUMN y DEFAULT 7"])
            .expect("the second step");
        assert_eq!(version(&conn), Ok(2));
        assert_eq!(conn.query_row("SELECT x + y FROM a", [], |row| row.get::<_, i64>(0)), Ok(8));
    }
}
