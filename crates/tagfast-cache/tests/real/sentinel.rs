//! Both servers behind Sentinel: a primary that dies or hangs, and a replica that takes over
//! without the last writes.

use std::ops::Range;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tagfast_cache::CacheOptions;
use tagfast_sharding::LogicalShard;
use tagfast_store::{CacheUse, WriteAnswer};
use tagfast_testkit::sentinel::{RedisServer, Watched};
use tagfast_testkit::wait_for_condition_async;

use crate::faults::works;
use crate::kit::{Node, PATIENCE, World, alone, short};
use crate::positions::known;
use crate::support::key;

/// An entry answers for 60 s and a fifth, at most.
pub(crate) const LONGEST_MS: i64 = 72_001;

/// The servers of the cache and of the state, each watched by a Sentinel.
async fn watched() -> [Watched; 2] {
    // The others wait for their turn on the same few processors: nothing is measured yet.
    let start = || tokio::task::spawn_blocking(|| Watched::start(&[]));
    let (cache, state) = (start(), start());
    [cache.await.expect("no panic"), state.await.expect("no panic")]
}

async fn on_both(servers: [Watched; 2], work: fn(&mut Watched)) -> [Watched; 2] {
    let [cache, state] = servers.map(|mut watched| {
        tokio::task::spawn_blocking(move || {
            work(&mut watched);
            watched
        })
    });
    [cache.await.expect("no panic"), state.await.expect("no panic")]
}

/// Waits until a node uses these servers, the cache and the state, and hears what changes there.
pub(crate) async fn uses(node: &Node, servers: [&RedisServer; 2]) {
    let ids = servers.map(RedisServer::run_id);
    wait_for_condition_async("the node uses the servers", PATIENCE, || async {
        let used = node.redis.each_ref().map(|redis| redis.run_id().map(|id| id.to_string()));
        if used == ids.clone().map(Some) { Ok(()) } else { Err(format!("{used:?}, not {ids:?}")) }
    })
    .await;
    node.hears().await;
}

/// One node hears what the other one writes, sooner than entries of L1 end by themselves.
async fn hears_changes(world: &World, cache: &RedisServer, id: &str) {
    // The breaker lets few calls through at first: what is not written through is not told either.
    wait_for_condition_async("writes are written through", PATIENCE, || async {
        for n in 0..40 {
            let id = format!("{id}-through{n}");
            if world.a.write(&id, "ui", "ana").await.version.packed() != held(cache, &id) {
                return Err(id);
            }
        }
        Ok(())
    })
    .await;
    world.a.write(id, "one", "ana").await;
    wait_for_condition_async("it is in L1", PATIENCE, || async {
        let view = world.b.eventual(id).await;
        if view.cache == CacheUse::Hit("l1") { Ok(()) } else { Err(format!("{:?}", view.cache)) }
    })
    .await;
    let written = world.a.write(id, "two", "ana").await;
    wait_for_condition_async("it is heard of", Duration::from_millis(1500), || async {
        let view = world.b.eventual(id).await;
        if view.version == written.version { Ok(()) } else { Err(format!("{:?}", view.cache)) }
    })
    .await;
}

/// A round of writes and reads: the writer's reads through both nodes, without a token and with
/// one. The slowest call.
async fn round(world: &World, id: &str, slowest: &mut Duration) {
    for (writer, reader) in [(&world.a, &world.b), (&world.b, &world.a)] {
        let mut began = Instant::now();
        let mut lap = |slowest: &mut Duration| {
            *slowest = began.elapsed().max(*slowest);
            began = Instant::now();
        };
        let written = writer.write(id, "ui", "ana").await;
        lap(slowest);
        let own = writer.plain(id, "ana").await;
        lap(slowest);
        let other = reader.plain(id, "ana").await;
        lap(slowest);
        let token = reader.with_token(id, &written).await;
        lap(slowest);
        let seen = [own.version, other.version, token.version];
        assert_eq!(seen, [written.version; 3], "{id}: the writer's reads");
    }
}

