//! The relay: outbox rows of one cluster, in order and without gaps, to a sink.
//!
//! One relay of a cluster is active at a time: its session holds an advisory lock on the primary,
//! so that a different one takes over when its process or its primary dies, and within seconds when
//! its process stands still. It reads rows whose transactions have all ended (`xid` below the
//! [horizon](crate::outbox::horizon)), in the order (xid, n), which is the order of versions for
//! each content; it moves its cursor only after the sink acknowledged.
//!
//! A row is published once a replica has it, or after half a second: what a dying primary had
//! published and no replica has must be written again. Such a row goes with the document of its
//! content ([`documents`]), so that the failover's repair can bring it back.
//!
//! How it fails: at least once. A sink that fails is offered the same rows again; a relay that dies
//! before its cursor was stored sends rows again; after a change of the epoch all rows that are
//! still there are sent again behind a marker, and contents of which the replaced primary published
//! a lost write are repaired and written again ([`reconcile`]). A long transaction of a different
//! database delays it for a moment; one of this database holds it until the transaction ends, and
//! [`long_transactions`](crate::cluster::long_transactions) names it.

mod documents;
mod reconcile;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, try_join5};
use tagfast_domain::UnixMillis;
use tagfast_failover::EpochRecord;
use tagfast_resilience::{Bounded, Clock, OutageLog, counter};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use crate::cluster::replica_positions::{REPLICA_POSITIONS, read_positions};
use crate::cluster::topology::{Cluster, Node};
use crate::connect::{Connection, ConnectionFactory, PgError, within};
use crate::locks::ACTIVE_RELAY;
use crate::metric::{RELAY_FAILURES, RELAY_PUBLISHED};
use crate::options::{limit, reconnect_delay};
use crate::outbox::horizon::{HorizonTracker, SELECT_FOREIGN, Snapshot};
use crate::outbox::rotation::Rotation;
use crate::outbox::sink::{OutboxBatch, OutboxRow, OutboxSink, PublishError};
use crate::repair::closer::Closer;
use crate::sql::{EPOCH_CHECK_WITH_SNAPSHOT, FLUSH_LSN};

/// Rows of one poll.
const POLL_ROWS_MAX: i64 = 2000;
/// Between two polls.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Between two polls of an idle relay. A commit of this node ends the wait; those of other nodes
/// are found by the next poll.
const IDLE_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// A relay is idle this long after its last row.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// Between two attempts to become the active relay.
const TAKEOVER_INTERVAL: Duration = Duration::from_millis(500);
/// Between two writes of the cursor.
const STORE_CURSOR_INTERVAL: Duration = Duration::from_millis(200);
/// Heartbeats that wait for the horizon. With more, a horizon that was held for long would release
/// heartbeats that no consumer needs; with fewer, they would be further apart than its steps.
const PENDING_HEARTBEATS_MAX: usize = 1024;
/// How long rows wait for a replica that has them. Shorter: more that must be written again after a
/// failover; longer: search gets no newer while the replicas are away.
const REPLICA_WAIT_MAX: Duration = Duration::from_millis(500);
/// Between two looks at the replicas meanwhile.
const REPLICA_WAIT_INTERVAL: Duration = Duration::from_millis(5);
/// How often the session is used while the sink works.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a relay waits for a primary before it looks at the topology again.
const PRIMARY_WAIT: Duration = Duration::from_secs(3600);

/// A cursor that is lost in a crash only means that rows are sent again. A relay whose process
/// stands still is idle for longer than a running one ever is: PostgreSQL ends its session, and
/// with it the lock that keeps others from taking over.
const SET_UP_SESSION: &str = "SET synchronous_commit = off; SET idle_session_timeout = '3s'";
const TRY_LOCK: &str = "SELECT pg_try_advisory_lock($1)";
const SELECT_CURSOR: &str = "SELECT epoch, xid::text::bigint, n FROM relay_cursor";
const STORE_CURSOR: &str = "
INSERT INTO relay_cursor (epoch, xid, n) VALUES ($1, $2::text::xid8, $3)
ON CONFLICT (one) DO UPDATE SET epoch = excluded.epoch, xid = excluded.xid, n = excluded.n";
const SELECT_ROWS: &str = "
SELECT o.xid::text::bigint, o.n, o.k, o.event FROM (
    SELECT xid, n, k, event FROM outbox_0 UNION ALL
    SELECT xid, n, k, event FROM outbox_1 UNION ALL
    SELECT xid, n, k, event FROM outbox_2) o
