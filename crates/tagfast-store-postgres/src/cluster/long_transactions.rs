//! Who holds the relay: long transactions of this database that have a transaction id.
//!
//! The relay publishes what is below the oldest running transaction of this database
//! ([`horizon`](crate::outbox::horizon)), because only the end of a transaction shows what it
//! wrote. One that a foreign tool leaves open therefore stops search, popular tags and the emptying
//! of the outbox. Nothing can be done about it here but to name it, in every process, a moment
//! after it began. Transactions of other databases, and those that only read, hold nothing.
//!
//! How it fails: without `pg_monitor` the sessions of other roles show no transaction id; preflight
//! warns of that. A transaction whose begin is not shown (`track_activities` is off) is named
//! without its age.

use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_postgres::Row;

use crate::connect::{Connection, PgError, within};
use crate::options::limit;

/// Running transactions with an id that are not of a different database, older than `$1` ms, the
/// oldest first. The snapshot decides which of them the relay waits for: VACUUM is in none.
const SELECT_LONG_TRANSACTIONS: &str = "
WITH s AS MATERIALIZED (
    SELECT x::text::bigint & 4294967295 AS xid FROM pg_snapshot_xip(pg_current_snapshot()) x)
SELECT a.pid, NULL::text, a.datname::text, a.usename::text, a.application_name, a.state,
       (extract(epoch FROM clock_timestamp() - a.xact_start) * 1000)::bigint AS age
FROM s JOIN pg_stat_activity a ON a.backend_xid::text::bigint = s.xid
WHERE (a.datname <> current_database()) IS NOT TRUE
  AND (a.xact_start > clock_timestamp() - $1::bigint * interval '1 ms') IS NOT TRUE
UNION ALL
SELECT NULL, p.gid, p.database::text, p.owner::text, '', 'prepared',
       (extract(epoch FROM clock_timestamp() - p.prepared) * 1000)::bigint
FROM s JOIN pg_prepared_xacts p ON p.transaction::text::bigint = s.xid
WHERE p.database = current_database()
  AND p.prepared < clock_timestamp() - $1::bigint * interval '1 ms'
ORDER BY age DESC NULLS LAST LIMIT 3";

/// A transaction that is older than this is named. Shorter: our own slow commits would be named;
/// longer: search is old for that long without a reason.
const NAMED_AFTER: Duration = Duration::from_secs(2);

/// What to end to let the relay go on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Handle {
    /// A session, by the id of its process.
    Session(i32),
    /// A prepared transaction, by its identifier.
    Prepared(String),
}

/// A long transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LongTransaction {
    handle: Handle,
    /// `None`: the session belongs to none.
    database: Option<String>,
    /// `None`: the session belongs to none.
    user: Option<String>,
    application: String,
    /// As `pg_stat_activity` says it; `None`: not shown.
    state: Option<String>,
    /// `None`: not shown.
    pub(crate) age: Option<Duration>,
}

impl LongTransaction {
    fn of(row: &Row) -> Option<Self> {
        let handle = match (row.get::<_, Option<i32>>(0), row.get::<_, Option<String>>(1)) {
            (Some(pid), _) => Handle::Session(pid),
            (None, gid) => Handle::Prepared(gid?),
        };
        let age: Option<i64> = row.get(6);
        Some(Self {
            handle,
            database: row.get(2),
            user: row.get(3),
            application: row.get::<_, Option<String>>(4).unwrap_or_default(),
            state: row.get(5),
            age: age.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0))),
        })
    }
}

