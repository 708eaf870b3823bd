//! The contract test: a real server, its own OpenAPI document, requests that try to break both.
//!
//! Any 5xx that is not a documented 501, 503 or 507 fails, as does any undocumented status and any body that is not what
//! the document says.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::run::{cargo, run as run_command, target_dir};
use crate::test::Totals;

/// Checks that hold for every answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
                      response_headers_conformance";

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the tester against a fresh server; one test passed or failed.
fn run_against(schemathesis: &Path, examples: u32) -> Result<bool> {
    run_command(cargo().args(["build", "--quiet", "--package", "tagfast"]))?;
    let dir = target_dir().join("tools").join("contract-data");
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    let program = target_dir().join("debug").join("tagfast");
    let mut child = Command::new(program)
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(&dir)
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the server")?;
    let stderr = child.stderr.take().context("the server has no error output")?;
    let server = Server(child);
    let mut lines = BufReader::new(stderr).lines();
    let url = loop {
        let Some(line) = lines.next() else { bail!("the server ended before it listened") };
        let line = line?;
        if let Some((_, url)) = line.split_once("listening on ") {
            let end = url.find(|c: char| c == '"' || c.is_whitespace()).unwrap_or(url.len());
            break url[..end].to_owned();
        }
    };
    // What it logs meanwhile must not fill the pipe.
    let drain = std::thread::spawn(move || lines.for_each(drop));
    let status = Command::new(schemathesis)
        .args(["run", &format!("{url}/openapi.json"), "--checks", CHECKS])
        .args(["--max-examples", &examples.to_string(), "--phases", "examples,coverage,fuzzing"])
        .args(["--seed", "1", "--request-timeout", "20", "--no-color", "--generation-database", "none"])
        .current_dir(target_dir().join("tools"))
        .status()
        .context("cannot start schemathesis")?;
    drop(server);
    let _ = drain.join();
    Ok(status.success())
}

pub(crate) fn run(schemathesis: &Path, full: bool) -> Result<Totals> {
    let passed = run_against(schemathesis, if full { 200 } else { 12 })?;
    Ok(Totals { passed: u64::from(passed), failed: u64::from(!passed), ..Totals::default() })
}
