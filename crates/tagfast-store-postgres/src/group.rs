//! One group commit: two round trips, an outcome for each write.
//!
//! The first round trip reads the documents, the second writes them in one statement that checks
//! the reign itself and is its own transaction: nothing is locked while this process thinks. The
//! guard is the version: a document that changed in between is not written, its writes are applied
//! again. After a lost race the lane takes an advisory lock for a while, so that two nodes that
//! hammer one content take turns.
//!
//! How it fails: an error of the database means that nothing happened; a connection that ends
//! leaves the outcome unknown, and the same writes are tried again with their ids. COMMIT of an
//! aborted transaction succeeds as a rollback, so the verdict is "every result is good", never
//! "COMMIT returned".

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::future::{join, join3, try_join, try_join3};
use tagfast_domain::{
    ApplyContext, Change, ContentKey, Document, DomainError, Effect, Epoch, Limits, Outcome,
    RecentWrite, TaggingsEvent, UnixMillis, Version, WriteId, apply, codec,
    limits as domain_limits,
};
use tagfast_failover::{BootTime, Commit, EpochRecord};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::{
    CacheUse, Position, Receipt, Source, StoreError, View, WriteAnswer, WriteRequest,
};
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use crate::boot_time;
use crate::connect::{Connection, PgError, within};
use crate::options::limit;

/// One when this server is the primary of epoch `$1`. Errors as zero, so that a reign that ended is
/// 22012 and nothing is written.
macro_rules! reign {
    ($epoch:literal) => {
        concat!(
            "(SELECT 1 / (count(*))::int FROM (SELECT id, timeline FROM epoch ORDER BY ordinal DESC LIMIT 1) e WHERE e.id = ",
            $epoch,
            " AND e.timeline = ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int)"
        )
    };
}

const CHECK: &str = concat!("SELECT ", reign!("$1"));
const READ: &str = "SELECT k, doc FROM content WHERE k = ANY($1)";
const PRIOR: &str = "
SELECT a.k, a.wid, a.fingerprint, a.effect, a.ver, a.at FROM unnest($1::bytea[], $2::bytea[]) x(k, wid)
CROSS JOIN LATERAL (SELECT * FROM applied_0 t WHERE t.wid = x.wid AND t.k = x.k UNION ALL
                    SELECT * FROM applied_1 t WHERE t.wid = x.wid AND t.k = x.k UNION ALL
                    SELECT * FROM applied_2 t WHERE t.wid = x.wid AND t.k = x.k) a
ORDER BY a.at";
const TURN: &str = "SELECT applied FROM turn";
const LOCK: &str = "SELECT pg_advisory_xact_lock(1952540518, $1)";
const AFTER: &str = "SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint";

/// Writes documents, events and pushed-out ids in one statement, which is the transaction. The
/// reign is checked before its first row. `IS TRUE` keeps the look-up of written keys a hash: as a
/// join it would compare every id with every key.
fn write_statement(outbox: usize, applied: usize) -> String {
    format!(
        "WITH i AS MATERIALIZED (
    SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bytea[])
             WITH ORDINALITY x(k, old_ver, ver, doc, event, n) WHERE {reign} = 1),
u AS (UPDATE content t SET ver = i.ver, doc = i.doc FROM i WHERE t.k = i.k AND t.ver = i.old_ver
      RETURNING t.k, i.n, i.event),
c AS (INSERT INTO content SELECT k, ver, doc FROM i WHERE old_ver = 0 ON CONFLICT DO NOTHING RETURNING k),
a AS (INSERT INTO applied_{applied} SELECT p.* FROM unnest($6::bytea[], $7::bytea[], $8::bigint[], $9::bytea[],
      $10::bigint[], $11::bigint[]) p(k, wid, fingerprint, effect, ver, at)
      WHERE (p.k IN (SELECT k FROM u UNION ALL SELECT k FROM c)) IS TRUE)
