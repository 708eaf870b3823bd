//! The client for requests that need no group.
//!
//! How it fails: a client that cannot be created with changed credentials leaves the former one in
//! use, whose requests fail until the next attempt.

use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaResult;

use crate::client;
use crate::options::KafkaOptions;

/// A client with the credentials in force.
pub(crate) struct MetadataClient {
    options: Arc<KafkaOptions>,
    /// With the generation of its credentials.
    current: Mutex<(u64, Arc<BaseConsumer>)>,
}

impl MetadataClient {
    /// Creates the client; sends no request.
    pub(crate) fn new(options: Arc<KafkaOptions>) -> KafkaResult<Arc<Self>> {
        let generation = options.security.generation();
        let client = Arc::new(client::base(&options).create()?);
        Ok(Arc::new(Self { options, current: Mutex::new((generation, client)) }))
    }

    /// The client; a new one after the credentials have changed.
    pub(crate) fn get(&self) -> Arc<BaseConsumer> {
        let mut current = self.current.lock();
        let generation = self.options.security.generation();
        if current.0 != generation
            && let Ok(client) = client::base(&self.options).create()
        {
            *current = (generation, Arc::new(client));
        }
        Arc::clone(&current.1)
    }
}
