//! The relay: outbox rows of one cluster, in order and without gaps, to a sink.
//!
//! One relay of a cluster works at a time: it holds an advisory lock of its session on the primary,
//! so that another one takes over when its process or its primary dies, and within seconds when its
//! process stands still. It reads rows whose transactions have all ended (`xid` below the
//! snapshot's xmin), in the order (xid, n), which is the order of versions for each content; it
//! moves its cursor only after the sink acknowledged. The outbox is three tables written in turn: a
//! drained one is emptied with TRUNCATE, one turn later than it was drained.
//!
//! How it fails: at least once. A sink that fails is asked again with the same rows; a relay that
//! dies before its cursor was stored sends rows again; after a change of the epoch everything that
//! is still there is sent again behind a marker, and contents of which the replaced primary
//! published something that did not survive it are written again.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join3;
use tagfast_domain::{ContentKey, DomainError, EpochOrdinal, TaggingsEvent, UnixMillis, codec};
use tagfast_failover::EpochRecord;
use tagfast_resilience::Clock;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_postgres::types::ToSql;

use crate::cluster::{Cluster, Node, pause_after};
use crate::connect::{Connection, Opener, PgError, within};
use crate::group::Writing;
use crate::options::limit;
use crate::touch::touch;

/// Rows of one pass.
const ROWS: i64 = 2000;
/// Between two passes.
const BUSY: Duration = Duration::from_millis(20);
/// Between two passes when there was nothing for a while. Commits of this node end it; those of
/// another node are found by it.
const IDLE: Duration = Duration::from_millis(200);
/// So long a relay stays busy after its last row.
const LULL: Duration = Duration::from_secs(1);
/// Between two changes of the table that is written.
const TURN: Duration = Duration::from_secs(5);
/// Between two attempts to become the active relay: the other one may have died.
const TAKE_OVER: Duration = Duration::from_millis(500);
/// A cursor that is lost with a crash only means that rows are sent again. A relay whose process
/// stands still says nothing for longer than it ever does: its session ends, and with it the lock
/// that keeps others from taking over.
const SETTINGS: &str = "SET synchronous_commit = off; SET idle_session_timeout = '3s'";
/// So often a session is used while the sink takes its time.
const ALIVE: Duration = Duration::from_secs(1);
/// The advisory lock of the active relay.
const LOCK: i64 = 0x7461_6766_6173_7402;

const READ: &str = "
SELECT o.xid::text::bigint, o.n, o.k, o.event FROM (
    SELECT xid, n, k, event FROM outbox_0 UNION ALL
    SELECT xid, n, k, event FROM outbox_1 UNION ALL
    SELECT xid, n, k, event FROM outbox_2) o
WHERE (o.xid, o.n) > ($1::text::xid8, $2) AND o.xid < pg_snapshot_xmin(pg_current_snapshot())
ORDER BY o.xid, o.n LIMIT $3";
const CHECK: &str = "
SELECT 1 / (count(*))::int, pg_snapshot_xmin(pg_current_snapshot())::text::bigint,
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint
FROM (SELECT id, timeline FROM epoch ORDER BY ordinal DESC LIMIT 1) e
WHERE e.id = $1 AND e.timeline = ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int";
const HI: &str = "SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint";

/// Pushed-out write ids go into three tables in turn, so that forgetting them is a TRUNCATE: what
/// is emptied was written to last a whole turn ago, and a turn is longer than an id is remembered.
const FORGET: &str = "BEGIN; SET LOCAL lock_timeout = '100ms';
DO $$ DECLARE now_written int; BEGIN
    UPDATE turn SET applied = (applied + 1) % 3, applied_since = clock_timestamp()
    WHERE applied_since < clock_timestamp() - interval '11 minutes' RETURNING applied INTO now_written;
    IF FOUND THEN EXECUTE format('TRUNCATE applied_%s', (now_written + 1) % 3); END IF;
END $$; COMMIT";

/// One outbox row on its way to the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// The transaction.
    pub xid: u64,
    /// Its place in the transaction.
    pub n: i32,
    /// Shard byte and content key.
    pub key: Vec<u8>,
    /// The stored event.
    pub event: Vec<u8>,
}

