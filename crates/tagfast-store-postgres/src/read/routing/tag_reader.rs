//! The port [`TagReader`]: reads until there is an answer, and counts what became of the read.
//!
//! How it fails: a read without an answer says why, as far as its nodes told.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use tagfast_domain::ContentKey;
use tagfast_resilience::BulkheadFull;
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::{
    Consistency, REPAIR_PENDING, ReadOptions, RepairWatch, Source, StoreError, TagReader, View,
    stored_key,
};
use tokio::time::Instant;

use super::{NODE_READS, NodeOutcome, ReadPlan};
use crate::cluster::topology::Cluster;
use crate::health::cause::FailureCause;
use crate::options::limit;
use crate::read::freshness::FreshnessRequirement;
use crate::refusal::{overloaded, unavailable};
use crate::store::PostgresStore;

impl PostgresStore {
    /// Reads one content; the outcome is not counted.
    async fn view_uncounted(
        &self,
        key: &ContentKey,
        options: &ReadOptions<'_>,
    ) -> Result<View, StoreError> {
        let bytes = key.to_bytes();
        let hash = ContentHash::of_bytes(&bytes);
        let shard = LogicalShard::of_hash(hash);
        let handle = self.cluster(shard);
        let stored = stored_key(shard, &bytes);
        let until =
            options.deadline.unwrap_or_else(|| Instant::now() + limit::READ_DEADLINE_DEFAULT);
        let requirement = FreshnessRequirement::of(&handle.local_writes, shard, hash, options);
        let strong = options.consistency == Consistency::Strong;
        let _place = if strong {
            let entered = tokio::time::timeout_at(until, handle.strong_reads.enter()).await;
            match entered.map_err(|_| deadline_exceeded())? {
                Ok(place) => Some(place),
                Err(BulkheadFull::Queue { .. } | BulkheadFull::Wait { .. }) => {
                    return Err(overloaded(NODE_READS, limit::STRONG_READS_MAX));
                }
            }
        } else {
            None
        };
        loop {
            let began = Instant::now();
            let topology = Arc::clone(&handle.cluster.topology.borrow());
            let plan = ReadPlan {
                handle,
                topology: &topology,
                tenant: &key.tenant,
                stored: &stored,
                hash,
                consistency: options.consistency,
                criticality: options.criticality,
                primary_first: options.primary_first,
                requirement: &requirement,
                floor: requirement.floor(&handle.cluster),
                epoch: topology.primary.as_ref().map(|(epoch, _)| epoch.as_ref()),
                began: self.clock.now_ms(),
                until,
            };
            match self.read_nodes(&plan, options.max_stale != Some(Duration::ZERO)).await {
                NodeOutcome::Answered(answer) => return answer,
                NodeOutcome::Overloaded(retry_after) => {
                    let limit = self.reading.concurrency;
                    return Err(StoreError::Overloaded { queue: NODE_READS, limit, retry_after });
                }
                NodeOutcome::NoAnswer => {}
            }
            if Instant::now() >= until {
                return Err(deadline_exceeded());
            }
            if strong {
                return Err(unavailable("the cluster has no primary", false));
            }
            // A node that does not answer may only be slow, as behind a lock; one that refuses
            // connections will refuse the next one, too.
            if began.elapsed() < limit::REPLICA_TIMEOUT {
                return Err(unavailable("no node of the cluster answers", false));
            }
        }
    }
}

#[async_trait]
impl TagReader for PostgresStore {
    async fn view(&self, key: &ContentKey, options: &ReadOptions<'_>) -> Result<View, StoreError> {
        let shard = LogicalShard::of(key);
        let cluster = &self.cluster(shard).cluster;
        let was_open_on_replicas = cluster.repair.is_open_on_replicas();
        let watch = RepairWatch::begin(self, shard);
        let result = count_read(cluster, self.view_uncounted(key, options).await);
        // A view that is too old for this caller is no failure of the cluster.
        let mut view = result.and_then(|view| self.within_max_stale(view, options))?;
        let replica_may_lack = view.source == Source::Replica
            && (was_open_on_replicas || cluster.repair.is_open_on_replicas());
        if replica_may_lack || watch.may_lack(self, shard, view.position.epoch) {
            view.degraded.push(REPAIR_PENDING);
        }
        Ok(view)
    }

    async fn view_many(
        &self,
        keys: &[ContentKey],
        options: &ReadOptions<'_>,
    ) -> Vec<Result<View, StoreError>> {
        let mut answers = Vec::with_capacity(keys.len());
        // One call does not fill a queue.
        for chunk in keys.chunks(limit::READS_PER_CALL_MAX) {
            answers.extend(join_all(chunk.iter().map(|key| self.view(key, options))).await);
        }
        answers
    }
}

/// Counts a read. One that got no answer says why, as far as its nodes told.
fn count_read(cluster: &Cluster, result: Result<View, StoreError>) -> Result<View, StoreError> {
    let cause = || {
        let otherwise = match cluster.topology.borrow().primary {
            None => cluster.health.without_primary(),
            Some(_) => FailureCause::NoAnswer,
        };
        cluster.health.recent_read_failure().unwrap_or(otherwise)
    };
    match result {
        Err(StoreError::Unavailable { outcome_unknown, retry_after, .. }) => {
            let cause = cause();
            cluster.health.read_failed(cause);
            Err(StoreError::Unavailable { reason: cause.reason(), outcome_unknown, retry_after })
        }
        Err(StoreError::Deadline { outcome_unknown, .. }) => {
            let cause = cause();
            cluster.health.read_failed(cause);
            Err(StoreError::Deadline { waiting_for: cause.waiting_for(), outcome_unknown })
        }
        Err(StoreError::Overloaded { .. }) => {
            cluster.health.read_failed(FailureCause::Overloaded);
            result
        }
        Ok(_)
        | Err(
            StoreError::Refused(_)
            | StoreError::NotInThisMode(_)
            | StoreError::DiskFull
            | StoreError::ReplicationLag { .. }
            | StoreError::Damaged { .. }
            | StoreError::Internal(_),
        ) => {
            cluster.health.read_succeeded();
            result
        }
    }
}

fn deadline_exceeded() -> StoreError {
    StoreError::Deadline { waiting_for: "a node of the cluster", outcome_unknown: false }
}
