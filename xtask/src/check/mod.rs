//! `cargo xtask check`: the rules of the tree that can be judged without running it.

mod arrows;
mod circles;
mod deny;
mod licences;
mod names;
mod promises;
mod sources;
mod words;

use anyhow::Result;

use crate::features;
use crate::run::{cargo, run, stage};

pub(crate) fn check() -> Result<()> {
    stage("format", || run(cargo().args(["fmt", "--all", "--check"])))?;
    stage("sources", sources::check)?;
    stage("words", words::check)?;
    stage("promises and their tests", promises::check)?;
    stage("names in the docs", names::check)?;
    stage("arrows between crates", arrows::check)?;
    stage("circles of imports", circles::check)?;
    stage("licences and bans", licences::check)?;
    stage("deny.toml", deny::check)?;
    stage("lints", || {
        run(cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--features",
            &features::tests(true),
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]))
    })?;
    stage("docs", || {
        run(cargo()
            .args(["doc", "--workspace", "--no-deps", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings"))
    })
}
