//! `cargo xtask bench`: every figure of docs/measured/performance.md beside its baseline, measured
//! in the same run.
//!
//! Absolute numbers say more about the machine than about the program, so each figure is measured
//! in turns with a baseline that pays for the same things (A B A B, the median of each): a bare
//! HTTP server with the same body, the same HTTP layer over a store that keeps nothing, plain
//! SQLite. The ratio is what counts.

mod data;
mod figure;
mod http;
mod load;
mod node;
mod report;
mod setup;
mod storage;

use std::process::Stdio;

use anyhow::{Context, Result, bail};

use self::figure::{Figure, from_bench};
use self::report::Section;
use self::setup::Setup;
use self::storage::Lines;
use crate::features;
use crate::run::{cargo, root, run, stage, target_dir};

#[derive(clap::Args)]
pub(crate) struct BenchOptions {
    /// Short runs: shows that everything works, the figures mean little and
    /// docs/measured/performance.md stays as it is.
    #[arg(long)]
    quick: bool,
    /// Only the figures of HTTP, import, memory and start.
    #[arg(long)]
    http_only: bool,
    /// Only the figures of PostgreSQL clusters.
    #[arg(long, conflicts_with = "http_only")]
    clusters_only: bool,
}

type CrateBench = fn(&BenchOptions) -> Result<Vec<Figure>>;

pub(crate) fn bench(options: &BenchOptions) -> Result<()> {
    stage("build for release", || {
        run(cargo()
            .args(["build", "--release", "--package", "tagfast", "--bins", "--examples"])
            .args(["--features", features::KAFKA]))
    })?;
    let release = target_dir().join("release");
    let scratch = target_dir().join("bench").join("data");
    if scratch.exists() {
        std::fs::remove_dir_all(&scratch)
            .with_context(|| format!("cannot remove {}", scratch.display()))?;
    }
    std::fs::create_dir_all(&scratch)?;
    let setup = Setup {
        quick: options.quick,
        program: release.join("tagfast"),
        sample: root().join("demo").join("debtags.ndjson.gz"),
        scratch: scratch.clone(),
    };
    // One that fails must not take the others' figures with it.
    let mut failed = Vec::new();
    if !options.clusters_only {
        let mut figures = stage("import, start, memory", || data::figures(&setup))?;
        figures.extend(stage("HTTP", || http::figures(&setup))?);
        if !options.http_only {
            let benches: [(&str, CrateBench); 3] = [
                ("search engine", search),
                ("store", store),
                ("store with 10 million taggings", large_store),
            ];
            figures.extend(all_of(options, &benches, &mut failed));
        }
        finish(Section::Embedded, &figures, options)?;
    }
    if !options.http_only {
        let benches: [(&str, CrateBench); 4] = [
            ("clusters beside pgbench", clusters),
            ("a cluster with 10 million taggings", large_cluster),
            ("failovers", failovers),
            ("events beside bare loops", events),
        ];
        let mut figures = all_of(options, &benches, &mut failed);
        match stage("a node with many clusters", || node::figures(&setup)) {
            Ok(more) => figures.extend(more),
            Err(error) => failed.push(format!("a node with many clusters: {error:#}")),
        }
        finish(Section::Clusters, &figures, options)?;
    }
    std::fs::remove_dir_all(&scratch)?;
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("\n")) }
}

fn all_of(
    options: &BenchOptions,
    benches: &[(&str, CrateBench)],
    failed: &mut Vec<String>,
) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (title, bench) in benches {
        match stage(title, || bench(options)) {
            Ok(more) => figures.extend(more),
            Err(error) => failed.push(format!("{title}: {error:#}")),
        }
    }
    figures
}

fn finish(section: Section, figures: &[Figure], options: &BenchOptions) -> Result<()> {
    report::write(section, figures, options.quick)?;
    let missed: Vec<&Figure> = figures.iter().filter(|f| f.ok == Some(false)).collect();
    if !missed.is_empty() && !options.quick {
        println!("\n{} of {} figures miss their target:", missed.len(), figures.len());
        missed
            .iter()
            .for_each(|f| println!("  {}: {}", f.what, f.target.as_deref().unwrap_or_default()));
    }
    Ok(())
}

/// The figures in the last line that a bench printed.
fn printed(text: &str) -> Result<Vec<Figure>> {
    let line = text.lines().rev().find(|l| l.starts_with("{\"figures\""));
    from_bench(line.context("the bench printed no figures")?).context("its figures cannot be read")
}

fn clusters(options: &BenchOptions) -> Result<Vec<Figure>> {
    let short = if options.quick { &["--seconds", "0.5"][..] } else { &[] };
    printed(&crate_bench("tagfast-store-postgres", "cluster", short)?)
}

fn large_cluster(options: &BenchOptions) -> Result<Vec<Figure>> {
    let short = if options.quick {
        &["--large", "--seconds", "0.5", "--contents", "40000"][..]
    } else {
        &["--large"]
    };
    printed(&crate_bench("tagfast-store-postgres", "cluster", short)?)
}

fn failovers(options: &BenchOptions) -> Result<Vec<Figure>> {
    let short = if options.quick { &["--quick"][..] } else { &[] };
    printed(&crate_bench("tagfast-store-postgres", "failover", short)?)
}

fn events(options: &BenchOptions) -> Result<Vec<Figure>> {
    let short = if options.quick {
        &[
            "--events",
            "5000",
            "--seconds",
            "3",
            "--dead-letters",
            "2000",
            "--outage",
            "0",
            "--embedded",
            "20000",
        ][..]
    } else {
        &[]
    };
    printed(&crate_bench("tagfast", "events", short)?)
}

fn search(_: &BenchOptions) -> Result<Vec<Figure>> {
    printed(&crate_bench("tagfast-search-tantivy", "search", &[])?)
}

fn store(options: &BenchOptions) -> Result<Vec<Figure>> {
    let short = if options.quick { &["--contents", "2000", "--seconds", "0.5"][..] } else { &[] };
    storage::usual(&Lines::parse(&crate_bench("tagfast-store-embedded", "storage", short)?))
}

fn large_store(options: &BenchOptions) -> Result<Vec<Figure>> {
    let short = if options.quick {
        &["--large", "--contents", "40000", "--seconds", "0.5"][..]
    } else {
        &["--large"]
    };
    storage::large(&Lines::parse(&crate_bench("tagfast-store-embedded", "storage", short)?))
}

/// A crate's own benchmark; what it prints. Its data lies below `target/`: the system's directory
/// for temporary files may be memory, where a durable write costs nothing.
fn crate_bench(package: &str, bench: &str, args: &[&str]) -> Result<String> {
    let mut command = cargo();
    command.args(["bench", "--package", package, "--bench", bench]);
    if package == "tagfast" {
        command.args(["--features", features::KAFKA]);
    }
    command.args(["--", "--json"]).args(args);
    command.env("TMPDIR", target_dir().join("bench"));
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run the bench {bench}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{text}");
    if !output.status.success() {
        bail!("the bench {bench} of {package} failed ({})", output.status);
    }
    Ok(text)
}
