//! The file of a partition: the newest state of every content, and the counts that follow from
//! these states.
//!
//! A new state is compared with the stored one, and the difference changes the counts. A duplicate,
//! a replay or a late event finds a state as new as itself and changes nothing. States and counts
//! change in one transaction.
//!
//! How it fails: the consumer rebuilds a lost file from the shards. With `synchronous=NORMAL` a
//! power cut rolls states and position back together.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use parking_lot::Mutex;
use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params,
};
use tagfast_domain::{Document, Tagging, TenantId, UnixMillis, UserId, Version, codec};
use tagfast_events::BusPosition;
use tagfast_popular::windows::{BucketUnit, EXPIRING_WINDOWS, WindowStarts};

/// Version of the schema; a file of a different version is rebuilt.
const SCHEMA_VERSION: i64 = 2;

const CREATE_TABLES: &str = "
CREATE TABLE pop_state (k BLOB PRIMARY KEY, ver INTEGER NOT NULL, at INTEGER NOT NULL,
                        state BLOB NOT NULL);
CREATE INDEX pop_gone ON pop_state (at) WHERE length(state) = 0;
CREATE TABLE pop_count (tenant TEXT, tag TEXT, n0 INTEGER NOT NULL, n1 INTEGER NOT NULL,
                        n2 INTEGER NOT NULL, n3 INTEGER NOT NULL, first_at INTEGER,
                        first_display TEXT, PRIMARY KEY (tenant, tag)) WITHOUT ROWID;
CREATE TABLE pop_bucket (unit INTEGER, bucket INTEGER, tenant TEXT, tag TEXT, n INTEGER NOT NULL,
                         PRIMARY KEY (unit, bucket, tenant, tag)) WITHOUT ROWID;
CREATE TABLE pop_first (tenant TEXT, tag TEXT, added_at INTEGER, display TEXT, k BLOB,
                        PRIMARY KEY (tenant, tag, added_at, display, k)) WITHOUT ROWID;
CREATE TABLE pop_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
";

const INSERT_FIRST: &str = "
INSERT OR IGNORE INTO pop_first (tenant, tag, added_at, display, k) VALUES (?1, ?2, ?3, ?4, ?5)";
const DELETE_FIRST: &str = "
DELETE FROM pop_first
WHERE tenant = ?1 AND tag = ?2 AND added_at = ?3 AND display = ?4 AND k = ?5";

/// How long the state of a content without tags is kept, in ms, so that a late event cannot bring
/// the content back.
const TOMBSTONE_RETENTION_MS: i64 = 30 * 86_400_000;

/// State of a content, from an event or a shard.
pub(crate) struct State<'a> {
    /// Shard byte and content key, as in the store.
    pub(crate) k: &'a [u8],
    pub(crate) tenant: &'a TenantId,
    pub(crate) version: Version,
    pub(crate) at: UnixMillis,
    pub(crate) tags: &'a [Tagging],
}

/// Whether a state may replace a state of the same version.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replace {
    IfNewer,
    /// Only for repairs: the shard holds the true state.
    IfNotOlder,
}

/// The file of a partition.
pub(crate) struct PartitionFile {
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
}

/// Tags with their tenants.
pub(crate) type Tags = BTreeSet<(TenantId, String)>;

/// First spelling of a tag and its time (Unix ms); `None` if no content carries the tag.
pub(crate) type First = Option<(UnixMillis, String)>;

/// Counts of a tag in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TagCounts {
    pub(crate) tenant: TenantId,
    pub(crate) tag: String,
    /// In the order of `Window::ALL`.
    pub(crate) windows: [u64; 4],
    pub(crate) first: First,
}

#[derive(Default)]
struct CountDeltas {
    /// In the order of `Window::ALL`; includes tags of which only the first spelling may have
    /// changed.
    counts: BTreeMap<(TenantId, String), [i64; 4]>,
    buckets: BTreeMap<(i64, i64, TenantId, String), i64>,
}

pub(crate) fn meta(conn: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    conn.prepare_cached("SELECT value FROM pop_meta WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()
}

pub(crate) fn set_meta(conn: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT INTO pop_meta (key, value) VALUES (?1, ?2)
         ON CONFLICT (key) DO UPDATE SET value = ?2",
    )?
    .execute([key, value])?;
    Ok(())
}