/// While a primary is away and another one takes its place, reads and writes are right and quick
/// enough; afterwards the caches work by themselves.
async fn survives(name: &str, fault: fn(&mut Watched)) {
    let _turn = alone().await;
    let servers = watched().await;
    let world = World::with(&servers.each_ref().map(Watched::url), CacheOptions::default()).await;
    let mut slowest = Duration::ZERO;
    round(&world, "before", &mut slowest).await;
    let replaced = tokio::spawn(on_both(servers, fault));
    let mut n = 0;
    while !replaced.is_finished() || n < 60 {
        round(&world, &format!("{name}{n}"), &mut slowest).await;
        n += 1;
    }
    let [cache, state] = replaced.await.expect("no panic");
    // What took over is found and used meanwhile.
    let used = async {
        for node in [&world.a, &world.b] {
            uses(node, [&cache.replica, &state.replica]).await;
        }
    };
    tokio::pin!(used);
    while used.as_mut().now_or_never().is_none() {
        round(&world, &format!("{name}{n}"), &mut slowest).await;
        n += 1;
    }
    // Each waits for two servers, at most, which take 50 ms at most.
    assert!(slowest < Duration::from_millis(500), "{name}: {slowest:?}");
    hears_changes(&world, &cache.replica, name).await;
    works(&world, name).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_primaries_are_followed_by_their_replicas() {
    let kill = |watched: &mut Watched| {
        watched.primary.kill();
        watched.promoted();
    };
    survives("killed", kill).await;
}

/// The old ones go on, and say for some seconds that they are primaries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_primaries_are_followed_by_their_replicas() {
    let freeze = |watched: &mut Watched| {
        watched.primary.freeze();
        watched.promoted();
        watched.primary.thaw();
    };
    survives("frozen", freeze).await;
}

/// The version in which a Redis holds a content; 0: not at all.
pub(crate) fn held(server: &RedisServer, id: &str) -> u64 {
    let shard = LogicalShard::of(&key(id)).number();
    let digits =
        server.tell(&["GETRANGE", &format!("tf:v:{shard:02}:acme/test.doc/{id}"), "0", "19"]);
    if digits.is_empty() { 0 } else { digits.parse().expect("a version") }
}

/// Contents that both nodes and the caches know, when positions are known, too.
pub(crate) async fn written_and_read(world: &World) -> Vec<String> {
    known(world).await;
    let ids: Vec<String> = (0..60).map(|n| format!("c{n}")).collect();
    for id in &ids {
        world.a.write(id, "old", "ana").await;
        world.b.eventual(id).await;
    }
    ids
}

/// Writes through a node that is gone afterwards: no other one knows what it wrote, or can put it
/// into the caches again.
pub(crate) async fn written_and_gone(
    world: &World,
    urls: &[String; 2],
    ids: &[String],
) -> Vec<(String, WriteAnswer)> {
    let gone = Node::start(urls, &world.behind, &world.clock, short()).await;
    let mut written = Vec::new();
    for id in ids {
        let answer = gone.write(id, "new", "ana").await;
        assert!(answer.degraded.is_empty(), "its position was stored: {:?}", answer.degraded);
        written.push((id.clone(), answer));
    }
    written
}

/// Who wrote a content or has its token is answered what is right although the cache is older;
/// everybody else when old entries have ended. Contents that nobody knows but the store: `written`
/// by a node that is gone.
pub(crate) async fn nobody_misses_what_they_know(
    world: &World,
    urls: &[String; 2],
    cache: &RedisServer,
    written: &[(String, WriteAnswer)],
) {
    let version = |n: usize| written[n].1.version.packed();
    let all_are_old = |range: Range<usize>| {
        range.into_iter().all(|n| (1..version(n)).contains(&held(cache, &written[n].0)))
    };
    assert!(all_are_old(0..written.len()), "the cache is older");
    let others = written.len() / 3 * 2;
    // Each content is asked for once: the answer mends the cache.
    for (n, (id, answer)) in written.iter().enumerate().take(others) {
        let node = if n % 2 == 0 { &world.a } else { &world.b };
        let view =
            if n % 4 < 2 { node.plain(id, "ana").await } else { node.with_token(id, answer).await };
        assert_eq!(view.version, answer.version, "{id}: {:?}", view.cache);
    }
    known(world).await;
    assert!(all_are_old(others..written.len()), "nobody asked for them");
    let options = CacheOptions { l1_bytes: 0, ..short() };
    let reader = Node::start(urls, &world.behind, &world.clock, options).await;
    let view = reader.eventual(&written[others].0).await;
    assert!(
        view.cache == CacheUse::Hit("redis") && view.version < written[others].1.version,
        "it may be behind"
    );
    world.clock.advance(LONGEST_MS);
    for node in [&reader, &world.a, &world.b] {
        for (id, answer) in &written[others..] {
            assert_eq!(node.eventual(id).await.version, answer.version, "{id}");
        }
    }
}

/// VC7, second run: the replicas take over without the last writes. Nobody is answered less than
/// they wrote or their token says; everybody else is answered what is right when old entries have
/// ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vc7_replicas_promoted_without_the_last_writes() {
    let _turn = alone().await;
    let servers = watched().await;
    let urls = servers.each_ref().map(Watched::url);
    let world = World::with(&urls, short()).await;
    let ids = written_and_read(&world).await;
    let servers = on_both(servers, |watched| watched.part()).await;
    let written = written_and_gone(&world, &urls, &ids).await;
    let [cache, state] = on_both(servers, Watched::lose).await;
    for node in [&world.a, &world.b] {
        uses(node, [&cache.replica, &state.replica]).await;
    }
    nobody_misses_what_they_know(&world, &urls, &cache.replica, &written).await;
    works(&world, "after").await;
}
