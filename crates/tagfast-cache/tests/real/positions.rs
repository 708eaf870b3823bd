//! Plain clients read their own writes through any node.

use std::time::Duration;

use futures_util::future::join_all;
use tagfast_cache::CacheOptions;
use tagfast_redis::Use;
use tagfast_store::{CacheUse, ReadOptions, TagReader, TagWriter};
use tagfast_testkit::stack::Fault;
use tagfast_testkit::stack::proxy::Mode;
use tagfast_testkit::wait_for_condition_async;

use crate::kit::{PATIENCE, World, alone, command, fault, short, try_command};
use crate::support::{Mood, add, key, user};

/// Waits until positions are known to be complete: a Redis that has just begun may have forgotten
/// some.
pub(crate) async fn known(world: &World) {
    wait_for_condition_async("positions are known", PATIENCE, || async {
        let reads = world.behind.reads();
        world.b.plain("warm", "nobody").await;
        world.b.plain("warm", "nobody").await;
        if world.behind.reads() == reads { Ok(()) } else { Err("they are not") }
    })
    .await;
}

/// The cache lags: its write-through was lost. The user's position says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_reads_their_own_write_through_the_other_node() {
    let _turn = alone().await;
    let world = World::start(short()).await;
    world.b.plain("x", "ana").await;
    known(&world).await;
    assert!(matches!(world.b.plain("x", "ana").await.cache, CacheUse::Hit(_)));
    world.a.link(Use::Cache, Mode::Hang).await;
    let written = world.a.write("x", "new", "ana").await;
    assert!(written.degraded.is_empty(), "its position was stored");
    assert_eq!(world.b.plain("x", "ana").await.version, written.version, "the writer");
    world.a.link(Use::Cache, Mode::Pass).await;
}

/// More contents than are remembered one by one: the shards' positions stand for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writes_of_one_user_are_covered() {
    let _turn = alone().await;
    let world = World::start(short()).await;
    known(&world).await;
    let ids: Vec<String> = (0..150).map(|n| format!("c{n}")).collect();
    for id in &ids {
        world.b.eventual(id).await;
    }
    world.a.link(Use::Cache, Mode::Hang).await;
    let requests = ids.iter().map(|id| add(&key(id), "new", "ana")).collect();
    for answer in world.a.store.write_many(requests).await {
        assert!(answer.expect("a write").degraded.is_empty());
    }
    let user = user("ana");
    let options = ReadOptions { user: Some(&user), ..ReadOptions::default() };
    let keys: Vec<_> = ids.iter().map(|id| key(id)).collect();
    for (id, view) in ids.iter().zip(world.b.store.view_many(&keys, &options).await) {
        assert_eq!(view.expect("a view").tags.len(), 1, "{id}");
    }
    world.a.link(Use::Cache, Mode::Pass).await;
}

/// A state Redis that was emptied, or is another process, has forgotten positions: until those are
/// over, the store is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgotten_positions_send_readers_to_the_store() {
    let _turn = alone().await;
    let world = World::start(short()).await;
    world.b.plain("x", "ana").await;
    known(&world).await;
    for restart in [false, true] {
        world.a.link(Use::Cache, Mode::Hang).await;
        let written = world.a.write("x", &format!("new-{restart}"), "ana").await;
        if restart {
            fault(Fault::Kill, Use::State).await;
            fault(Fault::Restart, Use::State).await;
        } else {
            command(Use::State, &redis::cmd("FLUSHALL")).await;
        }
        assert_eq!(world.b.plain("x", "ana").await.version, written.version, "the writer");
        world.a.link(Use::Cache, Mode::Pass).await;
        known(&world).await;
    }
}

/// Neither a position nor the store: marked, or an error, never silently old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_positions_and_store_the_answer_is_marked() {
    let _turn = alone().await;
    let world = World::start(short()).await;
    world.a.write("x", "ui", "ana").await;
    world.b.plain("x", "bob").await;
    world.b.link(Use::State, Mode::Hang).await;
    world.behind.mood(Mood::Overloaded);
    let view = world.b.plain("x", "bob").await;
    assert!(view.stale, "{view:?}");
    assert!(
        view.degraded.iter().any(|d| (d.feature, d.reason) == ("session", "position_unavailable")),
        "{view:?}"
    );
    let refuses = user("bob");
    let options = ReadOptions {
        user: Some(&refuses),
        max_stale: Some(Duration::ZERO),
        ..ReadOptions::default()
    };
    assert!(world.b.store.view(&key("x"), &options).await.is_err());
    world.b.link(Use::State, Mode::Pass).await;
}

