//! What nodes share while all servers are healthy: fills, invalidations, entries without tags.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tagfast_cache::{CacheOptions, Entry, EntryDecodeError};
use tagfast_domain::Tagging;
use tagfast_redis::RedisRole;
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::{CacheUse, Position, ReadOptions, TagReader};
use tagfast_testkit::wait_for_condition_async;

use crate::nodes::{Fixture, TEST_TIMEOUT, command, exclusive_servers, token_of, try_command};
use crate::support::{NOW, key, version, view_key};

fn shard(id: &str) -> LogicalShard {
    LogicalShard::of(&key(id))
}

async fn stored(id: &str) -> Result<Entry, EntryDecodeError> {
    let bytes: Vec<u8> = try_command(RedisRole::Cache, redis::cmd("GET").arg(view_key(id)))
        .await
        .expect("an answer");
    Entry::decode(&bytes)
}

/// Neighbouring versions that a double cannot tell apart, in both orders.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_versions_are_ordered() {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(CacheOptions { l1_bytes: 0, ..CacheOptions::default() }).await;
    let rounds = if cfg!(feature = "full") { 10_000 } else { 300 };
    for n in 0..rounds {
        let low = (1u64 << 53) + 2 * n;
        let id = format!("c{n}");
        fixture.backend.set_version(&key(&id), version(if n % 2 == 0 { low } else { low + 1 }));
        fixture.a.eventual(&id).await;
        wait_for_condition_async("it is filled", TEST_TIMEOUT, || async {
            stored(&id).await.map_err(|e| format!("{e:?}"))
        })
        .await;
        fixture.backend.set_version(&key(&id), version(if n % 2 == 0 { low + 1 } else { low }));
        // Past `soft_until`, so that the store is read and Redis is filled again.
        fixture.clock.advance(100_000);
        fixture.b.eventual(&id).await;
        wait_for_condition_async("the newer one remains", TEST_TIMEOUT, || async {
            let found = stored(&id).await.map_err(|e| format!("{e:?}"))?.version.packed();
            if found == low + 1 { Ok(()) } else { Err(format!("{found}, not {}", low + 1)) }
        })
        .await;
    }
}

/// A reader that is delayed between the store and its fill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_readers_fill_is_refused() {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(CacheOptions { l1_bytes: 0, ..CacheOptions::default() }).await;
    fixture.backend.faults().pause_reads();
    let slow = {
        let store = Arc::clone(&fixture.a.store);
        tokio::spawn(async move { store.view(&key("x"), &ReadOptions::default()).await })
    };
    wait_for_condition_async("it is read", TEST_TIMEOUT, || async {
        if fixture.backend.faults().reads() == 1 { Ok(()) } else { Err("not yet") }
    })
    .await;
    let written = fixture.b.write("x", "new", "ana").await;
    fixture.backend.faults().heal();
    assert!(slow.await.expect("no panic").expect("a view").tags.is_empty());
    // Its fill has arrived once a later one has.
    fixture.a.eventual("other").await;
    wait_for_condition_async("fills are done", TEST_TIMEOUT, || async {
        stored("other").await.map(drop).map_err(|e| format!("{e:?}"))
    })
    .await;
    assert_eq!(stored("x").await.expect("an entry").version, written.version);
    let view = fixture.a.eventual("x").await;
    assert_eq!((view.version, view.cache), (written.version, CacheUse::Hit("redis")));
}

/// A write through one node invalidates the content in the other node's L1, also when that entry
/// has no tags.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_seen_through_the_other_node() {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(CacheOptions::default()).await;
    for n in 0..50 {
        let id = format!("c{n}");
        assert!(fixture.a.eventual(&id).await.tags.is_empty());
        assert_eq!(fixture.a.eventual(&id).await.cache, CacheUse::Hit("l1"));
        let written = fixture.b.write(&id, "new", "ana").await;
        let began = Instant::now();
        let token = token_of(&key(&id), &written);
        let with_token = ReadOptions { token: Some(&token), ..ReadOptions::default() };
        assert_eq!(
            fixture.a.view(&id, &with_token).await.version,
            written.version,
            "with the token at once"
        );
        wait_for_condition_async("the invalidation arrives", TEST_TIMEOUT, || async {
            let view = fixture.a.eventual(&id).await;
            if view.version == written.version { Ok(()) } else { Err("not yet") }
        })
        .await;
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "far below the TTL of an entry: {:?}",
            began.elapsed()
        );
    }
    let reads = fixture.backend.faults().reads();
    for n in 0..50 {
        fixture.a.eventual(&format!("c{n}")).await;
    }
    assert_eq!(
        fixture.backend.faults().reads(),
        reads,
        "contents that were written through are not read from the store"
    );
}

