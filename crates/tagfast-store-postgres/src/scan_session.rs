//! The connection of scans, with its statements prepared.
//!
//! How it fails: like its connection; the owner opens another.

use futures_util::future::{join, try_join};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use crate::connect::{Connection, ConnectionFactory, PgError, within};
use crate::options::limit;
use crate::sql::EPOCH_CHECK;

const SELECT_PAGE: &str =
    "SELECT k, doc FROM content WHERE k > $1 AND k < $2 AND ver > 0 ORDER BY k LIMIT $3";

/// A connection for scans.
pub(crate) struct ScanSession {
    connection: Connection,
    epoch_check: Statement,
    select_page: Statement,
}

impl ScanSession {
    /// Connects and prepares.
    pub(crate) async fn open(
        connections: &ConnectionFactory,
        address: &str,
    ) -> Result<Self, PgError> {
        let connection = connections.open(address, "scan").await?;
        let client = &connection.client;
        let all = try_join(client.prepare(EPOCH_CHECK), client.prepare(SELECT_PAGE));
        let (epoch_check, select_page) = within("preparing", limit::CONNECT_TIMEOUT, all).await?;
        Ok(Self { connection, epoch_check, select_page })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.connection.client.is_closed()
    }

    /// The first `rows` rows between two stored keys, while the epoch with this id goes on.
    pub(crate) async fn page(
        &self,
        epoch: &[u8],
        (low, high): (&[u8], &[u8]),
        rows: i64,
    ) -> Result<Vec<Row>, PgError> {
        let client = &self.connection.client;
        let (check, page): ([&(dyn ToSql + Sync); 1], [&(dyn ToSql + Sync); 3]) =
            ([&epoch], [&low, &high, &rows]);
        let all = async {
            let (check, rows) = join(
                client.query_one(&self.epoch_check, &check),
                client.query(&self.select_page, &page),
            )
            .await;
            check?;
            rows
        };
        within("a scan", limit::COMMIT_TIMEOUT, all).await
    }
}
