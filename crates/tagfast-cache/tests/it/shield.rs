//! What reaches the store, and what is answered when it does not answer.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tagfast_cache::{CacheOptions, CachedStore};
use tagfast_resilience::ManualClock;
use tagfast_sharding::ContentHash;
use tagfast_store::{
    CacheUse, Consistency, ConsistencyToken, ReadOptions, Source, StoreError, TagReader, TagWriter,
    View,
};

use crate::support::{Behind, Mood, NOW, add, key, node};

struct World {
    clock: Arc<ManualClock>,
    behind: Arc<Behind>,
    node: Arc<CachedStore>,
}

impl World {
    fn new() -> Self {
        Self::with(CacheOptions::default())
    }

    fn with(options: CacheOptions) -> Self {
        let clock = Arc::new(ManualClock::new(NOW));
        let behind = Behind::new(&clock);
        let node = node(&behind, &clock, None, None, options);
        Self { clock, behind, node }
    }

    async fn view(&self, id: &str, options: &ReadOptions<'_>) -> Result<View, StoreError> {
        self.node.view(&key(id), options).await
    }

    async fn plain(&self, id: &str) -> View {
        self.view(id, &ReadOptions::default()).await.expect("a view")
    }

    /// Lets L1 go old, which no store reads by.
    async fn age(&self, seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        self.clock.advance(seconds as i64 * 1000);
    }
}

fn token_of(id: &str, view: &View) -> ConsistencyToken {
    let mut token = ConsistencyToken::default();
    token.see(ContentHash::of(&key(id)), view.version, view.position);
    token
}

