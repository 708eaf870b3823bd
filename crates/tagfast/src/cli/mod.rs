//! The command line: what can be asked. What each command does is in [`crate::commands`].

mod bench;
mod client;
mod letters;
mod local;
mod server;

pub use bench::BenchArgs;
pub use client::{
    ApplyArgs, BreakersCommand, ClientArgs, ExportArgs, FailoversArgs, ImportArgs, PopularArgs,
    ReceiptsCommand, RecountArgs, ReindexArgs, SearchArgs, SetBreakerArgs, SortArg, StatusArgs,
    SuggestArgs, ViewArgs, WindowArg,
};
pub use letters::{DeadLettersCommand, LetterFilterArgs, ListLettersArgs};
pub use local::{
    ConfigCommand, ConfigFile, DebugCommand, DecodeArgs, TokenCommand, TokenIssueArgs,
};
pub use server::{BackupArgs, RestoreArgs, Role, ServeArgs};

use clap::{CommandFactory, Parser, Subcommand};

/// A tag service: put tags on content, see them at once, search by tag, see which tags are popular.
#[derive(Debug, Parser)]
#[command(
    name = "tagfast",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Start here:\n  tagfast serve --demo                         run a server with 29,795 tagged packages in it\n  \
                  tagfast search 'role::program AND NOT use::gameplaying'\n  \
                  tagfast tag jira.issue PROJ-1 critical ui    put two tags on an issue\n\n\
                  Exit codes: 0 done, 1 failed, 2 wrong usage, 3 partly done (the items that failed were listed)."
)]
pub struct Cli {
    /// Results as JSON.
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server.
    Serve(ServeArgs),
    /// Show the tags of a content.
    View(ViewArgs),
    /// Put tags on a content.
    Tag(ApplyArgs),
    /// Take tags off a content.
    Untag(ApplyArgs),
    /// Find contents by their tags.
    Search(SearchArgs),
    /// Show the most used tags.
    Popular(PopularArgs),
    /// Complete the beginning of a tag.
    Suggest(SuggestArgs),
    /// Load tags from NDJSON.
    Import(ImportArgs),
    /// Write all tags as NDJSON.
    Export(ExportArgs),
    /// Compare the popular counts with the stored tags.
    Recount(RecountArgs),
    /// Rebuild the search index while serving.
    Reindex(ReindexArgs),
    /// Show the state of a server.
    Status(StatusArgs),
    /// List past failovers of the clusters.
    Failovers(FailoversArgs),
    /// Ask what became of past writes.
    #[command(subcommand)]
    Receipts(ReceiptsCommand),
    /// Look after events that could not be applied.
    #[command(subcommand, name = "dead-letters")]
    DeadLetters(DeadLettersCommand),
    /// Look after circuit breakers.
    #[command(subcommand)]
    Breakers(BreakersCommand),
    /// Copy the data directory, also of a running server.
    Backup(BackupArgs),
    /// Make a data directory from a backup.
    Restore(RestoreArgs),
    /// Look into stored bytes.
    #[command(subcommand)]
    Debug(DebugCommand),
    /// Make tokens for development.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Check, show and explain the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the OpenAPI description of the HTTP API.
    #[command(after_help = "Example:\n  tagfast openapi > openapi.json")]
    Openapi,
    /// Print the completions of a shell.
    #[command(
        after_help = "Example:\n  tagfast completions bash > ~/.local/share/bash-completion/completions/tagfast"
    )]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Measure a running server.
    Bench(BenchArgs),
}

/// The clap description, for completions and tests.
pub fn command() -> clap::Command {
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
