//! Work that goes on beside everything else until somebody ends it.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Running work. Dropping it asks for its end without waiting.
#[derive(Debug)]
pub struct Background {
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// Tells the work when to end.
pub type Stopped = watch::Receiver<bool>;

impl Background {
    /// Starts the work; it is to end soon after it was told to.
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(work: impl FnOnce(Stopped) -> F) -> Self {
        let (stop, stopped) = watch::channel(false);
        Self { stop, task: Mutex::new(Some(tokio::spawn(work(stopped)))) }
    }

    /// Asks for its end and waits for it. Its panic, if it ended so, is told once.
    pub async fn stop(&self) -> Result<(), tokio::task::JoinError> {
        self.stop.send_replace(true);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        match task {
            Some(task) => task.await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test]
    async fn it_ends_when_it_is_told_and_tells_of_a_panic() {
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        let work = Background::spawn(async move |mut stopped: Stopped| {
            let _ = stopped.wait_for(|stop| *stop).await;
            seen.store(true, Ordering::SeqCst);
        });
        assert!(!ended.load(Ordering::SeqCst));
        work.stop().await.unwrap();
        work.stop().await.unwrap();
        assert!(ended.load(Ordering::SeqCst));
        let panics = Background::spawn(async |_| panic!("on purpose"));
        assert!(panics.stop().await.is_err());
        assert!(panics.stop().await.is_ok());
    }
}
