//! The closing of repairs: from then on the verdicts about the writes of earlier epochs are final.
//!
//! It runs beside the active relay of a cluster, after that has reconciled the epoch. A repair is
//! closed when every registered process has reported, or a minute after its epoch was minted. The
//! closing counts once every streaming replica has it, so that a second failover does not open
//! again what a client was told is final.
//!
//! A failover that another one followed before its repair was closed ends with the closing of the
//! later one: it is superseded, and its report says so.
//!
//! Open => Closed (a row) => Final (replicas have the row) => Announced (etcd has the closing)
//!
//! How it fails: each step is repeated until it succeeds, by this relay or the next one. Without
//! etcd no one knows who has reported, so the repair stays open for a minute.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use tagfast_domain::UnixMillis;
use tagfast_failover::closing::CLOSING_AFTER;
use tagfast_failover::{Closing, EpochRecord, closing, superseded};
use tagfast_resilience::{Clock, OutageLog};
use tagfast_store::{FailoverObserver, FailoverReport};
use tokio::time::Instant;
use tokio_postgres::types::ToSql;

use super::published::{EVENTS_NODE, PublishedRepair, count_by_event};
use super::report::{node_of, report_of};
use super::verdict_rows::VERDICTS_REMEMBERED_MS;
use crate::cluster::etcd::repair_keys::{StoredClosing, StoredCounts, StoredRepair, StoredTimes};
use crate::cluster::etcd::{Etcd, EtcdError};
use crate::cluster::node_registry::NodeRegistry;
use crate::cluster::replica_positions::{REPLICA_POSITIONS, read_positions};
use crate::cluster::topology::{Cluster, Node};
use crate::connect::{Connection, ConnectionFactory, PgError, within};
use crate::options::limit;
use crate::sql::{FLUSH_LSN, epoch_check};

/// Between two checks of what must come first: the history, an answer of etcd, the closing.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// The same when it takes long.
const RETRY_INTERVAL_LATER: Duration = Duration::from_secs(1);
/// When it takes long.
const LATER_AFTER: Duration = Duration::from_secs(10);
/// Between two sweeps of old verdicts.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
/// Verdicts that one statement of a sweep forgets.
const SWEEP_ROWS: i64 = 10_000;
/// After a failure.
const CLOSE_RETRY_INTERVAL: Duration = Duration::from_millis(500);

const SELECT_STATE: &str = "
SELECT (extract(epoch FROM repair_closed_at) * 1000)::bigint, verdicts_final_at IS NOT NULL
FROM epoch WHERE id = $1";
const SET_CLOSED: &str = concat!(
    "UPDATE epoch SET repair_closed_at = clock_timestamp()
WHERE id = $1 AND repair_closed_at IS NULL AND ",
    epoch_check!("$1"),
    " = 1"
);
/// Also of earlier epochs whose closing came with the same log.
const SET_FINAL: &str = concat!(
    "UPDATE epoch SET verdicts_final_at = clock_timestamp()
WHERE repair_closed_at IS NOT NULL AND verdicts_final_at IS NULL AND ",
    epoch_check!("$1"),
    " = 1"
);
const FORGET_VERDICTS: &str = "
DELETE FROM repair_log WHERE wid = ANY(ARRAY(
    SELECT wid FROM repair_log WHERE at < to_timestamp($1::bigint / 1000.0) LIMIT $2))";

/// Everything a closer runs with.
pub(crate) struct Closer {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) connections: ConnectionFactory,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) etcd: Etcd,
    pub(crate) registry: Arc<NodeRegistry>,
    /// Repairs what was published, before anything is closed.
    pub(crate) published: PublishedRepair,
    /// Is told of each failover whose repair is closed here; `None`: no one is.
    pub(crate) observer: Option<Arc<dyn FailoverObserver>>,
}

