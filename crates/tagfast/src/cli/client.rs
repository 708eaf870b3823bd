//! Commands that talk to a running server.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Which server, as whom.
#[derive(Debug, Clone, Args)]
pub struct ClientArgs {
    /// The server.
    #[arg(
        long,
        env = "TAGFAST_URL",
        default_value = "http://127.0.0.1:7070",
        help_heading = "Server"
    )]
    pub url: String,
    /// Bearer token.
    #[arg(long, env = "TAGFAST_TOKEN", hide_env_values = true, help_heading = "Server")]
    pub token: Option<String>,
    /// Seconds to wait for an answer.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400), help_heading = "Server")]
    pub timeout: u64,
}

/// `view`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tagfast view debian.package 0ad\n  tagfast view jira.issue PROJ-1 --strong --json"
)]
pub struct ViewArgs {
    /// Content type, for example jira.issue.
    pub content_type: String,
    /// Content id.
    pub content_id: String,
    /// The newest acknowledged state.
    #[arg(long, conflicts_with = "eventual")]
    pub strong: bool,
    /// Whatever is nearest.
    #[arg(long)]
    pub eventual: bool,
    /// Which server, as whom.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `tag` and `untag`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tagfast tag jira.issue PROJ-1 critical ui\n  tagfast untag jira.issue PROJ-1 ui\n  \
                  tagfast tag confluence.page 4711 'Quarter 3' --receipt >> receipts.txt"
)]
pub struct ApplyArgs {
    /// Content type, for example jira.issue.
    pub content_type: String,
    /// Content id.
    pub content_id: String,
    /// Tags, at least one.
    #[arg(required = true)]
    pub tags: Vec<String>,
    /// Print the receipt instead of what changed.
    #[arg(long)]
    pub receipt: bool,
    /// Name of this write: repeating it with the same name has no second effect.
    #[arg(long)]
    pub idempotency_key: Option<String>,
    /// Which server, as whom.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Order of hits.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SortArg {
    /// Newest first.
    Updated,
    /// By type and id.
    Id,
}

/// `search`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tagfast search 'critical AND (ui OR api) AND NOT wontfix'\n  \
                  tagfast search 'role::program' --type debian.package --limit 5 --facets\n  \
                  tagfast search 'role::program' --all | wc -l"
)]
pub struct SearchArgs {
    /// The query: tags with AND, OR, NOT, parentheses and quotes; empty finds everything.
    pub query: String,
    /// Only contents of this type.
    #[arg(long = "type", value_name = "TYPE")]
    pub content_type: Option<String>,
    /// The order.
    #[arg(long, value_enum)]
    pub sort: Option<SortArg>,
    /// Hits per page.
    #[arg(long)]
    pub limit: Option<u32>,
    /// Continue where a page ended.
    #[arg(long, conflicts_with = "all")]
    pub cursor: Option<String>,
    /// Fetch every page.
    #[arg(long)]
    pub all: bool,
    /// Count the tags of all hits.
    #[arg(long)]
    pub facets: bool,
    /// Which server, as whom.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Windows of time.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum WindowArg {
    /// The last hour.
    #[value(name = "1h")]
    Hour,
    /// The last day.
    #[value(name = "24h")]
    Day,
    /// The last week.
    #[value(name = "7d")]
    Week,
    /// All time.
    #[value(name = "all")]
    All,
}

impl WindowArg {
    /// The word in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "1h",
            Self::Day => "24h",
            Self::Week => "7d",
            Self::All => "all",
        }
    }
}

