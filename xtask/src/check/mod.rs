//! `cargo xtask check`: the rules of the tree that can be judged without running it.

mod arrows;
mod circles;
mod deny;
mod errors;
mod licences;
mod names;
mod promises;
mod sources;
mod words;

use anyhow::{Result, bail};

use crate::features;
use crate::run::{cargo, run, stage};

#[derive(clap::Args)]
pub(crate) struct CheckOptions {
    /// Only what needs no compiler; takes seconds.
    #[arg(long)]
    sources_only: bool,
}

type Stage = (&'static str, fn() -> Result<()>);

const SOURCE_STAGES: &[Stage] = &[
    ("format", format),
    ("sources", sources::check),
    ("words", words::check),
    ("promises and their tests", promises::check),
    ("names in the docs", names::check),
    ("arrows between crates", arrows::check),
    ("circles of imports", circles::check),
    ("messages of errors", errors::check),
    ("licences and bans", licences::check),
    ("deny.toml", deny::check),
];

const COMPILER_STAGES: &[Stage] = &[("lints", lints), ("docs", docs)];

/// Runs every stage, also behind one that fails, so that all that is wrong is shown at once.
pub(crate) fn check(options: &CheckOptions) -> Result<()> {
    let compiler = if options.sources_only { &[] } else { COMPILER_STAGES };
    let mut failed = Vec::new();
    for (name, work) in SOURCE_STAGES.iter().chain(compiler) {
        if let Err(error) = stage(name, work) {
            eprintln!("{error:#}");
            failed.push(*name);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

fn format() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))
}

fn lints() -> Result<()> {
    run(cargo()
        .args(["clippy", "--workspace", "--all-targets", "--features", &features::tests(true)])
        .args(["--quiet", "--", "-D", "warnings"]))?;
    // The first command of the README builds without features, and must not greet with a warning.
    run(cargo().args([
        "clippy",
        "--package",
        "tagfast",
        "--bins",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))
}

fn docs() -> Result<()> {
    run(cargo()
        .args(["doc", "--workspace", "--no-deps", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings"))
}
