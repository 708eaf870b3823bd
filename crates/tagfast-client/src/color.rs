//! Whether output is coloured. One rule for every stream and every part that colours: help, errors,
//! headings, bars and the server's log.
//!
//! `--color` decides. With `auto`: `NO_COLOR` (any value but the empty one) says no,
//! `CLICOLOR_FORCE` (neither empty nor 0) says yes, `CLICOLOR=0` and `TERM=dumb` say no, and
//! otherwise a terminal is coloured and a pipe or file is not.

use std::ffi::{OsStr, OsString};

use clap::ValueEnum;

/// The value of `--color`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ColorChoice {
    /// On terminals, unless the environment says otherwise.
    #[default]
    Auto,
    /// Also into pipes and files.
    Always,
    /// Nowhere.
    Never,
}

impl ColorChoice {
    /// The choice on a command line that may be wrong elsewhere: its errors are coloured too.
    pub fn of_command_line(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let mut choice = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let Some(argument) = argument.to_str() else { continue };
            let value = match argument {
                "--" => break,
                "--color" => arguments.next().and_then(|value| value.into_string().ok()),
                _ => argument.strip_prefix("--color=").map(str::to_owned),
            };
            let word = value.and_then(|value| Self::from_str(&value, false).ok());
            choice = word.unwrap_or(choice);
        }
        choice
    }

    /// Whether a stream of this process is coloured.
    pub fn is_on(self, is_terminal: bool) -> bool {
        self.is_on_with(is_terminal, |name| std::env::var_os(name))
    }

    fn is_on_with(self, is_terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
        let given = |name| variable(name).filter(|value| !value.is_empty());
        let is = |value: Option<OsString>, word: &str| value.as_deref() == Some(OsStr::new(word));
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto if given("NO_COLOR").is_some() => false,
            Self::Auto if given("CLICOLOR_FORCE").is_some_and(|value| value != "0") => true,
            Self::Auto if is(given("CLICOLOR"), "0") || is(given("TERM"), "dumb") => false,
            Self::Auto => is_terminal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_decides_then_the_environment_then_the_terminal() {
        type Environment = &'static [(&'static str, &'static str)];
        let cases: [(ColorChoice, bool, Environment, bool); 11] = [
            (ColorChoice::Auto, true, &[], true),
            (ColorChoice::Auto, false, &[], false),
            (ColorChoice::Auto, true, &[("NO_COLOR", "1")], false),
            (ColorChoice::Auto, true, &[("NO_COLOR", "")], true),
            (ColorChoice::Auto, false, &[("CLICOLOR_FORCE", "1")], true),
            (ColorChoice::Auto, false, &[("CLICOLOR_FORCE", "0")], false),
            (ColorChoice::Auto, true, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false),
            (ColorChoice::Auto, true, &[("CLICOLOR", "0")], false),
            (ColorChoice::Auto, true, &[("TERM", "dumb")], false),
            (ColorChoice::Always, false, &[("NO_COLOR", "1")], true),
            (ColorChoice::Never, true, &[("CLICOLOR_FORCE", "1")], false),
        ];
        for (choice, is_terminal, environment, expect) in cases {
            let variable = |name: &str| {
                environment.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into())
            };
            let is_on = choice.is_on_with(is_terminal, variable);
            assert_eq!(is_on, expect, "{choice:?} {is_terminal} {environment:?}");
        }
    }

    #[test]
    fn the_choice_is_read_from_a_command_line_that_is_wrong() {
        for (line, expect) in [
            (&["view", "--color", "never", "--no-such"][..], ColorChoice::Never),
            (&["--color=always", "view"], ColorChoice::Always),
            (&["--color=always", "--color=never"], ColorChoice::Never),
            (&["--color=sometimes"], ColorChoice::Auto),
            (&["--color"], ColorChoice::Auto),
            (&["--", "--color=never"], ColorChoice::Auto),
        ] {
            let line = line.iter().map(OsString::from);
            assert_eq!(ColorChoice::of_command_line(line), expect);
        }
    }
}
