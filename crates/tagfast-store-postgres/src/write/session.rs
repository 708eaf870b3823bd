//! A writing connection: its prepared statements, and which tables it writes now.
//!
//! How it fails: a statement that cannot be prepared fails the connection; its owner opens another.

use futures_util::future::{try_join, try_join3, try_join4};
use tokio_postgres::Statement;

use crate::connect::{Connection, PgError, within};
use crate::options::limit;
use crate::sql::{EPOCH_CHECK, FLUSH_LSN, epoch_check};

const SELECT_DOCUMENTS: &str = "SELECT k, doc, rev FROM content WHERE k = ANY($1)";
const SELECT_PRIOR_WRITES: &str = "
SELECT a.k, a.wid, a.fingerprint, a.effect, a.ver, a.at
FROM unnest($1::bytea[], $2::bytea[]) x(k, wid)
CROSS JOIN LATERAL (SELECT * FROM applied_0 t WHERE t.wid = x.wid AND t.k = x.k UNION ALL
                    SELECT * FROM applied_1 t WHERE t.wid = x.wid AND t.k = x.k UNION ALL
                    SELECT * FROM applied_2 t WHERE t.wid = x.wid AND t.k = x.k) a
ORDER BY a.at";
/// Without a key that is bound: one row with the table that is written.
const SELECT_KEYS: &str = "
SELECT r.applied, b.id, b.request FROM rotation r LEFT JOIN (
    SELECT b.id, b.request FROM unnest($1::bytea[]) x(id)
    CROSS JOIN LATERAL (SELECT * FROM idempotency_key_0 t WHERE t.id = x.id UNION ALL
                        SELECT * FROM idempotency_key_1 t WHERE t.id = x.id UNION ALL
                        SELECT * FROM idempotency_key_2 t WHERE t.id = x.id) b) b ON true";
const SELECT_APPLIED_TABLE: &str = "SELECT applied FROM rotation";
const EPOCH_CHECK_AND_COMMIT: &str =
    concat!("SELECT ", epoch_check!("$1"), ", pg_logical_emit_message(true, 'tagfast', '')::text");
const LOCK_LANE: &str = "SELECT pg_advisory_xact_lock($1, $2)";

/// Tables in each rotation: of the outbox, and of evicted write ids and idempotency keys.
const ROTATED_TABLES: usize = 3;

/// Writes documents, events and evicted ids in one statement, which is the transaction. The epoch
/// is checked before its first row. A document without an event has its old version: a write that
/// changed nothing is remembered in it, and only the revision tells others; that of a new row is
/// the transaction's id, which no row that was deleted had. `IS TRUE` keeps the look-up of written
/// keys a hash: as a join it would compare every id with every key.
///
/// With `keys` it also binds idempotency keys, in order and before it locks a document, so that no
/// two batches wait for each other. A key that a different batch bound in between, or that belongs
/// into the next table by now, is not bound, and the documents that need it are not written.
fn write_statement(outbox: usize, applied: usize, keys: bool) -> String {
    let (bind, checked) = match keys {
        false => (String::new(), "i"),
        true => (
            format!(
                "b AS (INSERT INTO idempotency_key_{applied} (id, request)
      SELECT id, request FROM unnest($14::bytea[], $15::bigint[]) x(id, request)
      WHERE (SELECT count(*) FROM i) > 0 AND (SELECT applied FROM rotation) = {applied}
      ON CONFLICT DO NOTHING RETURNING id),
g AS MATERIALIZED (SELECT * FROM i WHERE n NOT IN
      (SELECT n FROM unnest($16::bigint[], $17::bytea[]) x(n, id)
       WHERE id NOT IN (SELECT id FROM b))),
"
            ),
            "g",
        ),
    };
    format!(
        "WITH i AS MATERIALIZED (
    SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bytea[],
                         $13::bigint[])
             WITH ORDINALITY x(k, old_ver, ver, doc, event, old_rev, n) WHERE {epoch_check} = 1),
{bind}u AS (UPDATE content t SET ver = i.ver, doc = i.doc, rev = i.old_rev + 1 FROM {checked} i
      WHERE t.k = i.k AND t.ver = i.old_ver AND t.rev = i.old_rev RETURNING t.k, i.n, i.event),
c AS (INSERT INTO content (k, ver, doc, rev)
      SELECT k, ver, doc, pg_current_xact_id()::text::bigint FROM {checked} i
      WHERE old_ver = 0 AND old_rev = 0 ON CONFLICT DO NOTHING RETURNING k),
a AS (INSERT INTO applied_{applied} SELECT p.* FROM
      unnest($6::bytea[], $7::bytea[], $8::bigint[], $9::bytea[], $10::bigint[], $11::bigint[])
      p(k, wid, fingerprint, effect, ver, at)
      WHERE (p.k IN (SELECT k FROM u UNION ALL SELECT k FROM c)) IS TRUE),
