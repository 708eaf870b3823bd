//! One transaction of a repair: reads the documents of several contents, joins what was lost,
//! writes what changed, records the verdicts.
//!
//! It takes two round trips. The first one reads, the second one writes, records and commits, and
//! nothing is locked in between: a new write waits for a repair as long as for any other commit.
//! Documents are guarded by version and revision, as in a group commit. One that was changed in
//! between is not written, nothing is recorded about it, and its entry is left for the next
//! attempt, which locks the documents that it reads.
//!
//! The second round trip begins with a shared lock on the row of the epoch, and fails if a repair
//! was closed since the first one. So a verdict `lost` that a closing makes final is never
//! overtaken by a repair that was under way. An attempt without locks gets its transaction id only
//! then: it holds back the relay's horizon as briefly as a group commit, and its events come after
//! those of what it read.
//!
//! How it fails: as a whole, and nothing is put back into the journal; the connection must not be
//! used again. A second attempt finds what the first one committed by its ids.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::future::{join, join_all, join4, join5};
use tagfast_domain::{
    ContentKey, Document, Epoch, EpochId, JoinContext, Limits, UnixMillis, WriteId, codec,
};
use tagfast_failover::{JournaledContent, LogRange, RepairEntry, RepairId};
use tagfast_resilience::ErrorChain;
use tagfast_store::failovers::VerdictCounts;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use super::resolution::{KnownWrites, Resolution, VerdictRow, event_of, resolve, writes_of};
use super::verdict_rows::{add_counts, stored_reason, verdict_from_row};
use crate::cluster::topology::Cluster;
use crate::connect::{Connection, PgError, within};
use crate::options::limit;
use crate::write::session::WriteSession;

/// The newest epoch whose repair is closed: what is older is late.
const SELECT_CLOSED: &str =
    "SELECT coalesce(max(ordinal), -1) FROM epoch WHERE repair_closed_at IS NOT NULL";
/// Keeps the repair from being closed until the transaction ends.
const LOCK_EPOCH: &str = "SELECT FROM epoch WHERE id = $1 FOR SHARE";
/// Divides by zero if a repair was closed since it was read. Sent behind the lock.
const CHECK_CLOSED: &str = "SELECT 1 / (coalesce(max(ordinal), -1) = $1)::int FROM epoch
WHERE repair_closed_at IS NOT NULL";
/// For an attempt after a lost race.
const SELECT_LOCKED: &str =
    "SELECT k, doc, rev FROM content WHERE k = ANY($1) ORDER BY k FOR UPDATE";
/// What is known of write ids. Read after the documents: an id on its way from one into the table
/// of evicted ids is seen in one of them.
const SELECT_KNOWN: &str = "
SELECT x.wid, r.verdict, r.reason,
       EXISTS (SELECT FROM applied_0 t WHERE t.wid = x.wid UNION ALL
               SELECT FROM applied_1 t WHERE t.wid = x.wid UNION ALL
               SELECT FROM applied_2 t WHERE t.wid = x.wid)
FROM unnest($1::bytea[]) x(wid) LEFT JOIN repair_log r ON r.wid = x.wid";
/// The first verdict about a write stands. A verdict that rests on a document of this transaction
/// is recorded only if the document was written. Sorted by id, so that two repairs of the same
/// writes wait for each other in one direction only.
const INSERT_VERDICTS: &str = "
INSERT INTO repair_log (wid, k, from_epoch, in_epoch, verdict, reason, ver, at)
SELECT wid, k, from_epoch, $8, verdict, reason, ver, to_timestamp($9::bigint / 1000.0)
FROM unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::text[], $5::text[], $6::bigint[],
            $7::bool[]) x(wid, k, from_epoch, verdict, reason, ver, is_joined)
WHERE NOT is_joined OR EXISTS (SELECT FROM content c WHERE c.k = x.k
                               AND c.xmin = pg_current_xact_id()::xid)
ORDER BY wid ON CONFLICT (wid) DO NOTHING";

