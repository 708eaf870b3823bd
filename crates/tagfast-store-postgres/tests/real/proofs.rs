//! What a view proves: every write below its xmin is in it, none beyond its position is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_domain::{ContentKey, EpochId, Limits, Operation, Tag};
use tagfast_resilience::{Clock, SystemClock};
use tagfast_sharding::LogicalShard;
use tagfast_store::{
    Consistency, History, ReadOptions, Source, TagReader, TagWriter, View, WriteRequest,
};
use tagfast_store_postgres::{NullSink, PostgresStore};
use tagfast_testkit::wait_for_condition_async;

use crate::support;
use crate::writes::{key_of, put, request};

const CONTENTS: usize = 8;
const WRITERS: usize = 4;
const TEST_TIMEOUT: Duration = Duration::from_secs(120);

/// What the clients saw of one content: acknowledged writes (xid, version) and views (source, xmin,
/// highest xid, version).
#[derive(Default)]
struct Seen {
    writes: Vec<(u64, u64)>,
    views: Vec<(&'static str, u64, u64, u64)>,
}

/// By the source of the view: how often a write lay below its xmin, and how often it was missing;
/// how often one lay beyond, and how often it was included.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cases {
    proven: u64,
    wrong: u64,
    beyond: u64,
    too_new: u64,
}

