//! The write path: a write goes to the store; before it is acknowledged, the caches of this node,
//! Redis and the user's session positions reflect it.
//!
//! How it fails: a write-through that fails leaves an older entry in Redis. [`LocalWrites`] keeps
//! this node from answering with it, session positions keep other nodes from answering the writer
//! with it, and it expires at its TTL. When the positions cannot be stored, the answer is marked
//! with `session: position_not_stored`.
//!
//! [`LocalWrites`]: tagfast_store::LocalWrites

use async_trait::async_trait;
use futures_util::future::{join, join_all};
use tagfast_domain::{ContentKey, TenantId, UserId};
use tagfast_resilience::{ErrorChain, counter};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::{
    Degraded, RepairWatch, RequiredVersion, StoreError, TagWriter, WriteAnswer, WriteRequest,
};

use crate::cached_store::CachedStore;
use crate::metric::{FILLS, FillResult, POSITIONS_UNKNOWN, RequestKind};
use crate::redis_cache::FillOrigin;
use crate::session_positions::PositionRecord;

const POSITION_NOT_STORED: Degraded =
    Degraded { feature: "session", reason: "position_not_stored" };

fn position_record(key: &ContentKey, answer: &WriteAnswer) -> PositionRecord {
    PositionRecord {
        content: ContentHash::of(key),
        version: answer.version,
        position: answer.receipt.position,
    }
}

impl CachedStore {
    /// Applies a finished write to the caches. `watch` began before it was sent.
    async fn apply_write(
        &self,
        key: &ContentKey,
        watch: RepairWatch,
        result: &Result<WriteAnswer, StoreError>,
    ) {
        let bytes = key.to_bytes();
        let hash = ContentHash::of_bytes(&bytes);
        let shard = LogicalShard::of_hash(hash);
        let answer = match result {
            Ok(answer) => answer,
            Err(error) => {
                if error.is_outcome_unknown() {
                    self.local_writes.record(hash, RequiredVersion::OutcomeUnknown);
                    if let Some(local) = &self.local_cache {
                        local.evict(&bytes, shard);
                    }
                }
                return;
            }
        };
        self.local_writes.record(hash, RequiredVersion::AtLeast(answer.version));
        let lease = self.local_cache.as_ref().map(|local| local.fill_lease(shard));
        if let Some(local) = &self.local_cache {
            local.invalidate(&bytes, answer.version);
        }
        let entry = answer.view.as_ref().and_then(|view| {
            let may_lack = watch.may_lack(&*self.history, shard, view.position.epoch);
            self.entry(view, shard, may_lack)
        });
        let Some(entry) = entry else { return };
        let filled = match &self.redis_cache {
            Some(redis) => redis.fill(&bytes, shard, &entry, FillOrigin::Write).await,
            None => Ok(()),
        };
        match (filled, &self.local_cache, lease) {
            (Ok(()), Some(local), Some(lease)) => {
                self.fill_local(local, &bytes, hash, entry, lease);
            }
            // Redis may hold an older version now; `local_writes` keeps this node from using it.
            (Err(error), local, _) => {
                counter!(FILLS, "result" => FillResult::Failed).increment(1);
                tracing::debug!(error = %ErrorChain(&error), "write-through to Redis failed");
                if let Some(local) = local {
                    local.evict(&bytes, shard);
                }
            }
            (Ok(()), None, _) | (Ok(()), _, None) => {}
        }
    }

    /// Records writes of a user as session positions. `false` when that failed: reads without a
    /// token through other nodes may not show these writes.
    async fn record_positions(
        &self,
        tenant: &TenantId,
        user: &UserId,
        writes: &[PositionRecord],
    ) -> bool {
        let Some(positions) = self.positions.as_ref().filter(|_| !writes.is_empty()) else {
            return true;
        };
        match positions.record(tenant, user, writes).await {
            Ok(()) => true,
            Err(error) => {
                counter!(POSITIONS_UNKNOWN, "at" => RequestKind::Write).increment(1);
                tracing::debug!(error = %ErrorChain(&error), "session positions were not stored");
                false
            }
        }
    }
}

#[async_trait]
impl TagWriter for CachedStore {
    async fn write(&self, request: WriteRequest) -> Result<WriteAnswer, StoreError> {
        let (key, user) = (request.write.key.clone(), request.write.user.clone());
        let watch = RepairWatch::begin(&*self.history, LogicalShard::of(&key));
        let mut result = self.store.write(request).await;
        let record = result.as_ref().ok().map(|answer| position_record(&key, answer));
        let ((), stored) = join(
            self.apply_write(&key, watch, &result),
            self.record_positions(&key.tenant, &user, record.as_slice()),
        )
        .await;
        if let (Ok(answer), false) = (&mut result, stored) {
            answer.degraded.push(POSITION_NOT_STORED);
        }
        result
    }

    async fn write_many(
        &self,
        requests: Vec<WriteRequest>,
    ) -> Vec<Result<WriteAnswer, StoreError>> {
        let writes: Vec<(ContentKey, UserId)> = requests
            .iter()
            .map(|request| (request.write.key.clone(), request.write.user.clone()))
            .collect();
        let watch = |key| RepairWatch::begin(&*self.history, LogicalShard::of(key));
        let watches: Vec<RepairWatch> = writes.iter().map(|(key, _)| watch(key)).collect();
        let mut results = self.store.write_many(requests).await;
        let applied = writes.iter().zip(watches).zip(&results);
        let applied =
            applied.map(|(((key, _), watch), result)| self.apply_write(key, watch, result));
        let applied = join_all(applied);
        // Usually a single user of a single tenant.
        let mut users: Vec<(&TenantId, &UserId, Vec<PositionRecord>)> = Vec::new();
        for ((key, user), result) in writes.iter().zip(&results) {
            let Ok(answer) = result else { continue };
            let record = position_record(key, answer);
            match users.iter_mut().find(|(t, u, _)| *t == &key.tenant && *u == user) {
                Some((_, _, records)) => records.push(record),
                None => users.push((&key.tenant, user, vec![record])),
            }
        }
        let stored = join_all(users.iter().map(async |(tenant, user, records)| {
            (*tenant, *user, self.record_positions(tenant, user, records).await)
        }));
        let (_, stored) = join(applied, stored).await;
        for ((key, user), result) in writes.iter().zip(&mut results) {
            let failed = stored.iter().any(|(t, u, ok)| *t == &key.tenant && *u == user && !ok);
            if let (Ok(answer), true) = (result, failed) {
                answer.degraded.push(POSITION_NOT_STORED);
            }
        }
        results
    }
}
