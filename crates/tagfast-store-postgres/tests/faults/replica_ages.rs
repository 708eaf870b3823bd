//! Replicas that stop to follow in silence: no answer is older than it says, and none is older than
//! a replica may be without a mark.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tagfast_domain::ContentKey;
use tagfast_resilience::{Breakers, Clock, SystemClock};
use tagfast_store::{
    Consistency, REPAIR_PENDING, ReadOptions, Source, StoreError, TagReader, View,
};
use tagfast_store_postgres::{NullSink, PostgresOptions, PostgresStore};
use tagfast_testkit::stack::{Fault, NodeInfo};
use tagfast_testkit::wait_for_condition_async;

use crate::replica_faults::Stop;
#[cfg(feature = "full")]
use crate::replica_faults::{demote, reinitialize, superuser};
use crate::scenarios::{
    NODES, ONE_AT_A_TIME, SECOND, all_whole, fault, on_stack, primary, wait_all_healthy,
};
use crate::support;
use crate::writes::{key_of, put};

/// How old a replica may be by default: `store.replica_max_age_ms`.
const AGE_MAX: Duration = Duration::from_secs(3);

pub(crate) async fn replicas() -> Vec<NodeInfo> {
    on_stack(|stack| {
        let primary = stack.primary("c0").expect("a primary").name;
        let nodes = stack.info().clusters[0].nodes.iter();
        nodes.filter(|node| node.name != primary).cloned().collect()
    })
    .await
}

pub(crate) async fn eventual(store: &PostgresStore, key: &ContentKey) -> Result<View, StoreError> {
    let options = ReadOptions { consistency: Consistency::Eventual, ..ReadOptions::default() };
    store.view(key, &options).await
}

/// Forty contents are written after both replicas have stopped to receive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_stopped_streaming_do_not_answer_as_fresh() {
    let _turn = ONE_AT_A_TIME.lock().await;
    all_whole().await;
    let options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let store = support::open(options, Arc::new(NullSink)).await;
    put(&store, &key_of(0, "streaming"), "tag").await.expect("written");
    wait_for_condition_async("a replica to answer", 20 * SECOND, || async {
        let view = eventual(&store, &key_of(0, "streaming")).await.map_err(|e| e.to_string())?;
        let fresh = view.source == Source::Replica && view.tags.len() == 1 && !view.stale;
        if fresh { Ok(()) } else { Err(format!("{view:?}")) }
    })
    .await;
    let replicas = replicas().await;
    for node in &replicas {
        Stop::ReceiverAstray.begin(node).await;
    }
    let keys: Vec<ContentKey> = (0..40).map(|n| key_of(0, &format!("stopped-{n}"))).collect();
    for key in &keys {
        put(&store, key, "tag").await.expect("written");
    }
    let written = Instant::now();
    let old = wait_for_condition_async("the replicas to be too old", 2 * AGE_MAX, || async {
        if written.elapsed() > AGE_MAX { Ok(()) } else { Err("not yet") }
    });
    old.await;
    let mut unmarked = 0;
    for key in &keys {
        let view = eventual(&store, key).await.expect("a view");
        unmarked += usize::from(
            view.tags.is_empty()
                && !view.stale
                && !view.degraded.iter().any(|mark| *mark != REPAIR_PENDING),
        );
    }
    for node in &replicas {
        Stop::ReceiverAstray.end(node).await;
    }
    assert_eq!(unmarked, 0, "of 40 views lack a tag of seconds ago, and say nothing of it");
}

/// A content that was written, when that was acknowledged, and the answers about it.
struct Written {
    key: ContentKey,
    /// Unix ms.
    acknowledged: i64,
}

/// What was read while something was stopped.
#[derive(Debug, Default)]
struct Judged {
    answers: usize,
    of_replicas: usize,
    marked: usize,
    errors: Vec<String>,
}

/// Writes and reads, and holds every answer against what was acknowledged.
struct Judge {
    store: Arc<PostgresStore>,
    name: String,
    written: Vec<Written>,
    only_reads: bool,
}

impl Judge {
    fn new(store: &Arc<PostgresStore>, name: &str) -> Self {
        Self {
            store: Arc::clone(store),
            name: name.to_owned(),
            written: Vec::new(),
            only_reads: false,
        }
    }

    async fn write(&mut self) {
        let key = key_of(0, &format!("{}-{}", self.name, self.written.len()));
        if put(&self.store, &key, "tag").await.is_ok() {
            self.written.push(Written { key, acknowledged: SystemClock.now_ms() });
        }
    }

