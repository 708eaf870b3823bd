//! One group commit: two round trips, an outcome for each write of the batch.
//!
//! The first round trip reads the documents, and what the idempotency keys of the batch are bound
//! to; the fold that all stores share ([`WriteBatch`])
//! applies the writes to them; the second round trip writes them in one statement that checks the
//! epoch itself and is its own transaction. After a lost race the lane takes an advisory lock for a
//! while, so that two nodes that write one content at a high rate take turns.
//!
//! How it fails: see [`slots`](crate::write::slots); the batch fails as a whole, except for a write
//! that is refused, or whose document is damaged or changed in between.

use std::collections::HashMap;

use futures_util::future::join;
use tagfast_domain::{RecentWrite, UnixMillis, Version, WriteId, codec, limits as domain_limits};
use tagfast_failover::{Commit, JournaledContent, JournaledWrite, LogRange};
use tagfast_store::write_batch::{ItemResult, Slot, SlotCommit};
use tagfast_store::{WriteBatch, WriteRequest};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::boot_clock::boot_time;
use crate::connect::{PgError, within};
use crate::options::limit;
use crate::write::session::WriteSession;
use crate::write::slots::{
    GroupCommitError, GroupContext, NewKeys, WrittenSlots, begin_canary, load_documents,
    write_slots,
};

/// A write of a batch.
pub(crate) struct BatchItem<'a> {
    pub(crate) request: &'a WriteRequest,
    /// An earlier attempt of this process may have been durable.
    pub(crate) in_doubt: bool,
    /// An attempt of an earlier epoch may be brought back by a repair.
    pub(crate) may_come_back: bool,
}

/// The outcome of a batch.
pub(crate) struct CommitOutcome {
    /// In the order of the batch.
    pub(crate) items: Vec<ItemResult>,
    pub(crate) commit: Commit,
    /// Where the commit lies in the log.
    pub(crate) at: LogRange,
    /// What its successful writes vouch for: the documents as they were seen.
    pub(crate) contents: Vec<JournaledContent>,
    /// A different node changed a document in between.
    pub(crate) lost_race: bool,
}

/// Writes that documents no longer remember, by stored key and id.
type PriorWrites = HashMap<(Vec<u8>, WriteId), RecentWrite>;

