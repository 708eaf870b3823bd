//! The boards of several processes in a real Redis, while it dies, comes back empty or with an old
//! copy, and while partitions move.

#[path = "../it/model.rs"]
mod model;
#[path = "../it/support.rs"]
#[expect(dead_code, reason = "what drives counts that are one process's own")]
mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tagfast_domain::{TaggingsEvent, TenantId};
use tagfast_events::{BusPosition, Emits, Partition, Positions, Sink, Start, Visible};
use tagfast_popular::{BoardWriter, PopularCounts, PopularTags, StateBoards, Window};
use tagfast_redis::{Redis, Use};
use tagfast_resilience::{Breakers, Clock, ManualClock, SystemClock};
use tagfast_store::ShardScanner;
use tagfast_testkit::stack::{Fault, SharedStack, StackOptions};
use tagfast_testkit::wait_for_condition_async;
use tokio::sync::{Mutex, MutexGuard};

use support::{EPOCH, Numbers, PARTITIONS, START, Shards, event, records};

const PATIENCE: Duration = Duration::from_secs(20);
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
    Redis::start(&url(), Use::State, &Breakers::new(Arc::new(SystemClock))).expect("a URL")
}

async fn fault(fault: Fault) {
    let make = move || STACK.get(|base| base).fault(fault, "state-redis").expect("a fault");
    tokio::task::spawn_blocking(make).await.expect("no panic");
}

async fn command(command: &redis::Cmd) {
    let client = redis::Client::open(url()).expect("a URL");
    // A server that was just started may not answer at once.
    wait_for_condition_async("Redis does it", PATIENCE, || async {
        let mut connection =
            client.get_multiplexed_async_connection().await.map_err(|e| e.to_string())?;
        command.exec_async(&mut connection).await.map_err(|e| e.to_string())
    })
    .await;
}

/// Redis for one test alone, empty.
async fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    tokio::task::spawn_blocking(url).await.expect("no panic");
    command(&redis::cmd("FLUSHALL")).await;
    turn
}

/// A process that counts the partitions it has.
struct Owner {
    counts: Arc<PopularCounts>,
    writer: BoardWriter,
    clock: Arc<ManualClock>,
    _dir: tempfile::TempDir,
}

impl Owner {
    fn start(shards: &Arc<Shards>, clock: &Arc<ManualClock>) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let scanner: Arc<dyn ShardScanner> = Arc::<Shards>::clone(shards);
        let counts = PopularCounts::open_shared(
            dir.path().to_owned(),
            PARTITIONS,
            scanner,
            Arc::<ManualClock>::clone(clock),
        )
        .expect("it opens");
        let redis = redis();
        let writer = BoardWriter::spawn(Arc::clone(&counts), redis, PARTITIONS);
        Self { counts, writer, clock: Arc::clone(clock), _dir: dir }
    }

    /// Gets partitions, as the consumer runtime gives them.
    async fn assign(&self, partitions: &[u16]) {
        let partitions: Vec<Partition> = partitions.iter().map(|p| Partition(*p)).collect();
        let Ok(Start::From(known)) = self.counts.start(EPOCH, &partitions).await else {
            panic!("positions are its own")
        };
        let missing: Positions = partitions
            .iter()
            .filter(|p| !known.contains_key(p))
            .map(|p| (*p, BusPosition { next: 1, emits: Emits::embedded(1) }))
            .collect();
        if !missing.is_empty() {
            self.counts.rebuild(&missing, EPOCH, &|_| {}).await.expect("it is counted");
        }
        self.see(&partitions);
    }

    fn see(&self, partitions: &[Partition]) {
        let partitions: BTreeMap<_, _> =
            partitions.iter().map(|p| (*p, self.clock.now_ms())).collect();
        self.counts.visible(&Visible { partitions, complete: true });
    }

    async fn deliver(&self, events: &[TaggingsEvent]) {
        for event in events {
            self.counts.apply(&records(std::slice::from_ref(event))).await.expect("it is applied");
        }
    }
}

struct World {
    shards: Arc<Shards>,
    clock: Arc<ManualClock>,
    boards: Arc<StateBoards>,
}

