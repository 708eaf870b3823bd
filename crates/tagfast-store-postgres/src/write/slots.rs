//! The documents of a batch: read in one round trip, written in the next one.
//!
//! The guard is the version: a document that changed in between is not written, and its writes are
//! applied again. So are those of a document whose idempotency keys could not be bound, because a
//! different batch bound one of them in between. Nothing is locked while this process computes.
//!
//! How it fails: an error of the database means that nothing happened. A connection that ends
//! leaves the outcome unknown. COMMIT of an aborted transaction succeeds as a rollback, so the
//! verdict is "every result is good", never "COMMIT returned".

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use futures_util::future::{join, join3};
use tagfast_domain::{ContentKey, Document, DomainError, IdempotencyKey, codec};
use tagfast_failover::{BootTime, LogRange};
use tagfast_resilience::ErrorChain;
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::write_batch::{CommitPosition, Slot, SlotCommit};
use tagfast_store::{CommitContext, Position, WriteBatch, stored_key};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::boot_clock::boot_time;
use crate::connect::{PgError, within};
use crate::locks::LANE_CLASS;
use crate::options::{SynchronousCommit, limit};
use crate::write::session::WriteSession;

/// A write that comes while a canary waits for a lock waits for it: not for long.
const BEGIN_CANARY: &str =
    "BEGIN; SET LOCAL lock_timeout = 500; SET LOCAL statement_timeout = 2000";

/// What a batch is committed with.
pub(crate) struct GroupContext<'a> {
    pub(crate) commit: CommitContext<'a>,
    /// The lane whose lock is taken before the documents are read; `None`: no lock is needed.
    pub(crate) lane_lock: Option<i32>,
    /// Nothing is to be written: the statements are sent with nothing in them.
    pub(crate) is_canary: bool,
    /// Whether the documents are kept for the journal.
    pub(crate) journals: bool,
}

impl GroupContext<'_> {
    fn epoch_id(&self) -> &[u8] {
        &self.commit.epoch.id.0
    }

    /// Whether the statements are in a transaction that COMMIT ends.
    fn has_transaction(&self) -> bool {
        self.lane_lock.is_some() || self.is_canary
    }
}

/// A batch that failed as a whole.
#[derive(Debug)]
pub(crate) struct GroupCommitError {
    pub(crate) error: PgError,
    /// COMMIT had been sent: the writes may be durable.
    pub(crate) outcome_unknown: bool,
    /// A commit that waits for a synchronous standby took too long.
    pub(crate) waited_for_standby: bool,
}

impl GroupCommitError {
    /// A failure before anything was committed.
    pub(crate) fn before_commit(error: PgError) -> Self {
        Self { error, outcome_unknown: false, waited_for_standby: false }
    }

    /// A failure of the statement that commits. A database error came from before the commit, which
    /// then rolled back; anything else may have hit the commit.
    fn during_commit(error: PgError) -> Self {
        let outcome_unknown = error.code().is_none_or(|code| code.starts_with("57P"));
        Self { error, outcome_unknown, waited_for_standby: false }
    }

    /// Marks a failure of a session whose commits wait for a standby.
    fn with_standby(mut self, synchronous_commit: SynchronousCommit) -> Self {
        self.waited_for_standby = synchronous_commit == SynchronousCommit::On
            && matches!(self.error, PgError::Timeout(..) | PgError::StandbyWaitCancelled);
        self
    }

    /// Whether the batch was at fault, not the server: the next batch need not wait.
    pub(crate) fn is_of_the_batch(&self) -> bool {
        matches!(self.error.code(), Some("40P01" | "40001" | "55P03" | "57014"))
    }
}

/// Loads the document of every content into the batch, sorted by key.
pub(crate) async fn load_documents<'a>(
    session: &WriteSession,
    batch: &mut WriteBatch<'a>,
    contents: impl Iterator<Item = &'a ContentKey>,
    context: &GroupContext<'_>,
) -> Result<(), PgError> {
    let with_stored_key = |key: &'a ContentKey| {
        let bytes = key.to_bytes();
        let shard = LogicalShard::of_hash(ContentHash::of_bytes(&bytes));
        (stored_key(shard, &bytes), key)
    };
    let mut keys: Vec<(Vec<u8>, &ContentKey)> = contents.map(with_stored_key).collect();
    // Every statement that locks rows locks them in the order of keys, so that no two batches wait
    // for each other.
    keys.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    keys.dedup_by(|a, b| a.0 == b.0);
    let stored: Vec<&[u8]> = keys.iter().map(|(bytes, _)| bytes.as_slice()).collect();
    let rows = select_documents(session, &stored, context).await?;
    let mut documents: HashMap<Vec<u8>, (u64, Result<Document, DomainError>)> = rows
        .into_iter()
        .map(|row| {
            let revision = row.get::<_, i64>(2).cast_unsigned();
            (row.get(0), (revision, codec::decode(row.get::<_, &[u8]>(1))))
        })
        .collect();
    for (stored, key) in keys {
        let (revision, document) =
            documents.remove(&stored).unwrap_or_else(|| (0, Ok(Document::default())));
        if let Err(error) = &document {
            let error = ErrorChain(error);
            tracing::error!(content = %key, %error, "a stored document is damaged");
        }
        batch.load_revision(key, stored, revision, document);
    }
    Ok(())
}

