//! Notes beside an answer: its age, and the parts that it lacks.

use serde_json::Value;

use crate::terminal::Terminal;

/// An index age of decades, in milliseconds: the index has never been complete.
const NEVER_COMPLETE_MS: u64 = 20 * 365 * 86_400_000;

/// Writes what an answer lacks to stderr.
pub(super) fn note_gaps(answer: &Value, terminal: &Terminal) {
    if answer.pointer("/meta/stale").and_then(Value::as_bool) == Some(true) {
        let age = answer.pointer("/meta/age_ms").and_then(Value::as_u64).unwrap_or(0);
        if age >= NEVER_COMPLETE_MS {
            terminal.note(
                "incomplete: the server is still catching up with its store (see tagfast status)",
            );
        } else {
            terminal.note(format_args!("stale: the answer is {:.0} s old", age as f64 / 1000.0));
        }
    }
    for degraded in answer.pointer("/meta/degraded").and_then(Value::as_array).into_iter().flatten()
    {
        let text = |name: &str| degraded.get(name).and_then(Value::as_str).unwrap_or("?");
        terminal.note(format_args!("degraded: {} ({})", text("feature"), text("reason")));
    }
}

/// Whether the answer lacks its main part because the server sheds optional features.
pub(super) fn is_left_out(answer: &Value) -> bool {
    let degraded = answer.pointer("/meta/degraded").and_then(Value::as_array);
    degraded
        .into_iter()
        .flatten()
        .any(|d| d.get("reason").and_then(Value::as_str) == Some("features_limited"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_left_out_differs_from_an_empty_one() {
        let with = |reason: &str| {
            serde_json::json!({
                "tags": [], "meta": {"degraded": [{"feature": "popular", "reason": reason}]},
            })
        };
        assert!(is_left_out(&with("features_limited")) && !is_left_out(&with("approximate")));
        let (terminal, captured) = Terminal::memory(false);
        note_gaps(&with("features_limited"), &terminal);
        assert_eq!(captured.err(), "degraded: popular (features_limited)\n");
    }
}
