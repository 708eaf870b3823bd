//! Whether the limit finds the capacity of a dependency, and that no slot is lost.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

struct Fixture {
    now: Arc<AtomicU64>,
    limiter: Arc<Limiter>,
}

impl Fixture {
    fn new(options: LimiterOptions) -> Self {
        let now = Arc::new(AtomicU64::new(1_000_000));
        let clock = Arc::clone(&now);
        let limiter = Limiter::new(
            LimiterOptions { seed: 7, ..options },
            Arc::new(move || Duration::from_micros(clock.load(Ordering::Relaxed))),
        );
        Self { now, limiter }
    }

    fn advance(&self, us: u64) {
        self.now.fetch_add(us, Ordering::Relaxed);
    }

    /// As many concurrent calls as are admitted, each with that latency.
    fn round(&self, us: u64, units: usize) {
        let calls: Vec<_> =
            std::iter::from_fn(|| self.limiter.try_begin(Criticality::Critical).ok()).collect();
        assert!(!calls.is_empty());
        self.advance(us);
        calls.into_iter().for_each(|call| call.ended(units, true));
    }

    fn limit(&self) -> usize {
        self.limiter.snapshot().limit
    }

    fn baseline(&self) -> f64 {
        self.limiter.snapshot().baseline.expect("known").as_secs_f64()
    }
}

const ALL: [Criticality; 3] =
    [Criticality::Sheddable, Criticality::Degradable, Criticality::Critical];

#[test]
fn it_grows_to_its_maximum_while_nothing_waits() {
    let fixture = Fixture::new(LimiterOptions::default());
    let mut limits = vec![fixture.limit()];
    for _ in 0..600 {
        fixture.round(5000, 0);
        limits.push(fixture.limit());
    }
    assert!(limits.windows(2).all(|two| two[0] <= two[1]), "{limits:?}");
    assert_eq!((limits[0], *limits.last().unwrap()), (16, 64));
    assert!((fixture.baseline() - 0.005).abs() < 1e-9);
}

#[test]
fn it_does_not_grow_unused() {
    let fixture = Fixture::new(LimiterOptions::default());
    for _ in 0..1000 {
        let call = fixture.limiter.try_begin(Criticality::Critical).unwrap();
        fixture.advance(5000);
        call.ended(0, true);
    }
    assert_eq!(fixture.limit(), 16, "one of sixteen is not half");
}

#[test]
fn a_window_needs_its_time_and_its_samples() {
    let fixture = Fixture::new(LimiterOptions { start: 9, ..LimiterOptions::default() });
    fixture.round(1000, 0);
    assert_eq!(fixture.limiter.snapshot().baseline, None, "nine samples");
    fixture.advance(200_000);
    let one = fixture.limiter.try_begin(Criticality::Critical).unwrap();
    fixture.advance(1000);
    one.ended(0, true);
    assert!((fixture.baseline() - 0.001).abs() < 1e-9, "ten samples and 200 ms");
    fixture.round(2000, 0);
    fixture.round(2000, 0);
    fixture.round(2000, 0);
    assert!(fixture.baseline() < 0.0011, "thirty samples, but 4 ms");
}

#[test]
fn it_shrinks_when_calls_wait_and_never_below_its_minimum() {
    let fixture = Fixture::new(LimiterOptions::default());
    (0..100).for_each(|_| fixture.round(5000, 0));
    // The current window may still grow it once.
    fixture.round(100_000, 0);
    let before = fixture.limit();
    fixture.round(100_000, 0);
    fixture.round(100_000, 0);
    let after = fixture.limit();
    let two_tenths = (before as f64 * 0.81) as usize..=((before + 1) as f64 * 0.81) as usize;
    assert!(two_tenths.contains(&after), "a tenth for each of two windows: {before} -> {after}");
    (0..60).for_each(|_| fixture.round(100_000, 0));
    assert_eq!(fixture.limit(), 4);
}

#[test]
fn within_the_tolerance_nothing_shrinks() {
    let fixture = Fixture::new(LimiterOptions::default());
    (0..100).for_each(|_| fixture.round(5000, 0));
    let before = fixture.limit();
    (0..100).for_each(|_| fixture.round(12_400, 0));
    assert!(fixture.limit() >= before, "2.48 times the baseline");
}

#[test]
fn what_a_batch_costs_is_not_taken_for_waiting() {
    let normalised = Fixture::new(LimiterOptions::default());
    let raw = Fixture::new(LimiterOptions { batch_cost: 0.0, ..LimiterOptions::default() });
    for fixture in [&normalised, &raw] {
        (0..100).for_each(|_| fixture.round(5000, 0));
        // A batch of 64 keys costs as much as 15.7 calls.
        (0..60).for_each(|_| fixture.round((5000.0 * (1.0 + 0.23 * 64.0)) as u64, 64));
    }
    assert_eq!((normalised.limit(), raw.limit()), (64, 4));
    let expects = |units| normalised.limiter.expects(units).expect("known").as_secs_f64();
    assert!(
        (expects(0) - 0.005).abs() < 1e-4 && (expects(64) - 0.0786).abs() < 1e-3,
        "{} {}",
        expects(0),
        expects(64)
    );
    assert_eq!(Fixture::new(LimiterOptions::default()).limiter.expects(1), None);
}

