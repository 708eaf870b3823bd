//! The leaderboards of several processes in a real Redis that dies, comes back empty or with an old
//! copy, while partitions move.

#[path = "../it/model.rs"]
mod model;
#[path = "../it/support.rs"]
#[expect(dead_code, reason = "the parts for counts of a single process")]
mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fastrand::Rng;
use redis::AsyncCommands as _;
use tagfast_domain::{TaggingsEvent, TenantId};
use tagfast_events::{
    BusPosition, Partition, Positions, PublisherEpochs, RebuildRequest, Sink, Start, VisibleThrough,
};
use tagfast_popular::{PopularTags, Window};
use tagfast_popular_counts::{LeaderboardPublisher, PopularCounts, RedisLeaderboards};
use tagfast_redis::{Redis, RedisRole, keys};
use tagfast_resilience::{Breakers, Clock, ManualClock, SystemClock};
use tagfast_store::ShardScanner;
use tagfast_store::testing::MemoryStore;
use tagfast_testkit::stack::{Fault, SharedStack, StackOptions};
use tagfast_testkit::wait_for_condition_async;
use tokio::sync::{Mutex, MutexGuard};

use support::{EPOCH, PARTITIONS, START, event, records};

const TEST_TIMEOUT: Duration = Duration::from_secs(20);
static STACK: SharedStack = SharedStack::new();

fn url() -> String {
    static URL: OnceLock<String> = OnceLock::new();
    let start = || {
        let stack = STACK.get(|base| StackOptions { redis: true, ..base });
        stack.info().state_redis.as_ref().expect("Redis").url.clone()
    };
    URL.get_or_init(start).clone()
}

fn redis() -> Arc<Redis> {
    Redis::start(&url(), RedisRole::State, &Breakers::new(Arc::new(SystemClock))).expect("a URL")
}

async fn fault(fault: Fault) {
    let make = move || STACK.get(|base| base).fault(fault, "state-redis").expect("a fault");
    tokio::task::spawn_blocking(make).await.expect("no panic");
}

async fn command(command: &redis::Cmd) {
    let client = redis::Client::open(url()).expect("a URL");
    // A server that was just started may not answer at once.
    wait_for_condition_async("Redis does it", TEST_TIMEOUT, || async {
        let mut connection =
            client.get_multiplexed_async_connection().await.map_err(|e| e.to_string())?;
        command.exec_async(&mut connection).await.map_err(|e| e.to_string())
    })
    .await;
}

/// Waits until no other test uses Redis, and empties it.
async fn alone() -> MutexGuard<'static, ()> {
    static REDIS: Mutex<()> = Mutex::const_new(());
    let guard = REDIS.lock().await;
    tokio::task::spawn_blocking(url).await.expect("no panic");
    command(&redis::cmd("FLUSHALL")).await;
    guard
}

/// A process that counts the partitions assigned to it.
struct Owner {
    counts: Arc<PopularCounts>,
    publisher: LeaderboardPublisher,
    clock: Arc<ManualClock>,
    _dir: tempfile::TempDir,
}

impl Owner {
    fn start(shards: &Arc<MemoryStore>, clock: &Arc<ManualClock>) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let scanner: Arc<dyn ShardScanner> = Arc::<MemoryStore>::clone(shards);
        let counts = PopularCounts::open_shared(
            dir.path().to_owned(),
            PARTITIONS,
            scanner,
            Arc::<ManualClock>::clone(clock),
        )
        .expect("it opens");
        let redis = redis();
        let publisher = LeaderboardPublisher::spawn(Arc::clone(&counts), redis, PARTITIONS);
        Self { counts, publisher, clock: Arc::clone(clock), _dir: dir }
    }

    /// Assigns partitions, as the consumer runtime does.
    async fn assign(&self, partitions: &[u16]) {
        let partitions: Vec<Partition> = partitions.iter().map(|p| Partition(*p)).collect();
        let Ok(Start::From(known)) = self.counts.start(EPOCH, &partitions).await else {
            panic!("the counts keep their own positions")
        };
        let missing: Positions = partitions
            .iter()
            .filter(|p| !known.contains_key(p))
            .map(|p| {
                (
                    *p,
                    BusPosition {
                        next: 1,
                        publisher_epochs: PublisherEpochs::embedded(1),
                        anchor: None,
                    },
                )
            })
            .collect();
        if !missing.is_empty() {
            self.counts.rebuild(RebuildRequest::new(&missing, EPOCH)).await.expect("it is counted");
        }
        self.observe(&partitions);
    }

    fn observe(&self, partitions: &[Partition]) {
        let partitions: BTreeMap<_, _> =
            partitions.iter().map(|p| (*p, self.clock.now_ms())).collect();
        self.counts.visible(&VisibleThrough { partitions, complete: true });
    }

    async fn deliver(&self, events: &[TaggingsEvent]) {
        for event in events {
            self.counts.apply(&records(std::slice::from_ref(event))).await.expect("it is applied");
        }
    }
}

