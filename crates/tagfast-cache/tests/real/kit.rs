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

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
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

pub(crate) async fn try_command<T: redis::FromRedisValue>(used_as: Use, command: &redis::Cmd) -> Result<T, String> {
    let client = redis::Client::open(url(used_as).await).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.map_err(|e| e.to_string())?;
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

/// An API node with links of its own to both servers.
pub(crate) struct Node {
    pub(crate) store: Arc<CachedStore>,
    links: [String; 2],
    control: ProxyControl,
}

/// One proxy for the links of all nodes.
fn proxy() -> ProxyControl {
    static PROXY: OnceLock<Proxy> = OnceLock::new();
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    ProxyControl(PROXY.get_or_init(|| Proxy::start(any, Vec::new()).expect("a proxy")).control())
}

fn free_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

async fn link(name: &str, used_as: Use) -> (String, String) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = format!("{name}-{}", NUMBER.fetch_add(1, Ordering::SeqCst));
    let to = url(used_as).await.strip_prefix("redis://").expect("an address").trim_end_matches('/').to_owned();
    let link = Link { name: name.clone(), listen: free_port(), to: to.parse().expect("an address") };
    let listen = link.listen;
    blocking(move || proxy().add(link).expect("a link")).await;
    (name, format!("redis://{listen}"))
}

impl Node {
    pub(crate) async fn start(behind: &Arc<Behind>, clock: &Arc<ManualClock>, options: CacheOptions) -> Self {
        let (views_link, views_url) = link("views", Use::Cache).await;
        let (positions_link, positions_url) = link("positions", Use::State).await;
        let views = connect(&views_url, Use::Cache).await;
        let positions = connect(&positions_url, Use::State).await;
        let store = node(behind, clock, Some(views), Some(positions), options);
        let this = Self { store, links: [views_link, positions_link], control: proxy() };
        if options.l1_bytes > 0 {
            this.hears().await;
        }
        this
    }

    /// Waits until L1 answers.
    pub(crate) async fn hears(&self) {
        let hears = || async { if self.store.status().l1_answers { Ok(()) } else { Err("L1 does not hear") } };
        wait_for_condition_async("L1 hears", PATIENCE, hears).await;
    }

    /// What its link to a server does.
    pub(crate) async fn link(&self, used_as: Use, mode: Mode) {
        let (control, name) = (self.control, self.links[usize::from(used_as == Use::State)].clone());
        blocking(move || control.set(&name, mode).expect("a mode")).await;
    }

    pub(crate) async fn write(&self, id: &str, tag: &str, by: &str) -> WriteAnswer {
        self.store.write(add(&key(id), tag, by)).await.expect("a write")
    }

    pub(crate) async fn view(&self, id: &str, options: &ReadOptions<'_>) -> View {
        self.store.view(&key(id), options).await.expect("a view")
    }

    /// As somebody who wrote nothing.
    pub(crate) async fn eventual(&self, id: &str) -> View {
        let options = ReadOptions { consistency: tagfast_store::Consistency::Eventual, ..ReadOptions::default() };
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
    pub(crate) async fn start(options: CacheOptions) -> Self {
        let clock = Arc::new(ManualClock::new(NOW));
        let behind = Behind::new(&clock);
        let a = Node::start(&behind, &clock, options).await;
        let b = Node::start(&behind, &clock, options).await;
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
