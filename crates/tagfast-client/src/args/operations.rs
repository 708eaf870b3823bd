//! The commands of operators: `recount`, `reindex`, `status`, `clusters`, `receipts`, `breakers`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use super::connection::ClientArgs;

/// `recount`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                  tagfast recount\n  \
                  tagfast recount --repair\n\n\
                  Ctrl-C ends the recount on the server, too.")]
pub struct RecountArgs {
    /// Repair the counts that drifted.
    #[arg(long)]
    pub repair: bool,
    /// The server and the caller.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `reindex`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
                  tagfast reindex")]
pub struct ReindexArgs {
    /// The server and the caller.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `status`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                  tagfast status\n  \
                  tagfast status --watch\n  \
                  tagfast status --watch --interval 5 >> status.log")]
pub struct StatusArgs {
    /// Whether it is repeated.
    #[command(flatten)]
    pub watch: WatchArgs,
    /// The server and the caller.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Whether a command is repeated.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Repeat until Ctrl-C: in place on a terminal, else one line each time.
    #[arg(long)]
    pub watch: bool,
    /// Seconds between two requests.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 1,
        requires = "watch",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    pub interval: u64,
}

/// `clusters`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                  tagfast clusters\n  \
                  tagfast clusters --watch\n  \
                  tagfast clusters --json | jq '.items[].guard'\n\n\
                  The worst cluster comes first, with what to do about it. It is what the process \
                  at --url sees. A server in embedded mode has no clusters and says so.")]
pub struct ClustersArgs {
    /// Whether it is repeated.
    #[command(flatten)]
    pub watch: WatchArgs,
    /// The server and the caller.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `receipts`
#[derive(Debug, Subcommand)]
pub enum ReceiptsCommand {
    /// Print the verdict of each receipt in a file: kept, repaired, lost or unknown.
    #[command(after_help = "Examples:\n  \
                  tagfast tag jira.issue PROJ-1 ui --receipt >> receipts.txt\n  \
                  tagfast receipts check receipts.txt\n  \
                  zcat old.txt.gz | tagfast receipts check - --json\n\n\
                  Exit code 3 when a write is lost, its verdict is unknown, or a receipt is not \
                  readable.")]
    Check {
        /// One receipt a line; - reads from stdin.
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// The server and the caller.
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// `breakers open` and `breakers close`
#[derive(Debug, Args)]
pub struct SetBreakerArgs {
    /// Name of the breaker, as `breakers list` shows it.
    pub name: String,
    /// Reason, for the server's log.
    #[arg(long)]
    pub reason: String,
    /// The server and the caller.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `breakers`
#[derive(Debug, Subcommand)]
pub enum BreakersCommand {
    /// List the breakers of one server process and their last changes.
    #[command(after_help = "Example:\n  \
                  tagfast breakers list")]
    List {
        /// The server and the caller.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Hold a breaker open: no call passes.
    #[command(after_help = "Example:\n  \
                  tagfast breakers open index --reason 'the index is being moved'\n\n\
                  It acts on the process at --url, until `auto` or the end of that process.")]
    Open(SetBreakerArgs),
    /// Hold a breaker closed: every call passes.
    #[command(after_help = "Example:\n  \
                  tagfast breakers close index --reason 'the index works, its probes do not'\n\n\
                  It acts on the process at --url, until `auto` or the end of that process.")]
    Close(SetBreakerArgs),
    /// Return a breaker to automatic operation.
    #[command(after_help = "Example:\n  \
                  tagfast breakers auto index")]
    Auto {
        /// Name of the breaker, as `breakers list` shows it.
        name: String,
        /// Reason, for the server's log.
        #[arg(long, default_value = "back to automatic operation")]
        reason: String,
        /// The server and the caller.
        #[command(flatten)]
        client: ClientArgs,
    },
}
