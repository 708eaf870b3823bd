//! Shards in memory, from which an engine under test is rebuilt.

use std::collections::BTreeMap;

use async_trait::async_trait;
use parking_lot::Mutex;
use tagfast_domain::{ContentKey, Epoch, EpochId, EpochOrdinal, TaggingsEvent};
use tagfast_store::conformance::scan_states;
use tagfast_store::{ScanPage, ScanRequest, ShardScanner, StoreError};

use super::fixture::NOW;

/// The newest event of every content, served as shards.
#[derive(Default)]
pub struct MemoryShards(Mutex<BTreeMap<ContentKey, TaggingsEvent>>);

impl MemoryShards {
    /// Returns the newest event of every content.
    pub fn all(&self) -> Vec<TaggingsEvent> {
        self.0.lock().values().cloned().collect()
    }

    /// Stores the event unless a newer one of the same content is stored.
    pub fn put(&self, event: &TaggingsEvent) {
        let mut shards = self.0.lock();
        let newer = shards.get(&event.key).is_none_or(|known| known.version < event.version);
        if newer {
            shards.insert(event.key.clone(), event.clone());
        }
    }
}

#[async_trait]
impl ShardScanner for MemoryShards {
    async fn scan(&self, request: ScanRequest<'_>) -> Result<ScanPage, StoreError> {
        let shards = self.0.lock();
        Ok(scan_states(shards.iter(), request))
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        Ok(Epoch { id: EpochId([7; 16]), ordinal: EpochOrdinal(NOW.unsigned_abs()) })
    }
}
