//! Redis servers for the tests, API nodes with their own network links to them, and faults.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tagfast_cache::{CacheOptions, CachedStore};
use tagfast_domain::ContentKey;
use tagfast_redis::{Redis, RedisRole};
use tagfast_resilience::{Breakers, ManualClock, SystemClock};
use tagfast_sharding::ContentHash;
use tagfast_store::testing::MemoryStore;
use tagfast_store::{ConsistencyToken, ReadOptions, TagReader, TagWriter, View, WriteAnswer};
use tagfast_testkit::sentinel::free_address;
use tagfast_testkit::stack::proxy::{Link, Mode, Proxy, ProxyControl};
use tagfast_testkit::stack::{Fault, SharedStack, StackOptions};
use tagfast_testkit::wait_for_condition_async;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};

use crate::harness::{Harness, Layers};
use crate::support::{NOW, add, key, memory_store, node, user};

pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(20);
static STACK: SharedStack = SharedStack::new();

/// The URLs of the cache and of the state Redis.
fn urls() -> &'static [String; 2] {
    static URLS: OnceLock<[String; 2]> = OnceLock::new();
    URLS.get_or_init(|| {
        let stack = STACK.get(|base| StackOptions { redis: true, ..base });
        let info = stack.info();
        [&info.redis, &info.state_redis].map(|server| server.as_ref().expect("Redis").url.clone())
    })
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

pub(crate) async fn url(role: RedisRole) -> String {
    let urls = blocking(urls).await;
    match role {
        RedisRole::Cache => urls[0].clone(),
        RedisRole::State => urls[1].clone(),
    }
}

/// Tests that break a server hold it exclusively; the conformance suites share it.
fn servers_lock() -> Arc<RwLock<()>> {
    static LOCK: OnceLock<Arc<RwLock<()>>> = OnceLock::new();
    Arc::clone(LOCK.get_or_init(Arc::default))
}

/// The servers, emptied, for one test alone.
pub(crate) async fn exclusive_servers() -> OwnedRwLockWriteGuard<()> {
    let lock = servers_lock().write_owned().await;
    command(RedisRole::Cache, &redis::cmd("FLUSHALL")).await;
    command(RedisRole::State, &redis::cmd("FLUSHALL")).await;
    lock
}

/// A connected Redis.
pub(crate) async fn connect(url: &str, role: RedisRole) -> Arc<Redis> {
    let redis = Redis::start(url, role, &Breakers::new(Arc::new(SystemClock))).expect("a URL");
    assert!(redis.wait_connected(TEST_TIMEOUT).await, "{:?}", redis.problem());
    redis
}

/// A conformance harness with these caches.
pub(crate) async fn harness(local_cache: bool, views: bool, positions: bool) -> Harness {
    let lock = servers_lock().read_owned().await;
    let redis = async |wanted: bool, role| match wanted {
        true => Some(connect(&url(role).await, role).await),
        false => None,
    };
    let (views, positions) =
        (redis(views, RedisRole::Cache).await, redis(positions, RedisRole::State).await);
    Harness::new(Layers { local_cache, views, positions }, Some(Box::new(lock)))
}

pub(crate) async fn try_command<T: redis::FromRedisValue>(
    role: RedisRole,
    command: &redis::Cmd,
) -> Result<T, String> {
    let client = redis::Client::open(url(role).await).expect("a URL");
    let mut connection =
        client.get_multiplexed_async_connection().await.map_err(|e| e.to_string())?;
    command.query_async(&mut connection).await.map_err(|e| e.to_string())
}

pub(crate) async fn command(role: RedisRole, command: &redis::Cmd) {
    // A server that was just started may not answer yet.
    let done = || async { try_command::<redis::Value>(role, command).await.map(drop) };
    wait_for_condition_async("Redis executes the command", TEST_TIMEOUT, done).await;
}

pub(crate) async fn fault(fault: Fault, role: RedisRole) {
    let name = match role {
        RedisRole::Cache => "redis",
        RedisRole::State => "state-redis",
    };
    blocking(move || STACK.get(|base| base).fault(fault, name).expect("a fault")).await;
}

/// An API node with its own links to both servers. Servers that a Sentinel names have no link.
pub(crate) struct Node {
    pub(crate) store: Arc<CachedStore>,
    pub(crate) redis: [Arc<Redis>; 2],
    links: Vec<String>,
    control: ProxyControl,
}

/// The fault proxy for the links of all nodes.
fn proxy() -> ProxyControl {
    static PROXY: OnceLock<Proxy> = OnceLock::new();
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    ProxyControl(PROXY.get_or_init(|| Proxy::start(any, Vec::new()).expect("a proxy")).control())
}

