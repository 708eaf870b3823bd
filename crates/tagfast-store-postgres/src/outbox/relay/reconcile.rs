//! The reconciliation of an epoch: what was published past the end of an earlier one is repaired
//! where its document was published with it, and then every such content is written again.
//!
//! It comes before anything of the epoch is published, and before the epoch's repair can be closed:
//! the closer runs beside the relay only after it. So no verdict turns: what an event brings back
//! is recorded before the verdicts about earlier epochs are final.
//!
//! How it fails: as the relay. A relay that dies before the reconciliation is recorded starts over,
//! and finds by the write ids what was brought back.

use std::collections::HashSet;
use std::time::Duration;

use tagfast_domain::{ContentKey, Epoch};
use tagfast_events::{DivergedContent, EndedEpoch};
use tagfast_failover::EpochRecord;
use tagfast_resilience::counter;
use tokio_postgres::types::ToSql;

use super::{Relay, RelayError, with_keepalive};
use crate::cluster::epoch_ends::PastEnd;
use crate::cluster::topology::Node;
use crate::connect::{Connection, within};
use crate::metric::RECONCILED_CONTENTS;
use crate::options::limit;
use crate::write::rewrite::rewrite_in_epoch;
use crate::write::session::WriteSession;

/// Between two looks whether the history is known.
const HISTORY_INTERVAL: Duration = Duration::from_millis(100);

const SELECT_RECONCILED: &str = "SELECT ordinal FROM epoch WHERE reconciled_at IS NOT NULL";
const SET_RECONCILED: &str = "UPDATE epoch SET reconciled_at = clock_timestamp() WHERE id = $1";

impl Relay {
    /// Repairs and writes the contents again that diverged: something was published about them past
    /// the end of an earlier epoch. A relay that dies before it is recorded starts over.
    pub(super) async fn reconcile(
        &self,
        server: &Connection,
        epoch: &EpochRecord,
        node: &Node,
    ) -> Result<(), RelayError> {
        // Without it no epoch is known that could be repaired.
        while !self.cluster.knows_history() {
            if self.cluster.epoch().is_none_or(|now| now.id != epoch.id) {
                return Err(RelayError::EpochEnded);
            }
            with_keepalive(server, tokio::time::sleep(HISTORY_INTERVAL)).await?;
        }
        let rows = server.client.query(SELECT_RECONCILED, &[]);
        let rows = within("reading the epochs", limit::COMMIT_TIMEOUT, rows).await?;
        let reconciled: HashSet<u64> =
            rows.iter().map(|row| row.get::<_, i64>(0).cast_unsigned()).collect();
        let ends = self.cluster.past_epoch_ends().into_iter();
        let past: Vec<EndedEpoch> = ends
            .map(|PastEnd { ordinal, minted_at, end }| EndedEpoch {
                ordinal,
                minted_at,
                epoch_end: end,
                reconciled: reconciled.contains(&ordinal.0),
            })
            .collect();
        let diverged = self.sink.diverged_contents(&self.cluster.name, epoch, &past);
        let diverged: Vec<DivergedContent> = with_keepalive(server, diverged).await??;
        if !diverged.is_empty() {
            let contents: Vec<ContentKey> = diverged.iter().map(|c| c.key.clone()).collect();
            // First, or what comes back would be published as lost for a moment.
            let joined = self.closer.published.join(epoch, node, diverged);
            with_keepalive(server, joined).await??;
            tracing::info!(
                cluster = self.cluster.name,
                contents = contents.len(),
                "published past the end of an epoch: written again"
            );
            let connection = self.connections.open(&node.address, "reconcile").await?;
            let mut session = WriteSession::new(connection).await?;
            let now = self.clock.now_ms();
            let index = self.cluster.index;
            let current = Epoch { id: epoch.id, ordinal: epoch.ordinal };
            let rewritten = rewrite_in_epoch(&mut session, index, &current, &contents, now);
            with_keepalive(server, rewritten).await?.map_err(|failure| failure.error)?;
            counter!(RECONCILED_CONTENTS, "cluster" => self.label())
                .increment(contents.len() as u64);
        }
        let id: &[u8] = &epoch.id.0;
        let parameters: [&(dyn ToSql + Sync); 1] = [&id];
        let recorded = server.client.execute(SET_RECONCILED, &parameters);
        within("recording the reconciliation", limit::COMMIT_TIMEOUT, recorded).await?;
        Ok(())
    }
}
