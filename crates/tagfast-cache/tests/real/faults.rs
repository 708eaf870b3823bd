//! Every way in which the cache Redis fails: nobody is answered wrongly or late, and all is as
//! before afterwards.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tagfast_cache::CacheOptions;
use tagfast_redis::{Redis, Use};
use tagfast_resilience::{BreakerState, Breakers, SystemClock};
use tagfast_sharding::LogicalShard;
use tagfast_store::CacheUse;
use tagfast_testkit::stack::Fault;
use tagfast_testkit::stack::proxy::Mode;
use tagfast_testkit::wait_for_condition_async;

use crate::kit::{PATIENCE, World, alone, command, fault, try_command, url};
use crate::support::key;

/// Waits until a node answers from Redis what another one wrote.
pub(crate) async fn works(world: &World, id: &str) {
    let turns = AtomicU64::new(0);
    wait_for_condition_async("the cache answers again", PATIENCE, || async {
        let id = format!("{id}-{}", turns.fetch_add(1, Ordering::SeqCst));
        let written = world.a.write(&id, "ui", "ana").await;
        let view = world.b.eventual(&id).await;
        assert_eq!(view.version, written.version);
        if view.cache == CacheUse::Hit("redis") { Ok(()) } else { Err(format!("{:?}", view.cache)) }
    })
    .await;
    world.a.hears().await;
    world.b.hears().await;
}