/// Contents in one transaction: 10,000 contents take some 40 of them. Fewer: more round trips and
/// pauses. More: more documents are changed between the two round trips and need another attempt.
pub(super) const CHUNK_CONTENTS_MAX: usize = 256;

/// A writing connection with the statements of repairs.
pub(crate) struct RepairSession {
    write: WriteSession,
    select_closed: Statement,
    lock_epoch: Statement,
    check_closed: Statement,
    select_locked: Statement,
    select_known: Statement,
    insert_verdicts: Statement,
}

impl RepairSession {
    /// Prepares all statements.
    pub(crate) async fn new(connection: Connection) -> Result<Self, PgError> {
        let write = WriteSession::new(connection).await?;
        let client = &write.connection.client;
        let statements =
            [SELECT_CLOSED, LOCK_EPOCH, CHECK_CLOSED, SELECT_LOCKED, SELECT_KNOWN, INSERT_VERDICTS];
        let prepared = async {
            let prepared = join_all(statements.map(|statement| client.prepare(statement))).await;
            prepared.into_iter().collect::<Result<Vec<Statement>, _>>()
        };
        let prepared = within("preparing", limit::CONNECT_TIMEOUT, prepared).await?;
        let [select_closed, lock_epoch, check_closed, select_locked, select_known, insert_verdicts] =
            prepared.try_into().unwrap_or_else(|_| unreachable!("as many as were asked for"));
        Ok(Self {
            write,
            select_closed,
            lock_epoch,
            check_closed,
            select_locked,
            select_known,
            insert_verdicts,
        })
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.write.connection
    }
}

/// What a chunk is repaired with.
pub(crate) struct ChunkContext<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) epoch: &'a Epoch,
    pub(crate) limits: &'a Limits,
    /// The commit time, Unix ms.
    pub(crate) now: UnixMillis,
    /// Documents are locked while they are joined: an earlier attempt lost a race.
    pub(crate) locks: bool,
    /// The entries are documents that were published, not those of this process's journal.
    pub(crate) by_event: bool,
}

/// What a chunk came to.
pub(crate) struct ChunkOutcome {
    pub(crate) counts: VerdictCounts,
    /// Where its transaction lies in the log.
    pub(crate) at: LogRange,
    /// Entries that the journal must still vouch for, with the documents that the log has now.
    pub(crate) put_back: Vec<(RepairId, JournaledContent)>,
    /// Entries that it can forget.
    pub(crate) done: Vec<RepairId>,
    /// Contents that it wrote.
    pub(crate) written: usize,
    /// Entries whose documents were changed in between.
    pub(crate) lost_races: usize,
}

/// A stored document, and what guards it.
struct Stored {
    document: Document,
    bytes: Option<Arc<[u8]>>,
    revision: i64,
}

/// An entry with its document as it will be.
struct Resolved<'a> {
    entry: &'a RepairEntry,
    loaded: (i64, i64),
    document: Document,
    /// As it is in the log after the commit.
    bytes: Arc<[u8]>,
    event: Option<Vec<u8>>,
    resolution: Resolution,
}

/// What a transaction reads before it joins.
struct Loaded {
    /// Entries of epochs before this ordinal are late.
    closed: i64,
    documents: HashMap<Vec<u8>, Row>,
    known: KnownWrites,
}

fn ids_of(entries: &[RepairEntry], lost: &[Option<Document>]) -> Vec<WriteId> {
    let asked = entries.iter().flat_map(|entry| entry.writes.iter().map(|(write, ..)| write.id));
    let recent = lost.iter().flatten().flat_map(|doc| doc.recent.iter().map(|write| write.id));
    let ids: HashSet<WriteId> = asked.chain(recent).collect();
    ids.into_iter().collect()
}

fn decode(entry: &RepairEntry, bytes: &[u8], what: &'static str) -> Option<Document> {
    match codec::decode(bytes) {
        Ok(document) => Some(document),
        Err(error) => {
            let key = entry.key.get(1..).and_then(|key| ContentKey::from_bytes(key).ok());
            let content = key.map(|key| key.to_string()).unwrap_or_default();
            let error = ErrorChain(&error);
            tracing::error!(content, %error, "{what} is damaged: it is not repaired");
            None
        }
    }
}