fn check(seen: &Seen, cases: &mut BTreeMap<&'static str, Cases>) {
    let mut writes = seen.writes.clone();
    writes.sort_unstable();
    for (place, xmin, highest, version) in &seen.views {
        let of = cases.entry(place).or_default();
        // The last write below is the one most likely to be missing, the first one beyond the one
        // most likely to be included.
        let below = &writes[..writes.partition_point(|(xid, _)| xid < xmin)];
        if let Some(newest) = below.iter().map(|(_, version)| *version).max() {
            of.proven += 1;
            of.wrong += u64::from(*version < newest);
        }
        let beyond = &writes[writes.partition_point(|(xid, _)| xid <= highest)..];
        if let Some(oldest) = beyond.iter().map(|(_, version)| *version).min() {
            of.beyond += 1;
            of.too_new += u64::from(*version >= oldest);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
async fn a_view_contains_every_write_below_its_xmin() {
    let options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    // Like two processes: their lanes write the same contents.
    let stores = [
        support::open(options.clone(), Arc::new(NullSink)).await,
        support::open(options, Arc::new(NullSink)).await,
    ];
    let keys: Arc<Vec<ContentKey>> =
        Arc::new((0..CONTENTS).map(|n| key_of(0, &format!("hot-{n}"))).collect());
    let seen: Arc<Vec<Mutex<Seen>>> = Arc::new((0..CONTENTS).map(|_| Mutex::default()).collect());
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for writer in 0..WRITERS {
        let (store, keys, seen, stop) =
            (Arc::clone(&stores[writer % 2]), keys.clone(), seen.clone(), stop.clone());
        tasks.push(tokio::spawn(async move {
            for round in 0.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let content = (round * 7 + writer) % CONTENTS;
                let answer = store.write(swap(&keys[content], writer, round)).await;
                let answer = answer.expect("written");
                let mut seen = seen[content].lock();
                if let Some(view) = &answer.view {
                    seen.writes.push((answer.receipt.position.xid, answer.version.packed()));
                    seen.views.push(("write", view.xmin, view.position.xid, view.version.packed()));
                }
            }
        }));
    }
    for (reader, consistency) in
        [Consistency::Strong, Consistency::Eventual, Consistency::Session].into_iter().enumerate()
    {
        let (store, keys, seen, stop) =
            (Arc::clone(&stores[reader % 2]), keys.clone(), seen.clone(), stop.clone());
        tasks.push(tokio::spawn(async move {
            for round in 0.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let content = round % CONTENTS;
                let options = ReadOptions { consistency, ..ReadOptions::default() };
                let view = store.view(&keys[content], &options).await.expect("read");
                let place = if view.source == Source::Primary { "primary" } else { "replica" };
                let fact = (place, view.xmin, view.position.xid, view.version.packed());
                seen[content].lock().views.push(fact);
            }
        }));
    }
    // The nodes' xmin is that of all their transactions, also of other tests: how soon it passes a
    // write is not this test's to say.
    let cases_min = if support::full() { 2_000 } else { 20 };
    let cases = wait_for_condition_async("enough cases", TEST_TIMEOUT, || async {
        let mut cases = BTreeMap::new();
        for seen in seen.iter() {
            check(&seen.lock(), &mut cases);
        }
        let enough =
            |place| cases.get(place).is_some_and(|c: &Cases| c.proven.min(c.beyond) >= cases_min);
        let all = ["primary", "replica", "write"].into_iter().all(enough);
        if all { Ok(cases) } else { Err(format!("{cases:?}")) }
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.expect("no panic");
    }
    println!("what views prove: {cases:?}");
    for (place, Cases { wrong, too_new, .. }) in cases {
        assert_eq!((wrong, too_new), (0, 0), "{place}");
    }
}

/// Adds a tag and removes the one that this writer added to this content before: every write
/// changes something, for as long as the test runs.
fn swap(key: &ContentKey, writer: usize, round: usize) -> WriteRequest {
    let tag = |round: usize| Tag::parse(&format!("w{writer}-{round}")).expect("a tag");
    let before = round.checked_sub(CONTENTS).map(|round| tag(round).name);
    let mut request = request(key, "unused");
    request.write.operation =
        Operation::patch(vec![tag(round)], before.into_iter().collect(), &Limits::default())
            .expect("a patch");
    request
}

/// A check that finds no fault proves nothing unless it can find one.
#[test]
fn the_check_finds_a_missing_write_and_one_too_many() {
    let views = vec![("a", 10, 20, 5), ("a", 12, 20, 5), ("a", 10, 12, 6)];
    let mut cases = BTreeMap::new();
    check(&Seen { writes: vec![(9, 5), (11, 6), (13, 7)], views }, &mut cases);
    assert_eq!(cases["a"], Cases { proven: 3, wrong: 1, beyond: 1, too_new: 0 });
    check(&Seen { writes: vec![(13, 6)], views: vec![("b", 10, 12, 6)] }, &mut cases);
    assert_eq!(cases["b"], Cases { proven: 0, wrong: 0, beyond: 1, too_new: 1 });
}

async fn strong(store: &PostgresStore, key: &ContentKey) -> View {
    let options = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    store.view(key, &options).await.expect("a strong read")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_returns_the_view_that_it_left() {
    let options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let store = support::open(options, Arc::new(NullSink)).await;
    let key = key_of(0, "left");
    let first = request(&key, "one");
    // In one batch, most likely: the same content twice.
    let answers = store.write_many(vec![first.clone(), request(&key, "two")]).await;
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.expect("written")).collect();
    for answer in &answers {
        let view = answer.view.as_ref().expect("it wrote");
        assert!(view.version >= answer.version, "the state after the group, or later");
        assert_eq!((view.source, view.position), (Source::Primary, answer.receipt.position));
        assert!(view.xmin > 0 && view.xmin <= view.position.xid, "{view:?}");
    }
    let (left, read) = (answers[1].view.clone().expect("it wrote"), strong(&store, &key).await);
    assert_eq!((left.version, &left.tags), (read.version, &read.tags));
    assert!(read.as_of >= left.as_of, "{} {}", read.as_of, left.as_of);

    // Nothing was written: no view is returned.
    let again = store.write(WriteRequest::new(first.write)).await.expect("repeated");
    assert_eq!((again.repeated, again.view), (true, None));
    let unchanged = put(&store, &key, "two").await.expect("unchanged");
    assert_eq!((unchanged.changed, unchanged.view), (false, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_has_the_current_epoch_and_no_unknown_one() {
    let options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let store = support::open(options, Arc::new(NullSink)).await;
    for cluster in [0, 1] {
        let key = key_of(cluster, "history");
        let shard = LogicalShard::of(&key);
        let epoch = put(&store, &key, "tag").await.expect("written").receipt.position.epoch;
        assert_eq!(store.current(shard), Some(epoch));
        assert_eq!(store.epoch_end(shard, epoch), Some(u64::MAX));
        assert_eq!(store.epoch_end(shard, EpochId([9; 16])), None, "it may be a newer one");
    }
}
