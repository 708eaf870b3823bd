//! When the repair of an epoch is closed: from then on its verdicts are final.
//!
//! Every process that may hold a journal is registered, and reports when it has repaired what it
//! had. The repair is closed when all have reported, or after [`CLOSING_AFTER`]: an entry that
//! comes later is refused and listed, never applied, so that a verdict `lost` stays true.
//!
//! A failover that another one follows before its repair is closed ends with the repair of the
//! later one, which repairs what all earlier epochs had acknowledged: it is *superseded*.
//!
//! How it fails: a process that neither reports nor loses its registration delays the closing to
//! its limit, and the report names it. That no process is registered cannot be, because the one
//! that decides is: then nothing is known, and the closing waits for its limit, too.

use std::collections::BTreeSet;
use std::time::Duration;

use tagfast_domain::EpochOrdinal;

use crate::epoch::EpochRecord;

/// The repair is closed at the latest this long after its epoch was minted.
pub const CLOSING_AFTER: Duration = Duration::from_secs(60);

/// Whether the repair of an epoch can be closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closing {
    /// It can; these processes have not reported.
    Close(BTreeSet<String>),
    /// Not yet: these processes have not reported.
    WaitFor(BTreeSet<String>),
}

/// Decides about the closing of an epoch. `registered`: the processes that may hold a journal;
/// `reported`: those whose repair of this epoch has ended.
pub fn closing(
    registered: &BTreeSet<String>,
    reported: &BTreeSet<String>,
    epoch_age: Duration,
) -> Closing {
    let missing: BTreeSet<String> = registered.difference(reported).cloned().collect();
    let have_all_reported = missing.is_empty() && !registered.is_empty();
    if have_all_reported || epoch_age >= CLOSING_AFTER {
        Closing::Close(missing)
    } else {
        Closing::WaitFor(missing)
    }
}

/// The failovers that end with the repair of this epoch, the earliest first: earlier ones whose own
/// repair was not closed. `closed`: the epochs whose repairs are.
pub fn superseded<'a>(
    history: &'a [EpochRecord],
    epoch: EpochOrdinal,
    closed: &BTreeSet<EpochOrdinal>,
) -> Vec<&'a EpochRecord> {
    // The first epoch of a cluster replaced no primary.
    let is_open = |other: &&EpochRecord| {
        other.ordinal < epoch && other.parent_id.is_some() && !closed.contains(&other.ordinal)
    };
    let mut open: Vec<&EpochRecord> = history.iter().filter(is_open).collect();
    open.sort_by_key(|other| other.ordinal);
    open
}
