//! A service with a cache in front of its database, clients that retry, and a cache that is lost
//! and comes back empty.
//!
//! Limiter, breaker, single-flight and backoff are the real ones, on tokio's paused time. The
//! clients with their retry budget, the cache, the batching and the database are modelled. A run is
//! repeatable by its seed.
//!
//! Two facts of real systems decide here: the database keeps working for callers that gave up, and
//! its queue is unbounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_resilience::breaker::Now;
use tagfast_resilience::{
    Backoff, Breaker, BreakerOptions, Criticality, Limiter, LimiterOptions, SingleFlight,
};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::retry_budget::{BudgetOptions, RetryBudget};

// All constants are for scale 1; at scale n there are n times fewer of each, in the same
// proportion.
/// Reads per second.
const READS: f64 = 8000.0;
/// Number of keys; reads follow a Zipf distribution with exponent `ZIPF`.
const KEYS: usize = 100_000;
const ZIPF: f64 = 0.9;
/// Queries that the database executes concurrently.
const WORKERS: usize = 16;
/// Single-key queries that the database answers per second.
const CAPACITY: f64 = 1000.0;
/// Cost of an additional key of a query, relative to a query without any.
const KEY_COST: f64 = 0.23;
/// Timeout of a client's attempt, and of the service's query.
const TIMEOUT: Duration = Duration::from_millis(500);
/// Retries of a client.
const RETRIES: Backoff = Backoff {
    retries: 2,
    base: Duration::from_millis(100),
    factor: 2,
    cap: Duration::from_secs(1),
};
/// Share of reads that miss a healthy cache.
const MISSES: f64 = 0.01;
/// Maximum keys of a batch, and how long a batch collects keys.
const BATCH: usize = 16;
const LINGER: Duration = Duration::from_millis(1);
/// When the cache is lost and when it returns empty, in seconds.
pub(crate) const LOST_AT: f64 = 5.0;
pub(crate) const RESTORED_AT: f64 = 15.0;
/// Recorded buckets per second.
pub(crate) const BUCKETS: usize = 10;

/// The mechanisms that are enabled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Protections {
    pub(crate) limiter: bool,
    pub(crate) breaker: bool,
    pub(crate) single_flight: bool,
    pub(crate) batching: bool,
    pub(crate) budget: bool,
}

/// As shipped, with clients that have a retry budget.
pub(crate) const ALL: Protections =
    Protections { limiter: true, breaker: true, single_flight: true, batching: true, budget: true };
/// Timeouts and retries only.
pub(crate) const NONE: Protections = Protections {
    limiter: false,
    breaker: false,
    single_flight: false,
    batching: false,
    budget: false,
};

/// The plan of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) protections: Protections,
    pub(crate) seed: u64,
    /// Length of the run in virtual time.
    pub(crate) seconds: f64,
    /// The divisor of all constants: 1, 2, 4, 8 or 16.
    pub(crate) scale: usize,
}

/// The counts of one bucket (0.1 s).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Bucket {
    /// Reads started by clients.
    pub(crate) reads: u32,
    /// Reads of these that succeeded, each attempt within its timeout.
    pub(crate) answered: u32,
    /// Work submitted to the database, in single-key queries.
    pub(crate) work: f64,
}

/// The record of a run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Run {
    buckets: Vec<Bucket>,
    capacity: f64,
}

impl Run {
    fn between(&self, from: f64, to: f64) -> &[Bucket] {
        let index = |at: f64| ((at * BUCKETS as f64).round() as usize).min(self.buckets.len());
        &self.buckets[index(from)..index(to)]
    }

    /// Duration in seconds.
    pub(crate) fn seconds(&self) -> usize {
        self.buckets.len() / BUCKETS
    }

    /// Goodput: the share of the reads started between two times (in seconds) that succeeded.
    pub(crate) fn goodput(&self, from: f64, to: f64) -> f64 {
        let sum = |of: fn(&Bucket) -> u32| self.between(from, to).iter().map(of).sum::<u32>();
        f64::from(sum(|bucket| bucket.answered)) / f64::from(sum(|bucket| bucket.reads).max(1))
    }

    /// Work submitted to the database between two times, relative to its capacity.
    pub(crate) fn load(&self, from: f64, to: f64) -> f64 {
        self.between(from, to).iter().map(|bucket| bucket.work).sum::<f64>()
            / self.capacity
            / (to - from)
    }

    /// Recovery time in seconds: from the return of the cache until the goodput of every second is
    /// at least 99 % of that before; `None`: not within this run.
    pub(crate) fn recovery(&self) -> Option<f64> {
        let before = self.goodput(1.0, LOST_AT);
        let end = self.seconds();
        let bad = (RESTORED_AT as usize..end)
            .rev()
            .find(|at| self.goodput(*at as f64, *at as f64 + 1.0) < 0.99 * before);
        match bad {
            None => Some(0.0),
            Some(at) if at + 1 < end => Some(at as f64 + 1.0 - RESTORED_AT),
            Some(_) => None,
        }
    }