/// The window starts of a file; `None` if it has none.
pub(crate) fn read_starts(conn: &Connection) -> rusqlite::Result<Option<WindowStarts>> {
    Ok(meta(conn, "lows")?.and_then(|text| {
        let starts: Vec<i64> = text.split(',').filter_map(|n| n.parse().ok()).collect();
        starts.try_into().ok().map(WindowStarts)
    }))
}

fn write_starts(conn: &Connection, starts: WindowStarts) -> rusqlite::Result<()> {
    set_meta(conn, "lows", &starts.0.map(|n| n.to_string()).join(","))
}

impl PartitionFile {
    /// Opens or creates a file; `now` is in Unix ms.
    pub(crate) fn open(path: &Path, now: UnixMillis) -> rusqlite::Result<Self> {
        let mut conn = Connection::open(path)?;
        conn.busy_timeout(std::time::Duration::from_secs(5))?;
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "NORMAL")?;
        conn.pragma_update(None, "cache_size", -6144)?;
        conn.set_prepared_statement_cache_capacity(32);
        let version: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version == 0 {
            let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            tx.execute_batch(CREATE_TABLES)?;
            write_starts(&tx, WindowStarts::at(now))?;
            tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            tx.commit()?;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let reader = Connection::open_with_flags(path, flags)?;
        reader.busy_timeout(std::time::Duration::from_secs(5))?;
        reader.pragma_update(None, "cache_size", -1024)?;
        Ok(Self { writer: Mutex::new(conn), reader: Mutex::new(reader) })
    }

    /// Epoch and position; `None` if the file has none or has a different schema.
    pub(crate) fn position(&self) -> rusqlite::Result<Option<(String, BusPosition)>> {
        let conn = self.writer.lock();
        let version: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version != SCHEMA_VERSION {
            return Ok(None);
        }
        let next = meta(&conn, "pos")?.and_then(|v| v.parse().ok());
        let publisher_epochs = meta(&conn, "emit")?.and_then(|v| v.parse().ok());
        let anchor = meta(&conn, "anchor")?.and_then(|v| v.parse().ok());
        Ok(meta(&conn, "epoch")?.zip(next).zip(publisher_epochs).map(
            |((epoch, next), publisher_epochs)| {
                (epoch, BusPosition { next, publisher_epochs, anchor })
            },
        ))
    }

