//! The SQL of a group commit: documents, evicted write ids, events, offsets.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};
use tagfast_domain::{
    Document, DomainError, EpochOrdinal, IdempotencyKey, RecentWrite, UnixMillis, Version, WriteId,
    codec, limits,
};
use tagfast_events::{BusPosition, ConsumerGroup};
use tagfast_store::write_batch::Slot;

/// The document under a storage key; `None`: there is none. The inner error: it cannot be decoded.
pub(crate) fn document(
    conn: &Connection,
    stored_key: &[u8],
) -> rusqlite::Result<Option<Result<Document, DomainError>>> {
    let mut select = conn.prepare_cached("SELECT doc FROM content WHERE k = ?1")?;
    select.query_row([stored_key], |row| Ok(codec::decode(row.get_ref(0)?.as_blob()?))).optional()
}

/// The unexpired `applied` entry of a write id that its document evicted; `None`: there is none.
pub(crate) fn prior(
    conn: &Connection,
    stored_key: &[u8],
    id: WriteId,
    now: UnixMillis,
) -> rusqlite::Result<Option<RecentWrite>> {
    let mut select = conn.prepare_cached(
        "SELECT fingerprint, effect, ver, at FROM applied WHERE k = ?1 AND wid = ?2 AND at > ?3",
    )?;
    let row = select
        .query_row(params![stored_key, id.0.as_slice(), now - limits::WRITE_ID_MEMORY_MS], |row| {
            let result = codec::decode_result(row.get_ref(1)?.as_blob()?);
            Ok((row.get::<_, i64>(0)?, result, row.get::<_, i64>(2)?, row.get::<_, i64>(3)?))
        })
        .optional()?;
    row.map(|(fingerprint, result, version, at)| {
        let bad = |e: DomainError| {
            rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Blob, Box::new(e))
        };
        let version = Version::from_packed(version.unsigned_abs()).map_err(bad)?;
        let (effect, outcome) = result.map_err(bad)?;
        // The fingerprint is a 64-bit hash in SQLite's signed integer.
        let fingerprint = fingerprint.cast_unsigned();
        Ok(RecentWrite { id, fingerprint, version, at, effect, outcome })
    })
    .transpose()
}

/// The slice of time, as long as a key is remembered, that a key is stored under: what is older
/// than the slice before the current one is expired, and lies together.
pub(crate) fn key_slice(now: UnixMillis) -> i64 {
    now.div_euclid(limits::WRITE_ID_MEMORY_MS)
}

/// The request that an idempotency key is bound to: an unexpired earlier one, or its own, which is
/// stored.
pub(crate) fn bind_key(
    conn: &Connection,
    key: &IdempotencyKey,
    now: UnixMillis,
) -> rusqlite::Result<u64> {
    let slice = key_slice(now);
    let mut select =
        conn.prepare_cached("SELECT request FROM idempotency_key WHERE slice = ?1 AND id = ?2")?;
    let mut bound_in = |slice: i64| -> rusqlite::Result<Option<i64>> {
        select.query_row(params![slice, key.id.as_slice()], |row| row.get(0)).optional()
    };
    // The hash of the request is 64 bits in SQLite's signed integer.
    if let Some(bound) = bound_in(slice - 1)? {
        return Ok(bound.cast_unsigned());
    }
    let inserted = conn
        .prepare_cached(
            "INSERT INTO idempotency_key (slice, id, request) VALUES (?1, ?2, ?3)
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![slice, key.id.as_slice(), key.request.cast_signed()])?;
    match inserted {
        0 => Ok(bound_in(slice)?.map_or(key.request, i64::cast_unsigned)),
        _ => Ok(key.request),
    }
}

/// Up to `max` unexpired keys with the requests that they are bound to, those of the newest slice
/// first.
pub(crate) fn bound_keys(
    conn: &Connection,
    now: UnixMillis,
    max: usize,
) -> rusqlite::Result<Vec<([u8; 16], u64)>> {
    let mut select = conn.prepare_cached(
        "SELECT id, request FROM idempotency_key WHERE slice >= ?1 ORDER BY slice DESC LIMIT ?2",
    )?;
    let rows = select.query_map(params![key_slice(now) - 1, max as i64], |row| {
        Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, i64>(1)?.cast_unsigned()))
    })?;
    rows.collect()
}

/// Writes a document, its evicted write ids and, if it has a new version, its event. Returns the
/// event's position; `None`: there is no event.
pub(crate) fn store(
    conn: &Connection,
    slot: &mut Slot,
    publisher_epoch: EpochOrdinal,
    now: UnixMillis,
) -> rusqlite::Result<Option<u64>> {
    let version = slot.document.version;
    conn.prepare_cached(
        "INSERT INTO content (k, ver, doc) VALUES (?1, ?2, ?3)
         ON CONFLICT (k) DO UPDATE SET ver = excluded.ver, doc = excluded.doc",
    )?
    .execute(params![
        slot.stored_key,
        version.packed().cast_signed(),
        codec::encode(&slot.document)
    ])?;
    for w in slot.evicted.drain(..) {
        conn.prepare_cached(
            "INSERT OR REPLACE INTO applied (k, wid, fingerprint, effect, ver, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            slot.stored_key,
            w.id.0.as_slice(),
            w.fingerprint.cast_signed(),
            codec::encode_result(&w),
            w.version.packed().cast_signed(),
            w.at
        ])?;
    }
    let Some(event) = slot.take_event(now, publisher_epoch) else { return Ok(None) };
    let mut insert = conn.prepare_cached(
        "INSERT INTO bus_event (stripe, key, ver, at, emit, payload) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    let position = insert.insert(params![
        slot.stored_key[0],
        &slot.stored_key[1..],
        version.packed().cast_signed(),
        now,
        publisher_epoch.0.cast_signed(),
        tagfast_events::encode(&event)
    ])?;
    Ok(Some(position.unsigned_abs()))
}

/// Writes the offsets of consumer groups.
pub(crate) fn store_offsets(
    conn: &Connection,
    offsets: &BTreeMap<ConsumerGroup, BusPosition>,
    now: UnixMillis,
) -> rusqlite::Result<()> {
    for (group, position) in offsets {
        conn.prepare_cached(
            "INSERT INTO bus_offset (grp, pos, emit, updated_at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (grp) DO UPDATE SET pos = ?2, emit = ?3, updated_at = ?4",
        )?
        .execute(params![
            group.0,
            position.next.cast_signed(),
            position.publisher_epochs.of("").cast_signed(),
            now
        ])?;
    }
    Ok(())
}