INSERT INTO outbox_{outbox} (n, k, event)
SELECT n, k, event FROM u UNION ALL SELECT i.n, i.k, i.event FROM i JOIN c USING (k)
RETURNING n, (SELECT pg_current_xact_id()::text::bigint), (SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint),
          (SELECT outbox FROM turn), (SELECT applied FROM turn),
          (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint)",
        reign = reign!("$12")
    )
}

/// The prepared statements of a writing connection.
pub(crate) struct Writing {
    pub(crate) connection: Connection,
    check: Statement,
    read: Statement,
    prior: Statement,
    lock: Statement,
    after: Statement,
    /// By the outbox table that is written.
    write: [Statement; 3],
    /// The tables that are written now, as the last check said: of the outbox, of pushed-out ids.
    outbox: usize,
    applied: usize,
}

impl Writing {
    /// Prepares everything.
    pub(crate) async fn new(connection: Connection) -> Result<Self, PgError> {
        let client = &connection.client;
        let bound = limit::CONNECT;
        let (check, read, prior) = within(
            "preparing",
            bound,
            try_join3(client.prepare(CHECK), client.prepare(READ), client.prepare(PRIOR)),
        )
        .await?;
        let (lock, after) =
            within("preparing", bound, try_join(client.prepare(LOCK), client.prepare(AFTER)))
                .await?;
        let applied =
            within("reading the turn", bound, client.query_one(TURN, &[])).await?.get::<_, i32>(0);
        let applied = usize::try_from(applied).unwrap_or(0) % 3;
        let write = Self::prepare_writes(&connection, applied).await?;
        Ok(Self { check, read, prior, lock, after, write, outbox: 0, applied, connection })
    }

    async fn prepare_writes(
        connection: &Connection,
        applied: usize,
    ) -> Result<[Statement; 3], PgError> {
        let client = &connection.client;
        let [zero, one, two] = [0, 1, 2].map(|outbox| write_statement(outbox, applied));
        let all = try_join3(client.prepare(&zero), client.prepare(&one), client.prepare(&two));
        let (zero, one, two) = within("preparing", limit::CONNECT, all).await?;
        Ok([zero, one, two])
    }

    /// Takes in what a written row said of the tables that are written now. A group that still
    /// wrote the one before did no harm: each is emptied two turns later.
    async fn follow_turn(&mut self, row: &tokio_postgres::Row) -> Result<(), PgError> {
        let table = |column| usize::try_from(row.get::<_, i32>(column)).unwrap_or(0) % 3;
        self.outbox = table(3);
        if table(4) != self.applied {
            self.write = Self::prepare_writes(&self.connection, table(4)).await?;
            self.applied = table(4);
        }
        Ok(())
    }
}

/// What a group runs with.
pub(crate) struct Terms<'a> {
    pub(crate) cluster: u16,
    pub(crate) epoch: &'a EpochRecord,
    pub(crate) limits: &'a Limits,
    pub(crate) now: UnixMillis,
    /// The lane's lock is taken before the documents are read.
    pub(crate) locked: Option<i32>,
}

/// A write of a group.
pub(crate) struct Asked<'a> {
    pub(crate) request: &'a WriteRequest,
    /// Its id may have been used before.
    pub(crate) seen_before: bool,
}

/// What became of one write of a group.
pub(crate) enum ItemResult {
    /// Answer it, if the commit may be acknowledged.
    Done(Result<WriteAnswer, StoreError>),
    /// Its document changed in between: apply it again.
    Again,
}

/// A group that ran.
pub(crate) struct Finished {
    pub(crate) items: Vec<ItemResult>,
    pub(crate) commit: Commit,
    pub(crate) lost_race: bool,
}

/// A group that failed as a whole.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: PgError,
    /// COMMIT had been sent: the writes may have happened.
    pub(crate) outcome_unknown: bool,
}

/// A content that a group touches.
pub(crate) struct Slot {
    pub(crate) key: ContentKey,
    stored: Vec<u8>,
    old: Version,
    pub(crate) doc: Document,
    changes: Vec<Change>,
    evicted: Vec<RecentWrite>,
    /// It gets a new version, though nothing of it changed.
    pub(crate) touched: bool,
}

type Prior = HashMap<(Vec<u8>, WriteId), RecentWrite>;