struct Fixture {
    shards: Arc<MemoryStore>,
    clock: Arc<ManualClock>,
    leaderboards: Arc<RedisLeaderboards>,
}

impl Fixture {
    fn new() -> Self {
        let redis = redis();
        let leaderboards = RedisLeaderboards::new(redis, PARTITIONS);
        let clock = Arc::new(ManualClock::new(START));
        let shards = MemoryStore::new(Arc::<ManualClock>::clone(&clock));
        Self { shards, clock, leaderboards }
    }

    fn write(&self, events: &[TaggingsEvent]) {
        events.iter().for_each(|event| self.shards.store_event(event));
    }

    async fn leaderboard(
        &self,
        tenant: &TenantId,
        window: Window,
    ) -> Result<(Vec<(String, String, u64)>, bool), String> {
        let leaderboard =
            self.leaderboards.popular(tenant, window, 1000).await.map_err(|e| e.to_string())?;
        let row = |t: &tagfast_popular::TagCount| {
            (t.tag.as_str().to_owned(), t.display.to_string(), t.count)
        };
        Ok((leaderboard.tags.iter().map(row).collect(), leaderboard.stale))
    }

    /// Whether the pages of all tags equal the model.
    async fn lists_all_tags(&self, tenant: &TenantId) -> Result<(), String> {
        let now = self.clock.now_ms();
        let mut expected = model::leaderboard(&self.shards, tenant, Window::All, now);
        expected.sort();
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = self.leaderboards.list(tenant, after.as_ref(), 5).await;
            let page = page.map_err(|e| e.to_string())?;
            let row = |t: &tagfast_popular::TagCount| {
                (t.tag.as_str().to_owned(), t.display.to_string(), t.count)
            };
            found.extend(page.tags.iter().map(row));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        if found == expected { Ok(()) } else { Err(format!("{found:?}, not {expected:?}")) }
    }

    /// Waits until the leaderboards and the list of all tags equal the model and are fresh.
    async fn agrees(&self, tenant: &str) {
        let tenant: TenantId = tenant.parse().expect("a tenant");
        for window in Window::ALL {
            wait_for_condition_async(
                &format!("{} of {tenant}", window.as_str()),
                TEST_TIMEOUT,
                || async {
                    let now = self.clock.now_ms();
                    let expected = model::leaderboard(&self.shards, &tenant, window, now);
                    let (found, stale) = self.leaderboard(&tenant, window).await?;
                    if found != expected || stale {
                        return Err(format!("{found:?}, not {expected:?}"));
                    }
                    self.lists_all_tags(&tenant).await
                },
            )
            .await;
        }
    }
}

fn partition_of(event: &TaggingsEvent) -> u16 {
    records(std::slice::from_ref(event))[0].partition.0
}

/// Events of two tenants: rising versions of few contents, with duplicates, in any order.
fn stream(seed: u64, count: u64) -> Vec<TaggingsEvent> {
    let mut rng = Rng::with_seed(seed);
    let mut events: Vec<TaggingsEvent> = (0..count)
        .map(|n| {
            let tenant = if rng.u64(..4) == 0 { "other" } else { "acme" };
            let at = START - i64::try_from(rng.u64(..9 * 86_400_000)).expect("small");
            let tags: Vec<String> =
                (0..rng.u64(..4)).map(|_| spelling(rng.u64(..12), rng.u64(..3))).collect();
            let tags: Vec<(&str, i64)> = tags.iter().map(|tag| (tag.as_str(), at)).collect();
            event(tenant, &format!("c{}", rng.u64(..60)), n + 1, START, &tags)
        })
        .collect();
    for _ in 0..count / 3 {
        let again = events[rng.u64(..count) as usize].clone();
        events.push(again);
    }
    for n in (1..events.len()).rev() {
        events.swap(n, rng.u64(..n as u64 + 1) as usize);
    }
    events
}

fn spelling(tag: u64, form: u64) -> String {
    match form {
        0 => format!("Tag {tag}"),
        1 => format!("tag {tag}"),
        _ => format!("TAG-{tag}"),
    }
}