WHERE (o.xid, o.n) > ($1::text::xid8, $2) AND o.xid < $4::text::xid8
ORDER BY o.xid, o.n LIMIT $3";

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Postgres(#[from] PgError),
    #[error("the outbox cannot be published")]
    Sink(#[from] PublishError),
    #[error("PostgreSQL's snapshot cannot be read: {0:?}")]
    Snapshot(String),
    #[error("the epoch has ended")]
    EpochEnded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    xid: u64,
    n: i32,
}

/// Answered when everything that was committed before the request is published.
pub(crate) type DrainRequest = oneshot::Sender<()>;

/// Everything a relay runs with.
pub(crate) struct Relay {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) connections: ConnectionFactory,
    pub(crate) sink: Arc<dyn OutboxSink>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) drain_requests: mpsc::Receiver<DrainRequest>,
    /// Closes the repair of each epoch that this relay has reconciled.
    pub(crate) closer: Arc<Closer>,
}

/// The statements of a poll.
struct PollStatements {
    check: Statement,
    select_rows: Statement,
    flush_lsn: Statement,
    replica_positions: Statement,
    select_documents: Statement,
}

/// What an active relay keeps between polls.
struct ActiveRelay {
    statements: PollStatements,
    horizon: HorizonTracker,
    cursor: Cursor,
    /// The cursor in the database.
    stored: Cursor,
    stored_at: Instant,
    /// When the last row was found.
    found_at: Instant,
    rotation: Rotation,
    /// Pairs of xmax and our clock before the snapshot: once the horizon passes xmax, everything
    /// committed before that time is published.
    pending_heartbeats: VecDeque<(u64, UnixMillis)>,
    /// Drain requests and the xid that the horizon must pass; `None`: that of the next snapshot.
    draining: Vec<(Option<u64>, DrainRequest)>,
    /// Rows wait until a replica has them. False since the replicas were waited for in vain, until
    /// one has caught up.
    waits_for_replicas: bool,
}

impl Relay {
    /// Relays until the task is dropped.
    pub(crate) async fn run(mut self) {
        let outage = OutageLog::of("publishing the outbox", self.cluster.name.clone());
        let mut failures = 0;
        loop {
            let primary = self.cluster.primary(Instant::now() + PRIMARY_WAIT).await;
            let Some((epoch, node)) = primary else { continue };
            // Waiting => Active => Waiting: an epoch ends with its primary.
            let Err(error) = self.run_epoch(&epoch, &node, &outage).await else { continue };
            if !matches!(error, RelayError::EpochEnded) {
                outage.failed(&error);
                counter!(RELAY_FAILURES, "cluster" => self.label()).increment(1);
            }
            tokio::time::sleep(reconnect_delay(failures)).await;
            failures = (failures + 1).min(5);
        }
    }

    fn label(&self) -> Bounded<String> {
        Bounded(self.cluster.name.clone())
    }

    /// Relays in one epoch, on one connection.
    async fn run_epoch(
        &mut self,
        epoch: &EpochRecord,
        node: &Node,
        outage: &OutageLog,
    ) -> Result<(), RelayError> {
        let server = self.connections.open(&node.address, "relay").await?;
        let set_up = server.client.batch_execute(SET_UP_SESSION);
        within("setting up the relay's session", limit::COMMIT_TIMEOUT, set_up).await?;
        while !self.try_become_active(&server).await? {
            if self.cluster.epoch().is_none_or(|now| now.id != epoch.id) {
                return Err(RelayError::EpochEnded);
            }
            tokio::time::sleep(TAKEOVER_INTERVAL).await;
        }
        let mut active = self.resume(&server, epoch, node).await?;
        let closer = Arc::clone(&self.closer);
        tokio::select! {
            ended = self.poll(&server, epoch, &mut active, outage) => ended,
            never = closer.run(epoch, node) => match never {},
        }
    }

