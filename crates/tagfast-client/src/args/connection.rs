//! The options that every client command shares.

use clap::Args;

/// The server and the caller.
#[derive(Debug, Clone, Args)]
pub struct ClientArgs {
    /// URL of the server.
    #[arg(
        long,
        env = "TAGFAST_URL",
        hide_env_values = true,
        default_value = "http://127.0.0.1:7070",
        help_heading = "Server"
    )]
    pub url: String,
    /// Bearer token. Other users of the machine can read command lines: prefer TAGFAST_TOKEN.
    #[arg(long, env = "TAGFAST_TOKEN", hide_env_values = true, help_heading = "Server")]
    pub token: Option<String>,
    /// Seconds to wait for an answer.
    #[arg(
        long,
        default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..=86_400),
        help_heading = "Server"
    )]
    pub timeout: u64,
}