/// Commits one batch, or a canary without items. After an error the session must not be used again.
pub(crate) async fn run(
    session: &mut WriteSession,
    items: &[BatchItem<'_>],
    context: &GroupContext<'_>,
) -> Result<CommitOutcome, GroupCommitError> {
    let early = GroupCommitError::before_commit;
    let began = boot_time();
    if context.is_canary {
        begin_canary(session, context).await.map_err(early)?;
    }
    let mut batch = WriteBatch::new(context.commit, items.len());
    let contents = items.iter().map(|item| &item.request.write.key);
    let (loaded, keys) =
        join(load_documents(session, &mut batch, contents, context), read_keys(session, items))
            .await;
    loaded.map_err(early)?;
    if let Some(keys) = keys.map_err(early)? {
        session.follow_applied(keys.table).await.map_err(early)?;
        keys.bound.into_iter().for_each(|(id, request)| batch.bind_key(id, request));
    }
    let prior = read_prior_writes(session, items, &batch, context.commit.now);
    let prior = prior.await.map_err(early)?;
    let mut new_keys = NewKeys::default();
    for item in items {
        let request = item.request;
        if let Some(key) = batch.needs_key(request) {
            batch.bind_key(key.id, key.request);
            new_keys.bind(&key);
        }
        if let (Some(key), Some(n)) = (&request.keyed, batch.slot_number(&request.write.key)) {
            new_keys.need(n, key);
        }
        let known = batch
            .needs_prior(&request.write)
            .and_then(|slot| prior.get(&(slot.stored_key.clone(), request.write.id)));
        match item.may_come_back {
            true => batch.apply_undecided(request, known),
            false => batch.apply(request, known),
        }
    }
    let written = write_slots(session, &mut batch, &new_keys, context, began).await?;
    let commit =
        Commit { epoch: context.commit.epoch.id, sent: written.sent, returned: boot_time() };
    let contents = match context.journals {
        true => contents_of(&batch, &written, context.commit.now),
        false => Vec::new(),
    };
    let items = batch.finish(|n| written.slot_commit(n));
    let (at, lost_race) = (written.log_range(), written.lost_race());
    Ok(CommitOutcome { items, commit, at, contents, lost_race })
}

/// What the successful writes of a batch vouch for. A write that changed nothing and a repeated one
/// vouch for the document as well: it may be lost with the process that wrote it.
fn contents_of(
    batch: &WriteBatch<'_>,
    written: &WrittenSlots,
    at: UnixMillis,
) -> Vec<JournaledContent> {
    let mut writes: HashMap<usize, Vec<JournaledWrite>> = HashMap::new();
    for (n, id, version) in batch.successes() {
        writes.entry(n).or_default().push(JournaledWrite { id, version, at });
    }
    let content = |(n, slot): (usize, &Slot)| match written.slot_commit(n) {
        SlotCommit::Committed(_) => Some(JournaledContent {
            writes: writes.remove(&n)?,
            key: slot.stored_key.as_slice().into(),
            document: written.document(n, slot),
            version: slot.document.version,
        }),
        SlotCommit::LostRace => None,
    };
    batch.slots().filter_map(content).collect()
}

/// What the cluster knows of the idempotency keys of a batch.
struct KnownKeys {
    /// The table that new keys belong into.
    table: i32,
    /// Keys that are bound, with their requests.
    bound: Vec<([u8; 16], u64)>,
}

/// Looks up which requests the keys of a batch are bound to. `None`: it has no keys.
async fn read_keys(
    session: &WriteSession,
    items: &[BatchItem<'_>],
) -> Result<Option<KnownKeys>, PgError> {
    let keys = items.iter().filter_map(|item| item.request.keyed.as_ref());
    let mut ids: Vec<&[u8]> = keys.map(|key| key.id.as_slice()).collect();
    if ids.is_empty() {
        return Ok(None);
    }
    ids.sort_unstable();
    ids.dedup();
    let parameters: [&(dyn ToSql + Sync); 1] = [&ids];
    let rows = session.connection.client.query(&session.select_keys, &parameters);
    let rows = within("reading idempotency keys", limit::COMMIT_TIMEOUT, rows).await?;
    let bound = |row: &Row| {
        let id: [u8; 16] = row.get::<_, Option<&[u8]>>(1)?.try_into().ok()?;
        Some((id, row.get::<_, i64>(2).cast_unsigned()))
    };
    let Some(first) = rows.first() else { return Ok(None) };
    Ok(Some(KnownKeys { table: first.get(0), bound: rows.iter().filter_map(bound).collect() }))
}

/// Looks up the ids that documents have evicted, where one may have. Read after the documents: an
/// id on its way from one to the other is seen in one of them.
async fn read_prior_writes(
    session: &WriteSession,
    items: &[BatchItem<'_>],
    batch: &WriteBatch<'_>,
    now: UnixMillis,
) -> Result<PriorWrites, PgError> {
    // By content and id: an id belongs to one content.
    let (mut keys, mut ids): (Vec<&[u8]>, Vec<&[u8]>) = (Vec::new(), Vec::new());
    let seen_before = |item: &&BatchItem<'_>| item.in_doubt || item.request.keyed.is_some();
    for BatchItem { request, .. } in items.iter().filter(seen_before) {
        if let Some(slot) = batch.needs_prior(&request.write) {
            keys.push(&slot.stored_key);
            ids.push(&request.write.id.0);
        }
    }
    if ids.is_empty() {
        return Ok(PriorWrites::new());
    }
    let parameters: [&(dyn ToSql + Sync); 2] = [&keys, &ids];
    let rows = session.connection.client.query(&session.select_prior_writes, &parameters);
    let rows = within("reading evicted ids", limit::COMMIT_TIMEOUT, rows).await?;
    let mut prior = PriorWrites::new();
    for row in rows {
        let (at, version): (i64, i64) = (row.get(5), row.get(4));
        let id: Option<[u8; 16]> = row.get::<_, Vec<u8>>(1).try_into().ok();
        let result = codec::decode_result(row.get::<_, &[u8]>(3)).ok();
        let version = Version::from_packed(version.unsigned_abs()).ok();
        if let (Some(id), Some((effect, outcome)), Some(version), true) =
            (id, result, version, at > now - domain_limits::WRITE_ID_MEMORY_MS)
        {
            let id = WriteId(id);
            let fingerprint = row.get::<_, i64>(2).cast_unsigned();
            let write = RecentWrite { id, fingerprint, version, at, effect, outcome };
            prior.insert((row.get(0), id), write);
        }
    }
    Ok(prior)
}
