//! Keeps words out that the glossary replaces: private ones, and those of other tools for what we
//! call primary and replica.
//!
//! Identifiers are split into their words first (`DeadLetterStore` is dead, letter, store). Old
//! data of tests, migrations and the tables below are exempt by file.

use anyhow::{Result, bail};

use crate::files::text_files;

/// A word that must not be used, and what is said instead.
const OLD_WORDS: &[(&str, &str)] = &[
    ("master", "primary"),
    ("slave", "replica"),
    ("follower", "replica"),
    ("reign", "leader term"),
    ("anew", "again, or the verb with re-"),
    ("dear", "expensive"),
    ("whoever", "the caller, the node that …"),
    ("somebody", "the actor's name"),
    ("nobody", "the actor's name"),
    ("traveller", "batch worker"),
    ("clerk", "replay worker"),
    ("desk", "leader session, publisher"),
    ("phantom", "diverged"),
    ("mood", "health"),
    ("patience", "timeout"),
    ("deaf", "out of sync"),
    ("flown", "shared result"),
    ("level1", "local cache (L1)"),
    ("intake", "ingest"),
    ("silences", "unresponsive servers"),
    ("anybody", "the actor's name"),
    ("everybody", "all callers, all nodes"),
    ("weather", "recheck, retry"),
    ("hasty", "a timeout by its subject"),
    ("troubled", "degraded"),
    ("lull", "idle time"),
    ("beaten", "last heartbeat"),
    ("frontier", "watermark"),
    ("board", "leaderboard"),
    ("shelf", "cache"),
    ("unhex", "hex::decode"),
];

/// Names of other libraries that contain such a word.
const FOREIGN_NAMES: &[&str] = &["PhantomData", "MasterDown"];

/// Phrases that must not be used.
const OLD_PHRASES: &[(&str, &str)] = &[
    ("the own ", "its own, their own"),
    ("leader database", "primary"),
    ("leader node", "primary"),
    ("database leader", "primary"),
];

/// Files that quote another tool, keep old data, or hold this list.
const EXEMPT: &[&str] = &[
    "xtask/src/check/words.rs",
    "docs/glossary.md",
    "CONTRIBUTING.md",
    // Migrations and their test: the names of older schema versions.
    "crates/tagfast-store-embedded/src/schema.rs",
    "crates/tagfast-store-embedded/tests/it/migrations.rs",
    // A tag of the sample data and its tests may be any word.
    "crates/tagfast-domain/src/content.rs",
    // Old names that are still read: columns, etcd JSON, configuration keys.
    "crates/tagfast-store-postgres/src/cluster/etcd/stored_epoch.rs",
    "crates/tagfast-store-postgres/tests/real/migration.rs",
    "crates/tagfast/src/config/renamed.rs",
    // How Redis and Patroni name roles.
    "crates/tagfast-testkit/src/sentinel.rs",
    "crates/tagfast-testkit/src/stack/patroni.rs",
    "crates/tagfast-testkit/src/stack/netns.rs",
    "crates/tagfast-redis/src/server_check.rs",
    "crates/tagfast-redis/src/discovery.rs",
    "crates/tagfast-redis/src/endpoint.rs",
    "docs/operate/runbooks/redis-lost.md",
];

pub(crate) fn check() -> Result<()> {
    let mut wrong = Vec::new();
    for file in text_files()? {
        // Old schemas, which migrations start from.
        if EXEMPT.contains(&file.path.as_str()) || file.path.ends_with(".sql") {
            continue;
        }
        let mut above = "";
        for (number, line) in file.text.lines().enumerate() {
            if let Some((word, instead)) = old_word(above, line) {
                wrong.push(format!("{}:{}: {word:?}: say {instead}", file.path, number + 1));
            }
            above = line;
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

/// The first word of a line that must not be used, and what is said instead. The line above may
/// end with the first half of a term.
fn old_word(above: &str, line: &str) -> Option<(String, &'static str)> {
    let lower = line.to_lowercase();
    if let Some((phrase, instead)) = OLD_PHRASES.iter().find(|(phrase, _)| lower.contains(phrase)) {
        return Some(((*phrase).to_owned(), instead));
    }
    let own_names = FOREIGN_NAMES.iter().fold(line.to_owned(), |line, name| line.replace(name, ""));
    let words = words(&own_names);
    for (at, word) in words.iter().enumerate() {
        let singular = word.strip_suffix('s').unwrap_or(word);
        if let Some((_, instead)) =
            OLD_WORDS.iter().find(|(old, _)| old == word || *old == singular)
        {
            return Some((word.clone(), instead));
        }
        // A letter is a character; a record that could not be applied is a dead letter.
        if singular == "letter" && !is_character(&words) {
            let is_dead = match at.checked_sub(1) {
                Some(before) => words[before] == "dead",
                None => self::words(above).last().is_some_and(|word| word == "dead"),
            };
            if !is_dead {
                return Some((word.clone(), "dead letter"));
            }
        }
    }
    None
}

/// Whether a line speaks of letters as characters.
fn is_character(words: &[String]) -> bool {
    const ABOUT_CHARACTERS: &[&str] =
        &["capital", "case", "digit", "digits", "character", "characters", "alphabet", "unicode"];
    words.iter().any(|word| ABOUT_CHARACTERS.contains(&word.as_str()))
}

/// The words of a line in small letters; identifiers are split at `_` and at capitals.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut previous = ' ';
    for c in line.chars() {
        let begins = c.is_uppercase() && previous.is_lowercase();
        if (begins || !c.is_alphanumeric()) && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        }
        previous = c;
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_split_into_words() {
        assert_eq!(
            words("fn has_dead(&DeadLetterStore)"),
            ["fn", "has", "dead", "dead", "letter", "store"]
        );
    }

    #[test]
    fn old_words_are_found_in_prose_and_identifiers() {
        for line in
            ["the masters", "let Reign = 1;", "LetterBook", "PATIENCE", "made anew", "level1.get()"]
        {
            assert!(old_word("", line).is_some(), "{line}");
        }
    }

    #[test]
    fn words_that_only_contain_one_are_not() {
        for line in [
            "mastery of leadership",
            "a dead letter",
            "dead_letters",
            "letters and digits",
            "deadline",
        ] {
            assert_eq!(old_word("", line), None, "{line}");
        }
        assert_eq!(old_word("/// a dead", "/// letter is parked"), None);
    }
}
