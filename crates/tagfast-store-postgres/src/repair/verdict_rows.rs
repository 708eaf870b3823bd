//! Verdicts as the table `repair_log` has them, and their counts.
//!
//! How it fails: a verdict that a newer program wrote is none.

use tagfast_domain::UnixMillis;
use tagfast_store::failovers::VerdictCounts;
use tagfast_store::{LostReason, Verdict};

/// How long verdicts are remembered one by one.
pub(super) const VERDICTS_REMEMBERED_MS: UnixMillis = 7 * 24 * 3600 * 1000;

/// A recorded verdict; `None`: there is none, or a newer program wrote it.
pub(super) fn verdict_from_row(verdict: Option<&str>, reason: Option<&str>) -> Option<Verdict> {
    match (verdict?, reason) {
        ("kept", _) => Some(Verdict::Kept),
        ("repaired", reason) => {
            Some(Verdict::Repaired { is_superseded: reason == Some("superseded") })
        }
        ("lost", reason) => {
            let all =
                [LostReason::Unreported, LostReason::Limit, LostReason::Conflict, LostReason::Late];
            all.into_iter().find(|lost| reason == Some(lost.as_str())).map(Verdict::Lost)
        }
        _ => None,
    }
}

/// Adds counts.
pub(super) fn add_counts(to: &mut VerdictCounts, more: &VerdictCounts) {
    to.kept += more.kept;
    to.repaired += more.repaired;
    to.lost += more.lost;
    to.unknown += more.unknown;
}
