//! `cargo xtask bench`: every figure of docs/performance.md beside its baseline, measured in the same run.
//!
//! Absolute numbers say more about the machine than about the program, so each figure is measured in turns with a
//! baseline that pays for the same things (A B A B, the median of each): a bare HTTP server with the same body, the same
//! HTTP layer over a store that keeps nothing, plain SQLite. The ratio is what counts.

mod data;
mod figure;
mod http;
mod load;
mod report;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use self::figure::{Figure, from_bench};
use crate::run::{cargo, root, run, stage, target_dir};

#[derive(clap::Args)]
pub(crate) struct BenchOptions {
    /// Short runs: shows that everything works, the figures mean little and docs/performance.md stays as it is.
    #[arg(long)]
    quick: bool,
    /// Only the figures of HTTP, import, memory and start.
    #[arg(long)]
    http_only: bool,
}

/// What the figures need to know.
pub(crate) struct Setup {
    pub(crate) quick: bool,
    /// The program, built for release.
    pub(crate) program: PathBuf,
    /// Where the baselines are.
    pub(crate) examples: PathBuf,
    /// A fresh directory for data.
    pub(crate) scratch: PathBuf,
    /// The demo data.
    pub(crate) sample: PathBuf,
}

pub(crate) fn bench(options: &BenchOptions) -> Result<()> {
    stage("build for release", || {
        run(cargo().args(["build", "--release", "--package", "tagfast", "--bins", "--examples"]))
    })?;
    let release = target_dir().join("release");
    let scratch = target_dir().join("bench").join("data");
    if scratch.exists() {
        std::fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    }
    std::fs::create_dir_all(&scratch)?;
    let setup = Setup {
        quick: options.quick,
        program: release.join("tagfast"),
        examples: release.join("examples"),
        sample: root().join("demo").join("debtags.ndjson.gz"),
        scratch: scratch.clone(),
    };
    let mut figures = stage("import, start, memory", || data::figures(&setup))?;
    figures.extend(stage("HTTP", || http::figures(&setup))?);
    if !options.http_only {
        for (title, package, bench) in
            [("store", "tagfast-store-embedded", "storage"), ("search engine", "tagfast-search", "search")]
        {
            figures.extend(stage(title, || crate_bench(package, bench, options.quick))?);
        }
    }
    std::fs::remove_dir_all(&scratch)?;
    report::write(&figures, options.quick)?;
    let missed: Vec<&Figure> = figures.iter().filter(|f| f.ok == Some(false)).collect();
    if !missed.is_empty() && !options.quick {
        println!("\n{} of {} figures miss their target:", missed.len(), figures.len());
        missed.iter().for_each(|f| println!("  {}: {}", f.what, f.target.as_deref().unwrap_or_default()));
    }
    Ok(())
}

/// A crate's own benchmark; the last line that it prints is its figures as JSON.
fn crate_bench(package: &str, bench: &str, quick: bool) -> Result<Vec<Figure>> {
    let mut command: Command = cargo();
    command.args(["bench", "--package", package, "--bench", bench, "--", "--json"]);
    if quick {
        command.arg("--quick");
    }
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run the bench {bench}"))?;
    if !output.status.success() {
        bail!("the bench {bench} of {package} failed ({})", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(line) = text.lines().rev().find(|l| l.starts_with('{')) else {
        bail!("the bench {bench} of {package} printed no figures");
    };
    from_bench(line).with_context(|| format!("the figures of {bench} cannot be read"))
}
