//! A guarded index that hangs, fails, is slow and recovers, in virtual time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use tagfast_domain::{TagName, TenantId, UnixMillis};
use tagfast_resilience::{Breaker, BreakerState, Criticality};
use tagfast_search::conformance::request;
use tagfast_search::{
    GuardOptions, GuardedIndex, SearchError, SearchIndex, SearchPage, SearchRequest, Total,
};
use tokio::time::{Instant, sleep};

/// An index that does what a test says.
struct Fake {
    takes: Mutex<Duration>,
    error: Mutex<Option<fn() -> SearchError>>,
    asked: AtomicUsize,
}

impl Fake {
    async fn answer<T>(&self, answer: T) -> Result<T, SearchError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let takes = *self.takes.lock().unwrap();
        sleep(takes).await;
        match *self.error.lock().unwrap() {
            Some(error) => Err(error()),
            None => Ok(answer),
        }
    }
}

#[async_trait]
impl SearchIndex for Fake {
    async fn search(&self, _: &TenantId, _: &SearchRequest) -> Result<SearchPage, SearchError> {
        let empty = SearchPage {
            hits: Vec::new(),
            total: Total::Exactly(0),
            facets: None,
            facets_approximate: false,
            next: None,
            as_of: 7,
        };
        self.answer(empty).await
    }

    async fn related(
        &self,
        _: &TenantId,
        _: &TagName,
        _: usize,
    ) -> Result<Vec<(TagName, u64)>, SearchError> {
        self.answer(Vec::new()).await
    }

    fn as_of(&self) -> UnixMillis {
        7
    }

    async fn documents(&self) -> Result<u64, SearchError> {
        self.answer(3).await
    }
}

