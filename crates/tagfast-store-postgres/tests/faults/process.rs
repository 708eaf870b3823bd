//! A process of the service inside the test: a runtime of its own with one thread, on which the
//! store and its clients run, so that all of it can be made to stand still or to vanish at once.
//!
//! What it does not show: memory that is shared with the test, and the system's own clean-up of a
//! dead process; its connections are closed as they would be.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use tagfast_resilience::{Breakers, SystemClock};
use tagfast_store_postgres::{NullSink, PostgresOptions, PostgresStore};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::support;

/// A process of the service.
pub(crate) struct ServiceProcess {
    runtime: Option<Runtime>,
    store: Arc<PostgresStore>,
}

impl ServiceProcess {
    /// Opens the store under a name of its own.
    pub(crate) async fn start(options: &PostgresOptions, name: &str) -> Self {
        // Two processes share no breakers.
        let breakers = Breakers::new(Arc::new(SystemClock));
        let options = PostgresOptions { node: name.to_owned(), breakers, ..options.clone() };
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let open = runtime.spawn(async move { support::open(options, Arc::new(NullSink)).await });
        let store = open.await.expect("it opens");
        Self { runtime: Some(runtime), store }
    }

    pub(crate) fn store(&self) -> &Arc<PostgresStore> {
        &self.store
    }

    /// Where its store and its clients run.
    pub(crate) fn runtime(&self) -> Handle {
        self.runtime.as_ref().expect("it runs until it is dropped").handle().clone()
    }

    /// Stands still, as with SIGSTOP, until the sender is dropped.
    pub(crate) fn freeze(&self) -> Sender<()> {
        let (wake, woken) = channel();
        // Blocks the only thread, on purpose. An error: the sender was dropped.
        self.runtime().spawn(async move {
            let _ = woken.recv();
        });
        wake
    }

    /// Ends in order.
    pub(crate) async fn close(self) {
        let store = Arc::clone(&self.store);
        let closed = self.runtime().spawn(async move { store.close().await });
        closed.await.expect("no panic");
    }
}

/// Vanishes: every task ends where it is.
impl Drop for ServiceProcess {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
