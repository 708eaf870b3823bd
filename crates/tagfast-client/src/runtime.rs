//! The async runtime of a command.

use std::future::Future;

use tokio::runtime::{Builder, Runtime};

use crate::error::{CliError, CommandResult};
use crate::signal::stop_signal;

/// A runtime for commands that wait for a server.
///
/// # Errors
/// The operating system gives no threads.
pub fn runtime() -> Result<Runtime, CliError> {
    Ok(Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Runs a client command; Ctrl-C ends it as a failure.
pub(crate) fn block_on(command: impl Future<Output = CommandResult>) -> CommandResult {
    block_on_until(command, || Err(CliError::new("interrupted")))
}

/// Runs a client command; Ctrl-C ends it with the result of `interrupted`.
pub(crate) fn block_on_until(
    command: impl Future<Output = CommandResult>,
    interrupted: impl FnOnce() -> CommandResult,
) -> CommandResult {
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let mut stop = stop_signal()?;
        tokio::select! {
            result = command => result,
            _ = stop.wait_for(|stop| *stop) => interrupted(),
        }
    });
    // A thread that still reads stdin must not keep the process alive.
    runtime.shutdown_background();
    result
}
