//! One group read on one connection: statements, facts and documents.
//!
//! Each group first asks the server what it is (role, log position), then reads the documents and
//! where their snapshot stands. The facts come back with the documents; whoever asked decides
//! whether they are new enough for it.
//!
//! How it fails: the server ends a statement a little before this side gives up, so what was given
//! up does not go on there unseen; a server that says nothing at all loses the connection.

use std::collections::HashMap;

use futures_util::future::{join, try_join};
use tagfast_domain::EpochId;
use tagfast_failover::BootTime;
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
/// The documents, and a row with what their snapshot shows: position and xids of the same
/// statement. Functions run after the snapshot was taken, so nothing beyond the position is in the
/// documents, and whoever has not received a later timeline by then shows nothing of it.
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

/// Documents by key, and the facts of their group.
pub(crate) type Group = (HashMap<Vec<u8>, Vec<u8>>, ReadFacts);

/// A reading connection with its statements.
pub(crate) struct Reading {
    connection: Connection,
    before: Statement,
    read: Statement,
}

impl Reading {
    /// Connects and prepares.
    pub(crate) async fn open(opener: &Opener, address: &str, name: &str) -> Result<Self, PgError> {
        let connection = opener.open_to_read(address, name).await?;
        let client = &connection.client;
        let all = try_join(client.prepare(BEFORE), client.prepare(READ));
        let (before, read) = within("preparing", limit::CONNECT, all).await?;
        Ok(Self { before, read, connection })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.connection.client.is_closed()
    }

    /// Reads documents. `keys` has each of them once.
    pub(crate) async fn group(&self, keys: &[&[u8]]) -> Result<Group, PgError> {
        let client = &self.connection.client;
        let sent = boot_time();
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&keys];
        let all = async {
            let (before, rows) =
                join(client.query_one(&self.before, &[]), client.query(&self.read, &parameters))
                    .await;
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
            let id: Option<EpochId> =
                row.get::<_, Option<&[u8]>>(6).and_then(|id| id.try_into().ok()).map(EpochId);
            facts.epoch = id.map(|id| (id, row.get::<_, i32>(7).cast_unsigned()));
        }
        Ok((documents, facts))
    }
}