impl OutboxRow {
    /// The event. An error names what is wrong with the stored bytes; it can only be a newer
    /// program's or damaged.
    pub fn decode(&self) -> Result<TaggingsEvent, DomainError> {
        let key = self.key.get(1..).unwrap_or_default();
        codec::decode_event(ContentKey::from_bytes(key)?, &self.event)
    }
}

/// An epoch that is over, as the current history has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PastEpoch {
    /// Its ordinal.
    pub ordinal: EpochOrdinal,
    /// Up to which log position it is part of the current history; 0 for one that is no ancestor.
    pub fence: u64,
    /// Everything that was doubtful when it began was written again, in this history.
    pub reconciled: bool,
}

/// The sink could not take the rows; they are offered again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PublishError(pub String);

/// Where a relay publishes.
#[async_trait]
pub trait OutboxSink: Send + Sync {
    /// A relay begins to publish in this epoch; everything after it belongs to the epoch, also rows
    /// that were published before. Returns when the sink has it for certain.
    async fn begin_epoch(&self, cluster: &str, epoch: &EpochRecord) -> Result<(), PublishError>;

    /// Takes rows in their order, all of them. `hi` is at or after the commit of each. Returns when
    /// the sink has them for certain.
    async fn publish(
        &self,
        cluster: &str,
        epoch: &EpochRecord,
        rows: &[OutboxRow],
        hi: u64,
    ) -> Result<(), PublishError>;

    /// Contents of which something was published that the history of `epoch` may lack, given the
    /// epochs before it. Asked after [`OutboxSink::begin_epoch`], before anything of the epoch
    /// is published.
    async fn doubtful(
        &self,
        cluster: &str,
        epoch: &EpochRecord,
        past: &[PastEpoch],
    ) -> Result<Vec<ContentKey>, PublishError>;

    /// Every event committed before this moment is published; `hi` as in [`OutboxSink::publish`].
    async fn complete_through(&self, cluster: &str, epoch: &EpochRecord, at: UnixMillis, hi: u64);
}

/// Acknowledges and keeps nothing: where there is no bus.
#[derive(Debug, Clone, Copy, Default)]
pub struct Discard;

#[async_trait]
impl OutboxSink for Discard {
    async fn begin_epoch(&self, _cluster: &str, _epoch: &EpochRecord) -> Result<(), PublishError> {
        Ok(())
    }

    async fn publish(
        &self,
        _: &str,
        _: &EpochRecord,
        _: &[OutboxRow],
        _: u64,
    ) -> Result<(), PublishError> {
        Ok(())
    }

    async fn doubtful(
        &self,
        _: &str,
        _: &EpochRecord,
        _: &[PastEpoch],
    ) -> Result<Vec<ContentKey>, PublishError> {
        Ok(Vec::new())
    }

    async fn complete_through(&self, _: &str, _: &EpochRecord, _: UnixMillis, _: u64) {}
}

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Postgres(#[from] PgError),
    #[error("the sink failed: {0}")]
    Sink(#[from] PublishError),
    #[error("the epoch is over")]
    EpochOver,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    xid: u64,
    n: i32,
}

/// Everything a relay runs with.
pub(crate) struct Relay {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) opener: Opener,
    pub(crate) sink: Arc<dyn OutboxSink>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Asks to be told when everything committed until now is published.
    pub(crate) drains: mpsc::Receiver<oneshot::Sender<()>>,
}

/// What an active relay keeps between passes.
struct Active {
    cursor: Cursor,
    stored: Cursor,
    stored_at: Instant,
    turned_at: Instant,
    found_at: Instant,
    turn: i32,
    /// (xmax, our clock before the snapshot): when xmin passes xmax, everything before that moment
    /// is published.
    beats: VecDeque<(u64, UnixMillis)>,
    /// Who waits, and the xid that must be passed.
    waiting: Vec<(u64, oneshot::Sender<()>)>,
    /// The table of the turn before is drained when the cursor passes this xid.
    drained_at: Option<u64>,
}

