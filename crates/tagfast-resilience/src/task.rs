//! Tasks that outlive the call that starts them: each has an owner and a name, and is joined at
//! shutdown.
//!
//! A bare `tokio::spawn` is refused by a lint: no owner joins such a task, so its panic vanishes
//! and it may run on a half-closed store. One long task is a [`BackgroundTask`]; an owner of many
//! short ones keeps a [`TaskTracker`] and closes it.
//!
//! # How it fails
//! A task that panics is logged when it is joined; [`BackgroundTask::stop`] returns the panic as
//! [`JoinError`].

use parking_lot::Mutex;
use tokio::task::{JoinError, JoinHandle};
pub use tokio_util::sync::CancellationToken as StopSignal;
pub use tokio_util::task::TaskTracker;

/// A running background task. Dropping it asks the task to end without waiting for it.
#[derive(Debug)]
pub struct BackgroundTask {
    name: &'static str,
    stop: StopSignal,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl BackgroundTask {
    /// Starts `work`, which must return soon after its [`StopSignal`] is cancelled.
    pub fn spawn<F>(name: &'static str, work: impl FnOnce(StopSignal) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = StopSignal::new();
        let task = TaskTracker::new().spawn(work(stop.clone()));
        Self { name, stop, task: Mutex::new(Some(task)) }
    }

    /// Asks the task to end and waits until it has. A second call returns at once.
    ///
    /// # Errors
    /// The task panicked; returned once.
    pub async fn stop(&self) -> Result<(), JoinError> {
        self.stop.cancel();
        let task = self.task.lock().take();
        let Some(task) = task else { return Ok(()) };
        task.await.inspect_err(|error| tracing::error!(task = self.name, %error, "task panicked"))
    }
}

impl Drop for BackgroundTask {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Runs `work` on the pool of threads that may block.
///
/// # Errors
/// The work panicked, or the runtime is shutting down.
pub async fn blocking<T, F>(work: F) -> Result<T, JoinError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    TaskTracker::new().spawn_blocking(work).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_stopped_task_ends_and_its_panic_is_reported_once() {
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        let task = BackgroundTask::spawn("test", async move |stop: StopSignal| {
            stop.cancelled().await;
            seen.store(true, Ordering::SeqCst);
        });
        assert!(!ended.load(Ordering::SeqCst));
        task.stop().await.unwrap();
        task.stop().await.unwrap();
        assert!(ended.load(Ordering::SeqCst));
        let panics = BackgroundTask::spawn("test", async |_| panic!("on purpose"));
        assert!(panics.stop().await.is_err());
        assert!(panics.stop().await.is_ok());
    }

    #[tokio::test]
    async fn a_dropped_task_gets_its_stop_signal() {
        let (ended, end) = tokio::sync::oneshot::channel();
        drop(BackgroundTask::spawn("test", async move |stop: StopSignal| {
            stop.cancelled().await;
            let _ = ended.send(());
        }));
        end.await.unwrap();
    }

    #[tokio::test]
    async fn blocking_work_returns_its_value_or_its_panic() {
        assert_eq!(blocking(|| 7).await.unwrap(), 7);
        assert!(blocking(|| panic!("on purpose")).await.is_err());
    }
}
