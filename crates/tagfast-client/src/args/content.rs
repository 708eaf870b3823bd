//! `view`, `tag` and `untag`.

use clap::Args;

use super::connection::ClientArgs;

/// `view`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                  tagfast view debian.package 0ad\n  \
                  tagfast view jira.issue PROJ-1 --strong --json")]
pub struct ViewArgs {
    /// Content type, for example jira.issue.
    pub content_type: String,
    /// Content id.
    pub content_id: String,
    /// Read the newest acknowledged state.
    #[arg(long, conflicts_with = "eventual")]
    pub strong: bool,
    /// Read from the nearest replica or cache.
    #[arg(long)]
    pub eventual: bool,
    /// The server and the caller.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `tag` and `untag`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                  tagfast tag jira.issue PROJ-1 critical ui\n  \
                  tagfast untag jira.issue PROJ-1 ui\n  \
                  tagfast tag confluence.page 4711 'Quarter 3' --receipt >> receipts.txt")]
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
    /// Key of this write: repeating it with the same key gets the first answer and does nothing.
    #[arg(long)]
    pub idempotency_key: Option<String>,
    /// The server and the caller.
    #[command(flatten)]
    pub client: ClientArgs,
}