/// `popular`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tagfast popular\n  tagfast popular --window 24h --limit 50 --json"
)]
pub struct PopularArgs {
    /// Over which time.
    #[arg(long, value_enum, default_value = "all")]
    pub window: WindowArg,
    /// How many tags.
    #[arg(long, default_value_t = 20)]
    pub limit: u32,
    /// Which server, as whom.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `suggest`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tagfast suggest role:")]
pub struct SuggestArgs {
    /// The beginning of a tag.
    pub prefix: String,
    /// How many tags.
    #[arg(long, default_value_t = 10)]
    pub limit: u32,
    /// Which server, as whom.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `import`
#[derive(Debug, Args)]
#[command(
    after_help = "One line a content: {\"type\": \"jira.issue\", \"id\": \"PROJ-1\", \"tags\": [\"ui\", {\"tag\": \"Critical\", \"by\": \"ana\", \"at\": \"2026-01-31T12:00:00Z\"}]}\n\n\
                  Examples:\n  tagfast import tags.ndjson.gz\n  zcat tags.ndjson.gz | tagfast import -\n  \
                  tagfast import tags.ndjson --wait --json\n\n\
                  Each line is applied whole or not at all. Bad lines are reported by number and skipped (exit code 3). An import \
                  that was interrupted goes on where it stopped when it is started again."
)]
pub struct ImportArgs {
    /// NDJSON file, also gzipped; - reads from stdin.
    pub file: String,
    /// Where the import notes how far it has come (default: FILE.tagfast-import; none for stdin).
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Begin again although an interrupted import is noted.
    #[arg(long)]
    pub restart: bool,
    /// Wait until everything imported can be found by a search.
    #[arg(long)]
    pub wait: bool,
    /// Lines in one request.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub batch: u32,
    /// Requests at the same time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub parallel: u32,
    /// How often a refused or failed request is tried again.
    #[arg(long, default_value_t = 10)]
    pub retries: u32,
    /// Which server, as whom.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `export`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tagfast export tags.ndjson\n  tagfast export tags.ndjson.gz\n  tagfast export - | wc -l"
)]
pub struct ExportArgs {
    /// File to write, gzipped if it ends in .gz; - writes to stdout.
    pub file: String,
    /// Which server, as whom.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `recount`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tagfast recount\n  tagfast recount --repair")]
pub struct RecountArgs {
    /// Mend what drifted.
    #[arg(long)]
    pub repair: bool,
    /// Which server, as whom.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `reindex`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tagfast reindex")]
pub struct ReindexArgs {
    /// Which server, as whom.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `status`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tagfast status\n  tagfast status --watch\n  tagfast status --watch --interval 5 >> status.log"
)]
pub struct StatusArgs {
    /// Show it again and again until Ctrl-C: in place on a terminal, else a line each time.
    #[arg(long)]
    pub watch: bool,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, requires = "watch", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
    /// Which server, as whom.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `failovers`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tagfast failovers --json\n\nA server in embedded mode has no failovers and says so."
)]
pub struct FailoversArgs {
    /// Which server, as whom.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `receipts`
#[derive(Debug, Subcommand)]
pub enum ReceiptsCommand {
    /// The verdict of each receipt in a file: kept, repaired, lost or unknown.
    #[command(
        after_help = "Examples:\n  tagfast tag jira.issue PROJ-1 ui --receipt >> receipts.txt\n  tagfast receipts check receipts.txt\n\n\
                      Exit code 3 when a receipt is lost, unknown or not readable."
    )]
    Check {
        /// One receipt a line; - reads from stdin.
        file: String,
        /// Which server, as whom.
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// Which breaker, and why.
#[derive(Debug, Args)]
pub struct SetBreakerArgs {
    /// Its name, as `breakers list` shows it.
    pub name: String,
    /// Why; the server's log keeps it.
    #[arg(long)]
    pub reason: String,
    /// Which server, as whom.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `breakers`
#[derive(Debug, Subcommand)]
pub enum BreakersCommand {
    /// List those of a server's process, and what they did last.
    #[command(after_help = "Example:\n  tagfast breakers list")]
    List {
        /// Which server, as whom.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Hold one open: no call passes.
    #[command(
        after_help = "Example:\n  tagfast breakers open index --reason 'the index is being moved'\n\nIt acts on the process that is asked, until `auto` or its end."
    )]
    Open(SetBreakerArgs),
    /// Hold one closed: every call passes.
    #[command(
        after_help = "Example:\n  tagfast breakers close index --reason 'it is well, the probes are not'\n\nIt acts on the process that is asked, until `auto` or its end."
    )]
    Close(SetBreakerArgs),
    /// Let one decide by itself again.
    #[command(after_help = "Example:\n  tagfast breakers auto index")]
    Auto {
        /// Its name, as `breakers list` shows it.
        name: String,
        /// Why; the server's log keeps it.
        #[arg(long, default_value = "it decides by itself again")]
        reason: String,
        /// Which server, as whom.
        #[command(flatten)]
        client: ClientArgs,
    },
}
