//! Session positions: a client without a token reads its own writes through any node.

use std::time::Duration;

use futures_util::future::join_all;
use tagfast_cache::CacheOptions;
use tagfast_redis::{RedisRole, keys};
use tagfast_store::{CacheUse, ReadOptions, TagReader, TagWriter};
use tagfast_testkit::stack::Fault;
use tagfast_testkit::stack::proxy::Mode;
use tagfast_testkit::wait_for_condition_async;

use crate::nodes::{
    Fixture, TEST_TIMEOUT, command, exclusive_servers, fault, short_positions, try_command,
};
use crate::support::{add, key, overloaded, user, view_key};

/// Waits until positions are known: a Redis with a new generation may have lost some.
pub(crate) async fn wait_positions_known(fixture: &Fixture) {
    wait_for_condition_async("positions are known", TEST_TIMEOUT, || async {
        let reads = fixture.backend.faults().reads();
        fixture.b.plain("warm", "reader").await;
        fixture.b.plain("warm", "reader").await;
        if fixture.backend.faults().reads() == reads { Ok(()) } else { Err("they are unknown") }
    })
    .await;
}

/// The cache lags because a write-through was lost; the user's position reveals it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_reads_their_own_write_through_the_other_node() {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(short_positions()).await;
    fixture.b.plain("x", "ana").await;
    wait_positions_known(&fixture).await;
    assert!(matches!(fixture.b.plain("x", "ana").await.cache, CacheUse::Hit(_)));
    fixture.a.set_link(RedisRole::Cache, Mode::Hang).await;
    let written = fixture.a.write("x", "new", "ana").await;
    assert!(written.degraded.is_empty(), "its position was stored");
    assert_eq!(fixture.b.plain("x", "ana").await.version, written.version, "the writer");
    fixture.a.set_link(RedisRole::Cache, Mode::Pass).await;
}

/// More contents than are remembered one by one: the floors of their shards stand for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writes_of_one_user_are_covered() {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(short_positions()).await;
    wait_positions_known(&fixture).await;
    let ids: Vec<String> = (0..150).map(|n| format!("c{n}")).collect();
    for id in &ids {
        fixture.b.eventual(id).await;
    }
    fixture.a.set_link(RedisRole::Cache, Mode::Hang).await;
    let requests = ids.iter().map(|id| add(&key(id), "new", "ana")).collect();
    for answer in fixture.a.store.write_many(requests).await {
        assert!(answer.expect("a write").degraded.is_empty());
    }
    let user = user("ana");
    let options = ReadOptions { user: Some(&user), ..ReadOptions::default() };
    let keys: Vec<_> = ids.iter().map(|id| key(id)).collect();
    for (id, view) in ids.iter().zip(fixture.b.store.view_many(&keys, &options).await) {
        assert_eq!(view.expect("a view").tags.len(), 1, "{id}");
    }
    fixture.a.set_link(RedisRole::Cache, Mode::Pass).await;
}

/// A state Redis that was emptied or restarted has lost positions: until their TTL has passed,
/// reads go to the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_positions_send_readers_to_the_store() {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(short_positions()).await;
    fixture.b.plain("x", "ana").await;
    wait_positions_known(&fixture).await;
    for restart in [false, true] {
        fixture.a.set_link(RedisRole::Cache, Mode::Hang).await;
        let written = fixture.a.write("x", &format!("new-{restart}"), "ana").await;
        if restart {
            fault(Fault::Kill, RedisRole::State).await;
            fault(Fault::Restart, RedisRole::State).await;
        } else {
            command(RedisRole::State, &redis::cmd("FLUSHALL")).await;
        }
        assert_eq!(fixture.b.plain("x", "ana").await.version, written.version, "the writer");
        fixture.a.set_link(RedisRole::Cache, Mode::Pass).await;
        wait_positions_known(&fixture).await;
    }
}

/// Without positions and without the store, an answer is marked or an error, never silently old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_positions_and_store_the_answer_is_marked() {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(short_positions()).await;
    fixture.a.write("x", "ui", "ana").await;
    fixture.b.plain("x", "bob").await;
    fixture.b.set_link(RedisRole::State, Mode::Hang).await;
    fixture.backend.faults().fail_with(overloaded);
    let view = fixture.b.plain("x", "bob").await;
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
    assert!(fixture.b.store.view(&key("x"), &options).await.is_err());
    fixture.b.set_link(RedisRole::State, Mode::Pass).await;
}

