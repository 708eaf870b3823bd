//! The values that file, environment and flags set, and their typed reading by the keys.
//!
//! A value outside its key's range is reported and read as the default, so that one pass over all
//! keys finds every fault.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::key::{ChoiceKey, FlagKey, FractionKey, Key, Kind, ListKey, NumberKey, TextKey};
use super::keys::{KEYS, suggest};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The table of keys.
    Default,
    /// The configuration file.
    File,
    /// This environment variable.
    Env(String),
    /// This flag of the command line.
    Flag(String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str("file"),
            Self::Env(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// All set values, each of its key's type, with their sources. Ranges are not checked yet.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    set: BTreeMap<(&'static str, &'static str), (toml::Value, Source)>,
}

impl Sources {
    /// Sets a key; a later call replaces an earlier one.
    pub(super) fn set(&mut self, key: &Key, value: toml::Value, source: Source) {
        self.set.insert((key.section, key.name), (value, source));
    }

    /// Whether file, environment or flags set the key.
    pub fn is_set(&self, key: &Key) -> bool {
        self.set.contains_key(&(key.section, key.name))
    }

    /// The effective value of a key with its source; `None` = unset and without a default.
    pub fn effective(&self, key: &Key) -> Option<(toml::Value, Source)> {
        if let Some((value, source)) = self.set.get(&(key.section, key.name)) {
            return Some((value.clone(), source.clone()));
        }
        Some((default(key)?, Source::Default))
    }
}

impl Sources {
    /// A message in which each value that may hold a secret is as it may be shown.
    fn without_secrets(&self, message: &str) -> String {
        let mut message = message.to_owned();
        for key in KEYS.iter().filter(|key| key.may_hold_secret()) {
            let Some((value, _)) = self.set.get(&(key.section, key.name)) else { continue };
            let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            for text in items.iter().filter_map(toml::Value::as_str) {
                let shown = key.shown(text);
                if shown != text {
                    message = message.replace(text, &shown);
                    let quoted = |text: &str| format!("{text:?}").trim_matches('"').to_owned();
                    message = message.replace(&quoted(text), &quoted(&shown));
                }
            }
        }
        message
    }
}

/// The default of a key; `None` if it has none.
fn default(key: &Key) -> Option<toml::Value> {
    let table: toml::Table = format!("v = {}", key.default).parse().ok()?;
    table.get("v").cloned()
}

/// Reads values by their keys and collects the faults.
pub(super) struct Values<'a> {
    sources: &'a Sources,
    errors: Vec<String>,
}

impl<'a> Values<'a> {
    pub(super) fn new(sources: &'a Sources) -> Self {
        Self { sources, errors: Vec::new() }
    }