    /// Whether the file has the current schema.
    pub(crate) fn is_current(&self) -> rusqlite::Result<bool> {
        Ok(self
            .reader
            .lock()
            .pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))?
            == SCHEMA_VERSION)
    }

    /// Makes a position durable; `epoch` is `None` if it is the stored one.
    pub(crate) fn set_position(
        &self,
        epoch: Option<&str>,
        position: &BusPosition,
    ) -> rusqlite::Result<()> {
        let mut conn = self.writer.lock();
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if let Some(epoch) = epoch {
            set_meta(&tx, "epoch", epoch)?;
        }
        set_meta(&tx, "pos", &position.next.to_string())?;
        set_meta(&tx, "emit", &position.publisher_epochs.to_string())?;
        set_meta(&tx, "anchor", &position.anchor.map(|a| a.to_string()).unwrap_or_default())?;
        tx.commit()
    }

    /// Applies states. Returns whether each was applied, and the tags whose counts changed.
    pub(crate) fn apply(
        &self,
        states: &[State<'_>],
        replace: Replace,
    ) -> rusqlite::Result<(Vec<bool>, Tags)> {
        let mut conn = self.writer.lock();
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let starts = read_starts(&tx)?.unwrap_or(WindowStarts::UNBOUNDED);
        let mut deltas = CountDeltas::default();
        let mut applied = Vec::with_capacity(states.len());
        for state in states {
            applied.push(apply_state(&tx, state, replace, &starts, &mut deltas)?);
        }
        let changed = deltas.counts.keys().cloned().collect();
        deltas.flush(&tx)?;
        tx.commit()?;
        Ok((applied, changed))
    }

    /// Counted version of a content; `None` if the content is unknown.
    pub(crate) fn version(&self, k: &[u8]) -> rusqlite::Result<Option<Version>> {
        self.read(|conn| {
            let version = conn
                .prepare_cached("SELECT ver FROM pop_state WHERE k = ?1")?
                .query_row([k], |row| row.get::<_, i64>(0))
                .optional()?;
            Ok(version.and_then(|version| Version::from_packed(version.unsigned_abs()).ok()))
        })
    }

    /// Advances the window starts to `now` (Unix ms) and subtracts the buckets below them. Returns
    /// the tags whose counts changed.
    pub(crate) fn expire(&self, now: UnixMillis) -> rusqlite::Result<Tags> {
        let mut conn = self.writer.lock();
        let old = read_starts(&conn)?.unwrap_or_else(|| WindowStarts::at(now));
        let new = WindowStarts::at(now).max(old);
        let mut changed = Tags::new();
        if new == old {
            return Ok(changed);
        }
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for (window, unit, _) in EXPIRING_WINDOWS {
            let expired = params![unit.code(), old.of(window), new.of(window)];
            let mut select = tx.prepare_cached(
                "SELECT DISTINCT tenant, tag FROM pop_bucket
                 WHERE unit = ?1 AND bucket >= ?2 AND bucket < ?3",
            )?;
            let mut rows = select.query(expired)?;
            while let Some(row) = rows.next()? {
                if let Ok(tenant) = row.get_ref(0)?.as_str()?.parse() {
                    changed.insert((tenant, row.get(1)?));
                }
            }
            drop(rows);
            let column = format!("n{}", window.index());
            tx.prepare_cached(&format!(
                "UPDATE pop_count SET {column} = {column} - expired.sum FROM
                     (SELECT tenant, tag, sum(n) AS sum FROM pop_bucket
                      WHERE unit = ?1 AND bucket >= ?2 AND bucket < ?3
                      GROUP BY tenant, tag) AS expired
                 WHERE pop_count.tenant = expired.tenant AND pop_count.tag = expired.tag"
            ))?
            .execute(expired)?;
        }
        for unit in BucketUnit::ALL {
            tx.prepare_cached("DELETE FROM pop_bucket WHERE unit = ?1 AND bucket < ?2")?
                .execute(params![unit.code(), new.of(unit.longest())])?;
        }
        tx.prepare_cached("DELETE FROM pop_state WHERE at < ?1 AND length(state) = 0")?
            .execute([now - TOMBSTONE_RETENTION_MS])?;
        write_starts(&tx, new)?;
        tx.commit()?;
        Ok(changed)
    }

    /// Removes all states, counts and the position, before a rebuild. After a crash the missing
    /// position shows that the rebuild is incomplete.
    pub(crate) fn clear(&self, now: UnixMillis) -> rusqlite::Result<()> {
        self.write(|tx| {
            tx.execute_batch(
                "DELETE FROM pop_meta; DELETE FROM pop_state; DELETE FROM pop_count;
                 DELETE FROM pop_bucket; DELETE FROM pop_first;",
            )?;
            write_starts(tx, WindowStarts::at(now))
        })
    }

    /// Returns the counts of tags per window, with their first spelling.
    pub(crate) fn counts(&self, tags: &Tags) -> rusqlite::Result<Vec<TagCounts>> {
        self.read(|conn| {
            let mut select = conn.prepare_cached(
                "SELECT n0, n1, n2, n3, first_at, first_display
                 FROM pop_count WHERE tenant = ?1 AND tag = ?2",
            )?;
            let one = |(tenant, tag): &(TenantId, String)| {
                let found = select
                    .query_row(params![tenant.as_str(), tag], |row| read_counts(row, 0))
                    .optional()?;
                let (windows, first) = found.unwrap_or_default();
                Ok(TagCounts { tenant: tenant.clone(), tag: tag.clone(), windows, first })
            };
            tags.iter().map(one).collect()
        })
    }

    /// Returns every counted tag.
    pub(crate) fn tags(&self) -> rusqlite::Result<Tags> {
        self.read(|conn| {
            let mut select = conn.prepare_cached("SELECT tenant, tag FROM pop_count")?;
            let (mut rows, mut tags) = (select.query([])?, Tags::new());
            while let Some(row) = rows.next()? {
                if let Ok(tenant) = row.get_ref(0)?.as_str()?.parse() {
                    tags.insert((tenant, row.get(1)?));
                }
            }
            Ok(tags)
        })
    }

    /// Reads from one snapshot, on the reader connection.
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let mut conn = self.reader.lock();
        let tx = conn.transaction()?;
        let result = read(&tx)?;
        tx.commit()?;
        Ok(result)
    }

    /// Writes in one transaction, on the writer connection.
    pub(crate) fn write<T>(
        &self,
        write: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let mut conn = self.writer.lock();
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = write(&tx)?;
        tx.commit()?;
        Ok(result)
    }

    /// Moves the write-ahead log into the file.
    pub(crate) fn checkpoint(&self) -> rusqlite::Result<()> {
        self.writer.lock().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    }
}

