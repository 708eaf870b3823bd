//! Scans: what rebuilds, recounts and exports walk over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tagfast_domain::{ContentKey, Document, TenantId, Version};
use tagfast_sharding::LogicalShard;

use super::StoreHarness;
use super::kit::{Kit, chain, scaled};
use super::tags::odd_keys;

/// Walks one shard; checks order, shard and paging on the way.
async fn walk(
    kit: &Kit,
    shard: LogicalShard,
    tenant: Option<&TenantId>,
    limit: usize,
) -> Vec<(ContentKey, Document)> {
    let mut found: Vec<(ContentKey, Document)> = Vec::new();
    let mut after = None;
    loop {
        let page = kit.store.scan(shard, tenant, after.as_ref(), limit).await;
        let page =
            page.unwrap_or_else(|e| panic!("shard {shard:?} must be scanned, but: {}", chain(&e)));
        assert!(page.items.len() <= limit, "a page has at most {limit} contents");
        for (key, document) in page.items {
            assert_eq!(LogicalShard::of(&key), shard, "{key} is in its shard's scan only");
            assert!(tenant.is_none_or(|t| *t == key.tenant), "{key} is of the tenant asked for");
            let last = found.last().map(|(k, _)| k.to_bytes());
            assert!(
                last.is_none_or(|l| l < key.to_bytes()),
                "contents come in key order, each once: {key}"
            );
            found.push((key, document));
        }
        match page.next {
            None => return found,
            Some(next) => {
                assert!(
                    after.as_ref().is_none_or(|a: &ContentKey| a.to_bytes() < next.to_bytes()),
                    "a scan goes on"
                );
                after = Some(next);
            }
        }
    }
}

async fn walk_all(
    kit: &Kit,
    tenant: Option<&TenantId>,
    limit: usize,
) -> BTreeMap<ContentKey, Document> {
    let mut all = BTreeMap::new();
    for shard in LogicalShard::all() {
        for (key, document) in walk(kit, shard, tenant, limit).await {
            assert!(all.insert(key.clone(), document).is_none(), "{key} came twice");
        }
    }
    all
}

async fn fill(kit: &Kit, count: usize) -> Vec<ContentKey> {
    let mut keys = odd_keys(kit);
    keys.extend((0..count).map(|n| kit.key(&format!("page {n}"))));
    for (chunk, keys) in keys.chunks(250).enumerate() {
        let tag = |n| format!("t{chunk}-{n}");
        let requests = keys
            .iter()
            .enumerate()
            .map(|(n, key)| kit.patch(key, &["all", &tag(n)], &[]))
            .collect();
        for (answer, key) in kit.store.write_many(requests).await.into_iter().zip(keys) {
            answer.unwrap_or_else(|e| panic!("{key} must be written, but: {}", chain(&e)));
        }
    }
    keys
}

/// Every content is in exactly one shard's scan, once, whatever the size of a page, as the view
/// shows it; a content that lost its last tag is included.
pub async fn a_scan_returns_every_content_once(h: &dyn StoreHarness) {
    let kit = Kit::new(h).await;
    let keys = fill(&kit, scaled(150)).await;
    let emptied = &keys[3];
    kit.write(kit.replace(emptied, &[])).await;
    for limit in [1, 3, 1000] {
        let found = walk_all(&kit, Some(&kit.tenant), limit).await;
        assert_eq!(
            found.len(),
            keys.len(),
            "every content of the tenant with pages of {limit}, and nothing else"
        );
        for key in &keys {
            let document = found.get(key).unwrap_or_else(|| panic!("{key} is missing in the scan"));
            let view = kit.view(key).await;
            assert_eq!(document.version, view.version, "{key}");
            assert_eq!(document.live().cloned().collect::<Vec<_>>(), view.tags, "{key}");
        }
        assert_eq!(
            found[emptied].live().count(),
            0,
            "a content that lost its last tag is included"
        );
    }
}

/// A scan for a tenant returns that tenant's contents only; a scan for all includes them.
pub async fn a_scan_knows_its_tenant(h: &dyn StoreHarness) {
    let kit = Kit::new(h).await;
    let keys = fill(&kit, 20).await;
    // Tenants around ours in key order: one is a prefix of another.
    let neighbours: Vec<Kit> = ["0", "x", "-", "."]
        .iter()
        .map(|suffix| {
            let tenant = TenantId::parse(&format!("{}{suffix}", kit.tenant)).expect("a tenant");
            Kit { tenant, ..kit.clone() }
        })
        .collect();
    for neighbour in &neighbours {
        fill(neighbour, 20).await;
    }
    let ours = walk_all(&kit, Some(&kit.tenant), 7).await;
    assert_eq!(ours.len(), keys.len());
    assert!(ours.keys().all(|k| k.tenant == kit.tenant));
    let all = walk_all(&kit, None, 500).await;
    for (key, document) in &ours {
        assert_eq!(
            all.get(key).map(|d| d.version),
            Some(document.version),
            "{key} is in the scan of all tenants"
        );
    }
    for neighbour in &neighbours {
        let theirs = all.keys().filter(|k| k.tenant == neighbour.tenant).count();
        assert_eq!(theirs, keys.len(), "the scan of all tenants has those of {}", neighbour.tenant);
    }
    let nobody = TenantId::parse(&format!("{}zz", kit.tenant)).expect("a tenant");
    assert_eq!(walk_all(&kit, Some(&nobody), 10).await.len(), 0);
}

/// Contents that exist during the whole walk are returned while others are written and made around
/// them.
pub async fn a_scan_misses_nothing_while_others_write(h: &dyn StoreHarness) {
    let kit = Kit::new(h).await;
    let keys = fill(&kit, scaled(60)).await;
    let done = Arc::new(AtomicBool::new(false));
    let writer = {
        let (kit, keys, done) = (kit.clone(), keys.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let mut n = 0;
            while !done.load(Ordering::Acquire) {
                kit.write(
                    kit.replace(&kit.key(&format!("new {}", n % 200)), &[&format!("new{n}")]),
                )
                .await;
                kit.write(kit.replace(&keys[n % keys.len()], &[&format!("changed{n}")])).await;
                n += 1;
                // A store in memory never waits: without this a failed test could not end the task.
                tokio::task::yield_now().await;
            }
        })
    };
    let mut seen: BTreeMap<ContentKey, Version> = BTreeMap::new();
    for _ in 0..3 {
        let found = walk_all(&kit, Some(&kit.tenant), 3).await;
        for key in &keys {
            let document = found
                .get(key)
                .unwrap_or_else(|| panic!("{key} existed all the time and is missing"));
            let before = seen.insert(key.clone(), document.version);
            assert!(
                before.is_none_or(|b| b <= document.version),
                "{key} went back in a later scan"
            );
        }
    }
    done.store(true, Ordering::Release);
    if let Err(e) = writer.await {
        std::panic::resume_unwind(e.into_panic());
    }
}