/// While a server does not answer, reads and writes are right and quick enough; afterwards the
/// cache works by itself.
async fn survives(name: &str, begin: impl AsyncFnOnce(&World), end: impl AsyncFnOnce(&World)) {
    let _turn = alone().await;
    let world = World::start(CacheOptions::default()).await;
    world.a.write("x", "ui", "ana").await;
    world.b.eventual("x").await;
    begin(&world).await;
    let mut slowest = Duration::ZERO;
    for n in 0..60 {
        let id = format!("{name}{n}");
        let began = Instant::now();
        let written = world.a.write(&id, "ui", "ana").await;
        let seen = world.a.plain(&id, "ana").await;
        let other = world.b.plain(&id, "ana").await;
        slowest = slowest.max(began.elapsed());
        assert_eq!(
            (seen.version, other.version),
            (written.version, written.version),
            "{name}: the writer's reads"
        );
    }
    // One write and two reads, each bounded by the calls' deadlines.
    assert!(slowest < Duration::from_secs(1), "{name}: {slowest:?}");
    end(&world).await;
    works(&world, name).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_cache_costs_deadlines_until_the_breaker_opens() {
    survives(
        "frozen",
        async |_| fault(Fault::Freeze, Use::Cache).await,
        async |_| fault(Fault::Thaw, Use::Cache).await,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_cache_comes_back_empty() {
    survives(
        "killed",
        async |_| fault(Fault::Kill, Use::Cache).await,
        async |_| fault(Fault::Restart, Use::Cache).await,
    )
    .await;
}

/// What a node knows is put into a Redis that came back empty: another node need not read it from
/// the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_known_is_put_into_an_empty_redis() {
    let _turn = alone().await;
    let world = World::start(CacheOptions::default()).await;
    let ids: Vec<String> = (0..300).map(|n| format!("c{n}")).collect();
    for id in &ids {
        world.a.write(id, "ui", "ana").await;
    }
    fault(Fault::Kill, Use::Cache).await;
    fault(Fault::Restart, Use::Cache).await;
    wait_for_condition_async("all are there again", PATIENCE, || async {
        let there: u64 = try_command(Use::Cache, &redis::cmd("DBSIZE")).await?;
        if there >= 300 { Ok(()) } else { Err(format!("{there}")) }
    })
    .await;
    wait_for_condition_async("the other node is connected again", PATIENCE, || async {
        let view = world.b.eventual("c0").await;
        if matches!(view.cache, CacheUse::Hit(_)) {
            Ok(())
        } else {
            Err(format!("{:?}", view.cache))
        }
    })
    .await;
    let reads = world.behind.reads();
    for id in &ids {
        assert_eq!(world.b.eventual(id).await.tags.len(), 1, "{id}");
    }
    assert_eq!(world.behind.reads(), reads);
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
            async |_| fault(kind, Use::Cache).await,
            async |_| fault(Fault::Heal, Use::Cache).await,
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flushed_cache_fills_again() {
    survives("flushed", async |_| command(Use::Cache, &redis::cmd("FLUSHALL")).await, async |_| ())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_or_killed_state_redis() {
    survives(
        "f",
        async |_| fault(Fault::Freeze, Use::State).await,
        async |_| fault(Fault::Thaw, Use::State).await,
    )
    .await;
    survives(
        "k",
        async |_| fault(Fault::Kill, Use::State).await,
        async |_| fault(Fault::Restart, Use::State).await,
    )
    .await;
}

/// A cache Redis that is full evicts views and keeps the numbers of messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_cache_evicts() {
    let small = async |_: &World| {
        command(Use::Cache, redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("3mb")).await;
    };
    let large = async |_: &World| {
        command(Use::Cache, redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("256mb")).await;
    };
    survives("full", small, large).await;
}

/// VC4: a node that is cut off does not answer from L1 later than a second after it last heard;
/// healed, L1 is on again soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vc4_a_cut_off_node_stops_to_answer_from_l1() {
    let _turn = alone().await;
    let world = World::start(CacheOptions::default()).await;
    world.a.write("x", "old", "ana").await;
    world.a.eventual("x").await;
    assert_eq!(world.a.eventual("x").await.cache, CacheUse::Hit("l1"));
    world.a.link(Use::Cache, Mode::Cut).await;
    let written = world.b.write("x", "new", "ana").await;
    let committed = Instant::now();
    let mut last_old = Duration::ZERO;
    while committed.elapsed() < Duration::from_millis(1600) {
        let asked = committed.elapsed();
        if world.a.eventual("x").await.version < written.version {
            last_old = asked;
        }
    }
    assert!(last_old <= Duration::from_millis(1050), "old {last_old:?} after the commit");
    world.a.link(Use::Cache, Mode::Pass).await;
    let healed = Instant::now();
    world.a.hears().await;
    assert!(healed.elapsed() < Duration::from_secs(2), "{:?}", healed.elapsed());
    assert_eq!(world.a.eventual("x").await.version, written.version);
}

/// The connection of messages ends while the data's lives: L1 stops at once, and goes on with what
/// nothing was missed of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_message_connection_alone_is_noticed() {
    let _turn = alone().await;
    let world = World::start(CacheOptions::default()).await;
    world.a.write("x", "ui", "ana").await;
    world.a.eventual("x").await;
    let reads = world.behind.reads();
    command(Use::Cache, redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("PUBSUB")).await;
    world.a.hears().await;
    wait_for_condition_async("L1 answers", PATIENCE, || async {
        let view = world.a.eventual("x").await;
        if view.cache == CacheUse::Hit("l1") { Ok(()) } else { Err(format!("{:?}", view.cache)) }
    })
    .await;
    assert_eq!(world.behind.reads(), reads, "nothing was missed, so nothing was thrown away");
}

/// VC5: one message is lost: its stripe is emptied with the next one, no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vc5_a_missed_message_empties_one_stripe() {
    let _turn = alone().await;
    let world = World::start(CacheOptions::default()).await;
    let shard = |id: &str| LogicalShard::of(&key(id));
    let ids: Vec<String> = (0..200).map(|n| format!("c{n}")).collect();
    for id in &ids {
        world.b.write(id, "ui", "ana").await;
    }
    // Everything was heard, and everything is in L1.
    for id in &ids {
        wait_for_condition_async("it is in L1", PATIENCE, || async {
            let view = world.a.eventual(id).await;
            if view.cache == CacheUse::Hit("l1") {
                Ok(())
            } else {
                Err(format!("{:?}", view.cache))
            }
        })
        .await;
    }
    let hit = shard("c0");
    let number = format!("tf:q:{:02}", hit.number());
    command(Use::Cache, redis::cmd("HINCRBY").arg(&number).arg("seq").arg(1)).await;
    let same = ids.iter().rev().find(|id| shard(id) == hit).expect("a content");
    world.b.write(same, "api", "ana").await;
    wait_for_condition_async("the gap is noticed", PATIENCE, || async {
        let view = world.a.eventual(same).await;
        if view.tags.len() == 2 { Ok(()) } else { Err("not yet") }
    })
    .await;
    for id in &ids {
        let view = world.a.eventual(id).await;
        let expected = if shard(id) == hit { "redis" } else { "l1" };
        if id != same {
            assert_eq!(view.cache, CacheUse::Hit(expected), "{id}");
        }
    }
}

