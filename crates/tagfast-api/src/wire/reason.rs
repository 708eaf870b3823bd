//! The reason that an operator gives for an intervention; the log or the audit log keeps it.

use crate::problem::{Code, Problem};

/// Longest reason, in characters.
pub(crate) const REASON_CHARS_MAX: usize = 1000;

/// Refuses a reason that is blank or too long.
pub(crate) fn check_reason(reason: &str) -> Result<(), Problem> {
    if reason.trim().is_empty() {
        return Err(Problem::new(Code::Empty, "reason is empty: say why"));
    }
    let given = reason.chars().count();
    if given <= REASON_CHARS_MAX {
        return Ok(());
    }
    let detail = format!("reason has {given} characters; at most {REASON_CHARS_MAX} are allowed");
    Err(Problem::new(Code::TooLong, detail).limit(
        "reason_characters",
        REASON_CHARS_MAX as u64,
        given as u64,
    ))
}
