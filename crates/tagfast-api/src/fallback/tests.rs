//! Features that fail, hang, are slow and recover, in virtual time.

use std::future::pending;

use futures_util::future::join_all;
use tagfast_domain::TagName;
use tokio::time::sleep;

use super::*;

const NOW: UnixMillis = 10_000_000;

fn acme() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn answer(as_of: UnixMillis) -> CachedAnswer {
    CachedAnswer { number: 7, as_of, ..CachedAnswer::default() }
}

fn down() -> FeatureError {
    PopularError::unavailable("down").into()
}

async fn request_feature_within(
    fallback: &Arc<FeatureFallback>,
    max_stale: Option<u64>,
    work: impl Future<Output = Result<CachedAnswer, FeatureError>> + Send + 'static,
) -> Result<FeatureAnswer, Problem> {
    let key = FeatureKey::Count(TagName::parse("a").unwrap());
    let max_stale = max_stale.map(Duration::from_secs);
    fallback
        .call(
            FeatureRequest { tenant: &acme(), feature: Feature::Count, key, max_stale, now: NOW },
            work,
        )
        .await
}

async fn request_feature(
    fallback: &Arc<FeatureFallback>,
    work: impl Future<Output = Result<CachedAnswer, FeatureError>> + Send + 'static,
) -> Result<FeatureAnswer, Problem> {
    request_feature_within(fallback, None, work).await
}

async fn answer_after(ms: u64) -> Result<CachedAnswer, FeatureError> {
    sleep(Duration::from_millis(ms)).await;
    Ok(answer(NOW))
}

