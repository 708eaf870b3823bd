//! Scans of a shard, page by page, for rebuilds of derived data.
//!
//! Each page is read on the primary together with the epoch check: a replaced primary would show
//! contents that do not exist any more.
//!
//! How it fails: a page is retried on a new connection for ten seconds, then refused.

use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, Epoch, TenantId, codec};
use tagfast_resilience::ErrorChain;
use tagfast_sharding::LogicalShard;
use tagfast_store::{ScanPage, ScanRequest, ShardScanner, StoreError, stored_key};
use tokio::time::Instant;

use crate::refusal::unavailable;
use crate::scan_session::ScanSession;
use crate::store::PostgresStore;

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
        let mut session = handle.scan_session.lock().await;
        let rows = loop {
            let Some((epoch, node)) = handle.cluster.primary(until).await else {
                return Err(unavailable("the cluster has no primary", false));
            };
            if session.as_ref().is_none_or(|(address, s)| *address != node.address || s.is_closed())
            {
                let opened = ScanSession::open(&self.connections, &node.address).await;
                *session = opened.ok().map(|s| (node.address.clone(), s));
            }
            let Some((_, server)) = session.as_ref() else {
                handle.cluster.report_failure();
                if Instant::now() >= until {
                    return Err(unavailable("the primary is not reached", false));
                }
                tokio::time::sleep(RECONNECT_DELAY).await;
                continue;
            };
            match server.page(&epoch.id.0, (&low, &high), rows).await {
                Ok(rows) => break rows,
                Err(error) => {
                    let (cluster, error) = (&handle.cluster.name, ErrorChain(&error));
                    tracing::warn!(cluster, %error, "a page of a scan failed");
                    *session = None;
                    handle.cluster.report_failure();
                    if Instant::now() >= until {
                        return Err(unavailable("the primary does not answer a scan", false));
                    }
                }
            }
        };
        // The next page is read while this one is decoded.
        drop(session);
        page_of(&rows, limit)
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