impl Relay {
    /// Relays until the task is dropped.
    pub(crate) async fn run(mut self) {
        let mut failures = 0;
        loop {
            let forever = Instant::now() + Duration::from_secs(3600);
            let Some((epoch, node)) = self.cluster.primary(forever).await else { continue };
            let error = match self.reign(&epoch, &node).await {
                Ok(()) => continue,
                Err(error) => error,
            };
            if !matches!(error, RelayError::EpochOver) {
                tracing::warn!(cluster = self.cluster.name, %error, "the relay pauses and tries again");
                metrics::counter!("tagfast_relay_failures_total", "cluster" => self.cluster.name.clone()).increment(1);
            }
            tokio::time::sleep(pause_after(failures)).await;
            failures = (failures + 1).min(5);
        }
    }

    /// Relays in one epoch, on one connection.
    async fn reign(&mut self, epoch: &EpochRecord, node: &Node) -> Result<(), RelayError> {
        let server = self.opener.open(&node.address, "relay").await?;
        within("the relay's settings", limit::WRITE, server.client.batch_execute(SETTINGS)).await?;
        while !self.is_active(&server).await? {
            if self.cluster.epoch().is_none_or(|now| now.id != epoch.id) {
                return Err(RelayError::EpochOver);
            }
            tokio::time::sleep(TAKE_OVER).await;
        }
        let mut active = self.begin(&server, epoch, node).await?;
        loop {
            let found = self.pass(&server, epoch, &mut active).await?;
            while let Ok(reply) = self.drains.try_recv() {
                // Its xid is that of the next snapshot.
                active.waiting.push((u64::MAX, reply));
            }
            if found > 0 {
                active.found_at = Instant::now();
            }
            if found < ROWS as usize {
                self.turn(&server, &mut active).await?;
                tokio::time::sleep(BUSY).await;
                if active.found_at.elapsed() > LULL && active.waiting.is_empty() {
                    let rest = IDLE.saturating_sub(BUSY);
                    tokio::select! {
                        () = self.cluster.committed.notified() => {}
                        asked = self.drains.recv() => active.waiting.extend(asked.map(|reply| (u64::MAX, reply))),
                        () = tokio::time::sleep(rest) => {}
                    }
                }
            }
        }
    }

    async fn is_active(&self, server: &Connection) -> Result<bool, PgError> {
        let statement = "SELECT pg_try_advisory_lock($1)";
        Ok(within("the relay's lock", limit::WRITE, server.client.query_one(statement, &[&LOCK]))
            .await?
            .get(0))
    }

    async fn begin(
        &self,
        server: &Connection,
        epoch: &EpochRecord,
        node: &Node,
    ) -> Result<Active, RelayError> {
        let row = within(
            "the relay's cursor",
            limit::WRITE,
            server.client.query_opt("SELECT epoch, xid::text::bigint, n FROM relay_cursor", &[]),
        )
        .await?;
        let known = row.filter(|row| row.get::<_, &[u8]>(0) == epoch.id.0);
        let cursor = match known {
            Some(row) => Cursor { xid: row.get::<_, i64>(1).cast_unsigned(), n: row.get(2) },
            None => {
                // Positions of another epoch mean nothing here: everything that is still there is
                // sent again.
                alive(server, self.sink.begin_epoch(&self.cluster.name, epoch)).await??;
                self.reconcile(server, epoch, node).await?;
                Cursor { xid: 0, n: -1 }
            }
        };
        let turn = within(
            "the outbox's turn",
            limit::WRITE,
            server.client.query_one("SELECT outbox FROM turn", &[]),
        )
        .await?
        .get(0);
        tracing::info!(
            cluster = self.cluster.name,
            xid = cursor.xid,
            "this relay is the active one"
        );
        let now = Instant::now();
        Ok(Active {
            cursor,
            stored: cursor,
            stored_at: now,
            turned_at: now,
            found_at: now,
            turn,
            beats: VecDeque::new(),
            waiting: Vec::new(),
            drained_at: None,
        })
    }

