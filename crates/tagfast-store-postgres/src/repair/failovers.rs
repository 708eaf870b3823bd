//! Reports of failovers: epochs, phases, what each process repaired, and which writes were not
//! simply kept.
//!
//! What is short is in etcd, for ever: the epochs, the processes' reports, the closings. The writes
//! are in the cluster's own table of verdicts, for seven days.
//!
//! How it fails: without etcd there are no reports; without a primary no writes are listed. A
//! process that has not reported is named as missing.

use async_trait::async_trait;
use futures_util::future::{try_join, try_join_all};
use tagfast_domain::{ContentKey, EpochId, EpochOrdinal, TenantId, Version, WriteId};
use tagfast_failover::EpochRecord;
use tagfast_resilience::ErrorChain;
use tagfast_store::StoreError;
use tagfast_store::failovers::{
    FailoverCursor, FailoverReader, FailoverReport, FailoverWrite, FailoverWritesRequest,
    VerdictKind,
};
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::report::{node_of, report_of};
use super::verdict_rows::verdict_from_row;
use crate::cluster::etcd::EtcdError;
use crate::connect::{PgError, within};
use crate::options::limit;
use crate::refusal::unavailable;
use crate::sql::epoch_check;
use crate::store::{ClusterHandle, PostgresStore};

const SELECT_WRITES: &str = concat!(
    "SELECT wid, k, verdict, reason, ver, from_epoch, (extract(epoch FROM at) * 1000)::bigint
FROM repair_log
WHERE in_epoch = $1 AND wid > $2 AND verdict = ANY($3)
  AND substring(k FROM 2 FOR octet_length($4::bytea)) = $4::bytea AND ",
    epoch_check!("$6"),
    " = 1 ORDER BY wid LIMIT $5"
);

/// The verdicts of writes that were not simply kept, as the table has them.
fn words_of(kind: Option<VerdictKind>) -> &'static [&'static str] {
    match kind {
        None => &["lost", "repaired"],
        Some(VerdictKind::Lost) => &["lost"],
        Some(VerdictKind::Repaired) => &["repaired"],
    }
}

/// The first bytes of the keys of a tenant's contents; empty: of all.
fn key_prefix(tenant: Option<&TenantId>) -> Vec<u8> {
    tenant.map_or_else(Vec::new, |tenant| [tenant.as_str().as_bytes(), &[0]].concat())
}

fn write_of(row: &Row) -> Option<FailoverWrite> {
    let (id, key): (&[u8], &[u8]) = (row.get(0), row.get(1));
    let epoch: &[u8] = row.get(5);
    Some(FailoverWrite {
        write_id: WriteId(id.try_into().ok()?),
        key: ContentKey::from_bytes(key.get(1..)?).ok()?,
        verdict: verdict_from_row(row.get(2), row.get(3))?,
        version: Version::from_packed(row.get::<_, i64>(4).cast_unsigned()).ok()?,
        epoch: EpochId(epoch.try_into().ok()?),
        at: row.get(6),
    })
}

fn without_etcd(error: &EtcdError) -> StoreError {
    tracing::debug!(error = %ErrorChain(error), "no reports of failovers");
    unavailable("etcd, which has the reports of failovers, does not answer", false)
}

