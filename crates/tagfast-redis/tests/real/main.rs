//! A Redis behind Sentinel: what happens when its primary hangs or dies.

use std::sync::Arc;
use std::time::Duration;

use tagfast_redis::{Redis, Use};
use tagfast_resilience::{Breakers, SystemClock};
use tagfast_testkit::sentinel::{Watched, free_address};
use tagfast_testkit::wait_for_condition_async;

const PATIENCE: Duration = Duration::from_secs(30);

/// Servers that a Sentinel watches, and who asks it.
async fn watched() -> (Watched, Arc<Redis>) {
    let watched = tokio::task::spawn_blocking(|| Watched::start(&[])).await.expect("no panic");
    let redis = Redis::start(&watched.url(), Use::State, &Breakers::new(Arc::new(SystemClock)))
        .expect("a URL");
    assert!(redis.connected(PATIENCE).await, "{:?}", redis.problem());
    (watched, redis)
}

async fn set(redis: &Redis, value: &'static str) -> Result<(), String> {
    let set = async |mut connection| {
        redis::cmd("SET").arg("k").arg(value).query_async::<()>(&mut connection).await
    };
    redis.call(Duration::from_millis(100), set).await.map_err(|e| e.to_string())
}

async fn follows(begin: impl FnOnce(&mut Watched), end: impl AsyncFnOnce(&Watched)) {
    let (mut watched, redis) = watched().await;
    set(&redis, "one").await.expect("it is set");
    let before = redis.generation().await.expect("a generation");
    begin(&mut watched);
    wait_for_condition_async("the new primary takes writes", PATIENCE, || async {
        set(&redis, "two").await
    })
    .await;
    let after = redis.generation().await.expect("a generation");
    assert_ne!(before, after, "what was remembered may be gone: the replica's copy says otherwise");
    end(&watched).await;
    set(&redis, "three").await.expect("the new one is still used");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_is_followed_by_its_replica() {
    follows(|watched| watched.primary.kill(), async |_| ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_primary_is_followed_by_its_replica() {
    let thawed = async |watched: &Watched| {
        watched.primary.thaw();
        wait_for_condition_async("the old one follows", PATIENCE, || async {
            if watched.primary.is_replica()? { Ok(()) } else { Err("it does not yet".to_owned()) }
        })
        .await;
    };
    follows(|watched| watched.primary.freeze(), thawed).await;
}

/// A primary that was frozen says for seconds that it is one after another one has taken its place.
/// Who was connecting meanwhile, or did not notice, leaves it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thawed_primary_is_left_before_it_knows() {
    let (watched, redis) = watched().await;
    watched.primary.freeze();
    let watched = tokio::task::spawn_blocking(move || {
        watched.promoted();
        watched
    });
    let watched = watched.await.expect("no panic");
    watched.primary.thaw();
    let new = watched.replica.run_id();
    wait_for_condition_async("the new one is used", PATIENCE, || async {
        match redis.run_id() {
            Some(used) if *used == *new => Ok(()),
            other => Err(format!("{other:?}, not {new}")),
        }
    })
    .await;
    assert_eq!(watched.primary.is_replica(), Ok(false), "nobody has told the old one yet");
}

/// A server that says it is a replica is not used, and looked at again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_becomes_a_replica_is_left() {
    let (watched, _) = watched().await;
    let redis =
        Redis::start(&watched.primary.url(), Use::State, &Breakers::new(Arc::new(SystemClock)));
    let redis = redis.expect("a URL");
    assert!(redis.connected(PATIENCE).await);
    watched.primary.tell(&["REPLICAOF", "127.0.0.1", &free_address().port().to_string()]);
    wait_for_condition_async("it is left", PATIENCE, || async {
        let refused = set(&redis, "x").await;
        match redis.problem() {
            Some(why) if why.contains("replica") => Ok(()),
            other => Err(format!("{refused:?}, {other:?}")),
        }
    })
    .await;
    watched.primary.tell(&["REPLICAOF", "NO", "ONE"]);
    assert!(redis.connected(PATIENCE).await);
}