/// Adds a link to a server; returns its name and its URL.
async fn link(name: &str, url: &str) -> (String, String) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = format!("{name}-{}", NUMBER.fetch_add(1, Ordering::SeqCst));
    let to = url.strip_prefix("redis://").expect("an address").trim_end_matches('/');
    let link =
        Link { name: name.clone(), listen: free_address(), to: to.parse().expect("an address") };
    let listen = link.listen;
    blocking(move || proxy().add(link).expect("a link")).await;
    (name, format!("redis://{listen}"))
}

impl Node {
    /// A node that uses the cache Redis and the state Redis at these URLs.
    pub(crate) async fn start(
        urls: &[String; 2],
        backend: &Arc<MemoryStore>,
        clock: &Arc<ManualClock>,
        options: CacheOptions,
    ) -> Self {
        let mut urls = urls.clone();
        let mut links = Vec::new();
        for (url, name) in urls.iter_mut().zip(["views", "positions"]) {
            if url.starts_with("redis://") {
                let (name, linked) = link(name, url).await;
                links.push(name);
                *url = linked;
            }
        }
        let redis =
            [connect(&urls[0], RedisRole::Cache).await, connect(&urls[1], RedisRole::State).await];
        let [views, positions] = redis.clone();
        let store = node(backend, clock, Some(views), Some(positions), options);
        let this = Self { store, redis, links, control: proxy() };
        if options.l1_bytes > 0 {
            this.wait_in_sync().await;
        }
        this
    }

    /// Waits until the local cache may answer.
    pub(crate) async fn wait_in_sync(&self) {
        let in_sync = || async {
            if self.store.status().l1_in_sync { Ok(()) } else { Err("it is out of sync") }
        };
        wait_for_condition_async("the local cache is in sync", TEST_TIMEOUT, in_sync).await;
    }

    /// Sets how its link to a server behaves.
    pub(crate) async fn set_link(&self, role: RedisRole, mode: Mode) {
        let (control, name) =
            (self.control, self.links[usize::from(role == RedisRole::State)].clone());
        blocking(move || control.set(&name, mode).expect("a mode")).await;
    }

    pub(crate) async fn write(&self, id: &str, tag: &str, by: &str) -> WriteAnswer {
        self.store.write(add(&key(id), tag, by)).await.expect("a write")
    }

    pub(crate) async fn view(&self, id: &str, options: &ReadOptions<'_>) -> View {
        self.store.view(&key(id), options).await.expect("a view")
    }

    /// Reads with the token of a write.
    pub(crate) async fn with_token(&self, id: &str, written: &WriteAnswer) -> View {
        let token = token_of(&key(id), written);
        self.view(id, &ReadOptions { token: Some(&token), ..ReadOptions::default() }).await
    }

    /// Reads with eventual consistency.
    pub(crate) async fn eventual(&self, id: &str) -> View {
        let options = ReadOptions {
            consistency: tagfast_store::Consistency::Eventual,
            ..ReadOptions::default()
        };
        self.view(id, &options).await
    }

    /// Reads as a user without a token.
    pub(crate) async fn plain(&self, id: &str, by: &str) -> View {
        let user = user(by);
        self.view(id, &ReadOptions { user: Some(&user), ..ReadOptions::default() }).await
    }
}

/// Two nodes in front of one store.
pub(crate) struct Fixture {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) backend: Arc<MemoryStore>,
    pub(crate) a: Node,
    pub(crate) b: Node,
}

impl Fixture {
    /// Nodes that use the shared servers.
    pub(crate) async fn start(options: CacheOptions) -> Self {
        let urls = [url(RedisRole::Cache).await, url(RedisRole::State).await];
        Self::with(&urls, options).await
    }

    /// Nodes that use the cache Redis and the state Redis at these URLs.
    pub(crate) async fn with(urls: &[String; 2], options: CacheOptions) -> Self {
        let clock = Arc::new(ManualClock::new(NOW));
        let backend = memory_store(&clock);
        let a = Node::start(urls, &backend, &clock, options).await;
        let b = Node::start(urls, &backend, &clock, options).await;
        Self { clock, backend, a, b }
    }
}

/// Options with a short TTL of positions, so that a test need not wait for more than a minute.
pub(crate) fn short_positions() -> CacheOptions {
    CacheOptions { positions_ttl: Duration::from_secs(2), ..CacheOptions::default() }
}

pub(crate) fn token_of(content: &ContentKey, answer: &WriteAnswer) -> ConsistencyToken {
    let mut token = ConsistencyToken::default();
    token.observe(ContentHash::of(content), answer.version, answer.receipt.position);
    token
}