    /// Reads the last contents and some older ones.
    async fn read(&self, judged: &mut Judged) {
        let last = self.written.iter().rev().take(4);
        let older = self.written.iter().rev().skip(4).step_by(9).take(4);
        for written in last.chain(older) {
            let began = SystemClock.now_ms();
            match eventual(&self.store, &written.key).await {
                Ok(view) => self.check(written, began, &view, judged),
                Err(error) => judged.errors.push(error.to_string()),
            }
        }
    }

    fn check(&self, written: &Written, began: i64, view: &View, judged: &mut Judged) {
        let (what, key) = (&self.name, &written.key);
        let lacks = view.tags.is_empty() && view.as_of > written.acknowledged;
        let late = view.as_of - written.acknowledged;
        assert!(!lacks, "{what}: {key:?} was acknowledged {late} ms before `as_of`: {view:?}");
        // The repair of a failover, which a process that has just begun still looks for, is a mark
        // of its own: it says nothing about age.
        let marked = view.degraded.iter().any(|mark| *mark != REPAIR_PENDING);
        assert_eq!(marked, view.stale, "{what}: {view:?}");
        let age = began - view.as_of;
        assert!(marked || age <= AGE_MAX.as_millis() as i64, "{what}: {age} ms old: {view:?}");
        judged.answers += 1;
        judged.of_replicas += usize::from(view.source == Source::Replica);
        judged.marked += usize::from(marked);
    }

    /// Writes and reads until `done`; panics after `max`.
    async fn until(
        &mut self,
        what: &str,
        max: Duration,
        stop: Option<Stop>,
        mut done: impl FnMut(&[String], &Judged) -> bool,
    ) -> Judged {
        let (began, mut judged) = (Instant::now(), Judged::default());
        loop {
            if !self.only_reads {
                self.write().await;
            }
            self.read(&mut judged).await;
            if let Some(stop) = stop {
                stop.go_on().await;
            }
            let behind = self.behind();
            if done(&behind, &judged) {
                return judged;
            }
            let name = &self.name;
            assert!(began.elapsed() < max, "{name}: {what}: {behind:?}, {judged:?}");
        }
    }

    /// The sentences of the status about replicas of the broken cluster.
    fn behind(&self) -> Vec<String> {
        self.store.status().swap_remove(0).replicas_behind
    }
}

/// A replica that follows is read, and its answers are not marked.
fn is_whole(behind: &[String], judged: &Judged) -> bool {
    behind.is_empty() && judged.of_replicas > judged.marked
}

/// A process of its own.
async fn new_process(options: &PostgresOptions) -> Arc<PostgresStore> {
    let breakers = Breakers::new(Arc::new(SystemClock));
    support::open(PostgresOptions { breakers, ..options.clone() }, Arc::new(NullSink)).await
}

