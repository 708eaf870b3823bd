//! `dead-letters`.

use clap::{Args, Subcommand};

use super::connection::ClientArgs;

/// The consumer groups.
const GROUPS: [&str; 2] = ["indexer", "analytics"];

/// Selects dead letters; every given condition must hold.
#[derive(Debug, Clone, Default, Args)]
pub struct DeadLetterFilterArgs {
    /// Of this consumer group.
    #[arg(long, value_parser = GROUPS)]
    pub group: Option<String>,
    /// Failure class: poison (it can never be applied) or exhausted (its retries were used up).
    #[arg(long, value_parser = ["poison", "exhausted"])]
    pub class: Option<String>,
    /// With this error code.
    #[arg(long)]
    pub code: Option<String>,
    /// Of this tenant.
    #[arg(long)]
    pub tenant: Option<String>,
    /// Of this content type.
    #[arg(long = "type", value_name = "TYPE")]
    pub content_type: Option<String>,
    /// Of contents whose id starts with this prefix.
    #[arg(long, value_name = "PREFIX")]
    pub id_prefix: Option<String>,
    /// Last failed at or after this time (RFC 3339).
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Last failed before this time (RFC 3339).
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

/// Names the dead letters that a command changes.
#[derive(Debug, Clone, Default, Args)]
pub struct DeadLetterSelectionArgs {
    /// Ids of dead letters.
    pub ids: Vec<String>,
    /// Selection of dead letters.
    #[command(flatten)]
    pub filter: DeadLetterFilterArgs,
    /// Every open dead letter; needed when no condition is given.
    #[arg(long)]
    pub all: bool,
}

/// `dead-letters list`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                  tagfast dead-letters list --group indexer\n  \
                  tagfast dead-letters list --state all --code event_undecodable --json")]
pub struct ListDeadLettersArgs {
    /// Selection of dead letters.
    #[command(flatten)]
    pub filter: DeadLetterFilterArgs,
    /// State of the dead letters.
    #[arg(
        long,
        default_value = "open",
        value_parser = ["open", "replayed", "superseded", "discarded", "all"]
    )]
    pub state: String,
    /// Dead letters per page, 1 to 500.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub limit: u32,
    /// Continue after the page that gave this cursor.
    #[arg(long)]
    pub cursor: Option<String>,
    /// The server and the caller.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `dead-letters`
#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// List dead letters, newest failures first.
    List(ListDeadLettersArgs),
    /// Show one dead letter with its payload and headers.
    #[command(after_help = "Example:\n  \
                  tagfast dead-letters show indexer/3/1207")]
    Show {
        /// Id of the dead letter.
        id: String,
        /// The server and the caller.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Apply open dead letters again; a newer state always wins.
    #[command(after_help = "Examples:\n  \
                  tagfast dead-letters replay --group indexer --dry-run\n  \
                  tagfast dead-letters replay --code index_refused --rate 2000\n  \
                  tagfast dead-letters replay indexer/3/1207\n\n\
                  Exit code 3 when a dead letter failed again. Ctrl-C ends the waiting, not the \
                  replay.")]
    Replay {
        /// The dead letters.
        #[command(flatten)]
        selection: DeadLetterSelectionArgs,
        /// Only count how many would be applied and how many are superseded.
        #[arg(long)]
        dry_run: bool,
        /// Dead letters per second in each process, 1 to 20000 [default: 500].
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=20_000))]
        rate: Option<u32>,
        /// The server and the caller.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Discard open dead letters, with a reason.
    #[command(after_help = "Example:\n  \
                  tagfast dead-letters discard indexer/3/1207 --reason 'test data'")]
    Discard {
        /// The dead letters.
        #[command(flatten)]
        selection: DeadLetterSelectionArgs,
        /// Reason, for the audit log.
        #[arg(long)]
        reason: String,
        /// The server and the caller.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show the audit log: who did what with dead letters.
    #[command(after_help = "Example:\n  \
                  tagfast dead-letters audit --limit 20")]
    Audit {
        /// Number of entries, newest first, 1 to 500.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
        /// Continue after the page that gave this cursor.
        #[arg(long)]
        cursor: Option<String>,
        /// The server and the caller.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Lift the parking limit of a consumer group for one minute, during a storm.
    #[command(after_help = "Example:\n  \
                  tagfast dead-letters allow-storm indexer --reason 'a load test wrote garbage'")]
    AllowStorm {
        /// The consumer group.
        #[arg(value_parser = GROUPS)]
        group: String,
        /// Why the records are at fault, for the audit log.
        #[arg(long)]
        reason: String,
        /// The server and the caller.
        #[command(flatten)]
        client: ClientArgs,
    },
}
