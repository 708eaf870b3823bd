//! Commands that need no server.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use tagfast_client::args::duration;

/// `debug`
#[derive(Debug, Subcommand)]
pub(crate) enum DebugCommand {
    /// Show a stored document.
    Decode(DecodeArgs),
    /// Print the reference of all metrics (docs/reference/metrics.md).
    #[command(hide = true)]
    MetricsDocs,
}

/// `debug decode`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                  tagfast debug decode --data-dir ./tagfast-data --content debian.package 0ad\n  \
                  tagfast debug decode --hex 01c0ffee\n  \
                  tagfast debug decode document.bin\n\n\
                  --data-dir needs a data directory that no server uses.")]
pub(crate) struct DecodeArgs {
    /// File with the document's bytes; - reads from stdin.
    #[arg(conflicts_with_all = ["hex", "content"], value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// The bytes as hexadecimal digits.
    #[arg(long, conflicts_with = "content")]
    pub hex: Option<String>,
    /// Read from this data directory.
    #[arg(long, value_name = "DIR", requires = "content", value_hint = ValueHint::DirPath)]
    pub data_dir: Option<PathBuf>,
    /// Type and id of the content.
    #[arg(long, num_args = 2, value_names = ["TYPE", "ID"], requires = "data_dir")]
    pub content: Option<Vec<String>>,
    /// Tenant of the content.
    #[arg(long, default_value = "default")]
    pub tenant: String,
}

/// `token`
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Sign a development token (HS256).
    Issue(TokenIssueArgs),
}

/// `token issue`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                  head -c 32 /dev/urandom | base64 > secret && chmod 600 secret\n  \
                  export TAGFAST_TOKEN=$(tagfast token issue --secret-file secret --tenant acme \
                  --user ana)\n  \
                  tagfast token issue --secret-file secret --tenant acme --user ops --scope \
                  'tags:read admin' --ttl 1h")]
pub(crate) struct TokenIssueArgs {
    /// File with the server's `auth.hs256_secret_file`.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub secret_file: PathBuf,
    /// Tenant.
    #[arg(long)]
    pub tenant: String,
    /// User (`sub`).
    #[arg(long)]
    pub user: String,
    /// Scopes, separated by blanks: tags:read, tags:write, admin.
    #[arg(long, default_value = "tags:read tags:write")]
    pub scope: String,
    /// How long the token is valid, for example 30m, 12h, 7d.
    #[arg(long, default_value = "24h", value_parser = duration)]
    pub ttl: std::time::Duration,
    /// `aud`, if the server requires one.
    #[arg(long)]
    pub audience: Option<String>,
    /// `iss`, if the server requires one.
    #[arg(long)]
    pub issuer: Option<String>,
}

/// The configuration file.
#[derive(Debug, Args)]
pub(crate) struct ConfigFile {
    /// Configuration file (TOML).
    #[arg(
        long,
        value_name = "FILE",
        env = "TAGFAST_CONFIG",
        value_hint = ValueHint::FilePath
    )]
    pub config: Option<PathBuf>,
}

/// `config`
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check the configuration without starting anything.
    #[command(after_help = "Example:\n  \
                  tagfast config check --config tagfast.toml")]
    Check(ConfigFile),
    /// Show the values in effect and where each comes from; passwords are hidden.
    #[command(after_help = "Example:\n  \
                  TAGFAST__SERVER__LISTEN=127.0.0.1:8080 tagfast config print --config tagfast.toml")]
    Print(ConfigFile),
    /// Print the reference of all keys (docs/reference/configuration.md).
    #[command(after_help = "Example:\n  \
                  tagfast config docs | less")]
    Docs,
}