impl fmt::Display for LongTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
        match &self.handle {
            Handle::Session(pid) => write!(f, "the transaction of pid {pid} (")?,
            Handle::Prepared(gid) => write!(f, "the prepared transaction {gid:?} (")?,
        }
        write!(f, "database {}, user {}", or_none(&self.database), or_none(&self.user))?;
        if !self.application.is_empty() {
            write!(f, ", application {:?}", self.application)?;
        }
        if let (Handle::Session(_), Some(state)) = (&self.handle, &self.state) {
            write!(f, ", {state}")?;
        }
        match self.age {
            Some(age) => write!(f, ") has been open for {} s", age.as_secs())?,
            None => write!(f, ") is open, its age is not shown")?,
        }
        f.write_str(
            ": what was written since it began reaches search and popular tags when it ends; ",
        )?;
        match &self.handle {
            Handle::Session(pid) => write!(f, "end it, or SELECT pg_terminate_backend({pid})"),
            Handle::Prepared(gid) => {
                write!(f, "COMMIT PREPARED or ROLLBACK PREPARED {gid:?} in its database")
            }
        }
    }
}

/// Those of a cluster, as of the last poll of its primary.
#[derive(Debug, Default)]
pub(crate) struct LongTransactions(Mutex<Vec<LongTransaction>>);

impl LongTransactions {
    /// The oldest ones, at most three, each a sentence.
    pub(crate) fn texts(&self) -> Vec<String> {
        self.0.lock().iter().map(ToString::to_string).collect()
    }

    /// Replaces them; logs when one begins to hold the relay and when none does any more. Returns
    /// the age of the oldest one, zero without any.
    fn update(&self, cluster: &str, found: Vec<LongTransaction>) -> Duration {
        let mut known = self.0.lock();
        for transaction in &found {
            if !known.iter().any(|of| of.handle == transaction.handle) {
                tracing::warn!(cluster, %transaction, "a long transaction holds the relay");
            }
        }
        if found.is_empty() && !known.is_empty() {
            tracing::info!(cluster, "no long transaction holds the relay any more");
        }
        *known = found;
        known.iter().filter_map(|transaction| transaction.age).max().unwrap_or_default()
    }

    /// Reads them from the primary. Returns the age of the oldest one, zero without any.
    pub(crate) async fn poll(
        &self,
        cluster: &str,
        server: &Connection,
    ) -> Result<Duration, PgError> {
        let named_after = i64::try_from(NAMED_AFTER.as_millis()).unwrap_or(i64::MAX);
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&named_after];
        let rows = server.client.query(SELECT_LONG_TRANSACTIONS, &parameters);
        let rows = within("looking for long transactions", limit::READ_TIMEOUT, rows).await?;
        Ok(self.update(cluster, rows.iter().filter_map(LongTransaction::of).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> LongTransaction {
        LongTransaction {
            handle: Handle::Session(4711),
            database: Some("tagfast".to_owned()),
            user: Some("alice".to_owned()),
            application: "psql".to_owned(),
            state: Some("idle in transaction".to_owned()),
            age: Some(Duration::from_millis(12_900)),
        }
    }

    #[test]
    fn a_long_transaction_is_named_with_what_ends_it() {
        assert_eq!(
            session().to_string(),
            "the transaction of pid 4711 (database tagfast, user alice, application \"psql\", idle \
             in transaction) has been open for 12 s: what was written since it began reaches \
             search and popular tags when it ends; end it, or SELECT pg_terminate_backend(4711)"
        );
        let prepared = LongTransaction {
            handle: Handle::Prepared("left over".to_owned()),
            application: String::new(),
            age: None,
            ..session()
        };
        assert_eq!(
            prepared.to_string(),
            "the prepared transaction \"left over\" (database tagfast, user alice) is open, its \
             age is not shown: what was written since it began reaches search and popular tags \
             when it ends; COMMIT PREPARED or ROLLBACK PREPARED \"left over\" in its database"
        );
    }

    #[test]
    fn the_oldest_one_gives_the_age() {
        let known = LongTransactions::default();
        assert_eq!(known.update("c0", Vec::new()), Duration::ZERO);
        let older = LongTransaction { age: Some(Duration::from_secs(90)), ..session() };
        assert_eq!(known.update("c0", vec![session(), older]), Duration::from_secs(90));
        assert_eq!(known.texts().len(), 2);
        assert_eq!(known.update("c0", Vec::new()), Duration::ZERO);
        assert_eq!(known.texts(), Vec::<String>::new());
    }
}
