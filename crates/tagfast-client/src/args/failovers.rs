//! `failovers`.

use clap::Args;

use super::connection::ClientArgs;

/// `failovers`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                  tagfast failovers\n  \
                  tagfast failovers 9ec37e1a5c0b4f6d8a21d3e4f5061728\n  \
                  tagfast failovers 9ec37e1a5c0b4f6d8a21d3e4f5061728 --verdict lost --csv > lost.csv\n\n\
                  Without the scope admin: its own tenant's writes, no counts and no names of \
                  machines. A server in embedded mode has no failovers and says so.")]
pub struct FailoversArgs {
    /// Show this failover and the writes that it did not simply keep [default: list all failovers].
    pub epoch: Option<String>,
    /// Only the writes with this verdict.
    #[arg(long, requires = "epoch", value_parser = ["repaired", "lost"])]
    pub verdict: Option<String>,
    /// Only the writes of this tenant.
    #[arg(long, requires = "epoch")]
    pub tenant: Option<String>,
    /// Print all failovers, or all writes of one, as CSV with a line of headings.
    #[arg(long, conflicts_with_all = ["cursor", "limit"])]
    pub csv: bool,
    /// Failovers or writes per page, 1 to 500.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub limit: u32,
    /// Continue after the page that gave this cursor.
    #[arg(long)]
    pub cursor: Option<String>,
    /// The server and the caller.
    #[command(flatten)]
    pub client: ClientArgs,
}