async fn select_documents(
    session: &WriteSession,
    stored: &[&[u8]],
    context: &GroupContext<'_>,
) -> Result<Vec<Row>, PgError> {
    let client = &session.connection.client;
    let read: [&(dyn ToSql + Sync); 1] = [&stored];
    let Some(lane) = context.lane_lock else {
        let rows = client.query(&session.select_documents, &read);
        return within("reading documents", limit::COMMIT_TIMEOUT, rows).await;
    };
    let id = context.epoch_id();
    let check: [&(dyn ToSql + Sync); 1] = [&id];
    let lock: [&(dyn ToSql + Sync); 2] = [&LANE_CLASS, &lane];
    let all = async {
        let (begin, (check, lock, rows)) = join(
            client.batch_execute("BEGIN"),
            join3(
                client.query_one(&session.epoch_check, &check),
                client.query(&session.lock_lane, &lock),
                client.query(&session.select_documents, &read),
            ),
        )
        .await;
        begin?;
        check?;
        lock?;
        rows
    };
    within("locking the lane", limit::COMMIT_TIMEOUT, all).await
}

/// Begins the transaction of a canary. The epoch is checked by a statement of its own, because the
/// writing one need not look at it where there is nothing to write.
pub(crate) async fn begin_canary(
    session: &WriteSession,
    context: &GroupContext<'_>,
) -> Result<(), PgError> {
    let client = &session.connection.client;
    let id = context.epoch_id();
    let check: [&(dyn ToSql + Sync); 1] = [&id];
    let all = async {
        let begin = client.batch_execute(BEGIN_CANARY);
        let (begin, check) = join(begin, client.query_one(&session.epoch_check, &check)).await;
        begin?;
        check.map(drop)
    };
    within("beginning a canary", limit::COMMIT_TIMEOUT, all).await
}

/// What a batch wrote.
pub(crate) struct WrittenSlots {
    /// When the writing statement was sent.
    pub(crate) sent: BootTime,
    position: CommitPosition,
    /// The slots that were to be stored and whose stored version or revision was a different one,
    /// or whose keys could not be bound.
    lost: HashSet<usize>,
    /// The encoded documents of the slots that were to be stored, as they were sent.
    documents: HashMap<usize, Arc<[u8]>>,
}

impl WrittenSlots {
    /// Where the commit lies in the log.
    pub(crate) fn log_range(&self) -> LogRange {
        let CommitPosition { inside_lsn, position, .. } = self.position;
        LogRange { epoch: position.epoch, inside: inside_lsn, flushed: position.lsn }
    }

    /// The encoded document of slot `n`, as it is stored.
    pub(crate) fn document(&self, n: usize, slot: &Slot) -> Arc<[u8]> {
        let stored = self.documents.get(&n).map(Arc::clone);
        stored.unwrap_or_else(|| codec::encode(&slot.document).into())
    }

    /// Whether a different node changed a document in between.
    pub(crate) fn lost_race(&self) -> bool {
        !self.lost.is_empty()
    }

    /// What the commit did with slot `n`. The old version of a written slot was still the newest
    /// one when the statement wrote it, so every transaction that had ended at the statement's
    /// snapshot is in it.
    pub(crate) fn slot_commit(&self, n: usize) -> SlotCommit {
        if self.lost.contains(&n) {
            SlotCommit::LostRace
        } else {
            SlotCommit::Committed(self.position)
        }
    }
}

/// The idempotency keys that a batch binds.
#[derive(Default)]
pub(crate) struct NewKeys {
    requests: BTreeMap<[u8; 16], u64>,
    /// Slots with the keys of their writes: a slot is written only if all of them are bound.
    needed: BTreeSet<(usize, [u8; 16])>,
}

impl NewKeys {
    /// Adds a key that nothing bound yet.
    pub(crate) fn bind(&mut self, key: &IdempotencyKey) {
        self.requests.insert(key.id, key.request);
    }

