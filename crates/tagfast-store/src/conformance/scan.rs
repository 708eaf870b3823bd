//! Shard scans, which rebuilds, recounts and exports use.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tagfast_domain::{ContentKey, Document, TenantId, Version};
use tagfast_sharding::LogicalShard;

use super::harness::StoreHarness;
use super::support::{Fixture, chain, scaled};
use super::tags::odd_keys;
use crate::ScanRequest;

/// Scans one shard, and checks order, shard and paging.
async fn walk(
    fixture: &Fixture,
    shard: LogicalShard,
    tenant: Option<&TenantId>,
    limit: usize,
) -> Vec<(ContentKey, Document)> {
    let mut found: Vec<(ContentKey, Document)> = Vec::new();
    let mut after = None;
    loop {
        let page =
            fixture.store.scan(ScanRequest { shard, tenant, after: after.as_ref(), limit }).await;
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

async fn scan_all(
    fixture: &Fixture,
    tenant: Option<&TenantId>,
    limit: usize,
) -> BTreeMap<ContentKey, Document> {
    let mut all = BTreeMap::new();
    for shard in LogicalShard::all() {
        for (key, document) in walk(fixture, shard, tenant, limit).await {
            assert!(all.insert(key.clone(), document).is_none(), "{key} came twice");
        }
    }
    all
}

async fn fill(fixture: &Fixture, count: usize) -> Vec<ContentKey> {
    let mut keys = odd_keys(fixture);
    keys.extend((0..count).map(|n| fixture.key(&format!("page {n}"))));
    for (chunk, keys) in keys.chunks(250).enumerate() {
        let tag = |n| format!("t{chunk}-{n}");
        let requests = keys
            .iter()
            .enumerate()
            .map(|(n, key)| fixture.patch(key, &["all", &tag(n)], &[]))
            .collect();
        for (answer, key) in fixture.store.write_many(requests).await.into_iter().zip(keys) {
            answer.unwrap_or_else(|e| panic!("{key} must be written, but: {}", chain(&e)));
        }
    }
    keys
}

/// Every content is in exactly one shard's scan, once, for any page size, as the view shows it; a
/// content that lost its last tag is included.
pub async fn a_scan_returns_every_content_once(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let keys = fill(&fixture, scaled(150)).await;
    let emptied = &keys[3];
    fixture.write(fixture.replace(emptied, &[])).await;
    for limit in [1, 3, 1000] {
        let found = scan_all(&fixture, Some(&fixture.tenant), limit).await;
        assert_eq!(
            found.len(),
            keys.len(),
            "every content of the tenant with pages of {limit}, and nothing else"
        );
        for key in &keys {
            let document = found.get(key).unwrap_or_else(|| panic!("{key} is missing in the scan"));
            let view = fixture.view(key).await;
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
    let fixture = Fixture::new(h).await;
    let keys = fill(&fixture, 20).await;
    // Neighbouring tenants in key order: one is a prefix of the next.
    let neighbours: Vec<Fixture> = ["0", "x", "-", "."]
        .iter()
        .map(|suffix| {
            let tenant = TenantId::parse(&format!("{}{suffix}", fixture.tenant)).expect("a tenant");
            Fixture { tenant, ..fixture.clone() }
        })
        .collect();
    for neighbour in &neighbours {
        fill(neighbour, 20).await;
    }
    let ours = scan_all(&fixture, Some(&fixture.tenant), 7).await;
    assert_eq!(ours.len(), keys.len());
    assert!(ours.keys().all(|k| k.tenant == fixture.tenant));
    let all = scan_all(&fixture, None, 500).await;
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
    let unknown = TenantId::parse(&format!("{}zz", fixture.tenant)).expect("a tenant");
    assert_eq!(scan_all(&fixture, Some(&unknown), 10).await.len(), 0);
}

/// Contents that exist during the whole scan are returned while others are written and created.
pub async fn a_scan_misses_nothing_while_others_write(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let keys = fill(&fixture, scaled(60)).await;
    let done = Arc::new(AtomicBool::new(false));
    let writer =
        {
            let (fixture, keys, done) = (fixture.clone(), keys.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut n = 0;
                while !done.load(Ordering::Acquire) {
                    fixture
                        .write(fixture.replace(
                            &fixture.key(&format!("new {}", n % 200)),
                            &[&format!("new{n}")],
                        ))
                        .await;
                    fixture
                        .write(fixture.replace(&keys[n % keys.len()], &[&format!("changed{n}")]))
                        .await;
                    n += 1;
                    // A store in memory never waits: without this a failed test could not end the
                    // task.
                    tokio::task::yield_now().await;
                }
            })
        };
    let mut seen: BTreeMap<ContentKey, Version> = BTreeMap::new();
    for _ in 0..3 {
        let found = scan_all(&fixture, Some(&fixture.tenant), 3).await;
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