    /// Writes again what was published past the fence of an earlier epoch. A relay that dies before
    /// it is noted begins anew.
    async fn reconcile(
        &self,
        server: &Connection,
        epoch: &EpochRecord,
        node: &Node,
    ) -> Result<(), RelayError> {
        let rows = "SELECT ordinal, reconciled_at IS NOT NULL FROM epoch";
        let rows = within("the epochs", limit::WRITE, server.client.query(rows, &[])).await?;
        let reconciled: HashSet<u64> = rows
            .iter()
            .filter(|row| row.get(1))
            .map(|row| row.get::<_, i64>(0).cast_unsigned())
            .collect();
        let past: Vec<PastEpoch> = self
            .cluster
            .fences_by_ordinal()
            .into_iter()
            .map(|(ordinal, fence)| PastEpoch {
                ordinal: EpochOrdinal(ordinal),
                fence,
                reconciled: reconciled.contains(&ordinal),
            })
            .collect();
        let doubtful =
            alive(server, self.sink.doubtful(&self.cluster.name, epoch, &past)).await??;
        if !doubtful.is_empty() {
            tracing::info!(
                cluster = self.cluster.name,
                contents = doubtful.len(),
                "published past the fence: written again"
            );
            let connection = self.opener.open(&node.address, "reconcile").await?;
            let mut writing = Writing::new(connection).await?;
            let now = self.clock.now_ms();
            let touched = touch(&mut writing, self.cluster.index, epoch, &doubtful, now);
            alive(server, touched).await?.map_err(|failed| failed.error)?;
            metrics::counter!("tagfast_reconciled_contents_total", "cluster" => self.cluster.name.clone())
                .increment(doubtful.len() as u64);
        }
        let statement = "UPDATE epoch SET reconciled_at = clock_timestamp() WHERE id = $1";
        let id: &[u8] = &epoch.id.0;
        within("noting the reconciliation", limit::WRITE, server.client.execute(statement, &[&id]))
            .await?;
        Ok(())
    }

    /// Reads and publishes once; how many rows there were.
    async fn pass(
        &self,
        server: &Connection,
        epoch: &EpochRecord,
        active: &mut Active,
    ) -> Result<usize, RelayError> {
        let now = self.clock.now_ms();
        let client = &server.client;
        let (id, xid): (&[u8], String) = (&epoch.id.0, active.cursor.xid.to_string());
        let (check, read): ([&(dyn ToSql + Sync); 1], [&(dyn ToSql + Sync); 3]) =
            ([&id], [&xid, &active.cursor.n, &ROWS]);
        // The snapshot of the check is older than that of the rows: what it calls ended, the rows
        // contain. `hi` is read after the rows.
        let all = async {
            let (check, rows, hi) = join3(
                client.query_one(CHECK, &check),
                client.query(READ, &read),
                client.query_one(HI, &[]),
            )
            .await;
            Ok((check?, rows?, hi?))
        };
        let (check, rows, hi) = within("a relay's pass", limit::WRITE, all).await?;
        let (xmin, xmax) =
            (check.get::<_, i64>(1).cast_unsigned(), check.get::<_, i64>(2).cast_unsigned());
        let rows: Vec<OutboxRow> = rows
            .into_iter()
            .map(|row| OutboxRow {
                xid: row.get::<_, i64>(0).cast_unsigned(),
                n: row.get(1),
                key: row.get(2),
                event: row.get(3),
            })
            .collect();
        let hi = hi.get::<_, i64>(0).cast_unsigned();
        if let Some(last) = rows.last() {
            let cursor = Cursor { xid: last.xid, n: last.n };
            alive(server, self.sink.publish(&self.cluster.name, epoch, &rows, hi)).await??;
            metrics::counter!("tagfast_relay_published_total", "cluster" => self.cluster.name.clone())
                .increment(rows.len() as u64);
            active.cursor = cursor;
        }
        if active.cursor != active.stored && active.stored_at.elapsed() > Duration::from_millis(200)
        {
            self.store(server, epoch, active).await?;
        }
        active.beats.push_back((xmax, now));
        for (xid, _) in active.waiting.iter_mut().filter(|(xid, _)| *xid == u64::MAX) {
            *xid = xmax;
        }
        // A full page may have left rows behind that xmin calls ended.
        if rows.len() < ROWS as usize {
            let mut through = None;
            while active.beats.front().is_some_and(|(xid, _)| *xid <= xmin) {
                through = active.beats.pop_front().map(|(_, at)| at);
            }
            if let Some(at) = through {
                self.sink.complete_through(&self.cluster.name, epoch, at, hi).await;
            }
            if active.drained_at.is_some_and(|xid| xid <= xmin) {
                active.drained_at = None;
                self.empty(server, active, (active.turn + 1) % 3).await?;
            }
            let (done, waiting) =
                std::mem::take(&mut active.waiting).into_iter().partition(|(xid, _)| *xid <= xmin);
            active.waiting = waiting;
            let done: Vec<(u64, oneshot::Sender<()>)> = done;
            for (_, reply) in done {
                // Whoever asked may have gone.
                let _ = reply.send(());
            }
        }
        Ok(rows.len())
    }

