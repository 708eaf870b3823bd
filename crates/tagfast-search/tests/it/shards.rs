//! Shards in memory, for both engines' tests.

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, Epoch, EpochId, EpochOrdinal, TaggingsEvent, TenantId};
use tagfast_search::conformance::NOW;
use tagfast_sharding::LogicalShard;
use tagfast_store::conformance::scan_states;
use tagfast_store::{ScanPage, ShardScanner, StoreError};

/// The shards as the newest event of every content says.
#[derive(Default)]
pub(crate) struct Shards(Mutex<BTreeMap<ContentKey, TaggingsEvent>>);

impl Shards {
    pub(crate) fn all(&self) -> Vec<TaggingsEvent> {
        self.0.lock().expect("not poisoned").values().cloned().collect()
    }

    pub(crate) fn put(&self, event: &TaggingsEvent) {
        let mut shards = self.0.lock().expect("not poisoned");
        let newer = shards.get(&event.key).is_none_or(|known| known.version < event.version);
        if newer {
            shards.insert(event.key.clone(), event.clone());
        }
    }
}

#[async_trait]
impl ShardScanner for Shards {
    async fn scan(
        &self,
        shard: LogicalShard,
        tenant: Option<&TenantId>,
        after: Option<&ContentKey>,
        limit: usize,
    ) -> Result<ScanPage, StoreError> {
        let shards = self.0.lock().expect("not poisoned");
        Ok(scan_states(shards.iter(), shard, tenant, after, limit))
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        Ok(Epoch { id: EpochId([7; 16]), ordinal: EpochOrdinal(NOW.unsigned_abs()) })
    }
}
