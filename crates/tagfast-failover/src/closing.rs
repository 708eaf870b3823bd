//! When the repair of an epoch is closed: from then on its verdicts are final.
//!
//! Every process that may hold a journal is registered, and reports when it has repaired what it
//! had. The repair is closed when all have reported, or after [`CLOSING_AFTER`]: an entry that
//! comes later is refused and listed, never applied, so that a verdict `lost` stays true.
//!
//! How it fails: a process that neither reports nor loses its registration delays the closing to
//! its limit, and the report names it. That no process is registered cannot be, because the one
//! that decides is: then nothing is known, and the closing waits for its limit, too.

use std::collections::BTreeSet;
use std::time::Duration;

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
