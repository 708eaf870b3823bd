//! Tasks that outlive the call that starts them: each has an owner and a name, and is joined at
//! shutdown.
//!
//! A bare `tokio::spawn` is refused by a lint: no owner joins such a task, so its panic vanishes
//! and it may run on a half-closed store. One long task is a [`BackgroundTask`]; an owner of many
//! short ones keeps a [`TaskGroup`], or a [`TaskTracker`] if every task ends by itself soon.
//!
//! The process knows the names of its tasks: [`wait_until_ended`] finds at shutdown what no owner
//! has joined.
//!
//! # How it fails
//! A task that panics is logged when it is joined; [`BackgroundTask::stop`] returns the panic as
//! [`JoinError`].

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
pub use tokio_util::sync::CancellationToken as StopSignal;
pub use tokio_util::task::TaskTracker;

/// How many tasks of each name run in this process.
static RUNNING: Mutex<BTreeMap<&'static str, usize>> = Mutex::new(BTreeMap::new());
/// Interval between two looks at the tasks that still run, during a shutdown.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Counts a task in [`RUNNING`] from its start until it ends or is dropped.
struct Running(&'static str);

impl Running {
    fn enter(name: &'static str) -> Self {
        *RUNNING.lock().entry(name).or_default() += 1;
        Self(name)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = RUNNING.lock();
        if let Some(count) = running.get_mut(self.0) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.0);
            }
        }
    }
}

/// Waits until no named task of this process runs, at most for `timeout`. Returns those that still
/// run: their names and how many of each.
pub async fn wait_until_ended(timeout: Duration) -> Vec<(&'static str, usize)> {
    let deadline = Instant::now() + timeout;
    loop {
        let running: Vec<_> = RUNNING.lock().iter().map(|(name, count)| (*name, *count)).collect();
        if running.is_empty() || Instant::now() >= deadline {
            return running;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

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
        let running = Running::enter(name);
        let work = work(stop.clone());
        let task = TaskTracker::new().spawn(async move {
            let _running = running;
            work.await;
        });
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

/// Many tasks with one owner and one name, such as work that outlives the request that started it.
/// Copies are the same group.
#[derive(Debug, Clone)]
pub struct TaskGroup {
    name: &'static str,
    tasks: TaskTracker,
    stop: StopSignal,
}

impl TaskGroup {
    /// An empty group.
    pub fn new(name: &'static str) -> Self {
        Self { name, tasks: TaskTracker::new(), stop: StopSignal::new() }
    }

    /// Starts a task. It yields `None` if the group is stopped before the task ends.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<Option<T>> {
        let (running, stop) = (Running::enter(self.name), self.stop.clone());
        self.tasks.spawn(async move {
            let _running = running;
            stop.run_until_cancelled(work).await
        })
    }

    /// Number of tasks that run.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether no task runs.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Waits until all tasks have ended, at most for `timeout`; then drops those that still run
    /// and waits until they are gone. A task that is started later ends at once.
    pub async fn stop(&self, timeout: Duration) {
        self.tasks.close();
        if tokio::time::timeout(timeout, self.tasks.wait()).await.is_err() {
            let (group, tasks) = (self.name, self.len());
            tracing::warn!(group, tasks, "tasks did not end in time; they are dropped");
        }
        self.stop.cancel();
        self.tasks.wait().await;
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

/// Runs `work` on the pool of threads that may block, for as long as a caller waits for it: when
/// the returned future is dropped, `work` gets its [`StopSignal`]. Work that takes longer than a
/// few milliseconds must look at it in its loops and return early.
///
/// # Errors
/// The work panicked, or the runtime is shutting down.
pub async fn blocking_while_wanted<T, F>(work: F) -> Result<T, JoinError>
where
    T: Send + 'static,
    F: FnOnce(&StopSignal) -> T + Send + 'static,
{
    let stop = StopSignal::new();
    let _stops_when_dropped = stop.clone().drop_guard();
    blocking(move || work(&stop)).await
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

    fn running(name: &str) -> usize {
        RUNNING.lock().get(name).copied().unwrap_or_default()
    }

    #[tokio::test]
    async fn a_task_is_known_by_its_name_until_it_has_ended() {
        let task = BackgroundTask::spawn("a known task", async |stop: StopSignal| {
            stop.cancelled().await;
        });
        assert_eq!(running("a known task"), 1);
        assert!(wait_until_ended(Duration::ZERO).await.contains(&("a known task", 1)));
        task.stop().await.unwrap();
        assert_eq!(running("a known task"), 0);
        let panics = BackgroundTask::spawn("a panic", async |_| panic!("on purpose"));
        panics.stop().await.unwrap_err();
        assert_eq!(running("a panic"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopped_group_waits_for_its_tasks_and_then_drops_them() {
        let group = TaskGroup::new("a group");
        let short = group.spawn(tokio::time::sleep(Duration::from_secs(1)));
        let hangs = group.spawn(std::future::pending::<()>());
        assert_eq!((group.len(), running("a group")), (2, 2));
        let began = Instant::now();
        group.stop(Duration::from_secs(5)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        assert_eq!((short.await.unwrap(), hangs.await.unwrap()), (Some(()), None));
        assert!(group.is_empty());
        assert_eq!(running("a group"), 0);
        assert_eq!(group.spawn(std::future::pending::<()>()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn blocking_work_returns_its_value_or_its_panic() {
        assert_eq!(blocking(|| 7).await.unwrap(), 7);
        assert!(blocking(|| panic!("on purpose")).await.is_err());
    }

    #[tokio::test]
    async fn blocking_work_without_a_caller_is_told_to_stop() {
        assert_eq!(blocking_while_wanted(|stop| stop.is_cancelled()).await.ok(), Some(false));
        let (began, begun) = tokio::sync::oneshot::channel();
        let (ended, end) = tokio::sync::oneshot::channel();
        let work = blocking_while_wanted(move |stop| {
            let _ = began.send(());
            while !stop.is_cancelled() {
                std::thread::yield_now();
            }
            let _ = ended.send(());
        });
        tokio::select! {
            _ = work => panic!("it ends only when it is stopped"),
            _ = begun => {}
        }
        tokio::time::timeout(Duration::from_secs(10), end).await.unwrap().unwrap();
    }
}
