//! `search`, `popular` and `suggest`.

use clap::{Args, ValueEnum};

use super::connection::ClientArgs;

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
#[command(after_help = "Examples:\n  \
                  tagfast search 'critical AND (ui OR api) AND NOT wontfix'\n  \
                  tagfast search 'role::program' --type debian.package --limit 5 --facets\n  \
                  tagfast search 'role::program' --all | wc -l")]
pub struct SearchArgs {
    /// The query: tags with AND, OR, NOT, parentheses and quotes; empty finds everything.
    pub query: String,
    /// Only contents of this type.
    #[arg(long = "type", value_name = "TYPE")]
    pub content_type: Option<String>,
    /// Order of the hits.
    #[arg(long, value_enum)]
    pub sort: Option<SortArg>,
    /// Hits per page, 1 to 100.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub limit: Option<u32>,
    /// Continue after the page that gave this cursor.
    #[arg(long, conflicts_with = "all")]
    pub cursor: Option<String>,
    /// Fetch every page.
    #[arg(long)]
    pub all: bool,
    /// Count the tags of all hits.
    #[arg(long)]
    pub facets: bool,
    /// The server and the caller.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Periods of the popular tags.
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
#[command(after_help = "Examples:\n  \
                  tagfast popular\n  \
                  tagfast popular --window 24h --limit 50 --json")]
pub struct PopularArgs {
    /// Period that counts.
    #[arg(long, value_enum, default_value = "all")]
    pub window: WindowArg,
    /// How many tags, 1 to 1000.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// The server and the caller.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `suggest`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                  tagfast suggest role:\n  \
                  tagfast suggest commandline --type debian.package\n  \
                  tagfast suggest --all | wc -l")]
pub struct SuggestArgs {
    /// The beginning of a tag, or of a word inside; without it all tags are listed by name.
    pub prefix: Option<String>,
    /// Only tags of contents of this type.
    #[arg(long = "type", value_name = "TYPE")]
    pub content_type: Option<String>,
    /// How many tags, 1 to 1,000.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// Continue the list of all tags after the page that gave this cursor.
    #[arg(long, conflicts_with_all = ["all", "prefix"])]
    pub cursor: Option<String>,
    /// List every tag.
    #[arg(long, conflicts_with_all = ["prefix", "limit"])]
    pub all: bool,
    /// The server and the caller.
    #[command(flatten)]
    pub client: ClientArgs,
}
