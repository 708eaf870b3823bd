//! Features that fail, hang, are slow and recover, in virtual time.

use std::future::pending;

use futures_util::future::join_all;
use tokio::time::sleep;

use super::*;

const NOW: UnixMillis = 10_000_000;

fn acme() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn known(as_of: UnixMillis) -> Known {
    Known { number: 7, as_of, ..Known::default() }
}

fn down() -> Failed {
    PopularError::Unavailable("down".to_owned()).into()
}

async fn ask_with(
    all: &Arc<Sheddable>,
    max_stale: Option<u64>,
    work: impl Future<Output = Result<Known, Failed>> + Send + 'static,
) -> Result<Given, Problem> {
    let question = Question::Suggestions("a".to_owned(), 20);
    let max_stale = max_stale.map(Duration::from_secs);
    all.ask(
        Ask { tenant: &acme(), feature: Feature::Suggestions, question, max_stale, now: NOW },
        work,
    )
    .await
}

async fn ask(
    all: &Arc<Sheddable>,
    work: impl Future<Output = Result<Known, Failed>> + Send + 'static,
) -> Result<Given, Problem> {
    ask_with(all, None, work).await
}

async fn takes(ms: u64) -> Result<Known, Failed> {
    sleep(Duration::from_millis(ms)).await;
    Ok(known(NOW))
}