#[tokio::test(start_paused = true)]
async fn vc8_a_stampede_is_one_read_of_the_store() {
    let world = World::new();
    world.behind.mood(Mood::Hangs);
    let readers: Vec<_> = (0..10_000)
        .map(|_| {
            let node = Arc::clone(&world.node);
            tokio::spawn(async move { node.view(&key("hot"), &ReadOptions::default()).await })
        })
        .collect();
    // All of them wait when nobody can go on.
    tokio::time::sleep(Duration::from_millis(1)).await;
    world.behind.mood(Mood::Well);
    let views: Vec<View> = join_all(readers)
        .await
        .into_iter()
        .map(|view| view.expect("no panic").expect("a view"))
        .collect();
    assert_eq!(world.behind.reads(), 1);
    let collapsed =
        views.iter().filter(|view| view.cache == CacheUse::Miss { collapsed: true }).count();
    assert_eq!(collapsed, 9_999);
    assert_eq!(world.plain("hot").await.cache, CacheUse::Hit("l1"));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_goes_away_takes_nobody_along() {
    let world = World::new();
    world.behind.mood(Mood::Hangs);
    let first = {
        let node = Arc::clone(&world.node);
        tokio::spawn(async move { node.view(&key("hot"), &ReadOptions::default()).await.map(drop) })
    };
    tokio::time::sleep(Duration::from_millis(1)).await;
    let second = {
        let node = Arc::clone(&world.node);
        tokio::spawn(async move { node.view(&key("hot"), &ReadOptions::default()).await })
    };
    tokio::time::sleep(Duration::from_millis(1)).await;
    first.abort();
    world.behind.mood(Mood::Well);
    assert!(second.await.expect("no panic").is_ok());
    assert_eq!(world.behind.reads(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_began_before_a_write_does_not_answer_its_writer() {
    let world = World::new();
    world.behind.mood(Mood::Hangs);
    let before = {
        let node = Arc::clone(&world.node);
        tokio::spawn(async move { node.view(&key("a"), &ReadOptions::default()).await })
    };
    tokio::time::sleep(Duration::from_millis(1)).await;
    // Through another node: this one hears nothing of it.
    let answer = world.behind.write(add(&key("a"), "new", "ana")).await.expect("a write");
    let mut token = ConsistencyToken::default();
    token.see(ContentHash::of(&key("a")), answer.version, answer.receipt.position);
    let writer = {
        let node = Arc::clone(&world.node);
        tokio::spawn(async move {
            node.view(&key("a"), &ReadOptions { token: Some(&token), ..ReadOptions::default() })
                .await
        })
    };
    tokio::time::sleep(Duration::from_millis(1)).await;
    world.behind.mood(Mood::Well);
    assert!(
        before.await.expect("no panic").expect("a view").tags.is_empty(),
        "it was read before the write"
    );
    assert_eq!(writer.await.expect("no panic").expect("a view").version, answer.version);
}

#[tokio::test(start_paused = true)]
async fn an_old_entry_answers_marked_when_the_store_does_not() {
    let world = World::new();
    world.node.write(add(&key("a"), "ui", "ana")).await.expect("a write");
    world.age(10).await;
    for mood in [Mood::Overloaded, Mood::Hangs] {
        world.behind.mood(mood);
        let began = tokio::time::Instant::now();
        let view = world.plain("a").await;
        assert!(
            view.stale && view.cache == CacheUse::Stale("l1") && view.source == Source::Cache,
            "{view:?}"
        );
        assert_eq!((view.as_of, view.tags.len()), (NOW, 1));
        assert!(began.elapsed() <= Duration::from_millis(400), "{:?}", began.elapsed());
    }
    world.behind.mood(Mood::Well);
    assert!(!world.plain("a").await.stale);
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_is_refused_to_who_must_see_more() {
    let world = World::new();
    world.node.write(add(&key("a"), "ui", "ana")).await.expect("a write");
    let seen = world.plain("a").await;
    // Through another node.
    let newer = world.behind.write(add(&key("a"), "api", "ana")).await.expect("a write");
    world.age(10).await;
    world.behind.mood(Mood::Overloaded);
    let asked =
        async |options: ReadOptions<'_>| world.view("a", &options).await.map(|view| view.stale);
    let (old, new) = (token_of("a", &seen), {
        let mut token = ConsistencyToken::default();
        token.see(ContentHash::of(&key("a")), newer.version, newer.receipt.position);
        token
    });
    let of = |token| ReadOptions { token: Some(token), ..ReadOptions::default() };
    assert!(matches!(asked(of(&old)).await, Ok(true)), "the token is covered");
    assert!(asked(of(&new)).await.is_err(), "a newer token");
    assert!(
        asked(ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() })
            .await
            .is_err()
    );
    let within = |seconds| ReadOptions {
        max_stale: Some(Duration::from_secs(seconds)),
        ..ReadOptions::default()
    };
    assert!(asked(within(0)).await.is_err(), "the client refuses");
    assert!(asked(within(9)).await.is_err(), "it is older than that");
    assert!(matches!(asked(within(10)).await, Ok(true)));
    world.age(3600).await;
    assert!(asked(ReadOptions::default()).await.is_err(), "older than the service allows");
}

#[tokio::test(start_paused = true)]
async fn a_slow_read_goes_on_after_its_caller_was_answered_and_fills() {
    let world = World::new();
    world.node.write(add(&key("a"), "ui", "ana")).await.expect("a write");
    world.age(10).await;
    world.behind.mood(Mood::Hangs);
    assert!(world.plain("a").await.stale);
    let reads = world.behind.reads();
    world.behind.mood(Mood::Well);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(world.plain("a").await.cache, CacheUse::Hit("l1"));
    assert_eq!(world.behind.reads(), reads);
}

#[tokio::test(start_paused = true)]
async fn what_a_failover_lost_is_shown_to_nobody() {
    let world = World::new();
    world.node.write(add(&key("kept"), "ui", "ana")).await.expect("a write");
    let fence = world.behind.lsn();
    world.node.write(add(&key("lost"), "ui", "ana")).await.expect("a write");
    assert_eq!(world.plain("lost").await.cache, CacheUse::Hit("l1"));
    world.behind.fail_over(fence, &key("lost"));
    let reads = world.behind.reads();
    assert_eq!(world.plain("kept").await.cache, CacheUse::Hit("l1"), "it is part of the history");
    assert_eq!(world.behind.reads(), reads);
    world.behind.mood(Mood::Overloaded);
    assert!(world.view("lost", &ReadOptions::default()).await.is_err(), "not even as stale");
    world.behind.mood(Mood::Well);
    assert!(world.plain("lost").await.tags.is_empty());
}

#[tokio::test(start_paused = true)]
async fn after_a_lost_answer_caches_do_not_answer_for_a_while() {
    let world = World::new();
    world.node.write(add(&key("a"), "ui", "ana")).await.expect("a write");
    assert_eq!(world.plain("a").await.cache, CacheUse::Hit("l1"));
    world.behind.lose_an_answer();
    assert!(world.node.write(add(&key("a"), "api", "ana")).await.is_err());
    let view = world.plain("a").await;
    assert_eq!((view.tags.len(), view.cache), (2, CacheUse::Miss { collapsed: false }));
    assert_eq!(
        world.plain("a").await.cache,
        CacheUse::Miss { collapsed: false },
        "nobody knows what is enough"
    );
    world.age(76).await;
    world.plain("a").await;
    assert_eq!(world.plain("a").await.cache, CacheUse::Hit("l1"));
}

#[tokio::test(start_paused = true)]
async fn soft_times_are_spread_and_nothing_answers_past_them() {
    let options = CacheOptions { soft_ttl: Duration::from_secs(2), ..CacheOptions::default() };
    let world = World::with(options);
    for n in 0..200 {
        world.node.write(add(&key(&n.to_string()), "ui", "ana")).await.expect("a write");
    }
    world.age(2).await;
    let reads = world.behind.reads();
    for n in 0..200 {
        world.plain(&n.to_string()).await;
    }
    let expired = world.behind.reads() - reads;
    assert!((1..=200).contains(&expired), "{expired}");
}

/// While only something older is to be had, it is given to who takes it, marked, and never for a
/// token that says more.
#[tokio::test(start_paused = true)]
async fn a_token_is_refused_rather_than_answered_with_less() {
    let world = World::with(CacheOptions { l1_bytes: 0, ..CacheOptions::default() });
    let written = world.node.write(add(&key("a"), "ui", "ana")).await.expect("a write");
    world.behind.mood(Mood::Lags);
    let view = world.plain("a").await;
    assert_eq!((view.version < written.version, view.degraded.len()), (true, 1), "{view:?}");
    let mut token = ConsistencyToken::default();
    token.see(ContentHash::of(&key("a")), written.version, written.receipt.position);
    let with_token = ReadOptions { token: Some(&token), ..ReadOptions::default() };
    let refused = world.view("a", &with_token).await;
    assert!(matches!(refused, Err(StoreError::Overloaded { .. })), "{refused:?}");
    world.behind.mood(Mood::Well);
    assert_eq!(world.view("a", &with_token).await.expect("a view").version, written.version);
}
