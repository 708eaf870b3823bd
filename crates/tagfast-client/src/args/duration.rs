//! Durations on the command line.

use std::time::Duration;

/// Parses `90`, `90s`, `1500ms`, `30m`, `12h`, `7d`; a bare number is in seconds.
///
/// # Errors
/// The text is not a duration; the error says how to write one.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, unit) = text.split_at(digits);
    let bad =
        || format!("{text:?} is not a duration; write for example 500ms, 90s, 30m, 12h or 7d");
    let number: f64 = number.parse().map_err(|_| bad())?;
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(bad()),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, ms) in
            [("90", 90_000), ("1500ms", 1500), ("0.5s", 500), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)));
        }
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        for bad in ["", "x", "5y", "-1s", "1e99d", "1.2.3s", "9999999999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
