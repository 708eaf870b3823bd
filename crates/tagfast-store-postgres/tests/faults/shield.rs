//! Breakers and limits on real servers: what they protect, and what they do not touch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tagfast_domain::ContentKey;
use tagfast_resilience::{BreakerState, Breakers, Clock, Criticality, SystemClock};
use tagfast_store::{Consistency, ReadOptions, Source, StoreError, TagReader};
use tagfast_store_postgres::{NullSink, PostgresOptions, PostgresStore};
use tagfast_testkit::stack::Fault;
use tagfast_testkit::wait_for_condition_async;

use crate::scenarios::{NODES, ONE_AT_A_TIME, SECOND, all_whole, fault, primary};
use crate::support;
use crate::writes::{key_of, put};

/// How late a task may run on two busy processors in a debug build.
const SLACK: Duration = Duration::from_millis(100);
const MS: Duration = Duration::from_millis(1);
/// Why a read is refused while all that was lately heard of the nodes is that they were overloaded.
const OVERLOADED: &str = "there are more calls than the cluster carries (overloaded)";
/// Why a read is refused after nodes did not answer in time.
const NO_ANSWER: &str = "PostgreSQL does not finish statements in time (no_answer)";

struct Fixture {
    store: Arc<PostgresStore>,
    breakers: Arc<Breakers>,
    options: PostgresOptions,
}

impl Fixture {
    async fn new(change: impl FnOnce(&mut PostgresOptions)) -> Self {
        all_whole().await;
        let mut options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
        change(&mut options);
        let (store, breakers) = (
            support::open(options.clone(), Arc::new(NullSink)).await,
            Arc::clone(&options.breakers),
        );
        Self { store, breakers, options }
    }

    /// Contents that this process has written: a session reads them on the primary.
    async fn write_keys(&self, cluster: usize, many: usize) -> Vec<ContentKey> {
        let keys: Vec<ContentKey> =
            (0..many).map(|n| key_of(cluster, &format!("own-{n}"))).collect();
        for key in &keys {
            put(&self.store, key, "tag").await.expect("written");
        }
        keys
    }

    fn state(&self, role: &str) -> BreakerState {
        self.breakers.get(&format!("postgres/{role}")).expect("it exists").state()
    }

    /// When a breaker changed to a state, from `after` on; all in Unix ms.
    fn transitions(&self, role: &str, to: BreakerState, after: i64) -> Vec<i64> {
        let name = format!("postgres/{role}");
        let events = self.breakers.events();
        let of = events
            .iter()
            .filter(|e| e.transition.name == name && e.transition.to == to && e.at >= after);
        of.map(|e| e.at).collect()
    }

    async fn becomes(&self, role: &str, state: BreakerState, within: Duration) {
        wait_for_condition_async("the breaker turns", within, || async {
            let now = self.state(role);
            if now == state { Ok(()) } else { Err(format!("{role} is {now:?}")) }
        })
        .await;
    }
}

fn now_ms() -> i64 {
    SystemClock.now_ms()
}

/// One call.
#[derive(Debug, Clone, Copy)]
struct Call {
    began: Instant,
    took: Duration,
    /// In Unix ms.
    ended: i64,
    /// Where the answer came from; `None`: there was none.
    source: Option<Source>,
}

/// Calls at a fixed rate, whether earlier ones have ended or not.
struct Calls {
    stop: Arc<AtomicBool>,
    made: Arc<Mutex<Vec<Call>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Calls {
    fn start(
        store: &Arc<PostgresStore>,
        keys: Vec<ContentKey>,
        every: Duration,
        consistency: Consistency,
    ) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (store, stopped, calls) = (Arc::clone(store), Arc::clone(&stop), Arc::clone(&made));
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(every);
            let mut under_way = tokio::task::JoinSet::new();
            for n in 0.. {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                ticks.tick().await;
                let (store, calls, key) =
                    (Arc::clone(&store), Arc::clone(&calls), keys[n % keys.len()].clone());
                under_way.spawn(async move {
                    let began = Instant::now();
                    let options = ReadOptions { consistency, ..ReadOptions::default() };
                    let answer = store.view(&key, &options).await;
                    let call = Call {
                        began,
                        took: began.elapsed(),
                        ended: now_ms(),
                        source: answer.as_ref().ok().map(|view| view.source),
                    };
                    calls.lock().push(call);
                });
                while under_way.try_join_next().is_some() {}
            }
            while let Some(ended) = under_way.join_next().await {
                ended.expect("no call panics");
            }
        });
        Self { stop, made, task }
    }

    /// Waits until this many were answered.
    async fn warm(&self, answered: usize) {
        wait_for_condition_async("answers", 20 * SECOND, || async {
            let made = self.made.lock();
            let good = made.iter().filter(|call| call.source.is_some()).count();
            if good >= answered { Ok(()) } else { Err(format!("{good}")) }
        })
        .await;
    }

    async fn end(self) -> Vec<Call> {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.expect("no panic");
        std::mem::take(&mut self.made.lock())
    }
}

