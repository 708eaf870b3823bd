//! A Redis behind Sentinel whose primary hangs or dies.

mod rotation;

use std::sync::Arc;
use std::time::Duration;

use tagfast_redis::{Redis, RedisRole};
use tagfast_resilience::{Breakers, SystemClock};
use tagfast_testkit::sentinel::{SentinelSetup, free_address};
use tagfast_testkit::wait_for_condition_async;

const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A primary and a replica watched by a Sentinel, and a client that uses the Sentinel.
async fn connected_setup() -> (SentinelSetup, Arc<Redis>) {
    let setup = tokio::task::spawn_blocking(|| SentinelSetup::start(&[])).await.expect("no panic");
    let redis = Redis::start(&setup.url(), RedisRole::State, &Breakers::new(Arc::new(SystemClock)))
        .expect("a URL");
    assert!(redis.wait_connected(TEST_TIMEOUT).await, "{:?}", redis.problem());
    (setup, redis)
}

async fn set(redis: &Redis, value: &'static str) -> Result<(), String> {
    let set = async |mut connection| {
        redis::cmd("SET").arg("k").arg(value).query_async::<()>(&mut connection).await
    };
    redis.call(Duration::from_millis(100), set).await.map_err(|e| e.to_string())
}

/// The client follows a failover that `begin` causes. `end` then undoes the fault.
async fn follows_failover(
    begin: impl FnOnce(&mut SentinelSetup),
    end: impl AsyncFnOnce(&SentinelSetup),
) {
    let (mut setup, redis) = connected_setup().await;
    set(&redis, "one").await.expect("it is set");
    let before = redis.generation().await.expect("a generation");
    begin(&mut setup);
    wait_for_condition_async("the new primary takes writes", TEST_TIMEOUT, || async {
        set(&redis, "two").await
    })
    .await;
    let after = redis.generation().await.expect("a generation");
    assert_ne!(before, after, "the replica may lack writes, so the generation must change");
    end(&setup).await;
    set(&redis, "three").await.expect("the new primary is still used");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_is_followed_by_its_replica() {
    follows_failover(|setup| setup.primary.kill(), async |_| ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_primary_is_followed_by_its_replica() {
    let thawed = async |setup: &SentinelSetup| {
        setup.primary.thaw();
        wait_for_condition_async("the old primary becomes a replica", TEST_TIMEOUT, || async {
            if setup.primary.is_replica()? { Ok(()) } else { Err("it does not yet".to_owned()) }
        })
        .await;
    };
    follows_failover(|setup| setup.primary.freeze(), thawed).await;
}

/// After a freeze, the old primary claims for seconds to be primary although the replica was
/// promoted. A client that was connected, or was just connecting, must leave it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thawed_primary_is_left_before_it_knows_of_its_demotion() {
    let (setup, redis) = connected_setup().await;
    setup.primary.freeze();
    let setup = tokio::task::spawn_blocking(move || {
        setup.wait_promoted();
        setup
    });
    let setup = setup.await.expect("no panic");
    setup.primary.thaw();
    let new = setup.replica.run_id();
    wait_for_condition_async("the new primary is used", TEST_TIMEOUT, || async {
        match redis.run_id() {
            Some(used) if *used == *new => Ok(()),
            other => Err(format!("{other:?}, not {new}")),
        }
    })
    .await;
    assert_eq!(
        setup.primary.is_replica(),
        Ok(false),
        "Sentinel has not demoted the old primary yet"
    );
}

/// A server that reports the replica role is not used; it is checked again and used once it is a
/// primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_becomes_a_replica_is_left() {
    let (setup, _) = connected_setup().await;
    let redis =
        Redis::start(&setup.primary.url(), RedisRole::State, &Breakers::new(Arc::new(SystemClock)));
    let redis = redis.expect("a URL");
    assert!(redis.wait_connected(TEST_TIMEOUT).await);
    setup.primary.command(&["REPLICAOF", "127.0.0.1", &free_address().port().to_string()]);
    wait_for_condition_async("the replica is left", TEST_TIMEOUT, || async {
        let refused = set(&redis, "x").await;
        match redis.problem() {
            Some(why) if why.contains("replica") => Ok(()),
            other => Err(format!("{refused:?}, {other:?}")),
        }
    })
    .await;
    setup.primary.command(&["REPLICAOF", "NO", "ONE"]);
    assert!(redis.wait_connected(TEST_TIMEOUT).await);
}
