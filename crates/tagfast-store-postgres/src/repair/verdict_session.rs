//! The connection on which receipts are looked up.
//!
//! How it fails: a statement that cannot be prepared fails the connection; the next look-up opens
//! another.

use futures_util::future::try_join;
use tokio_postgres::Statement;

use crate::connect::{Connection, ConnectionFactory, PgError, within};
use crate::options::limit;
use crate::sql::epoch_check;

const SELECT_WRITES: &str = concat!(
    "SELECT x.n::int, r.verdict, r.reason,
       EXISTS (SELECT FROM applied_0 t WHERE t.wid = x.wid UNION ALL
               SELECT FROM applied_1 t WHERE t.wid = x.wid UNION ALL
               SELECT FROM applied_2 t WHERE t.wid = x.wid)
FROM unnest($1::bytea[]) WITH ORDINALITY x(wid, n) LEFT JOIN repair_log r ON r.wid = x.wid
WHERE ",
    epoch_check!("$2"),
    " = 1"
);
/// The epochs whose repair is closed for good.
const SELECT_CLOSINGS: &str = "
SELECT ordinal, (extract(epoch FROM repair_closed_at) * 1000)::bigint FROM epoch
WHERE verdicts_final_at IS NOT NULL ORDER BY ordinal";

/// A connection for verdicts, with its statements.
pub(crate) struct VerdictSession {
    pub(super) connection: Connection,
    pub(super) select_writes: Statement,
    pub(super) select_closings: Statement,
}

impl VerdictSession {
    pub(super) async fn open(
        connections: &ConnectionFactory,
        address: &str,
    ) -> Result<Self, PgError> {
        let connection = connections.open_to_read(address, "verdicts").await?;
        let client = &connection.client;
        let prepared = try_join(client.prepare(SELECT_WRITES), client.prepare(SELECT_CLOSINGS));
        let (select_writes, select_closings) =
            within("preparing", limit::CONNECT_TIMEOUT, prepared).await?;
        Ok(Self { connection, select_writes, select_closings })
    }
}
