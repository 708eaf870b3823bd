//! Both servers behind Sentinel: a primary dies or hangs, and a replica takes over without the last
//! writes.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tagfast_cache::CacheOptions;
use tagfast_store::{CacheUse, WriteAnswer};
use tagfast_testkit::sentinel::{RedisServer, SentinelSetup};
use tagfast_testkit::wait_for_condition_async;

use crate::faults::wait_cache_works;
use crate::nodes::{Fixture, Node, TEST_TIMEOUT, exclusive_servers, short_positions};
use crate::positions::wait_positions_known;
use crate::support::view_key;

/// An entry answers as fresh for at most 60 s plus 20 %.
pub(crate) const SOFT_TTL_MAX_MS: i64 = 72_001;

/// Servers of the cache and of the state, each set watched by a Sentinel.
async fn start_setups() -> [SentinelSetup; 2] {
    // Both at once: nothing is measured yet.
    let start = || tokio::task::spawn_blocking(|| SentinelSetup::start(&[]));
    let (cache, state) = (start(), start());
    [cache.await.expect("no panic"), state.await.expect("no panic")]
}

async fn on_both(servers: [SentinelSetup; 2], work: fn(&mut SentinelSetup)) -> [SentinelSetup; 2] {
    let [cache, state] = servers.map(|mut setup| {
        tokio::task::spawn_blocking(move || {
            work(&mut setup);
            setup
        })
    });
    [cache.await.expect("no panic"), state.await.expect("no panic")]
}

/// Waits until a node uses these servers (cache, state) and receives their invalidations.
pub(crate) async fn wait_uses(node: &Node, servers: [&RedisServer; 2]) {
    let ids = servers.map(RedisServer::run_id);
    wait_for_condition_async("the node uses the servers", TEST_TIMEOUT, || async {
        let used = node.redis.each_ref().map(|redis| redis.run_id().map(|id| id.to_string()));
        if used == ids.clone().map(Some) { Ok(()) } else { Err(format!("{used:?}, not {ids:?}")) }
    })
    .await;
    node.wait_in_sync().await;
}

/// One node receives invalidations of the other one's writes, earlier than entries of L1 expire.
async fn receives_invalidations(fixture: &Fixture, cache: &RedisServer, id: &str) {
    // The breaker closes in steps, and what is not written through publishes no invalidation.
    let rounds = AtomicU64::new(0);
    wait_for_condition_async("writes are written through", TEST_TIMEOUT, || async {
        // Contents of its own: one content takes a hundred tags.
        let round = rounds.fetch_add(1, Ordering::SeqCst);
        for n in 0..40 {
            let id = format!("{id}-through{round}-{n}");
            if fixture.a.write(&id, "ui", "ana").await.version.packed()
                != stored_version(cache, &id)
            {
                return Err(id);
            }
        }
        Ok(())
    })
    .await;
    fixture.a.write(id, "one", "ana").await;
    wait_for_condition_async("it is in L1", TEST_TIMEOUT, || async {
        let view = fixture.b.eventual(id).await;
        if view.cache == CacheUse::Hit("l1") { Ok(()) } else { Err(format!("{:?}", view.cache)) }
    })
    .await;
    let written = fixture.a.write(id, "two", "ana").await;
    wait_for_condition_async("the invalidation arrives", Duration::from_millis(1500), || async {
        let view = fixture.b.eventual(id).await;
        if view.version == written.version { Ok(()) } else { Err(format!("{:?}", view.cache)) }
    })
    .await;
}

