//! Which commits the replicas have: asked on the primary, and what follows from it for new writes.
//!
//! One statement checks the epoch and lists what each replica that streams has flushed. It is sent
//! every 50 ms while anything acknowledged waits for replicas, every 5 ms while a caller waits for
//! one, and once a second otherwise. An answer counts only if the epoch check passes: a position in
//! a different log proves nothing. Only members of the roster count, so neither a base backup nor a
//! log archiver is a replica.
//!
//! After each answer, and after each missing one, the guard decides again. Its state is published
//! as an atomic, so that no write takes the lock of the acknowledgements to learn of it.
//!
//! How it fails: pessimistically. A poll that fails leaves the old positions; then the exposure
//! grows, and the guard throttles, holds and refuses. Without a primary nothing can be committed,
//! and writes wait for one: the guard refuses nothing.

use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::EpochId;
use tagfast_failover::guard::GUARD_MARGIN;
use tagfast_failover::{EpochRecord, GuardOptions, GuardState, OnLag};
use tagfast_resilience::{Bounded, ErrorChain, gauge};
use tokio::time::{Instant, sleep_until};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use crate::boot_clock::boot_time;
use crate::cluster::topology::Cluster;
use crate::connect::{Connection, ConnectionFactory, PgError, within};
use crate::metric::{
    COVERED_POSITION, GUARD_STATE, JOURNAL_BYTES, JOURNAL_CONTENTS, REPLICATION_EXPOSURE,
};
use crate::options::limit;
use crate::sql::epoch_check;

/// Between two polls while a caller waits for a replica.
const POLL_INTERVAL_WAITING: Duration = Duration::from_millis(5);
/// Between two polls while acknowledged writes wait for replicas.
const POLL_INTERVAL_EXPOSED: Duration = Duration::from_millis(50);
/// Between two polls while all replicas have everything.
const POLL_INTERVAL_IDLE: Duration = Duration::from_secs(1);
/// After a poll that failed.
const POLL_INTERVAL_FAILED: Duration = Duration::from_millis(100);

/// What each replica that streams has flushed; a position in the log of the epoch that is checked.
pub(crate) const REPLICA_POSITIONS: &str = concat!(
    "SELECT ",
    epoch_check!("$1"),
    ", s.application_name, (s.flush_lsn - '0/0')::bigint
FROM (SELECT) one LEFT JOIN pg_stat_replication s
    ON s.state = 'streaming' AND s.flush_lsn IS NOT NULL"
);

/// The poller's connection to the primary.
struct PositionSession {
    address: String,
    connection: Connection,
    replica_positions: Statement,
}

impl PositionSession {
    async fn open(connections: &ConnectionFactory, address: &str) -> Result<Self, PgError> {
        let connection = connections.open(address, "positions").await?;
        let prepared = connection.client.prepare(REPLICA_POSITIONS);
        let replica_positions = within("preparing", limit::CONNECT_TIMEOUT, prepared).await?;
        Ok(Self { address: address.to_owned(), connection, replica_positions })
    }
}

/// Asks the primary of an epoch for the positions of the replicas that stream, and takes the
/// answer. An error: among others, the server is not the primary of this epoch.
pub(crate) async fn read_positions(
    cluster: &Cluster,
    server: &Connection,
    replica_positions: &Statement,
    epoch: EpochId,
) -> Result<(), PgError> {
    let id = epoch.0.as_slice();
    let parameters: [&(dyn ToSql + Sync); 1] = [&id];
    let rows = server.client.query(replica_positions, &parameters);
    let rows = within("reading the positions", limit::POSITIONS_TIMEOUT, rows).await?;
    let position = |row: &Row| {
        let name: Option<String> = row.get(1);
        Some((name?, row.get::<_, Option<i64>>(2)?.cast_unsigned()))
    };
    let streaming: Vec<(String, u64)> = rows.iter().filter_map(position).collect();
    cluster.acknowledger().record_replicas(epoch, &streaming, boot_time());
    Ok(())
}