/// The key of the `content` table: the shard's byte first, so that a shard is a range.
pub(crate) fn stored_key(shard: LogicalShard, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key.len() + 1);
    bytes.push(shard.number());
    bytes.extend_from_slice(key);
    bytes
}

/// Runs one group. On `Err` the connection is not to be used again unless [`is_worth_keeping`].
pub(crate) async fn run(
    server: &mut Writing,
    asked: &[Asked<'_>],
    terms: &Terms<'_>,
) -> Result<Finished, Failed> {
    let early = |error| Failed { error, outcome_unknown: false };
    let sent = boot_time();
    let wanted = asked.iter().map(|asked| &asked.request.write.key);
    let (mut slots, index) = read_slots(server, wanted, terms).await.map_err(early)?;
    let prior = read_prior(server, asked, &slots, &index, terms.now).await.map_err(early)?;
    let epoch = Epoch { id: terms.epoch.id, ordinal: terms.epoch.ordinal };
    let context = ApplyContext { epoch: &epoch, now: terms.now, limits: terms.limits };
    let mut answers = Vec::with_capacity(asked.len());
    for Asked { request, .. } in asked {
        let slot_index = index[&request.write.key];
        answers.push((
            slot_index,
            apply_one(&mut slots[slot_index], request, &prior, &context, terms),
        ));
    }
    let written = write_slots(server, &mut slots, terms, sent).await?;
    let lost: Vec<bool> = slots
        .iter()
        .enumerate()
        .map(|(n, s)| matches!(s, Ok(s) if !s.changes.is_empty()) && !written.keys.contains(&n))
        .collect();
    let lost_race = lost.contains(&true);
    let views: Vec<Option<Arc<View>>> =
        slots.iter().enumerate().map(|(n, slot)| written.view(n, slot, terms)).collect();
    let items = answers.into_iter().map(|(slot, answer)| match answer {
        _ if lost[slot] => ItemResult::Again,
        Err(error) => ItemResult::Done(Err(error)),
        Ok((mut answer, wrote)) => {
            answer.receipt.inside_lsn = written.inside_lsn;
            answer.receipt.position = written.position(terms.epoch);
            if wrote {
                answer.view.clone_from(&views[slot]);
            }
            ItemResult::Done(Ok(answer))
        }
    });
    let items = items.collect();
    let commit = Commit { epoch: terms.epoch.id, sent: written.sent, returned: boot_time() };
    Ok(Finished { items, commit, lost_race })
}

pub(crate) type SlotOrError = Result<Slot, DomainError>;

/// Reads the document of every content that the group touches, sorted by key.
pub(crate) async fn read_slots<'a>(
    server: &mut Writing,
    wanted: impl ExactSizeIterator<Item = &'a ContentKey>,
    terms: &Terms<'_>,
) -> Result<(Vec<SlotOrError>, HashMap<ContentKey, usize>), PgError> {
    let mut keys: Vec<(Vec<u8>, &ContentKey)> = Vec::with_capacity(wanted.len());
    let mut seen: HashMap<&ContentKey, ()> = HashMap::with_capacity(wanted.len());
    for key in wanted {
        if let Entry::Vacant(vacant) = seen.entry(key) {
            vacant.insert(());
            let bytes = key.to_bytes();
            keys.push((
                stored_key(LogicalShard::of_hash(ContentHash::of_bytes(&bytes)), &bytes),
                key,
            ));
        }
    }
    // Every statement that locks rows locks them in the order of keys: no two groups wait for each
    // other.
    keys.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let stored: Vec<&[u8]> = keys.iter().map(|(bytes, _)| bytes.as_slice()).collect();
    let client = &server.connection.client;
    let rows = match terms.locked {
        None => {
            within("reading documents", limit::WRITE, client.query(&server.read, &[&stored]))
                .await?
        }
        Some(lane) => {
            let id: &[u8] = &terms.epoch.id.0;
            let (parameters, lane): ([&(dyn ToSql + Sync); 1], _) = ([&id], lane);
            let lane_parameter: [&(dyn ToSql + Sync); 1] = [&lane];
            let read_parameter: [&(dyn ToSql + Sync); 1] = [&stored];
            let all = async {
                let (begin, (check, lock, rows)) = join(
                    client.batch_execute("BEGIN"),
                    join3(
                        client.query_one(&server.check, &parameters),
                        client.query(&server.lock, &lane_parameter),
                        client.query(&server.read, &read_parameter),
                    ),
                )
                .await;
                begin?;
                check?;
                lock?;
                rows
            };
            within("locking the lane", limit::WRITE, all).await?
        }
    };
    let mut documents: HashMap<Vec<u8>, Result<Document, DomainError>> = rows
        .into_iter()
        .map(|row| (row.get::<_, Vec<u8>>(0), codec::decode(row.get::<_, &[u8]>(1))))
        .collect();
    let mut slots = Vec::with_capacity(keys.len());
    let mut index = HashMap::with_capacity(keys.len());
    for (n, (stored, key)) in keys.into_iter().enumerate() {
        let document = documents.remove(&stored).unwrap_or_else(|| Ok(Document::default()));
        index.insert(key.clone(), n);
        let slot = document.map(|doc| Slot {
            key: key.clone(),
            stored,
            old: doc.version,
            doc,
            changes: Vec::new(),
            evicted: Vec::new(),
            touched: false,
        });
        if let Err(error) = &slot {
            tracing::error!(content = %key, %error, "a stored document is damaged");
        }
        slots.push(slot);
    }
    Ok((slots, index))
}