#[derive(Debug, thiserror::Error)]
enum CloseError {
    #[error(transparent)]
    Postgres(#[from] PgError),
    #[error("etcd does not take the closing")]
    Etcd(#[from] EtcdError),
    #[error("the epoch has no row")]
    NoRow,
}

impl Closer {
    /// Closes the repair of an epoch, then forgets old verdicts now and then, until it is dropped.
    pub(crate) async fn run(&self, epoch: &EpochRecord, node: &Node) -> Infallible {
        let outage = OutageLog::of("closing a repair", self.cluster.name.clone());
        let adopted = Instant::now();
        let mut is_announced = false;
        loop {
            let done = async {
                let server = self.connections.open(&node.address, "closing").await?;
                if !is_announced {
                    self.close(&server, epoch, adopted).await?;
                    is_announced = true;
                }
                self.forget_old_verdicts(&server).await
            };
            match done.await {
                Ok(()) => {
                    outage.recovered();
                    tokio::time::sleep(SWEEP_INTERVAL).await;
                }
                Err(error) => {
                    outage.failed(&error);
                    tokio::time::sleep(CLOSE_RETRY_INTERVAL).await;
                }
            }
        }
    }

    async fn close(
        &self,
        server: &Connection,
        epoch: &EpochRecord,
        adopted: Instant,
    ) -> Result<(), CloseError> {
        let state = read_state(server, epoch).await?;
        let missing = match state.closed_at {
            Some(_) => self.missing(epoch, adopted).await?,
            None => self.await_reports(epoch, adopted).await,
        };
        let position = set_closed(server, epoch).await?;
        if !state.is_final {
            self.await_coverage(server, epoch, position).await?;
            execute(server, "making verdicts final", SET_FINAL, epoch).await?;
            tracing::info!(
                cluster = self.cluster.name,
                epoch = epoch.ordinal.0,
                missing = ?missing,
                "the repair is closed: the verdicts about earlier epochs are final"
            );
        }
        let closed_at = read_state(server, epoch).await?.closed_at.ok_or(CloseError::NoRow)?;
        // What an earlier relay announced saw more of the processes that were there.
        if self.etcd.closing(&self.cluster.scope, epoch.ordinal).await?.is_none() {
            let missing = missing.into_iter().collect();
            let closing = StoredClosing { closed_at, missing, superseded_by: None };
            self.announce(server, epoch, closing).await?;
        }
        Ok(())
    }

    /// Announces the closing of an epoch's repair, after those of the failovers that end with it,
    /// so that none is left out by a process that dies in between.
    async fn announce(
        &self,
        server: &Connection,
        epoch: &EpochRecord,
        closing: StoredClosing,
    ) -> Result<(), CloseError> {
        let scope = &self.cluster.scope;
        let history = self.etcd.history(scope).await?;
        let closed = self.etcd.closed_epochs(scope).await?;
        let by = Some(epoch.id.to_string());
        for earlier in superseded(&history, epoch.ordinal, &closed) {
            let closing = StoredClosing { superseded_by: by.clone(), ..closing.clone() };
            self.announce_one(server, &history, earlier, closing).await?;
        }
        self.announce_one(server, &history, epoch, closing).await
    }

    async fn announce_one(
        &self,
        server: &Connection,
        history: &[EpochRecord],
        epoch: &EpochRecord,
        closing: StoredClosing,
    ) -> Result<(), CloseError> {
        self.report_events(server, epoch).await?;
        let told = match &self.observer {
            Some(observer) => {
                self.report(history, epoch, &closing).await?.map(|told| (observer, told))
            }
            None => None,
        };
        self.etcd.put_closing((&self.cluster.scope, epoch.ordinal), &closing).await?;
        if let Some((observer, report)) = told {
            observer.repair_closed(&report);
        }
        Ok(())
    }

    /// Reports what only events brought back, if there is anything. The table of verdicts has it,
    /// so a relay that died after its reconciliation changes nothing.
    async fn report_events(
        &self,
        server: &Connection,
        epoch: &EpochRecord,
    ) -> Result<(), CloseError> {
        let repaired = count_by_event(server, epoch.ordinal).await?;
        if repaired == 0 {
            return Ok(());
        }
        let now = self.clock.now_ms();
        let report = StoredRepair {
            counts: StoredCounts { repaired, ..StoredCounts::default() },
            began_at: epoch.minted_at.min(now),
            ended_at: Some(now),
            incomplete: Vec::new(),
            times: StoredTimes::default(),
        };
        let scope = (self.cluster.scope.as_str(), epoch.ordinal);
        Ok(self.etcd.put_repair(scope, EVENTS_NODE, &report).await?)
    }

    /// The report of the failover that began an epoch; `None`: no failover did.
    async fn report(
        &self,
        history: &[EpochRecord],
        epoch: &EpochRecord,
        closing: &StoredClosing,
    ) -> Result<Option<FailoverReport>, EtcdError> {
        let Some(parent) = epoch.parent_id else { return Ok(None) };
        let scope = &self.cluster.scope;
        let previous = history.iter().find(|other| other.id == parent);
        let nodes = self.etcd.repairs(scope, epoch.ordinal).await?.into_iter().map(node_of);
        let closing = Some(closing.clone());
        let name = &self.cluster.name;
        Ok(Some(report_of(name, epoch, previous, nodes.collect(), closing, Vec::new())))
    }

    /// Waits until the repair can be closed; returns the processes that have not reported.
    async fn await_reports(&self, epoch: &EpochRecord, adopted: Instant) -> BTreeSet<String> {
        let began = Instant::now();
        loop {
            let age = self.age(epoch, adopted);
            let decided = match self.reporters(epoch).await {
                Ok((registered, reported)) => {
                    let seen = self.registry.seen_around(adopted);
                    match closing(&registered, &reported, age) {
                        Closing::Close(missing) => {
                            let seen = seen.difference(&reported).cloned();
                            Some(missing.into_iter().chain(seen).collect())
                        }
                        Closing::WaitFor(_) => None,
                    }
                }
                // No one can be asked, and nothing is waited for any longer.
                Err(_) if age >= CLOSING_AFTER => Some(self.registry.seen_around(adopted)),
                Err(_) => None,
            };
            if let Some(missing) = decided {
                return missing;
            }
            pause_since(began).await;
        }
    }

    /// The larger of two ages: no clock that was set delays a closing beyond its limit.
    fn age(&self, epoch: &EpochRecord, adopted: Instant) -> Duration {
        let ms = self.clock.now_ms().saturating_sub(epoch.minted_at);
        adopted.elapsed().max(Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
    }

    /// The processes that are registered, and those whose repair of the epoch has ended.
    async fn reporters(
        &self,
        epoch: &EpochRecord,
    ) -> Result<(BTreeSet<String>, BTreeSet<String>), EtcdError> {
        // The registrations first: who registers later has nothing of an earlier epoch, or was
        // registered before and comes back with its copy on disk.
        let registered = self.registry.registered().await?;
        let repairs = self.etcd.repairs(&self.cluster.scope, epoch.ordinal).await?;
        let reported = repairs.into_iter().filter(|(_, repair)| repair.ended_at.is_some());
        Ok((registered, reported.map(|(process, _)| process).collect()))
    }

    /// The processes that may have had a journal and have not reported.
    async fn missing(
        &self,
        epoch: &EpochRecord,
        adopted: Instant,
    ) -> Result<BTreeSet<String>, EtcdError> {
        let (registered, reported) = self.reporters(epoch).await?;
        let known = self.registry.seen_around(adopted).into_iter().chain(registered);
        Ok(known.filter(|process| !reported.contains(process)).collect())
    }

    async fn await_coverage(
        &self,
        server: &Connection,
        epoch: &EpochRecord,
        position: u64,
    ) -> Result<(), PgError> {
        let began = Instant::now();
        let prepared = server.client.prepare(REPLICA_POSITIONS);
        let statement = within("preparing", limit::CONNECT_TIMEOUT, prepared).await?;
        loop {
            read_positions(&self.cluster, server, &statement, epoch.id).await?;
            let has_all = {
                let acknowledger = self.cluster.acknowledger();
                // Positions of a later epoch say nothing about this log.
                acknowledger.epoch().is_some_and(|current| current.id == epoch.id)
                    && acknowledger.coverage().has_all(position)
            };
            if has_all {
                return Ok(());
            }
            pause_since(began).await;
        }
    }

    async fn forget_old_verdicts(&self, server: &Connection) -> Result<(), CloseError> {
        let before = self.clock.now_ms().saturating_sub(VERDICTS_REMEMBERED_MS);
        let parameters: [&(dyn ToSql + Sync); 2] = [&before, &SWEEP_ROWS];
        loop {
            let deleted = server.client.execute(FORGET_VERDICTS, &parameters);
            let deleted = within("forgetting old verdicts", limit::COMMIT_TIMEOUT, deleted).await?;
            if deleted < SWEEP_ROWS.unsigned_abs() {
                return Ok(());
            }
        }
    }
}

/// How far the closing of an epoch is.
struct ClosingState {
    /// Unix ms; `None`: it is open.
    closed_at: Option<UnixMillis>,
    is_final: bool,
}

async fn read_state(server: &Connection, epoch: &EpochRecord) -> Result<ClosingState, CloseError> {
    let id: &[u8] = &epoch.id.0;
    let parameters: [&(dyn ToSql + Sync); 1] = [&id];
    let row = server.client.query_opt(SELECT_STATE, &parameters);
    let row = within("reading the closing", limit::READ_TIMEOUT, row).await?;
    let row = row.ok_or(CloseError::NoRow)?;
    Ok(ClosingState { closed_at: row.get(0), is_final: row.get(1) })
}

/// Closes the repair, unless it is; returns a log position that has it.
async fn set_closed(server: &Connection, epoch: &EpochRecord) -> Result<u64, PgError> {
    let id: &[u8] = &epoch.id.0;
    let parameters: [&(dyn ToSql + Sync); 1] = [&id];
    let all = async {
        let (closed, position) = join(
            server.client.execute(SET_CLOSED, &parameters),
            server.client.query_one(FLUSH_LSN, &[]),
        )
        .await;
        closed?;
        position
    };
    let position = within("closing the repair", limit::COMMIT_TIMEOUT, all).await?;
    Ok(position.get::<_, i64>(0).cast_unsigned())
}

async fn execute(
    server: &Connection,
    what: &'static str,
    statement: &'static str,
    epoch: &EpochRecord,
) -> Result<u64, PgError> {
    let id: &[u8] = &epoch.id.0;
    let parameters: [&(dyn ToSql + Sync); 1] = [&id];
    within(what, limit::COMMIT_TIMEOUT, server.client.execute(statement, &parameters)).await
}

/// Pauses before the next attempt of something that began at this moment.
pub(super) async fn pause_since(began: Instant) {
    let late = began.elapsed() > LATER_AFTER;
    tokio::time::sleep(if late { RETRY_INTERVAL_LATER } else { RETRY_INTERVAL }).await;
}