/// Two processes, duplicates and reordering; then every content loses its tags.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaderboards_of_two_processes_equal_the_model() {
    let _alone = alone().await;
    let fixture = Fixture::new();
    let (one, other) = (
        Owner::start(&fixture.shards, &fixture.clock),
        Owner::start(&fixture.shards, &fixture.clock),
    );
    one.assign(&[0, 1, 2]).await;
    other.assign(&[3, 4, 5, 6, 7]).await;
    let events = stream(1, 400);
    fixture.write(&events);
    for event in &events {
        let owner = if partition_of(event) < 3 { &one } else { &other };
        owner.deliver(std::slice::from_ref(event)).await;
    }
    fixture.agrees("acme").await;
    fixture.agrees("other").await;
    let suggested = fixture
        .leaderboards
        .suggest(&"acme".parse().expect("a tenant"), "tag 1", 5)
        .await
        .expect("an answer");
    assert!(!suggested.tags.is_empty() && suggested.as_of > 0, "{suggested:?}");

    let gone: Vec<TaggingsEvent> = (0..60)
        .flat_map(|n| {
            ["acme", "other"].map(|tenant| event(tenant, &format!("c{n}"), 1000, START, &[]))
        })
        .collect();
    fixture.write(&gone);
    for event in &gone {
        let owner = if partition_of(event) < 3 { &one } else { &other };
        owner.deliver(std::slice::from_ref(event)).await;
    }
    fixture.agrees("acme").await;
    assert_eq!(
        fixture
            .leaderboard(&"acme".parse().expect("a tenant"), Window::All)
            .await
            .expect("a leaderboard")
            .0,
        []
    );
    one.publisher.stop().await;
    other.publisher.stop().await;
}

/// A partition moves to another process; the previous owner does not know yet and pushes its older
/// counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_previous_owner_of_a_partition_is_fenced() {
    let _alone = alone().await;
    let fixture = Fixture::new();
    let (old, new) = (
        Owner::start(&fixture.shards, &fixture.clock),
        Owner::start(&fixture.shards, &fixture.clock),
    );
    let all: Vec<u16> = (0..PARTITIONS).collect();
    old.assign(&all).await;
    let before = stream(2, 200);
    fixture.write(&before);
    old.deliver(&before).await;
    fixture.agrees("acme").await;

    // The new owner rebuilds its partitions from the shards and receives later events.
    let after: Vec<TaggingsEvent> = (0..60)
        .map(|n| event("acme", &format!("c{n}"), 2000, START, &[("Moved", START)]))
        .collect();
    fixture.write(&after);
    new.assign(&all).await;
    fixture.agrees("acme").await;
    // The previous owner goes on: it applies a stale state of every content and pushes it every
    // round.
    let stale: Vec<TaggingsEvent> = (0..60)
        .map(|n| event("acme", &format!("c{n}"), 1500, START, &[("Stale", START)]))
        .collect();
    old.deliver(&stale).await;
    old.counts.end(&all.iter().map(|p| Partition(*p)).collect::<Vec<_>>());
    new.deliver(&[event("acme", "c1", 2001, START, &[("Moved", START), ("Last", START)])]).await;
    fixture.write(&[event("acme", "c1", 2001, START, &[("Moved", START), ("Last", START)])]);
    fixture.agrees("acme").await;
    old.publisher.stop().await;
    new.publisher.stop().await;
}

/// A merge was interrupted: its tags are taken again. The time that the leaderboards then claim
/// must hold for the tags that were pushed since, too, and so must the consumer's lag.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_merge_after_an_interrupted_one_leaves_nothing_out() {
    let _alone = alone().await;
    let fixture = Fixture::new();
    let owner = Owner::start(&fixture.shards, &fixture.clock);
    let all: Vec<Partition> = (0..PARTITIONS).map(Partition).collect();
    let counted = |at| all.iter().map(|p| (*p, at)).collect::<BTreeMap<_, _>>();
    owner.assign(&(0..PARTITIONS).collect::<Vec<_>>()).await;
    let client = redis::Client::open(url()).expect("a URL");
    let mut redis = client.get_multiplexed_async_connection().await.expect("a connection");
    for n in 1..=3u64 {
        let tag = format!("tag-{n}");
        // As a process leaves it that dies in the middle of a merge.
        command(redis::cmd("SADD").arg(keys::merging_tags("acme")).arg("interrupted")).await;
        owner.clock.advance(1000);
        let now = owner.clock.now_ms();
        let event = event("acme", "c", n, now, &[(tag.as_str(), now)]);
        fixture.write(std::slice::from_ref(&event));
        owner.deliver(&[event]).await;
        owner.observe(&all);
        wait_for_condition_async("the leaderboards claim to have it", TEST_TIMEOUT, || {
            let mut redis = redis.clone();
            async move {
                let merged: Vec<i64> =
                    redis.hvals(keys::MERGED_THROUGH).await.map_err(|e| e.to_string())?;
                // Partitions are merged one after the other.
                let complete = merged.len() == usize::from(PARTITIONS);
                let claimed = merged.iter().min().copied().filter(|_| complete).unwrap_or(0);
                if claimed >= now { Ok(()) } else { Err(format!("{claimed}, not {now}")) }
            }
        })
        .await;
        let key = keys::leaderboard("acme", Window::All.as_str());
        let count: Option<u64> = redis.zscore(key, &tag).await.expect("an answer");
        assert_eq!(count, Some(1), "{tag} is missing");
        // What is counted later is not shown before the next round.
        wait_for_condition_async("the lag follows", TEST_TIMEOUT, || async {
            let shown = owner.counts.shown(&counted(now + 500));
            if shown == counted(now) { Ok(()) } else { Err(format!("{shown:?}")) }
        })
        .await;
    }
    fixture.agrees("acme").await;
    owner.publisher.stop().await;
}

