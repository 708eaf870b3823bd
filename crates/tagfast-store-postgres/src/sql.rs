//! SQL that more than one subsystem sends.
//!
//! The epoch check is the protocol's most critical statement: whatever writes, reads for a rebuild
//! or publishes runs it in the same transaction or snapshot, so that a replaced primary is refused
//! by its own data. It divides by zero unless the newest `epoch` row and the timeline that is
//! written are those of the expected epoch: error 22012 ([`EPOCH_ENDED`]), and nothing is written.

use tagfast_domain::{EpochId, EpochOrdinal};
use tagfast_failover::{ConnectionFacts, EpochRow};
use tokio_postgres::Row;

/// SQLSTATE of a failed epoch check: division by zero.
pub(crate) const EPOCH_ENDED: &str = "22012";

/// The timeline that a primary writes; an error on a server in recovery.
macro_rules! current_timeline {
    () => {
        "('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int"
    };
}

/// The newest row of the `epoch` table, as a subquery.
macro_rules! newest_epoch {
    () => {
        "(SELECT id, ordinal, timeline FROM epoch ORDER BY ordinal DESC LIMIT 1)"
    };
}

/// `FROM` and `WHERE` of the epoch check; the epoch's id is the parameter.
macro_rules! epoch_matches {
    ($id:literal) => {
        concat!(
            "FROM ",
            crate::sql::newest_epoch!(),
            " e WHERE e.id = ",
            $id,
            " AND e.timeline = ",
            crate::sql::current_timeline!()
        )
    };
}

/// An expression that is 1 on the primary of the epoch with this id, and error 22012 elsewhere.
macro_rules! epoch_check {
    ($id:literal) => {
        concat!("(SELECT 1 / (count(*))::int ", crate::sql::epoch_matches!($id), ")")
    };
}

pub(crate) use {current_timeline, epoch_check, epoch_matches, newest_epoch};

/// The epoch check as a statement of its own; `$1` is the epoch's id.
pub(crate) const EPOCH_CHECK: &str = concat!("SELECT ", epoch_check!("$1"));

/// The epoch check together with its snapshot, as text; `$1` is the epoch's id.
pub(crate) const EPOCH_CHECK_WITH_SNAPSHOT: &str =
    concat!("SELECT 1 / (count(*))::int, pg_current_snapshot()::text ", epoch_matches!("$1"));

/// The log position up to which everything is flushed to the primary's disk.
pub(crate) const FLUSH_LSN: &str = "SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint";

/// Whether a server is in recovery, the timeline it writes (0 in recovery), its newest epoch, and
/// the log position up to which everything is flushed (`NULL` in recovery).
pub(crate) const PRIMARY_FACTS: &str = concat!(
    "SELECT r.recovery, CASE WHEN r.recovery THEN 0 ELSE ",
    current_timeline!(),
    " END, e.id, e.ordinal, e.timeline,
       CASE WHEN NOT r.recovery THEN (pg_current_wal_flush_lsn() - '0/0')::bigint END
FROM (SELECT pg_is_in_recovery() AS recovery) r
LEFT JOIN LATERAL ",
    newest_epoch!(),
    " e ON true"
);

/// The facts in a row of [`PRIMARY_FACTS`].
pub(crate) fn connection_facts(row: &Row) -> ConnectionFacts {
    let id: Option<Vec<u8>> = row.get(2);
    let newest_row = id.and_then(|id| id.try_into().ok()).map(|id| EpochRow {
        id: EpochId(id),
        ordinal: EpochOrdinal(row.get::<_, i64>(3).unsigned_abs()),
        timeline: row.get::<_, i32>(4).unsigned_abs(),
    });
    ConnectionFacts {
        in_recovery: row.get(0),
        timeline: row.get::<_, i32>(1).cast_unsigned(),
        newest_row,
    }
}

/// The flushed position in a row of [`PRIMARY_FACTS`]; `None`: the server is in recovery.
pub(crate) fn flush_position(row: &Row) -> Option<u64> {
    row.get::<_, Option<i64>>(5).map(i64::cast_unsigned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_check_compares_id_and_timeline_and_divides_by_what_it_found() {
        assert_eq!(
            EPOCH_CHECK,
            "SELECT (SELECT 1 / (count(*))::int FROM (SELECT id, ordinal, timeline FROM epoch \
             ORDER BY ordinal DESC LIMIT 1) e WHERE e.id = $1 AND e.timeline = \
             ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int)"
        );
        assert!(EPOCH_CHECK_WITH_SNAPSHOT.ends_with(epoch_matches!("$1")));
    }
}