/// Encodes the tags of a state as a document without users; empty for a content without tags.
pub(crate) fn encode_tags(version: Version, tags: &[Tagging]) -> Vec<u8> {
    if tags.is_empty() {
        return Vec::new();
    }
    let no_user = UserId::from_stored("-");
    let taggings = tags
        .iter()
        .map(|t| Tagging { user: no_user.clone(), decided_at: version, ..t.clone() })
        .collect();
    codec::encode(&Document {
        version,
        absent_since: version,
        last_conditional: version,
        taggings,
        ..Document::default()
    })
}

/// Decodes the tags of a stored state.
pub(crate) fn decode_tags(bytes: &[u8]) -> rusqlite::Result<Vec<Tagging>> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    codec::decode(bytes).map(|d| d.taggings).map_err(|e| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, Box::new(e))
    })
}

/// Whether two taggings have the same effect on counts.
pub(crate) fn counts_alike(a: &Tagging, b: &Tagging) -> bool {
    a.name == b.name && a.display == b.display && a.at == b.at
}

fn apply_state(
    tx: &Transaction<'_>,
    state: &State<'_>,
    replace: Replace,
    starts: &WindowStarts,
    deltas: &mut CountDeltas,
) -> rusqlite::Result<bool> {
    let known: Option<(i64, Vec<Tagging>)> = tx
        .prepare_cached("SELECT ver, state FROM pop_state WHERE k = ?1")?
        .query_row([state.k], |row| Ok((row.get(0)?, decode_tags(row.get_ref(1)?.as_blob()?)?)))
        .optional()?;
    let version = state.version.packed() as i64;
    let (known_version, old) = known.unwrap_or((-1, Vec::new()));
    let newer = match replace {
        Replace::IfNewer => version > known_version,
        Replace::IfNotOlder => version >= known_version,
    };
    if !newer {
        return Ok(false);
    }
    for (taggings, others, by) in
        [(old.as_slice(), state.tags, -1), (state.tags, old.as_slice(), 1)]
    {
        let others: HashMap<&str, &Tagging> = others.iter().map(|t| (t.name.as_str(), t)).collect();
        for tagging in taggings {
            if !others.get(tagging.name.as_str()).is_some_and(|t| counts_alike(t, tagging)) {
                deltas.count(state.tenant, tagging, by, starts);
                tx.prepare_cached(if by < 0 { DELETE_FIRST } else { INSERT_FIRST })?.execute(
                    params![
                        state.tenant.as_str(),
                        tagging.name.as_str(),
                        tagging.at,
                        &*tagging.display,
                        state.k
                    ],
                )?;
            }
        }
    }
    tx.prepare_cached(
        "INSERT INTO pop_state (k, ver, at, state) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (k) DO UPDATE SET ver = ?2, at = ?3, state = ?4",
    )?
    .execute(params![state.k, version, state.at, encode_tags(state.version, state.tags)])?;
    Ok(true)
}

impl CountDeltas {
    fn count(&mut self, tenant: &TenantId, tagging: &Tagging, by: i64, starts: &WindowStarts) {
        let tag = tagging.name.as_str();
        let counts = self.counts.entry((tenant.clone(), tag.to_owned())).or_default();
        for window in starts.windows(tagging.at) {
            counts[window.index()] += by;
        }
        for unit in BucketUnit::ALL {
            let bucket = unit.bucket(tagging.at);
            if bucket >= starts.of(unit.longest()) {
                *self
                    .buckets
                    .entry((unit.code(), bucket, tenant.clone(), tag.to_owned()))
                    .or_default() += by;
            }
        }
    }

