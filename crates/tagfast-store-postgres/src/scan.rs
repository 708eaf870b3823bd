//! Scans of a shard, page by page, for rebuilds of derived data.
//!
//! Each page is read on the primary together with the epoch check: a replaced primary would show
//! contents that do not exist any more.
//!
//! How it fails: a page is retried on a new connection for ten seconds, then refused.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join;
use tagfast_domain::{ContentKey, Epoch, TenantId, codec};
use tagfast_resilience::ErrorChain;
use tagfast_sharding::LogicalShard;
use tagfast_store::{ScanPage, ScanRequest, ShardScanner, StoreError, stored_key};
use tokio::time::Instant;
use tokio_postgres::types::ToSql;

use crate::connect::within;
use crate::options::limit;
use crate::refusal::unavailable;
use crate::sql::EPOCH_CHECK;
use crate::store::PostgresStore;

const SELECT_PAGE: &str =
    "SELECT k, doc FROM content WHERE k > $1 AND k < $2 AND ver > 0 ORDER BY k LIMIT $3";

/// How long a page is retried.
const PAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two attempts to connect.
const RECONNECT_DELAY: Duration = Duration::from_millis(100);

#[async_trait]
impl ShardScanner for PostgresStore {
    async fn scan(&self, request: ScanRequest<'_>) -> Result<ScanPage, StoreError> {
        let ScanRequest { shard, tenant, after, limit } = request;
        let handle = self.cluster(shard);
        let until = Instant::now() + PAGE_TIMEOUT;
        let (low, high) = key_range(shard, tenant, after);
        let rows = i64::try_from(limit.saturating_add(1)).unwrap_or(i64::MAX);
        let mut connection = handle.scan_connection.lock().await;
        loop {
            let Some((epoch, node)) = handle.cluster.primary(until).await else {
                return Err(unavailable("the cluster has no primary", false));
            };
            if connection
                .as_ref()
                .is_none_or(|(address, c)| *address != node.address || c.client.is_closed())
            {
                let opened = self.connections.open(&node.address, "scan").await;
                *connection = opened.ok().map(|c| (node.address.clone(), c));
            }
            let Some((_, server)) = connection.as_ref() else {
                handle.cluster.report_failure();
                if Instant::now() >= until {
                    return Err(unavailable("the primary is not reached", false));
                }
                tokio::time::sleep(RECONNECT_DELAY).await;
                continue;
            };
            let id: &[u8] = &epoch.id.0;
            let (check, page): ([&(dyn ToSql + Sync); 1], [&(dyn ToSql + Sync); 3]) =
                ([&id], [&low, &high, &rows]);
            let all = async {
                let (check, rows) = join(
                    server.client.query_one(EPOCH_CHECK, &check),
                    server.client.query(SELECT_PAGE, &page),
                )
                .await;
                check?;
                rows
            };
            match within("a scan", limit::COMMIT_TIMEOUT, all).await {
                Ok(rows) => return page_of(&rows, limit),
                Err(error) => {
                    let (cluster, error) = (&handle.cluster.name, ErrorChain(&error));
                    tracing::warn!(cluster, %error, "a page of a scan failed");
                    *connection = None;
                    handle.cluster.report_failure();
                    if Instant::now() >= until {
                        return Err(unavailable("the primary does not answer a scan", false));
                    }
                }
            }
        }
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        // Several clusters, several epochs: a rebuild is named by the newest of them.
        let epochs = self.clusters().iter().filter_map(|handle| handle.cluster.epoch());
        epochs
            .max_by_key(|e| e.ordinal)
            .ok_or_else(|| unavailable("no cluster has an epoch yet", false))
    }
}

/// The stored keys between which a page lies.
fn key_range(
    shard: LogicalShard,
    tenant: Option<&TenantId>,
    after: Option<&ContentKey>,
) -> (Vec<u8>, Vec<u8>) {
    let (mut low, mut high) = (vec![shard.number()], vec![shard.number() + 1]);
    if let Some(tenant) = tenant {
        low.extend_from_slice(tenant.as_str().as_bytes());
        high = low.clone();
        low.push(0);
        high.push(1);
    }
    if let Some(after) = after {
        low = low.max(stored_key(shard, &after.to_bytes()));
    }
    (low, high)
}

fn page_of(rows: &[tokio_postgres::Row], limit: usize) -> Result<ScanPage, StoreError> {
    let mut page = ScanPage::default();
    for row in rows.iter().take(limit) {
        let key: &[u8] = row.get(0);
        let damaged = |source| StoreError::Damaged {
            what: "a content of a scan".to_owned(),
            source: Some(source),
        };
        let content = ContentKey::from_bytes(key.get(1..).unwrap_or_default()).map_err(damaged)?;
        page.items.push((content, codec::decode(row.get(1)).map_err(damaged)?));
    }
    if rows.len() > limit {
        page.next = page.items.last().map(|(key, _)| key.clone());
    }
    Ok(page)
}
