//! The contract test: a real server, its own OpenAPI document, requests that try to break both.
//!
//! Any 5xx that is not a documented 501, 503 or 507 fails, as does any undocumented status and any
//! body that is not what the document says.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use tagfast_testkit::ServerOptions;

use crate::run::{root, target_dir};
use crate::totals::Totals;

/// Checks that hold for every answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
                      response_headers_conformance";

/// Runs the tester against a fresh server: the program that the tests were built with.
fn run_against(schemathesis: &Path, examples: u32) -> Result<bool> {
    let dir = target_dir().join("tools").join("contract-data");
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    let server = ServerOptions::new(target_dir().join("debug").join("tagfast"), &dir).start();
    server.wait_until_ready();
    let url = server.url();
    let status = Command::new(schemathesis)
        .arg("--config-file")
        .arg(root().join("xtask").join("schemathesis.toml"))
        .args(["run", &format!("{url}/openapi.json"), "--checks", CHECKS])
        .args(["--max-examples", &examples.to_string(), "--phases", "examples,coverage,fuzzing"])
        .args([
            "--seed",
            "1",
            "--request-timeout",
            "20",
            "--no-color",
            "--generation-database",
            "none",
        ])
        .current_dir(target_dir().join("tools"))
        .status()
        .context("cannot start schemathesis")?;
    if !status.success() {
        println!("the server's log:\n{}", server.log());
    }
    Ok(status.success())
}

pub(crate) fn run(schemathesis: &Path, full: bool) -> Result<Totals> {
    let passed = run_against(schemathesis, if full { 300 } else { 30 })?;
    Ok(Totals { passed: u64::from(passed), failed: u64::from(!passed), ..Totals::default() })
}