/// A full state Redis refuses; the write succeeds and its answer says what is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_state_redis_marks_the_write() {
    let _exclusive = exclusive_servers().await;
    let fixture = Fixture::start(short_positions()).await;
    command(RedisRole::State, redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("1")).await;
    let written = fixture.a.write("x", "ui", "ana").await;
    command(RedisRole::State, redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("256mb")).await;
    let degraded: Vec<_> = written.degraded.iter().map(|d| (d.feature, d.reason)).collect();
    assert_eq!(degraded, [("session", "position_not_stored")]);
    wait_for_condition_async("positions are stored again", TEST_TIMEOUT, || async {
        let written = fixture.a.write("x", "api", "ana").await;
        if written.degraded.is_empty() { Ok(()) } else { Err("not yet") }
    })
    .await;
}

/// How often the state Redis executed a command.
async fn executed(command: &str) -> u64 {
    let info: String = try_command(RedisRole::State, redis::cmd("INFO").arg("commandstats"))
        .await
        .expect("an answer");
    let line =
        info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
}

/// Two nodes; a content is in the second one's L1, and positions are known.
async fn warm_fixture() -> Fixture {
    let fixture = Fixture::start(short_positions()).await;
    fixture.a.write("x", "ui", "ana").await;
    fixture.b.plain("x", "ana").await;
    wait_positions_known(&fixture).await;
    fixture
}

/// Concurrent lookups share a round trip; a damaged key of one user affects no other user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_lookups_share_round_trips() {
    let _exclusive = exclusive_servers().await;
    let fixture = warm_fixture().await;
    command(RedisRole::State, redis::cmd("SET").arg(keys::positions("acme", "damaged")).arg("x"))
        .await;
    let (lookups, batches, reads) =
        (executed("hmget").await, executed("time").await, fixture.backend.faults().reads());
    let views = (0..400).map(|n| {
        let store = std::sync::Arc::clone(&fixture.b.store);
        tokio::spawn(async move {
            let user = user(&if n == 200 { "damaged".to_owned() } else { format!("user{n}") });
            let options = ReadOptions { user: Some(&user), ..ReadOptions::default() };
            (n, store.view(&key("x"), &options).await.expect("a view").cache)
        })
    });
    for answer in join_all(views.collect::<Vec<_>>()).await {
        let (n, cache) = answer.expect("no panic");
        assert_eq!(matches!(cache, CacheUse::Hit(_)), n != 200, "{n}: {cache:?}");
    }
    let lookups = executed("hmget").await - lookups;
    let batches = executed("time").await - batches;
    assert_eq!(
        (lookups, fixture.backend.faults().reads()),
        (400, reads + 1),
        "the store answers the damaged one"
    );
    assert!(batches <= 200, "{batches} round trips for 400 lookups");
}

/// The caller that started a batch may give up; the others in it are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_caller_does_not_cancel_its_batch() {
    let _exclusive = exclusive_servers().await;
    let fixture = warm_fixture().await;
    fixture.b.set_link(RedisRole::State, Mode::Slow { ms: 8 }).await;
    let reads = fixture.backend.faults().reads();
    let views: Vec<_> = (0..100)
        .map(|n| {
            let store = std::sync::Arc::clone(&fixture.b.store);
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
    assert_eq!((hits.count(), fixture.backend.faults().reads()), (50, reads));
    fixture.b.set_link(RedisRole::State, Mode::Pass).await;
}

/// An entry that a lost write-through left behind expires before its writer's position does: a
/// client without a token is never shown it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_outlive_every_entry() {
    let _exclusive = exclusive_servers().await;
    let options = CacheOptions::default();
    let fixture = Fixture::start(options).await;
    for n in 0..200 {
        fixture.a.write(&format!("c{n}"), "ui", "ana").await;
    }
    let mut longest = 0;
    for n in 0..200 {
        let id = format!("c{n}");
        let view = view_key(&id);
        let lives = wait_for_condition_async("it is filled", TEST_TIMEOUT, || async {
            let bytes: Vec<u8> =
                try_command(RedisRole::Cache, redis::cmd("GET").arg(&view)).await?;
            let entry =
                tagfast_cache::Entry::decode(&bytes).map_err(|error| format!("{error:?}"))?;
            Ok::<_, String>(entry.soft_until - entry.read_at)
        });
        longest = longest.max(lives.await);
    }
    let longest = Duration::from_millis(longest.unsigned_abs());
    assert!(longest > options.soft_ttl && longest < options.positions_ttl, "{longest:?}");
    let positions = keys::positions("acme", "ana");
    let kept: i64 =
        try_command(RedisRole::State, redis::cmd("PTTL").arg(positions)).await.expect("an answer");
    assert!(
        Duration::from_millis(kept.unsigned_abs()) > options.soft_ttl.mul_f64(1.2),
        "{kept} ms"
    );
}
