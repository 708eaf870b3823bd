//! A Redis behind Sentinel: what happens when its primary hangs or dies.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tagfast_redis::{Redis, Use};
use tagfast_resilience::{Breakers, SystemClock};
use tagfast_testkit::wait_for_condition_async;

const PATIENCE: Duration = Duration::from_secs(30);

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Also when it is frozen.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    fn start(dir: &Path, port: u16, args: &[&str]) -> Self {
        let home = dir.join(port.to_string());
        std::fs::create_dir_all(&home).expect("a folder");
        let mut command = Command::new("redis-server");
        command.args(args).args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""]).current_dir(&home);
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
        Self(quiet.spawn().expect("redis-server is installed"))
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()));
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

async fn ask<T: redis::FromRedisValue>(port: u16, command: &redis::Cmd) -> Result<T, String> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).map_err(|e| e.to_string())?;
    let mut connection = client.get_multiplexed_async_connection().await.map_err(|e| e.to_string())?;
    command.query_async(&mut connection).await.map_err(|e| e.to_string())
}

struct Watched {
    primary: Server,
    primary_port: u16,
    _replica: Server,
    _sentinel: Server,
    redis: Arc<Redis>,
    _dir: tempfile::TempDir,
}

/// A primary, a replica and a Sentinel that knows both.
async fn watched() -> Watched {
    let dir = tempfile::tempdir().expect("a folder");
    let (primary_port, replica_port, sentinel_port) = (free_port(), free_port(), free_port());
    let primary = Server::start(dir.path(), primary_port, &[]);
    let of = format!("127.0.0.1 {primary_port}");
    let replica = Server::start(dir.path(), replica_port, &["--replicaof", &of]);
    let file = dir.path().join("sentinel.conf");
    let lines = format!(
        "sentinel monitor main 127.0.0.1 {primary_port} 1\nsentinel down-after-milliseconds main 500\n\
         sentinel failover-timeout main 2000\n"
    );
    wait_for_condition_async("the replica follows", PATIENCE, || async {
        let info: String = ask(primary_port, redis::cmd("INFO").arg("replication")).await?;
        if info.contains("state=online") { Ok(()) } else { Err(info) }
    })
    .await;
    std::fs::write(&file, lines).expect("a file");
    let sentinel = Server::start(dir.path(), sentinel_port, &[file.to_str().expect("a path"), "--sentinel"]);
    wait_for_condition_async("Sentinel knows the replica", PATIENCE, || async {
        let known: Vec<redis::Value> = ask(sentinel_port, redis::cmd("SENTINEL").arg("replicas").arg("main")).await?;
        if known.len() == 1 { Ok(()) } else { Err(format!("{} replicas", known.len())) }
    })
    .await;
    let silent = free_port();
    // The first of them is not there.
    let url = format!("redis+sentinel://127.0.0.1:{silent},127.0.0.1:{sentinel_port}/main");
    let redis = Redis::start(&url, Use::State, &Breakers::new(Arc::new(SystemClock))).expect("a URL");
    assert!(redis.connected(PATIENCE).await, "{:?}", redis.problem());
    Watched { primary, primary_port, _replica: replica, _sentinel: sentinel, redis, _dir: dir }
}

async fn set(redis: &Redis, value: &'static str) -> Result<(), String> {
    let set = async |mut connection| redis::cmd("SET").arg("k").arg(value).query_async::<()>(&mut connection).await;
    redis.call(Duration::from_millis(100), set).await.map_err(|e| e.to_string())
}

async fn follows(signal: &str) {
    let watched = watched().await;
    set(&watched.redis, "one").await.expect("it is set");
    let before = watched.redis.generation().await.expect("a generation");
    watched.primary.signal(signal);
    wait_for_condition_async("the new primary takes writes", PATIENCE, || async { set(&watched.redis, "two").await })
        .await;
    let after = watched.redis.generation().await.expect("a generation");
    assert_ne!(before, after, "what was remembered may be gone: the replica's copy says otherwise");
    if signal == "-STOP" {
        watched.primary.signal("-CONT");
        wait_for_condition_async("the old one follows", PATIENCE, || async {
            let info: String = ask(watched.primary_port, redis::cmd("INFO").arg("replication")).await?;
            if info.contains("role:slave") { Ok(()) } else { Err("it does not yet".to_owned()) }
        })
        .await;
        set(&watched.redis, "three").await.expect("the new one is still used");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_is_followed_by_its_replica() {
    follows("-KILL").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_primary_is_followed_by_its_replica() {
    follows("-STOP").await;
}

/// A server that says it is a replica is not used, and looked at again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_becomes_a_replica_is_left() {
    let watched = watched().await;
    let url = format!("redis://127.0.0.1:{}", watched.primary_port);
    let redis = Redis::start(&url, Use::State, &Breakers::new(Arc::new(SystemClock))).expect("a URL");
    assert!(redis.connected(PATIENCE).await);
    let other = free_port();
    let mut demote = redis::cmd("REPLICAOF");
    demote.arg("127.0.0.1").arg(other);
    ask::<redis::Value>(watched.primary_port, &demote).await.expect("it is demoted");
    wait_for_condition_async("it is left", PATIENCE, || async {
        let refused = set(&redis, "x").await;
        match redis.problem() {
            Some(why) if why.contains("replica") => Ok(()),
            other => Err(format!("{refused:?}, {other:?}")),
        }
    })
    .await;
    ask::<redis::Value>(watched.primary_port, redis::cmd("REPLICAOF").arg("NO").arg("ONE")).await.expect("promoted");
    assert!(redis.connected(PATIENCE).await);
}
