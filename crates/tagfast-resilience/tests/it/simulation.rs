//! A service with a cache in front of its database, clients that retry, and a cache that is lost
//! and comes back empty.
//!
//! The parts of the crate are the real ones, on tokio's paused time: limiter, breaker, flights,
//! retry budget, backoff. Modelled are the clients, the cache, the collecting of batches and the
//! database only. A seed gives the same run each time.
//!
//! What is true of real systems and decides here: the database works on when whoever asked has
//! given up, and its queue has no end.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tagfast_resilience::breaker::Now;
use tagfast_resilience::{
    Backoff, Breaker, BreakerOptions, BudgetOptions, Criticality, Flights, Limiter, LimiterOptions,
    RetryBudget,
};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};

// All of these are for a scale of 1; at another one there are so many times fewer of each, and the
// same share of each other.
/// Reads a second.
const READS: f64 = 8000.0;
/// Keys; how often one is read follows a Zipf distribution with that exponent.
const KEYS: usize = 100_000;
const ZIPF: f64 = 0.9;
/// Queries that the database works on at once.
const WORKERS: usize = 16;
/// Queries for one key that it answers a second.
const CAPACITY: f64 = 1000.0;
/// What a further key of a query costs, as a share of a query without any.
const KEY_COST: f64 = 0.23;
/// What a client waits for an answer, and the service for a query.
const TIMEOUT: Duration = Duration::from_millis(500);
/// A client tries again so often, after a short pause.
const RETRIES: Backoff = Backoff {
    retries: 2,
    base: Duration::from_millis(100),
    factor: 2,
    cap: Duration::from_secs(1),
};
/// Of the reads so many miss the cache even when it is well.
const MISSES: f64 = 0.01;
/// Keys of a batch, and how long one waits for others.
const BATCH: usize = 16;
const LINGER: Duration = Duration::from_millis(1);
/// The cache is lost and comes back empty.
pub(crate) const LOST: f64 = 5.0;
pub(crate) const BACK: f64 = 15.0;
/// Buckets a second of what is recorded.
pub(crate) const BUCKETS: usize = 10;

/// Which parts are on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts {
    pub(crate) limiter: bool,
    pub(crate) breaker: bool,
    pub(crate) single_flight: bool,
    pub(crate) batching: bool,
    pub(crate) budget: bool,
}

/// As the service ships.
pub(crate) const ALL: Parts =
    Parts { limiter: true, breaker: true, single_flight: true, batching: true, budget: true };
/// Timeouts and retries only.
pub(crate) const NONE: Parts =
    Parts { limiter: false, breaker: false, single_flight: false, batching: false, budget: false };

/// What is run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) parts: Parts,
    pub(crate) seed: u64,
    /// Virtual time.
    pub(crate) seconds: f64,
    /// 1, or so many times smaller: 2, 4, 8 or 16.
    pub(crate) scale: usize,
}

/// What happened in a tenth of a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Bucket {
    /// Reads that clients began.
    pub(crate) reads: u32,
    /// Those of them that were answered in the end, each attempt within its timeout.
    pub(crate) answered: u32,
    /// Work that was given to the database, in queries for one key.
    pub(crate) work: f64,
}

/// A run.
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

    /// Seconds it took.
    pub(crate) fn seconds(&self) -> usize {
        self.buckets.len() / BUCKETS
    }

    /// The share of the reads begun between two times, in seconds, that were answered.
    pub(crate) fn goodput(&self, from: f64, to: f64) -> f64 {
        let sum = |of: fn(&Bucket) -> u32| self.between(from, to).iter().map(of).sum::<u32>();
        f64::from(sum(|bucket| bucket.answered)) / f64::from(sum(|bucket| bucket.reads).max(1))
    }

    /// Work given to the database between two times, as a share of what it can do in that time.
    pub(crate) fn load(&self, from: f64, to: f64) -> f64 {
        self.between(from, to).iter().map(|bucket| bucket.work).sum::<f64>()
            / self.capacity
            / (to - from)
    }

    /// Seconds from the return of the cache until the goodput of every second is at least 99 % of
    /// that before; `None`: not within this run.
    pub(crate) fn recovery(&self) -> Option<f64> {
        let before = self.goodput(1.0, LOST);
        let end = self.seconds();
        let bad = (BACK as usize..end)
            .rev()
            .find(|at| self.goodput(*at as f64, *at as f64 + 1.0) < 0.99 * before);
        match bad {
            None => Some(0.0),
            Some(at) if at + 1 < end => Some(at as f64 + 1.0 - BACK),
            Some(_) => None,
        }
    }

    /// The most work of a second, as a share of what the database can do, from 100 ms after the
    /// loss on.
    pub(crate) fn peak(&self) -> f64 {
        let from = (LOST * BUCKETS as f64) as usize + 1;
        (from..=self.buckets.len() - BUCKETS)
            .map(|at| at as f64 / BUCKETS as f64)
            .map(|at| self.load(at, at + 1.0))
            .fold(0.0, f64::max)
    }
}

