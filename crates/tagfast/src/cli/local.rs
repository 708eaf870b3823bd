//! Commands that need no server.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `debug`
#[derive(Debug, Subcommand)]
pub enum DebugCommand {
    /// Show a stored document.
    Decode(DecodeArgs),
    /// Print the reference of all metrics (docs/metrics.md).
    #[command(hide = true)]
    MetricsDocs,
}

/// `debug decode`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tagfast debug decode --data-dir ./tagfast-data --content debian.package 0ad\n  \
                  tagfast debug decode --hex 01c0ffee\n  tagfast debug decode document.bin\n\n\
                  --data-dir needs a data directory that no server holds."
)]
pub struct DecodeArgs {
    /// File with the document's bytes; - reads from stdin.
    #[arg(conflicts_with_all = ["hex", "content"])]
    pub file: Option<String>,
    /// The bytes as hexadecimal digits.
    #[arg(long, conflicts_with = "content")]
    pub hex: Option<String>,
    /// Read from this data directory.
    #[arg(long, value_name = "DIR", requires = "content")]
    pub data_dir: Option<PathBuf>,
    /// Which content.
    #[arg(long, num_args = 2, value_names = ["TYPE", "ID"], requires = "data_dir")]
    pub content: Option<Vec<String>>,
    /// Whose content.
    #[arg(long, default_value = "default")]
    pub tenant: String,
}

/// `token`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Sign a development token (HS256).
    Issue(TokenIssueArgs),
}

/// `token issue`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  head -c 32 /dev/urandom | base64 > secret && chmod 600 secret\n  \
                  export TAGFAST_TOKEN=$(tagfast token issue --secret-file secret --tenant acme --user ana)\n  \
                  tagfast token issue --secret-file secret --tenant acme --user ops --scope 'tags:read admin' --ttl 1h"
)]
pub struct TokenIssueArgs {
    /// File with the server's `auth.hs256_secret_file`.
    #[arg(long, value_name = "FILE")]
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
    /// How long it is valid, for example 30m, 12h, 7d.
    #[arg(long, default_value = "24h", value_parser = crate::cli::local::duration)]
    pub ttl: std::time::Duration,
    /// `aud`, if the server asks for one.
    #[arg(long)]
    pub audience: Option<String>,
    /// `iss`, if the server asks for one.
    #[arg(long)]
    pub issuer: Option<String>,
}

/// Which configuration.
#[derive(Debug, Args)]
pub struct ConfigFile {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "TAGFAST_CONFIG")]
    pub config: Option<PathBuf>,
}

/// `config`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Judge it without starting anything.
    #[command(after_help = "Example:\n  tagfast config check --config tagfast.toml")]
    Check(ConfigFile),
    /// Show what is in effect and where each value comes from; passwords are hidden.
    #[command(
        after_help = "Example:\n  TAGFAST__SERVER__LISTEN=127.0.0.1:8080 tagfast config print --config tagfast.toml"
    )]
    Print(ConfigFile),
    /// Print the reference of all keys (docs/configuration.md).
    #[command(after_help = "Example:\n  tagfast config docs | less")]
    Docs,
}

/// `90`, `90s`, `1500ms`, `30m`, `12h`, `7d`.
pub(super) fn duration(text: &str) -> Result<std::time::Duration, String> {
    let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, unit) = text.split_at(digits);
    let bad =
        || format!("{text:?} is not a duration; write for example 500ms, 90s, 30m, 12h or 7d");
    let number: f64 = number.parse().map_err(|_| bad())?;
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(bad()),
    };
    std::time::Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::duration;

    #[test]
    fn durations_have_units() {
        for (text, ms) in
            [("90", 90_000), ("1500ms", 1500), ("0.5s", 500), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)));
        }
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        for bad in ["", "x", "5y", "-1s", "1e99d", "1.2.3s", "9999999999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