/// Repairs entries of different contents. After an error the session must not be used again.
pub(crate) async fn repair_chunk(
    session: &mut RepairSession,
    entries: &[RepairEntry],
    context: &ChunkContext<'_>,
) -> Result<ChunkOutcome, PgError> {
    let lost: Vec<Option<Document>> =
        entries.iter().map(|e| decode(e, &e.document, "a journaled document")).collect();
    let mut loaded = load(session, entries, &ids_of(entries, &lost), context).await?;
    let mut counts = VerdictCounts::default();
    let mut resolved = Vec::with_capacity(entries.len());
    for (entry, lost) in entries.iter().zip(lost) {
        let stored = stored_of(entry, loaded.documents.remove(&*entry.key));
        let (Some(lost), Some(stored)) = (lost, stored) else {
            counts.unknown += writes_of(entry).len() as u64;
            continue;
        };
        resolved.push(resolve_entry(entry, lost, stored, &loaded, context));
    }
    // Every statement that locks rows locks them in the order of keys.
    resolved.sort_by(|a, b| a.entry.key.cmp(&b.entry.key));
    let Committed { at, written } = commit(session, &resolved, loaded.closed, context).await?;
    let is_lost =
        |r: &Resolved<'_>| r.resolution.joined.is_some() && !written.contains(&*r.entry.key);
    let (lost_races, resolved): (Vec<_>, Vec<_>) = resolved.into_iter().partition(is_lost);
    let mut outcome = ChunkOutcome {
        counts,
        at,
        put_back: Vec::new(),
        done: Vec::new(),
        written: written.len(),
        lost_races: lost_races.len(),
    };
    for Resolved { entry, document, bytes, resolution, .. } in resolved {
        add_counts(&mut outcome.counts, &resolution.counts);
        if resolution.vouched.is_empty() {
            outcome.done.push(entry.id);
            continue;
        }
        let (key, version) = (Arc::clone(&entry.key), document.version);
        let content =
            JournaledContent { key, document: bytes, version, writes: resolution.vouched };
        outcome.put_back.push((entry.id, content));
    }
    Ok(outcome)
}

/// What a transaction did.
struct Committed {
    at: LogRange,
    /// The keys of the documents that it wrote.
    written: HashSet<Vec<u8>>,
}

/// Begins the transaction and reads what the joins need.
async fn load(
    session: &RepairSession,
    entries: &[RepairEntry],
    ids: &[WriteId],
    context: &ChunkContext<'_>,
) -> Result<Loaded, PgError> {
    let client = &session.connection().client;
    let id: &[u8] = &context.epoch.id.0;
    let epoch: [&(dyn ToSql + Sync); 1] = [&id];
    let mut keys: Vec<&[u8]> = entries.iter().map(|entry| &*entry.key).collect();
    keys.sort_unstable();
    let keys: [&(dyn ToSql + Sync); 1] = [&keys];
    let ids: Vec<&[u8]> = ids.iter().map(|id| id.0.as_slice()).collect();
    let ids: [&(dyn ToSql + Sync); 1] = [&ids];
    let select =
        if context.locks { &session.select_locked } else { &session.write.select_documents };
    let all = async {
        // Sent together, answered in this order.
        let (begin, check, closed, documents, known) = join5(
            client.batch_execute("BEGIN"),
            client.query_one(&session.write.epoch_check, &epoch),
            client.query_one(&session.select_closed, &[]),
            client.query(select, &keys),
            client.query(&session.select_known, &ids),
        )
        .await;
        begin?;
        check?;
        Ok((closed?, documents?, known?))
    };
    let (closed, documents, known) =
        within("reading what is repaired", limit::COMMIT_TIMEOUT, all).await?;
    let mut known_writes = KnownWrites::default();
    for row in known {
        let Ok(id) = row.get::<_, &[u8]>(0).try_into() else { continue };
        let id = WriteId(id);
        if let Some(verdict) = verdict_from_row(row.get(1), row.get(2)) {
            known_writes.recorded.insert(id, verdict);
        }
        if row.get(3) {
            known_writes.evicted.insert(id);
        }
    }
    let documents = documents.into_iter().map(|row| (row.get(0), row)).collect();
    Ok(Loaded { closed: closed.get(0), documents, known: known_writes })
}

