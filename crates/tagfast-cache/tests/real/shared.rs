//! What nodes share while everything is well: fills, changes, negative entries.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tagfast_cache::{CacheOptions, Entry, NoEntry};
use tagfast_domain::Tagging;
use tagfast_redis::Use;
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::{CacheUse, Position, ReadOptions, TagReader};
use tagfast_testkit::wait_for_condition_async;

use crate::kit::{PATIENCE, World, alone, command, token_of, try_command};
use crate::support::{Mood, NOW, key, version};

fn shard(id: &str) -> LogicalShard {
    LogicalShard::of(&key(id))
}

fn view_key(id: &str) -> String {
    format!("tf:v:{:02}:acme/test.doc/{id}", shard(id).number())
}

async fn stored(id: &str) -> Result<Entry, NoEntry> {
    let bytes: Vec<u8> =
        try_command(Use::Cache, redis::cmd("GET").arg(view_key(id))).await.expect("an answer");
    Entry::decode(&bytes)
}

/// VC2: neighbouring versions beyond what a double can tell apart, in both orders.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vc2_large_versions_are_ordered() {
    let _turn = alone().await;
    let world = World::start(CacheOptions { l1_bytes: 0, ..CacheOptions::default() }).await;
    let rounds = if std::env::var("TAGFAST_FULL").is_ok_and(|v| v == "1") { 10_000 } else { 300 };
    for n in 0..rounds {
        let low = (1u64 << 53) + 2 * n;
        let id = format!("c{n}");
        world.behind.set(&key(&id), if n % 2 == 0 { low } else { low + 1 });
        world.a.eventual(&id).await;
        wait_for_condition_async("it is filled", PATIENCE, || async {
            stored(&id).await.map_err(|e| format!("{e:?}"))
        })
        .await;
        world.behind.set(&key(&id), if n % 2 == 0 { low + 1 } else { low });
        // Past its soft end, so that the store is read again and fills again.
        world.clock.advance(100_000);
        world.b.eventual(&id).await;
        wait_for_condition_async("the newer one remains", PATIENCE, || async {
            let found = stored(&id).await.map_err(|e| format!("{e:?}"))?.version.packed();
            if found == low + 1 { Ok(()) } else { Err(format!("{found}, not {}", low + 1)) }
        })
        .await;
    }
}

/// VC3: a reader that was held up between the store and its fill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vc3_a_slow_readers_fill_is_refused() {
    let _turn = alone().await;
    let world = World::start(CacheOptions { l1_bytes: 0, ..CacheOptions::default() }).await;
    world.behind.mood(Mood::Hangs);
    let slow = {
        let store = Arc::clone(&world.a.store);
        tokio::spawn(async move { store.view(&key("x"), &ReadOptions::default()).await })
    };
    wait_for_condition_async("it is read", PATIENCE, || async {
        if world.behind.reads() == 1 { Ok(()) } else { Err("not yet") }
    })
    .await;
    let written = world.b.write("x", "new", "ana").await;
    world.behind.mood(Mood::Well);
    assert!(slow.await.expect("no panic").expect("a view").tags.is_empty());
    // Its fill has come when another one after it has.
    world.a.eventual("other").await;
    wait_for_condition_async("fills are done", PATIENCE, || async {
        stored("other").await.map(drop).map_err(|e| format!("{e:?}"))
    })
    .await;
    assert_eq!(stored("x").await.expect("an entry").version, written.version);
    let view = world.a.eventual("x").await;
    assert_eq!((view.version, view.cache), (written.version, CacheUse::Hit("redis")));
}

/// A write through one node is heard by the other, which had the content in L1. VC9: also where the
/// entry said "no tags".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vc9_a_write_is_seen_through_the_other_node() {
    let _turn = alone().await;
    let world = World::start(CacheOptions::default()).await;
    for n in 0..50 {
        let id = format!("c{n}");
        assert!(world.a.eventual(&id).await.tags.is_empty());
        assert_eq!(world.a.eventual(&id).await.cache, CacheUse::Hit("l1"));
        let written = world.b.write(&id, "new", "ana").await;
        let began = Instant::now();
        let token = token_of(&key(&id), &written);
        let with_token = ReadOptions { token: Some(&token), ..ReadOptions::default() };
        assert_eq!(
            world.a.view(&id, &with_token).await.version,
            written.version,
            "with the token at once"
        );
        wait_for_condition_async("it is heard of", PATIENCE, || async {
            let view = world.a.eventual(&id).await;
            if view.version == written.version { Ok(()) } else { Err("not yet") }
        })
        .await;
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "far below what an entry lives: {:?}",
            began.elapsed()
        );
    }
    let reads = world.behind.reads();
    for n in 0..50 {
        world.a.eventual(&format!("c{n}")).await;
    }
    assert_eq!(world.behind.reads(), reads, "what was written through is not read from the store");
}

