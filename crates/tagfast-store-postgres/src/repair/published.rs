//! The second witness of lost writes: documents that the relay of an ended epoch published before
//! any replica had them. They bring back what processes had acknowledged that died together with
//! their primary.
//!
//! Such a document is joined like an entry of a journal, in the same transactions and by the same
//! rules: never after the repair was closed for its epoch, never beyond the limit of tags, never
//! against a conditional write that did not see it. Which of its writes were acknowledged is not
//! known. So a write that came back is recorded as repaired by its event, and one that did not
//! come back is not recorded as lost: only a receipt can ask for it, and is then answered by the
//! closing.
//!
//! No journal vouches for what an event brought back. It need not: a failover that loses the join
//! loses the record of the reconciliation with it, and the next epoch finds the same event.
//!
//! How it fails: as a repair; the relay starts the reconciliation over.

use std::sync::Arc;

use tagfast_domain::{Epoch, EpochId, EpochOrdinal, Limits};
use tagfast_events::DivergedContent;
use tagfast_failover::{EpochRecord, LogRange, RepairEntry, RepairId};
use tagfast_resilience::{Bounded, Clock, counter};
use tagfast_sharding::LogicalShard;
use tagfast_store::stored_key;
use tokio_postgres::types::ToSql;

use super::chunk::{CHUNK_CONTENTS_MAX, ChunkContext, RepairSession, repair_chunk};
use super::verdict_rows::BY_EVENT_REASONS;
use crate::cluster::topology::{Cluster, Node};
use crate::connect::{Connection, ConnectionFactory, PgError, within};
use crate::metric::REPAIRED_CONTENTS;
use crate::options::limit;

/// The name under which a failover report counts the writes that only events brought back.
pub(super) const EVENTS_NODE: &str = "events";
const COUNT_BY_EVENT: &str =
    "SELECT count(*) FROM repair_log WHERE in_epoch = $1 AND reason = ANY($2)";

/// Everything that repairs from events run with.
pub(crate) struct PublishedRepair {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) connections: ConnectionFactory,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: Limits,
}

impl PublishedRepair {
    /// Joins the documents of contents that diverged. Called before the closing of the epoch
    /// begins, and before the contents are written again.
    pub(crate) async fn join(
        &self,
        epoch: &EpochRecord,
        node: &Node,
        diverged: Vec<DivergedContent>,
    ) -> Result<(), PgError> {
        let ends = self.cluster.epoch_ends();
        let end_of = |ordinal| {
            let id = ends.id_of(ordinal)?;
            Some((id, ends.of(id)?))
        };
        let rounds = rounds_of(diverged, end_of);
        if rounds.is_empty() {
            return Ok(());
        }
        let connection = self.connections.open(&node.address, "repair").await?;
        let mut session = RepairSession::new(connection).await?;
        let current = Epoch { id: epoch.id, ordinal: epoch.ordinal };
        let (mut documents, mut written) = (0, 0);
        for entries in rounds.iter().flat_map(|round| round.chunks(CHUNK_CONTENTS_MAX)) {
            let mut locks = false;
            loop {
                let context = ChunkContext {
                    cluster: &self.cluster,
                    epoch: &current,
                    limits: &self.limits,
                    now: self.clock.now_ms(),
                    locks,
                    by_event: true,
                };
                let outcome = repair_chunk(&mut session, entries, &context).await?;
                written += outcome.written;
                if outcome.lost_races == 0 {
                    break;
                }
                // Contents that are written all the time are locked in the next attempt.
                locks = true;
            }
            documents += entries.len();
        }
        counter!(REPAIRED_CONTENTS, "cluster" => Bounded(self.cluster.name.clone()))
            .increment(written as u64);
        tracing::info!(
            cluster = self.cluster.name,
            epoch = epoch.ordinal.0,
            documents,
            written,
            "what was published and lost is joined"
        );
        Ok(())
    }
}

/// How many writes only their events brought back in an epoch.
pub(super) async fn count_by_event(
    server: &Connection,
    epoch: EpochOrdinal,
) -> Result<u64, PgError> {
    let ordinal = epoch.0.cast_signed();
    let reasons: &[&str] = &BY_EVENT_REASONS;
    let parameters: [&(dyn ToSql + Sync); 2] = [&ordinal, &reasons];
    let row = server.client.query_one(COUNT_BY_EVENT, &parameters);
    let row = within("counting what events brought back", limit::READ_TIMEOUT, row).await?;
    Ok(row.get::<_, i64>(0).cast_unsigned())
}

/// What is joined: a content comes once in a round. `end_of`: the id of an epoch and its end in the
/// current history; `None`: the epoch is unknown.
fn rounds_of(
    diverged: Vec<DivergedContent>,
    end_of: impl Fn(EpochOrdinal) -> Option<(EpochId, u64)>,
) -> Vec<Vec<RepairEntry>> {
    let mut rounds: Vec<Vec<RepairEntry>> = Vec::new();
    for DivergedContent { key, documents } in diverged {
        let stored: Arc<[u8]> = stored_key(LogicalShard::of(&key), &key.to_bytes()).into();
        let past_end = documents.into_iter().filter_map(|published| {
            let (epoch, end) = end_of(published.publisher_epoch)?;
            (published.hi > end).then_some((epoch, published))
        });
        for (n, (epoch, published)) in past_end.enumerate() {
            if n == rounds.len() {
                rounds.push(Vec::new());
            }
            rounds[n].push(RepairEntry {
                id: RepairId::default(),
                key: Arc::clone(&stored),
                document: published.document.into(),
                version: published.version,
                at: LogRange { epoch, inside: published.hi, flushed: published.hi },
                // Which of them were acknowledged is not known.
                writes: Vec::new(),
            });
        }
    }
    rounds
}

#[cfg(test)]
mod tests {
    use tagfast_domain::{ContentKey, Version};
    use tagfast_events::PublishedDocument;

    use super::*;

    const ONE: EpochId = EpochId([1; 16]);
    const TWO: EpochId = EpochId([2; 16]);

    fn document(ordinal: u64, hi: u64) -> PublishedDocument {
        let publisher_epoch = EpochOrdinal(ordinal);
        PublishedDocument { publisher_epoch, hi, version: Version::NONE, document: vec![1] }
    }

    #[test]
    fn a_content_comes_once_in_a_round_and_only_with_what_its_epoch_lost() {
        let key = |id| ContentKey::parse("test", "doc", id).expect("a content");
        let diverged = vec![
            DivergedContent { key: key("a"), documents: vec![document(2, 51), document(1, 101)] },
            DivergedContent { key: key("b"), documents: vec![document(2, 50), document(1, 200)] },
            DivergedContent { key: key("c"), documents: vec![document(9, 900)] },
            DivergedContent { key: key("d"), documents: Vec::new() },
        ];
        let rounds = rounds_of(diverged, |ordinal| match ordinal.0 {
            1 => Some((ONE, 100)),
            2 => Some((TWO, 50)),
            _ => None,
        });
        let named = |entry: &RepairEntry| {
            let key = ContentKey::from_bytes(&entry.key[1..]).expect("a key");
            (key.content.content_id.as_str().to_owned(), entry.at.epoch, entry.at.flushed)
        };
        let found: Vec<Vec<_>> = rounds.iter().map(|r| r.iter().map(named).collect()).collect();
        let expected = vec![
            vec![("a".to_owned(), TWO, 51), ("b".to_owned(), ONE, 200)],
            vec![("a".to_owned(), ONE, 101)],
        ];
        assert_eq!(found, expected);
        assert!(rounds.iter().flatten().all(|entry| entry.writes.is_empty()));
    }
}
