//! Logs, metrics and traces of a server process.
//!
//! Logs go to stderr: text on a terminal, JSON otherwise. Metrics are rendered by `/metrics`
//! itself; no second listener. Traces are off unless an OTLP endpoint is configured. None of them
//! can stop the service: a log that cannot be written and a collector that does not answer are
//! ignored. No secret of a URL reaches a log, whichever library writes it.

pub(crate) mod listen_queue;
pub(crate) mod metrics;
pub(crate) mod process;
pub(crate) mod trace;
pub(crate) mod traced_sink;

use std::io::Write;

use tagfast_client::error::CliError;
use tagfast_client::terminal::Terminal;
use tagfast_resilience::secret::scrubbed;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::config::{LogConfig, LogFormat, TelemetryConfig};

/// stderr, without what may be secret in URLs: libraries log the addresses that they were given.
struct ScrubbedStderr;

impl Write for ScrubbedStderr {
    /// Takes a whole event at once, as the layer of logs writes it.
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        std::io::stderr().lock().write_all(scrubbed(&text).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Starts logging, and tracing if it is configured. A process may call this once, and must do so
/// within a tokio runtime, which the exporter uses.
///
/// # Errors
/// The filter of `log.level` is malformed, or the exporter cannot be made.
pub(crate) fn start(
    log: &LogConfig,
    telemetry: &TelemetryConfig,
    terminal: &Terminal,
) -> Result<Option<trace::Traces>, CliError> {
    let filter = EnvFilter::try_new(&log.level)
        .map_err(|e| CliError::usage(format!("log.level {:?}", log.level)).with_source(e))?;
    let text = match log.format {
        LogFormat::Auto => terminal.bars,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let lines = fmt::layer().with_writer(|| ScrubbedStderr);
    let lines = if text {
        lines.with_ansi(terminal.err_color).with_target(false).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    };
    let traces = trace::Traces::start(telemetry)?;
    let spans = traces.as_ref().map(trace::Traces::layer);
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(spans)
        .try_init()
        .map_err(|e| CliError::new("cannot start logging").with_source(e))?;
    Ok(traces)
}