    /// Polls until something fails.
    async fn poll(
        &mut self,
        server: &Connection,
        epoch: &EpochRecord,
        active: &mut ActiveRelay,
        outage: &OutageLog,
    ) -> Result<(), RelayError> {
        loop {
            let found = self.poll_once(server, epoch, active).await?;
            outage.recovered();
            while let Ok(reply) = self.drain_requests.try_recv() {
                active.draining.push((None, reply));
            }
            if found > 0 {
                active.found_at = Instant::now();
            }
            if found == POLL_ROWS_MAX as usize {
                continue;
            }
            let now = self.clock.now_ms();
            active.rotation.rotate_tables(server, epoch.id, now).await?;
            tokio::time::sleep(POLL_INTERVAL).await;
            if active.found_at.elapsed() > IDLE_AFTER && active.draining.is_empty() {
                let rest = IDLE_POLL_INTERVAL.saturating_sub(POLL_INTERVAL);
                tokio::select! {
                    () = self.cluster.committed.notified() => {}
                    reply = self.drain_requests.recv() => {
                        active.draining.extend(reply.map(|reply| (None, reply)));
                    }
                    () = tokio::time::sleep(rest) => {}
                }
            }
        }
    }

    async fn try_become_active(&self, server: &Connection) -> Result<bool, PgError> {
        let locked = server.client.query_one(TRY_LOCK, &[&ACTIVE_RELAY]);
        Ok(within("locking the relay", limit::COMMIT_TIMEOUT, locked).await?.get(0))
    }

    /// Resumes at the stored cursor, or begins the epoch.
    async fn resume(
        &self,
        server: &Connection,
        epoch: &EpochRecord,
        node: &Node,
    ) -> Result<ActiveRelay, RelayError> {
        let row = server.client.query_opt(SELECT_CURSOR, &[]);
        let row = within("reading the relay's cursor", limit::COMMIT_TIMEOUT, row).await?;
        let known = row.filter(|row| row.get::<_, &[u8]>(0) == epoch.id.0);
        let cursor = match known {
            Some(row) => Cursor { xid: row.get::<_, i64>(1).cast_unsigned(), n: row.get(2) },
            None => {
                // Positions of a different epoch mean nothing here: all rows that are still there
                // are sent again.
                let began = self.sink.begin_epoch(&self.cluster.name, epoch);
                with_keepalive(server, began).await??;
                self.reconcile(server, epoch, node).await?;
                Cursor { xid: 0, n: -1 }
            }
        };
        let rotation = Rotation::read(server).await?;
        let prepared = try_join5(
            server.client.prepare(EPOCH_CHECK_WITH_SNAPSHOT),
            server.client.prepare(SELECT_ROWS),
            server.client.prepare(FLUSH_LSN),
            server.client.prepare(REPLICA_POSITIONS),
            server.client.prepare(documents::SELECT_DOCUMENTS),
        );
        let (check, select_rows, flush_lsn, replica_positions, select_documents) =
            within("preparing", limit::COMMIT_TIMEOUT, prepared).await?;
        tracing::info!(
            cluster = self.cluster.name,
            xid = cursor.xid,
            "this relay is the active one"
        );
        let now = Instant::now();
        Ok(ActiveRelay {
            statements: PollStatements {
                check,
                select_rows,
                flush_lsn,
                replica_positions,
                select_documents,
            },
            horizon: HorizonTracker::default(),
            cursor,
            stored: cursor,
            stored_at: now,
            found_at: now,
            rotation,
            pending_heartbeats: VecDeque::new(),
            draining: Vec::new(),
            waits_for_replicas: true,
        })
    }