#[test]
fn the_baseline_rises_two_percent_a_second_at_most() {
    let fixture = Fixture::new(LimiterOptions::default());
    (0..100).for_each(|_| fixture.round(5000, 0));
    // Within the tolerance: the limit stays, the baseline follows.
    (0..1000).for_each(|_| fixture.round(10_000, 0));
    assert!(
        (fixture.baseline() - 0.005).abs() < 1e-4,
        "ten seconds remember the fast ones: {}",
        fixture.baseline()
    );
    (0..1000).for_each(|_| fixture.round(10_000, 0));
    let risen = fixture.baseline();
    assert!(risen > 0.0055 && risen <= 0.005 * 1.02f64.powi(11), "{risen}");
    (0..40_000).for_each(|_| fixture.round(10_000, 0));
    assert!((fixture.baseline() - 0.010).abs() < 1e-9);
    fixture.round(1000, 0);
    (0..110).for_each(|_| fixture.round(1000, 0));
    assert!((fixture.baseline() - 0.001).abs() < 1e-9, "it falls at once");
}

#[test]
fn at_its_minimum_for_five_seconds_it_learns_again() {
    let fixture = Fixture::new(LimiterOptions::default());
    (0..100).for_each(|_| fixture.round(1000, 0));
    // The dependency became ten times slower for good: with four calls in flight nothing queues.
    let mut relearned = None;
    for n in 0..2000 {
        fixture.round(10_000, 0);
        if relearned.is_none()
            && fixture.limiter.snapshot().baseline > Some(Duration::from_millis(9))
        {
            relearned = Some(n);
        }
    }
    // About 3 s to shrink to 4, 5 s there, and a window.
    assert!(relearned.is_some_and(|n| (500..1000).contains(&n)), "{relearned:?}");
    assert_eq!(fixture.limit(), 64, "and it is used again");
}

#[test]
fn fast_failures_say_nothing_and_slow_ones_do() {
    let fixture = Fixture::new(LimiterOptions::default());
    (0..100).for_each(|_| fixture.round(5000, 0));
    let before = fixture.limiter.snapshot();
    for _ in 0..1000 {
        let call = fixture.limiter.try_begin(Criticality::Critical).unwrap();
        fixture.advance(500);
        call.ended(0, false);
    }
    assert_eq!(
        fixture.limiter.snapshot().baseline,
        before.baseline,
        "refused connections are not a fast database"
    );
    for _ in 0..100 {
        let calls: Vec<_> =
            (0..4).map(|_| fixture.limiter.try_begin(Criticality::Critical).unwrap()).collect();
        fixture.advance(50_000);
        calls.into_iter().for_each(|call| call.ended(0, false));
    }
    assert_eq!(fixture.limit(), 4, "calls that were given up after a time are slow ones");
}

#[test]
fn what_matters_less_is_refused_earlier() {
    let fixture = Fixture::new(LimiterOptions { start: 10, ..LimiterOptions::default() });
    let mut held = Vec::new();
    for (criticality, up_to) in ALL.into_iter().zip([5, 8, 10]) {
        while let Ok(call) = fixture.limiter.try_begin(criticality) {
            held.push(call);
        }
        assert_eq!(held.len(), up_to, "{criticality:?}");
        let shed = fixture.limiter.try_begin(criticality).unwrap_err();
        assert_eq!(shed.reason, ShedReason::Limit);
        assert!(
            (Duration::from_secs(1)..Duration::from_secs(3)).contains(&shed.retry_after),
            "{shed:?}"
        );
    }
    let now = fixture.limiter.snapshot();
    assert_eq!(now.begun, ByCriticality { sheddable: 5, degradable: 3, critical: 2 });
    assert_eq!(now.shed, ByCriticality { sheddable: 2, degradable: 2, critical: 2 });
    drop(held.pop());
    assert!(
        fixture.limiter.try_begin(Criticality::Degradable).is_err(),
        "a place of the important ones"
    );
    assert!(fixture.limiter.try_begin(Criticality::Critical).is_ok());
}