/// VC8 with two nodes: at most one read each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vc8_a_stampede_on_two_nodes_is_two_reads() {
    let _turn = alone().await;
    let world = World::start(CacheOptions::default()).await;
    world.behind.mood(Mood::Hangs);
    let readers: Vec<_> = (0..2000)
        .map(|n| {
            let store = Arc::clone(if n % 2 == 0 { &world.a.store } else { &world.b.store });
            tokio::spawn(
                async move { store.view(&key("hot"), &ReadOptions::default()).await.map(drop) },
            )
        })
        .collect();
    wait_for_condition_async("both nodes read", PATIENCE, || async {
        if world.behind.reads() == 2 { Ok(()) } else { Err("not yet") }
    })
    .await;
    world.behind.mood(Mood::Well);
    for reader in join_all(readers).await {
        reader.expect("no panic").expect("a view");
    }
    assert_eq!(world.behind.reads(), 2);
}

/// What nobody can read is a miss: left alone when it is of a newer program, deleted when it is
/// damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_cannot_be_read_are_misses() {
    let _turn = alone().await;
    let world = World::start(CacheOptions { l1_bytes: 0, ..CacheOptions::default() }).await;
    let written = world.a.write("x", "ui", "ana").await;
    let good = stored("x").await.expect("an entry").encode();
    for (at, byte) in [(40, 2u8), (98, good[98] ^ 1), (good.len() - 1, good[good.len() - 1] ^ 1)] {
        let mut bad = good.clone();
        bad[at] = byte;
        command(Use::Cache, redis::cmd("SET").arg(view_key("x")).arg(&bad)).await;
        let view = world.b.eventual("x").await;
        assert_eq!(
            (view.version, view.cache),
            (written.version, CacheUse::Miss { collapsed: false }),
            "byte {at}"
        );
        command(Use::Cache, redis::cmd("SET").arg(view_key("x")).arg(&good)).await;
    }
    command(Use::Cache, redis::cmd("SET").arg(view_key("x")).arg("short")).await;
    assert_eq!(world.b.eventual("x").await.version, written.version);
}

/// Entries of a lost epoch are not answered, and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vc6_what_a_failover_lost_goes_and_the_rest_stays() {
    let _turn = alone().await;
    let world = World::start(CacheOptions::default()).await;
    for n in 0..300 {
        world.a.write(&format!("kept{n}"), "ui", "ana").await;
    }
    let fence = world.behind.lsn();
    world.b.write("lost", "ui", "ana").await;
    assert_eq!(world.a.eventual("lost").await.tags.len(), 1);
    world.behind.fail_over(fence, &key("lost"));
    for node in [&world.a, &world.b] {
        assert!(node.eventual("lost").await.tags.is_empty());
    }
    wait_for_condition_async("the new state is kept", PATIENCE, || async {
        let entry = stored("lost").await.map_err(|e| format!("{e:?}"))?;
        if entry.tags.is_empty() { Ok(()) } else { Err(format!("{entry:?}")) }
    })
    .await;
    let reads = world.behind.reads();
    for n in 0..300 {
        assert_eq!(world.b.eventual(&format!("kept{n}")).await.tags.len(), 1);
    }
    assert_eq!(world.behind.reads(), reads, "entries below the fence answer");
}

/// An entry that another program put in with a time far ahead neither answers for ever nor stops
/// fills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_version_from_the_future_is_replaced() {
    let _turn = alone().await;
    let world = World::start(CacheOptions { l1_bytes: 0, ..CacheOptions::default() }).await;
    let entry = Entry {
        version: version(1),
        tags: Vec::<Tagging>::new(),
        position: Position { epoch: tagfast_domain::EpochId([1; 16]), xid: 0, lsn: 0 },
        xmin: 0,
        as_of: NOW + 1_000_000_000,
        read_at: NOW + 1_000_000_000,
        soft_until: NOW + 1_000_000_000,
    };
    world.behind.set(&key("x"), 1);
    command(Use::Cache, redis::cmd("SET").arg(view_key("x")).arg(entry.encode())).await;
    let written = world.a.write("x", "ui", "ana").await;
    assert_eq!(world.b.eventual("x").await.version, written.version);
    assert_eq!(ContentHash::of(&key("x")).0 % 64, u64::from(shard("x").number()));
}
