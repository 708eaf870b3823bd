//! `tagfast dead-letters`.

use clap::{Args, Subcommand};

use super::client::ClientArgs;

/// Which letters; every condition that is given must hold.
#[derive(Debug, Clone, Default, Args)]
pub struct LetterFilterArgs {
    /// Of this consumer group: indexer or analytics.
    #[arg(long)]
    pub group: Option<String>,
    /// Parked as poison (it can never be applied) or exhausted (its retries were used up).
    #[arg(long)]
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
    /// Of contents whose id begins so.
    #[arg(long, value_name = "PREFIX")]
    pub id_prefix: Option<String>,
    /// Last failed at or after this time (RFC 3339).
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Last failed before this time (RFC 3339).
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

/// `dead-letters list`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tagfast dead-letters list --group indexer\n  \
                  tagfast dead-letters list --state all --code event_undecodable --json")]
pub struct ListLettersArgs {
    /// Which letters.
    #[command(flatten)]
    pub filter: LetterFilterArgs,
    /// What has become of them: open, replayed, superseded, discarded or all.
    #[arg(long, default_value = "open")]
    pub state: String,
    /// Letters of a page.
    #[arg(long, default_value_t = 50)]
    pub limit: u32,
    /// Where the page begins: the next cursor of the page before.
    #[arg(long)]
    pub cursor: Option<String>,
    /// Which server, as whom.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `dead-letters`
#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// List them, newest failures first.
    List(ListLettersArgs),
    /// Show one whole.
    #[command(after_help = "Example:\n  tagfast dead-letters show indexer/3/1207")]
    Show {
        /// Its id.
        id: String,
        /// Which server, as whom.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Apply open ones again; a newer state always wins.
    #[command(
        after_help = "Examples:\n  tagfast dead-letters replay --group indexer --dry-run\n  \
                  tagfast dead-letters replay --code index_refused --rate 2000\n  tagfast dead-letters replay indexer/3/1207\n\n\
                  Exit code 3 when a letter failed again. Ctrl-C ends the waiting, not the replay."
    )]
    Replay {
        /// Ids.
        ids: Vec<String>,
        /// Which letters.
        #[command(flatten)]
        filter: LetterFilterArgs,
        /// Every open letter; needed when no condition is given.
        #[arg(long)]
        all: bool,
        /// Only count what would be applied and what is superseded.
        #[arg(long)]
        dry_run: bool,
        /// Letters a second in each process, 1 to 20000 [default: 500].
        #[arg(long)]
        rate: Option<u32>,
        /// Which server, as whom.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Give open ones up, with a reason.
    #[command(
        after_help = "Example:\n  tagfast dead-letters discard indexer/3/1207 --reason 'test data'"
    )]
    Discard {
        /// Ids.
        ids: Vec<String>,
        /// Which letters.
        #[command(flatten)]
        filter: LetterFilterArgs,
        /// Every open letter; needed when no condition is given.
        #[arg(long)]
        all: bool,
        /// Why.
        #[arg(long)]
        reason: String,
        /// Which server, as whom.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show who did what with letters.
    #[command(after_help = "Example:\n  tagfast dead-letters acts --limit 20")]
    Acts {
        /// How many, newest first.
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// Which server, as whom.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Let a consumer write the dead letters of a storm, for a minute.
    #[command(
        after_help = "Example:\n  tagfast dead-letters allow-storm indexer --reason 'a load test wrote garbage'"
    )]
    AllowStorm {
        /// The consumer group.
        group: String,
        /// Why the records are to blame.
        #[arg(long)]
        reason: String,
        /// Which server, as whom.
        #[command(flatten)]
        client: ClientArgs,
    },
}