    /// A write of slot `n` came with this key.
    pub(crate) fn need(&mut self, n: usize, key: &IdempotencyKey) {
        if self.requests.get(&key.id) == Some(&key.request) {
            self.needed.insert((n, key.id));
        }
    }
}

/// The columns of the writing statement that bind keys.
#[derive(Default)]
struct KeyColumns<'a> {
    /// Sorted: two batches with the same keys wait for each other in one direction only.
    ids: Vec<&'a [u8]>,
    requests: Vec<i64>,
    needed_n: Vec<i64>,
    needed_ids: Vec<&'a [u8]>,
}

impl<'a> KeyColumns<'a> {
    /// The keys of the slots that are written, which are those in `places`, in this order.
    fn new(keys: &'a NewKeys, places: &[usize]) -> Self {
        let mut columns = Self::default();
        let mut bound = BTreeMap::new();
        for (place, n) in places.iter().enumerate() {
            for (_, id) in keys.needed.range((*n, [0; 16])..=(*n, [u8::MAX; 16])) {
                columns.needed_n.push(place as i64 + 1);
                columns.needed_ids.push(id);
                bound.insert(id.as_slice(), keys.requests.get(id).copied().unwrap_or_default());
            }
        }
        for (id, request) in bound {
            columns.ids.push(id);
            columns.requests.push(request.cast_signed());
        }
        columns
    }
}

/// The columns of the writing statement.
#[derive(Default)]
struct Columns {
    k: Vec<Vec<u8>>,
    old: Vec<i64>,
    ver: Vec<i64>,
    doc: Vec<Arc<[u8]>>,
    event: Vec<Option<Vec<u8>>>,
    old_rev: Vec<i64>,
    a_k: Vec<Vec<u8>>,
    a_wid: Vec<Vec<u8>>,
    a_fingerprint: Vec<i64>,
    a_effect: Vec<Vec<u8>>,
    a_ver: Vec<i64>,
    a_at: Vec<i64>,
}

impl Columns {
    fn push(&mut self, slot: &mut Slot, context: &CommitContext<'_>) {
        let event = slot.take_event(context.now, context.epoch.ordinal);
        self.k.push(slot.stored_key.clone());
        self.old.push(slot.loaded_version.packed().cast_signed());
        self.ver.push(slot.document.version.packed().cast_signed());
        self.doc.push(codec::encode(&slot.document).into());
        self.event.push(event.as_ref().map(codec::encode_event));
        self.old_rev.push(slot.loaded_revision.cast_signed());
        for w in &slot.evicted {
            self.a_k.push(slot.stored_key.clone());
            self.a_wid.push(w.id.0.to_vec());
            self.a_fingerprint.push(w.fingerprint.cast_signed());
            self.a_effect.push(codec::encode_result(w));
            self.a_ver.push(w.version.packed().cast_signed());
            self.a_at.push(w.at);
        }
    }
}

