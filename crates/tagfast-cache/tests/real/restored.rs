//! Servers that are restored from older copies.

use tagfast_cache::CacheOptions;
use tagfast_redis::{RedisRole, keys};
use tagfast_sharding::LogicalShard;
use tagfast_store::CacheUse;
use tagfast_testkit::sentinel::RedisServer;
use tagfast_testkit::stack::proxy::Mode;
use tagfast_testkit::wait_for_condition_async;

use crate::faults::wait_cache_works;
use crate::nodes::{Fixture, Node, TEST_TIMEOUT, blocking, exclusive_servers, short_positions};
use crate::sentinel::{
    every_client_sees_its_own_writes, wait_uses, write_and_read_all, write_through_a_lost_node,
};
use crate::support::key;

/// A cache server and a state server.
async fn servers(dir: &tempfile::TempDir) -> [RedisServer; 2] {
    let homes = ["cache", "state"].map(|name| dir.path().join(name));
    blocking(move || homes.map(|home| RedisServer::start(home, &[]))).await
}

/// Both servers come back with older copies. A client that wrote or holds a token never sees less
/// than that, not even while the servers are away; other clients see the current state once old
/// entries have expired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_restored_from_older_copies() {
    let _exclusive = exclusive_servers().await;
    let dir = tempfile::tempdir().expect("a folder");
    let mut servers = servers(&dir).await;
    let urls = servers.each_ref().map(RedisServer::url);
    let fixture = Fixture::with(&urls, short_positions()).await;
    let ids = write_and_read_all(&fixture).await;
    fixture.a.write("read", "old", "ana").await;
    let copies = servers.each_ref().map(RedisServer::copy);
    let written = write_through_a_lost_node(&fixture, &urls, &ids).await;
    let own = fixture.a.write("read", "new", "ana").await;
    let unknown = fixture.a.write("not-in-the-copy", "new", "ana").await;
    let restored = tokio::task::spawn_blocking(move || {
        servers.iter_mut().for_each(RedisServer::kill);
        servers.iter_mut().zip(&copies).for_each(|(server, copy)| server.restore(copy));
        servers
    });
    let mut n = 0;
    while !restored.is_finished() || n < 20 {
        let seen = [fixture.b.plain("read", "ana").await, fixture.b.with_token("read", &own).await];
        assert_eq!(seen.map(|view| view.version), [own.version; 2], "while they are away");
        n += 1;
    }
    let [cache, state] = restored.await.expect("no panic");
    for node in [&fixture.a, &fixture.b] {
        wait_uses(node, [&cache, &state]).await;
    }
    every_client_sees_its_own_writes(&fixture, &urls, &cache, &written).await;
    for node in [&fixture.a, &fixture.b] {
        assert_eq!(node.eventual("not-in-the-copy").await.version, unknown.version);
    }
    wait_cache_works(&fixture, "after").await;
}

/// The sequence of a stripe went back with a restored copy and has reached its old value again. The
/// node must not take it for the old one: what changed while it was cut off is not answered from
/// L1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequence_that_went_back_is_not_taken_for_the_applied_one() {
    let _exclusive = exclusive_servers().await;
    let dir = tempfile::tempdir().expect("a folder");
    let [mut cache, state] = servers(&dir).await;
    let urls = [cache.url(), state.url()];
    let fixture = Fixture::with(&urls, CacheOptions::default()).await;
    // Without a local cache it refills nothing.
    let options = CacheOptions { l1_bytes: 0, ..CacheOptions::default() };
    let writer = Node::start(&urls, &fixture.backend, &fixture.clock, options).await;
    let stripe = LogicalShard::of(&key("c0"));
    let same: Vec<String> = (0..)
        .map(|n| format!("c{n}"))
        .filter(|id| LogicalShard::of(&key(id)) == stripe)
        .take(4)
        .collect();
    let [changed, seen, first, second] = same.as_slice() else { panic!("four") };
    let key = keys::sequence(stripe.number());
    let sequence = |cache: &RedisServer| cache.command(&["HMGET", &key, "gen", "seq"]);
    let in_l1 = async |id: &str, version| {
        wait_for_condition_async("it is in L1", TEST_TIMEOUT, || async {
            let view = fixture.b.eventual(id).await;
            let there = view.cache == CacheUse::Hit("l1") && view.version == version;
            if there { Ok(()) } else { Err(format!("{:?} {:?}", view.cache, view.version)) }
        })
        .await;
    };
    let before = writer.write(seen, "one", "ana").await;
    in_l1(seen, before.version).await;
    let copy = cache.copy();
    let before = writer.write(changed, "one", "ana").await;
    in_l1(changed, before.version).await;
    let last = writer.write(seen, "two", "ana").await;
    in_l1(seen, last.version).await;
    let known = sequence(&cache);
    fixture.b.set_link(RedisRole::Cache, Mode::Refuse).await;
    cache.kill();
    // The invalidation is lost.
    let written = writer.write(changed, "two", "ana").await;
    let cache = blocking(move || {
        cache.restore(&copy);
        cache
    })
    .await;
    let id = cache.run_id();
    wait_for_condition_async("the writer uses it", TEST_TIMEOUT, || async {
        if writer.redis[0].run_id().is_some_and(|used| *used == *id) {
            Ok(())
        } else {
            Err("not yet")
        }
    })
    .await;
    assert_ne!(sequence(&cache), known, "the sequence went back");
    writer.write(first, "one", "ana").await;
    writer.write(second, "one", "ana").await;
    assert_eq!(sequence(&cache), known, "the sequence has its old value again");
    fixture.b.set_link(RedisRole::Cache, Mode::Pass).await;
    fixture.b.wait_in_sync().await;
    let view = fixture.b.eventual(changed).await;
    assert!(
        view.cache != CacheUse::Hit("l1"),
        "{:?}, {:?} was written",
        view.version,
        written.version
    );
}