/// Looks up the ids that documents have pushed out, where one may have. Read after the documents:
/// an id on its way from one to the other is seen in one of them.
async fn read_prior(
    server: &Writing,
    asked: &[Asked<'_>],
    slots: &[SlotOrError],
    index: &HashMap<ContentKey, usize>,
    now: UnixMillis,
) -> Result<Prior, PgError> {
    // By content and id, as the primary key is: an id belongs to one content.
    let (mut keys, mut ids): (Vec<&[u8]>, Vec<&[u8]>) = (Vec::new(), Vec::new());
    for Asked { request, .. } in asked.iter().filter(|a| a.seen_before) {
        let id = request.write.id;
        if let Ok(slot) = &slots[index[&request.write.key]]
            && slot.doc.overflow_until > now
            && slot.doc.recent_write(id).is_none()
        {
            keys.push(&slot.stored);
            ids.push(&request.write.id.0);
        }
    }
    if ids.is_empty() {
        return Ok(Prior::new());
    }
    let rows = within(
        "reading pushed-out ids",
        limit::WRITE,
        server.connection.client.query(&server.prior, &[&keys, &ids]),
    )
    .await?;
    let mut prior = Prior::new();
    for row in rows {
        let (at, version): (i64, i64) = (row.get(5), row.get(4));
        let id: Option<[u8; 16]> = row.get::<_, Vec<u8>>(1).try_into().ok();
        let effect = codec::decode_effect(row.get::<_, &[u8]>(3)).ok();
        let version = Version::from_packed(version.unsigned_abs()).ok();
        if let (Some(id), Some(effect), Some(version), true) =
            (id, effect, version, at > now - domain_limits::WRITE_ID_MEMORY_MS)
        {
            let id = WriteId(id);
            let fingerprint = row.get::<_, i64>(2).cast_unsigned();
            prior.insert((row.get(0), id), RecentWrite { id, fingerprint, version, at, effect });
        }
    }
    Ok(prior)
}

/// The answer, and whether there is something to write.
fn apply_one(
    slot: &mut SlotOrError,
    request: &WriteRequest,
    prior: &Prior,
    context: &ApplyContext<'_>,
    terms: &Terms<'_>,
) -> Result<(WriteAnswer, bool), StoreError> {
    let write = &request.write;
    let slot = match slot {
        Ok(slot) => slot,
        Err(source) => {
            return Err(StoreError::Damaged {
                what: format!("content {}", write.key),
                source: Some(source.clone()),
            });
        }
    };
    let evicted = slot.evicted.iter().find(|w| w.id == write.id);
    let known = evicted.or_else(|| prior.get(&(slot.stored.clone(), write.id))).cloned();
    let mut wrote = false;
    let (version, effect, repeated) = match apply(&mut slot.doc, write, known.as_ref(), context) {
        Outcome::Refused(refusal) => return Err(StoreError::Refused(refusal)),
        Outcome::Unchanged { version } => (version, Effect::default(), false),
        Outcome::Repeated { version, effect } => (version, effect, true),
        Outcome::Written { version, effect, evicted } => {
            wrote = true;
            slot.evicted.extend(evicted);
            slot.changes.push(Change {
                write_id: write.id,
                user: write.user.clone(),
                version,
                added: effect.added.clone(),
                removed: effect.removed.clone(),
                traceparent: request.traceparent.clone(),
            });
            (version, effect, false)
        }
    };
    let shard = LogicalShard::of(&write.key);
    let position = Position { epoch: terms.epoch.id, xid: 0, lsn: 0 };
    let receipt =
        Receipt { cluster: terms.cluster, shard, inside_lsn: 0, position, write_id: write.id };
    let changed = !effect.added.is_empty() || !effect.removed.is_empty();
    let (added, removed) = (effect.added, effect.removed);
    let degraded = Vec::new();
    Ok((
        WriteAnswer { version, changed, added, removed, repeated, receipt, view: None, degraded },
        wrote,
    ))
}

pub(crate) struct Written {
    sent: BootTime,
    /// Slots whose document was written.
    keys: HashSet<usize>,
    xid: u64,
    /// Of the writing statement's snapshot.
    xmin: u64,
    inside_lsn: u64,
    after_lsn: u64,
}

impl Written {
    /// After the commit: everything that it wrote lies before it.
    fn position(&self, epoch: &EpochRecord) -> Position {
        Position { epoch: epoch.id, xid: self.xid, lsn: self.after_lsn }
    }

    /// A content as this group left it. Its old version was still the newest one when the statement
    /// wrote it, so whatever had ended at the statement's snapshot is in it.
    fn view(&self, place: usize, slot: &SlotOrError, terms: &Terms<'_>) -> Option<Arc<View>> {
        let slot = slot.as_ref().ok().filter(|_| self.keys.contains(&place))?;
        Some(Arc::new(View {
            version: slot.doc.version,
            tags: slot.doc.live().cloned().collect(),
            position: self.position(terms.epoch),
            source: Source::Primary,
            as_of: terms.now,
            degraded: Vec::new(),
            xmin: self.xmin,
            stale: false,
            cache: CacheUse::Bypass,
        }))
    }
}

/// The columns of the writing statement.
#[derive(Default)]
struct Columns {
    k: Vec<Vec<u8>>,
    old: Vec<i64>,
    ver: Vec<i64>,
    doc: Vec<Vec<u8>>,
    event: Vec<Vec<u8>>,
    a_k: Vec<Vec<u8>>,
    a_wid: Vec<Vec<u8>>,
    a_fingerprint: Vec<i64>,
    a_effect: Vec<Vec<u8>>,
    a_ver: Vec<i64>,
    a_at: Vec<i64>,
}

pub(crate) async fn write_slots(
    server: &mut Writing,
    slots: &mut [SlotOrError],
    terms: &Terms<'_>,
    began: BootTime,
) -> Result<Written, Failed> {
    let mut columns = Columns::default();
    let mut places = Vec::new();
    for (n, slot) in slots.iter().enumerate() {
        let Ok(slot) = slot else { continue };
        if slot.changes.is_empty() && !slot.touched {
            continue;
        }
        places.push(n);
        columns.push(slot, terms);
    }
    let client = &server.connection.client;
    let id: &[u8] = &terms.epoch.id.0;
    let check_parameters: [&(dyn ToSql + Sync); 1] = [&id];
    if places.is_empty() {
        // Nothing to write: the answers still vouch for a state, so the reign and the position are
        // read.
        let all = async {
            let (check, after) = join(
                client.query_one(&server.check, &check_parameters),
                client.query_one(&server.after, &[]),
            )
            .await;
            if terms.locked.is_some() {
                client.batch_execute("ROLLBACK").await?;
            }
            check?;
            after
        };
        let row = within("checking the reign", limit::WRITE, all)
            .await
            .map_err(|error| Failed { error, outcome_unknown: false })?;
        let lsn = row.get::<_, i64>(0).cast_unsigned();
        // The documents were read before the check; a reign that began in between would have failed
        // it.
        let keys = HashSet::new();
        return Ok(Written { sent: began, keys, xid: 0, xmin: 0, inside_lsn: lsn, after_lsn: lsn });
    }
    let c = &columns;
    let parameters: [&(dyn ToSql + Sync); 12] = [
        &c.k,
        &c.old,
        &c.ver,
        &c.doc,
        &c.event,
        &c.a_k,
        &c.a_wid,
        &c.a_fingerprint,
        &c.a_effect,
        &c.a_ver,
        &c.a_at,
        &id,
    ];
    let sent = boot_time();
    let all = async {
        let write = client.query(&server.write[server.outbox], &parameters);
        let after = client.query_one(&server.after, &[]);
        if terms.locked.is_none() {
            // The statement commits by itself.
            let (written, after) = join(write, after).await;
            return Ok((written?, Ok(()), after));
        }
        let (written, commit, after) = join3(write, client.batch_execute("COMMIT"), after).await;
        Ok((written?, commit, after))
    };
    let failed = |error: PgError| {
        // A database error came from a statement before the commit, which then rolled back.
        // Anything else may have hit the commit.
        let outcome_unknown =
            error.code().is_none() || error.code().is_some_and(|c| c.starts_with("57P"));
        Failed { error, outcome_unknown }
    };
    let (written, commit, after) =
        within("a group commit", limit::WRITE, all).await.map_err(failed)?;
    let unknown =
        |error: tokio_postgres::Error| Failed { error: error.into(), outcome_unknown: true };
    commit.map_err(unknown)?;
    let after_lsn = after.map_err(unknown)?.get::<_, i64>(0).cast_unsigned();
    let keys = written
        .iter()
        .filter_map(|row| places.get(usize::try_from(row.get::<_, i32>(0) - 1).ok()?))
        .copied();
    let keys = keys.collect();
    // Without a row nothing was written, and nothing lies between the two positions.
    let (mut xid, mut xmin, mut inside_lsn) = (0, 0, after_lsn);
    if let Some(row) = written.first() {
        let number = |column| row.get::<_, i64>(column).cast_unsigned();
        (xid, inside_lsn, xmin) = (number(1), number(2), number(5));
        if let Err(error) = server.follow_turn(row).await {
            // The commit stands. The connection does not: the next group finds it out.
            tracing::warn!(%error, "the next tables were not prepared");
        }
    }
    Ok(Written { sent, keys, xid, xmin, inside_lsn, after_lsn })
}

impl Columns {
    fn push(&mut self, slot: &Slot, terms: &Terms<'_>) {
        let event = TaggingsEvent {
            key: slot.key.clone(),
            version: slot.doc.version,
            at: terms.now,
            emit: terms.epoch.ordinal,
            tags: slot.doc.live().cloned().collect(),
            changes: slot.changes.clone(),
        };
        self.k.push(slot.stored.clone());
        self.old.push(slot.old.packed().cast_signed());
        self.ver.push(slot.doc.version.packed().cast_signed());
        self.doc.push(codec::encode(&slot.doc));
        self.event.push(codec::encode_event(&event));
        for w in &slot.evicted {
            self.a_k.push(slot.stored.clone());
            self.a_wid.push(w.id.0.to_vec());
            self.a_fingerprint.push(w.fingerprint.cast_signed());
            self.a_effect.push(codec::encode_effect(&w.effect));
            self.a_ver.push(w.version.packed().cast_signed());
            self.a_at.push(w.at);
        }
    }
}

/// Whether a connection can go on after this error: the batch was at fault, not the server.
pub(crate) fn is_worth_keeping(error: &PgError) -> bool {
    matches!(error.code(), Some("40P01" | "40001" | "55P03" | "57014"))
}
