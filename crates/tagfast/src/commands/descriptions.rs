//! Commands that print a description of the program: metrics, the API, completions.

use tagfast_client::error::{CommandResult, Exit};
use tagfast_client::terminal::Terminal;

use crate::telemetry::metrics;

/// `debug metrics-docs`
pub(super) fn metrics_docs(terminal: &Terminal) -> CommandResult {
    terminal.bytes(metrics::markdown().as_bytes())?;
    Ok(Exit::Done)
}

/// `openapi`
pub(super) fn openapi(terminal: &Terminal) -> CommandResult {
    terminal.value(&serde_json::to_value(tagfast_api::openapi())?)?;
    Ok(Exit::Done)
}

/// `completions`
pub(super) fn completions(shell: clap_complete::Shell, terminal: &Terminal) -> CommandResult {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::cli::command(), "tagfast", &mut script);
    terminal.bytes(&script)?;
    Ok(Exit::Done)
}