#[test]
fn the_rate_is_a_net_under_a_wrong_baseline() {
    let options = LimiterOptions {
        start: 64,
        per_second: Some(1000.0),
        seed: 0,
        ..LimiterOptions::default()
    };
    let fixture = Fixture::new(options);
    let mut begun = 0;
    let mut refused = 0;
    // A call each 100 us, ended at once: ten times the rate.
    for _ in 0..100_000 {
        match fixture.limiter.try_begin(Criticality::Critical) {
            Ok(call) => {
                begun += 1;
                drop(call);
            }
            Err(shed) => {
                assert_eq!(shed.reason, ShedReason::Rate);
                refused += 1;
            }
        }
        fixture.advance(100);
    }
    assert!((10_000..=10_101).contains(&begun), "{begun} in ten seconds");
    assert_eq!(begun + refused, 100_000);
    assert!(
        fixture.limiter.try_begin(Criticality::Sheddable).is_err(),
        "it needs half of the bucket"
    );
    fixture.advance(60_000);
    assert!(fixture.limiter.try_begin(Criticality::Sheddable).is_ok());
}

#[test]
fn bounds_that_contradict_each_other_are_put_in_order() {
    for (start, min, max) in [(0, 0, 0), (100, 9, 3), (1, 5, 5)] {
        let fixture = Fixture::new(LimiterOptions {
            start,
            min,
            max,
            min_samples: 0,
            ..LimiterOptions::default()
        });
        for criticality in ALL {
            assert!(fixture.limiter.try_begin(criticality).is_ok(), "alone it may always begin");
        }
        (0..50).for_each(|n| fixture.round(1000 * (n % 7 + 1), 0));
        assert!((min.max(1)..=max.max(min).max(1)).contains(&fixture.limit()));
    }
}

#[derive(Debug, Clone, Copy)]
enum Move {
    Begin(Criticality),
    Ended(usize, usize, bool),
    Drop(usize),
    Pass(u64),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        6 => (0usize..3).prop_map(|n| Move::Begin(ALL[n])),
        4 => (any::<usize>(), 0usize..64, any::<bool>()).prop_map(|(n, units, good)| Move::Ended(n, units, good)),
        1 => any::<usize>().prop_map(Move::Drop),
        2 => (0u64..30_000).prop_map(Move::Pass),
        1 => (0u64..20_000_000).prop_map(Move::Pass),
    ];
    proptest::collection::vec(one, 1..600)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
    /// Never more calls in flight than the share, no slot lost, the limit within its bounds.
    #[test]
    fn no_order_of_calls_breaks_the_limit(
        moves in moves(), min in 1usize..8, more in 0usize..40, start in 0usize..64, samples in 1u32..12,
    ) {
        let options =
            LimiterOptions { start, min, max: min + more, min_samples: samples, ..LimiterOptions::default() };
        let fixture = Fixture::new(options);
        let mut held: Vec<InFlight> = Vec::new();
        for step in moves {
            match step {
                Move::Begin(criticality) => {
                    let limit = fixture.limit();
                    let may = ((limit as f64 * criticality.share()) as usize).max(1);
                    match fixture.limiter.try_begin(criticality) {
                        Ok(call) => {
                            held.push(call);
                            prop_assert!(held.len() <= may, "{} in flight, {may} may be", held.len());
                        }
                        Err(shed) => {
                            prop_assert!(held.len() >= may, "refused with {} of {may}", held.len());
                            prop_assert!(shed.retry_after >= Duration::from_secs(1));
                            prop_assert!(shed.retry_after < Duration::from_secs(3));
                        }
                    }
                }
                Move::Ended(n, units, good) if !held.is_empty() => held.swap_remove(n % held.len()).ended(units, good),
                Move::Drop(n) if !held.is_empty() => drop(held.swap_remove(n % held.len())),
                Move::Pass(us) => fixture.advance(us),
                Move::Ended(..) | Move::Drop(_) => {}
            }
            let now = fixture.limiter.snapshot();
            prop_assert_eq!(now.in_flight, held.len());
            prop_assert!((min..=min + more).contains(&now.limit), "{:?}", now);
        }
        drop(held);
        prop_assert_eq!(fixture.limiter.snapshot().in_flight, 0);
    }
}

/// On tokio's time, which stands still unless a test moves it.
fn waits(limit: usize) -> Arc<Limiter> {
    let began = tokio::time::Instant::now();
    let options = LimiterOptions {
        start: limit,
        min: limit,
        max: limit,
        seed: 7,
        ..LimiterOptions::default()
    };
    Limiter::new(options, Arc::new(move || began.elapsed()))
}

