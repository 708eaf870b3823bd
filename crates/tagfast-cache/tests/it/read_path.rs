//! Which reads reach the store, and what answers while it does not.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tagfast_cache::{CacheOptions, CachedStore};
use tagfast_resilience::ManualClock;
use tagfast_sharding::ContentHash;
use tagfast_store::testing::{CallFaults, MemoryStore};
use tagfast_store::{
    CacheUse, Consistency, ConsistencyToken, ReadOptions, Source, StoreError, TagReader, TagWriter,
    View,
};

use crate::support::{NOW, add, key, lag, memory_store, node, overloaded};

pub(crate) struct Fixture {
    clock: Arc<ManualClock>,
    pub(crate) backend: Arc<MemoryStore>,
    pub(crate) node: Arc<CachedStore>,
}

impl Fixture {
    fn new() -> Self {
        Self::with(CacheOptions::default())
    }

    pub(crate) fn with(options: CacheOptions) -> Self {
        let clock = Arc::new(ManualClock::new(NOW));
        let backend = memory_store(&clock);
        let node = node(&backend, &clock, None, None, options);
        Self { clock, backend, node }
    }

    pub(crate) async fn view(
        &self,
        id: &str,
        options: &ReadOptions<'_>,
    ) -> Result<View, StoreError> {
        self.node.view(&key(id), options).await
    }

    pub(crate) async fn plain(&self, id: &str) -> View {
        self.view(id, &ReadOptions::default()).await.expect("a view")
    }

    /// Lets time pass until entries of the local cache have expired.
    pub(crate) async fn age(&self, seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        self.clock.advance(seconds as i64 * 1000);
    }
}

fn token_of(id: &str, view: &View) -> ConsistencyToken {
    let mut token = ConsistencyToken::default();
    token.observe(ContentHash::of(&key(id)), view.version, view.position);
    token
}

