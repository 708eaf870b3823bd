//! Servers that are restored from older copies of theirs.

use tagfast_cache::CacheOptions;
use tagfast_redis::Use;
use tagfast_sharding::LogicalShard;
use tagfast_store::CacheUse;
use tagfast_testkit::sentinel::RedisServer;
use tagfast_testkit::stack::proxy::Mode;
use tagfast_testkit::wait_for_condition_async;

use crate::faults::works;
use crate::kit::{Node, PATIENCE, World, alone, blocking, short};
use crate::sentinel::{nobody_misses_what_they_know, uses, written_and_gone, written_and_read};
use crate::support::key;

/// A server of the cache and one of the state.
async fn servers(dir: &tempfile::TempDir) -> [RedisServer; 2] {
    let homes = ["cache", "state"].map(|name| dir.path().join(name));
    blocking(move || homes.map(|home| RedisServer::start(home, &[]))).await
}

/// VC7, first run: both servers come back with older copies. Nobody is answered less than they
/// wrote or their token says, not while they are away either; everybody else is answered what is
/// right when old entries have ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vc7_both_restored_from_older_copies() {
    let _turn = alone().await;
    let dir = tempfile::tempdir().expect("a folder");
    let mut servers = servers(&dir).await;
    let urls = servers.each_ref().map(RedisServer::url);
    let world = World::with(&urls, short()).await;
    let ids = written_and_read(&world).await;
    world.a.write("read", "old", "ana").await;
    let copies = servers.each_ref().map(RedisServer::copy);
    let written = written_and_gone(&world, &urls, &ids).await;
    let own = world.a.write("read", "new", "ana").await;
    let unknown = world.a.write("not-in-the-copy", "new", "ana").await;
    let restored = tokio::task::spawn_blocking(move || {
        servers.iter_mut().for_each(RedisServer::kill);
        servers.iter_mut().zip(&copies).for_each(|(server, copy)| server.restore(copy));
        servers
    });
    let mut n = 0;
    while !restored.is_finished() || n < 20 {
        let seen = [world.b.plain("read", "ana").await, world.b.with_token("read", &own).await];
        assert_eq!(seen.map(|view| view.version), [own.version; 2], "while they are away");
        n += 1;
    }
    let [cache, state] = restored.await.expect("no panic");
    for node in [&world.a, &world.b] {
        uses(node, [&cache, &state]).await;
    }
    nobody_misses_what_they_know(&world, &urls, &cache, &written).await;
    for node in [&world.a, &world.b] {
        assert_eq!(node.eventual("not-in-the-copy").await.version, unknown.version);
    }
    works(&world, "after").await;
}

/// The numbers of messages went back with a copy and have come to where they had been: they are not
/// the same ones. What changed while a node heard nothing is not answered from its L1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_that_went_back_are_not_those_that_were_heard() {
    let _turn = alone().await;
    let dir = tempfile::tempdir().expect("a folder");
    let [mut cache, state] = servers(&dir).await;
    let urls = [cache.url(), state.url()];
    let world = World::with(&urls, CacheOptions::default()).await;
    // Without an L1 it puts nothing back into a server that was away.
    let options = CacheOptions { l1_bytes: 0, ..CacheOptions::default() };
    let writer = Node::start(&urls, &world.behind, &world.clock, options).await;
    let stripe = LogicalShard::of(&key("c0"));
    let same: Vec<String> = (0..)
        .map(|n| format!("c{n}"))
        .filter(|id| LogicalShard::of(&key(id)) == stripe)
        .take(4)
        .collect();
    let [changed, heard, first, second] = same.as_slice() else { panic!("four") };
    let numbers = format!("tf:q:{:02}", stripe.number());
    let number = |cache: &RedisServer| cache.tell(&["HMGET", &numbers, "gen", "seq"]);
    let in_l1 = async |id: &str, version| {
        wait_for_condition_async("it is in L1", PATIENCE, || async {
            let view = world.b.eventual(id).await;
            let there = view.cache == CacheUse::Hit("l1") && view.version == version;
            if there { Ok(()) } else { Err(format!("{:?} {:?}", view.cache, view.version)) }
        })
        .await;
    };
    let before = writer.write(heard, "one", "ana").await;
    in_l1(heard, before.version).await;
    let copy = cache.copy();
    let before = writer.write(changed, "one", "ana").await;
    in_l1(changed, before.version).await;
    let last = writer.write(heard, "two", "ana").await;
    in_l1(heard, last.version).await;
    let known = number(&cache);
    world.b.link(Use::Cache, Mode::Refuse).await;
    cache.kill();
    // Nobody is told of it.
    let written = writer.write(changed, "two", "ana").await;
    let cache = blocking(move || {
        cache.restore(&copy);
        cache
    })
    .await;
    let id = cache.run_id();
    wait_for_condition_async("the writer uses it", PATIENCE, || async {
        if writer.redis[0].run_id().is_some_and(|used| *used == *id) {
            Ok(())
        } else {
            Err("not yet")
        }
    })
    .await;
    assert_ne!(number(&cache), known, "they went back");
    writer.write(first, "one", "ana").await;
    writer.write(second, "one", "ana").await;
    assert_eq!(number(&cache), known, "they look as they did");
    world.b.link(Use::Cache, Mode::Pass).await;
    world.b.hears().await;
    let view = world.b.eventual(changed).await;
    assert!(
        view.cache != CacheUse::Hit("l1"),
        "{:?}, {:?} was written",
        view.version,
        written.version
    );
}
