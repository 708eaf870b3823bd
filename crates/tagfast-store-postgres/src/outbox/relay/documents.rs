//! The documents of contents whose rows are published before any replica has them.
//!
//! An event tells consumers which tags a content has. A repair needs more: when each of them was
//! decided, what was removed, which writes the state stands for. That is the document, and it is
//! read only where a failover would lose the rows, so that it costs nothing while a replica
//! follows. It is at least as new as the row; what it has beyond the row was committed, too.
//!
//! How it fails: as the relay. Beyond [`DOCUMENT_BYTES_MAX`] rows go without documents, and what
//! was lost of them is repaired by the processes that acknowledged it alone.

use std::collections::HashMap;

use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use crate::connect::{Connection, PgError, within};
use crate::options::limit;
use crate::outbox::sink::OutboxRow;

/// Reads documents by their keys.
pub(super) const SELECT_DOCUMENTS: &str = "SELECT k, doc FROM content WHERE k = ANY($1)";
/// Contents that are read at once.
const READ_CONTENTS_MAX: usize = 200;
/// Bytes of documents that go with one batch of rows. Too low: after a failover fewer writes come
/// back. Too high: memory of the relay.
const DOCUMENT_BYTES_MAX: usize = 16 << 20;

/// Gives the last row of each content the content's document.
pub(super) async fn attach_documents(
    server: &Connection,
    statement: &Statement,
    rows: &mut [OutboxRow],
) -> Result<(), PgError> {
    let last: HashMap<Vec<u8>, usize> =
        rows.iter().enumerate().map(|(n, row)| (row.key.clone(), n)).collect();
    let keys: Vec<&[u8]> = last.keys().map(Vec::as_slice).collect();
    let mut bytes = 0;
    for keys in keys.chunks(READ_CONTENTS_MAX) {
        let parameters: [&(dyn ToSql + Sync); 1] = [&keys];
        let found = server.client.query(statement, &parameters);
        let found = within("reading documents", limit::COMMIT_TIMEOUT, found).await?;
        for row in found {
            let document: Vec<u8> = row.get(1);
            bytes += document.len();
            if let Some(n) = last.get(row.get::<_, &[u8]>(0)) {
                rows[*n].document = Some(document);
            }
        }
        if bytes > DOCUMENT_BYTES_MAX {
            tracing::debug!(bytes, "the other rows are published without documents");
            break;
        }
    }
    Ok(())
}
