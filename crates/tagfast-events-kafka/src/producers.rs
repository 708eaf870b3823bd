//! The producer of this process, replaced when other credentials come into force.
//!
//! A new producer takes over when nothing of the old one is in flight: what brokers do not
//! acknowledge in [`FLUSH_TIMEOUT`] is given up, so that its sender sends it again through the new
//! one. An older record can then not follow a newer one.
//!
//! How it fails: a producer that cannot be made leaves the old one in its place.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaResult;
use rdkafka::producer::{FutureProducer, Producer, PurgeConfig};
use tagfast_resilience::{ErrorChain, task};
use tokio::sync::RwLock;

use crate::client;
use crate::options::KafkaOptions;

/// How long records of the old producer may take to be acknowledged.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The producer in use.
pub(crate) struct Producers {
    options: Arc<KafkaOptions>,
    current: RwLock<FutureProducer>,
}

impl Producers {
    pub(crate) fn new(options: Arc<KafkaOptions>) -> KafkaResult<Arc<Self>> {
        let producer = client::producer(&options).create()?;
        Ok(Arc::new(Self { options, current: RwLock::new(producer) }))
    }

    /// The producer for one batch; waits while it is being replaced.
    pub(crate) async fn get(&self) -> FutureProducer {
        self.current.read().await.clone()
    }

    /// Replaces the producer by one with the credentials in force.
    pub(crate) async fn renew(&self) {
        let mut current = self.current.write().await;
        let new = match client::producer(&self.options).create() {
            Ok(new) => new,
            Err(error) => {
                let error = ErrorChain(&error);
                tracing::error!(%error, "no producer can be made with the changed credentials");
                return;
            }
        };
        let old = std::mem::replace(&mut *current, new);
        let ended = task::blocking(move || {
            if old.flush(FLUSH_TIMEOUT).is_err() {
                old.purge(PurgeConfig::default().queue().inflight());
            }
            // Dropping joins the thread that polls it.
            drop(old);
        });
        // A panic was logged.
        let _ = ended.await;
    }
}