/// Polls the positions of a cluster's replicas, until the task is dropped.
pub(crate) async fn poll_positions(cluster: Arc<Cluster>, connections: ConnectionFactory) {
    let mut open: Option<PositionSession> = None;
    let mut topologies = cluster.topology.subscribe();
    loop {
        let began = Instant::now();
        let primary = topologies.borrow_and_update().primary.clone();
        let mut pause = POLL_INTERVAL_IDLE;
        if let Some((epoch, node)) = &primary {
            let session = open.take().filter(|session| {
                session.address == node.address && !session.connection.client.is_closed()
            });
            let polled = poll(&cluster, &connections, session, (epoch, &node.address));
            let polled = tokio::select! {
                polled = polled => polled,
                // A primary that is gone is not waited for.
                changed = topologies.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            match polled {
                Ok(session) => open = Some(session),
                // The watcher and the lanes report what is wrong with the primary.
                Err(error) => {
                    let error = ErrorChain(&error);
                    tracing::debug!(cluster = cluster.name, %error, "no positions of replicas");
                    pause = POLL_INTERVAL_FAILED;
                }
            }
        } else {
            open = None;
        }
        let has_journal = publish(&cluster, primary.is_some());
        let guard = &cluster.guard;
        let is_waiting = guard.is_waited_for();
        if is_waiting || has_journal {
            let interval = if is_waiting { POLL_INTERVAL_WAITING } else { POLL_INTERVAL_EXPOSED };
            pause = if open.is_some() { interval } else { POLL_INTERVAL_FAILED };
        }
        if is_waiting {
            cluster.notify_proof();
        }
        sleep_until(began + POLL_INTERVAL_WAITING.min(pause)).await;
        tokio::select! {
            () = sleep_until(began + pause) => {}
            () = guard.wanted() => {}
            changed = topologies.changed() => if changed.is_err() { return }
        }
    }
}

/// Asks once, on the open session or a new one, and takes the answer.
async fn poll(
    cluster: &Cluster,
    connections: &ConnectionFactory,
    open: Option<PositionSession>,
    (epoch, address): (&EpochRecord, &str),
) -> Result<PositionSession, PgError> {
    let session = match open {
        Some(session) => session,
        None => PositionSession::open(connections, address).await?,
    };
    let PositionSession { connection, replica_positions, .. } = &session;
    read_positions(cluster, connection, replica_positions, epoch.id).await?;
    Ok(session)
}

/// Lets the guard decide, and publishes what it decided. True: acknowledged writes wait for
/// replicas.
fn publish(cluster: &Cluster, has_primary: bool) -> bool {
    let acknowledger = cluster.acknowledger();
    let now = boot_time();
    let exposure = acknowledger.exposure(now);
    // Without a primary writes wait for one, whatever the guard thinks of the last one.
    let state = if has_primary { acknowledger.guard_state(now) } else { GuardState::Open };
    let GuardOptions { max_loss, on_lag } = cluster.guard_options;
    let is_beyond = on_lag == OnLag::Availability
        && acknowledger.coverage().has_members()
        && exposure >= max_loss.saturating_sub(GUARD_MARGIN);
    let (journal, coverage) = (acknowledger.journal(), acknowledger.coverage());
    let (bytes, contents, has_journal) = (journal.bytes(), journal.contents(), !journal.is_empty());
    let covered = coverage.by_one();
    let may_attach = coverage.has_members() && acknowledger.is_settling(now);
    let has_no_replica = has_primary && coverage.streaming() == 0 && !may_attach;
    drop(acknowledger);
    cluster.guard.publish(state, is_beyond, has_no_replica);
    let label = || Bounded(cluster.name.clone());
    gauge!(REPLICATION_EXPOSURE, "cluster" => label()).set(exposure.as_secs_f64());
    gauge!(GUARD_STATE, "cluster" => label()).set(f64::from(state as u8));
    gauge!(COVERED_POSITION, "cluster" => label()).set(covered as f64);
    gauge!(JOURNAL_BYTES, "cluster" => label()).set(bytes as f64);
    gauge!(JOURNAL_CONTENTS, "cluster" => label()).set(contents as f64);
    has_journal
}