#[tokio::test(start_paused = true)]
async fn a_stampede_is_one_read_of_the_store() {
    let fixture = Fixture::new();
    fixture.backend.faults().pause_reads();
    let readers: Vec<_> = (0..10_000)
        .map(|_| {
            let node = Arc::clone(&fixture.node);
            tokio::spawn(async move { node.view(&key("hot"), &ReadOptions::default()).await })
        })
        .collect();
    // With paused time, sleeping means that every reader waits.
    tokio::time::sleep(Duration::from_millis(1)).await;
    fixture.backend.faults().heal();
    let views: Vec<View> = join_all(readers)
        .await
        .into_iter()
        .map(|view| view.expect("no panic").expect("a view"))
        .collect();
    assert_eq!(fixture.backend.faults().reads(), 1);
    let collapsed =
        views.iter().filter(|view| view.cache == CacheUse::Miss { collapsed: true }).count();
    assert_eq!(collapsed, 9_999);
    assert_eq!(fixture.plain("hot").await.cache, CacheUse::Hit("l1"));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_reader_does_not_cancel_the_others() {
    let fixture = Fixture::new();
    fixture.backend.faults().pause_reads();
    let first = {
        let node = Arc::clone(&fixture.node);
        tokio::spawn(async move { node.view(&key("hot"), &ReadOptions::default()).await.map(drop) })
    };
    tokio::time::sleep(Duration::from_millis(1)).await;
    let second = {
        let node = Arc::clone(&fixture.node);
        tokio::spawn(async move { node.view(&key("hot"), &ReadOptions::default()).await })
    };
    tokio::time::sleep(Duration::from_millis(1)).await;
    first.abort();
    fixture.backend.faults().heal();
    assert!(second.await.expect("no panic").is_ok());
    assert_eq!(fixture.backend.faults().reads(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_began_before_a_write_does_not_answer_its_writer() {
    let fixture = Fixture::new();
    fixture.backend.faults().pause_reads();
    let before = {
        let node = Arc::clone(&fixture.node);
        tokio::spawn(async move { node.view(&key("a"), &ReadOptions::default()).await })
    };
    tokio::time::sleep(Duration::from_millis(1)).await;
    // Through another node: this one receives no invalidation.
    let answer = fixture.backend.write(add(&key("a"), "new", "ana")).await.expect("a write");
    let mut token = ConsistencyToken::default();
    token.observe(ContentHash::of(&key("a")), answer.version, answer.receipt.position);
    let writer = {
        let node = Arc::clone(&fixture.node);
        tokio::spawn(async move {
            node.view(&key("a"), &ReadOptions { token: Some(&token), ..ReadOptions::default() })
                .await
        })
    };
    tokio::time::sleep(Duration::from_millis(1)).await;
    fixture.backend.faults().heal();
    assert!(
        before.await.expect("no panic").expect("a view").tags.is_empty(),
        "it was read before the write"
    );
    assert_eq!(writer.await.expect("no panic").expect("a view").version, answer.version);
}

#[tokio::test(start_paused = true)]
async fn an_expired_entry_answers_marked_as_stale_while_the_store_does_not() {
    let fixture = Fixture::new();
    fixture.node.write(add(&key("a"), "ui", "ana")).await.expect("a write");
    fixture.age(10).await;
    let faults: [fn(&CallFaults); 2] =
        [|faults| faults.fail_with(overloaded), |faults| faults.pause_reads()];
    for fault in faults {
        fixture.backend.faults().heal();
        fault(fixture.backend.faults());
        let began = tokio::time::Instant::now();
        let view = fixture.plain("a").await;
        assert!(
            view.stale && view.cache == CacheUse::Stale("l1") && view.source == Source::Cache,
            "{view:?}"
        );
        assert_eq!((view.as_of, view.tags.len()), (NOW, 1));
        assert!(began.elapsed() <= Duration::from_millis(400), "{:?}", began.elapsed());
    }
    fixture.backend.faults().heal();
    assert!(!fixture.plain("a").await.stale);
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_is_refused_to_a_client_that_must_see_more() {
    let fixture = Fixture::new();
    fixture.node.write(add(&key("a"), "ui", "ana")).await.expect("a write");
    let seen = fixture.plain("a").await;
    // Through another node.
    let newer = fixture.backend.write(add(&key("a"), "api", "ana")).await.expect("a write");
    fixture.age(10).await;
    fixture.backend.faults().fail_with(overloaded);
    let stale =
        async |options: ReadOptions<'_>| fixture.view("a", &options).await.map(|view| view.stale);
    let (old, new) = (token_of("a", &seen), {
        let mut token = ConsistencyToken::default();
        token.observe(ContentHash::of(&key("a")), newer.version, newer.receipt.position);
        token
    });
    let of = |token| ReadOptions { token: Some(token), ..ReadOptions::default() };
    assert!(matches!(stale(of(&old)).await, Ok(true)), "the entry covers the token");
    assert!(stale(of(&new)).await.is_err(), "a newer token");
    assert!(
        stale(ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() })
            .await
            .is_err()
    );
    let within = |seconds| ReadOptions {
        max_stale: Some(Duration::from_secs(seconds)),
        ..ReadOptions::default()
    };
    assert!(stale(within(0)).await.is_err(), "the client refuses");
    assert!(stale(within(9)).await.is_err(), "the entry is older");
    assert!(matches!(stale(within(10)).await, Ok(true)));
    fixture.age(3600).await;
    assert!(stale(ReadOptions::default()).await.is_err(), "older than `stale_if_error`");
}

#[tokio::test(start_paused = true)]
async fn a_slow_read_continues_after_its_caller_was_answered_and_fills_the_cache() {
    let fixture = Fixture::new();
    fixture.node.write(add(&key("a"), "ui", "ana")).await.expect("a write");
    fixture.age(10).await;
    fixture.backend.faults().pause_reads();
    assert!(fixture.plain("a").await.stale);
    let reads = fixture.backend.faults().reads();
    fixture.backend.faults().heal();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(fixture.plain("a").await.cache, CacheUse::Hit("l1"));
    assert_eq!(fixture.backend.faults().reads(), reads);
}

#[tokio::test(start_paused = true)]
async fn writes_lost_by_a_failover_are_never_shown() {
    let fixture = Fixture::new();
    fixture.node.write(add(&key("kept"), "ui", "ana")).await.expect("a write");
    let epoch_end = fixture.backend.newest_position();
    fixture.node.write(add(&key("lost"), "ui", "ana")).await.expect("a write");
    assert_eq!(fixture.plain("lost").await.cache, CacheUse::Hit("l1"));
    fixture.backend.fail_over(epoch_end, &key("lost"));
    let reads = fixture.backend.faults().reads();
    assert_eq!(fixture.plain("kept").await.cache, CacheUse::Hit("l1"), "it belongs to the history");
    assert_eq!(fixture.backend.faults().reads(), reads);
    fixture.backend.faults().fail_with(overloaded);
    assert!(fixture.view("lost", &ReadOptions::default()).await.is_err(), "not even as stale");
    fixture.backend.faults().heal();
    assert!(fixture.plain("lost").await.tags.is_empty());
}

#[tokio::test(start_paused = true)]
async fn after_an_unknown_outcome_caches_do_not_answer_for_a_while() {
    let fixture = Fixture::new();
    fixture.node.write(add(&key("a"), "ui", "ana")).await.expect("a write");
    assert_eq!(fixture.plain("a").await.cache, CacheUse::Hit("l1"));
    fixture.backend.faults().lose_next_answer();
    assert!(fixture.node.write(add(&key("a"), "api", "ana")).await.is_err());
    let view = fixture.plain("a").await;
    assert_eq!((view.tags.len(), view.cache), (2, CacheUse::Miss { collapsed: false }));
    assert_eq!(
        fixture.plain("a").await.cache,
        CacheUse::Miss { collapsed: false },
        "no version is known to be sufficient"
    );
    fixture.age(76).await;
    fixture.plain("a").await;
    assert_eq!(fixture.plain("a").await.cache, CacheUse::Hit("l1"));
}

#[tokio::test(start_paused = true)]
async fn soft_ttls_are_jittered_and_no_entry_answers_past_its_own() {
    let options = CacheOptions { soft_ttl: Duration::from_secs(2), ..CacheOptions::default() };
    let fixture = Fixture::with(options);
    for n in 0..200 {
        fixture.node.write(add(&key(&n.to_string()), "ui", "ana")).await.expect("a write");
    }
    fixture.age(2).await;
    let reads = fixture.backend.faults().reads();
    for n in 0..200 {
        fixture.plain(&n.to_string()).await;
    }
    let expired = fixture.backend.faults().reads() - reads;
    assert!((1..=200).contains(&expired), "{expired}");
}

/// While the store has only an older state, that is answered with a mark, and never to a token that
/// requires a newer one.
#[tokio::test(start_paused = true)]
async fn a_token_is_refused_rather_than_answered_with_an_older_view() {
    let fixture = Fixture::with(CacheOptions { l1_bytes: 0, ..CacheOptions::default() });
    let written = fixture.node.write(add(&key("a"), "ui", "ana")).await.expect("a write");
    fixture.backend.faults().set_view_hook(Some(lag));
    let view = fixture.plain("a").await;
    assert_eq!((view.version < written.version, view.degraded.len()), (true, 1), "{view:?}");
    let mut token = ConsistencyToken::default();
    token.observe(ContentHash::of(&key("a")), written.version, written.receipt.position);
    let with_token = ReadOptions { token: Some(&token), ..ReadOptions::default() };
    let refused = fixture.view("a", &with_token).await;
    assert!(matches!(refused, Err(StoreError::Overloaded { .. })), "{refused:?}");
    fixture.backend.faults().heal();
    assert_eq!(fixture.view("a", &with_token).await.expect("a view").version, written.version);
}
