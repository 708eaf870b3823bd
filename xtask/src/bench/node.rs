//! What one node of the service needs when it serves many clusters.

use std::time::Duration;

use anyhow::{Context, Result};
use tagfast_testkit::ServerOptions;
use tagfast_testkit::stack::{Stack, StackOptions, host};

use super::data::resident;
use super::figure::Figure;
use super::load::Load;
use super::setup::Setup;

/// Processor seconds of a process.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').context("no name in stat")?.1;
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / 100.0)
}

/// How long a stack of two clusters takes, memory and idle processor of a node with eight.
pub(crate) fn figures(setup: &Setup) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let everything = StackOptions {
        redis: true,
        kafka: true,
        opensearch: true,
        ..StackOptions::clusters_only(2, setup.scratch.join("two"))
    };
    let began = std::time::Instant::now();
    drop(Stack::up(&everything, &|_| ())?);
    let ready = began.elapsed().as_secs_f64();
    figures.push(
        Figure::new("the local cluster, 2 clusters and everything else, until ready", ready, "s")
            .target("<= 40 s", ready <= 40.0),
    );

    let clusters = if setup.quick { 2 } else { 8 };
    let stack =
        Stack::up(&StackOptions::clusters_only(clusters, setup.scratch.join("many")), &|line| {
            println!("{line}")
        })?;
    let server = ServerOptions::other(&setup.program)
        .arg("--config")
        .arg(&stack.info().config)
        .serve()
        .start();
    let mut client = server.client();
    host::wait_until("the node to be ready", Duration::from_secs(60), || {
        let answer = client.get("/readyz");
        if answer.status == 200 { Ok(()) } else { anyhow::bail!("{}", answer.text()) }
    })?;
    let before = cpu_seconds(server.pid())?;
    let began = std::time::Instant::now();
    idle_for(Duration::from_secs(if setup.quick { 2 } else { 15 }));
    let idle = (cpu_seconds(server.pid())? - before) / began.elapsed().as_secs_f64() * 100.0;
    let memory = resident(&server)? / 1e6;
    figures.push(
        Figure::new(format!("idle node with {clusters} clusters: processor"), idle, "% of a core")
            .target("<= 3 %", idle <= 3.0),
    );
    figures.push(
        Figure::new(format!("idle node with {clusters} clusters: memory"), memory, "MB")
            .target("<= 200 MB", memory <= 200.0),
    );
    let args =
        ["--mix", "view=80,tag=20", "--write", "--connections", "256"].map(str::to_owned).to_vec();
    Load { server: &server, args }.run(setup)?;
    let memory = resident(&server)? / 1e6;
    figures.push(
        Figure::new(
            "the same under load (256 connections, views and writes): memory",
            memory,
            "MB",
        )
        .target("<= 200 MB", memory <= 200.0),
    );
    Ok(figures)
}

#[expect(clippy::disallowed_methods, reason = "what is measured is that nothing happens")]
fn idle_for(time: Duration) {
    std::thread::sleep(time);
}