    fn flush(self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        for ((tenant, tag), by) in self.counts {
            // The first spelling is stored beside the counts: the smallest (added_at, bytes) among
            // live taggings.
            let first: Option<(i64, String)> = tx
                .prepare_cached(
                    "SELECT added_at, display FROM pop_first WHERE tenant = ?1 AND tag = ?2
                     ORDER BY added_at, display LIMIT 1",
                )?
                .query_row([tenant.as_str(), &tag], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let (at, display) = first.unzip();
            tx.prepare_cached(
                "INSERT INTO pop_count (tenant, tag, n0, n1, n2, n3, first_at, first_display)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (tenant, tag) DO UPDATE SET n0 = n0 + ?3, n1 = n1 + ?4,
                     n2 = n2 + ?5, n3 = n3 + ?6, first_at = ?7, first_display = ?8",
            )?
            .execute(params![
                tenant.as_str(),
                tag,
                by[0],
                by[1],
                by[2],
                by[3],
                at,
                display
            ])?;
            if by[0] < 0 {
                tx.prepare_cached(
                    "DELETE FROM pop_count WHERE tenant = ?1 AND tag = ?2 AND n0 <= 0",
                )?
                .execute([tenant.as_str(), &tag])?;
            }
        }
        for ((unit, bucket, tenant, tag), by) in self.buckets {
            if by != 0 {
                tx.prepare_cached(
                    "INSERT INTO pop_bucket (unit, bucket, tenant, tag, n)
                     VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT (unit, bucket, tenant, tag) DO UPDATE SET n = n + ?5",
                )?
                .execute(params![unit, bucket, tenant.as_str(), tag, by])?;
                if by < 0 {
                    tx.prepare_cached(
                        "DELETE FROM pop_bucket WHERE unit = ?1 AND bucket = ?2
                             AND tenant = ?3 AND tag = ?4 AND n = 0",
                    )?
                    .execute(params![unit, bucket, tenant.as_str(), tag])?;
                }
            }
        }
        Ok(())
    }
}

/// Reads counts in the order of `Window::ALL` and the first spelling with its time, from six
/// columns starting at `from`.
pub(crate) fn read_counts(row: &Row<'_>, from: usize) -> rusqlite::Result<([u64; 4], First)> {
    let mut counts = [0; 4];
    for (n, count) in counts.iter_mut().enumerate() {
        *count = row.get::<_, i64>(from + n)?.max(0).unsigned_abs();
    }
    Ok((counts, Option::zip(row.get(from + 4)?, row.get(from + 5)?)))
}

/// Recomputes every sum from the states and keeps everything else.
pub(crate) fn recompute(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    let starts = read_starts(tx)?.unwrap_or(WindowStarts::UNBOUNDED);
    tx.execute_batch("DELETE FROM pop_count; DELETE FROM pop_bucket; DELETE FROM pop_first;")?;
    let mut deltas = CountDeltas::default();
    let mut states = tx.prepare("SELECT k, state FROM pop_state")?;
    let mut rows = states.query([])?;
    while let Some(row) = rows.next()? {
        let k: Vec<u8> = row.get(0)?;
        let Some(tenant) = tenant_of(&k) else { continue };
        for tagging in decode_tags(row.get_ref(1)?.as_blob()?)? {
            deltas.count(&tenant, &tagging, 1, &starts);
            tx.prepare_cached(INSERT_FIRST)?.execute(params![
                tenant.as_str(),
                tagging.name.as_str(),
                tagging.at,
                &*tagging.display,
                k
            ])?;
        }
    }
    drop(rows);
    drop(states);
    deltas.flush(tx)
}

/// Tenant of a stored key (shard byte, then content key); `None` if the key is malformed.
pub(crate) fn tenant_of(k: &[u8]) -> Option<TenantId> {
    tagfast_domain::ContentKey::from_bytes(k.get(1..)?).ok().map(|key| key.tenant)
}
