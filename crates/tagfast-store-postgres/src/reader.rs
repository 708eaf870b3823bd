//! Group reads: one connection a node, one round trip for everything that waits.
//!
//! Each group first asks the server what it is (role, log position, epoch, timeline), then reads the documents and where it
//! stands then. The facts come back with the documents; whoever asked decides whether they are new enough for it.
//!
//! How it fails: every caller of a failed group is told, and tries another node. The next group opens a new connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{join, try_join};
use tagfast_domain::EpochId;
use tagfast_failover::BootTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_postgres::Statement;

use crate::boot_time;
use crate::connect::{Connection, Opener, PgError, within};
use crate::options::limit;

/// Asked first: everything up to this position is in the answer.
const BEFORE: &str = "
SELECT r.recovery,
       CASE WHEN r.recovery THEN pg_last_wal_replay_lsn() - '0/0' ELSE pg_current_wal_flush_lsn() - '0/0' END::bigint,
       (extract(epoch FROM CASE WHEN r.recovery THEN pg_last_xact_replay_timestamp() ELSE clock_timestamp() END)
        * 1000)::bigint
FROM (SELECT pg_is_in_recovery() AS recovery) r";
/// The documents, and a row with what their snapshot shows: position and xids of the same statement. Functions run after the
/// snapshot was taken, so nothing beyond the position is in the documents, and whoever has not received a later timeline by
/// then shows nothing of it.
const READ: &str = "
SELECT NULL::bytea, NULL::bytea, CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() - '0/0'
                                      ELSE pg_current_wal_insert_lsn() - '0/0' END::bigint,
       pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint,
       CASE WHEN pg_is_in_recovery() THEN coalesce((SELECT received_tli FROM pg_stat_wal_receiver), 0)
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END,
       e.id, e.timeline
FROM pg_current_snapshot() s
LEFT JOIN LATERAL (SELECT id, timeline FROM epoch ORDER BY ordinal DESC LIMIT 1) e ON true
UNION ALL SELECT k, doc, NULL, NULL, NULL, NULL, NULL, NULL FROM content WHERE k = ANY($1)";

/// What a server said of itself around a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReadFacts {
    pub(crate) in_recovery: bool,
    /// Everything up to here was visible.
    pub(crate) covered: u64,
    /// A primary's timeline; the one a replica receives, 0 while it receives nothing.
    pub(crate) timeline: u32,
    pub(crate) epoch: Option<(EpochId, u32)>,
    /// The answer is at least as new as this moment of the server's clock.
    pub(crate) as_of: Option<i64>,
    /// Nothing beyond was visible.
    pub(crate) seen: u64,
    /// Every transaction below had ended, and what it wrote was visible.
    pub(crate) xmin: u64,
    /// Nothing of this transaction or a later one was visible.
    pub(crate) xmax: u64,
    pub(crate) sent: BootTime,
    pub(crate) returned: BootTime,
}

/// A document's bytes, if there is one, and the facts of its group.
pub(crate) type ReadAnswer = Result<(Option<Vec<u8>>, ReadFacts), Arc<PgError>>;

struct Job {
    key: Vec<u8>,
    reply: oneshot::Sender<ReadAnswer>,
}

/// A node's reader.
#[derive(Clone)]
pub(crate) struct NodeReader {
    jobs: mpsc::Sender<Job>,
    failed_at: Arc<Mutex<Option<Instant>>>,
}

/// Why a read did not come to the node.
pub(crate) enum NotRead {
    /// Too many wait.
    Overloaded,
    /// The node failed; the error is in the log.
    Failed,
}

impl NodeReader {
    pub(crate) fn start(opener: Opener, address: String) -> Self {
        let (jobs, waiting) = mpsc::channel(limit::READ_QUEUE);
        tokio::spawn(run(opener, address, waiting));
        Self { jobs, failed_at: Arc::default() }
    }

    /// Whether it failed a moment ago; another node is asked first then.
    pub(crate) fn is_avoided(&self) -> bool {
        self.last_failure().is_some_and(|at| at.elapsed() < limit::AVOID)
    }

