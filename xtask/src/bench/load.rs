//! Driving servers with the load generator, in turns.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tagfast_testkit::ServerProcess;

use super::figure::median;
use super::setup::Setup;

/// A server under measurement and the load it gets.
pub(crate) struct Load<'a> {
    pub(crate) server: &'a ServerProcess,
    pub(crate) args: Vec<String>,
}

/// The medians of some runs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Measured {
    pub(crate) per_second: f64,
    pub(crate) cpu_us: f64,
    pub(crate) latency_us: [f64; 3],
}

impl Load<'_> {
    /// One run of the generator.
    pub(crate) fn run(&self, setup: &Setup) -> Result<Value> {
        let (duration, warmup) = if setup.quick { ("1s", "300ms") } else { ("6s", "1500ms") };
        let mut command = Command::new(&setup.program);
        command.args([
            "bench",
            "--json",
            "--duration",
            duration,
            "--warmup",
            warmup,
            "--url",
            &self.server.url(),
        ]);
        command.args(["--server-pid", &self.server.pid().to_string()]).args(&self.args);
        let output =
            command.stderr(Stdio::piped()).output().context("cannot start the load generator")?;
        let stderr = || String::from_utf8_lossy(&output.stderr).into_owned();
        let report: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("the load generator printed no JSON: {}", stderr()))?;
        let failed = report["failed"].as_u64().unwrap_or(0);
        let requests = report["requests"].as_u64().unwrap_or(0);
        // A figure with errors in it measures the errors.
        if requests == 0 || failed * 1000 > requests {
            bail!("{failed} of {requests} requests failed: {report}");
        }
        Ok(report)
    }
}

fn number(report: &Value, pointer: &str) -> f64 {
    report.pointer(pointer).and_then(Value::as_f64).unwrap_or_default()
}

/// Runs the loads in turns (A B A B A B) and takes the median of each figure of each load.
pub(crate) fn measure_alternately<const N: usize>(
    setup: &Setup,
    loads: [&Load<'_>; N],
) -> Result<[Measured; N]> {
    let rounds = if setup.quick { 1 } else { 3 };
    let mut reports: [Vec<Value>; N] = std::array::from_fn(|_| Vec::new());
    for _ in 0..rounds {
        for (load, reports) in loads.iter().zip(&mut reports) {
            reports.push(load.run(setup)?);
        }
    }
    Ok(reports.map(|reports| {
        let of = |pointer: &str| median(reports.iter().map(|r| number(r, pointer)).collect());
        Measured {
            per_second: of("/requests_per_second"),
            cpu_us: of("/server_cpu_us_per_request"),
            latency_us: ["/latency_us/p50", "/latency_us/p99", "/latency_us/p999"].map(of),
        }
    }))
}