    /// Reads and publishes once; returns how many rows there were.
    async fn poll_once(
        &self,
        server: &Connection,
        epoch: &EpochRecord,
        active: &mut ActiveRelay,
    ) -> Result<usize, RelayError> {
        let now = self.clock.now_ms();
        let client = &server.client;
        let id: &[u8] = &epoch.id.0;
        let check: [&(dyn ToSql + Sync); 1] = [&id];
        let check = client.query_one(&active.statements.check, &check);
        let check = within("checking the epoch", limit::COMMIT_TIMEOUT, check).await?;
        let text: &str = check.get(1);
        let snapshot =
            Snapshot::parse(text).ok_or_else(|| RelayError::Snapshot(text.to_owned()))?;
        let xmax = snapshot.xmax;
        let horizon = find_horizon(server, &mut active.horizon, snapshot).await?;
        // Transactions below the horizon had ended in the snapshot above, so the later one of this
        // statement has their rows. The flush position is read after the rows.
        let (xid, below) = (active.cursor.xid.to_string(), horizon.to_string());
        let read: [&(dyn ToSql + Sync); 4] = [&xid, &active.cursor.n, &POLL_ROWS_MAX, &below];
        let all = async {
            let (rows, hi) = join(
                client.query(&active.statements.select_rows, &read),
                client.query_one(&active.statements.flush_lsn, &[]),
            )
            .await;
            Ok((rows?, hi?))
        };
        let (rows, hi) = within("polling the outbox", limit::COMMIT_TIMEOUT, all).await?;
        let mut rows: Vec<OutboxRow> = rows
            .into_iter()
            .map(|row| OutboxRow {
                xid: row.get::<_, i64>(0).cast_unsigned(),
                n: row.get(1),
                key: row.get(2),
                event: row.get(3),
                document: None,
            })
            .collect();
        let hi = hi.get::<_, i64>(0).cast_unsigned();
        if let Some(last) = rows.last() {
            let cursor = Cursor { xid: last.xid, n: last.n };
            if !self.wait_for_replica(server, epoch, active, hi).await? {
                let statement = &active.statements.select_documents;
                documents::attach_documents(server, statement, &mut rows).await?;
            }
            let batch = OutboxBatch { cluster: &self.cluster.name, epoch, rows: &rows, hi };
            let published = self.sink.publish(batch);
            with_keepalive(server, published).await??;
            counter!(RELAY_PUBLISHED, "cluster" => self.label()).increment(rows.len() as u64);
            active.cursor = cursor;
        }
        if active.cursor != active.stored && active.stored_at.elapsed() > STORE_CURSOR_INTERVAL {
            store_cursor(server, epoch, active).await?;
        }
        await_heartbeat(&mut active.pending_heartbeats, xmax, now);
        for (xid, _) in active.draining.iter_mut().filter(|(xid, _)| xid.is_none()) {
            *xid = Some(xmax);
        }
        // A full poll may have left rows behind below the horizon.
        if rows.len() < POLL_ROWS_MAX as usize {
            self.complete(server, epoch, active, horizon, hi).await?;
        }
        Ok(rows.len())
    }

    /// Waits until a replica has everything up to `hi`, for a moment: what is published and lost
    /// with the primary must be written again. It costs about the replication lag. Returns whether
    /// one has it, or there is none that could be promoted without it.
    async fn wait_for_replica(
        &self,
        server: &Connection,
        epoch: &EpochRecord,
        active: &mut ActiveRelay,
        hi: u64,
    ) -> Result<bool, PgError> {
        let until = Instant::now() + REPLICA_WAIT_MAX;
        loop {
            let statement = &active.statements.replica_positions;
            read_positions(&self.cluster, server, statement, epoch.id).await?;
            let is_covered = {
                let acknowledger = self.cluster.acknowledger();
                let coverage = acknowledger.coverage();
                !coverage.has_members() || coverage.by_one() >= hi
            };
            if is_covered {
                active.waits_for_replicas = true;
            } else if Instant::now() >= until {
                active.waits_for_replicas = false;
            }
            if is_covered || !active.waits_for_replicas {
                return Ok(is_covered);
            }
            tokio::time::sleep(REPLICA_WAIT_INTERVAL).await;
        }
    }

