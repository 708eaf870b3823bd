//! A process of the service inside the test: a runtime of its own with one thread, on which the
//! store and its clients run, so that all of it can be made to stand still or to vanish at once.
//!
//! What it does not show: memory that is shared with the test, and the system's own clean-up of a
//! dead process; its connections are closed as they would be.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

#[cfg(feature = "full")]
use tagfast_cache::{CacheDependencies, CacheOptions, CachedStore};
use tagfast_resilience::{Breakers, SystemClock};
#[cfg(feature = "full")]
use tagfast_store::SharedStore;
use tagfast_store_postgres::{NullSink, PostgresOptions, PostgresStore};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::support;

/// A process of the service.
pub(crate) struct ServiceProcess {
    runtime: Option<Runtime>,
    store: Arc<PostgresStore>,
    /// `None`: its clients use the store itself.
    #[cfg(feature = "full")]
    caches: Option<Arc<CachedStore>>,
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
        Self {
            runtime: Some(runtime),
            store,
            #[cfg(feature = "full")]
            caches: None,
        }
    }

    /// With the caches in front of it, as the program has them.
    #[cfg(feature = "full")]
    pub(crate) async fn with_caches(mut self) -> Self {
        let store = Arc::clone(&self.store);
        let start = async move {
            let [views, positions] = support::redis().await;
            let dependencies = CacheDependencies {
                store: Arc::clone(&store) as SharedStore,
                history: store,
                views: Some(views),
                positions: Some(positions),
                clock: Arc::new(SystemClock),
            };
            CachedStore::start(dependencies, CacheOptions::default())
        };
        self.caches = Some(self.runtime().spawn(start).await.expect("no panic"));
        self
    }

    /// What its clients use.
    #[cfg(feature = "full")]
    pub(crate) fn front(&self) -> SharedStore {
        match &self.caches {
            Some(caches) => Arc::clone(caches) as SharedStore,
            None => Arc::clone(&self.store) as SharedStore,
        }
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
        #[cfg(feature = "full")]
        let caches = self.caches.clone();
        let closed = self.runtime().spawn(async move {
            #[cfg(feature = "full")]
            if let Some(caches) = caches {
                caches.stop().await;
            }
            store.close().await;
        });
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