/// Redis is killed and comes back empty; it is frozen and comes back with its data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaderboards_come_back_after_redis_does() {
    let _alone = alone().await;
    let fixture = Fixture::new();
    let owner = Owner::start(&fixture.shards, &fixture.clock);
    owner.assign(&(0..PARTITIONS).collect::<Vec<_>>()).await;
    let events = stream(3, 200);
    fixture.write(&events);
    owner.deliver(&events).await;
    fixture.agrees("acme").await;
    let tenant: TenantId = "acme".parse().expect("a tenant");
    let known = fixture.leaderboard(&tenant, Window::All).await.expect("a leaderboard").0;

    for (breaks, mends) in [(Fault::Freeze, Fault::Thaw), (Fault::Kill, Fault::Restart)] {
        fault(breaks).await;
        wait_for_condition_async("the leaderboards are stale", TEST_TIMEOUT, || async {
            let (leaderboard, stale) = fixture.leaderboard(&tenant, Window::All).await?;
            assert_eq!(leaderboard, known, "the last good leaderboard answers");
            if stale { Ok(()) } else { Err("fresh".to_owned()) }
        })
        .await;
        // Only one request per second waits for a Redis that does not answer.
        let started = std::time::Instant::now();
        for _ in 0..200 {
            assert!(
                fixture.leaderboard(&tenant, Window::Day).await.expect("an answer").1,
                "and is marked stale"
            );
        }
        assert!(
            started.elapsed() < Duration::from_secs(4),
            "200 answers took {:?}",
            started.elapsed()
        );
        let unknown = fixture
            .leaderboards
            .popular(&"never-requested".parse().expect("a tenant"), Window::All, 10)
            .await;
        assert!(unknown.is_err(), "there is nothing to answer from: {unknown:?}");
        fault(mends).await;
        fixture.agrees("acme").await;
        fixture.agrees("other").await;
    }
    // Emptied while it runs: claims and leaderboards are gone.
    command(&redis::cmd("FLUSHALL")).await;
    owner.deliver(&[event("acme", "c1", 5000, START, &[("After", START)])]).await;
    fixture.write(&[event("acme", "c1", 5000, START, &[("After", START)])]);
    fixture.agrees("acme").await;
    owner.publisher.stop().await;
}

/// Redis comes back with an old copy from another process: the owners overwrite its leaderboards,
/// counts and claims.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_copy_is_overwritten() {
    let _alone = alone().await;
    let fixture = Fixture::new();
    let owner = Owner::start(&fixture.shards, &fixture.clock);
    owner.assign(&(0..PARTITIONS).collect::<Vec<_>>()).await;
    fixture.write(&[event("acme", "c1", 1, START, &[("True", START)])]);
    owner.deliver(&[event("acme", "c1", 1, START, &[("True", START)])]).await;
    fixture.agrees("acme").await;
    fault(Fault::Kill).await;
    fault(Fault::Restart).await;
    for old in [
        redis::cmd("SET").arg("tf:gen").arg("copy of-another-process 1"),
        redis::cmd("SADD").arg("tf:pp:0").arg("acme"),
        redis::cmd("HSET").arg("tf:pc:0:acme:all").arg("false").arg("7 1 False"),
        redis::cmd("ZADD").arg("tf:pl:acme:all").arg(7).arg("false"),
    ] {
        command(old).await;
    }
    fixture.agrees("acme").await;
    owner.publisher.stop().await;
}