/// One way to stop replicas, on one or on both of them.
async fn stopped(options: &PostgresOptions, store: &Arc<PostgresStore>, stop: Stop, count: usize) {
    let nodes = replicas().await;
    let (broken, whole) = nodes.split_at(count);
    let mut judge = Judge::new(store, &format!("{stop:?}-{count}").to_lowercase());
    judge.until("replicas are read", 60 * SECOND, None, is_whole).await;
    for node in broken {
        stop.begin(node).await;
    }
    let named = |behind: &[String], _: &Judged| {
        broken.iter().all(|node| behind.iter().any(|text| text.contains(&node.name)))
            && behind.len() == broken.len()
    };
    judge.until("each is named", AGE_MAX + 5 * SECOND, Some(stop), named).await;
    let began = Instant::now();
    let enough = |_: &[String], _: &Judged| began.elapsed() > 2 * SECOND;
    let judged = judge.until("they are not read", 10 * SECOND, Some(stop), enough).await;
    // Unmarked only by the one that is whole: on a busy machine the primary may be late at times.
    let unmarked = judged.of_replicas - judged.marked;
    assert_eq!(unmarked > 0, !whole.is_empty(), "{}: {judged:?}", judge.name);
    assert!(judged.marked < judged.answers, "{}: the primary answers: {judged:?}", judge.name);
    // A process that begins now has never seen them whole.
    judge.store = new_process(options).await;
    let began = Instant::now();
    let enough = |_: &[String], _: &Judged| began.elapsed() > SECOND;
    judge.until("a new process judges them", 10 * SECOND, Some(stop), enough).await;
    judge.store = Arc::clone(store);
    for node in broken {
        stop.end(node).await;
    }
    judge.until("it is whole again", 60 * SECOND, None, is_whole).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_stops_a_replica_no_answer_is_older_than_it_says() {
    let _turn = ONE_AT_A_TIME.lock().await;
    all_whole().await;
    let options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let store = support::open(options.clone(), Arc::new(NullSink)).await;
    stopped(&options, &store, Stop::ReceiverFrozen, 2).await;
    stopped(&options, &store, Stop::ReplayPaused, 1).await;
    if !support::full() {
        return;
    }
    let others = [
        Stop::ReceiverAstray,
        Stop::ReplayPaused,
        Stop::SenderFrozen,
        Stop::ServerFrozen,
        Stop::Slow(600),
        Stop::Cut,
    ];
    for stop in others {
        stopped(&options, &store, stop, 2).await;
    }
    for stop in [Stop::ReceiverAstray, Stop::ReceiverFrozen, Stop::ServerFrozen, Stop::Slow(600)] {
        stopped(&options, &store, stop, 1).await;
    }
}

/// One replica does not replay; then the primary dies, and every Patroni stands still, so that no
/// other one is chosen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_primary_the_newest_replica_answers_and_says_how_old_it_is() {
    let _turn = ONE_AT_A_TIME.lock().await;
    all_whole().await;
    let options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let store = support::open(options.clone(), Arc::new(NullSink)).await;
    let mut judge = Judge::new(&store, "newest");
    judge.until("replicas are read", 60 * SECOND, None, is_whole).await;
    let nodes = replicas().await;
    Stop::ReplayPaused.begin(&nodes[0]).await;
    let named = |behind: &[String], _: &Judged| behind.len() == 1;
    judge.until("one is behind", AGE_MAX + 5 * SECOND, None, named).await;
    let (last, written) = (judge.written.len() - 1, judge.written.len());
    // The other one has everything.
    wait_for_condition_async("the last write to be on the other replica", 10 * SECOND, || async {
        let view = eventual(&store, &judge.written[last].key).await.map_err(|e| e.to_string())?;
        let there = view.source == Source::Replica && view.tags.len() == 1;
        if there { Ok(()) } else { Err(format!("{view:?}")) }
    })
    .await;
    let primary = primary().await.name;
    for node in NODES {
        fault(Fault::FreezePatroni, node).await;
    }
    fault(Fault::Kill, &primary).await;
    let died = Instant::now();

    // Everything is answered by the newest replica, at first unmarked, then marked; while it is
    // ejected, because it was slow for a moment, by the other one, and marked.
    let (mut unmarked, mut marked) = (0, 0);
    while marked < 200 && died.elapsed() < AGE_MAX + 5 * SECOND {
        for content in judge.written.iter().rev().take(5) {
            let (began, mut judged) = (SystemClock.now_ms(), Judged::default());
            let Ok(view) = eventual(&store, &content.key).await else { continue };
            judge.check(content, began, &view, &mut judged);
            assert_eq!(judged.of_replicas, 1, "a replica: {view:?}");
            if view.tags.is_empty() {
                assert_eq!(judged.marked, 1, "it lacks the write: {view:?}");
                continue;
            }
            (unmarked, marked) = (unmarked + 1 - judged.marked, marked + judged.marked);
        }
    }
    assert!(unmarked > 0 && marked >= 200, "{unmarked} unmarked, {marked} marked");
    let key = &judge.written[last].key;
    let within = |max| ReadOptions {
        consistency: Consistency::Eventual,
        max_stale: Some(max),
        ..ReadOptions::default()
    };
    for max in [Duration::ZERO, SECOND] {
        let refused = store.view(key, &within(max)).await;
        assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{max:?}: {refused:?}");
    }
    assert!(store.view(key, &within(600 * SECOND)).await.expect("a view").stale);
    let strong = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    assert!(store.view(key, &strong).await.is_err(), "never by a replica");

    // A process that begins now has never seen the primary: nothing proves the age of any replica.
    let breakers = Breakers::new(Arc::new(SystemClock));
    let new = PostgresStore::open(PostgresOptions { breakers, ..options }, Arc::new(NullSink));
    let new = new.expect("it opens");
    let view = wait_for_condition_async("an answer", 10 * SECOND, || async {
        eventual(&new, key).await.map_err(|error| error.to_string())
    })
    .await;
    let marks = view.degraded.iter().filter(|mark| **mark != REPAIR_PENDING);
    let reasons: Vec<_> = marks.map(|d| (d.feature, d.reason)).collect();
    assert_eq!((view.stale, &reasons[..]), (true, &[("replica", "unproven")][..]), "{view:?}");
    assert!(view.as_of < judge.written[0].acknowledged, "before what it may lack: {view:?}");
    drop(new);

    for node in NODES {
        fault(Fault::Thaw, node).await;
    }
    Stop::ReplayPaused.end(&nodes[0]).await;
    wait_all_healthy().await;
    judge.until("all are whole again", 60 * SECOND, None, is_whole).await;
    assert!(judge.written.len() > written, "it takes writes again");
}