/// Each of two nodes reads the store at most once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stampede_on_two_nodes_is_two_reads() {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(CacheOptions::default()).await;
    fixture.backend.faults().pause_reads();
    let readers: Vec<_> = (0..2000)
        .map(|n| {
            let store = Arc::clone(if n % 2 == 0 { &fixture.a.store } else { &fixture.b.store });
            tokio::spawn(
                async move { store.view(&key("hot"), &ReadOptions::default()).await.map(drop) },
            )
        })
        .collect();
    wait_for_condition_async("both nodes read", TEST_TIMEOUT, || async {
        if fixture.backend.faults().reads() == 2 { Ok(()) } else { Err("not yet") }
    })
    .await;
    fixture.backend.faults().heal();
    for reader in join_all(readers).await {
        reader.expect("no panic").expect("a view");
    }
    assert_eq!(fixture.backend.faults().reads(), 2);
}

/// An entry that cannot be decoded is a miss: one of a newer program stays, a corrupted one is
/// deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_cannot_be_read_are_misses() {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(CacheOptions { l1_bytes: 0, ..CacheOptions::default() }).await;
    let written = fixture.a.write("x", "ui", "ana").await;
    let good = stored("x").await.expect("an entry").encode();
    for (at, byte) in [(40, 2u8), (98, good[98] ^ 1), (good.len() - 1, good[good.len() - 1] ^ 1)] {
        let mut bad = good.clone();
        bad[at] = byte;
        command(RedisRole::Cache, redis::cmd("SET").arg(view_key("x")).arg(&bad)).await;
        let view = fixture.b.eventual("x").await;
        assert_eq!(
            (view.version, view.cache),
            (written.version, CacheUse::Miss { collapsed: false }),
            "byte {at}"
        );
        command(RedisRole::Cache, redis::cmd("SET").arg(view_key("x")).arg(&good)).await;
    }
    command(RedisRole::Cache, redis::cmd("SET").arg(view_key("x")).arg("short")).await;
    assert_eq!(fixture.b.eventual("x").await.version, written.version);
}

/// Entries beyond the end of their epoch never answer and are deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn diverged_entries_are_deleted_and_the_others_stay() {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(CacheOptions::default()).await;
    for n in 0..300 {
        fixture.a.write(&format!("kept{n}"), "ui", "ana").await;
    }
    let epoch_end = fixture.backend.newest_position();
    fixture.b.write("lost", "ui", "ana").await;
    assert_eq!(fixture.a.eventual("lost").await.tags.len(), 1);
    fixture.backend.fail_over(epoch_end, &key("lost"));
    for node in [&fixture.a, &fixture.b] {
        assert!(node.eventual("lost").await.tags.is_empty());
    }
    wait_for_condition_async("the new state is cached", TEST_TIMEOUT, || async {
        let entry = stored("lost").await.map_err(|e| format!("{e:?}"))?;
        if entry.tags.is_empty() { Ok(()) } else { Err(format!("{entry:?}")) }
    })
    .await;
    let reads = fixture.backend.faults().reads();
    for n in 0..300 {
        assert_eq!(fixture.b.eventual(&format!("kept{n}")).await.tags.len(), 1);
    }
    assert_eq!(fixture.backend.faults().reads(), reads, "entries before the epoch end answer");
}

/// An entry with times far in the future, written by another program, neither answers forever nor
/// blocks fills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_version_from_the_future_is_replaced() {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(CacheOptions { l1_bytes: 0, ..CacheOptions::default() }).await;
    let entry = Entry {
        version: version(1),
        tags: Vec::<Tagging>::new(),
        position: Position { epoch: tagfast_domain::EpochId([1; 16]), xid: 0, lsn: 0 },
        xmin: 0,
        as_of: NOW + 1_000_000_000,
        read_at: NOW + 1_000_000_000,
        soft_until: NOW + 1_000_000_000,
    };
    fixture.backend.set_version(&key("x"), version(1));
    command(RedisRole::Cache, redis::cmd("SET").arg(view_key("x")).arg(entry.encode())).await;
    let written = fixture.a.write("x", "ui", "ana").await;
    assert_eq!(fixture.b.eventual("x").await.version, written.version);
    assert_eq!(ContentHash::of(&key("x")).0 % 64, u64::from(shard("x").number()));
}
