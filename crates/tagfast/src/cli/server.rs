//! Commands that run a server or copy its files.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

/// A role of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// All roles; the only value of embedded mode.
    All,
    /// Serves HTTP.
    Api,
    /// Publishes the outbox.
    Relay,
    /// Feeds the search index.
    Indexer,
    /// Counts popular tags.
    Analytics,
    /// Supervises and replays dead letters.
    Replayer,
}

/// `serve`
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
                  tagfast serve                              embedded, on http://127.0.0.1:7070, \
                  data in ./tagfast-data\n  \
                  tagfast serve --demo                       with 29,795 tagged Debian packages \
                  to play with\n  \
                  tagfast serve --config tagfast.toml\n  \
                  tagfast serve --listen 127.0.0.1:0 --port-file port\n\n\
                  Ctrl-C (or SIGTERM) finishes the requests in flight and closes the store; a \
                  second one ends at once.")]
pub(crate) struct ServeArgs {
    /// Configuration file (TOML).
    #[arg(
        long,
        value_name = "FILE",
        env = "TAGFAST_CONFIG",
        value_hint = ValueHint::FilePath
    )]
    pub config: Option<PathBuf>,
    /// Address and port [default: 127.0.0.1:7070].
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Data directory [default: ./tagfast-data].
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub data_dir: Option<PathBuf>,
    /// Roles of this process; embedded mode runs all of them in one process.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "all")]
    pub role: Vec<Role>,
    /// Load the bundled sample at the first start and print what to try.
    #[arg(long)]
    pub demo: bool,
    /// Write the port to this file once the server listens.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub port_file: Option<PathBuf>,
}

/// `backup`
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  \
                  tagfast backup /var/backups/tagfast-monday --data-dir ./tagfast-data\n  \
                  tagfast backup verify /var/backups/tagfast-monday\n\n\
                  The server may be running: each file is copied as of one moment. The search \
                  index and the counts are not copied; a restore rebuilds them. To back up into a \
                  directory called verify, write ./verify."
)]
pub(crate) struct BackupArgs {
    /// `verify`
    #[command(subcommand)]
    pub command: Option<BackupCommand>,
    /// Directory to create; it must not exist or be empty.
    #[arg(required = true, value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// The data directory to copy.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "./tagfast-data",
        value_hint = ValueHint::DirPath
    )]
    pub data_dir: PathBuf,
}

/// What else can be done with a backup.
#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Compare every byte of a backup with its checksums; changes nothing.
    Verify(VerifyArgs),
}

/// `backup verify`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
                  tagfast backup verify /var/backups/tagfast-monday\n\n\
                  Exit codes: 0 the backup is what was saved, 1 it is not (every wrong file is \
                  named), 2 wrong usage, 3 a backup of an earlier version without checksums: its \
                  databases are whole, its content cannot be compared.")]
pub(crate) struct VerifyArgs {
    /// Directory of the backup.
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
}

/// `restore`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
                  tagfast restore /var/backups/tagfast-monday --data-dir ./tagfast-data\n\n\
                  Every byte of the backup is compared with its checksums before anything is \
                  made. A restored directory begins a new epoch: receipts of writes after the \
                  backup answer `unknown`, and the search index and the counts are rebuilt at the \
                  next start.")]
pub(crate) struct RestoreArgs {
    /// Directory of the backup.
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// The data directory to create; it must not exist or be empty.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "./tagfast-data",
        value_hint = ValueHint::DirPath
    )]
    pub data_dir: PathBuf,
}