    /// Adds a fault. A value that may hold a secret is only repeated as it may be shown.
    pub(super) fn refuse(&mut self, error: impl Into<String>) {
        let error = self.sources.without_secrets(&error.into());
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    /// All faults so far.
    pub(super) fn into_errors(self) -> Vec<String> {
        self.errors
    }

    fn value(&self, key: &Key) -> Option<toml::Value> {
        self.sources.effective(key).map(|(value, _)| value)
    }

    /// A text; `None` if it is unset or empty.
    pub(super) fn text(&self, TextKey(key): &TextKey) -> Option<String> {
        let value = self.value(key)?;
        value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// Checks closed sets and ranges of all keys, also of those that have no effect in this mode.
    pub(super) fn check_all(&mut self) {
        for key in KEYS {
            match key.kind {
                Kind::Choice(_) => drop(self.choice(&ChoiceKey(*key))),
                Kind::Number(..) => drop(self.number(&NumberKey(*key))),
                Kind::Fraction(..) => drop(self.fraction(&FractionKey(*key))),
                Kind::Text
                | Kind::Flag
                | Kind::List
                | Kind::Address
                | Kind::Addresses
                | Kind::Webhook => {}
            }
        }
    }

    /// One of the key's texts; `None` if it is unset or none of them.
    pub(super) fn choice(&mut self, ChoiceKey(key): &ChoiceKey) -> Option<&'static str> {
        let Kind::Choice(words) = key.kind else { return None };
        let read = |value: Option<toml::Value>| {
            let value = value?;
            value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let word_of = |text: &str| words.iter().copied().find(|word| *word == text);
        let text = read(self.value(key))?;
        let word = word_of(&text);
        if word.is_none() {
            self.refuse(format!("{} is {text:?}; {}", key.path(), use_one_of(&text, words)));
        }
        word.or_else(|| word_of(&read(default(key))?))
    }

    /// A whole number of the key's range.
    pub(super) fn number(&mut self, NumberKey(key): &NumberKey) -> u64 {
        let Kind::Number(min, max) = key.kind else { return 0 };
        let read =
            |value: Option<toml::Value>| value?.as_integer().map(|number| number.max(0) as u64);
        self.within(key, min..=max, read)
    }

    /// What `read` makes of the key's value, or the default when it is not in the range.
    fn within<T: Copy + PartialOrd + Display>(
        &mut self,
        key: &Key,
        range: RangeInclusive<T>,
        read: impl Fn(Option<toml::Value>) -> Option<T>,
    ) -> T {
        let (min, max) = (*range.start(), *range.end());
        let fallback = read(default(key)).unwrap_or(min);
        let number = read(self.value(key)).unwrap_or(fallback);
        if range.contains(&number) {
            return number;
        }
        let why = key.why_not(number < min).map(|why| format!(". {why}")).unwrap_or_default();
        self.refuse(format!("{} is {number}; it must be {min} to {max}{why}", key.path()));
        fallback
    }

    /// A whole number as `usize`.
    pub(super) fn size(&mut self, key: &NumberKey) -> usize {
        usize::try_from(self.number(key)).unwrap_or(usize::MAX)
    }

    /// A whole number as `u32`.
    pub(super) fn small(&mut self, key: &NumberKey) -> u32 {
        u32::try_from(self.number(key)).unwrap_or(u32::MAX)
    }

    /// A duration whose key is in milliseconds.
    pub(super) fn millis(&mut self, key: &NumberKey) -> Duration {
        Duration::from_millis(self.number(key))
    }

    /// A duration whose key is in seconds.
    pub(super) fn seconds(&mut self, key: &NumberKey) -> Duration {
        Duration::from_secs(self.number(key))
    }

    /// A number with a fraction of the key's range.
    pub(super) fn fraction(&mut self, FractionKey(key): &FractionKey) -> f64 {
        let Kind::Fraction(min, max) = key.kind else { return 0.0 };
        let read = |value: Option<toml::Value>| {
            let value = value?;
            value.as_float().or_else(|| value.as_integer().map(|number| number as f64))
        };
        self.within(key, min..=max, read)
    }

    /// A flag; unset = false.
    pub(super) fn flag(&self, FlagKey(key): &FlagKey) -> bool {
        self.value(key).and_then(|value| value.as_bool()).unwrap_or(false)
    }

    /// A list of texts; unset = empty.
    pub(super) fn list(&self, ListKey(key): &ListKey) -> Vec<String> {
        let value = self.value(key);
        let items = value.as_ref().and_then(toml::Value::as_array).into_iter().flatten();
        items.filter_map(toml::Value::as_str).map(str::to_owned).collect()
    }
}

/// Which words there are, and the one that was probably meant.
pub(crate) fn use_one_of(given: &str, words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    match nearest(given, words.iter().copied()) {
        Some(near) => format!("did you mean {near:?}? Use {}", one_of(&quoted)),
        None => format!("use {}", one_of(&quoted)),
    }
}

/// The word that was probably meant, whatever its case.
pub(super) fn nearest<'a>(
    given: &str,
    words: impl Iterator<Item = &'a str> + Clone,
) -> Option<&'a str> {
    let given = given.trim().to_lowercase();
    let lower: Vec<String> = words.clone().map(str::to_lowercase).collect();
    let begins = || lower.iter().find(|word| given.len() > 1 && word.starts_with(&given));
    let near = suggest(&given, lower.iter().map(String::as_str));
    let near = near.or_else(|| begins().map(String::as_str))?;
    words.clone().find(|word| word.to_lowercase() == near)
}

/// `a, b or c`.
fn one_of(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [word] => word.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// Whether a text is an `http://` or `https://` URL with a host.
pub(super) fn is_http_url(text: &str) -> bool {
    let begins = text.starts_with("http://") || text.starts_with("https://");
    begins && reqwest::Url::parse(text).is_ok_and(|url| url.has_host())
}
