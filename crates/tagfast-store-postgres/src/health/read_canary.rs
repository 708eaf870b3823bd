//! Reads one content of each cluster now and then, although no one asked: what keeps reads from
//! being answered is found without calls, and so is its end.
//!
//! How it fails: it does not; what a read comes to is counted like that of a caller.

use std::sync::Weak;
use std::time::Duration;

use futures_util::future::join_all;
use tagfast_domain::{Content, ContentId, ContentKey, ContentType, TenantId};
use tagfast_sharding::{LogicalShard, ShardMap};
use tagfast_store::{Consistency, ReadOptions, TagReader};
use tokio::time::{Instant, sleep};

/// Between two reads.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long one is waited for.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Contents that are tried to find one of each cluster: enough for any share of 64 shards.
const CANDIDATES: u32 = 4096;

/// A content of each of the clusters, which no caller can write: its tenant is reserved.
pub(crate) fn keys(map: &ShardMap, clusters: usize) -> Vec<ContentKey> {
    let key = |n: u32| {
        let content_type = ContentType::parse("canary").ok()?;
        let content_id = ContentId::parse(&n.to_string()).ok()?;
        let content = Content { content_type, content_id };
        Some(ContentKey { tenant: TenantId::reserved("_canary"), content })
    };
    let mut found = Vec::with_capacity(clusters);
    let mut missing: Vec<usize> = (0..clusters).collect();
    for key in (0..CANDIDATES).filter_map(key) {
        let cluster = usize::from(map.cluster_of(LogicalShard::of(&key)));
        if let Some(n) = missing.iter().position(|missing| *missing == cluster) {
            missing.swap_remove(n);
            found.push(key);
        }
        if missing.is_empty() {
            break;
        }
    }
    found
}

/// Reads the contents once a second, until the store is gone.
pub(crate) async fn read_canaries(store: Weak<dyn TagReader>, keys: Vec<ContentKey>) {
    loop {
        sleep(INTERVAL).await;
        let Some(store) = store.upgrade() else { return };
        let options = ReadOptions {
            consistency: Consistency::Eventual,
            deadline: Some(Instant::now() + TIMEOUT),
            ..ReadOptions::default()
        };
        // The outcome is counted where it is known.
        drop(join_all(keys.iter().map(|key| store.view(key, &options))).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cluster_has_a_canary_however_small_its_share_is() {
        let shards: Vec<String> = (0..64).map(|n| n.to_string()).collect();
        let names: Vec<String> = (0..64).map(|n| format!("c{n}")).collect();
        let of_one = names.iter().zip(&shards).map(|(name, shard)| (name.as_str(), shard.as_str()));
        let map = ShardMap::new(1, of_one).expect("a map");
        assert_eq!(keys(&map, 64).len(), 64);
        let map = ShardMap::new(1, [("a", "0"), ("b", "1-63")]).expect("a map");
        assert_eq!(keys(&map, 2).len(), 2);
    }
}