struct World {
    fake: Arc<Fake>,
    guarded: Arc<GuardedIndex>,
    breaker: Arc<Breaker>,
    turns: Arc<Mutex<Vec<(BreakerState, &'static str)>>>,
    tenant: TenantId,
}

fn world(calls: usize) -> World {
    let takes = Mutex::new(Duration::from_millis(10));
    let fake = Arc::new(Fake { takes, error: Mutex::new(None), asked: AtomicUsize::new(0) });
    let began = Instant::now();
    let turns: Arc<Mutex<Vec<(BreakerState, &'static str)>>> = Arc::default();
    let told = {
        let turns = Arc::clone(&turns);
        Arc::new(move |t: &tagfast_resilience::Transition| {
            turns.lock().unwrap().push((t.to, t.reason))
        })
    };
    let breaker =
        Breaker::new("index", GuardedIndex::breaker(), Arc::new(move || began.elapsed()), told, 1);
    let options = GuardOptions { deadline: Duration::from_secs(2), calls };
    let guarded = GuardedIndex::behind(Arc::clone(&fake) as _, Arc::clone(&breaker), options);
    World { fake, guarded, breaker, turns, tenant: TenantId::parse("acme").unwrap() }
}

impl World {
    async fn search(&self, criticality: Criticality) -> Result<SearchPage, SearchError> {
        self.guarded.search(&self.tenant, &SearchRequest { criticality, ..request("a") }).await
    }

    /// So many searches one after the other; how many were answered.
    async fn ask(&self, times: usize) -> usize {
        let mut answered = 0;
        for _ in 0..times {
            answered += usize::from(self.search(Criticality::Degradable).await.is_ok());
        }
        answered
    }

    fn asked(&self) -> usize {
        self.fake.asked.load(Ordering::SeqCst)
    }

    fn fail(&self, error: Option<fn() -> SearchError>) {
        *self.fake.error.lock().unwrap() = error;
    }
}

fn reason<T: std::fmt::Debug>(result: Result<T, SearchError>) -> &'static str {
    match result {
        Err(SearchError::Refused { reason, retry_after }) => {
            assert!(retry_after <= Duration::from_secs(10));
            reason
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_well_index_is_passed_through() {
    let world = world(32);
    assert_eq!(world.search(Criticality::Degradable).await.unwrap().as_of, 7);
    assert_eq!(world.guarded.documents().await.unwrap(), 3);
    assert_eq!(
        world.guarded.related(&world.tenant, &TagName::parse("a").unwrap(), 5).await.unwrap(),
        []
    );
    assert_eq!((world.guarded.as_of(), world.guarded.look().in_flight), (7, 0));
}

#[tokio::test(start_paused = true)]
async fn an_index_that_hangs_is_given_up_and_then_not_asked() {
    let world = world(1000);
    *world.fake.takes.lock().unwrap() = Duration::from_secs(3600);
    let began = Instant::now();
    let hanging = join_all((0..30).map(|_| world.search(Criticality::Degradable)));
    let later = async {
        sleep(Duration::from_millis(520)).await;
        // They are noticed before the first of them has timed out.
        assert_eq!(reason(world.search(Criticality::Degradable).await), "breaker_open");
        assert_eq!(world.turns.lock().unwrap().clone(), [(BreakerState::Open, "stall")]);
    };
    let (hung, ()) = tokio::join!(hanging, later);
    assert!(hung.iter().all(|r| matches!(r, Err(SearchError::Unavailable(_)))), "{hung:?}");
    assert_eq!(began.elapsed(), Duration::from_secs(2), "the deadline of all of them");
    assert_eq!((world.asked(), world.guarded.look().in_flight), (30, 0));
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_is_not_asked_until_few_calls_say_it_works() {
    let world = world(32);
    world.fail(Some(|| SearchError::Unavailable("down".into())));
    assert_eq!(world.ask(100).await, 0);
    assert_eq!(world.breaker.state(), BreakerState::Open);
    let asked = world.asked();
    assert!(asked < 30, "{asked} calls reached an index that fails");
    let began = Instant::now();
    assert_eq!(reason(world.search(Criticality::Critical).await), "breaker_open");
    assert_eq!(began.elapsed(), Duration::ZERO, "an open breaker answers at once");

    world.fail(None);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(world.ask(40).await, 40);
    assert_eq!(world.breaker.state(), BreakerState::Closed);
    let turns: Vec<_> = world.turns.lock().unwrap().iter().map(|(state, _)| *state).collect();
    assert_eq!(
        turns,
        [BreakerState::Open, BreakerState::HalfOpen, BreakerState::Closed],
        "no flapping"
    );
}

#[tokio::test(start_paused = true)]
async fn one_that_is_slow_opens_the_breaker_though_it_answers() {
    let world = world(32);
    *world.fake.takes.lock().unwrap() = Duration::from_millis(300);
    assert_eq!(world.ask(30).await, 30, "300 ms are not slow");
    *world.fake.takes.lock().unwrap() = Duration::from_millis(700);
    sleep(Duration::from_secs(11)).await;
    let answered = join_all((0..20).map(|_| world.search(Criticality::Degradable))).await;
    assert!(answered.iter().all(Result::is_ok));
    assert_eq!(world.turns.lock().unwrap().clone(), [(BreakerState::Open, "slow_calls")]);
}

#[tokio::test(start_paused = true)]
async fn what_a_user_or_a_full_index_does_opens_nothing() {
    let world = world(32);
    let refusals: [fn() -> SearchError; 4] = [
        || SearchError::Syntax {
            position: 0,
            byte: 0,
            expected: "a tag".into(),
            message: "x".into(),
        },
        || SearchError::Limit { limit: "query_terms", allowed: 1, given: 2 },
        || SearchError::PrefixTooBroad { prefix: "a".into(), allowed: 1 },
        || SearchError::Refused { reason: "overloaded", retry_after: Duration::ZERO },
    ];
    for refusal in refusals {
        world.fail(Some(refusal));
        assert_eq!(world.ask(50).await, 0);
    }
    assert_eq!((world.breaker.state(), world.asked()), (BreakerState::Closed, 200));
    let look = world.breaker.look();
    assert_eq!((look.ok, look.failed, look.slow), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn sheddable_calls_leave_room_for_the_others() {
    let world = world(10);
    *world.fake.takes.lock().unwrap() = Duration::from_millis(100);
    let (sheddable, degradable, critical) = tokio::join!(
        join_all((0..20).map(|_| world.search(Criticality::Sheddable))),
        join_all((0..20).map(|_| world.search(Criticality::Degradable))),
        join_all((0..20).map(|_| world.search(Criticality::Critical))),
    );
    let answered =
        |all: &[Result<SearchPage, SearchError>]| all.iter().filter(|r| r.is_ok()).count();
    assert_eq!((answered(&sheddable), answered(&degradable), answered(&critical)), (5, 3, 2));
    assert_eq!(reason(sheddable.into_iter().next_back().unwrap()), "overloaded");
    let look = world.guarded.look();
    assert_eq!((look.limit, look.in_flight, look.shed), (10, 0, 50));
    assert_eq!(world.breaker.state(), BreakerState::Closed, "what is shed is no failure");
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_gives_the_place_back_and_counts_neither_way() {
    let world = world(4);
    *world.fake.takes.lock().unwrap() = Duration::from_secs(1);
    for _ in 0..100 {
        let left =
            tokio::time::timeout(Duration::from_millis(50), world.search(Criticality::Critical))
                .await;
        assert!(left.is_err());
    }
    let look = world.breaker.look();
    assert_eq!((world.guarded.look().in_flight, look.ok, look.failed), (0, 0, 0));
}