    /// Peak load of a second, relative to the database's capacity, from 100 ms after the loss.
    pub(crate) fn peak(&self) -> f64 {
        let from = (LOST_AT * BUCKETS as f64) as usize + 1;
        (from..=self.buckets.len() - BUCKETS)
            .map(|at| at as f64 / BUCKETS as f64)
            .map(|at| self.load(at, at + 1.0))
            .fold(0.0, f64::max)
    }
}

/// An exponentially distributed number with mean 1.
fn exponential(rng: &mut fastrand::Rng) -> f64 {
    -(1.0 - rng.f64()).ln()
}

#[derive(Default)]
struct Cache {
    up: bool,
    present: Vec<bool>,
}

/// Misses that one query will answer; `None` once the query has started.
type Batch = Arc<Mutex<Option<Vec<(usize, oneshot::Sender<bool>)>>>>;

struct Simulation {
    began: Instant,
    plan: Plan,
    rng: Mutex<fastrand::Rng>,
    cache: Mutex<Cache>,
    workers: Semaphore,
    limiter: Arc<Limiter>,
    breaker: Arc<Breaker>,
    flights: Arc<SingleFlight<usize, bool>>,
    budget: Arc<RetryBudget>,
    /// The batch that the next miss joins.
    open: Mutex<Option<Batch>>,
    buckets: Mutex<Vec<Bucket>>,
}

impl Simulation {
    fn record(&self, at: Instant, write: impl FnOnce(&mut Bucket)) {
        let at = ((at - self.began).as_secs_f64() * BUCKETS as f64) as usize;
        let mut buckets = self.buckets.lock();
        if buckets.len() <= at {
            buckets.resize(at + 1, Bucket::default());
        }
        write(&mut buckets[at]);
    }

    fn cached(&self, key: usize) -> bool {
        let cache = self.cache.lock();
        cache.up && cache.present[key]
    }

    /// A read by a client, with its timeout and retries.
    async fn client(self: Arc<Self>, key: usize) {
        let began = Instant::now();
        for attempt in 0.. {
            if timeout(TIMEOUT, self.serve(key)).await == Ok(true) {
                self.budget.succeeded();
                return self.record(began, |bucket| bucket.answered += 1);
            }
            let random = self.rng.lock().f64();
            let Some(delay) = RETRIES.delay(attempt, random) else { return };
            if self.plan.protections.budget && !self.budget.try_withdraw() {
                return;
            }
            sleep(delay).await;
            if self.cached(key) {
                return self.record(began, |bucket| bucket.answered += 1);
            }
        }
    }

    /// A cache miss, answered by the service; `false` when it was refused or failed.
    async fn serve(self: &Arc<Self>, key: usize) -> bool {
        if !self.plan.protections.single_flight {
            return Arc::clone(self).load(key).await;
        }
        self.flights
            .run(key, None, || Arc::clone(self).load(key))
            .await
            .is_ok_and(|shared| shared.value)
    }

    async fn load(self: Arc<Self>, key: usize) -> bool {
        let loaded = if self.plan.protections.batching {
            self.batched(key).await
        } else {
            self.query(|| 1).await
        };
        let mut cache = self.cache.lock();
        if loaded && cache.up {
            cache.present[key] = true;
        }
        loaded
    }

    /// Batches misses into queries. A batch that waits for admission keeps collecting: queries are
    /// scarce, keys are not.
    async fn batched(self: &Arc<Self>, key: usize) -> bool {
        let (sender, answer) = oneshot::channel();
        let (batch, first) = {
            let mut open = self.open.lock();
            let waiting = open
                .take()
                .filter(|batch| batch.lock().as_ref().is_some_and(|keys| keys.len() < BATCH));
            let first = waiting.is_none();
            let batch = waiting.unwrap_or_else(|| Arc::new(Mutex::new(Some(Vec::new()))));
            if let Some(waiting) = batch.lock().as_mut() {
                waiting.push((key, sender));
            }
            *open = Some(Arc::clone(&batch));
            (batch, first)
        };
        if first {
            let simulation = Arc::clone(self);
            tokio::spawn(async move {
                sleep(LINGER * simulation.plan.scale as u32).await;
                let mut misses = Vec::new();
                let take = || {
                    misses = batch.lock().take().unwrap_or_default();
                    misses.len()
                };
                let answered = simulation.query(take).await;
                // The query was refused before it took the batch.
                misses.extend(batch.lock().take().unwrap_or_default());
                for (_, waits) in misses {
                    // A caller that gave up does not wait any more.
                    let _ = waits.send(answered);
                }
            });
        }
        answer.await.unwrap_or(false)
    }

