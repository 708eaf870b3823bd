//! The tables and their versions.
//!
//! Migrations run on the primary, all that are missing in one transaction under an advisory lock,
//! so that several nodes that start at once run each of them once. A database of an older version
//! is migrated in place, data included; one of a newer version is used as it is.
//!
//! From the first release on a migration only adds what an older program ignores: old and new
//! programs run side by side. Migration 3, from before it, renames a column and tables: nodes of an
//! earlier build must be stopped first.
//!
//! How it fails: a migration that fails rolls back as a whole, and the cluster has no primary until
//! the next attempt succeeds. A database that holds tables of a different application is refused.

use crate::connect::{Connection, PgError, within};
use crate::locks::MIGRATION;
use crate::options::limit;

/// Migration `n` brings the schema from version `n` to `n + 1`. Never edit one that was released.
const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001_store.sql"),
    include_str!("../migrations/0002_dead_letters.sql"),
    include_str!("../migrations/0003_names.sql"),
    include_str!("../migrations/0004_revision.sql"),
    include_str!("../migrations/0005_idempotency_keys.sql"),
    include_str!("../migrations/0006_repair.sql"),
];

/// The oldest schema version that this program can use.
pub(crate) const VERSION: i32 = MIGRATIONS.len() as i32;

/// The oldest PostgreSQL that has everything we use, as `server_version_num`.
const SERVER_VERSION_MIN: i32 = 150_000;

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
///
/// # Errors
///
/// [`SchemaError::Foreign`] and [`SchemaError::TooOld`] need an operator; everything else is
/// retried with the next poll.
pub(crate) async fn migrate(connection: &Connection) -> Result<(), SchemaError> {
    let client = &connection.client;
    let read = |what, statement: &'static str| {
        within(what, limit::COMMIT_TIMEOUT, client.query_one(statement, &[]))
    };
    let version: i32 =
        read("reading the server's version", "SELECT current_setting('server_version_num')::int")
            .await?
            .get(0);
    if version < SERVER_VERSION_MIN {
        return Err(SchemaError::TooOld(version / 10_000));
    }
    let present =
        "SELECT to_regclass('tagfast_schema') IS NOT NULL, to_regclass('content') IS NOT NULL";
    let row = read("looking for the schema", present).await?;
    let (ours, foreign): (bool, bool) = (row.get(0), row.get(1));
    if !ours && foreign {
        return Err(SchemaError::Foreign);
    }
    let stored = "SELECT version FROM tagfast_schema";
    if ours && read("reading the schema's version", stored).await?.get::<_, i32>(0) >= VERSION {
        return Ok(());
    }
    let begin = format!(
        "BEGIN; SELECT pg_advisory_xact_lock({MIGRATION});
         CREATE TABLE IF NOT EXISTS tagfast_schema (version int NOT NULL);
         INSERT INTO tagfast_schema SELECT 0 WHERE NOT EXISTS (SELECT FROM tagfast_schema);"
    );
    within("locking the schema", limit::COMMIT_TIMEOUT, client.batch_execute(&begin)).await?;
    // Read again under the lock: a different node may have migrated meanwhile.
    let from: i32 = read("reading the schema's version", stored).await?.get(0);
    for (n, statements) in MIGRATIONS.iter().enumerate().skip(usize::try_from(from).unwrap_or(0)) {
        within("migrating", limit::COMMIT_TIMEOUT, client.batch_execute(statements)).await?;
        let to = format!("UPDATE tagfast_schema SET version = {}", n + 1);
        within("migrating", limit::COMMIT_TIMEOUT, client.batch_execute(&to)).await?;
    }
    within("committing the migration", limit::COMMIT_TIMEOUT, client.batch_execute("COMMIT"))
        .await?;
    if from < VERSION {
        tracing::info!(from, to = VERSION, "the database schema was migrated");
    }
    Ok(())
}