#[tokio::test(start_paused = true)]
async fn a_critical_call_waits_a_short_time_and_the_others_do_not() {
    let limiter = waits(2);
    let held = [
        limiter.begin(Criticality::Critical).await.unwrap(),
        limiter.begin(Criticality::Critical).await.unwrap(),
    ];
    let began = tokio::time::Instant::now();
    for criticality in [Criticality::Sheddable, Criticality::Degradable] {
        assert_eq!(limiter.begin(criticality).await.unwrap_err().reason, ShedReason::Limit);
    }
    assert!(began.elapsed().is_zero());
    assert_eq!(limiter.begin(Criticality::Critical).await.unwrap_err().reason, ShedReason::Limit);
    assert!((Duration::from_millis(20)..Duration::from_millis(22)).contains(&began.elapsed()));
    assert_eq!(limiter.snapshot().shed, ByCriticality { sheddable: 1, degradable: 1, critical: 1 });
    drop(held);
    assert_eq!((limiter.snapshot().in_flight, limiter.snapshot().waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_newest_comes_first_and_the_oldest_is_pushed_out() {
    let limiter = waits(4);
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(limiter.begin(Criticality::Critical).await.unwrap());
    }
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..6 {
        let (limiter, order) = (Arc::clone(&limiter), Arc::clone(&order));
        callers.spawn(async move {
            let call = limiter.begin(Criticality::Critical).await;
            order.lock().push((n, call.is_ok()));
            // Calls take a while, so that slots become free one by one.
            tokio::time::sleep(Duration::from_millis(1)).await;
        });
        tokio::task::yield_now().await;
    }
    assert_eq!(limiter.snapshot().waiting, 4, "as many as may be under way");
    held.truncate(1);
    tokio::time::sleep(Duration::from_millis(10)).await;
    held.clear();
    callers.join_all().await;
    let order = std::mem::take(&mut *order.lock());
    assert_eq!(order[..2], [(0, false), (1, false)], "pushed out");
    let mut first: Vec<_> = order[2..5].to_vec();
    first.sort_unstable();
    assert_eq!(first, [(3, true), (4, true), (5, true)], "three places, the three newest");
    assert_eq!(order[5], (2, true));
    assert_eq!((limiter.snapshot().in_flight, limiter.snapshot().waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_place_goes_past_who_was_cancelled() {
    let limiter = waits(1);
    let held = limiter.begin(Criticality::Critical).await.unwrap();
    let wait = |limiter: &Arc<Limiter>| {
        let limiter = Arc::clone(limiter);
        tokio::spawn(async move { limiter.begin(Criticality::Critical).await.map(drop) })
    };
    let cancelled = wait(&limiter);
    tokio::task::yield_now().await;
    assert_eq!(limiter.snapshot().waiting, 1);
    // The slot is being passed to it when it is cancelled.
    drop(held);
    cancelled.abort();
    assert!(cancelled.await.is_err());
    assert_eq!((limiter.snapshot().in_flight, limiter.snapshot().waiting), (0, 0));
    let held = limiter.try_begin(Criticality::Critical).unwrap();
    let cancelled = wait(&limiter);
    tokio::task::yield_now().await;
    cancelled.abort();
    assert!(cancelled.await.is_err());
    assert_eq!(limiter.snapshot().waiting, 0);
    drop(held);
    assert!(limiter.try_begin(Criticality::Critical).is_ok());
}

type Beginning = std::pin::Pin<Box<dyn Future<Output = Result<InFlight, LimitExceeded>>>>;

proptest! {
    /// Whichever callers wait and are cancelled: the limit holds, and at the end every slot is
    /// free.
    #[test]
    fn no_order_of_those_who_wait_loses_a_place(
        moves in proptest::collection::vec((0u8..6, any::<usize>()), 1..200), limit in 1usize..5,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async move {
            let limiter = waits(limit);
            let mut beginning: Vec<Beginning> = Vec::new();
            let mut held: Vec<InFlight> = Vec::new();
            for (step, n) in moves {
                match step {
                    0 | 1 => {
                        let limiter = Arc::clone(&limiter);
                        beginning.push(Box::pin(async move { limiter.begin(ALL[(n % 7).min(2)]).await }));
                    }
                    2 if !beginning.is_empty() => drop(beginning.swap_remove(n % beginning.len())),
                    3 if !held.is_empty() => held.swap_remove(n % held.len()).ended(n % 9, true),
                    4 => tokio::time::advance(Duration::from_millis(n as u64 % 30)).await,
                    _ if !beginning.is_empty() => {
                        let n = n % beginning.len();
                        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                        if let std::task::Poll::Ready(begun) = beginning[n].as_mut().poll(&mut context) {
                            drop(beginning.swap_remove(n));
                            held.extend(begun);
                        }
                    }
                    _ => {}
                }
                // Resets this task's cooperative budget, so that no poll is postponed.
                tokio::task::yield_now().await;
                let now = limiter.snapshot();
                assert!(held.len() <= now.in_flight && now.in_flight <= limit, "{now:?}, {} held", held.len());
                assert!(now.waiting <= limit && now.waiting <= beginning.len(), "{now:?}");
            }
            drop((beginning, held));
            assert_eq!((limiter.snapshot().in_flight, limiter.snapshot().waiting), (0, 0));
        });
    }
}
