//! Every way in which the cache Redis fails: no answer is wrong or late, and afterwards the cache
//! works as before.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tagfast_cache::CacheOptions;
use tagfast_redis::{Redis, RedisRole, keys};
use tagfast_resilience::{BreakerState, Breakers, SystemClock};
use tagfast_sharding::LogicalShard;
use tagfast_store::CacheUse;
use tagfast_testkit::stack::Fault;
use tagfast_testkit::stack::proxy::Mode;
use tagfast_testkit::wait_for_condition_async;

use crate::nodes::{Fixture, TEST_TIMEOUT, command, exclusive_servers, fault, try_command, url};
use crate::support::key;

/// Waits until one node answers from Redis what the other one wrote.
pub(crate) async fn wait_cache_works(fixture: &Fixture, id: &str) {
    let rounds = AtomicU64::new(0);
    wait_for_condition_async("the cache answers again", TEST_TIMEOUT, || async {
        let id = format!("{id}-{}", rounds.fetch_add(1, Ordering::SeqCst));
        let written = fixture.a.write(&id, "ui", "ana").await;
        let view = fixture.b.eventual(&id).await;
        assert_eq!(view.version, written.version);
        if view.cache == CacheUse::Hit("redis") { Ok(()) } else { Err(format!("{:?}", view.cache)) }
    })
    .await;
    fixture.a.wait_in_sync().await;
    fixture.b.wait_in_sync().await;
}

