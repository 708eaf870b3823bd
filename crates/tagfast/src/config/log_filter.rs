//! The filter of `log.level`: one level for everything, and levels for parts of the program.
//!
//! How it fails: a word that is no level is refused with the level that was probably meant. The
//! filter's library would take it for the name of a part, and switch everything else off.

use super::values::{nearest, use_one_of};

/// The levels, the quietest first.
const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];
/// The level of what a filter does not name.
const DEFAULT_LEVEL: &str = "info";
/// The parts of the program by which its logs can be told apart.
const PARTS: &[&str] = &[
    "tagfast",
    "tagfast_api",
    "tagfast_cache",
    "tagfast_client",
    "tagfast_domain",
    "tagfast_events",
    "tagfast_events_kafka",
    "tagfast_failover",
    "tagfast_json",
    "tagfast_popular",
    "tagfast_popular_counts",
    "tagfast_redis",
    "tagfast_resilience",
    "tagfast_search",
    "tagfast_search_opensearch",
    "tagfast_search_tantivy",
    "tagfast_sharding",
    "tagfast_store",
    "tagfast_store_embedded",
    "tagfast_store_postgres",
];

/// Why a filter is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum LogFilterError {
    /// Nothing stands before, after or between commas.
    #[error("there is nothing between two commas, or at an end")]
    Empty,
    /// A word that is no level.
    #[error("{word:?} is no level; {}", use_one_of(.word, LEVELS))]
    Level {
        /// The word.
        word: String,
    },
    /// Two levels for everything.
    #[error("it has two levels for everything, {first:?} and {second:?}")]
    TwoLevels {
        /// The first of them.
        first: String,
        /// The second.
        second: String,
    },
    /// A part that the program does not have.
    #[error("there is no part {part:?}; did you mean {near:?}?")]
    Part {
        /// The name.
        part: String,
        /// The part that was probably meant.
        near: &'static str,
    },
    /// A name that cannot be one.
    #[error("{0:?} is no name of a part; write PART=LEVEL, for example tagfast_api=debug")]
    Name(String),
}

/// A filter in which everything has a level: `LEVEL` or `PART=LEVEL`, separated by commas.
pub(super) fn checked(text: &str) -> Result<String, LogFilterError> {
    let mut general: Option<&'static str> = None;
    let mut parts = Vec::new();
    for item in text.split(',').map(str::trim) {
        if item.is_empty() {
            return Err(LogFilterError::Empty);
        }
        let Some((part, word)) = item.split_once('=') else {
            let level = level(item)?;
            if let Some(first) = general {
                let (first, second) = (first.to_owned(), item.to_owned());
                return Err(LogFilterError::TwoLevels { first, second });
            }
            general = Some(level);
            continue;
        };
        let (part, level) = (part.trim(), level(word)?);
        check_part(part)?;
        parts.push(format!("{part}={level}"));
    }
    let general = general.unwrap_or(DEFAULT_LEVEL).to_owned();
    Ok(std::iter::once(general).chain(parts).collect::<Vec<_>>().join(","))
}

fn level(word: &str) -> Result<&'static str, LogFilterError> {
    let word = word.trim();
    let known = LEVELS.iter().find(|level| level.eq_ignore_ascii_case(word));
    known.copied().ok_or_else(|| LogFilterError::Level { word: word.to_owned() })
}

/// A part of ours must exist; of libraries all names are possible.
fn check_part(part: &str) -> Result<(), LogFilterError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-');
    if part.is_empty() || !part.chars().all(plain) {
        return Err(LogFilterError::Name(part.to_owned()));
    }
    let root = part.split("::").next().unwrap_or_default();
    if PARTS.contains(&root) {
        return Ok(());
    }
    let close = |near: &&str| strsim::jaro_winkler(root, near) > 0.9;
    match nearest(root, PARTS.iter().copied()).filter(close) {
        Some(near) => Err(LogFilterError::Part { part: part.to_owned(), near }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::EnvFilter;

    use super::*;

    #[test]
    fn a_filter_gives_everything_a_level() {
        for (text, filter) in [
            ("info", "info"),
            ("WARN", "warn"),
            ("off", "off"),
            ("tagfast_api=debug", "info,tagfast_api=debug"),
            ("tagfast_api=debug, error", "error,tagfast_api=debug"),
            ("warn,hyper=trace,tagfast::serve=debug", "warn,hyper=trace,tagfast::serve=debug"),
        ] {
            assert_eq!(checked(text).as_deref(), Ok(filter), "{text}");
            EnvFilter::try_new(filter).unwrap();
        }
    }

    #[test]
    fn every_slip_is_refused_with_what_was_meant() {
        for (text, words) in [
            ("warning", "did you mean \"warn\"?"),
            ("inf", "did you mean \"info\"?"),
            ("", "nothing between"),
            ("info,", "nothing between"),
            (",", "nothing between"),
            ("info,,warn", "nothing between"),
            ("info debug", "no level"),
            ("info,debug", "two levels"),
            ("verbose", "use \"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\""),
            ("info,tagfast_api=debgu", "did you mean \"debug\"?"),
            ("info,tagfast_api=", "no level"),
            ("info,tagfats_api=debug", "did you mean \"tagfast_api\"?"),
            ("info,tagfast_store_postgre=debug", "did you mean \"tagfast_store_postgres\"?"),
            ("info,=debug", "write PART=LEVEL"),
            ("info,tagfast_api[span]=debug", "write PART=LEVEL"),
            ("3", "no level"),
        ] {
            let error = checked(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn every_change_of_one_character_of_a_level_is_refused() {
        for level in LEVELS {
            for at in 0..level.len() {
                for character in 'a'..='z' {
                    let mut slip = (*level).to_owned();
                    slip.replace_range(at..=at, character.encode_utf8(&mut [0; 4]));
                    let removed = format!("{}{}", &level[..at], &level[at + 1..]);
                    let added = format!("{}{character}{}", &level[..at], &level[at..]);
                    for slip in [slip, removed, added] {
                        let known = LEVELS.contains(&slip.as_str());
                        assert_eq!(checked(&slip).is_ok(), known, "{slip}");
                        assert_eq!(checked(&format!("hyper={slip}")).is_ok(), known, "{slip}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_parts_are_the_crates_of_the_program() {
        let crates = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let names = std::fs::read_dir(crates)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().replace('-', "_"));
        let mut names: Vec<String> = names.filter(|name| name != "tagfast_testkit").collect();
        names.sort();
        assert_eq!(names, PARTS);
    }
}
