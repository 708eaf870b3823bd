//! SIGINT and SIGTERM: the first asks for an orderly end, the second ends the process at once.

use tagfast_resilience::task::TaskTracker;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::error::CliError;

/// Becomes `true` at the first SIGINT or SIGTERM; the second one ends the process.
///
/// The task that listens ends with the runtime, not with the last receiver: the second signal must
/// end a process whose orderly end hangs.
///
/// # Errors
/// The signal handlers cannot be installed. Panics outside of a runtime.
pub fn stop_signal() -> Result<watch::Receiver<bool>, CliError> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (sender, receiver) = watch::channel(false);
    TaskTracker::new().spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if sender.send_replace(true) {
                end_now();
            }
        }
    });
    Ok(receiver)
}

#[expect(
    clippy::exit,
    reason = "a second signal asks for exactly this; nothing acknowledged is lost"
)]
fn end_now() {
    std::process::exit(1);
}