impl PostgresStore {
    /// The epochs of a cluster that failovers began, and their predecessors.
    async fn failovers_of<'a>(
        &self,
        handle: &'a ClusterHandle,
    ) -> Result<Vec<(&'a ClusterHandle, EpochRecord, Option<EpochRecord>)>, StoreError> {
        let history = self.etcd.history(&handle.cluster.scope).await;
        let history = history.map_err(|error| without_etcd(&error))?;
        let before = |epoch: &EpochRecord| {
            let parent = epoch.parent_id?;
            history.iter().find(|other| other.id == parent).cloned()
        };
        // The first epoch of a cluster replaced no primary.
        let begun = history.iter().filter(|epoch| epoch.parent_id.is_some());
        Ok(begun.map(|epoch| (handle, epoch.clone(), before(epoch))).collect())
    }

    async fn failover_report(
        &self,
        handle: &ClusterHandle,
        epoch: &EpochRecord,
        previous: Option<&EpochRecord>,
    ) -> Result<FailoverReport, StoreError> {
        let scope = &handle.cluster.scope;
        let both = try_join(
            self.etcd.repairs(scope, epoch.ordinal),
            self.etcd.closing(scope, epoch.ordinal),
        );
        let (repairs, closing) = both.await.map_err(|error| without_etcd(&error))?;
        let is_current = handle.cluster.epoch().is_some_and(|current| current.id == epoch.id);
        // Of an earlier epoch that was never closed it is not known any more.
        let missing_now = match closing.is_none() && is_current {
            true => self.registry.seen_around(Instant::now()).into_iter().collect(),
            false => Vec::new(),
        };
        let nodes = repairs.into_iter().map(node_of).collect();
        let name = &handle.cluster.name;
        Ok(report_of(name, epoch, previous, nodes, closing, missing_now))
    }

    async fn list_writes(
        &self,
        handle: &ClusterHandle,
        ordinal: EpochOrdinal,
        request: &FailoverWritesRequest<'_>,
    ) -> Result<Vec<FailoverWrite>, PgError> {
        let primary = handle.cluster.primary(Instant::now() + limit::READ_TIMEOUT).await;
        let Some((epoch, node)) = primary else {
            return Err(PgError::Timeout("waiting for a primary", limit::READ_TIMEOUT));
        };
        let server = self.connections.open_to_read(&node.address, "failovers").await?;
        let ordinal = ordinal.0.cast_signed();
        let after = request.after.map_or_else(Vec::new, |id| id.0.to_vec());
        let (verdicts, prefix) = (words_of(request.verdict), key_prefix(request.tenant));
        let rows = i64::try_from(request.limit).unwrap_or(i64::MAX);
        let id: &[u8] = &epoch.id.0;
        let parameters: [&(dyn ToSql + Sync); 6] =
            [&ordinal, &after, &verdicts, &prefix, &rows, &id];
        let rows = server.client.query(SELECT_WRITES, &parameters);
        let rows = within("listing writes", limit::READ_TIMEOUT, rows).await?;
        Ok(rows.iter().filter_map(write_of).collect())
    }

    /// The cluster of an epoch, and the epoch's ordinal; `None`: no cluster has had it.
    async fn cluster_of_epoch(
        &self,
        epoch: EpochId,
    ) -> Result<Option<(&ClusterHandle, EpochOrdinal)>, StoreError> {
        let known = self
            .clusters()
            .iter()
            .find_map(|handle| Some((handle, handle.cluster.epoch_ordinal(epoch)?)));
        if known.is_some() {
            return Ok(known);
        }
        let all = self.clusters().iter().map(|handle| self.failovers_of(handle));
        let mut all = try_join_all(all).await?.into_iter().flatten();
        let found = all.find(|(_, record, _)| record.id == epoch);
        Ok(found.map(|(handle, record, _)| (handle, record.ordinal)))
    }
}

#[async_trait]
impl FailoverReader for PostgresStore {
    async fn failovers(
        &self,
        before: Option<FailoverCursor>,
        limit: usize,
    ) -> Result<Vec<FailoverReport>, StoreError> {
        let all = self.clusters().iter().map(|handle| self.failovers_of(handle));
        let mut all: Vec<_> = try_join_all(all).await?.into_iter().flatten().collect();
        let place =
            |epoch: &EpochRecord| FailoverCursor { ordinal: epoch.ordinal, epoch: epoch.id };
        all.retain(|(_, epoch, _)| before.is_none_or(|before| place(epoch) < before));
        all.sort_by_key(|(_, epoch, _)| std::cmp::Reverse(place(epoch)));
        all.truncate(limit);
        let reports = all.iter().map(|(handle, epoch, previous)| {
            self.failover_report(handle, epoch, previous.as_ref())
        });
        try_join_all(reports).await
    }

    async fn failover(&self, epoch: EpochId) -> Result<Option<FailoverReport>, StoreError> {
        let all = self.clusters().iter().map(|handle| self.failovers_of(handle));
        let mut all = try_join_all(all).await?.into_iter().flatten();
        match all.find(|(_, record, _)| record.id == epoch) {
            Some((handle, epoch, previous)) => {
                self.failover_report(handle, &epoch, previous.as_ref()).await.map(Some)
            }
            None => Ok(None),
        }
    }

    async fn failover_writes(
        &self,
        request: &FailoverWritesRequest<'_>,
    ) -> Result<Vec<FailoverWrite>, StoreError> {
        let Some((handle, ordinal)) = self.cluster_of_epoch(request.epoch).await? else {
            return Ok(Vec::new());
        };
        self.list_writes(handle, ordinal, request).await.map_err(|error| {
            tracing::debug!(
                cluster = handle.cluster.name,
                error = %ErrorChain(&error),
                "the writes of a failover are not listed"
            );
            unavailable("the cluster cannot be read", false)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_a_prefix_of_the_keys_of_its_contents_alone() {
        let prefix = |tenant: &str| key_prefix(Some(&TenantId::parse(tenant).expect("a tenant")));
        let key = |tenant| ContentKey::parse(tenant, "doc", "1").expect("a content").to_bytes();
        assert!(key("acme").starts_with(&prefix("acme")));
        assert!(!key("acme2").starts_with(&prefix("acme")));
        assert!(key("acme").starts_with(&key_prefix(None)));
    }
}