    /// Remembers that it did not answer in time.
    pub(crate) fn avoid(&self) {
        *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn last_failure(&self) -> Option<Instant> {
        *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn read(&self, key: Vec<u8>) -> Result<(Option<Vec<u8>>, ReadFacts), NotRead> {
        let (reply, answer) = oneshot::channel();
        self.jobs.try_send(Job { key, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotRead::Overloaded,
            mpsc::error::TrySendError::Closed(_) => NotRead::Failed,
        })?;
        match answer.await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(_)) | Err(_) => {
                self.avoid();
                Err(NotRead::Failed)
            }
        }
    }
}

struct Reading {
    connection: Connection,
    before: Statement,
    read: Statement,
}

async fn open(opener: &Opener, address: &str) -> Result<Reading, PgError> {
    let connection = opener.open(address, "read").await?;
    let client = &connection.client;
    let all = try_join(client.prepare(BEFORE), client.prepare(READ));
    let (before, read) = within("preparing", limit::CONNECT, all).await?;
    Ok(Reading { before, read, connection })
}

/// Reads in groups until every handle is dropped.
async fn run(opener: Opener, address: String, mut waiting: mpsc::Receiver<Job>) {
    let mut server: Option<Reading> = None;
    let mut jobs = Vec::with_capacity(limit::READS);
    while waiting.recv_many(&mut jobs, limit::READS).await > 0 {
        // Who has gone needs no answer.
        jobs.retain(|job| !job.reply.is_closed());
        if server.as_ref().is_none_or(|s| s.connection.client.is_closed()) {
            server = match open(&opener, &address).await {
                Ok(reading) => Some(reading),
                Err(error) => {
                    fail(&mut jobs, error, &address);
                    continue;
                }
            };
        }
        let Some(reading) = &server else { continue };
        match group(reading, &jobs).await {
            Ok((mut documents, facts)) => {
                for job in jobs.drain(..) {
                    let document = documents.get_mut(&job.key).map(|d| d.clone());
                    drop(job.reply.send(Ok((document, facts))));
                }
            }
            Err(error) => {
                server = None;
                fail(&mut jobs, error, &address);
            }
        }
    }
}

fn fail(jobs: &mut Vec<Job>, error: PgError, address: &str) {
    tracing::warn!(address, %error, "a group read failed");
    let error = Arc::new(error);
    jobs.drain(..).for_each(|job| drop(job.reply.send(Err(Arc::clone(&error)))));
}

async fn group(server: &Reading, jobs: &[Job]) -> Result<(HashMap<Vec<u8>, Vec<u8>>, ReadFacts), PgError> {
    let mut keys: Vec<&[u8]> = jobs.iter().map(|job| job.key.as_slice()).collect();
    keys.sort_unstable();
    keys.dedup();
    let client = &server.connection.client;
    let sent = boot_time();
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&keys];
    let all = async {
        let (before, rows) = join(client.query_one(&server.before, &[]), client.query(&server.read, &parameters)).await;
        Ok((before?, rows?))
    };
    let (before, rows) = within("a group read", limit::READ, all).await?;
    let mut facts = ReadFacts {
        in_recovery: before.get(0),
        covered: before.get::<_, i64>(1).cast_unsigned(),
        as_of: before.get(2),
        timeline: 0,
        epoch: None,
        seen: 0,
        xmin: 0,
        xmax: 0,
        sent,
        returned: boot_time(),
    };
    let mut documents = HashMap::with_capacity(rows.len());
    for row in rows {
        let Some(position) = row.get::<_, Option<i64>>(2) else {
            documents.insert(row.get(0), row.get(1));
            continue;
        };
        let number = |column| row.get::<_, i64>(column).cast_unsigned();
        (facts.seen, facts.xmin, facts.xmax) = (position.cast_unsigned(), number(3), number(4));
        facts.timeline = row.get::<_, i32>(5).cast_unsigned();
        let id: Option<EpochId> = row.get::<_, Option<&[u8]>>(6).and_then(|id| id.try_into().ok()).map(EpochId);
        facts.epoch = id.map(|id| (id, row.get::<_, i32>(7).cast_unsigned()));
    }
    Ok((documents, facts))
}