/// A write through each node, then the writer's reads through both nodes, without and with a token.
/// Raises `slowest` to the slowest call.
async fn round(fixture: &Fixture, id: &str, slowest: &mut Duration) {
    for (writer, reader) in [(&fixture.a, &fixture.b), (&fixture.b, &fixture.a)] {
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

/// While a primary fails and its replica takes over, reads and writes are correct and fast enough;
/// afterwards the caches recover without help.
async fn survives(name: &str, fault: fn(&mut SentinelSetup)) {
    let _exclusive = exclusive_servers().await;
    let servers = start_setups().await;
    let fixture =
        Fixture::with(&servers.each_ref().map(SentinelSetup::url), CacheOptions::default()).await;
    let mut slowest = Duration::ZERO;
    round(&fixture, "before", &mut slowest).await;
    let replaced = tokio::spawn(on_both(servers, fault));
    let mut n = 0;
    while !replaced.is_finished() || n < 60 {
        round(&fixture, &format!("{name}{n}"), &mut slowest).await;
        n += 1;
    }
    let [cache, state] = replaced.await.expect("no panic");
    // Meanwhile the nodes find and use the new primaries.
    let used = async {
        for node in [&fixture.a, &fixture.b] {
            wait_uses(node, [&cache.replica, &state.replica]).await;
        }
    };
    tokio::pin!(used);
    while used.as_mut().now_or_never().is_none() {
        round(&fixture, &format!("{name}{n}"), &mut slowest).await;
        n += 1;
    }
    // A call waits for at most two servers, at most 50 ms each.
    assert!(slowest < Duration::from_millis(500), "{name}: {slowest:?}");
    receives_invalidations(&fixture, &cache.replica, name).await;
    wait_cache_works(&fixture, name).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_primaries_are_followed_by_their_replicas() {
    let kill = |setup: &mut SentinelSetup| {
        setup.primary.kill();
        setup.wait_promoted();
    };
    survives("killed", kill).await;
}

/// The old primaries resume and claim for some seconds to be primaries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_primaries_are_followed_by_their_replicas() {
    let freeze = |setup: &mut SentinelSetup| {
        setup.primary.freeze();
        setup.wait_promoted();
        setup.primary.thaw();
    };
    survives("frozen", freeze).await;
}

/// The version of a content in a Redis; 0 when it is not stored.
pub(crate) fn stored_version(server: &RedisServer, id: &str) -> u64 {
    let digits = server.command(&["GETRANGE", &view_key(id), "0", "19"]);
    if digits.is_empty() { 0 } else { digits.parse().expect("a version") }
}

/// Waits until positions are known, then writes contents and reads them through the other node.
pub(crate) async fn write_and_read_all(fixture: &Fixture) -> Vec<String> {
    wait_positions_known(fixture).await;
    let ids: Vec<String> = (0..60).map(|n| format!("c{n}")).collect();
    for id in &ids {
        fixture.a.write(id, "old", "ana").await;
        fixture.b.eventual(id).await;
    }
    ids
}

/// Writes through a node that is dropped afterwards: no other node has these writes in its memory
/// or could refill the caches with them.
pub(crate) async fn write_through_a_lost_node(
    fixture: &Fixture,
    urls: &[String; 2],
    ids: &[String],
) -> Vec<(String, WriteAnswer)> {
    let lost = Node::start(urls, &fixture.backend, &fixture.clock, short_positions()).await;
    let mut written = Vec::new();
    for id in ids {
        let answer = lost.write(id, "new", "ana").await;
        assert!(answer.degraded.is_empty(), "its position was stored: {:?}", answer.degraded);
        written.push((id.clone(), answer));
    }
    written
}

/// The cache is older than the store. A client that wrote a content or holds its token sees the
/// current state all the same; other clients see it once old entries have expired. `written` are
/// writes of a lost node, which only the store has.
pub(crate) async fn every_client_sees_its_own_writes(
    fixture: &Fixture,
    urls: &[String; 2],
    cache: &RedisServer,
    written: &[(String, WriteAnswer)],
) {
    let version = |n: usize| written[n].1.version.packed();
    let all_are_old = |range: Range<usize>| {
        range.into_iter().all(|n| (1..version(n)).contains(&stored_version(cache, &written[n].0)))
    };
    assert!(all_are_old(0..written.len()), "the cache is older");
    let others = written.len() / 3 * 2;
    // Each content is read once: its read repairs the cache.
    for (n, (id, answer)) in written.iter().enumerate().take(others) {
        let node = if n % 2 == 0 { &fixture.a } else { &fixture.b };
        let view =
            if n % 4 < 2 { node.plain(id, "ana").await } else { node.with_token(id, answer).await };
        assert_eq!(view.version, answer.version, "{id}: {:?}", view.cache);
    }
    wait_positions_known(fixture).await;
    assert!(all_are_old(others..written.len()), "no client read them");
    let options = CacheOptions { l1_bytes: 0, ..short_positions() };
    let reader = Node::start(urls, &fixture.backend, &fixture.clock, options).await;
    let view = reader.eventual(&written[others].0).await;
    assert!(
        view.cache == CacheUse::Hit("redis") && view.version < written[others].1.version,
        "an eventual read may lag"
    );
    fixture.clock.advance(SOFT_TTL_MAX_MS);
    for node in [&reader, &fixture.a, &fixture.b] {
        for (id, answer) in &written[others..] {
            assert_eq!(node.eventual(id).await.version, answer.version, "{id}");
        }
    }
}

/// The replicas take over without the last writes. A client that wrote or holds a token never sees
/// less than that; other clients see the current state once old entries have expired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_promoted_without_the_last_writes() {
    let _exclusive = exclusive_servers().await;
    let servers = start_setups().await;
    let urls = servers.each_ref().map(SentinelSetup::url);
    let fixture = Fixture::with(&urls, short_positions()).await;
    let ids = write_and_read_all(&fixture).await;
    let servers = on_both(servers, |setup| setup.detach_replica()).await;
    let written = write_through_a_lost_node(&fixture, &urls, &ids).await;
    let [cache, state] = on_both(servers, SentinelSetup::fail_over).await;
    for node in [&fixture.a, &fixture.b] {
        wait_uses(node, [&cache.replica, &state.replica]).await;
    }
    every_client_sees_its_own_writes(&fixture, &urls, &cache.replica, &written).await;
    wait_cache_works(&fixture, "after").await;
}
