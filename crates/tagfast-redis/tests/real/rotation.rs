//! Passwords are changed while a client is connected, and settings of the server become wrong.

use std::net::SocketAddr;
use std::sync::Arc;

use tagfast_redis::{Redis, RedisOptions, RedisRole};
use tagfast_resilience::{Breakers, Credential, Secret, SystemClock};
use tagfast_testkit::sentinel::{RedisServer, SentinelSetup, query};
use tagfast_testkit::wait_for_condition_async;

use crate::{TEST_TIMEOUT, set};

fn start(options: RedisOptions, role: RedisRole) -> Arc<Redis> {
    Redis::start_with(options, role, &Breakers::new(Arc::new(SystemClock))).expect("a URL")
}

fn password(name: &str, text: &str) -> Credential {
    Credential::new(name, Secret::new(text.to_owned()))
}

fn change(credential: &Credential, text: &str) {
    assert!(credential.replace(Secret::new(text.to_owned())));
}

/// Waits until the credential's problem is this; an empty text: it has none.
async fn problem(credential: &Credential, words: &str) {
    wait_for_condition_async("the problem", TEST_TIMEOUT, || async {
        match credential.problem() {
            None if words.is_empty() => Ok(()),
            Some(problem) if !words.is_empty() && problem.contains(words) => Ok(()),
            other => Err(format!("{other:?}, not {words:?}")),
        }
    })
    .await;
}

/// The default user has no password, so that the test can command the server.
fn give_password(at: SocketAddr, user: &str, text: &str) {
    let secret = format!(">{text}");
    let rights = ["ACL", "SETUSER", user, "on", "resetpass", &secret, "~*", "&*", "+@all"];
    query(at, &rights).expect("a user");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_of_a_user_changes_in_either_order_while_connected() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = RedisServer::start(dir.path(), &[]);
    give_password(server.address(), "app", "one");
    let credential = password("state.redis_password_file", "one");
    let options = RedisOptions {
        password: Some(credential.clone()),
        ..RedisOptions::new(&format!("redis://app@{}", server.address()))
    };
    let redis = start(options, RedisRole::State);
    assert!(redis.wait_connected(TEST_TIMEOUT).await, "{:?}", redis.problem());
    let number = || query(server.address(), &["CLIENT", "LIST"]).expect("a list").lines().count();
    let connections = number();
    // The file first: the connection goes on, and the server is named.
    change(&credential, "two");
    problem(&credential, "only with what it held before").await;
    set(&redis, "a").await.expect("it is set");
    give_password(server.address(), "app", "two");
    problem(&credential, "").await;
    assert_eq!(number(), connections, "no connection was made for it");
    // The server first: the connection goes on until it breaks; then nothing is right.
    give_password(server.address(), "app", "three");
    problem(&credential, "cannot be used with").await;
    set(&redis, "b").await.expect("it is set");
    server.command(&["CLIENT", "KILL", "USER", "app"]);
    wait_for_condition_async("it is refused", TEST_TIMEOUT, || async {
        match redis.problem() {
            Some(why) if why.contains("authentication") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    change(&credential, "three");
    assert!(redis.wait_connected(TEST_TIMEOUT).await, "{:?}", redis.problem());
    set(&redis, "c").await.expect("it is set");
    problem(&credential, "").await;
    redis.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_of_sentinels_changes_while_connected() {
    let setup = tokio::task::spawn_blocking(|| SentinelSetup::start(&[])).await.expect("no panic");
    let url = setup.url();
    let sentinel = url.split([',', '/']).rev().nth(1).expect("a Sentinel");
    let sentinel: SocketAddr = sentinel.parse().expect("an address");
    give_password(sentinel, "watcher", "one");
    let credential = password("state.sentinel_password_file", "one");
    let options = RedisOptions {
        sentinel_user: Some("watcher".to_owned()),
        sentinel_password: Some(credential.clone()),
        ..RedisOptions::new(&url)
    };
    let redis = start(options, RedisRole::State);
    assert!(redis.wait_connected(TEST_TIMEOUT).await, "{:?}", redis.problem());
    change(&credential, "two");
    problem(&credential, "only with what it held before").await;
    give_password(sentinel, "watcher", "two");
    problem(&credential, "").await;
    set(&redis, "a").await.expect("it is set");
    redis.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_policy_is_noticed_while_connected_and_named_while_it_lasts() {
    for (role, right, wrong) in [
        (RedisRole::State, "noeviction", "volatile-lru"),
        (RedisRole::State, "noeviction", "allkeys-lfu"),
        (RedisRole::Cache, "volatile-lru", "allkeys-lru"),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let args = ["--maxmemory", "64mb", "--maxmemory-policy", right];
        let server = RedisServer::start(dir.path(), &args);
        let redis = start(RedisOptions::new(&server.url()), role);
        assert!(redis.wait_connected(TEST_TIMEOUT).await, "{:?}", redis.problem());
        server.command(&["CONFIG", "SET", "maxmemory-policy", wrong]);
        wait_for_condition_async("the policy is named", TEST_TIMEOUT, || async {
            match redis.problem() {
                Some(why) if why.contains(wrong) => Ok(()),
                other => Err(format!("{role} {wrong}: {other:?}")),
            }
        })
        .await;
        assert!(set(&redis, "x").await.is_err(), "it is not used meanwhile");
        server.command(&["CONFIG", "SET", "maxmemory-policy", right]);
        assert!(redis.wait_connected(TEST_TIMEOUT).await, "{:?}", redis.problem());
        redis.stop().await;
    }
    // One that only works worse is a warning, which goes when it is right.
    let dir = tempfile::tempdir().expect("a folder");
    let args = ["--maxmemory", "64mb", "--maxmemory-policy", "volatile-lru"];
    let server = RedisServer::start(dir.path(), &args);
    let redis = start(RedisOptions::new(&server.url()), RedisRole::Cache);
    assert!(redis.wait_connected(TEST_TIMEOUT).await, "{:?}", redis.problem());
    for (policy, warned) in [("noeviction", true), ("volatile-ttl", false)] {
        server.command(&["CONFIG", "SET", "maxmemory-policy", policy]);
        wait_for_condition_async("the warning follows", TEST_TIMEOUT, || async {
            let warning = redis.warning();
            if warning.is_some() == warned { Ok(()) } else { Err(format!("{warning:?}")) }
        })
        .await;
        assert!(redis.problem().is_none());
    }
    redis.stop().await;
}
