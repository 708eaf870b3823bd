//! Priorities under overload.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_resilience::{Criticality, Limiter, LimiterOptions};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

/// The counts of a second: critical calls refused, sheddable calls admitted.
#[derive(Debug, Clone, Copy, Default)]
struct Second {
    critical: u32,
    critical_shed: u32,
    sheddable_begun: u32,
}

/// Calls of both kinds, each a multiple of the capacity of a database of 16 workers and 1,000
/// queries per second.
fn run(critical: u64, sheddable: u64, seconds: usize) -> Vec<Second> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let began = Instant::now();
        let options = LimiterOptions { seed: 7, ..LimiterOptions::default() };
        let limiter = Limiter::new(options, Arc::new(move || began.elapsed()));
        let (workers, log) = (
            Arc::new(Semaphore::new(16)),
            Arc::new(Mutex::new(vec![Second::default(); seconds + 1])),
        );
        let mut calls = tokio::task::JoinSet::new();
        for ms in 0..seconds as u64 * 1000 {
            let at = (ms / 1000) as usize;
            // Hundredths of a call each millisecond: even, but not in step with the workers.
            let count = |hundredths: u64| (ms + 1) * hundredths / 100 - ms * hundredths / 100;
            let kinds = [
                (Criticality::Critical, count(critical)),
                (Criticality::Sheddable, count(sheddable)),
            ];
            for (criticality, count) in kinds {
                for n in 0..count {
                    let (limiter, workers, log) =
                        (Arc::clone(&limiter), Arc::clone(&workers), Arc::clone(&log));
                    calls.spawn(async move {
                        let begun = limiter.begin(criticality).await;
                        {
                            let mut log = log.lock();
                            match criticality {
                                Criticality::Critical => {
                                    log[at].critical += 1;
                                    log[at].critical_shed += u32::from(begun.is_err());
                                }
                                Criticality::Sheddable | Criticality::Degradable => {
                                    log[at].sheddable_begun += u32::from(begun.is_ok());
                                }
                            }
                        }
                        if let Ok(call) = begun {
                            let _worker = workers.acquire().await;
                            // 8 to 24 ms.
                            sleep(Duration::from_millis(8 + (ms * 7 + n * 5) % 17)).await;
                            call.ended(0, true);
                        }
                    });
                }
            }
            sleep(Duration::from_millis(1)).await;
        }
        while calls.join_next().await.is_some() {}
        let mut log = std::mem::take(&mut *log.lock());
        log.truncate(seconds);
        log
    })
}

/// Above the limit no sheddable call reaches the database, and the database is still fully used.
#[test]
fn no_critical_call_is_refused_while_a_sheddable_one_begins() {
    for critical in [105, 110, 120, 150, 200, 800] {
        let seconds = run(critical, 200, 8);
        // In the first second the limit is not reached yet.
        for (at, second) in seconds.iter().enumerate().skip(1) {
            assert!(second.critical_shed > 0, "{critical} %, second {at}: {second:?}");
            assert_eq!(second.sheddable_begun, 0, "{critical} %, second {at}: {second:?}");
            let answered = second.critical - second.critical_shed;
            assert!(
                (950..=1050).contains(&answered),
                "{critical} %, second {at}: {answered} of 1,000 carried"
            );
        }
    }
}

#[test]
fn below_the_limit_all_critical_calls_begin_and_the_rest_is_given_away() {
    for (critical, given) in [(50, 450..550), (80, 150..250), (90, 50..150)] {
        for (at, second) in run(critical, 200, 8).iter().enumerate().skip(1) {
            assert_eq!(second.critical_shed, 0, "{critical} %, second {at}: {second:?}");
            assert!(
                given.contains(&second.sheddable_begun),
                "{critical} %, second {at}: {second:?}"
            );
        }
    }
}
