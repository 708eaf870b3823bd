//! What a configuration key is: its type, range, default and prose.

use tagfast_resilience::secret::{origin, redacted};

/// Type and range of a key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A string.
    Text,
    /// One of these strings.
    Choice(&'static [&'static str]),
    /// A whole number in this range, both ends included.
    Number(u64, u64),
    /// A number with a fraction in this range, both ends included.
    Fraction(f64, f64),
    /// `true` or `false`.
    Flag,
    /// A list of strings; in the environment separated by commas.
    List,
    /// An address (URL, `host:port`), or a file in its place; may hold a password or a key.
    Address,
    /// A list of addresses; in the environment separated by commas.
    Addresses,
    /// A URL whose path may be a secret too.
    Webhook,
}

impl Kind {
    /// The type in error messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text | Self::Choice(_) | Self::Address | Self::Webhook => "text",
            Self::Number(..) => "whole number",
            Self::Fraction(..) => "number",
            Self::Flag => "true or false",
            Self::List | Self::Addresses => "list of texts",
        }
    }

    /// The type and the range in the documentation.
    pub fn describe(self) -> String {
        match self {
            Self::Text | Self::Address | Self::Webhook => "Text".to_owned(),
            Self::Choice(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
                format!("One of {}", words.join(", "))
            }
            Self::Number(min, max) => format!("Whole number from {min} to {max}"),
            Self::Fraction(min, max) => format!("Number from {min} to {max}"),
            Self::Flag => "`true` or `false`".to_owned(),
            Self::List | Self::Addresses => {
                "List of texts (in the environment separated by commas)".to_owned()
            }
        }
    }

    /// Whether `value` has this type. Ranges and choices are checked later, with all other faults.
    pub fn admits(self, value: &toml::Value) -> bool {
        match self {
            Self::Text | Self::Choice(_) | Self::Address | Self::Webhook => value.is_str(),
            Self::Number(..) => value.as_integer().is_some_and(|number| number >= 0),
            Self::Fraction(..) => value.is_float() || value.is_integer(),
            Self::Flag => value.is_bool(),
            Self::List | Self::Addresses => {
                value.as_array().is_some_and(|items| items.iter().all(toml::Value::is_str))
            }
        }
    }
}

/// The modes in which a key has an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// In both modes.
    Both,
    /// Only with `store.kind = "embedded"`.
    Embedded,
    /// Only with `store.kind = "postgres"`.
    Cluster,
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The section of the file that holds it.
    pub section: &'static str,
    /// Its name in the section.
    pub name: &'static str,
    /// Its type and range.
    pub kind: Kind,
    /// The default as TOML; empty = unset.
    pub default: &'static str,
    /// The modes in which it has an effect.
    pub scope: Scope,
    /// How code outside of `config/` reads the setting that this key makes; a test searches the
    /// sources for it.
    pub read_as: &'static str,
    /// What it does, with its unit.
    pub doc: &'static str,
    /// What goes wrong with a wrong value; for numbers in both directions.
    pub wrong: &'static str,
}

impl Key {
    /// `section.name`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The name in the environment.
    pub fn env_name(&self) -> String {
        env_name(self.section, self.name)
    }

    /// What goes wrong with a number that is too low, or too high; `None`: its documentation does
    /// not tell them apart.
    pub fn why_not(&self, is_too_low: bool) -> Option<&'static str> {
        let (this, other) =
            if is_too_low { ("Too low:", "Too high:") } else { ("Too high:", "Too low:") };
        let text = &self.wrong[self.wrong.find(this)?..];
        Some(text[..text.find(other).unwrap_or(text.len())].trim_end())
    }

    /// Whether its value may hold a password or a key, so that it is only shown [`Key::shown`].
    pub fn may_hold_secret(&self) -> bool {
        matches!(self.kind, Kind::Address | Kind::Addresses | Kind::Webhook)
    }

    /// A text of its value as it may be shown.
    pub fn shown(&self, text: &str) -> String {
        match self.kind {
            Kind::Webhook => origin(text),
            Kind::Address | Kind::Addresses => redacted(text),
            Kind::Text
            | Kind::Choice(_)
            | Kind::Number(..)
            | Kind::Fraction(..)
            | Kind::Flag
            | Kind::List => text.to_owned(),
        }
    }

    /// Its value as it may be shown.
    pub fn shown_value(&self, value: toml::Value) -> toml::Value {
        if let Some(text) = value.as_str() {
            return toml::Value::String(self.shown(text));
        }
        if let Some(items) = value.as_array() {
            let shown = items.iter().map(|item| self.shown_value(item.clone()));
            return toml::Value::Array(shown.collect());
        }
        value
    }
}

/// What every name in the environment begins with.
pub const ENV_PREFIX: &str = "TAGFAST__";

/// The name of a key in the environment.
pub fn env_name(section: &str, name: &str) -> String {
    format!("{ENV_PREFIX}{}__{}", section.to_uppercase(), name.to_uppercase())
}

/// A key whose value is a text.
#[derive(Debug)]
pub(super) struct TextKey(pub(super) Key);
/// A key whose value is one of some texts.
#[derive(Debug)]
pub(super) struct ChoiceKey(pub(super) Key);
/// A key whose value is a whole number.
#[derive(Debug)]
pub(super) struct NumberKey(pub(super) Key);
/// A key whose value is a number with a fraction.
#[derive(Debug)]
pub(super) struct FractionKey(pub(super) Key);
/// A key whose value is a flag.
#[derive(Debug)]
pub(super) struct FlagKey(pub(super) Key);
/// A key whose value is a list of texts.
#[derive(Debug)]
pub(super) struct ListKey(pub(super) Key);