/// The stored document of an entry; `None`: it is damaged.
fn stored_of(entry: &RepairEntry, row: Option<Row>) -> Option<Stored> {
    let Some(row) = row else {
        return Some(Stored { document: Document::default(), bytes: None, revision: 0 });
    };
    let bytes: &[u8] = row.get(1);
    let document = decode(entry, bytes, "a stored document")?;
    Some(Stored { document, bytes: Some(bytes.into()), revision: row.get(2) })
}

fn resolve_entry<'a>(
    entry: &'a RepairEntry,
    lost: Document,
    stored: Stored,
    loaded: &Loaded,
    context: &ChunkContext<'_>,
) -> Resolved<'a> {
    let Stored { mut document, bytes, revision } = stored;
    let loaded_version = document.version.packed().cast_signed();
    let ordinal = context.cluster.epoch_ordinal(entry.at.epoch);
    let is_late = ordinal.map_or(loaded.closed >= 0, |o| o.0.cast_signed() < loaded.closed);
    let ctx = JoinContext { epoch: context.epoch, now: context.now, limits: context.limits };
    let end_of = |epoch: EpochId| context.cluster.epoch_end(epoch);
    let mut resolution = resolve(entry, lost, &mut document, &loaded.known, is_late, end_of, &ctx);
    if context.by_event {
        resolution.mark_by_event();
    }
    let key = entry.key.get(1..).and_then(|key| ContentKey::from_bytes(key).ok());
    let (bytes, event) = match (&resolution.joined, key) {
        (Some(joined), Some(key)) => {
            let at = (context.now, context.epoch.ordinal);
            let event = event_of(key, &document, joined, &resolution.new_ids, at);
            (codec::encode(&document).into(), Some(codec::encode_event(&event)))
        }
        // As it is stored; a content that was never written is in no log, nor in the journal.
        (None, _) | (Some(_), None) => {
            (bytes.unwrap_or_else(|| codec::encode(&document).into()), None)
        }
    };
    Resolved { entry, loaded: (loaded_version, revision), document, bytes, event, resolution }
}