/// Numbers that look random; the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self) -> f64 {
        -(1.0 - self.next()).ln()
    }
}

#[derive(Default)]
struct Cache {
    up: bool,
    present: Vec<bool>,
}

/// Misses that one query will answer; `None` once it has begun.
type Batch = Arc<Mutex<Option<Vec<(usize, oneshot::Sender<bool>)>>>>;

struct World {
    began: Instant,
    plan: Plan,
    random: Mutex<Random>,
    cache: Mutex<Cache>,
    workers: Semaphore,
    limiter: Arc<Limiter>,
    breaker: Arc<Breaker>,
    flights: Arc<Flights<usize, bool>>,
    budget: Arc<RetryBudget>,
    /// The batch that the next miss joins.
    open: Mutex<Option<Batch>>,
    buckets: Mutex<Vec<Bucket>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    fn record(&self, at: Instant, write: impl FnOnce(&mut Bucket)) {
        let at = ((at - self.began).as_secs_f64() * BUCKETS as f64) as usize;
        let mut buckets = lock(&self.buckets);
        if buckets.len() <= at {
            buckets.resize(at + 1, Bucket::default());
        }
        write(&mut buckets[at]);
    }

    fn cached(&self, key: usize) -> bool {
        let cache = lock(&self.cache);
        cache.up && cache.present[key]
    }

    /// A read by a client: with its timeout and its retries.
    async fn client(self: Arc<Self>, key: usize) {
        let began = Instant::now();
        for attempt in 0.. {
            if timeout(TIMEOUT, self.serve(key)).await == Ok(true) {
                self.budget.succeeded();
                return self.record(began, |bucket| bucket.answered += 1);
            }
            let random = lock(&self.random).next();
            let Some(delay) = RETRIES.delay(attempt, random) else { return };
            if self.plan.parts.budget && !self.budget.try_spend() {
                return;
            }
            sleep(delay).await;
            if self.cached(key) {
                return self.record(began, |bucket| bucket.answered += 1);
            }
        }
    }

    /// A miss, answered by the service; `false` when it was refused or failed.
    async fn serve(self: &Arc<Self>, key: usize) -> bool {
        if !self.plan.parts.single_flight {
            return Arc::clone(self).load(key).await;
        }
        self.flights
            .fly(key, None, || Arc::clone(self).load(key))
            .await
            .is_ok_and(|flown| flown.value)
    }

    async fn load(self: Arc<Self>, key: usize) -> bool {
        let loaded =
            if self.plan.parts.batching { self.batched(key).await } else { self.query(|| 1).await };
        let mut cache = lock(&self.cache);
        if loaded && cache.up {
            cache.present[key] = true;
        }
        loaded
    }

    /// Collects misses into queries. A batch that waits for its place goes on collecting: what is
    /// short are queries, not keys.
    async fn batched(self: &Arc<Self>, key: usize) -> bool {
        let (sender, answer) = oneshot::channel();
        let (batch, first) = {
            let mut open = lock(&self.open);
            let waiting = open
                .take()
                .filter(|batch| lock(batch).as_ref().is_some_and(|keys| keys.len() < BATCH));
            let first = waiting.is_none();
            let batch = waiting.unwrap_or_else(|| Arc::new(Mutex::new(Some(Vec::new()))));
            if let Some(waiting) = lock(&batch).as_mut() {
                waiting.push((key, sender));
            }
            *open = Some(Arc::clone(&batch));
            (batch, first)
        };
        if first {
            let world = Arc::clone(self);
            tokio::spawn(async move {
                sleep(LINGER * world.plan.scale as u32).await;
                let mut misses = Vec::new();
                let take = || {
                    misses = lock(&batch).take().unwrap_or_default();
                    misses.len()
                };
                let answered = world.query(take).await;
                // Refused, it did not come to that.
                misses.extend(lock(&batch).take().unwrap_or_default());
                for (_, waits) in misses {
                    // Whoever gave up does not wait any more.
                    let _ = waits.send(answered);
                }
            });
        }
        answer.await.unwrap_or(false)
    }