    /// Every row of a transaction below the horizon is published: sends heartbeats, truncates a
    /// drained table, answers drain requests.
    async fn complete(
        &self,
        server: &Connection,
        epoch: &EpochRecord,
        active: &mut ActiveRelay,
        horizon: u64,
        hi: u64,
    ) -> Result<(), PgError> {
        let mut through = None;
        while active.pending_heartbeats.front().is_some_and(|(xid, _)| *xid <= horizon) {
            through = active.pending_heartbeats.pop_front().map(|(_, at)| at);
        }
        if let Some(at) = through {
            self.sink.complete_through(&self.cluster.name, epoch, at, hi).await;
        }
        let Cursor { xid, n } = active.cursor;
        active.rotation.truncate_drained(server, horizon, (xid, n)).await?;
        let passed = |(xid, _): &(Option<u64>, DrainRequest)| xid.is_some_and(|xid| xid <= horizon);
        for (_, reply) in active.draining.extract_if(.., |request| passed(request)) {
            // The caller may be gone.
            let _ = reply.send(());
        }
        Ok(())
    }
}

/// Notes that everything committed before `at` is published once the horizon has passed `xmax`.
fn await_heartbeat(pending: &mut VecDeque<(u64, UnixMillis)>, xmax: u64, at: UnixMillis) {
    let full = pending.len() >= PENDING_HEARTBEATS_MAX;
    match pending.back_mut() {
        // A later time with the same xmax promises more; at the limit only the newest one moves.
        Some(last) if last.0 == xmax => last.1 = at,
        Some(last) if full => *last = (xmax, at),
        Some(_) | None => pending.push_back((xmax, at)),
    }
}

/// The horizon of a snapshot that was taken on this session. While the same transaction holds it
/// back, the sessions are checked.
async fn find_horizon(
    server: &Connection,
    tracker: &mut HorizonTracker,
    snapshot: Snapshot,
) -> Result<u64, PgError> {
    let horizon = tracker.observe(snapshot, Instant::now());
    if !tracker.session_check_is_due(Instant::now()) {
        return Ok(horizon);
    }
    let shown = server.client.query(SELECT_FOREIGN, &[]);
    let shown = within("checking the sessions", limit::COMMIT_TIMEOUT, shown).await?;
    let shown = shown.iter().filter_map(|row| u32::try_from(row.get::<_, i64>(0)).ok());
    Ok(tracker.prove(shown, Instant::now()))
}

async fn store_cursor(
    server: &Connection,
    epoch: &EpochRecord,
    active: &mut ActiveRelay,
) -> Result<(), PgError> {
    let (id, xid): (&[u8], String) = (&epoch.id.0, active.cursor.xid.to_string());
    let parameters: [&(dyn ToSql + Sync); 3] = [&id, &xid, &active.cursor.n];
    let stored = server.client.execute(STORE_CURSOR, &parameters);
    within("storing the cursor", limit::COMMIT_TIMEOUT, stored).await?;
    (active.stored, active.stored_at) = (active.cursor, Instant::now());
    Ok(())
}

/// Waits for the sink and uses the session meanwhile: a relay with a slow sink does not stand
/// still.
async fn with_keepalive<T>(
    server: &Connection,
    work: impl Future<Output = T>,
) -> Result<T, PgError> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            () = tokio::time::sleep(KEEPALIVE_INTERVAL) => {
                let used = server.client.batch_execute("");
                within("keeping the relay's lock", limit::COMMIT_TIMEOUT, used).await?;
            }
        }
    }
}