/// While a server is faulty, reads and writes are correct and fast enough; afterwards the cache
/// recovers without help.
async fn survives(name: &str, begin: impl AsyncFnOnce(&Fixture), end: impl AsyncFnOnce(&Fixture)) {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(CacheOptions::default()).await;
    fixture.a.write("x", "ui", "ana").await;
    fixture.b.eventual("x").await;
    begin(&fixture).await;
    let mut slowest = Duration::ZERO;
    for n in 0..60 {
        let id = format!("{name}{n}");
        let began = Instant::now();
        let written = fixture.a.write(&id, "ui", "ana").await;
        let seen = fixture.a.plain(&id, "ana").await;
        let other = fixture.b.plain(&id, "ana").await;
        slowest = slowest.max(began.elapsed());
        assert_eq!(
            (seen.version, other.version),
            (written.version, written.version),
            "{name}: the writer's reads"
        );
    }
    // One write and two reads, each bounded by the timeouts of their calls.
    assert!(slowest < Duration::from_secs(1), "{name}: {slowest:?}");
    end(&fixture).await;
    wait_cache_works(&fixture, name).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_cache_costs_timeouts_until_the_breaker_opens() {
    survives(
        "frozen",
        async |_| fault(Fault::Freeze, RedisRole::Cache).await,
        async |_| fault(Fault::Thaw, RedisRole::Cache).await,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_cache_comes_back_empty() {
    survives(
        "killed",
        async |_| fault(Fault::Kill, RedisRole::Cache).await,
        async |_| fault(Fault::Restart, RedisRole::Cache).await,
    )
    .await;
}

/// A node refills a Redis that came back empty with its own entries: the other node need not read
/// them from the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_redis_is_refilled_from_the_local_cache() {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(CacheOptions::default()).await;
    let ids: Vec<String> = (0..300).map(|n| format!("c{n}")).collect();
    for id in &ids {
        fixture.a.write(id, "ui", "ana").await;
    }
    fault(Fault::Kill, RedisRole::Cache).await;
    fault(Fault::Restart, RedisRole::Cache).await;
    wait_for_condition_async("all entries are stored again", TEST_TIMEOUT, || async {
        let there: u64 = try_command(RedisRole::Cache, &redis::cmd("DBSIZE")).await?;
        if there >= 300 { Ok(()) } else { Err(format!("{there}")) }
    })
    .await;
    wait_for_condition_async("the other node is connected again", TEST_TIMEOUT, || async {
        let view = fixture.b.eventual("c0").await;
        if matches!(view.cache, CacheUse::Hit(_)) {
            Ok(())
        } else {
            Err(format!("{:?}", view.cache))
        }
    })
    .await;
    let reads = fixture.backend.faults().reads();
    for id in &ids {
        assert_eq!(fixture.b.eventual(id).await.tags.len(), 1, "{id}");
    }
    assert_eq!(fixture.backend.faults().reads(), reads);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_garbled_reset_and_refused_links() {
    for (name, kind) in [
        ("slow", Fault::Slow { ms: 50 }),
        ("slower", Fault::Slow { ms: 2000 }),
        ("garbage", Fault::Garbage),
        ("reset", Fault::Reset),
        ("refused", Fault::Refuse),
        ("hangs", Fault::Hang),
    ] {
        survives(
            name,
            async |_| fault(kind, RedisRole::Cache).await,
            async |_| fault(Fault::Heal, RedisRole::Cache).await,
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flushed_cache_fills_again() {
    survives(
        "flushed",
        async |_| command(RedisRole::Cache, &redis::cmd("FLUSHALL")).await,
        async |_| (),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_or_killed_state_redis() {
    survives(
        "f",
        async |_| fault(Fault::Freeze, RedisRole::State).await,
        async |_| fault(Fault::Thaw, RedisRole::State).await,
    )
    .await;
    survives(
        "k",
        async |_| fault(Fault::Kill, RedisRole::State).await,
        async |_| fault(Fault::Restart, RedisRole::State).await,
    )
    .await;
}

/// A full cache Redis evicts views and keeps the sequences of invalidations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_cache_evicts() {
    let small = async |_: &Fixture| {
        command(RedisRole::Cache, redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("3mb"))
            .await;
    };
    let large = async |_: &Fixture| {
        command(RedisRole::Cache, redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("256mb"))
            .await;
    };
    survives("full", small, large).await;
}

/// A node that is cut off stops answering from the local cache within a second of the last pong;
/// once healed, it resumes soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_node_stops_answering_from_l1() {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(CacheOptions::default()).await;
    fixture.a.write("x", "old", "ana").await;
    fixture.a.eventual("x").await;
    assert_eq!(fixture.a.eventual("x").await.cache, CacheUse::Hit("l1"));
    fixture.a.set_link(RedisRole::Cache, Mode::Cut).await;
    let written = fixture.b.write("x", "new", "ana").await;
    let committed = Instant::now();
    let mut last_old = Duration::ZERO;
    while committed.elapsed() < Duration::from_millis(1600) {
        let read_at = committed.elapsed();
        if fixture.a.eventual("x").await.version < written.version {
            last_old = read_at;
        }
    }
    assert!(last_old <= Duration::from_millis(1050), "old {last_old:?} after the commit");
    fixture.a.set_link(RedisRole::Cache, Mode::Pass).await;
    let healed = Instant::now();
    fixture.a.wait_in_sync().await;
    assert!(healed.elapsed() < Duration::from_secs(2), "{:?}", healed.elapsed());
    assert_eq!(fixture.a.eventual("x").await.version, written.version);
}

/// The pub/sub connection ends while the data connection lives: the local cache stops at once, and
/// resumes with the stripes that lost nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_pubsub_connection_alone_is_noticed() {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(CacheOptions::default()).await;
    fixture.a.write("x", "ui", "ana").await;
    fixture.a.eventual("x").await;
    let reads = fixture.backend.faults().reads();
    command(RedisRole::Cache, redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("PUBSUB")).await;
    fixture.a.wait_in_sync().await;
    wait_for_condition_async("L1 answers", TEST_TIMEOUT, || async {
        let view = fixture.a.eventual("x").await;
        if view.cache == CacheUse::Hit("l1") { Ok(()) } else { Err(format!("{:?}", view.cache)) }
    })
    .await;
    assert_eq!(
        fixture.backend.faults().reads(),
        reads,
        "no invalidation was lost, so no entry expired"
    );
}

/// One invalidation is lost: the next one of its stripe expires that stripe and no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_invalidation_expires_one_stripe() {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(CacheOptions::default()).await;
    let shard = |id: &str| LogicalShard::of(&key(id));
    let ids: Vec<String> = (0..200).map(|n| format!("c{n}")).collect();
    for id in &ids {
        fixture.b.write(id, "ui", "ana").await;
    }
    // Every invalidation has been applied, and every content is in L1.
    for id in &ids {
        wait_for_condition_async("it is in L1", TEST_TIMEOUT, || async {
            let view = fixture.a.eventual(id).await;
            if view.cache == CacheUse::Hit("l1") {
                Ok(())
            } else {
                Err(format!("{:?}", view.cache))
            }
        })
        .await;
    }
    let hit = shard("c0");
    let sequence = keys::sequence(hit.number());
    command(RedisRole::Cache, redis::cmd("HINCRBY").arg(&sequence).arg("seq").arg(1)).await;
    let same = ids.iter().rev().find(|id| shard(id) == hit).expect("a content");
    fixture.b.write(same, "api", "ana").await;
    wait_for_condition_async("the gap is noticed", TEST_TIMEOUT, || async {
        let view = fixture.a.eventual(same).await;
        if view.tags.len() == 2 { Ok(()) } else { Err("not yet") }
    })
    .await;
    for id in &ids {
        let view = fixture.a.eventual(id).await;
        let expected = if shard(id) == hit { "redis" } else { "l1" };
        if id != same {
            assert_eq!(view.cache, CacheUse::Hit(expected), "{id}");
        }
    }
}

/// Sequences that restart in an emptied Redis are not mistaken for old ones: the local cache does
/// not answer with what may have changed meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_sequence_expires_its_stripe() {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(CacheOptions::default()).await;
    let stripe = LogicalShard::of(&key("c0"));
    let same: Vec<String> = (0..)
        .map(|n| format!("c{n}"))
        .filter(|id| LogicalShard::of(&key(id)) == stripe)
        .take(5)
        .collect();
    for round in 0..2 {
        for id in &same {
            fixture.b.write(id, &format!("r{round}"), "ana").await;
        }
        wait_for_condition_async("it is in L1", TEST_TIMEOUT, || async {
            let view = fixture.a.eventual("c0").await;
            let there = view.cache == CacheUse::Hit("l1") && view.tags.len() == round + 1;
            if there { Ok(()) } else { Err(format!("{:?}", view.cache)) }
        })
        .await;
        command(RedisRole::Cache, &redis::cmd("FLUSHALL")).await;
        fixture.b.write(&same[4], &format!("after{round}"), "ana").await;
        // Earlier than entries expire by their TTL.
        let soon = Duration::from_secs(2);
        wait_for_condition_async("L1 does not answer with its old entry", soon, || async {
            let view = fixture.a.eventual("c0").await;
            if view.cache == CacheUse::Hit("l1") { Err("it does") } else { Ok(()) }
        })
        .await;
    }
}

/// A Redis that cannot be used is reported, and checked again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unusable_redis_is_reported_and_used_once_it_is_fixed() {
    let _exclusive = exclusive_servers().await;
    let policy = async |policy: &str| {
        command(
            RedisRole::State,
            redis::cmd("CONFIG").arg("SET").arg("maxmemory-policy").arg(policy),
        )
        .await;
    };
    policy("allkeys-lru").await;
    let breakers = Breakers::new(std::sync::Arc::new(SystemClock));
    let url = url(RedisRole::State).await;
    let redis = Redis::start(&url, RedisRole::State, &breakers).expect("a URL");
    wait_for_condition_async("the problem is reported", TEST_TIMEOUT, || async {
        match redis.problem() {
            Some(why) if why.contains("allkeys-lru") && why.contains("noeviction") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    policy("noeviction").await;
    assert!(redis.wait_connected(TEST_TIMEOUT).await);
    let secret = url.replace("redis://", "redis://:wrong-secret@");
    let locked = Redis::start(&secret, RedisRole::State, &breakers).expect("a URL");
    wait_for_condition_async("the password is refused", TEST_TIMEOUT, || async {
        match locked.problem() {
            Some(why) if why.contains("password") && !why.contains("wrong-secret") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// The breaker opens on a server that never answers, and closes without help.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_breaker_opens_and_closes_without_help() {
    let _exclusive = exclusive_servers().await;
    let breakers = Breakers::new(std::sync::Arc::new(SystemClock));
    let redis =
        Redis::start(&url(RedisRole::Cache).await, RedisRole::Cache, &breakers).expect("a URL");
    assert!(redis.wait_connected(TEST_TIMEOUT).await);
    let ping = async || {
        let call =
            async |mut connection| redis::cmd("PING").query_async::<String>(&mut connection).await;
        redis.call(Duration::from_millis(50), call).await.is_ok()
    };
    let state = || breakers.snapshot()[0].state;
    fault(Fault::Freeze, RedisRole::Cache).await;
    for _ in 0..25 {
        assert!(!ping().await);
    }
    assert_eq!(state(), BreakerState::Open);
    let began = Instant::now();
    assert!(!ping().await);
    assert!(
        began.elapsed() < Duration::from_millis(25),
        "an open breaker answers at once: {:?}",
        began.elapsed()
    );
    fault(Fault::Thaw, RedisRole::Cache).await;
    let thawed = Instant::now();
    wait_for_condition_async("it closes", TEST_TIMEOUT, || async {
        ping().await;
        if state() == BreakerState::Closed { Ok(()) } else { Err(format!("{:?}", state())) }
    })
    .await;
    assert!(thawed.elapsed() < Duration::from_secs(5), "{:?}", thawed.elapsed());
}