    /// A query for as many keys as there are when breaker and limiter let it through; `false` when
    /// they do not, or it took too long. Whoever gives up does not end it: the database works
    /// on.
    async fn query(self: &Arc<Self>, keys: impl FnOnce() -> usize) -> bool {
        let permit = match self.plan.parts.breaker.then(|| self.breaker.acquire()) {
            Some(Err(_)) => return false,
            Some(Ok(permit)) => Some(permit),
            None => None,
        };
        let in_flight = if self.plan.parts.limiter {
            match self.limiter.begin(Criticality::Critical).await {
                Ok(in_flight) => Some(in_flight),
                Err(_) => return false,
            }
        } else {
            None
        };
        let (world, keys) = (Arc::clone(self), keys());
        let (sender, answer) = oneshot::channel();
        tokio::spawn(async move {
            let mut work = Box::pin(world.work(keys));
            let in_time = timeout(TIMEOUT, &mut work).await.is_ok();
            if let Some(permit) = permit {
                if in_time { permit.ok() } else { permit.failed() }
            }
            // Whoever gave up does not wait any more.
            if in_time {
                let _ = sender.send(true);
            } else {
                work.await;
                // Late, but it was read: a flight of its own still fills the cache.
                let _ = sender.send(world.plan.parts.single_flight);
            }
            if let Some(in_flight) = in_flight {
                in_flight.ended(keys, in_time);
            }
        });
        answer.await.unwrap_or(false)
    }

    /// The database: a queue in front of its workers.
    async fn work(&self, keys: usize) {
        let cost = (1.0 + KEY_COST * keys as f64) / (1.0 + KEY_COST);
        self.record(Instant::now(), |bucket| bucket.work += cost);
        let _worker = self.workers.acquire().await;
        let noise = 0.5 + 0.5 * lock(&self.random).exponential();
        sleep(Duration::from_secs_f64(WORKERS as f64 / CAPACITY * cost * noise)).await;
    }

    /// Clients that come by chance, from the beginning to the end.
    async fn clients(self: Arc<Self>) {
        let Plan { seed, seconds, scale, .. } = self.plan;
        let mut random = Random(seed);
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
                next += random.exponential() / READS * scale as f64;
                let weight = random.next() * weights[weights.len() - 1];
                let key = weights.partition_point(|upto| *upto < weight);
                let hit = random.next() >= MISSES && self.cached(key);
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
        let mut cache = lock(&self.cache);
        if ms == (LOST * 1000.0) as u64 {
            cache.up = false;
            cache.present.fill(false);
        }
        if ms == (BACK * 1000.0) as u64 {
            cache.up = true;
        }
    }
}

/// Runs it: no real time passes.
pub(crate) fn run(plan: Plan) -> Run {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let began = Instant::now();
        let now: Now = Arc::new(move || began.elapsed());
        let (seed, scale) = (plan.seed, plan.scale);
        // As for the nodes of the database.
        let slow_after = Duration::from_millis(250);
        let breaker = BreakerOptions {
            slow_after,
            open_cap: Duration::from_secs(2),
            ..BreakerOptions::default()
        };
        let limiter = LimiterOptions::default();
        let (start, least, most) =
            (limiter.start / scale, (limiter.least / scale).max(1), limiter.most / scale);
        let limiter = LimiterOptions { start, least, most, seed: seed + 1, ..limiter };
        let world = Arc::new(World {
            began,
            plan,
            random: Mutex::new(Random(!seed)),
            cache: Mutex::new(Cache { up: true, present: vec![true; KEYS / scale] }),
            workers: Semaphore::new(WORKERS / scale),
            limiter: Limiter::new(limiter, Arc::clone(&now)),
            breaker: Breaker::new("database", breaker, now, Arc::new(|_| {}), seed + 1),
            flights: Flights::new(),
            budget: RetryBudget::new(BudgetOptions::default()),
            open: Mutex::default(),
            buckets: Mutex::default(),
        });
        Arc::clone(&world).clients().await;
        // What was begun may still be answered; it counts where it began.
        sleep(TIMEOUT * 4).await;
        let mut buckets = std::mem::take(&mut *lock(&world.buckets));
        buckets.truncate((plan.seconds * BUCKETS as f64) as usize);
        Run { buckets, capacity: CAPACITY / scale as f64 }
    })
}

/// Runs them all, on as many threads as there are processors.
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
                    *lock(&runs[at]) = Some(run(*plan));
                }
            });
        }
    });
    runs.into_iter().map(|run| lock(&run).take().expect("run")).collect()
}
