//! `cargo xtask check`: everything that can be said of the tree without running it.

use anyhow::Result;

use crate::run::{cargo, run, stage};
use crate::{arrows, licences, tree};

pub(crate) fn check() -> Result<()> {
    stage("format", || run(cargo().args(["fmt", "--all", "--check"])))?;
    stage("files", tree::check)?;
    stage("arrows between crates", arrows::check)?;
    stage("licences and bans", licences::check)?;
    stage("lints", || {
        run(cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--features",
            "tagfast-store-postgres/full",
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