/// The 99th percentile of calls that began within these times.
fn p99(calls: &[Call], from: Instant, to: Instant) -> Duration {
    let mut took: Vec<Duration> = calls
        .iter()
        .filter(|call| call.began >= from && call.began < to)
        .map(|call| call.took)
        .collect();
    took.sort();
    took.get(took.len() * 99 / 100).copied().unwrap_or_default()
}

/// How long a breaker takes to notice that its node stands still.
const DETECTION_TIME: Duration = Duration::from_millis(250 + 50);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
async fn a_frozen_primary_opens_its_breaker_and_no_other() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let fixture = Fixture::new(|_| {}).await;
    let (own, other) = (fixture.write_keys(0, 100).await, fixture.write_keys(1, 100).await);
    let began = Instant::now();
    let calls = Calls::start(&fixture.store, own, MS, Consistency::Session);
    let others = Calls::start(&fixture.store, other, 5 * MS, Consistency::Session);
    calls.warm(2000).await;
    assert_eq!(
        fixture.transitions("c0/primary", BreakerState::Open, 0),
        Vec::<i64>::new(),
        "well before"
    );
    let node = primary().await.name;

    let frozen = Instant::now();
    fault(Fault::Freeze, &node).await;
    fixture.becomes("c0/primary", BreakerState::Open, 3 * SECOND).await;
    let opened = fixture.transitions("c0/primary", BreakerState::Open, 0)[0];
    tokio::time::sleep(2 * SECOND).await;
    let (thawed, thawed_at) = (now_ms(), Instant::now());
    fault(Fault::Thaw, &node).await;
    fixture.becomes("c0/primary", BreakerState::Closed, 10 * SECOND).await;
    let closed = fixture.transitions("c0/primary", BreakerState::Closed, thawed)[0];
    calls_settle().await;

    let (calls, others) = (calls.end().await, others.end().await);
    // The primary stopped after the last answer it gave before the breaker opened.
    let last = calls
        .iter()
        .filter(|c| c.source == Some(Source::Primary) && c.ended <= opened)
        .map(|c| c.ended)
        .max();
    let open_after = opened - last.expect("it answered before");
    let (before, during) = (p99(&others, began, frozen), p99(&others, frozen, thawed_at));
    let unanswered = calls.iter().filter(|c| c.source.is_none() && c.began > frozen).count();
    println!(
        "frozen primary: open {open_after} ms after the last answer, closed {} ms after the thaw; \
         c0 meanwhile: {unanswered} of {} without an answer, p99 {:?}; c1: p99 {during:?} (before \
         {before:?})",
        closed - thawed,
        calls.iter().filter(|c| c.began > frozen).count(),
        p99(&calls, frozen, thawed_at),
    );
    assert!(
        open_after <= (DETECTION_TIME + SLACK).as_millis() as i64,
        "open {open_after} ms after the last answer"
    );
    assert!(closed - thawed <= 2500, "closed {} ms after the thaw", closed - thawed);
    assert!(
        others.iter().all(|call| call.source.is_some()),
        "the other cluster answers everything"
    );
    assert!(
        during <= (before * 3 / 2).max(50 * MS),
        "p99 of the other cluster {during:?}, before {before:?}"
    );
    for role in ["c1/primary", "c1/replica"] {
        assert_eq!(fixture.transitions(role, BreakerState::Open, 0), Vec::<i64>::new(), "{role}");
    }
}

/// Lets running calls end.
async fn calls_settle() {
    tokio::time::sleep(200 * MS).await;
}