fn cause(given: Result<Given, Problem>) -> &'static str {
    match given.unwrap() {
        Given::Good(_) => "good",
        Given::Last(known, cause) => {
            assert_eq!(known.number, 7);
            cause
        }
        Given::Nothing => "nothing",
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_good_answer_stands_in_while_it_is_young_enough() {
    let all = Sheddable::new(Duration::from_secs(3600));
    assert_eq!(cause(ask(&all, async { Err(down()) }).await), "nothing", "nobody asked before");
    assert_eq!(cause(ask(&all, async { Ok(known(NOW - 20_000)) }).await), "good");
    assert_eq!(cause(ask(&all, async { Err(down()) }).await), "unavailable");
    assert_eq!(cause(ask_with(&all, Some(20), async { Err(down()) }).await), "unavailable");
    assert_eq!(
        cause(ask_with(&all, Some(19), async { Err(down()) }).await),
        "nothing",
        "the client wants none so old"
    );
    let refused = ask_with(&all, Some(0), async { Err(down()) }).await.unwrap_err();
    assert_eq!(refused.code(), Code::PopularUnavailable);
    let shed = || {
        Failed::from(SearchError::Refused { reason: "breaker_open", retry_after: Duration::ZERO })
    };
    assert_eq!(cause(ask(&all, async move { Err(shed()) }).await), "breaker_open");

    let strict = Sheddable::new(Duration::ZERO);
    assert_eq!(cause(ask(&strict, async { Ok(known(NOW - 1)) }).await), "good");
    assert_eq!(
        cause(ask(&strict, async { Err(down()) }).await),
        "nothing",
        "the service gives no stale answers"
    );
}

#[tokio::test(start_paused = true)]
async fn what_its_source_knows_no_better_is_marked_and_not_kept() {
    let all = Sheddable::new(Duration::from_secs(3600));
    let old = || async { Ok(Known { stale: true, ..known(NOW - 5000) }) };
    assert_eq!(cause(ask(&all, old()).await), "unavailable");
    assert_eq!(all.troubled(), [("suggestions", "unavailable")]);
    assert_eq!(cause(ask(&all, async { Err(down()) }).await), "nothing", "it was not kept");
    assert!(ask_with(&all, Some(0), old()).await.is_err());
    // Behind, but all there is: only who minds is refused it.
    let behind = || async { Ok(known(NOW - 60_000)) };
    assert_eq!(cause(ask(&all, behind()).await), "good");
    assert_eq!(cause(ask_with(&all, Some(60), behind()).await), "good");
    assert_eq!(cause(ask_with(&all, Some(59), behind()).await), "nothing");
    assert!(ask_with(&all, Some(0), behind()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_comes_too_late_answers_the_next_one() {
    let all = Sheddable::new(Duration::from_secs(3600));
    let began = Instant::now();
    assert_eq!(cause(ask(&all, takes(700)).await), "nothing");
    assert_eq!(began.elapsed(), PATIENT);
    sleep(Duration::from_millis(250)).await;
    let began = Instant::now();
    assert_eq!(cause(ask(&all, pending()).await), "too_slow", "the late one is the last good one");
    assert_eq!(began.elapsed(), HASTY, "it does not work now: nobody waits long");
    // The one that hangs is given up, and trouble ends.
    sleep(DEADLINE + TROUBLE).await;
    assert_eq!(all.troubled(), []);
    assert_eq!(cause(ask(&all, takes(400)).await), "good");
    assert_eq!(all.late.available_permits(), LATE);
}

#[tokio::test(start_paused = true)]
async fn who_is_slow_but_works_is_not_given_up_for_ever() {
    let all = Sheddable::new(Duration::from_secs(3600));
    assert_eq!(cause(ask(&all, async { Err(down()) }).await), "nothing");
    // 100 ms are too long for the moment, and no failure.
    for _ in 0..40 {
        let given = cause(ask(&all, takes(100)).await);
        assert!(
            given == "nothing" || given == "unavailable" || given == "too_slow" || given == "good",
            "{given}"
        );
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(
        cause(ask(&all, takes(100)).await),
        "good",
        "three seconds without a failure are enough"
    );
}

#[tokio::test(start_paused = true)]
async fn few_wait_for_what_hangs() {
    let all = Sheddable::new(Duration::from_secs(3600));
    for _ in 0..200 {
        assert_eq!(cause(ask(&all, takes(2)).await), "good");
    }
    let callers = join_all((0..10_000u64).map(|n| {
        let all = &all;
        async move {
            // 2,000 a second.
            sleep(Duration::from_micros(500 * n)).await;
            let began = Instant::now();
            assert_eq!(cause(ask(all, pending()).await), "too_slow");
            began.elapsed()
        }
    }));
    let waited = callers.await;
    let long = waited.iter().filter(|took| **took > Duration::from_millis(50)).count();
    assert!(long <= 2 * CROWD, "{long} of 10,000 waited long");
    assert!(waited.iter().all(|took| *took <= PATIENT));
}

#[tokio::test(start_paused = true)]
async fn background_work_is_bounded_and_ends() {
    struct Alive(Arc<AtomicUsize>);
    impl Drop for Alive {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let all = Sheddable::new(Duration::from_secs(3600));
    let alive = Arc::new(AtomicUsize::new(0));
    for _ in 0..100 {
        let alive = Alive(Arc::clone(&alive));
        alive.0.fetch_add(1, Ordering::SeqCst);
        let hangs = async move {
            let _alive = alive;
            pending().await
        };
        ask(&all, hangs).await.unwrap();
        if all.late.available_permits() == 0 {
            break;
        }
    }
    // They are asked one after the other: the first have ended before the last begin.
    assert!(alive.load(Ordering::SeqCst) <= LATE);
    sleep(DEADLINE).await;
    tokio::task::yield_now().await;
    assert_eq!((alive.load(Ordering::SeqCst), all.late.available_permits()), (0, LATE));
}

#[tokio::test(start_paused = true)]
async fn a_caller_s_mistake_is_its_own() {
    let all = Sheddable::new(Duration::from_secs(3600));
    let mistake =
        || async { Err(SearchError::Limit { limit: "query_terms", allowed: 1, given: 2 }.into()) };
    assert_eq!(ask(&all, mistake()).await.unwrap_err().code(), Code::QueryLimit);
    assert_eq!(all.troubled(), []);
    assert_eq!(cause(ask(&all, takes(300)).await), "good");
}

#[tokio::test(start_paused = true)]
async fn who_refuses_anything_else_waits() {
    let all = Sheddable::new(Duration::from_secs(3600));
    assert_eq!(cause(ask(&all, async { Err(down()) }).await), "nothing");
    assert_eq!(cause(ask_with(&all, Some(0), takes(300)).await), "good");
    let began = Instant::now();
    assert!(ask_with(&all, Some(0), pending()).await.is_err());
    assert_eq!(began.elapsed(), PATIENT);
}
