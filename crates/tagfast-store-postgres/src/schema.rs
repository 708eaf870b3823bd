//! The tables and their versions.
//!
//! Migrations run on the primary, one transaction each, under an advisory lock, so that several
//! nodes that start at once do it once. A migration only adds what an older program does not mind:
//! old and new programs run side by side.

use crate::connect::{Connection, PgError, within};
use crate::options::limit;

/// Held while migrating.
const LOCK: i64 = 0x7461_6766_6173_7401;

/// Migration `n` brings the schema from version `n` to `n + 1`. Never edit one that was released.
const MIGRATIONS: &[&str] = &["
CREATE TABLE epoch (ordinal bigint PRIMARY KEY, id bytea UNIQUE NOT NULL, parent_id bytea, reign bigint NOT NULL,
    timeline int NOT NULL, fork_lsn pg_lsn, minted_at timestamptz NOT NULL, minted_by text NOT NULL,
    reconciled_at timestamptz, repair_closed_at timestamptz);
CREATE TABLE content (k bytea PRIMARY KEY, ver bigint NOT NULL, doc bytea NOT NULL) WITH (fillfactor = 80);
CREATE TABLE applied_0 (k bytea NOT NULL, wid bytea NOT NULL, fingerprint bigint NOT NULL, effect bytea NOT NULL,
    ver bigint NOT NULL, at bigint NOT NULL);
CREATE INDEX applied_0_id ON applied_0 (wid);
CREATE TABLE applied_1 (LIKE applied_0);
CREATE INDEX applied_1_id ON applied_1 (wid);
CREATE TABLE applied_2 (LIKE applied_0);
CREATE INDEX applied_2_id ON applied_2 (wid);
CREATE TABLE outbox_0 (xid xid8 NOT NULL DEFAULT pg_current_xact_id(), n int NOT NULL, k bytea NOT NULL,
    event bytea NOT NULL);
CREATE INDEX outbox_0_order ON outbox_0 (xid, n);
CREATE TABLE outbox_1 (LIKE outbox_0 INCLUDING DEFAULTS);
CREATE INDEX outbox_1_order ON outbox_1 (xid, n);
CREATE TABLE outbox_2 (LIKE outbox_0 INCLUDING DEFAULTS);
CREATE INDEX outbox_2_order ON outbox_2 (xid, n);
CREATE TABLE turn (one bool PRIMARY KEY DEFAULT true CHECK (one), outbox int NOT NULL DEFAULT 0,
    applied int NOT NULL DEFAULT 0, applied_since timestamptz NOT NULL DEFAULT clock_timestamp());
INSERT INTO turn DEFAULT VALUES;
CREATE TABLE relay_cursor (one bool PRIMARY KEY DEFAULT true CHECK (one), epoch bytea NOT NULL, xid xid8 NOT NULL,
    n int NOT NULL);
","
CREATE SCHEMA tagfast_control;
CREATE TABLE tagfast_control.letter (letter_id text COLLATE \"C\" PRIMARY KEY, grp text NOT NULL, part int NOT NULL,
    pos bigint NOT NULL, key bytea NOT NULL, ver bigint NOT NULL, at bigint NOT NULL, cluster text NOT NULL,
    emit bigint NOT NULL, payload bytea NOT NULL, headers text NOT NULL, class text NOT NULL, code text NOT NULL,
    message text NOT NULL, attempts int NOT NULL, replays int NOT NULL DEFAULT 0, state text NOT NULL DEFAULT 'open',
    reason text, first_failed_at bigint NOT NULL, last_failed_at bigint NOT NULL, tenant text, content_type text,
    content_id text COLLATE \"C\", closed_at bigint, job text);
CREATE INDEX letter_order ON tagfast_control.letter (last_failed_at, letter_id);
CREATE INDEX letter_state ON tagfast_control.letter (state, last_failed_at, letter_id);
CREATE INDEX letter_job_of ON tagfast_control.letter (job, grp, pos) WHERE job IS NOT NULL;
CREATE TABLE tagfast_control.letter_read (grp text NOT NULL, part int NOT NULL, next bigint NOT NULL,
    PRIMARY KEY (grp, part));
CREATE TABLE tagfast_control.letter_job (id text PRIMARY KEY, dry_run bool NOT NULL, rate int NOT NULL, at bigint NOT NULL,
    letters bigint NOT NULL, closed bigint NOT NULL, busy bigint NOT NULL, applied bigint NOT NULL DEFAULT 0,
    superseded bigint NOT NULL DEFAULT 0, failed bigint NOT NULL DEFAULT 0, dropped bigint NOT NULL DEFAULT 0);
CREATE TABLE tagfast_control.letter_act (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at bigint NOT NULL,
    by text NOT NULL, action text NOT NULL, detail text NOT NULL, letters bigint NOT NULL);
CREATE INDEX letter_act_order ON tagfast_control.letter_act (at, n);
"];

/// The schema's version that this program needs at least.
pub(crate) const VERSION: i32 = MIGRATIONS.len() as i32;

/// Why the schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SchemaError {
    #[error(transparent)]
    Postgres(#[from] PgError),
    #[error("the database holds tables of another application; give tagfast a database of its own")]
    Foreign,
    #[error("PostgreSQL {0} is too old; 15 or newer is needed")]
    TooOld(i32),
}

/// Brings the schema of a primary up to date.
pub(crate) async fn migrate(connection: &Connection) -> Result<(), SchemaError> {
    let client = &connection.client;
    let read = |what, statement: &'static str| {
        within(what, limit::WRITE, client.query_one(statement, &[]))
    };
    let version: i32 =
        read("the server's version", "SELECT current_setting('server_version_num')::int")
            .await?
            .get(0);
    if version < 150_000 {
        return Err(SchemaError::TooOld(version / 10_000));
    }
    let known =
        "SELECT to_regclass('tagfast_schema') IS NOT NULL, to_regclass('content') IS NOT NULL";
    let row = read("the schema's presence", known).await?;
    let (ours, foreign): (bool, bool) = (row.get(0), row.get(1));
    if !ours && foreign {
        return Err(SchemaError::Foreign);
    }
    if ours
        && read("the schema's version", "SELECT version FROM tagfast_schema")
            .await?
            .get::<_, i32>(0)
            >= VERSION
    {
        return Ok(());
    }
    let begin = format!(
        "BEGIN; SELECT pg_advisory_xact_lock({LOCK}); CREATE TABLE IF NOT EXISTS tagfast_schema (version int NOT NULL); \
         INSERT INTO tagfast_schema SELECT 0 WHERE NOT EXISTS (SELECT FROM tagfast_schema);"
    );
    within("the migration's lock", limit::WRITE, client.batch_execute(&begin)).await?;
    // Read again under the lock: another node may have done it meanwhile.
    let from: i32 =
        read("the schema's version", "SELECT version FROM tagfast_schema").await?.get(0);
    for (n, statements) in MIGRATIONS.iter().enumerate().skip(usize::try_from(from).unwrap_or(0)) {
        within("a migration", limit::WRITE, client.batch_execute(statements)).await?;
        let to = format!("UPDATE tagfast_schema SET version = {}", n + 1);
        within("a migration", limit::WRITE, client.batch_execute(&to)).await?;
    }
    within("the migration's end", limit::WRITE, client.batch_execute("COMMIT")).await?;
    Ok(())
}