/// Our queries that run on the primary of c0, by the name of their sessions.
async fn active(client: &tokio_postgres::Client) -> BTreeMap<String, i64> {
    let query = "SELECT application_name, count(*) FROM pg_stat_activity
                 WHERE state = 'active' AND datname = current_database()
                 AND application_name IN ('tagfast-read', 'tagfast-strong') GROUP BY 1";
    client
        .query(query, &[])
        .await
        .expect("it answers")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
async fn callers_that_give_up_do_not_make_room() {
    const CONCURRENCY_MAX: i64 = 6;
    let _turn = ONE_AT_A_TIME.lock().await;
    let fixture = Fixture::new(|options| options.read_concurrency = CONCURRENCY_MAX as usize).await;
    let keys = fixture.write_keys(0, 50).await;
    // The breaker is forced closed: the limit must hold without it.
    fixture.breakers.get("postgres/c0/primary").expect("it exists").force(Some(false));
    let (watcher, driver) = support::session(0, &fixture.options.database).await;
    let (locker, other_driver) = support::session(0, &fixture.options.database).await;
    let stop = Arc::new(AtomicBool::new(false));
    let gave_up = Arc::new(AtomicU64::new(0));
    let mut clients = Vec::new();
    for n in 0..100 {
        let (store, stop, gave_up) =
            (Arc::clone(&fixture.store), Arc::clone(&stop), Arc::clone(&gave_up));
        let key = keys[n % keys.len()].clone();
        let consistency = if n % 10 == 0 { Consistency::Strong } else { Consistency::Session };
        clients.push(tokio::spawn(async move {
            let options = ReadOptions { consistency, ..ReadOptions::default() };
            while !stop.load(Ordering::SeqCst) {
                if tokio::time::timeout(50 * MS, store.view(&key, &options)).await.is_err() {
                    gave_up.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(5 * MS).await;
            }
        }));
    }
    // Every read waits behind the lock until PostgreSQL cancels it.
    let seconds = if support::full() { 20 } else { 3 };
    locker
        .batch_execute("BEGIN; LOCK TABLE content IN ACCESS EXCLUSIVE MODE")
        .await
        .expect("locked");
    let locked = Instant::now();
    let mut max: BTreeMap<String, i64> = BTreeMap::new();
    let mut polls = 0;
    while locked.elapsed() < seconds * SECOND {
        for (name, many) in active(&watcher).await {
            let known = max.entry(name).or_default();
            *known = many.max(*known);
        }
        polls += 1;
        // The session that holds the lock must not stand idle for a second.
        locker.batch_execute("SELECT 1").await.expect("it still holds it");
        tokio::time::sleep(10 * MS).await;
    }
    locker.batch_execute("COMMIT").await.expect("unlocked");
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.expect("no panic");
    }
    let gave_up = gave_up.load(Ordering::Relaxed);
    println!("{gave_up} callers gave up, at most {max:?} concurrent queries in {polls} polls");
    assert!(gave_up > 100 && polls > 20, "{gave_up} gave up, {polls} polls");
    assert_eq!(max["tagfast-read"], CONCURRENCY_MAX, "the limit was reached and not passed");
    assert!((1..=4).contains(&max["tagfast-strong"]), "{max:?}");
    driver.abort();
    other_driver.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
async fn one_slow_replica_is_not_waited_for() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let fixture = Fixture::new(|_| {}).await;
    let keys = fixture.write_keys(0, 100).await;
    let calls = Calls::start(&fixture.store, keys, 2 * MS, Consistency::Eventual);
    calls.warm(500).await;
    let primary = primary().await.name;
    let replica = NODES.into_iter().find(|n| *n != primary).expect("a replica");
    let before = Instant::now();
    tokio::time::sleep(SECOND).await;
    let slow = Instant::now();
    fault(Fault::Slow { ms: 250 }, replica).await;
    // The first burst waits 100 ms, then the replica is ejected.
    tokio::time::sleep(500 * MS).await;
    let known = Instant::now();
    tokio::time::sleep(SECOND * if support::full() { 20 } else { 3 }).await;
    let healed = Instant::now();
    fault(Fault::Heal, replica).await;
    let calls = calls.end().await;
    let (quiet, during) = (p99(&calls, before, slow), p99(&calls, known, healed));
    println!("one replica slow by 500 ms: p99 {during:?}, before {quiet:?}");
    assert!(calls.iter().all(|call| call.source.is_some()), "everything is answered");
    assert!(during <= quiet + 60 * MS, "p99 {during:?}, before {quiet:?}");
    let role = "postgres/c0/replica";
    let events: Vec<_> =
        fixture.breakers.events().into_iter().filter(|e| e.transition.name == role).collect();
    assert!(events.is_empty(), "the other replica is well: {events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
async fn all_nodes_slow_open_both_breakers_until_they_are_well() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let fixture = Fixture::new(|_| {}).await;
    let keys = fixture.write_keys(0, 100).await;
    // Reads of both roles: a half-open breaker needs calls to probe with.
    let of_primary = Calls::start(&fixture.store, keys.clone(), 8 * MS, Consistency::Session);
    let calls = Calls::start(&fixture.store, keys, 8 * MS, Consistency::Eventual);
    calls.warm(40).await;
    of_primary.warm(40).await;
    let (slow, slow_at) = (now_ms(), Instant::now());
    for node in NODES {
        fault(Fault::Slow { ms: 200 }, node).await;
    }
    for role in ["c0/primary", "c0/replica"] {
        wait_for_condition_async("the breaker opens", 15 * SECOND, || async {
            let opened = fixture.transitions(role, BreakerState::Open, slow);
            if opened.is_empty() {
                Err(format!("{role} is {:?}", fixture.state(role)))
            } else {
                Ok(())
            }
        })
        .await;
    }
    let opened = ["c0/primary", "c0/replica"]
        .map(|role| fixture.transitions(role, BreakerState::Open, slow)[0] - slow);
    let open_at = Instant::now();
    tokio::time::sleep(SECOND * if support::full() { 20 } else { 2 }).await;
    let (healed, healed_at) = (now_ms(), Instant::now());
    for node in NODES {
        fault(Fault::Heal, node).await;
    }
    for role in ["c0/primary", "c0/replica"] {
        fixture.becomes(role, BreakerState::Closed, 20 * SECOND).await;
    }
    let closed = ["c0/primary", "c0/replica"]
        .map(|role| fixture.transitions(role, BreakerState::Closed, slow));
    let well_at = Instant::now();
    tokio::time::sleep(SECOND).await;
    let well_until = Instant::now();
    let mut calls = calls.end().await;
    calls.extend(of_primary.end().await);
    let of = |from, to| calls.iter().filter(move |call| call.began >= from && call.began < to);
    let answered = |from, to| of(from, to).filter(|call| call.source.is_some()).count();
    println!(
        "all nodes slow by 400 ms: open after {opened:?} ms (primary, replicas), closed after \
         {:?} ms; p99 {:?} until then, {:?} while open, {} of {} answered",
        closed.clone().map(|at| at.last().map(|at| at - healed)),
        p99(&calls, slow_at, open_at),
        p99(&calls, open_at, healed_at),
        answered(open_at, healed_at),
        of(open_at, healed_at).count(),
    );
    assert!(opened.iter().all(|after| *after <= 2_000), "open after {opened:?} ms");
    for closed in closed {
        let first = closed.first().map(|at| at - healed);
        assert!(first.is_some_and(|after| after > 0), "closed while it was slow: {first:?}");
        assert!(
            first.is_some_and(|after| after <= 5000) && closed.len() <= 2,
            "{closed:?}, healed at {healed}"
        );
    }
    // Callers that are refused learn it soon.
    let slowest = of(open_at, healed_at).map(|call| call.took).max();
    assert!(slowest.is_some_and(|took| took <= 5 * SECOND + SLACK), "{slowest:?}");
    let well = (answered(well_at, well_until), of(well_at, well_until).count());
    assert!(well.0 * 100 >= well.1 * 99, "{} of {} answered after it", well.0, well.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_primarys_breaker_is_open_writes_are_held_and_reads_go_elsewhere() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let fixture = Fixture::new(|options| options.hold = 5 * SECOND).await;
    let key = fixture.write_keys(0, 1).await.remove(0);
    let breaker = fixture.breakers.get("postgres/c0/primary").expect("it exists");
    breaker.force(Some(true));
    let writing = put(&fixture.store, &key, "held");
    let meanwhile = async {
        let began = Instant::now();
        let session =
            fixture.store.view(&key, &ReadOptions::default()).await.expect("a replica answers");
        assert_eq!(session.source, Source::Replica);
        let strong = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
        let refused =
            fixture.store.view(&key, &strong).await.expect_err("no other node may answer");
        assert!(
            refused.is_retryable() && began.elapsed() < 2 * SECOND,
            "{refused} after {:?}",
            began.elapsed()
        );
        breaker.force(None);
        Instant::now()
    };
    let (written, released) = futures_util::future::join(writing, meanwhile).await;
    written.expect("held, not refused");
    assert!(released.elapsed() < SECOND, "it went on at once");

    // A hold that runs out before the breaker closes.
    breaker.force(Some(true));
    let began = Instant::now();
    let refused = put(&fixture.store, &key, "too long").await.expect_err("no node takes it");
    assert!(refused.is_retryable() && !refused.is_outcome_unknown(), "{refused}");
    assert!((4 * SECOND..6 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
}

/// The failures were those of a different node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_epoch_closes_the_primarys_breaker() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let fixture = Fixture::new(|_| {}).await;
    let key = fixture.write_keys(0, 1).await.remove(0);
    fault(Fault::Switchover, "c0").await;
    wait_for_condition_async("the breaker is reset", 30 * SECOND, || async {
        let reset = |e: &tagfast_resilience::BreakerEvent| {
            e.transition.name == "postgres/c0/primary" && e.transition.reason == "new_epoch"
        };
        if fixture.breakers.events().iter().any(reset) { Ok(()) } else { Err("not yet") }
    })
    .await;
    put(&fixture.store, &key, "later").await.expect("written in the new epoch");
    assert_eq!(fixture.state("c0/primary"), BreakerState::Closed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
async fn a_storm_is_answered_or_refused_and_the_nodes_do_not_notice() {
    const PER_SECOND: u32 = 100;
    let _turn = ONE_AT_A_TIME.lock().await;
    let fixture = Fixture::new(|options| options.reads_per_second = PER_SECOND).await;
    let keys = Arc::new(fixture.write_keys(0, 200).await);
    let queries = || {
        let of = |look: tagfast_resilience::LimiterSnapshot| {
            look.begun.sheddable + look.begun.degradable + look.begun.critical
        };
        fixture
            .store
            .limits()
            .into_iter()
            .map(|(name, look)| (name, of(look)))
            .collect::<BTreeMap<_, _>>()
    };
    let earlier = queries();
    let began = Instant::now();
    let rounds = if support::full() { 10 } else { 2 };
    let mut all = Vec::new();
    for _ in 0..rounds {
        let mut storm = tokio::task::JoinSet::new();
        for n in 0..10_000 {
            let (store, keys) = (Arc::clone(&fixture.store), Arc::clone(&keys));
            storm.spawn(async move {
                let criticality = match n % 4 {
                    0 => Criticality::Sheddable,
                    1 => Criticality::Degradable,
                    _ => Criticality::Critical,
                };
                let options = ReadOptions {
                    consistency: Consistency::Eventual,
                    criticality,
                    ..ReadOptions::default()
                };
                let called = Instant::now();
                let answer = store
                    .view(&keys[n % keys.len()], &options)
                    .await
                    .map(|view| view.version.packed());
                (criticality, answer, called.elapsed())
            });
        }
        all.extend(storm.join_all().await);
    }
    let lasted = began.elapsed();
    let mut answered: BTreeMap<Criticality, u32> = BTreeMap::new();
    for (criticality, answer, _) in &all {
        match answer {
            Ok(version) => {
                assert!(*version > 0, "an answer is the content");
                *answered.entry(*criticality).or_default() += 1;
            }
            // The second: all nodes were left out, by a breaker, because they are overloaded or
            // did not finish statements in time.
            Err(
                StoreError::Overloaded { retry_after, .. }
                | StoreError::Unavailable {
                    reason: OVERLOADED | NO_ANSWER,
                    outcome_unknown: false,
                    retry_after,
                    ..
                },
            ) => {
                assert!((SECOND..=3 * SECOND).contains(retry_after), "{retry_after:?}");
            }
            Err(other) => panic!("{other}"),
        }
    }
    let slowest = all.iter().map(|(_, _, took)| *took).max().expect("calls");
    println!(
        "a storm of {} views in {lasted:?}: answered {answered:?}, the slowest took {slowest:?}",
        all.len()
    );
    for (name, after) in queries() {
        let begun = after - earlier.get(&name).copied().unwrap_or(0);
        // A burst of a tenth of a second may begin at once.
        let may = f64::from(PER_SECOND) * (lasted.as_secs_f64() + 0.1) + 1.0;
        println!("  {name}: {begun} queries, {may:.0} may be");
        assert!(begun as f64 <= may, "{name}: {begun} queries in {lasted:?}");
    }
    assert!(answered.get(&Criticality::Critical).is_some_and(|many| *many >= 100), "{answered:?}");
    let sheddable = answered.get(&Criticality::Sheddable).copied().unwrap_or(0);
    assert!(
        sheddable < answered[&Criticality::Critical],
        "sheddable reads are shed first: {answered:?}"
    );
    // 20 ms for the limiter of a replica and of the primary, and the query; the rest is 10,000
    // tasks on two processors.
    assert!(slowest < 3 * SECOND, "{slowest:?}");
    let calm = fixture.store.view(&keys[0], &ReadOptions::default()).await;
    assert!(calm.is_ok() || calm.as_ref().is_err_and(StoreError::is_retryable), "{calm:?}");
}
