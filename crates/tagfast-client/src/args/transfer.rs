//! `import` and `export`.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::connection::ClientArgs;

/// `import`
#[derive(Debug, Args)]
#[command(
    after_help = "One line per content: {\"type\": \"jira.issue\", \"id\": \"PROJ-1\", \"tags\": \
                  [\"ui\", {\"tag\": \"Critical\", \"by\": \"ana\", \"at\": \
                  \"2026-01-31T12:00:00Z\"}]}\n\n\
                  Examples:\n  \
                  tagfast import tags.ndjson.gz\n  \
                  zcat tags.ndjson.gz | tagfast import -\n  \
                  tagfast import tags.ndjson --wait --json\n\n\
                  Each line is applied whole or not at all, the lines of one content in the order \
                  of the file. Bad lines are reported by number and skipped (exit code 3). An \
                  interrupted import resumes where it stopped when it is started again; stdin and \
                  pipes need --state for that. If the input breaks off, what was read is \
                  imported first (exit code 1)."
)]
pub struct ImportArgs {
    /// NDJSON file or pipe, also gzipped; - reads from stdin.
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Checkpoint file of the import (default: FILE.tagfast-import; none for stdin and pipes).
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub state: Option<PathBuf>,
    /// Start over although a checkpoint of an interrupted import exists.
    #[arg(long)]
    pub restart: bool,
    /// Wait until a search finds everything imported.
    #[arg(long)]
    pub wait: bool,
    /// Lines per request.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub batch: u32,
    /// Requests in flight at the same time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub parallel: u32,
    /// Retries of a refused or failed request.
    #[arg(long, default_value_t = 10)]
    pub retries: u32,
    /// The server and the caller.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `export`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                  tagfast export tags.ndjson\n  \
                  tagfast export tags.ndjson.gz\n  \
                  tagfast export - | wc -l\n\n\
                  A regular file is replaced when the export is complete; its owner and mode \
                  stay. A link stays, and a pipe or device is written through.")]
pub struct ExportArgs {
    /// File to write, gzipped if it ends in .gz; - writes to stdout.
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The server and the caller.
    #[command(flatten)]
    pub client: ClientArgs,
}
