//! RFC 3339 times in UTC with milliseconds, written and read without a date library: the API has one format.

use serde::{Serialize, Serializer};
use tagfast_domain::UnixMillis;

const DAY_MS: i64 = 86_400_000;
/// 0000-01-01 and 9999-12-31T23:59:59.999: what four digits of a year can say.
const FIRST: i64 = -62_167_219_200_000;
const LAST: i64 = 253_402_300_799_999;

/// A time as answers show it: `2026-01-31T12:00:00.000Z`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp(pub(crate) UnixMillis);

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut buffer = [0; 24];
        serializer.serialize_str(format(self.0, &mut buffer))
    }
}

/// Writes a time; one outside the years 0 to 9999 is shown as the nearest of them.
pub(crate) fn format(ms: UnixMillis, buffer: &mut [u8; 24]) -> &str {
    let ms = ms.clamp(FIRST, LAST);
    let (year, month, day) = civil(ms.div_euclid(DAY_MS));
    let rest = ms.rem_euclid(DAY_MS);
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
    digits(11, 2, rest / 3_600_000);
    digits(14, 2, rest / 60_000 % 60);
    digits(17, 2, rest / 1000 % 60);
    digits(20, 3, rest % 1000);
    std::str::from_utf8(buffer).unwrap_or_default()
}

/// Reads an RFC 3339 time; fractions beyond milliseconds are cut off. `None` if it is not one.
pub(crate) fn parse(text: &str) -> Option<UnixMillis> {
    let b = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = b.get(from..to)?;
        digits.iter().try_fold(0, |n, d| d.is_ascii_digit().then(|| n * 10 + i64::from(d - b'0')))
    };
    let is = |at: usize, c: u8| b.get(at).is_some_and(|x| x.eq_ignore_ascii_case(&c));
    let separators = is(4, b'-') && is(7, b'-') && (is(10, b'T') || is(10, b' ')) && is(13, b':') && is(16, b':');
    if !separators {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let valid = (1..=12).contains(&month)
        && (1..=days_of(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        // A leap second is taken as the second after it.
        && second <= 60;
    if !valid {
        return None;
    }
    let mut at = 19;
    let mut millis = 0;
    if is(at, b'.') {
        let end = at + 1 + b[at + 1..].iter().take_while(|c| c.is_ascii_digit()).count();
        if end == at + 1 {
            return None;
        }
        millis = (0..3).fold(0, |n, i| n * 10 + b[at + 1..end].get(i).map_or(0, |d| i64::from(d - b'0')));
        at = end;
    }
    let offset = if is(at, b'Z') && b.len() == at + 1 {
        0
    } else {
        let sign = match b.get(at)? {
            b'+' => 1,
            b'-' => -1,
            _ => return None,
        };
        let (hours, minutes) = (number(at + 1, at + 3)?, number(at + 4, at + 6)?);
        if !is(at + 3, b':') || b.len() != at + 6 || hours > 23 || minutes > 59 {
            return None;
        }
        sign * (hours * 60 + minutes)
    };
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset * 60;
    Some(seconds * 1000 + millis)
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a date of the Gregorian calendar; years begin in March so that leap days come last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of [`days`].
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(ms: i64) -> String {
        format(ms, &mut [0; 24]).to_owned()
    }

    #[test]
    fn known_times() {
        for (ms, expect) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_704_067_200_123, "2024-01-01T00:00:00.123Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
            (i64::MIN, "0000-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(text(ms), expect);
        }
    }

    #[test]
    fn offsets_fractions_and_nonsense() {
        assert_eq!(parse("2024-01-01T02:00:00+02:00"), Some(1_704_067_200_000));
        assert_eq!(parse("2024-01-01t00:00:00.1234567z"), Some(1_704_067_200_123));
        assert_eq!(parse("2024-01-01 00:00:00Z"), Some(1_704_067_200_000));
        for bad in [
            "",
            "2024",
            "2024-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00+2:00",
            "2024-01-01T00:00:00Zx",
            "२०२४-01-01T00:00:00Z",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_time_is_read_back(ms in FIRST..=LAST) {
            prop_assert_eq!(parse(&text(ms)), Some(ms));
        }

        #[test]
        fn no_text_panics(s in "\\PC{0,40}|[0-9T:Z+.-]{0,40}") {
            let _ = parse(&s);
        }
    }
}
