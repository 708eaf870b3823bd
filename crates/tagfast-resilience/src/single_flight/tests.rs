//! Callers that share work, leave it, and need newer work, mostly in virtual time.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{advance, sleep};

use super::*;

async fn slowly(runs: Arc<AtomicUsize>) -> usize {
    let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
    sleep(Duration::from_millis(100)).await;
    run
}

/// Lets every runnable task run. Time stands still meanwhile.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_callers_are_one_run() {
    let (flights, runs) = (SingleFlight::<&str, usize>::new(), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    for _ in 0..10_000 {
        let (flights, runs) = (Arc::clone(&flights), Arc::clone(&runs));
        callers.spawn(async move { flights.run("key", None, || slowly(runs)).await });
    }
    let answers = callers.join_all().await;
    assert!(answers.iter().all(|answer| answer.is_ok_and(|shared| shared.value == 1)));
    assert_eq!(
        answers.iter().filter(|answer| answer.is_ok_and(|shared| !shared.collapsed)).count(),
        1
    );
    assert_eq!((runs.load(Ordering::SeqCst), flights.in_progress()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_caller_that_started_it_may_be_cancelled() {
    let (flights, runs) = (SingleFlight::<u32, usize>::new(), Arc::new(AtomicUsize::new(0)));
    let call = |flights: &Arc<SingleFlight<u32, usize>>| {
        let (flights, runs) = (Arc::clone(flights), Arc::clone(&runs));
        tokio::spawn(async move { flights.run(1, None, || slowly(runs)).await })
    };
    let first = call(&flights);
    settle().await;
    let second = call(&flights);
    settle().await;
    first.abort();
    assert!(first.await.is_err_and(|ended| ended.is_cancelled()));
    assert_eq!(second.await.unwrap(), Ok(SharedResult { value: 1, collapsed: true }));
    assert_eq!((runs.load(Ordering::SeqCst), flights.in_progress()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn without_any_caller_left_the_work_still_ends() {
    let (flights, runs) = (SingleFlight::<u32, usize>::new(), Arc::new(AtomicUsize::new(0)));
    let alone = tokio::time::timeout(
        Duration::from_millis(10),
        flights.run(1, None, || slowly(Arc::clone(&runs))),
    )
    .await;
    assert!(alone.is_err(), "it gave up");
    assert_eq!(flights.in_progress(), 1);
    sleep(Duration::from_millis(100)).await;
    assert_eq!((runs.load(Ordering::SeqCst), flights.in_progress()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_needs_newer_work_starts_it_and_later_callers_join_it() {
    let (flights, runs) = (SingleFlight::<u32, usize>::new(), Arc::new(AtomicUsize::new(0)));
    let call = |not_before: Option<Instant>| {
        let (flights, runs) = (Arc::clone(&flights), Arc::clone(&runs));
        tokio::spawn(async move { flights.run(1, not_before, || slowly(runs)).await })
    };
    let began = Instant::now();
    let old = call(None);
    settle().await;
    let at_that_time = call(Some(began));
    advance(Duration::from_millis(10)).await;
    let written = Instant::now();
    let needs_newer = call(Some(written));
    settle().await;
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    advance(Duration::from_millis(10)).await;
    let needs_it_too = call(Some(written));
    let any = call(None);
    assert_eq!(old.await.unwrap(), Ok(SharedResult { value: 1, collapsed: false }));
    assert_eq!(at_that_time.await.unwrap(), Ok(SharedResult { value: 1, collapsed: true }));
    assert_eq!(flights.in_progress(), 1, "the end of older work leaves newer work alone");
    assert_eq!(needs_newer.await.unwrap(), Ok(SharedResult { value: 2, collapsed: false }));
    assert_eq!(needs_it_too.await.unwrap(), Ok(SharedResult { value: 2, collapsed: true }));
    assert_eq!(any.await.unwrap(), Ok(SharedResult { value: 2, collapsed: true }));
    assert_eq!((runs.load(Ordering::SeqCst), flights.in_progress()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn finished_work_is_not_joined() {
    let (flights, runs) = (SingleFlight::<u32, usize>::new(), Arc::new(AtomicUsize::new(0)));
    for run in 1..=3 {
        let shared = flights.run(1, None, || slowly(Arc::clone(&runs))).await;
        assert_eq!(shared, Ok(SharedResult { value: run, collapsed: false }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_returned_to_all_and_the_next_call_starts_again() {
    let flights = SingleFlight::<u32, Result<u32, String>>::new();
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let flights = Arc::clone(&flights);
        callers.spawn(async move {
            let work = async || {
                sleep(Duration::from_millis(1)).await;
                panic!("on purpose")
            };
            flights.run(1, None, work).await
        });
    }
    assert!(callers.join_all().await.iter().all(|answer| *answer == Err(LeaderLost)));
    assert_eq!(flights.in_progress(), 0);
    let shared = flights.run(1, None, async || Err("an error".to_owned())).await;
    assert_eq!(shared, Ok(SharedResult { value: Err("an error".to_owned()), collapsed: false }));
}

#[tokio::test(start_paused = true)]
async fn a_panic_before_the_work_is_returned_too() {
    let flights = SingleFlight::<u32, u32>::new();
    let broken = {
        let flights = Arc::clone(&flights);
        tokio::spawn(async move {
            flights.run(1, None, || -> std::future::Ready<u32> { panic!("on purpose") }).await
        })
    };
    assert!(broken.await.is_err_and(|ended| ended.is_panic()));
    assert_eq!(flights.in_progress(), 0);
    assert_eq!(
        flights.run(1, None, async || 7).await,
        Ok(SharedResult { value: 7, collapsed: false })
    );
}

#[tokio::test(start_paused = true)]
async fn keys_do_not_wait_for_each_other() {
    let (flights, runs) = (SingleFlight::<usize, usize>::new(), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    for n in 0..1000 {
        let (flights, runs) = (Arc::clone(&flights), Arc::clone(&runs));
        callers.spawn(async move { flights.run(n % 10, None, || slowly(runs)).await });
    }
    let began = Instant::now();
    assert!(callers.join_all().await.iter().all(Result::is_ok));
    assert_eq!((runs.load(Ordering::SeqCst), flights.in_progress()), (10, 0));
    assert!(began.elapsed() < Duration::from_millis(110));
}

/// On several threads, so that work completes while callers join: no caller waits forever and
/// no caller gets the result of a different key.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_several_threads_every_caller_is_answered() {
    let flights = SingleFlight::<usize, usize>::new();
    let mut callers = JoinSet::new();
    for n in 0..40_000 {
        let flights = Arc::clone(&flights);
        callers.spawn(async move {
            let key = n % 7;
            let work = async move || {
                for _ in 0..n % 3 {
                    tokio::task::yield_now().await;
                }
                key
            };
            let call = flights.run(key, None, work);
            if n % 11 == 0 {
                // Gives up at once, after it has joined or begun.
                let mut call = pin!(call);
                let polled = std::future::poll_fn(|context| {
                    std::task::Poll::Ready(call.as_mut().poll(context))
                })
                .await;
                return polled.is_pending()
                    || matches!(polled, std::task::Poll::Ready(Ok(shared)) if shared.value == key);
            }
            call.await.is_ok_and(|shared| shared.value == key)
        });
        if n % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert!(callers.join_all().await.iter().all(|right| *right));
    while flights.in_progress() > 0 {
        tokio::task::yield_now().await;
    }
}

/// Sets its flag when it is dropped.
struct Ends(Arc<AtomicBool>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Work that never ends by itself; its flag tells that it was dropped.
fn endless() -> (Arc<AtomicBool>, impl Future<Output = usize> + Send + 'static) {
    let dropped = Arc::new(AtomicBool::new(false));
    let ends = Ends(Arc::clone(&dropped));
    let work = async move {
        let _ends = ends;
        std::future::pending::<usize>().await
    };
    (dropped, work)
}

#[tokio::test(start_paused = true)]
async fn wanted_work_is_shared_and_dropped_with_its_last_caller() {
    let flights = SingleFlight::<u32, usize>::new();
    let (dropped, work) = endless();
    let work = Arc::new(Mutex::new(Some(work)));
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let (flights, work) = (Arc::clone(&flights), Arc::clone(&work));
            tokio::spawn(async move {
                flights.run_while_wanted(1, || work.lock().take().expect("one start")).await
            })
        })
        .collect();
    settle().await;
    for (n, caller) in callers.iter().enumerate() {
        assert!(!dropped.load(Ordering::SeqCst), "{n} callers have left");
        caller.abort();
        settle().await;
    }
    assert!(dropped.load(Ordering::SeqCst), "the last caller has left");
    assert_eq!(flights.in_progress(), 0);
    // The next caller starts again.
    let again = flights.run_while_wanted(1, async || 7).await;
    assert_eq!(again, Ok(SharedResult { value: 7, collapsed: false }));
}

#[tokio::test(start_paused = true)]
async fn wanted_work_that_is_kept_ends_without_callers() {
    for keep_with_start in [true, false] {
        let (flights, runs) = (SingleFlight::<u32, usize>::new(), Arc::new(AtomicUsize::new(0)));
        let (of, counted) = (Arc::clone(&flights), Arc::clone(&runs));
        let caller = tokio::spawn(async move { of.run_while_wanted(1, || slowly(counted)).await });
        settle().await;
        if keep_with_start {
            flights.start(1, || slowly(Arc::clone(&runs)));
        } else {
            let joined = flights.run(1, None, || slowly(Arc::clone(&runs)));
            assert!(tokio::time::timeout(Duration::from_millis(1), joined).await.is_err());
        }
        caller.abort();
        settle().await;
        assert_eq!(flights.in_progress(), 1, "it goes on");
        sleep(Duration::from_millis(200)).await;
        assert_eq!((runs.load(Ordering::SeqCst), flights.in_progress()), (1, 0));
    }
}

/// Callers come and go while work ends or is given up: no caller hangs or gets a foreign result.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_that_join_while_the_last_one_leaves_are_answered() {
    let flights = SingleFlight::<usize, usize>::new();
    let mut callers = JoinSet::new();
    for n in 0..20_000usize {
        let flights = Arc::clone(&flights);
        callers.spawn(async move {
            let key = n % 3;
            let call = flights.run_while_wanted(key, async move || {
                for _ in 0..n % 4 {
                    tokio::task::yield_now().await;
                }
                key
            });
            if n % 2 == 0 {
                return call.await.is_ok_and(|shared| shared.value == key);
            }
            let mut call = pin!(call);
            let _ =
                std::future::poll_fn(|context| std::task::Poll::Ready(call.as_mut().poll(context)))
                    .await;
            true
        });
    }
    assert!(callers.join_all().await.iter().all(|right| *right));
    while flights.in_progress() > 0 {
        tokio::task::yield_now().await;
    }
}
