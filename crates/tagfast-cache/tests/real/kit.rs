//! Redis servers for the tests, nodes with links of their own to them, and faults.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tagfast_cache::{CacheOptions, CachedStore};
use tagfast_domain::ContentKey;
use tagfast_redis::{Redis, Use};
use tagfast_resilience::{Breakers, ManualClock, SystemClock};
use tagfast_sharding::ContentHash;
use tagfast_store::{ConsistencyToken, ReadOptions, TagReader, TagWriter, View, WriteAnswer};
use tagfast_testkit::sentinel::free_address;
use tagfast_testkit::stack::proxy::{Link, Mode, Proxy, ProxyControl};
use tagfast_testkit::stack::{Fault, SharedStack, StackOptions};
use tagfast_testkit::wait_for_condition_async;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};

use crate::suite::{Harness, Layers};
use crate::support::{Behind, NOW, add, key, node, user};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
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

pub(crate) async fn url(used_as: Use) -> String {
    let urls = blocking(urls).await;
    match used_as {
        Use::Cache => urls[0].clone(),
        Use::State => urls[1].clone(),
    }
}

/// Tests that break a server have it alone; the suites share it.
fn turns() -> Arc<RwLock<()>> {
    static TURNS: OnceLock<Arc<RwLock<()>>> = OnceLock::new();
    Arc::clone(TURNS.get_or_init(Arc::default))
}

/// The servers for one test alone, empty.
pub(crate) async fn alone() -> OwnedRwLockWriteGuard<()> {
    let turn = turns().write_owned().await;
    command(Use::Cache, &redis::cmd("FLUSHALL")).await;
    command(Use::State, &redis::cmd("FLUSHALL")).await;
    turn
}

/// A connected Redis.
pub(crate) async fn connect(url: &str, used_as: Use) -> Arc<Redis> {
    let redis = Redis::start(url, used_as, &Breakers::new(Arc::new(SystemClock))).expect("a URL");
    assert!(redis.connected(PATIENCE).await, "{:?}", redis.problem());
    redis
}

/// The embedded store behind these layers.
pub(crate) async fn harness(level1: bool, views: bool, positions: bool) -> Harness {
    let turn = turns().read_owned().await;
    let redis = async |wanted: bool, used_as| match wanted {
        true => Some(connect(&url(used_as).await, used_as).await),
        false => None,
    };
    let (views, positions) = (redis(views, Use::Cache).await, redis(positions, Use::State).await);
    Harness::new(Layers { level1, views, positions }, Some(Box::new(turn)))
}

pub(crate) async fn try_command<T: redis::FromRedisValue>(
    used_as: Use,
    command: &redis::Cmd,
) -> Result<T, String> {
    let client = redis::Client::open(url(used_as).await).expect("a URL");
    let mut connection =
        client.get_multiplexed_async_connection().await.map_err(|e| e.to_string())?;
    command.query_async(&mut connection).await.map_err(|e| e.to_string())
}

pub(crate) async fn command(used_as: Use, command: &redis::Cmd) {
    // A server that was just started may not answer at once.
    let done = || async { try_command::<redis::Value>(used_as, command).await.map(drop) };
    wait_for_condition_async("Redis does it", PATIENCE, done).await;
}

pub(crate) async fn fault(fault: Fault, used_as: Use) {
    let name = match used_as {
        Use::Cache => "redis",
        Use::State => "state-redis",
    };
    blocking(move || STACK.get(|base| base).fault(fault, name).expect("a fault")).await;
}

/// An API node with links of its own to both servers; to whatever Sentinels name it has none.
pub(crate) struct Node {
    pub(crate) store: Arc<CachedStore>,
    pub(crate) redis: [Arc<Redis>; 2],
    links: Vec<String>,
    control: ProxyControl,
}

/// One proxy for the links of all nodes.
fn proxy() -> ProxyControl {
    static PROXY: OnceLock<Proxy> = OnceLock::new();
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    ProxyControl(PROXY.get_or_init(|| Proxy::start(any, Vec::new()).expect("a proxy")).control())
}

/// A link to a server: its name and its URL.
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
    /// In front of the cache and the state at these URLs.
    pub(crate) async fn start(
        urls: &[String; 2],
        behind: &Arc<Behind>,
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
        let redis = [connect(&urls[0], Use::Cache).await, connect(&urls[1], Use::State).await];
        let [views, positions] = redis.clone();
        let store = node(behind, clock, Some(views), Some(positions), options);
        let this = Self { store, redis, links, control: proxy() };
        if options.l1_bytes > 0 {
            this.hears().await;
        }
        this
    }

    /// Waits until L1 answers.
    pub(crate) async fn hears(&self) {
        let hears = || async {
            if self.store.status().l1_answers { Ok(()) } else { Err("L1 does not hear") }
        };
        wait_for_condition_async("L1 hears", PATIENCE, hears).await;
    }

    /// What its link to a server does.
    pub(crate) async fn link(&self, used_as: Use, mode: Mode) {
        let (control, name) =
            (self.control, self.links[usize::from(used_as == Use::State)].clone());
        blocking(move || control.set(&name, mode).expect("a mode")).await;
    }

    pub(crate) async fn write(&self, id: &str, tag: &str, by: &str) -> WriteAnswer {
        self.store.write(add(&key(id), tag, by)).await.expect("a write")
    }

    pub(crate) async fn view(&self, id: &str, options: &ReadOptions<'_>) -> View {
        self.store.view(&key(id), options).await.expect("a view")
    }

    /// With the token of a write.
    pub(crate) async fn with_token(&self, id: &str, written: &WriteAnswer) -> View {
        let token = token_of(&key(id), written);
        self.view(id, &ReadOptions { token: Some(&token), ..ReadOptions::default() }).await
    }

    /// As somebody who wrote nothing.
    pub(crate) async fn eventual(&self, id: &str) -> View {
        let options = ReadOptions {
            consistency: tagfast_store::Consistency::Eventual,
            ..ReadOptions::default()
        };
        self.view(id, &options).await
    }

    /// As a user without a token.
    pub(crate) async fn plain(&self, id: &str, by: &str) -> View {
        let user = user(by);
        self.view(id, &ReadOptions { user: Some(&user), ..ReadOptions::default() }).await
    }
}

/// Two nodes in front of one store.
pub(crate) struct World {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) behind: Arc<Behind>,
    pub(crate) a: Node,
    pub(crate) b: Node,
}

impl World {
    /// In front of the shared servers.
    pub(crate) async fn start(options: CacheOptions) -> Self {
        let urls = [url(Use::Cache).await, url(Use::State).await];
        Self::with(&urls, options).await
    }

    /// In front of the cache and the state at these URLs.
    pub(crate) async fn with(urls: &[String; 2], options: CacheOptions) -> Self {
        let clock = Arc::new(ManualClock::new(NOW));
        let behind = Behind::new(&clock);
        let a = Node::start(urls, &behind, &clock, options).await;
        let b = Node::start(urls, &behind, &clock, options).await;
        Self { clock, behind, a, b }
    }
}

/// Positions are forgotten soon, so that a test need not wait half a minute.
pub(crate) fn short() -> CacheOptions {
    CacheOptions { positions_for: Duration::from_secs(2), ..CacheOptions::default() }
}

pub(crate) fn token_of(content: &ContentKey, answer: &WriteAnswer) -> ConsistencyToken {
    let mut token = ConsistencyToken::default();
    token.see(ContentHash::of(content), answer.version, answer.receipt.position);
    token
}