impl World {
    fn new() -> Self {
        let redis = redis();
        let boards = StateBoards::new(redis, PARTITIONS);
        Self { shards: Arc::default(), clock: Arc::new(ManualClock::new(START)), boards }
    }

    fn write(&self, events: &[TaggingsEvent]) {
        let mut model = self.shards.0.lock().expect("not poisoned");
        events.iter().for_each(|event| model.see(event));
    }

    async fn board(
        &self,
        tenant: &TenantId,
        window: Window,
    ) -> Result<(Vec<(String, String, u64)>, bool), String> {
        let board = self.boards.popular(tenant, window, 1000).await.map_err(|e| e.to_string())?;
        let row = |t: &tagfast_popular::TagCount| {
            (t.tag.as_str().to_owned(), t.display.to_string(), t.count)
        };
        Ok((board.tags.iter().map(row).collect(), board.stale))
    }

    /// The boards are what the model says, and fresh.
    async fn agrees(&self, tenant: &str) {
        let tenant: TenantId = tenant.parse().expect("a tenant");
        for window in Window::ALL {
            wait_for_condition_async(
                &format!("{} of {tenant}", window.as_str()),
                PATIENCE,
                || async {
                    let expected = self.shards.0.lock().expect("not poisoned").board(
                        tenant.as_str(),
                        window,
                        self.clock.now_ms(),
                    );
                    let (found, stale) = self.board(&tenant, window).await?;
                    if found == expected && !stale {
                        Ok(())
                    } else {
                        Err(format!("{found:?}, not {expected:?}"))
                    }
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
    let mut numbers = Numbers(seed);
    let mut events: Vec<TaggingsEvent> = (0..count)
        .map(|n| {
            let tenant = if numbers.below(4) == 0 { "other" } else { "acme" };
            let at = START - i64::try_from(numbers.below(9 * 86_400_000)).expect("small");
            let tags: Vec<String> = (0..numbers.below(4))
                .map(|_| spelling(numbers.below(12), numbers.below(3)))
                .collect();
            let tags: Vec<(&str, i64)> = tags.iter().map(|tag| (tag.as_str(), at)).collect();
            event(tenant, &format!("c{}", numbers.below(60)), n + 1, START, &tags)
        })
        .collect();
    for _ in 0..count / 3 {
        let again = events[numbers.below(count) as usize].clone();
        events.push(again);
    }
    for n in (1..events.len()).rev() {
        events.swap(n, numbers.below(n as u64 + 1) as usize);
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

/// PO1 on boards: two processes, duplicates and any order; then every content loses its tags.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn po1_boards_of_two_processes_equal_the_model() {
    let _alone = alone().await;
    let world = World::new();
    let (one, other) =
        (Owner::start(&world.shards, &world.clock), Owner::start(&world.shards, &world.clock));
    one.assign(&[0, 1, 2]).await;
    other.assign(&[3, 4, 5, 6, 7]).await;
    let events = stream(1, 400);
    world.write(&events);
    for event in &events {
        let owner = if partition_of(event) < 3 { &one } else { &other };
        owner.deliver(std::slice::from_ref(event)).await;
    }
    world.agrees("acme").await;
    world.agrees("other").await;
    let suggested = world
        .boards
        .suggest(&"acme".parse().expect("a tenant"), "tag 1", 5)
        .await
        .expect("an answer");
    assert!(!suggested.tags.is_empty() && suggested.as_of > 0, "{suggested:?}");

    let gone: Vec<TaggingsEvent> = (0..60)
        .flat_map(|n| {
            ["acme", "other"].map(|tenant| event(tenant, &format!("c{n}"), 1000, START, &[]))
        })
        .collect();
    world.write(&gone);
    for event in &gone {
        let owner = if partition_of(event) < 3 { &one } else { &other };
        owner.deliver(std::slice::from_ref(event)).await;
    }
    world.agrees("acme").await;
    assert_eq!(
        world.board(&"acme".parse().expect("a tenant"), Window::All).await.expect("a board").0,
        []
    );
    one.writer.stop().await;
    other.writer.stop().await;
}

/// PO2: a partition moves to another process; the one that had it does not know yet and pushes its
/// older counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn po2_who_owned_a_partition_before_changes_nothing() {
    let _alone = alone().await;
    let world = World::new();
    let (old, new) =
        (Owner::start(&world.shards, &world.clock), Owner::start(&world.shards, &world.clock));
    let all: Vec<u16> = (0..PARTITIONS).collect();
    old.assign(&all).await;
    let before = stream(2, 200);
    world.write(&before);
    old.deliver(&before).await;
    world.agrees("acme").await;

    // The new owner counts its partitions anew, from the shards, and sees what comes from now on.
    let after: Vec<TaggingsEvent> = (0..60)
        .map(|n| event("acme", &format!("c{n}"), 2000, START, &[("Moved", START)]))
        .collect();
    world.write(&after);
    new.assign(&all).await;
    world.agrees("acme").await;
    // The old one still believes: it applies something stale of every content and pushes it, round
    // after round.
    let stale: Vec<TaggingsEvent> = (0..60)
        .map(|n| event("acme", &format!("c{n}"), 1500, START, &[("Stale", START)]))
        .collect();
    old.deliver(&stale).await;
    old.counts.end(&all.iter().map(|p| Partition(*p)).collect::<Vec<_>>());
    new.deliver(&[event("acme", "c1", 2001, START, &[("Moved", START), ("Last", START)])]).await;
    world.write(&[event("acme", "c1", 2001, START, &[("Moved", START), ("Last", START)])]);
    world.agrees("acme").await;
    old.writer.stop().await;
    new.writer.stop().await;
}

/// PO6: Redis is killed, and comes back empty; frozen, and comes back with what it had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn po6_boards_come_back_after_redis_does() {
    let _alone = alone().await;
    let world = World::new();
    let owner = Owner::start(&world.shards, &world.clock);
    owner.assign(&(0..PARTITIONS).collect::<Vec<_>>()).await;
    let events = stream(3, 200);
    world.write(&events);
    owner.deliver(&events).await;
    world.agrees("acme").await;
    let tenant: TenantId = "acme".parse().expect("a tenant");
    let known = world.board(&tenant, Window::All).await.expect("a board").0;

    for (breaks, mends) in [(Fault::Freeze, Fault::Thaw), (Fault::Kill, Fault::Restart)] {
        fault(breaks).await;
        wait_for_condition_async("the boards are stale", PATIENCE, || async {
            let (board, stale) = world.board(&tenant, Window::All).await?;
            assert_eq!(board, known, "what was read last answers");
            if stale { Ok(()) } else { Err("fresh".to_owned()) }
        })
        .await;
        // Nobody waits for a Redis that does not answer, but the one who looks once a second.
        let started = std::time::Instant::now();
        for _ in 0..200 {
            assert!(world.board(&tenant, Window::Day).await.expect("an answer").1, "and says so");
        }
        assert!(
            started.elapsed() < Duration::from_secs(4),
            "200 answers took {:?}",
            started.elapsed()
        );
        let unknown =
            world.boards.popular(&"nobody-asked".parse().expect("a tenant"), Window::All, 10).await;
        assert!(unknown.is_err(), "there is nothing to answer from: {unknown:?}");
        fault(mends).await;
        world.agrees("acme").await;
        world.agrees("other").await;
    }
    // Emptied while it runs: the claims are gone, and with them the boards.
    command(&redis::cmd("FLUSHALL")).await;
    owner.deliver(&[event("acme", "c1", 5000, START, &[("After", START)])]).await;
    world.write(&[event("acme", "c1", 5000, START, &[("After", START)])]);
    world.agrees("acme").await;
    owner.writer.stop().await;
}

/// An old copy of everything comes back with another process: its boards, its counts and its claims
/// are not believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_copy_is_written_over() {
    let _alone = alone().await;
    let world = World::new();
    let owner = Owner::start(&world.shards, &world.clock);
    owner.assign(&(0..PARTITIONS).collect::<Vec<_>>()).await;
    world.write(&[event("acme", "c1", 1, START, &[("True", START)])]);
    owner.deliver(&[event("acme", "c1", 1, START, &[("True", START)])]).await;
    world.agrees("acme").await;
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
    world.agrees("acme").await;
    owner.writer.stop().await;
}
