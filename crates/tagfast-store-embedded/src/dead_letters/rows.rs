//! Rows of dead letters and replay jobs.

use rusqlite::types::FromSqlError;
use rusqlite::{Connection, Row, params};
use tagfast_domain::{EpochOrdinal, Version};
use tagfast_events::dead_letters::{content_of, decode_headers, encode_headers};
use tagfast_events::{
    BusRecord, ClusterName, ConsumerGroup, DeadLetter, FailureClass, Partition, RecordKind,
    ReplayJob, StoredDeadLetter,
};

/// Columns that [`stored`] reads.
pub(super) const COLUMNS: &str = "grp, pos, key, ver, at, emit, payload, headers, class, code, \
    message, attempts, replays, state, reason, first_failed_at, last_failed_at";
/// Columns that [`job_of`] reads.
pub(super) const JOB_COLUMNS: &str =
    "id, dry_run, rate, at, dead_letters, closed, busy, applied, superseded, failed, dropped";

/// Parks a dead letter; an existing one stays as it is.
pub(crate) fn insert(conn: &Connection, dead_letter: &DeadLetter) -> rusqlite::Result<()> {
    let record = &dead_letter.record;
    let content = content_of(&record.key);
    let headers = record.headers.iter().map(|(name, value)| (name.clone(), value.as_slice()));
    let headers = encode_headers(headers);
    conn.prepare_cached(
        "INSERT OR IGNORE INTO dead_letter (id, grp, pos, key, ver, at, emit, payload, headers,
             class, code, message, attempts, replays, state, first_failed_at, last_failed_at,
             tenant, content_type, content_id)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, 0, 'open', ?14, ?15, ?16,
             ?17, ?18)",
    )?
    .execute(params![
        dead_letter.id(),
        dead_letter.group.0,
        record.offset.cast_signed(),
        record.key,
        record.version.packed().cast_signed(),
        record.at,
        record.publisher_epoch.0.cast_signed(),
        record.payload,
        headers,
        dead_letter.class.as_str(),
        dead_letter.code,
        dead_letter.message,
        dead_letter.attempts,
        dead_letter.first_failed_at,
        dead_letter.last_failed_at,
        content.as_ref().map(|key| key.tenant.as_str()),
        content.as_ref().map(|key| key.content.content_type.as_str()),
        content.as_ref().map(|key| key.content.content_id.as_str()),
    ])?;
    Ok(())
}

fn invalid_column(column: usize) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(
        column,
        rusqlite::types::Type::Text,
        Box::new(FromSqlError::InvalidType),
    )
}

/// Decodes stored headers; schema version 1 stored `{}` instead.
fn headers(text: &str) -> Option<Vec<(String, Vec<u8>)>> {
    if text == "{}" {
        return Some(Vec::new());
    }
    decode_headers(text)
}

/// The dead letter of a row of [`COLUMNS`].
pub(super) fn stored(row: &Row<'_>, partition: Partition) -> rusqlite::Result<StoredDeadLetter> {
    let word = |column: usize| row.get::<_, String>(column);
    let version = Version::from_packed(row.get::<_, i64>(3)?.cast_unsigned())
        .map_err(|_| invalid_column(3))?;
    let record = BusRecord {
        kind: RecordKind::Event,
        partition,
        offset: row.get::<_, i64>(1)?.cast_unsigned(),
        key: row.get(2)?,
        version,
        at: row.get(4)?,
        cluster: ClusterName::from(""),
        publisher_epoch: EpochOrdinal(row.get::<_, i64>(5)?.cast_unsigned()),
        headers: headers(&word(7)?).ok_or_else(|| invalid_column(7))?,
        payload: row.get(6)?,
    };
    let dead_letter = DeadLetter {
        group: ConsumerGroup::named(&word(0)?).ok_or_else(|| invalid_column(0))?,
        record,
        class: FailureClass::named(&word(8)?).ok_or_else(|| invalid_column(8))?,
        code: word(9)?,
        message: word(10)?,
        attempts: row.get(11)?,
        first_failed_at: row.get(15)?,
        last_failed_at: row.get(16)?,
    };
    Ok(StoredDeadLetter {
        dead_letter,
        replays: row.get(12)?,
        state: word(13)?.parse().map_err(|_| invalid_column(13))?,
        reason: row.get(14)?,
    })
}

/// The replay job of a row of [`JOB_COLUMNS`].
pub(super) fn job_of(row: &Row<'_>) -> rusqlite::Result<ReplayJob> {
    let number = |column: usize| row.get::<_, i64>(column).map(i64::unsigned_abs);
    Ok(ReplayJob {
        id: row.get(0)?,
        dry_run: row.get(1)?,
        rate: row.get(2)?,
        at: row.get(3)?,
        dead_letters: number(4)?,
        closed: number(5)?,
        busy: number(6)?,
        applied: number(7)?,
        superseded: number(8)?,
        failed: number(9)?,
        dropped: number(10)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_schema_version_1_are_none() {
        assert_eq!(headers("{}").expect("schema version 1"), []);
        assert_eq!(headers(r#"[["ce_id","MQ=="]]"#).expect("readable").len(), 1);
        assert_eq!(headers(r#"{"ce_id":"MQ=="}"#), None);
    }
}