/// Writes the documents that changed, with their events and evicted ids, records the verdicts and
/// commits. `closed`: as it was loaded.
async fn commit(
    session: &mut RepairSession,
    resolved: &[Resolved<'_>],
    closed: i64,
    context: &ChunkContext<'_>,
) -> Result<Committed, PgError> {
    let changed: Vec<&Resolved<'_>> =
        resolved.iter().filter(|r| r.resolution.joined.is_some()).collect();
    let k: Vec<&[u8]> = changed.iter().map(|r| &*r.entry.key).collect();
    let old: Vec<i64> = changed.iter().map(|r| r.loaded.0).collect();
    let old_rev: Vec<i64> = changed.iter().map(|r| r.loaded.1).collect();
    let ver: Vec<i64> = changed.iter().map(|r| r.document.version.packed().cast_signed()).collect();
    let doc: Vec<&[u8]> = changed.iter().map(|r| &*r.bytes).collect();
    let event: Vec<Option<&[u8]>> = changed.iter().map(|r| r.event.as_deref()).collect();
    let evicted = || {
        changed.iter().flat_map(|r| {
            let joined = r.resolution.joined.iter();
            joined.flat_map(|j| &j.evicted).map(|write| (&*r.entry.key, write))
        })
    };
    let a_k: Vec<&[u8]> = evicted().map(|(key, _)| key).collect();
    let a_wid: Vec<&[u8]> = evicted().map(|(_, write)| write.id.0.as_slice()).collect();
    let a_fingerprint: Vec<i64> = evicted().map(|(_, w)| w.fingerprint.cast_signed()).collect();
    let a_effect: Vec<Vec<u8>> = evicted().map(|(_, w)| codec::encode_result(w)).collect();
    let a_ver: Vec<i64> = evicted().map(|(_, w)| w.version.packed().cast_signed()).collect();
    let a_at: Vec<i64> = evicted().map(|(_, write)| write.at).collect();
    let id: &[u8] = &context.epoch.id.0;
    let write: [&(dyn ToSql + Sync); 13] = [
        &k,
        &old,
        &ver,
        &doc,
        &event,
        &a_k,
        &a_wid,
        &a_fingerprint,
        &a_effect,
        &a_ver,
        &a_at,
        &id,
        &old_rev,
    ];
    let rows = VerdictColumns::new(resolved);
    let ordinal = context.epoch.ordinal.0.cast_signed();
    let verdicts: [&(dyn ToSql + Sync); 9] = [
        &rows.wid,
        &rows.k,
        &rows.from_epoch,
        &rows.verdict,
        &rows.reason,
        &rows.ver,
        &rows.is_joined,
        &ordinal,
        &context.now,
    ];
    let client = &session.connection().client;
    let (epoch, closed): ([&(dyn ToSql + Sync); 1], [&(dyn ToSql + Sync); 1]) = ([&id], [&closed]);
    let all = async {
        // Sent together, answered in this order.
        let locked = join(
            client.query(&session.lock_epoch, &epoch),
            client.query_one(&session.check_closed, &closed),
        );
        let committed = join4(
            async {
                match changed.is_empty() {
                    true => Ok(Vec::new()),
                    false => client.query(session.write.write_statement(false), &write).await,
                }
            },
            async {
                match rows.wid.is_empty() {
                    true => Ok(0),
                    false => client.execute(&session.insert_verdicts, &verdicts).await,
                }
            },
            client.batch_execute("COMMIT"),
            client.query_one(&session.write.flush_lsn, &[]),
        );
        let ((locked, checked), (written, recorded, committed, flushed)) =
            join(locked, committed).await;
        // After an error COMMIT succeeds as a rollback.
        locked?;
        checked?;
        let written = written?;
        recorded?;
        committed?;
        Ok((written, flushed?))
    };
    let (rows, flushed) = within("writing what was lost", limit::COMMIT_TIMEOUT, all).await?;
    let place = |row: &Row| {
        let place = usize::try_from(row.get::<_, i32>(0) - 1).ok()?;
        changed.get(place).map(|r| r.entry.key.to_vec())
    };
    let written = rows.iter().filter_map(place).collect();
    // At or after the commit; without a row nothing lies between the two positions.
    let flushed = flushed.get::<_, i64>(0).cast_unsigned();
    let inside = rows.first().map_or(flushed, |row| row.get::<_, i64>(2).cast_unsigned());
    if let Some(row) = rows.first() {
        session.write.follow_rotation(row).await?;
    }
    Ok(Committed { at: LogRange { epoch: context.epoch.id, inside, flushed }, written })
}

/// The columns of the statement that records verdicts.
#[derive(Default)]
struct VerdictColumns<'a> {
    wid: Vec<&'a [u8]>,
    k: Vec<&'a [u8]>,
    from_epoch: Vec<&'a [u8]>,
    verdict: Vec<&'static str>,
    reason: Vec<Option<&'static str>>,
    ver: Vec<i64>,
    is_joined: Vec<bool>,
}

impl<'a> VerdictColumns<'a> {
    fn new(resolved: &'a [Resolved<'_>]) -> Self {
        let mut columns = Self::default();
        for Resolved { entry, resolution, .. } in resolved {
            for VerdictRow { id, epoch, verdict, version } in &resolution.rows {
                columns.wid.push(id.0.as_slice());
                columns.k.push(&entry.key);
                columns.from_epoch.push(epoch.0.as_slice());
                columns.verdict.push(verdict.as_str());
                columns.reason.push(stored_reason(*verdict));
                columns.ver.push(version.packed().cast_signed());
                columns.is_joined.push(resolution.joined.is_some());
            }
        }
        columns
    }
}
