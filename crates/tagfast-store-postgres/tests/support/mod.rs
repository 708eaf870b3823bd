//! Support of the tests on real servers: one stack for the binary, a database for each test.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::MutexGuard;
use tagfast_redis::{Redis, RedisRole};
use tagfast_resilience::{Breakers, Clock, SystemClock};
use tagfast_store_postgres::{ClusterOptions, OutboxSink, PostgresOptions, PostgresStore};
use tagfast_testkit::stack::{SharedStack, Stack, StackOptions};

/// Clusters of the stack: a fault of one must not affect the other.
const CLUSTERS: u8 = 2;

/// Whether the long variants run: `cargo xtask test --full`.
pub(crate) fn full() -> bool {
    cfg!(feature = "full")
}

/// The stack, started by the first test that needs it.
pub(crate) fn stack() -> MutexGuard<'static, Stack> {
    static SHARED: SharedStack = SharedStack::new();
    let etcd = if full() { 3 } else { 1 };
    SHARED.get(|base| StackOptions { clusters: CLUSTERS, etcd, redis: true, netns: full(), ..base })
}

/// etcd's URL.
pub(crate) fn etcd() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| stack().info().etcd[0].url.clone())
}

/// Whether a warning is about the version of etcd, which is what the system's packages have.
pub(crate) fn is_of_etcd(warning: &str) -> bool {
    warning.starts_with("etcd 3.")
}

/// Whether the stack's etcd is older than the service wants it.
pub(crate) async fn etcd_is_old() -> bool {
    let url = tokio::task::spawn_blocking(etcd).await.expect("no panic");
    let answer = reqwest::get(format!("{url}/version")).await.expect("etcd answers");
    let version: serde_json::Value = answer.json().await.expect("its version");
    let numbers = version["etcdserver"].as_str().expect("a version").split(['.', '-', '+']);
    let numbers: Vec<u32> = numbers.map_while(|number| number.parse().ok()).collect();
    numbers < vec![3, 4, 31] || (numbers[..2] == [3, 5] && numbers < vec![3, 5, 13])
}

/// Options for the shared stack and a new database.
pub(crate) async fn options(clock: Arc<dyn Clock>) -> PostgresOptions {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let database = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let (info, primaries) = tokio::task::spawn_blocking(|| {
        let stack = stack();
        let primaries =
            ["c0", "c1"].map(|c| stack.primary(c).expect("a primary").postgres.to_string());
        (stack.info().clone(), primaries)
    })
    .await
    .expect("no panic");
    let password = std::fs::read_to_string(&info.database.password_file).expect("the password");
    for primary in primaries {
        create_database(&primary, &info.database.user, &password, &database).await;
    }
    let clusters = info
        .clusters
        .iter()
        .zip(["0-31", "32-63"])
        .map(|(c, shards)| ClusterOptions {
            name: c.name.clone(),
            scope: c.scope.clone(),
            shards: shards.to_owned(),
            patroni: c.nodes.iter().map(|n| n.patroni.clone().into()).collect(),
            moved_from: None,
        })
        .collect();
    PostgresOptions {
        clock,
        node: "test".to_owned(),
        outbox_bytes: 4 << 30,
        ..PostgresOptions::new(
            clusters,
            info.etcd.iter().map(|e| e.url.clone()).collect(),
            database,
            info.database.user,
            password,
        )
    }
}

async fn create_database(address: &str, user: &str, password: &str, database: &str) {
    let (client, driver) = connect(address, user, password, "tagfast").await;
    client.batch_execute(&format!("CREATE DATABASE {database}")).await.expect("a database");
    driver.abort();
}

/// A session of a role on a node.
pub(crate) async fn connect(
    address: &str,
    user: &str,
    password: &str,
    database: &str,
) -> (tokio_postgres::Client, tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>) {
    let (host, port) = address.rsplit_once(':').expect("host:port");
    let (client, connection) = tokio_postgres::Config::new()
        .host(host)
        .port(port.parse().expect("a port"))
        .user(user)
        .password(password)
        .dbname(database)
        .connect(tokio_postgres::NoTls)
        .await
        .expect("connects");
    (client, tokio::spawn(connection))
}

/// A session of the service's role on the primary of cluster `n`.
pub(crate) async fn session(
    n: usize,
    database: &str,
) -> (tokio_postgres::Client, tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>) {
    let (address, info) = tokio::task::spawn_blocking(move || {
        let stack = stack();
        let primary = stack.primary(&format!("c{n}")).expect("a primary");
        (primary.postgres.to_string(), stack.info().database.clone())
    })
    .await
    .expect("no panic");
    let password = std::fs::read_to_string(&info.password_file).expect("the password");
    connect(&address, &info.user, &password, database).await
}

/// Runs a statement on the primary of cluster `n`.
pub(crate) async fn execute(n: usize, database: &str, statement: &str) {
    let (client, driver) = session(n, database).await;
    client.batch_execute(statement).await.expect("it runs");
    driver.abort();
}

/// The number that a query returns on the primary of cluster `n`.
pub(crate) async fn number(n: usize, database: &str, query: &str) -> i32 {
    let (client, driver) = session(n, database).await;
    let number = client.query_one(query, &[]).await.expect("a row").get(0);
    driver.abort();
    number
}

/// The certificate of the authority that signed the nodes' certificates.
pub(crate) async fn authority() -> Vec<u8> {
    let read = || std::fs::read(&stack().info().database.tls_ca_file).expect("a certificate");
    tokio::task::spawn_blocking(read).await.expect("no panic")
}

/// The certificate of an authority that signed no certificate.
pub(crate) fn unrelated_authority() -> Vec<u8> {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout /dev/null";
    let words = format!("req -x509 {key} -days 1 -subj /CN=unrelated");
    let made = std::process::Command::new("openssl")
        .args(words.split(' '))
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    made.stdout
}

/// Opens a store and waits until it takes writes.
pub(crate) async fn open(
    options: PostgresOptions,
    sink: Arc<dyn OutboxSink>,
) -> Arc<PostgresStore> {
    let store = PostgresStore::open(options, sink).expect("it opens");
    assert!(
        store.wait_until_ready(Duration::from_secs(20)).await,
        "not ready: {:?}",
        store.status()
    );
    store
}

/// Connections to the cache Redis and to the state Redis.
pub(crate) async fn redis() -> [Arc<Redis>; 2] {
    let urls = tokio::task::spawn_blocking(|| {
        let stack = stack();
        let info = stack.info();
        [&info.redis, &info.state_redis].map(|server| server.as_ref().expect("Redis").url.clone())
    });
    let [views, positions] = urls.await.expect("no panic");
    let breakers = Breakers::new(Arc::new(SystemClock));
    let start = |url: &str, role| Redis::start(url, role, &breakers).expect("a URL");
    let both = [start(&views, RedisRole::Cache), start(&positions, RedisRole::State)];
    for redis in &both {
        assert!(redis.wait_connected(Duration::from_secs(20)).await, "{:?}", redis.problem());
    }
    both
}
