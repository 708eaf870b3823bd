//! The command line of the program: the client's commands and the program's own.

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches as _, Parser, Subcommand};
use tagfast_client::args::{BenchArgs, ClientCommand};
use tagfast_client::color::ColorChoice;

use super::local::{ConfigCommand, DebugCommand, TokenCommand};
use super::server::{BackupArgs, RestoreArgs, ServeArgs};

/// A tag service: put tags on content, see them at once, search by tag, see which tags are popular.
#[derive(Debug, Parser)]
#[command(
    name = "tagfast",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Start here:\n  \
                  tagfast serve --demo                         run a server with 29,795 tagged \
                  packages in it\n  \
                  tagfast search 'role::program AND NOT use::gameplaying'\n  \
                  tagfast tag jira.issue PROJ-1 critical ui    put two tags on an issue\n\n\
                  Exit codes: 0 done, 1 failed, 2 wrong usage, 3 partly done (the items that \
                  failed were listed)."
)]
pub(crate) struct Cli {
    /// Print results as JSON, and an error as one line of JSON on stderr.
    #[arg(long, global = true)]
    pub json: bool,

    /// Colour the output.
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,

    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// All commands, in the order in which the help lists them.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the server.
    Serve(ServeArgs),
    /// A command that talks to a running server.
    #[command(flatten)]
    Client(ClientCommand),
    /// Copy the data directory, also of a running server, or verify a copy.
    Backup(BackupArgs),
    /// Create a data directory from a backup.
    Restore(RestoreArgs),
    /// Inspect stored bytes.
    #[command(subcommand)]
    Debug(DebugCommand),
    /// Make tokens for development.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Check, show and explain the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the OpenAPI description of the HTTP API.
    #[command(after_help = "Example:\n  \
                  tagfast openapi > openapi.json")]
    Openapi,
    /// Print the completions of a shell.
    #[command(after_help = "Example:\n  \
                  tagfast completions bash > ~/.local/share/bash-completion/completions/tagfast")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Measure a running server.
    Bench(BenchArgs),
}

impl Command {
    /// Whether the command makes files of a store, which are for their owner alone. What a client
    /// command writes into a file that the user named has the mode that the user's umask gives it.
    pub(crate) fn makes_store_files(&self) -> bool {
        match self {
            Self::Serve(_) | Self::Backup(_) | Self::Restore(_) => true,
            Self::Client(_)
            | Self::Debug(_)
            | Self::Token(_)
            | Self::Config(_)
            | Self::Openapi
            | Self::Completions { .. }
            | Self::Bench(_) => false,
        }
    }
}

/// Parses a command line. An environment variable that is empty or blank counts
/// as not set.
///
/// # Errors
/// What is wrong with it, or the text that it asks for.
pub(crate) fn parse(arguments: &[OsString]) -> Result<Cli, clap::Error> {
    let matches = without_empty_variables(command()).try_get_matches_from(arguments)?;
    Cli::from_arg_matches(&matches)
}

fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |arg: &clap::Arg| {
        let value = arg.get_env().and_then(std::env::var_os);
        value.is_some_and(|value| value.to_string_lossy().trim().is_empty())
    };
    command
        .mut_args(|arg| if is_empty(&arg) { arg.env(None::<&'static str>) } else { arg })
        .mut_subcommands(without_empty_variables)
}

/// The clap description, for completions and tests.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_visible_leaf_command_shows_an_example() {
        fn leaves(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let visible: Vec<_> = command
                .get_subcommands()
                .filter(|c| !c.is_hide_set() && c.get_name() != "help")
                .collect();
            if visible.is_empty() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("tagfast "), "{path} has no example");
            }
            visible.iter().for_each(|c| leaves(c, &path));
        }
        leaves(&command(), "");
    }

    #[test]
    fn json_is_accepted_before_and_after_the_command() {
        for line in [&["tagfast", "--json", "status"], &["tagfast", "status", "--json"]] {
            assert!(Cli::try_parse_from(line.iter()).unwrap().json);
        }
    }
}
