//! A guarded index that hangs, fails, is slow and recovers, in virtual time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tagfast_domain::{ContentType, TagName, TenantId, UnixMillis};
use tagfast_resilience::{Breaker, BreakerState, Criticality};
use tagfast_search::conformance::request;
use tagfast_search::{
    GuardOptions, GuardedIndex, IndexProblem, Query, RelatedTags, SearchEffect, SearchError,
    SearchIndex, SearchPage, SearchRequest, Total,
};
use tokio::time::{Instant, sleep};

/// An index that answers as the test sets it up.
struct FakeIndex {
    delay: Mutex<Duration>,
    error: Mutex<Option<fn() -> SearchError>>,
    calls: AtomicUsize,
    problem: Mutex<Option<IndexProblem>>,
}

impl FakeIndex {
    async fn answer<T>(&self, answer: T) -> Result<T, SearchError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let delay = *self.delay.lock();
        sleep(delay).await;
        let error = *self.error.lock();
        match error {
            Some(error) => Err(error()),
            None => Ok(answer),
        }
    }
}

#[async_trait]
impl SearchIndex for FakeIndex {
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

    async fn related(&self, _: &TenantId, _: &TagName, _: usize) -> RelatedTags {
        self.answer(Vec::new()).await
    }

    async fn counts(
        &self,
        _: &TenantId,
        _: Option<&ContentType>,
        terms: &[Query],
    ) -> Result<Vec<u64>, SearchError> {
        self.answer(vec![0; terms.len()]).await
    }

    fn as_of(&self) -> UnixMillis {
        7
    }

    fn problem(&self) -> Option<IndexProblem> {
        self.problem.lock().clone()
    }

    async fn documents(&self) -> Result<u64, SearchError> {
        self.answer(3).await
    }
}

