//! The horizon of an outbox: every transaction of this database with a smaller id has ended.
//!
//! PostgreSQL gives transaction ids out for the whole instance, so the xmin of a snapshot stands
//! still for a transaction of any database. A transaction of a different database never writes
//! here, though. The horizon is therefore the oldest running transaction that is not proven to be
//! of a different database, or the snapshot's xmax where there is none.
//!
//! The proof of "different": a snapshot shows the transaction as running, and a statement that
//! begins later finds the id in `pg_stat_activity` or `pg_prepared_xacts` beside a different
//! database. A session never changes its database, and a transaction that is prepared keeps the
//! database of its session. The order matters: `pg_stat_activity` reads the database of a session
//! first and the transaction id later, so that a session that begins in between can be shown with
//! the database of the one that ended. An id that was running before the statement began cannot
//! belong to such a session. Ids of subtransactions need no proof: an outbox row has the id of the
//! outermost transaction, and so has a snapshot.
//!
//! `pg_stat_activity` shows the lower 32 bits of an id. Two running transactions never have the
//! same ones: PostgreSQL stops giving out ids before the oldest running one is 2^31 behind.
//!
//! The horizon never moves back while a tracker lives: what is proven stays proven, and a
//! transaction that begins after a snapshot has an id of at least the snapshot's xmax.
//!
//! How it fails: towards "not proven". A transaction that no session shows (it has just ended, or
//! the role lacks `pg_monitor`) holds the horizon back like one of this database. A tracker must
//! not outlive its connection: ids may be given out again after a crash or a failover.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

/// How long the same transaction holds the horizon before the sessions are checked: most
/// transactions end sooner.
const SESSION_CHECK_DELAY: Duration = Duration::from_millis(100);
/// Between two checks while the same transaction holds the horizon.
const SESSION_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The lower 32 bits of the ids of running transactions of other databases.
pub(crate) const SELECT_FOREIGN: &str = "
SELECT backend_xid::text::bigint FROM pg_stat_activity
WHERE backend_xid IS NOT NULL
  AND datid <> (SELECT oid FROM pg_database WHERE datname = current_database())
UNION ALL
SELECT transaction::text::bigint FROM pg_prepared_xacts WHERE database <> current_database()";

/// A snapshot of PostgreSQL, as the text of a `pg_snapshot` says it: `xmin:xmax:xip,xip`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// No transaction from this one on had ended.
    pub(crate) xmax: u64,
    /// The transactions below `xmax` that were running, sorted.
    pub(crate) running: Vec<u64>,
}

impl Snapshot {
    /// Reads the text; `None`: it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let (xmin, xmax, running) = (parts.next()?, parts.next()?, parts.next()?);
        let _: u64 = xmin.parse().ok()?;
        let ids = running.split(',').filter(|id| !id.is_empty());
        let mut running: Vec<u64> = ids.map(|id| id.parse().ok()).collect::<Option<_>>()?;
        running.sort_unstable();
        parts.next().is_none().then_some(Self { xmax: xmax.parse().ok()?, running })
    }
}

/// The transaction that holds the horizon back.
#[derive(Debug, Clone, Copy)]
struct Holder {
    xid: u64,
    since: Instant,
    /// When the sessions were checked last; `None`: not since this one holds.
    checked_at: Option<Instant>,
}

/// Follows the horizon on one connection.
#[derive(Debug, Default)]
pub(crate) struct HorizonTracker {
    /// The newest snapshot; `None`: there was none yet.
    snapshot: Option<Snapshot>,
    /// Those of its running transactions that are proven to be of a different database.
    foreign: BTreeSet<u64>,
    holder: Option<Holder>,
}

impl HorizonTracker {
    /// Takes a snapshot; returns the horizon. `now` is when the snapshot has arrived.
    pub(crate) fn observe(&mut self, snapshot: Snapshot, now: Instant) -> u64 {
        // An id that has ended never runs again.
        self.foreign.retain(|xid| snapshot.running.binary_search(xid).is_ok());
        self.snapshot = Some(snapshot);
        self.update_holder(now);
        self.horizon()
    }

    /// Whether the sessions should be checked, with [`SELECT_FOREIGN`].
    pub(crate) fn session_check_is_due(&mut self, now: Instant) -> bool {
        let Some(holder) = &mut self.holder else { return false };
        let due = match holder.checked_at {
            None => now.duration_since(holder.since) >= SESSION_CHECK_DELAY,
            Some(at) => now.duration_since(at) >= SESSION_CHECK_INTERVAL,
        };
        if due {
            holder.checked_at = Some(now);
        }
        due
    }

    /// Takes what a check has found. The statement must have begun after the newest snapshot was
    /// taken. Returns the horizon.
    pub(crate) fn prove(&mut self, shown: impl IntoIterator<Item = u32>, now: Instant) -> u64 {
        let shown: BTreeSet<u32> = shown.into_iter().collect();
        let running = self.snapshot.iter().flat_map(|snapshot| &snapshot.running);
        self.foreign.extend(running.filter(|xid| shown.contains(&lower_bits(**xid))));
        self.update_holder(now);
        self.horizon()
    }

    /// The oldest running transaction that is not proven to be of a different database.
    fn oldest(&self) -> Option<u64> {
        let running = &self.snapshot.as_ref()?.running;
        running.iter().copied().find(|xid| !self.foreign.contains(xid))
    }

    fn horizon(&self) -> u64 {
        self.oldest().or_else(|| Some(self.snapshot.as_ref()?.xmax)).unwrap_or(0)
    }

    fn update_holder(&mut self, now: Instant) {
        let oldest = self.oldest();
        if self.holder.map(|holder| holder.xid) != oldest {
            self.holder = oldest.map(|xid| Holder { xid, since: now, checked_at: None });
        }
    }
}

/// The part of an id that the view of sessions shows.
pub(crate) fn lower_bits(xid: u64) -> u32 {
    (xid & u64::from(u32::MAX)) as u32
}