w AS (SELECT n, k, event FROM u UNION ALL SELECT i.n, i.k, i.event FROM i JOIN c USING (k)),
o AS (INSERT INTO outbox_{outbox} (n, k, event) SELECT n, k, event FROM w
      WHERE event IS NOT NULL)
SELECT n::int, (SELECT pg_current_xact_id()::text::bigint),
          (SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint),
          (SELECT outbox FROM rotation), (SELECT applied FROM rotation),
          (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint)
FROM w",
        epoch_check = epoch_check!("$12")
    )
}

/// A writing connection with its statements.
pub(crate) struct WriteSession {
    pub(crate) connection: Connection,
    pub(crate) epoch_check: Statement,
    /// Commits something, so that it waits for a synchronous standby.
    pub(crate) epoch_check_and_commit: Statement,
    pub(crate) select_documents: Statement,
    pub(crate) select_prior_writes: Statement,
    pub(crate) select_keys: Statement,
    pub(crate) lock_lane: Statement,
    pub(crate) flush_lsn: Statement,
    /// By the outbox table that is written; first without, then with idempotency keys.
    write: [[Statement; ROTATED_TABLES]; 2],
    /// The active outbox table, as of the last written row.
    outbox: usize,
    /// The active table of evicted ids and of idempotency keys, as of the last row that told.
    applied: usize,
}

impl WriteSession {
    /// Prepares all statements.
    pub(crate) async fn new(connection: Connection) -> Result<Self, PgError> {
        let client = &connection.client;
        let bound = limit::CONNECT_TIMEOUT;
        let statements = try_join3(
            client.prepare(EPOCH_CHECK),
            client.prepare(SELECT_DOCUMENTS),
            client.prepare(SELECT_PRIOR_WRITES),
        );
        let (epoch_check, select_documents, select_prior_writes) =
            within("preparing", bound, statements).await?;
        let statements = try_join4(
            client.prepare(LOCK_LANE),
            client.prepare(FLUSH_LSN),
            client.prepare(EPOCH_CHECK_AND_COMMIT),
            client.prepare(SELECT_KEYS),
        );
        let (lock_lane, flush_lsn, epoch_check_and_commit, select_keys) =
            within("preparing", bound, statements).await?;
        let applied = client.query_one(SELECT_APPLIED_TABLE, &[]);
        let applied = within("reading the rotation", bound, applied).await?.get::<_, i32>(0);
        let applied = usize::try_from(applied).unwrap_or(0) % ROTATED_TABLES;
        let write = Self::prepare_writes(&connection, applied).await?;
        Ok(Self {
            epoch_check,
            epoch_check_and_commit,
            select_documents,
            select_prior_writes,
            select_keys,
            lock_lane,
            flush_lsn,
            write,
            outbox: 0,
            applied,
            connection,
        })
    }

    async fn prepare_writes(
        connection: &Connection,
        applied: usize,
    ) -> Result<[[Statement; ROTATED_TABLES]; 2], PgError> {
        let prepare = async |keys| {
            let client = &connection.client;
            let [zero, one, two] = [0, 1, 2].map(|outbox| write_statement(outbox, applied, keys));
            let all = try_join3(client.prepare(&zero), client.prepare(&one), client.prepare(&two));
            let (zero, one, two) = within("preparing", limit::CONNECT_TIMEOUT, all).await?;
            Ok::<_, PgError>([zero, one, two])
        };
        let (plain, with_keys) = try_join(prepare(false), prepare(true)).await?;
        Ok([plain, with_keys])
    }

    /// The writing statement for the active outbox table, with or without idempotency keys.
    pub(crate) fn write_statement(&self, keys: bool) -> &Statement {
        &self.write[usize::from(keys)][self.outbox]
    }

    /// Follows the rotation, which every row of the answer reports. A batch that still wrote the
    /// table before does no harm: a table is truncated two rotations later.
    pub(crate) async fn follow_rotation(
        &mut self,
        row: &tokio_postgres::Row,
    ) -> Result<(), PgError> {
        self.outbox = usize::try_from(row.get::<_, i32>(3)).unwrap_or(0) % ROTATED_TABLES;
        self.follow_applied(row.get(4)).await
    }

    /// Follows the rotation of evicted write ids and idempotency keys.
    pub(crate) async fn follow_applied(&mut self, table: i32) -> Result<(), PgError> {
        let table = usize::try_from(table).unwrap_or(0) % ROTATED_TABLES;
        if table != self.applied {
            self.write = Self::prepare_writes(&self.connection, table).await?;
            self.applied = table;
        }
        Ok(())
    }
}