fn outcome(given: Result<FeatureAnswer, Problem>) -> &'static str {
    match given.unwrap() {
        FeatureAnswer::Fresh(_) => "fresh",
        FeatureAnswer::LastGood(answer, reason) => {
            assert_eq!(answer.number, 7);
            reason
        }
        FeatureAnswer::Omitted => "omitted",
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_good_answer_stands_in_while_it_is_young_enough() {
    let fallback = FeatureFallback::new(Duration::from_secs(3600), TaskGroup::new("test"));
    assert_eq!(
        outcome(request_feature(&fallback, async { Err(down()) }).await),
        "omitted",
        "there is no last good answer yet"
    );
    assert_eq!(
        outcome(request_feature(&fallback, async { Ok(answer(NOW - 20_000)) }).await),
        "fresh"
    );
    assert_eq!(outcome(request_feature(&fallback, async { Err(down()) }).await), "unavailable");
    assert_eq!(
        outcome(request_feature_within(&fallback, Some(20), async { Err(down()) }).await),
        "unavailable"
    );
    assert_eq!(
        outcome(request_feature_within(&fallback, Some(19), async { Err(down()) }).await),
        "omitted",
        "too old for this client"
    );
    let refused =
        request_feature_within(&fallback, Some(0), async { Err(down()) }).await.unwrap_err();
    assert_eq!(refused.code(), Code::PopularUnavailable);
    let shed = || {
        FeatureError::from(SearchError::Refused {
            reason: "breaker_open",
            retry_after: Duration::ZERO,
        })
    };
    assert_eq!(
        outcome(request_feature(&fallback, async move { Err(shed()) }).await),
        "breaker_open"
    );

    let strict = FeatureFallback::new(Duration::ZERO, TaskGroup::new("test"));
    assert_eq!(outcome(request_feature(&strict, async { Ok(answer(NOW - 1)) }).await), "fresh");
    assert_eq!(
        outcome(request_feature(&strict, async { Err(down()) }).await),
        "omitted",
        "the service gives no stale answers"
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_its_source_calls_stale_is_marked_and_not_cached() {
    let fallback = FeatureFallback::new(Duration::from_secs(3600), TaskGroup::new("test"));
    let old = || async { Ok(CachedAnswer { stale: true, ..answer(NOW - 5000) }) };
    assert_eq!(outcome(request_feature(&fallback, old()).await), "unavailable");
    assert_eq!(fallback.degraded_features(), [("count", "unavailable")]);
    assert_eq!(
        outcome(request_feature(&fallback, async { Err(down()) }).await),
        "omitted",
        "it was not cached"
    );
    assert!(request_feature_within(&fallback, Some(0), old()).await.is_err());
    // Lagging but fresh from its source: only a client that sets a limit is refused.
    let behind = || async { Ok(answer(NOW - 60_000)) };
    assert_eq!(outcome(request_feature(&fallback, behind()).await), "fresh");
    assert_eq!(outcome(request_feature_within(&fallback, Some(60), behind()).await), "fresh");
    assert_eq!(outcome(request_feature_within(&fallback, Some(59), behind()).await), "omitted");
    assert!(request_feature_within(&fallback, Some(0), behind()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_late_result_answers_the_next_request() {
    let fallback = FeatureFallback::new(Duration::from_secs(3600), TaskGroup::new("test"));
    let began = Instant::now();
    assert_eq!(outcome(request_feature(&fallback, answer_after(700)).await), "omitted");
    assert_eq!(began.elapsed(), WAIT_NORMAL);
    sleep(Duration::from_millis(250)).await;
    let began = Instant::now();
    assert_eq!(
        outcome(request_feature(&fallback, pending()).await),
        "too_slow",
        "the late result is the last good answer"
    );
    assert_eq!(began.elapsed(), WAIT_DEGRADED, "it fails now: the wait is short");
    // The call that hangs times out, and the cooldown ends.
    sleep(COMPLETION_TIMEOUT + FAILURE_COOLDOWN).await;
    assert_eq!(fallback.degraded_features(), []);
    assert_eq!(outcome(request_feature(&fallback, answer_after(400)).await), "fresh");
    assert_eq!(fallback.late_completions.available_permits(), LATE_COMPLETIONS_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_slow_feature_that_works_recovers() {
    let fallback = FeatureFallback::new(Duration::from_secs(3600), TaskGroup::new("test"));
    assert_eq!(outcome(request_feature(&fallback, async { Err(down()) }).await), "omitted");
    // 100 ms are longer than the degraded wait, and no failure.
    for _ in 0..40 {
        let given = outcome(request_feature(&fallback, answer_after(100)).await);
        assert!(
            given == "omitted" || given == "unavailable" || given == "too_slow" || given == "fresh",
            "{given}"
        );
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(
        outcome(request_feature(&fallback, answer_after(100)).await),
        "fresh",
        "three seconds without a failure are enough"
    );
}

#[tokio::test(start_paused = true)]
async fn few_callers_wait_for_a_feature_that_hangs() {
    let fallback = FeatureFallback::new(Duration::from_secs(3600), TaskGroup::new("test"));
    for _ in 0..200 {
        assert_eq!(outcome(request_feature(&fallback, answer_after(2)).await), "fresh");
    }
    let callers = join_all((0..10_000u64).map(|n| {
        let fallback = &fallback;
        async move {
            // 2,000 a second.
            sleep(Duration::from_micros(500 * n)).await;
            let began = Instant::now();
            assert_eq!(outcome(request_feature(fallback, pending()).await), "too_slow");
            began.elapsed()
        }
    }));
    let waited = callers.await;
    let long = waited.iter().filter(|took| **took > Duration::from_millis(50)).count();
    assert!(long <= 2 * SLOW_CALLERS_MAX, "{long} of 10,000 waited long");
    assert!(waited.iter().all(|took| *took <= WAIT_NORMAL));
}

#[tokio::test(start_paused = true)]
async fn background_work_is_bounded_and_ends() {
    struct Alive(Arc<AtomicUsize>);
    impl Drop for Alive {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let fallback = FeatureFallback::new(Duration::from_secs(3600), TaskGroup::new("test"));
    let alive = Arc::new(AtomicUsize::new(0));
    for _ in 0..100 {
        let alive = Alive(Arc::clone(&alive));
        alive.0.fetch_add(1, Ordering::SeqCst);
        let hangs = async move {
            let _alive = alive;
            pending().await
        };
        request_feature(&fallback, hangs).await.unwrap();
        if fallback.late_completions.available_permits() == 0 {
            break;
        }
    }
    // The requests run one after the other: the first have ended before the last begin.
    assert!(alive.load(Ordering::SeqCst) <= LATE_COMPLETIONS_MAX);
    sleep(COMPLETION_TIMEOUT).await;
    tokio::task::yield_now().await;
    assert_eq!(
        (alive.load(Ordering::SeqCst), fallback.late_completions.available_permits()),
        (0, LATE_COMPLETIONS_MAX)
    );
}

#[tokio::test(start_paused = true)]
async fn a_wrong_request_is_no_failure_of_the_feature() {
    let fallback = FeatureFallback::new(Duration::from_secs(3600), TaskGroup::new("test"));
    let mistake =
        || async { Err(SearchError::Limit { limit: "query_terms", allowed: 1, given: 2 }.into()) };
    assert_eq!(request_feature(&fallback, mistake()).await.unwrap_err().code(), Code::QueryLimit);
    assert_eq!(fallback.degraded_features(), []);
    assert_eq!(outcome(request_feature(&fallback, answer_after(300)).await), "fresh");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_refuses_the_fallback_waits() {
    let fallback = FeatureFallback::new(Duration::from_secs(3600), TaskGroup::new("test"));
    assert_eq!(outcome(request_feature(&fallback, async { Err(down()) }).await), "omitted");
    assert_eq!(
        outcome(request_feature_within(&fallback, Some(0), answer_after(300)).await),
        "fresh"
    );
    let began = Instant::now();
    assert!(request_feature_within(&fallback, Some(0), pending()).await.is_err());
    assert_eq!(began.elapsed(), WAIT_NORMAL);
}

/// Counts how often it was started, and tells when it was dropped.
fn counted(
    runs: &Arc<AtomicUsize>,
    alive: &Arc<AtomicUsize>,
    ms: u64,
) -> impl Future<Output = Result<CachedAnswer, FeatureError>> + Send + 'static {
    struct Alive(Arc<AtomicUsize>);
    impl Drop for Alive {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let (runs, alive) = (Arc::clone(runs), Arc::clone(alive));
    async move {
        runs.fetch_add(1, Ordering::SeqCst);
        alive.fetch_add(1, Ordering::SeqCst);
        let _alive = Alive(alive);
        answer_after(ms).await
    }
}

/// Every feature: a hundred requests at the same time are one call, and a different thing is not.
#[tokio::test(start_paused = true)]
async fn requests_for_the_same_thing_share_one_call() {
    let tag = TagName::parse("a").unwrap();
    for (feature, key) in [
        (Feature::Popular, FeatureKey::Popular(tagfast_popular::Window::All, 20)),
        (Feature::Suggestions, FeatureKey::Suggestions("a".to_owned(), 20, None)),
        (Feature::Suggestions, FeatureKey::List(None, 20, None)),
        (Feature::Count, FeatureKey::Count(tag.clone())),
        (Feature::Related, FeatureKey::Related(tag.clone())),
        (Feature::Facets, FeatureKey::Facets(None, None)),
        (Feature::Total, FeatureKey::Total(None, None)),
    ] {
        let fallback = FeatureFallback::new(Duration::from_secs(3600), TaskGroup::new("test"));
        let (runs, alive) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let other = TenantId::parse("other").unwrap();
        let calls = join_all((0..100).map(|n| {
            let (call, key) = (counted(&runs, &alive, 20), key.clone());
            let tenant = if n % 2 == 0 { acme() } else { other.clone() };
            let fallback = &fallback;
            async move {
                let tenant = &tenant;
                let request = FeatureRequest { tenant, feature, key, max_stale: None, now: NOW };
                outcome(fallback.call(request, call).await)
            }
        }));
        assert!(calls.await.iter().all(|given| *given == "fresh"));
        assert_eq!(runs.load(Ordering::SeqCst), 2, "{feature:?}: one for each tenant");
        assert_eq!(alive.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_with_its_last_request() {
    let fallback = FeatureFallback::new(Duration::from_secs(3600), TaskGroup::new("test"));
    let (runs, alive) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let (fallback, call) = (Arc::clone(&fallback), counted(&runs, &alive, 400));
            tokio::spawn(async move { request_feature(&fallback, call).await.map(|_| ()) })
        })
        .collect();
    sleep(Duration::from_millis(20)).await;
    assert_eq!((runs.load(Ordering::SeqCst), alive.load(Ordering::SeqCst)), (1, 1));
    // The connections break.
    for client in &clients[1..] {
        client.abort();
    }
    sleep(Duration::from_millis(1)).await;
    assert_eq!(alive.load(Ordering::SeqCst), 1, "one still waits");
    clients[0].abort();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}

/// A call that hangs does not hold the requests that come after it, however many come.
#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_is_replaced() {
    let fallback = FeatureFallback::new(Duration::from_secs(3600), TaskGroup::new("test"));
    assert_eq!(outcome(request_feature(&fallback, pending()).await), "omitted");
    let began = Instant::now();
    loop {
        let given = outcome(request_feature(&fallback, answer_after(1)).await);
        if given == "fresh" {
            break;
        }
        assert!(began.elapsed() <= COMPLETION_TIMEOUT, "{given}");
    }
    assert!(fallback.late_calls.lock().len() <= 1);
}

/// A ranking that takes longer than requests wait is there for a later request.
#[tokio::test(start_paused = true)]
async fn a_slow_ranking_is_completed_once() {
    let fallback = FeatureFallback::new(Duration::from_secs(3600), TaskGroup::new("test"));
    let (runs, alive) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let began = Instant::now();
    loop {
        let (feature, now) = (Feature::Popular, NOW);
        let key = FeatureKey::Popular(tagfast_popular::Window::All, 20);
        let (tenant, max_stale) = (&acme(), None);
        let request = FeatureRequest { tenant, feature, key, max_stale, now };
        let call = counted(&runs, &alive, 9000);
        if outcome(fallback.call(request, call).await) != "omitted" {
            break;
        }
        assert!(began.elapsed() < RANKING_TIMEOUT);
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}