struct Fixture {
    fake: Arc<FakeIndex>,
    guarded: Arc<GuardedIndex>,
    breaker: Arc<Breaker>,
    transitions: Arc<Mutex<Vec<(BreakerState, &'static str)>>>,
    tenant: TenantId,
}

fn fixture(calls: usize) -> Fixture {
    let delay = Mutex::new(Duration::from_millis(10));
    let fake = Arc::new(FakeIndex {
        delay,
        error: Mutex::new(None),
        calls: AtomicUsize::new(0),
        problem: Mutex::default(),
    });
    let began = Instant::now();
    let transitions: Arc<Mutex<Vec<(BreakerState, &'static str)>>> = Arc::default();
    let on_transition = {
        let transitions = Arc::clone(&transitions);
        Arc::new(move |t: &tagfast_resilience::Transition| {
            transitions.lock().push((t.to, t.reason));
        })
    };
    let clock = Arc::new(move || began.elapsed());
    let breaker = Breaker::new("index", GuardedIndex::breaker_options(), clock, on_transition, 1);
    let options = GuardOptions { deadline: Duration::from_secs(2), calls };
    let guarded = GuardedIndex::with_breaker(Arc::clone(&fake) as _, Arc::clone(&breaker), options);
    Fixture { fake, guarded, breaker, transitions, tenant: TenantId::parse("acme").unwrap() }
}

impl Fixture {
    async fn search(&self, criticality: Criticality) -> Result<SearchPage, SearchError> {
        self.guarded.search(&self.tenant, &SearchRequest { criticality, ..request("a") }).await
    }

    /// Searches this many times in sequence; returns how many searches succeeded.
    async fn search_times(&self, times: usize) -> usize {
        let mut answered = 0;
        for _ in 0..times {
            answered += usize::from(self.search(Criticality::Degradable).await.is_ok());
        }
        answered
    }

    fn calls(&self) -> usize {
        self.fake.calls.load(Ordering::SeqCst)
    }

    fn fail(&self, error: Option<fn() -> SearchError>) {
        *self.fake.error.lock() = error;
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
async fn a_healthy_index_is_passed_through() {
    let fixture = fixture(32);
    assert_eq!(fixture.search(Criticality::Degradable).await.unwrap().as_of, 7);
    assert_eq!(fixture.guarded.documents().await.unwrap(), 3);
    assert_eq!(
        fixture.guarded.related(&fixture.tenant, &TagName::parse("a").unwrap(), 5).await.unwrap(),
        []
    );
    assert_eq!((fixture.guarded.as_of(), fixture.guarded.snapshot().in_flight), (7, 0));
}

#[tokio::test(start_paused = true)]
async fn a_hanging_index_times_out_and_opens_the_breaker() {
    let fixture = fixture(1000);
    *fixture.fake.delay.lock() = Duration::from_secs(3600);
    let began = Instant::now();
    let hanging = join_all((0..30).map(|_| fixture.search(Criticality::Degradable)));
    let later = async {
        sleep(Duration::from_millis(520)).await;
        // The breaker notices stalled calls before the first of them times out.
        assert_eq!(reason(fixture.search(Criticality::Degradable).await), "breaker_open");
        assert_eq!(fixture.transitions.lock().clone(), [(BreakerState::Open, "stall")]);
    };
    let (hung, ()) = tokio::join!(hanging, later);
    assert!(hung.iter().all(|r| matches!(r, Err(SearchError::Unavailable(_)))), "{hung:?}");
    assert_eq!(began.elapsed(), Duration::from_secs(2), "the deadline of all of them");
    assert_eq!((fixture.calls(), fixture.guarded.snapshot().in_flight), (30, 0));
}

#[tokio::test(start_paused = true)]
async fn a_failing_index_is_not_called_until_probes_succeed() {
    let fixture = fixture(32);
    fixture.fail(Some(|| SearchError::Unavailable("down".into())));
    assert_eq!(fixture.search_times(100).await, 0);
    assert_eq!(fixture.breaker.state(), BreakerState::Open);
    let calls = fixture.calls();
    assert!(calls < 30, "{calls} calls reached an index that fails");
    let began = Instant::now();
    assert_eq!(reason(fixture.search(Criticality::Critical).await), "breaker_open");
    assert_eq!(began.elapsed(), Duration::ZERO, "an open breaker refuses at once");

    fixture.fail(None);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(fixture.search_times(40).await, 40);
    assert_eq!(fixture.breaker.state(), BreakerState::Closed);
    let transitions: Vec<_> = fixture.transitions.lock().iter().map(|(state, _)| *state).collect();
    assert_eq!(
        transitions,
        [BreakerState::Open, BreakerState::HalfOpen, BreakerState::Closed],
        "no flapping"
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_index_opens_the_breaker_though_it_answers() {
    let fixture = fixture(32);
    *fixture.fake.delay.lock() = Duration::from_millis(300);
    assert_eq!(fixture.search_times(30).await, 30, "300 ms are not slow");
    *fixture.fake.delay.lock() = Duration::from_millis(700);
    sleep(Duration::from_secs(11)).await;
    let answered = join_all((0..20).map(|_| fixture.search(Criticality::Degradable))).await;
    assert!(answered.iter().all(Result::is_ok));
    assert_eq!(fixture.transitions.lock().clone(), [(BreakerState::Open, "slow_calls")]);
}

#[tokio::test(start_paused = true)]
async fn bad_queries_and_shed_calls_do_not_open_the_breaker() {
    let fixture = fixture(32);
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
        fixture.fail(Some(refusal));
        assert_eq!(fixture.search_times(50).await, 0);
    }
    assert_eq!((fixture.breaker.state(), fixture.calls()), (BreakerState::Closed, 200));
    let breaker = fixture.breaker.snapshot();
    assert_eq!((breaker.ok, breaker.failed, breaker.slow), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn sheddable_calls_leave_permits_for_the_others() {
    let fixture = fixture(10);
    *fixture.fake.delay.lock() = Duration::from_millis(100);
    let (sheddable, degradable, critical) = tokio::join!(
        join_all((0..20).map(|_| fixture.search(Criticality::Sheddable))),
        join_all((0..20).map(|_| fixture.search(Criticality::Degradable))),
        join_all((0..20).map(|_| fixture.search(Criticality::Critical))),
    );
    let answered =
        |all: &[Result<SearchPage, SearchError>]| all.iter().filter(|r| r.is_ok()).count();
    assert_eq!((answered(&sheddable), answered(&degradable), answered(&critical)), (5, 3, 2));
    assert_eq!(reason(sheddable.into_iter().next_back().unwrap()), "overloaded");
    let guard = fixture.guarded.snapshot();
    assert_eq!((guard.limit, guard.in_flight, guard.shed), (10, 0, 50));
    assert_eq!(fixture.breaker.state(), BreakerState::Closed, "a shed call is not a failure");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_returns_its_permit_and_counts_neither_way() {
    let fixture = fixture(4);
    *fixture.fake.delay.lock() = Duration::from_secs(1);
    for _ in 0..100 {
        let left =
            tokio::time::timeout(Duration::from_millis(50), fixture.search(Criticality::Critical))
                .await;
        assert!(left.is_err());
    }
    let breaker = fixture.breaker.snapshot();
    assert_eq!((fixture.guarded.snapshot().in_flight, breaker.ok, breaker.failed), (0, 0, 0));
}

/// A known problem is the answer: the index is not asked where it must not answer, an outage is
/// explained, and what is answered all the same is not blamed.
#[tokio::test(start_paused = true)]
async fn a_known_problem_of_the_index_is_the_answer() {
    let fixture = fixture(4);
    let set = |searches| {
        let (cause, remedy) = ("the index is closed".to_owned(), "open it".to_owned());
        let problem = IndexProblem { code: "closed", cause, remedy, searches };
        *fixture.fake.problem.lock() = Some(problem);
    };
    let cause = |result: Result<SearchPage, SearchError>| match result {
        Err(error @ SearchError::Unusable(_)) => error.to_string(),
        other => panic!("not unusable: {other:?}"),
    };
    set(SearchEffect::Refused);
    let refused = cause(fixture.search(Criticality::Critical).await);
    assert!(refused.contains("the index is closed"), "{refused}");
    assert_eq!(fixture.calls(), 0, "it is not asked");
    assert_eq!(fixture.breaker.snapshot().failed, 0);

    fixture.fail(Some(|| SearchError::unavailable("away")));
    set(SearchEffect::Failing);
    for _ in 0..50 {
        cause(fixture.search(Criticality::Critical).await);
    }
    assert_eq!(fixture.breaker.state(), BreakerState::Open, "an outage counts as one");
    cause(fixture.search(Criticality::Critical).await);

    set(SearchEffect::Answered);
    assert_eq!(reason(fixture.search(Criticality::Critical).await), "breaker_open");
}
