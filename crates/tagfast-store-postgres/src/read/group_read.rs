//! One read query on one connection: facts about the server, and documents.
//!
//! Each query first asks the server what it is (role, log position), then reads the documents and
//! where their snapshot stands. The facts come back with the documents; the caller decides whether
//! they are fresh enough.
//!
//! How it fails: the server cancels a statement a little before this side gives up, so that no
//! abandoned query goes on; a server that does not answer at all loses the connection.

use std::collections::HashMap;

use futures_util::future::{join, try_join};
use tagfast_domain::EpochId;
use tagfast_failover::BootTime;
use tokio_postgres::Statement;

use crate::boot_clock::boot_time;
use crate::connect::{Connection, ConnectionFactory, PgError, within};
use crate::options::limit;
use crate::sql::{current_timeline, newest_epoch};

/// Sent first: everything up to this log position is in the documents.
const SNAPSHOT_FACTS: &str = "
SELECT r.recovery,
       CASE WHEN r.recovery THEN pg_last_wal_replay_lsn() - '0/0'
            ELSE pg_current_wal_flush_lsn() - '0/0' END::bigint
FROM (SELECT pg_is_in_recovery() AS recovery) r";

/// The documents, and a row with what their snapshot shows: position and xids of the same
/// statement. Functions run after the snapshot was taken, so nothing beyond the position is in the
/// documents, and a server that has not received a later timeline by then shows nothing of it.
const SELECT_DOCUMENTS: &str = concat!(
    "
SELECT NULL::bytea, NULL::bytea,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() - '0/0'
            ELSE pg_current_wal_insert_lsn() - '0/0' END::bigint,
       pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint,
       CASE WHEN pg_is_in_recovery()
            THEN coalesce((SELECT received_tli FROM pg_stat_wal_receiver), 0) ELSE ",
    current_timeline!(),
    " END,
       e.id, e.timeline
FROM pg_current_snapshot() s LEFT JOIN LATERAL ",
    newest_epoch!(),
    " e ON true
UNION ALL SELECT k, doc, NULL, NULL, NULL, NULL, NULL, NULL FROM content WHERE k = ANY($1)"
);

/// What a server reports about itself around a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SnapshotFacts {
    pub(crate) in_recovery: bool,
    /// Every write up to this log position was visible.
    pub(crate) covered: u64,
    /// A primary's timeline; on a replica the one that it receives, 0 while it receives none.
    pub(crate) timeline: u32,
    /// The newest epoch in its table, and the epoch's timeline; `None`: the table is empty.
    pub(crate) epoch: Option<(EpochId, u32)>,
    /// No write beyond this log position was visible.
    pub(crate) seen: u64,
    /// Every transaction below had ended, and its writes were visible.
    pub(crate) xmin: u64,
    /// No write of this transaction or a later one was visible.
    pub(crate) xmax: u64,
    pub(crate) sent: BootTime,
    pub(crate) returned: BootTime,
}

/// Documents by stored key, and the facts of their query.
pub(crate) type GroupRead = (HashMap<Vec<u8>, Vec<u8>>, SnapshotFacts);

/// A reading connection with its statements.
pub(crate) struct ReadSession {
    connection: Connection,
    snapshot_facts: Statement,
    select_documents: Statement,
}

impl ReadSession {
    /// Connects and prepares.
    pub(crate) async fn open(
        connections: &ConnectionFactory,
        address: &str,
        name: &str,
    ) -> Result<Self, PgError> {
        let connection = connections.open_to_read(address, name).await?;
        let client = &connection.client;
        let all = try_join(client.prepare(SNAPSHOT_FACTS), client.prepare(SELECT_DOCUMENTS));
        let (snapshot_facts, select_documents) =
            within("preparing", limit::CONNECT_TIMEOUT, all).await?;
        Ok(Self { connection, snapshot_facts, select_documents })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.connection.client.is_closed()
    }

    /// Reads documents. `keys` must not repeat a key.
    pub(crate) async fn read(&self, keys: &[&[u8]]) -> Result<GroupRead, PgError> {
        let client = &self.connection.client;
        let sent = boot_time();
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&keys];
        let all = async {
            let (before, rows) = join(
                client.query_one(&self.snapshot_facts, &[]),
                client.query(&self.select_documents, &parameters),
            )
            .await;
            Ok((before?, rows?))
        };
        let (before, rows) = within("a group read", limit::READ_TIMEOUT, all).await?;
        let mut facts = SnapshotFacts {
            in_recovery: before.get(0),
            covered: before.get::<_, i64>(1).cast_unsigned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_clock_of_a_database_node_is_asked() {
        for sql in [SNAPSHOT_FACTS, SELECT_DOCUMENTS] {
            assert!(!["timestamp", "now(", "clock"].iter().any(|w| sql.contains(w)), "{sql}");
        }
    }
}
