//! `bench`: the options of the load generator.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};

use super::duration::duration;

/// `bench`
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
                  tagfast bench --connections 64 --duration 10s                  maximum \
                  throughput\n  \
                  tagfast bench --rate 5000 --mix view=90,tag=10 --write         latency at a \
                  fixed rate\n  \
                  tagfast bench --mix search=1 --query 'role::program AND \
                  interface::commandline'\n  \
                  tagfast bench --path /hello --connections 64                   a fixed path, \
                  for a baseline\n\n\
                  In the open loop (--rate), latency counts from the moment a request is due, so \
                  that the requests held up by a stalled server count too (no coordinated \
                  omission).")]
pub struct BenchArgs {
    /// URL of the server, http only.
    #[arg(
        long,
        env = "TAGFAST_URL",
        hide_env_values = true,
        default_value = "http://127.0.0.1:7070"
    )]
    pub url: String,
    /// Bearer token.
    #[arg(long, env = "TAGFAST_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Connections; in the closed loop each has one request in flight.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub connections: u32,
    /// Requests per second (open loop); closed loop without it.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub rate: Option<u32>,
    /// How long to measure.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// How long to run before measuring.
    #[arg(long, default_value = "2s", value_parser = duration)]
    pub warmup: Duration,
    /// Weights of view, tag, search, popular, suggest, batch_view and batch_tag [default: view, or
    /// view=90,tag=10 with --write]; every tag request changes something.
    #[arg(long, conflicts_with = "path")]
    pub mix: Option<String>,
    /// Allow tag and batch_tag, which change tags of the server. What they wrote is removed at the
    /// end, also after Ctrl-C.
    #[arg(long, conflicts_with = "path")]
    pub write: bool,
    /// GET this path only.
    #[arg(long)]
    pub path: Option<String>,
    /// Contents to use, as an NDJSON file (also .gz) in the import's format; synthetic ones
    /// without it.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub ids_from: Option<PathBuf>,
    /// Number of synthetic contents.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub contents: u32,
    /// Skew of the content choice: 0 = uniform, 1 = Zipf.
    #[arg(long, default_value_t = 0.99)]
    pub zipf: f64,
    /// Queries for `search`; without it pairs of tags from the contents.
    #[arg(long)]
    pub query: Vec<String>,
    /// Request facets in `search`.
    #[arg(long)]
    pub facets: bool,
    /// Hits, tags or suggestions per request.
    #[arg(long, default_value_t = 20)]
    pub limit: u32,
    /// Seed of the random choices.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Threads of the generator.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// Report the CPU time per request of this process on the same machine.
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
    /// How long an answer may take before it counts as failed.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub timeout: Duration,
}

impl BenchArgs {
    /// The mix of requests; without `--write` nothing is written.
    pub fn mix(&self) -> &str {
        let default = if self.write { "view=90,tag=10" } else { "view" };
        self.mix.as_deref().unwrap_or(default)
    }
}
