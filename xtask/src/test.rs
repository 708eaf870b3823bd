//! `cargo xtask test`: installs, builds, runs everything, ends with the totals.

use std::time::Instant;

use anyhow::Result;

use tagfast_testkit::stack::{Needs, install, install_libraries};

use crate::run::{cargo, run, stage};
use crate::totals::Totals;
use crate::{alerts, clients_test, features, schema_test, test_binaries, tools};

#[derive(clap::Args)]
pub(crate) struct TestOptions {
    /// Only what needs no server and no tool from outside cargo.
    #[arg(long, conflicts_with = "full")]
    fast: bool,
    /// Big counts and long fault loops too.
    #[arg(long)]
    full: bool,
    /// Arguments for the test binaries, for example a test's name.
    #[arg(last = true)]
    filter: Vec<String>,
}

impl TestOptions {
    /// What cargo builds. Tests with real servers are in binaries named `real`, `faults` and
    /// `matrix`.
    fn build(&self) -> Vec<String> {
        let targets: &[&str] = if self.fast {
            &["--lib", "--bins", "--test", "it"]
        } else {
            &["--lib", "--bins", "--tests"]
        };
        let targets = targets.iter().map(|target| (*target).to_owned());
        targets.chain(["--features".to_owned(), features::tests(self.full)]).collect()
    }
}

/// Runs everything; whether all of it passed. The last line that it prints is the totals, also when
/// a stage before the tests failed: that counts as one failure.
pub(crate) fn test(options: &TestOptions) -> bool {
    let started = Instant::now();
    let mut totals = Totals::default();
    if let Err(error) = stages(options, &mut totals) {
        println!("\nxtask: {error:#}");
        totals.failed = totals.failed.max(1);
    }
    if totals.ignored > 0 {
        println!("\n{} tests were skipped: a test that does not run is no test", totals.ignored);
        totals.failed += totals.ignored;
    }
    println!("\nall stages took {:.0} s", started.elapsed().as_secs_f64());
    println!("{} passed, {} failed", totals.passed, totals.failed);
    totals.failed == 0 && totals.passed > 0
}

fn stages(options: &TestOptions, totals: &mut Totals) -> Result<()> {
    let contract = !options.fast && options.filter.is_empty();
    let schemathesis =
        if contract { Some(stage("install tools", tools::schemathesis)?) } else { None };
    if contract {
        stage("install promtool", alerts::promtool)?;
    }
    let generators = if contract {
        Some(stage("install client generators", || clients_test::install(options.full))?)
    } else {
        None
    };
    stage("install libraries", || install_libraries(&|line| println!("{line}")))?;
    stage("format", || run(cargo().args(["fmt", "--all", "--check"])))?;
    if !options.fast {
        stage("install servers", || {
            let needs =
                Needs { clusters: true, redis: true, kafka: true, opensearch: true, netns: false };
            install(needs, &|line| println!("{line}")).map(drop)
        })?;
    }
    let binaries = stage("build", || test_binaries::build(&options.build()))?;
    // The first command of the README builds without features; the tests have some.
    stage("build without features", || {
        run(cargo().args(["test", "--workspace", "--no-run", "--bin", "tagfast"]))
    })?;
    totals.add(stage("tests", || test_binaries::run_all(binaries, &options.filter))?);
    if contract {
        totals.add(stage("alert rules", alerts::check)?);
    }
    if let Some(schemathesis) = schemathesis {
        totals.add(stage("contract test of the HTTP API", || {
            schema_test::run(&schemathesis, options.full)
        })?);
    }
    if let Some(generators) = generators {
        totals.add(stage("generated clients", || clients_test::test(&generators))?);
    }
    Ok(())
}