    /// A query for all keys collected when breaker and limiter admit it; `false` when they refuse
    /// or the query timed out. A caller that gives up does not end the query.
    async fn query(self: &Arc<Self>, keys: impl FnOnce() -> usize) -> bool {
        let permit = match self.plan.protections.breaker.then(|| self.breaker.acquire()) {
            Some(Err(_)) => return false,
            Some(Ok(permit)) => Some(permit),
            None => None,
        };
        let in_flight = if self.plan.protections.limiter {
            match self.limiter.begin(Criticality::Critical).await {
                Ok(in_flight) => Some(in_flight),
                Err(_) => return false,
            }
        } else {
            None
        };
        let (simulation, keys) = (Arc::clone(self), keys());
        let (sender, answer) = oneshot::channel();
        tokio::spawn(async move {
            let mut work = Box::pin(simulation.work(keys));
            let in_time = timeout(TIMEOUT, &mut work).await.is_ok();
            if let Some(permit) = permit {
                if in_time { permit.ok() } else { permit.failed() }
            }
            // A caller that gave up does not wait any more.
            if in_time {
                let _ = sender.send(true);
            } else {
                work.await;
                // Late, but read: the result still fills the cache.
                let _ = sender.send(simulation.plan.protections.single_flight);
            }
            if let Some(in_flight) = in_flight {
                in_flight.ended(keys, in_time);
            }
        });
        answer.await.unwrap_or(false)
    }

    /// The database: an unbounded queue in front of its workers.
    async fn work(&self, keys: usize) {
        let cost = (1.0 + KEY_COST * keys as f64) / (1.0 + KEY_COST);
        self.record(Instant::now(), |bucket| bucket.work += cost);
        let _worker = self.workers.acquire().await;
        let noise = 0.5 + 0.5 * exponential(&mut self.rng.lock());
        sleep(Duration::from_secs_f64(WORKERS as f64 / CAPACITY * cost * noise)).await;
    }

    /// Clients that arrive at random times, from start to end.
    async fn clients(self: Arc<Self>) {
        let Plan { seed, seconds, scale, .. } = self.plan;
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut sum = 0.0;
        let upto = |rank: usize| {
            sum += (rank as f64).powf(-ZIPF);
            sum
        };
        let weights: Vec<f64> = (1..=KEYS / scale).map(upto).collect();
        let mut next = 0.0;
        for ms in 0..(seconds * 1000.0) as u64 {
            tokio::time::sleep_until(self.began + Duration::from_millis(ms)).await;
            self.trigger(ms);
            while next < (ms + 1) as f64 / 1000.0 {
                next += exponential(&mut rng) / READS * scale as f64;
                let weight = rng.f64() * weights[weights.len() - 1];
                let key = weights.partition_point(|upto| *upto < weight);
                let hit = rng.f64() >= MISSES && self.cached(key);
                self.record(Instant::now(), |bucket| {
                    bucket.reads += 1;
                    bucket.answered += u32::from(hit);
                });
                if hit {
                    self.budget.succeeded();
                } else {
                    tokio::spawn(Arc::clone(&self).client(key));
                }
            }
        }
    }

    fn trigger(&self, ms: u64) {
        let mut cache = self.cache.lock();
        if ms == (LOST_AT * 1000.0) as u64 {
            cache.up = false;
            cache.present.fill(false);
        }
        if ms == (RESTORED_AT * 1000.0) as u64 {
            cache.up = true;
        }
    }
}

/// Runs a plan in virtual time.
pub(crate) fn run(plan: Plan) -> Run {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let began = Instant::now();
        let now: Now = Arc::new(move || began.elapsed());
        let (seed, scale) = (plan.seed, plan.scale);
        // The options of the database nodes.
        let slow_after = Duration::from_millis(250);
        let breaker = BreakerOptions {
            slow_after,
            open_cap: Duration::from_secs(2),
            ..BreakerOptions::default()
        };
        let limiter = LimiterOptions::default();
        let (start, min, max) =
            (limiter.start / scale, (limiter.min / scale).max(1), limiter.max / scale);
        let limiter = LimiterOptions { start, min, max, seed: seed + 1, ..limiter };
        let simulation = Arc::new(Simulation {
            began,
            plan,
            rng: Mutex::new(fastrand::Rng::with_seed(!seed)),
            cache: Mutex::new(Cache { up: true, present: vec![true; KEYS / scale] }),
            workers: Semaphore::new(WORKERS / scale),
            limiter: Limiter::new(limiter, Arc::clone(&now)),
            breaker: Breaker::new("database", breaker, now, Arc::new(|_| {}), seed + 1),
            flights: SingleFlight::new(),
            budget: RetryBudget::new(BudgetOptions::default()),
            open: Mutex::default(),
            buckets: Mutex::default(),
        });
        Arc::clone(&simulation).clients().await;
        // Reads still in flight may succeed; they count where they started.
        sleep(TIMEOUT * 4).await;
        let mut buckets = std::mem::take(&mut *simulation.buckets.lock());
        buckets.truncate((plan.seconds * BUCKETS as f64) as usize);
        Run { buckets, capacity: CAPACITY / scale as f64 }
    })
}

/// Runs all plans, on one thread per processor.
pub(crate) fn run_all(plans: &[Plan]) -> Vec<Run> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let next = AtomicUsize::new(0);
    let runs: Vec<Mutex<Option<Run>>> = plans.iter().map(|_| Mutex::default()).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(plan) = plans.get(at) else { return };
                    *runs[at].lock() = Some(run(*plan));
                }
            });
        }
    });
    runs.into_iter().map(|run| run.lock().take().expect("run")).collect()
}
