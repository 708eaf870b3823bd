//! The statements behind a group commit: documents, pushed-out write ids, events, offsets.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};
use tagfast_domain::{
    Change, ContentKey, Document, DomainError, EpochOrdinal, RecentWrite, TaggingsEvent,
    UnixMillis, Version, WriteId, codec, limits,
};
use tagfast_events::{BusPosition, Group};
use tagfast_sharding::LogicalShard;

/// The key of the `content` table: the shard's byte first, so that a shard is a range.
pub(crate) fn stored_key(shard: LogicalShard, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key.len() + 1);
    bytes.push(shard.number());
    bytes.extend_from_slice(key);
    bytes
}

/// A content that a batch touches.
pub(crate) struct Slot {
    pub(crate) key: ContentKey,
    pub(crate) stored_key: Vec<u8>,
    pub(crate) doc: Document,
    pub(crate) changes: Vec<Change>,
    pub(crate) evicted: Vec<RecentWrite>,
    /// The newest event position at or after this content's part of the commit.
    pub(crate) position: u64,
}

/// The document under a key, `None` when there is none; decoding can fail by itself.
pub(crate) fn document(
    conn: &Connection,
    stored_key: &[u8],
) -> rusqlite::Result<Option<Result<Document, DomainError>>> {
    let mut select = conn.prepare_cached("SELECT doc FROM content WHERE k = ?1")?;
    select.query_row([stored_key], |row| Ok(codec::decode(row.get_ref(0)?.as_blob()?))).optional()
}

/// The memory of an id that its document pushed out: earlier in this batch, or in the table.
pub(crate) fn prior(
    conn: &Connection,
    slot: &Slot,
    id: WriteId,
    now: UnixMillis,
) -> rusqlite::Result<Option<RecentWrite>> {
    if slot.doc.overflow_until <= now || slot.doc.recent_write(id).is_some() {
        return Ok(None);
    }
    if let Some(evicted) = slot.evicted.iter().find(|w| w.id == id) {
        return Ok(Some(evicted.clone()));
    }
    let mut select = conn.prepare_cached(
        "SELECT fingerprint, effect, ver, at FROM applied WHERE k = ?1 AND wid = ?2 AND at > ?3",
    )?;
    let row = select
        .query_row(
            params![slot.stored_key, id.0.as_slice(), now - limits::WRITE_ID_MEMORY_MS],
            |row| {
                let effect = codec::decode_effect(row.get_ref(1)?.as_blob()?);
                Ok((row.get::<_, i64>(0)?, effect, row.get::<_, i64>(2)?, row.get::<_, i64>(3)?))
            },
        )
        .optional()?;
    row.map(|(fingerprint, effect, version, at)| {
        let bad = |e: DomainError| {
            rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Blob, Box::new(e))
        };
        let version = Version::from_packed(version.unsigned_abs()).map_err(bad)?;
        // The fingerprint is 64 bits of a hash, stored in SQLite's signed integer.
        Ok(RecentWrite {
            id,
            fingerprint: fingerprint.cast_unsigned(),
            version,
            at,
            effect: effect.map_err(bad)?,
        })
    })
    .transpose()
}

/// Writes a changed document, its pushed-out ids and its event; returns the event's position.
pub(crate) fn store(
    conn: &Connection,
    slot: &mut Slot,
    emit: EpochOrdinal,
    now: UnixMillis,
) -> rusqlite::Result<u64> {
    let version = slot.doc.version;
    conn.prepare_cached(
        "INSERT INTO content (k, ver, doc) VALUES (?1, ?2, ?3)
         ON CONFLICT (k) DO UPDATE SET ver = excluded.ver, doc = excluded.doc",
    )?
    .execute(params![
        slot.stored_key,
        version.packed().cast_signed(),
        codec::encode(&slot.doc)
    ])?;
    for w in slot.evicted.drain(..) {
        conn.prepare_cached(
            "INSERT OR REPLACE INTO applied (k, wid, fingerprint, effect, ver, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            slot.stored_key,
            w.id.0.as_slice(),
            w.fingerprint.cast_signed(),
            codec::encode_effect(&w.effect),
            w.version.packed().cast_signed(),
            w.at
        ])?;
    }
    let event = TaggingsEvent {
        key: slot.key.clone(),
        version,
        at: now,
        emit,
        tags: slot.doc.live().cloned().collect(),
        changes: std::mem::take(&mut slot.changes),
    };
    let mut insert = conn.prepare_cached(
        "INSERT INTO bus_event (stripe, key, ver, at, emit, payload) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    let position = insert.insert(params![
        slot.stored_key[0],
        &slot.stored_key[1..],
        version.packed().cast_signed(),
        now,
        emit.0.cast_signed(),
        tagfast_events::encode(&event)
    ])?;
    Ok(position.unsigned_abs())
}

/// Writes how far groups have come.
pub(crate) fn store_offsets(
    conn: &Connection,
    offsets: &BTreeMap<Group, BusPosition>,
    now: UnixMillis,
) -> rusqlite::Result<()> {
    for (group, position) in offsets {
        conn.prepare_cached(
            "INSERT INTO bus_offset (grp, pos, emit, updated_at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (grp) DO UPDATE SET pos = excluded.pos, emit = excluded.emit, updated_at = excluded.updated_at",
        )?
        .execute(params![group.0, position.next.cast_signed(), position.emits.of("").cast_signed(), now])?;
    }
    Ok(())
}
