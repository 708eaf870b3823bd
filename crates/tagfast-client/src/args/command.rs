//! The client commands as one enum, in the order in which the help lists them.

use clap::Subcommand;

use super::content::{ApplyArgs, ViewArgs};
use super::dead_letters::DeadLettersCommand;
use super::failovers::FailoversArgs;
use super::operations::{
    BreakersCommand, ClustersArgs, ReceiptsCommand, RecountArgs, ReindexArgs, StatusArgs,
};
use super::search::{PopularArgs, SearchArgs, SuggestArgs};
use super::transfer::{ExportArgs, ImportArgs};

/// A command that talks to a running server.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
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
    /// Show the state of the clusters, the worst first.
    Clusters(ClustersArgs),
    /// Show past failovers of the clusters, and what they did to acknowledged writes.
    Failovers(FailoversArgs),
    /// Check what became of past writes.
    #[command(subcommand)]
    Receipts(ReceiptsCommand),
    /// Inspect, replay and discard events that could not be applied.
    #[command(subcommand, name = "dead-letters")]
    DeadLetters(DeadLettersCommand),
    /// List and override circuit breakers.
    #[command(subcommand)]
    Breakers(BreakersCommand),
}