/// A full state Redis refuses; the write is answered and says what it could not do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_state_redis_is_told_with_the_write() {
    let _turn = alone().await;
    let world = World::start(short()).await;
    command(Use::State, redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("1")).await;
    let written = world.a.write("x", "ui", "ana").await;
    command(Use::State, redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("256mb")).await;
    let told: Vec<_> = written.degraded.iter().map(|d| (d.feature, d.reason)).collect();
    assert_eq!(told, [("session", "position_not_stored")]);
    wait_for_condition_async("positions are stored again", PATIENCE, || async {
        let written = world.a.write("x", "api", "ana").await;
        if written.degraded.is_empty() { Ok(()) } else { Err("not yet") }
    })
    .await;
}

/// How often the state Redis did something.
async fn done(command: &str) -> u64 {
    let info: String =
        try_command(Use::State, redis::cmd("INFO").arg("commandstats")).await.expect("an answer");
    let line =
        info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
}

/// Two nodes; a content is in the second one's L1, and positions are known.
async fn warm() -> World {
    let world = World::start(short()).await;
    world.a.write("x", "ui", "ana").await;
    world.b.plain("x", "ana").await;
    known(&world).await;
    world
}

/// Whoever asks at the same time shares a round trip; one user's spoilt key is nobody else's
/// trouble.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_ask_together() {
    let _turn = alone().await;
    let world = warm().await;
    command(Use::State, redis::cmd("SET").arg("tf:p:acme/spoilt").arg("x")).await;
    let (asked, together, reads) = (done("hmget").await, done("time").await, world.behind.reads());
    let views = (0..400).map(|n| {
        let store = std::sync::Arc::clone(&world.b.store);
        tokio::spawn(async move {
            let user = user(&if n == 200 { "spoilt".to_owned() } else { format!("user{n}") });
            let options = ReadOptions { user: Some(&user), ..ReadOptions::default() };
            (n, store.view(&key("x"), &options).await.expect("a view").cache)
        })
    });
    for answer in join_all(views.collect::<Vec<_>>()).await {
        let (n, cache) = answer.expect("no panic");
        assert_eq!(matches!(cache, CacheUse::Hit(_)), n != 200, "{n}: {cache:?}");
    }
    let (asked, together) = (done("hmget").await - asked, done("time").await - together);
    assert_eq!(
        (asked, world.behind.reads()),
        (400, reads + 1),
        "the spoilt one is answered by the store"
    );
    assert!(together <= 200, "{together} round trips for 400 questions");
}

/// Who began a round trip may give up; those who went with it are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_gives_up_leaves_the_others_their_answers() {
    let _turn = alone().await;
    let world = warm().await;
    world.b.link(Use::State, Mode::Slow { ms: 8 }).await;
    let reads = world.behind.reads();
    let views: Vec<_> = (0..100)
        .map(|n| {
            let store = std::sync::Arc::clone(&world.b.store);
            tokio::spawn(async move {
                let user = user(&format!("user{n}"));
                let options = ReadOptions { user: Some(&user), ..ReadOptions::default() };
                let content = key("x");
                let view = store.view(&content, &options);
                if n < 50 {
                    tokio::time::timeout(Duration::from_millis(1), view).await.ok()
                } else {
                    Some(view.await)
                }
            })
        })
        .collect();
    let answers = join_all(views).await.into_iter().skip(50);
    let hits = answers.filter(|answer| {
        let view = answer
            .as_ref()
            .expect("no panic")
            .as_ref()
            .expect("it waited")
            .as_ref()
            .expect("a view");
        matches!(view.cache, CacheUse::Hit(_))
    });
    assert_eq!((hits.count(), world.behind.reads()), (50, reads));
    world.b.link(Use::State, Mode::Pass).await;
}

/// An entry that a lost write-through left behind ends before its writer's position does: a plain
/// client is never shown it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_outlive_every_entry() {
    let _turn = alone().await;
    let options = CacheOptions::default();
    let world = World::start(options).await;
    for n in 0..200 {
        world.a.write(&format!("c{n}"), "ui", "ana").await;
    }
    let mut longest = 0;
    for n in 0..200 {
        let id = format!("c{n}");
        let shard = tagfast_sharding::LogicalShard::of(&key(&id)).number();
        let view = format!("tf:v:{shard:02}:acme/test.doc/{id}");
        let lives = wait_for_condition_async("it is filled", PATIENCE, || async {
            let bytes: Vec<u8> = try_command(Use::Cache, redis::cmd("GET").arg(&view)).await?;
            let entry =
                tagfast_cache::Entry::decode(&bytes).map_err(|error| format!("{error:?}"))?;
            Ok::<_, String>(entry.soft_until - entry.read_at)
        });
        longest = longest.max(lives.await);
    }
    let longest = Duration::from_millis(longest.unsigned_abs());
    assert!(longest > options.soft_ttl && longest < options.positions_for, "{longest:?}");
    let kept: i64 =
        try_command(Use::State, redis::cmd("PTTL").arg("tf:p:acme/ana")).await.expect("an answer");
    assert!(
        Duration::from_millis(kept.unsigned_abs()) > options.soft_ttl.mul_f64(1.2),
        "{kept} ms"
    );
}
