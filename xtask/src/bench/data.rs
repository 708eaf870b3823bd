//! Import, memory and start: figures of a server with the demo data.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tagfast_testkit::{ServerOptions, ServerProcess};

use super::figure::{Figure, median};
use super::load::Load;
use super::setup::Setup;

const MB: f64 = 1e6;

/// Imports the demo data over HTTP and waits until it can be found.
fn import(setup: &Setup, server: &ServerProcess) -> Result<Value> {
    let output = Command::new(&setup.program)
        .args(["import", "--json", "--wait", "--restart", "--url", &server.url(), "--state"])
        .arg(setup.scratch.join("import-state"))
        .arg(&setup.sample)
        .output()
        .context("cannot start the import")?;
    if !output.status.success() {
        bail!("the import failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Memory of a process, bytes.
pub(crate) fn resident(server: &ServerProcess) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid()))?;
    let kib = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    Ok(kib.map_or(0.0, |kib: f64| kib * 1024.0))
}

pub(crate) fn figures(setup: &Setup) -> Result<Vec<Figure>> {
    let (mut rates, mut searchable) = (Vec::new(), Vec::new());
    let runs = if setup.quick { 1 } else { 3 };
    let mut last = None;
    for run in 0..runs {
        drop(last.take());
        let dir = setup.scratch.join(format!("import-{run}"));
        let server = ServerOptions::new(&setup.program, &dir).start();
        server.wait_until_ready();
        let report = import(setup, &server)?;
        rates.push(report["taggings_per_second"].as_f64().unwrap_or_default());
        searchable.push(report["searchable_after_seconds"].as_f64().unwrap_or_default());
        last = Some((server, dir));
    }
    let (mut server, dir) = last.context("no run")?;
    let (rate, searchable) = (median(rates), median(searchable));
    let mut figures = vec![
        Figure::new("import of debtags over HTTP, until acknowledged", rate, "taggings/s")
            .target(">= 50,000/s", rate >= 50_000.0),
        Figure::new("searchable after the end of the import", searchable, "s")
            .target("<= 2 s", searchable <= 2.0),
    ];

    let mut starts = Vec::new();
    for _ in 0..runs {
        server.stop();
        let started = Instant::now();
        server = ServerOptions::new(&setup.program, &dir).start();
        server.wait_until_ready();
        starts.push(started.elapsed().as_secs_f64());
    }
    let start = median(starts);
    figures.push(
        Figure::new("start of an existing directory, until ready", start, "s")
            .target("<= 1 s", start <= 1.0),
    );

    let idle = resident(&server)? / MB;
    figures.push(
        Figure::new("memory with debtags, idle", idle, "MB").target("<= 120 MB", idle <= 120.0),
    );
    let sample = setup.sample.display().to_string();
    let mix = "view=60,tag=20,search=10,popular=5,suggest=5";
    let args = ["--mix", mix, "--write", "--connections", "256", "--ids-from", &sample]
        .map(str::to_owned)
        .to_vec();
    let report = Load { server: &server, args }.run(setup)?;
    let loaded = report["server_rss_bytes"].as_f64().unwrap_or_default() / MB;
    figures.push(
        Figure::new("memory with debtags, under load (256 connections, all calls)", loaded, "MB")
            .target("<= 300 MB", loaded <= 300.0),
    );
    server.stop();
    Ok(figures)
}