    async fn store(
        &self,
        server: &Connection,
        epoch: &EpochRecord,
        active: &mut Active,
    ) -> Result<(), PgError> {
        let statement = "INSERT INTO relay_cursor (epoch, xid, n) VALUES ($1, $2::text::xid8, $3)
             ON CONFLICT (one) DO UPDATE SET epoch = excluded.epoch, xid = excluded.xid, n = excluded.n";
        let (id, xid): (&[u8], String) = (&epoch.id.0, active.cursor.xid.to_string());
        let parameters: [&(dyn ToSql + Sync); 3] = [&id, &xid, &active.cursor.n];
        within("storing the cursor", limit::WRITE, server.client.execute(statement, &parameters))
            .await?;
        (active.stored, active.stored_at) = (active.cursor, Instant::now());
        Ok(())
    }

    /// Lets writers go on with the next table; forgets write ids whose time is over.
    async fn turn(&self, server: &Connection, active: &mut Active) -> Result<(), PgError> {
        // The next table must be empty: it is emptied when the one that is written now was begun
        // and drained.
        if active.drained_at.is_some() || active.turned_at.elapsed() < TURN {
            return Ok(());
        }
        let statement = "UPDATE turn SET outbox = ($1 + 1) % 3 WHERE outbox = $1
             RETURNING outbox, (pg_snapshot_xmax(pg_current_snapshot()))::text::bigint";
        let row = within(
            "the outbox's turn",
            limit::WRITE,
            server.client.query_opt(statement, &[&active.turn]),
        )
        .await?;
        active.turned_at = Instant::now();
        if let Some(row) = row {
            active.turn = row.get(0);
            active.drained_at = Some(row.get::<_, i64>(1).cast_unsigned() + 1);
        }
        without_waiting(server, "forgetting old ids", FORGET).await?;
        Ok(())
    }

    /// Empties a table if nothing in it lies behind the cursor. A writer that still had the old
    /// number may have put a row into it: the look under the lock sees it, and the table is
    /// left for the next turn.
    async fn empty(&self, server: &Connection, active: &Active, table: i32) -> Result<(), PgError> {
        let script = format!(
            "BEGIN; SET LOCAL lock_timeout = '100ms'; LOCK TABLE outbox_{table} IN ACCESS EXCLUSIVE MODE;
             DO $$ BEGIN
                 IF NOT EXISTS (SELECT FROM outbox_{table} WHERE (xid, n) > ('{xid}'::xid8, {n})) THEN
                     TRUNCATE outbox_{table};
                 END IF;
             END $$; COMMIT",
            xid = active.cursor.xid,
            n = active.cursor.n
        );
        without_waiting(server, "emptying an outbox table", &script).await
    }
}

/// Waits for the sink and uses the session meanwhile: a slow sink is not a relay that stands still.
async fn alive<T>(server: &Connection, work: impl Future<Output = T>) -> Result<T, PgError> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            () = tokio::time::sleep(ALIVE) => {
                within("keeping the relay's lock", limit::WRITE, server.client.batch_execute("")).await?;
            }
        }
    }
}

/// Runs a script that gives up when a table is in use; the next turn tries again.
async fn without_waiting(
    server: &Connection,
    what: &'static str,
    script: &str,
) -> Result<(), PgError> {
    match within(what, limit::WRITE, server.client.batch_execute(script)).await {
        Err(error) if error.code() == Some("55P03") => {
            within("giving up a lock", limit::WRITE, server.client.batch_execute("ROLLBACK")).await
        }
        other => other,
    }
}