/// Writes the slots that must be stored and commits. Without any, it only checks that the epoch
/// goes on.
pub(crate) async fn write_slots(
    session: &mut WriteSession,
    batch: &mut WriteBatch<'_>,
    keys: &NewKeys,
    context: &GroupContext<'_>,
    began: BootTime,
) -> Result<WrittenSlots, GroupCommitError> {
    let mut columns = Columns::default();
    let mut places = Vec::new();
    for (n, slot) in batch.slots_to_store_mut() {
        places.push(n);
        columns.push(slot, &context.commit);
    }
    if places.is_empty() && !context.is_canary {
        return check_only(session, context, began).await;
    }
    let client = &session.connection.client;
    let id = context.epoch_id();
    let c = &columns;
    let documents: Vec<&[u8]> = c.doc.iter().map(|document| &**document).collect();
    let keys = KeyColumns::new(keys, &places);
    let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![
        &c.k,
        &c.old,
        &c.ver,
        &documents,
        &c.event,
        &c.a_k,
        &c.a_wid,
        &c.a_fingerprint,
        &c.a_effect,
        &c.a_ver,
        &c.a_at,
        &id,
        &c.old_rev,
    ];
    let synchronous_commit = session.connection.synchronous_commit;
    let binds_keys = !keys.ids.is_empty();
    if binds_keys {
        let keys: [&(dyn ToSql + Sync); 4] =
            [&keys.ids, &keys.requests, &keys.needed_n, &keys.needed_ids];
        parameters.extend(keys);
    }
    let (sent, warnings) = (boot_time(), session.connection.warnings());
    let all = async {
        let write = client.query(session.write_statement(binds_keys), &parameters);
        let after = client.query_one(&session.flush_lsn, &[]);
        if !context.has_transaction() {
            // The statement is its own transaction.
            let (written, after) = join(write, after).await;
            return Ok((written?, Ok(()), after));
        }
        let (written, commit, after) = join3(write, client.batch_execute("COMMIT"), after).await;
        Ok((written?, commit, after))
    };
    let (written, commit, after) = within("a group commit", limit::COMMIT_TIMEOUT, all)
        .await
        .map_err(|error| GroupCommitError::during_commit(error).with_standby(synchronous_commit))?;
    let unknown = |error: tokio_postgres::Error| GroupCommitError {
        error: error.into(),
        outcome_unknown: true,
        waited_for_standby: false,
    };
    commit.map_err(unknown)?;
    let after_lsn = after.map_err(unknown)?.get::<_, i64>(0).cast_unsigned();
    standby_confirmed(session, warnings)
        .map_err(|error| GroupCommitError::during_commit(error).with_standby(synchronous_commit))?;
    let place = |row: &Row| places.get(usize::try_from(row.get::<_, i32>(0) - 1).ok()?).copied();
    let kept: HashSet<usize> = written.iter().filter_map(place).collect();
    let lost = places.iter().copied().filter(|n| !kept.contains(n)).collect();
    // Without a row nothing was written, and nothing lies between the two positions.
    let (mut xid, mut xmin, mut inside_lsn) = (0, 0, after_lsn);
    if let Some(row) = written.first() {
        let number = |column| row.get::<_, i64>(column).cast_unsigned();
        (xid, inside_lsn, xmin) = (number(1), number(2), number(5));
        if let Err(error) = session.follow_rotation(row).await {
            // The commit stands. The connection does not: the next batch finds it closed.
            tracing::warn!(error = %ErrorChain(&error), "the next tables cannot be prepared");
        }
    }
    // Everything that the commit wrote lies before `after_lsn`.
    let position = Position { epoch: context.commit.epoch.id, xid, lsn: after_lsn };
    let position = CommitPosition { inside_lsn, position, xmin };
    let documents = places.into_iter().zip(columns.doc).collect();
    Ok(WrittenSlots { sent, position, lost, documents })
}

/// A commit whose wait for its standby was cancelled succeeds with a warning. `before`: the
/// warnings before it was sent.
fn standby_confirmed(session: &WriteSession, before: u64) -> Result<(), PgError> {
    let connection = &session.connection;
    match connection.synchronous_commit {
        SynchronousCommit::On if connection.warnings() != before => {
            Err(PgError::StandbyWaitCancelled)
        }
        SynchronousCommit::On | SynchronousCommit::Local => Ok(()),
    }
}

/// Nothing to write: the answers still vouch for a state, so the epoch is checked and the position
/// read. The documents were read before the check, which fails if an epoch began in between.
async fn check_only(
    session: &WriteSession,
    context: &GroupContext<'_>,
    began: BootTime,
) -> Result<WrittenSlots, GroupCommitError> {
    let client = &session.connection.client;
    let id = context.epoch_id();
    let check: [&(dyn ToSql + Sync); 1] = [&id];
    let warnings = session.connection.warnings();
    let synchronous_commit = session.connection.synchronous_commit;
    // The state may be one that no standby has confirmed: a commit behind it waits until one has.
    let (statement, end) = match synchronous_commit {
        SynchronousCommit::Local => (&session.epoch_check, "ROLLBACK"),
        SynchronousCommit::On => (&session.epoch_check_and_commit, "COMMIT"),
    };
    let all = async {
        let check = client.query_one(statement, &check);
        let after = client.query_one(&session.flush_lsn, &[]);
        if context.lane_lock.is_none() {
            let (check, after) = join(check, after).await;
            check?;
            return after;
        }
        let (check, end, after) = join3(check, client.batch_execute(end), after).await;
        check?;
        end?;
        after
    };
    let failed = |error| GroupCommitError::before_commit(error).with_standby(synchronous_commit);
    let row = within("checking the epoch", limit::COMMIT_TIMEOUT, all).await.map_err(failed)?;
    standby_confirmed(session, warnings).map_err(failed)?;
    let lsn = row.get::<_, i64>(0).cast_unsigned();
    let position = Position { epoch: context.commit.epoch.id, xid: 0, lsn };
    let position = CommitPosition { inside_lsn: lsn, position, xmin: 0 };
    Ok(WrittenSlots { sent: began, position, lost: HashSet::new(), documents: HashMap::new() })
}