/// A replica is promoted by hand and comes back in recovery: its log has left the cluster's, at
/// positions that the cluster's log has reached since.
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_on_a_dead_timeline_is_named_and_never_believed() {
    let _turn = ONE_AT_A_TIME.lock().await;
    all_whole().await;
    let options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let store = support::open(options, Arc::new(NullSink)).await;
    let mut judge = Judge::new(&store, "dead");
    judge.until("replicas are read", 60 * SECOND, None, is_whole).await;
    let node = replicas().await.swap_remove(0);
    // As in maintenance mode.
    fault(Fault::FreezePatroni, &node.name).await;
    superuser(&node, &["SELECT pg_promote()"]).await;
    let promoted = |behind: &[String], _: &Judged| {
        behind.iter().any(|text| text.contains(&node.name) && text.contains("not in recovery"))
    };
    judge.until("it is named as promoted", AGE_MAX + 5 * SECOND, None, promoted).await;
    demote(&node).await;
    let dead = |behind: &[String], _: &Judged| -> bool {
        behind.iter().any(|text| text.contains(&node.name) && text.contains("timeline"))
    };
    judge.until("its timeline is named", 30 * SECOND, None, dead).await;
    let began = Instant::now();
    let enough = |_: &[String], judged: &Judged| {
        began.elapsed() > 3 * SECOND && judged.of_replicas > judged.marked
    };
    judge.until("the other one is read", 20 * SECOND, None, enough).await;
    // Its Patroni finds nothing to do: the server runs in recovery. An operator has to ask for it.
    fault(Fault::Thaw, &node.name).await;
    let began = Instant::now();
    let stays = |behind: &[String], judged: &Judged| {
        assert!(dead(behind, judged), "{behind:?}");
        began.elapsed() > 3 * SECOND
    };
    judge.until("it stays named", 20 * SECOND, None, stays).await;
    reinitialize(&node).await;
    judge.until("it is whole again", 90 * SECOND, None, is_whole).await;
    wait_all_healthy().await;
}

/// etcd and one replica stand still: nothing proves that the primary leads, so that nothing proves
/// how old the other replica is. Its answers are marked, and no caller waits for the primary's.
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_leadership_is_not_proven_replicas_answer_at_once_and_marked() {
    let _turn = ONE_AT_A_TIME.lock().await;
    all_whole().await;
    let options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let store = support::open(options, Arc::new(NullSink)).await;
    let mut judge = Judge::new(&store, "unproven");
    judge.until("replicas are read", 60 * SECOND, None, is_whole).await;
    let node = replicas().await.swap_remove(0);
    Stop::ServerFrozen.begin(&node).await;
    fault(Fault::Freeze, "etcd").await;
    let began = Instant::now();
    judge.only_reads = true;
    let marked = |_: &[String], judged: &Judged| judged.marked > 0;
    // The lease runs out first.
    judge.until("answers are marked", 30 * SECOND, None, marked).await;
    let unproven = began.elapsed();
    let times = async {
        let mut times = Vec::new();
        for content in judge.written.iter().cycle().take(50) {
            let (began, mut judged) = (Instant::now(), Judged::default());
            let at = SystemClock.now_ms();
            let view = eventual(&store, &content.key).await.expect("a view");
            judge.check(content, at, &view, &mut judged);
            times.push((began.elapsed(), view.stale));
        }
        times
    };
    let mut times = times.await;
    fault(Fault::Thaw, "etcd").await;
    Stop::ServerFrozen.end(&node).await;
    times.sort_unstable();
    let (median, marked) = (times[25].0, times.iter().filter(|(_, stale)| *stale).count());
    assert!(marked > 40, "{marked} of 50 are marked, {unproven:?} after the faults");
    // The primary's answer would be waited for for a second.
    assert!(median < SECOND / 2, "{median:?}");
    judge.only_reads = false;
    judge.until("it is whole again", 60 * SECOND, None, is_whole).await;
}
