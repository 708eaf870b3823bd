//! Logs, metrics and traces of a server process.
//!
//! Logs go to stderr: text on a terminal, JSON otherwise. Metrics are rendered by `/metrics`
//! itself; no second listener. Traces are off unless an OTLP endpoint is configured. None of them
//! can stop the service: a log that cannot be written and a collector that does not answer are
//! ignored.

pub mod applied;
pub mod metrics;
pub mod process;
pub mod trace;

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::config::{LogConfig, LogFormat, TelemetryConfig};
use crate::failure::Failure;

/// Starts logging, and tracing if it is configured. Needs a tokio runtime for the exporter. Once a
/// process.
pub fn start(
    log: &LogConfig,
    telemetry: &TelemetryConfig,
) -> Result<Option<trace::Traces>, Failure> {
    let filter = EnvFilter::try_new(&log.level)
        .map_err(|e| Failure::usage(format!("log.level {:?}: {e}", log.level)))?;
    let terminal = std::io::stderr().is_terminal();
    let text = match log.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = if text {
        lines.with_ansi(terminal).with_target(false).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    };
    let traces = trace::Traces::start(telemetry)?;
    let spans = traces.as_ref().map(trace::Traces::layer);
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(spans)
        .try_init()
        .map_err(|e| Failure::new(format!("cannot start logging: {e}")))?;
    Ok(traces)
}
