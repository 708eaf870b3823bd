//! Verdicts as the table `repair_log` has them, and their counts.
//!
//! How it fails: a verdict that a newer program wrote is none.

use tagfast_domain::UnixMillis;
use tagfast_store::failovers::VerdictCounts;
use tagfast_store::{LostReason, Verdict};

/// How long verdicts are remembered one by one.
pub(super) const VERDICTS_REMEMBERED_MS: UnixMillis = 7 * 24 * 3600 * 1000;

/// The reason of a write that its event brought back.
const EVENT: &str = "event";
/// The same, when later writes had decided everything that it decided.
const EVENT_SUPERSEDED: &str = "event_superseded";
/// The reasons of the writes that their events brought back.
pub(super) const BY_EVENT_REASONS: [&str; 2] = [EVENT, EVENT_SUPERSEDED];

/// The reason of a verdict as the table has it.
pub(super) fn stored_reason(verdict: Verdict) -> Option<&'static str> {
    match verdict {
        Verdict::Repaired { is_superseded: true, by_event: true } => Some(EVENT_SUPERSEDED),
        Verdict::Kept | Verdict::Repaired { .. } | Verdict::Lost(_) | Verdict::Unknown(_) => {
            verdict.reason()
        }
    }
}

/// A recorded verdict; `None`: there is none, or a newer program wrote it.
pub(super) fn verdict_from_row(verdict: Option<&str>, reason: Option<&str>) -> Option<Verdict> {
    match (verdict?, reason) {
        ("kept", _) => Some(Verdict::Kept),
        ("repaired", reason) => Some(Verdict::Repaired {
            is_superseded: matches!(reason, Some("superseded" | EVENT_SUPERSEDED)),
            by_event: matches!(reason, Some(EVENT | EVENT_SUPERSEDED)),
        }),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_read() {
        let repaired = |is_superseded, by_event| Verdict::Repaired { is_superseded, by_event };
        for (verdict, reason) in [
            (Verdict::Kept, None),
            (repaired(false, false), None),
            (repaired(true, false), Some("superseded")),
            (repaired(false, true), Some("event")),
            (repaired(true, true), Some("event_superseded")),
            (Verdict::Lost(LostReason::Limit), Some("limit")),
        ] {
            assert_eq!(stored_reason(verdict), reason);
            assert_eq!(verdict_from_row(Some(verdict.as_str()), reason), Some(verdict));
        }
        assert_eq!(verdict_from_row(Some("a newer one"), None), None);
    }
}
