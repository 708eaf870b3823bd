//! Rows of dead letters and replay jobs.

use tagfast_domain::{EpochOrdinal, Version};
use tagfast_events::dead_letters::{content_of, decode_headers, encode_headers};
use tagfast_events::{
    BusRecord, ConsumerGroup, DeadLetter, DeadLetterState, DeadLetterStoreError, FailureClass,
    Partition, RecordKind, ReplayJob, StoredDeadLetter,
};
use tokio_postgres::Row;

use super::sql::{SqlValues, without_nul};

/// Columns that [`stored`] reads.
pub(super) const COLUMNS: &str = "grp, part, pos, key, ver, at, cluster, emit, payload, headers, \
    class, code, message, attempts, replays, state, reason, first_failed_at, last_failed_at";
/// Columns that [`job_of`] reads.
pub(super) const JOB_COLUMNS: &str =
    "id, dry_run, rate, at, dead_letters, closed, busy, applied, superseded, failed, dropped";

/// A column that a different program wrote, or that is damaged.
pub(super) fn damaged(what: &'static str) -> DeadLetterStoreError {
    DeadLetterStoreError::Damaged(what)
}

/// The dead letter of a row of [`COLUMNS`].
pub(super) fn stored(row: &Row) -> Result<StoredDeadLetter, DeadLetterStoreError> {
    let number = |column: usize| row.get::<_, i64>(column).cast_unsigned();
    let record = BusRecord {
        kind: RecordKind::Event,
        partition: Partition(
            u16::try_from(row.get::<_, i32>(1)).map_err(|_| damaged("partition"))?,
        ),
        offset: number(2),
        key: row.get(3),
        version: Version::from_packed(number(4)).map_err(|_| damaged("version"))?,
        at: row.get(5),
        cluster: row.get::<_, &str>(6).into(),
        publisher_epoch: EpochOrdinal(number(7)),
        headers: decode_headers(row.get(9)).ok_or_else(|| damaged("headers"))?,
        payload: row.get(8),
    };
    let count = |column: usize| u32::try_from(row.get::<_, i32>(column)).unwrap_or(0);
    let dead_letter = DeadLetter {
        group: ConsumerGroup::named(row.get(0)).ok_or_else(|| damaged("group"))?,
        record,
        class: FailureClass::named(row.get(10)).ok_or_else(|| damaged("class"))?,
        code: row.get(11),
        message: row.get(12),
        attempts: count(13),
        first_failed_at: row.get(17),
        last_failed_at: row.get(18),
    };
    let state: DeadLetterState = row.get::<_, &str>(15).parse().map_err(|_| damaged("state"))?;
    Ok(StoredDeadLetter { dead_letter, state, reason: row.get(16), replays: count(14) })
}

/// The replay job of a row of [`JOB_COLUMNS`].
pub(super) fn job_of(row: &Row) -> ReplayJob {
    let number = |column: usize| row.get::<_, i64>(column).unsigned_abs();
    ReplayJob {
        id: row.get(0),
        dry_run: row.get(1),
        rate: u32::try_from(row.get::<_, i32>(2)).unwrap_or(1),
        at: row.get(3),
        dead_letters: number(4),
        closed: number(5),
        busy: number(6),
        applied: number(7),
        superseded: number(8),
        failed: number(9),
        dropped: number(10),
    }
}

/// One array per column of dead letters, for a statement that inserts all of them.
pub(super) fn column_arrays(dead_letters: &[DeadLetter]) -> SqlValues {
    let headers = |dead_letter: &DeadLetter| {
        let named = dead_letter.record.headers.iter();
        encode_headers(named.map(|(name, value)| (without_nul(name), value.as_slice())))
    };
    let content: Vec<_> =
        dead_letters.iter().map(|dead_letter| content_of(&dead_letter.record.key)).collect();
    macro_rules! column {
        ($of:expr) => {
            Box::new(dead_letters.iter().map($of).collect::<Vec<_>>())
        };
    }
    macro_rules! content_column {
        ($of:expr) => {
            Box::new(
                content.iter().map(|key| key.as_ref().map($of)).collect::<Vec<Option<String>>>(),
            )
        };
    }
    vec![
        column!(|l: &DeadLetter| l.id()),
        column!(|l: &DeadLetter| l.group.0.to_owned()),
        column!(|l: &DeadLetter| i32::from(l.record.partition.0)),
        column!(|l: &DeadLetter| l.record.offset.cast_signed()),
        column!(|l: &DeadLetter| l.record.key.clone()),
        column!(|l: &DeadLetter| l.record.version.packed().cast_signed()),
        column!(|l: &DeadLetter| l.record.at),
        column!(|l: &DeadLetter| without_nul(&l.record.cluster)),
        column!(|l: &DeadLetter| l.record.publisher_epoch.0.cast_signed()),
        column!(|l: &DeadLetter| l.record.payload.clone()),
        column!(headers),
        column!(|l: &DeadLetter| l.class.as_str().to_owned()),
        column!(|l: &DeadLetter| without_nul(&l.code)),
        column!(|l: &DeadLetter| without_nul(&l.message)),
        column!(|l: &DeadLetter| l.attempts.cast_signed()),
        column!(|l: &DeadLetter| l.first_failed_at),
        column!(|l: &DeadLetter| l.last_failed_at),
        content_column!(|key| key.tenant.as_str().to_owned()),
        content_column!(|key| key.content.content_type.as_str().to_owned()),
        content_column!(|key| key.content.content_id.as_str().to_owned()),
    ]
}
