//! Wall time: RFC 3339 text in UTC with milliseconds, and the commit time of a document.
//!
//! Pure arithmetic on the proleptic Gregorian calendar; nothing here reads a clock.

use crate::{Document, RecentWrite, RecordedOutcome, UnixMillis};

/// 0001-01-01 to 9999-12-31 in Unix ms: the range that RFC 3339 can express.
const RFC3339_RANGE_MS: std::ops::RangeInclusive<i64> = -62_135_596_800_000..=253_402_300_799_999;

/// The commit time of a document's newest state, Unix ms: the time of the newest remembered write
/// that made a version, or of the newest tagging when none is remembered; 0 for a content never
/// written.
pub fn commit_time(document: &Document) -> UnixMillis {
    let newest_tagging = || document.taggings.iter().map(|t| t.at).max();
    let made = |w: &&RecentWrite| w.outcome == RecordedOutcome::Written;
    document.recent.iter().rev().find(made).map(|w| w.at).or_else(newest_tagging).unwrap_or(0)
}

/// `2026-01-31T23:59:59.123Z`. Times outside of years 1 to 9999 are clamped to that range.
pub fn rfc3339(at: UnixMillis) -> String {
    rfc3339_into(at, &mut [0; 24]).to_owned()
}

/// As [`rfc3339`], without an allocation: a response shows a time per tag.
pub fn rfc3339_into(at: UnixMillis, buffer: &mut [u8; 24]) -> &str {
    let at = at.clamp(*RFC3339_RANGE_MS.start(), *RFC3339_RANGE_MS.end());
    let (days, ms) = (at.div_euclid(86_400_000), at.rem_euclid(86_400_000));
    let (year, month, day) = civil(days);
    buffer.copy_from_slice(b"0000-00-00T00:00:00.000Z");
    let mut digits = |at: usize, width: usize, mut n: i64| {
        for i in (at..at + width).rev() {
            buffer[i] = b'0' + (n % 10) as u8;
            n /= 10;
        }
    };
    digits(0, 4, year);
    digits(5, 2, month);
    digits(8, 2, day);
    digits(11, 2, ms / 3_600_000);
    digits(14, 2, ms / 60_000 % 60);
    digits(17, 2, ms / 1000 % 60);
    digits(20, 3, ms % 1000);
    std::str::from_utf8(buffer).unwrap_or_default()
}

/// Parses RFC 3339 with `Z` or a numeric offset and any number of fraction digits (truncated to
/// ms). `None` when the text is malformed or out of range.
pub fn parse_rfc3339(text: &str) -> Option<UnixMillis> {
    let b = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = b.get(from..to)?;
        digits
            .iter()
            .try_fold(0i64, |n, d| d.is_ascii_digit().then(|| n * 10 + i64::from(d - b'0')))
    };
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if !separators.iter().all(|(i, c)| b.get(*i) == Some(c))
        || !matches!(b.get(10)?, b'T' | b't' | b' ')
    {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let in_range = (1..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !in_range {
        return None;
    }
    let mut rest = 19;
    let mut ms = 0;
    if b.get(rest) == Some(&b'.') {
        rest += 1;
        let start = rest;
        let mut scale = 100;
        while let Some(d) = b.get(rest).filter(|d| d.is_ascii_digit()) {
            ms += i64::from(d - b'0') * scale;
            scale /= 10;
            rest += 1;
        }
        if rest == start {
            return None;
        }
    }
    let offset_minutes = match b.get(rest)? {
        b'Z' | b'z' if b.len() == rest + 1 => 0,
        sign @ (b'+' | b'-') if b.len() == rest + 6 && b.get(rest + 3) == Some(&b':') => {
            let (h, m) = (number(rest + 1, rest + 3)?, number(rest + 4, rest + 6)?);
            if h >= 24 || m >= 60 {
                return None;
            }
            (h * 60 + m) * if *sign == b'+' { 1 } else { -1 }
        }
        _ => return None,
    };
    let seconds =
        days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset_minutes * 60;
    let at = seconds * 1000 + ms;
    RFC3339_RANGE_MS.contains(&at).then_some(at)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01. Years are counted from March, so that the leap day comes last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * shifted + 2) / 5 + 1, (shifted + 2) % 12 + 1);
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_times() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_123, "2000-02-29T00:00:00.123Z"),
            (1_704_067_200_000, "2024-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339(ms), text);
            assert_eq!(parse_rfc3339(text), Some(ms));
        }
        assert_eq!(rfc3339(i64::MAX), "9999-12-31T23:59:59.999Z");
        assert_eq!(rfc3339(i64::MIN), "0001-01-01T00:00:00.000Z");
    }

    #[test]
    fn the_commit_time_is_the_newest_write_else_the_newest_tagging() {
        let mut document = Document::default();
        assert_eq!(commit_time(&document), 0);
        let at = |at| crate::Tagging {
            name: crate::TagName::from_canonical(&format!("t{at}")),
            display: "t".into(),
            user: crate::UserId::from_stored("u"),
            at,
            decided_at: crate::Version::NONE,
            present: true,
        };
        document.taggings = vec![at(7), at(5)];
        assert_eq!(commit_time(&document), 7);
        let write = |at, outcome| RecentWrite {
            id: crate::WriteId([0; 16]),
            fingerprint: 0,
            version: crate::Version::NONE,
            at,
            effect: crate::Effect::default(),
            outcome,
        };
        document.recent.push(write(6, RecordedOutcome::Written));
        assert_eq!(commit_time(&document), 6);
        document.recent.push(write(9, RecordedOutcome::Unchanged));
        document.recent.push(write(9, RecordedOutcome::VersionMismatch));
        assert_eq!(commit_time(&document), 6, "a write that changed nothing is no commit");
    }

    #[test]
    fn offsets_fractions_and_nonsense() {
        for (text, ms) in [
            ("2024-01-01T01:30:00+01:30", 1_704_067_200_000),
            ("2024-01-01T02:00:00+02:00", 1_704_067_200_000),
            ("2024-01-01t00:00:00.1234567z", 1_704_067_200_123),
            ("2024-01-01 00:00:00Z", 1_704_067_200_000),
        ] {
            assert_eq!(parse_rfc3339(text), Some(ms), "{text}");
        }
        for bad in [
            "",
            "2024",
            "2024-01-01",
            "2024-02-30T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00+2:00",
            "2024-01-01T00:00:00Zx",
            "0000-12-31T00:00:00Z",
            "é024-01-01T00:00:00Z",
            "२०२४-01-01T00:00:00Z",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_day_of_four_centuries_round_trips() {
        for day in 0..146_097 {
            let ms = day * 86_400_000 + 1;
            assert_eq!(parse_rfc3339(&rfc3339(ms)), Some(ms));
        }
    }

    proptest! {
        #[test]
        fn every_time_is_read_back(ms in RFC3339_RANGE_MS) {
            prop_assert_eq!(parse_rfc3339(&rfc3339(ms)), Some(ms));
        }

        #[test]
        fn no_text_panics(s in "\\PC{0,40}|[0-9T:Z+.-]{0,40}") {
            let _ = parse_rfc3339(&s);
        }
    }
}