/// Numbers that begin anew in an emptied Redis are no old ones: what may have been missed meanwhile
/// is not answered from L1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_that_begin_anew_empty_their_stripe() {
    let _turn = alone().await;
    let world = World::start(CacheOptions::default()).await;
    let stripe = LogicalShard::of(&key("c0"));
    let same: Vec<String> = (0..)
        .map(|n| format!("c{n}"))
        .filter(|id| LogicalShard::of(&key(id)) == stripe)
        .take(5)
        .collect();
    for round in 0..2 {
        for id in &same {
            world.b.write(id, &format!("r{round}"), "ana").await;
        }
        wait_for_condition_async("it is in L1", PATIENCE, || async {
            let view = world.a.eventual("c0").await;
            let there = view.cache == CacheUse::Hit("l1") && view.tags.len() == round + 1;
            if there { Ok(()) } else { Err(format!("{:?}", view.cache)) }
        })
        .await;
        command(Use::Cache, &redis::cmd("FLUSHALL")).await;
        world.b.write(&same[4], &format!("after{round}"), "ana").await;
        // Sooner than entries end by themselves.
        let soon = Duration::from_secs(2);
        wait_for_condition_async("L1 does not answer with what it had", soon, || async {
            let view = world.a.eventual("c0").await;
            if view.cache == CacheUse::Hit("l1") { Err("it does") } else { Ok(()) }
        })
        .await;
    }
}

/// A Redis that cannot be used is named, and looked at again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unfit_redis_is_named_and_used_when_it_is_mended() {
    let _turn = alone().await;
    let policy = async |policy: &str| {
        command(Use::State, redis::cmd("CONFIG").arg("SET").arg("maxmemory-policy").arg(policy))
            .await;
    };
    policy("allkeys-lru").await;
    let breakers = Breakers::new(std::sync::Arc::new(SystemClock));
    let url = url(Use::State).await;
    let redis = Redis::start(&url, Use::State, &breakers).expect("a URL");
    wait_for_condition_async("it is named", PATIENCE, || async {
        match redis.problem() {
            Some(why) if why.contains("allkeys-lru") && why.contains("noeviction") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    policy("noeviction").await;
    assert!(redis.connected(PATIENCE).await);
    let secret = url.replace("redis://", "redis://:wrong-secret@");
    let locked = Redis::start(&secret, Use::State, &breakers).expect("a URL");
    wait_for_condition_async("the password is refused", PATIENCE, || async {
        match locked.problem() {
            Some(why) if why.contains("password") && !why.contains("wrong-secret") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// The breaker opens on a server that swallows calls, and closes by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_breaker_opens_and_closes_by_itself() {
    let _turn = alone().await;
    let breakers = Breakers::new(std::sync::Arc::new(SystemClock));
    let redis = Redis::start(&url(Use::Cache).await, Use::Cache, &breakers).expect("a URL");
    assert!(redis.connected(PATIENCE).await);
    let ping = async || {
        let call =
            async |mut connection| redis::cmd("PING").query_async::<String>(&mut connection).await;
        redis.call(Duration::from_millis(50), call).await.is_ok()
    };
    let state = || breakers.look()[0].state;
    fault(Fault::Freeze, Use::Cache).await;
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
    fault(Fault::Thaw, Use::Cache).await;
    let thawed = Instant::now();
    wait_for_condition_async("it closes", PATIENCE, || async {
        ping().await;
        if state() == BreakerState::Closed { Ok(()) } else { Err(format!("{:?}", state())) }
    })
    .await;
    assert!(thawed.elapsed() < Duration::from_secs(5), "{:?}", thawed.elapsed());
}
