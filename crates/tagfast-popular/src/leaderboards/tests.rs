//! Rankings that many callers want at once, errors, and the bounds of the cache.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use tagfast_resilience::BoxError;
use tokio::task::JoinSet;

use super::*;
use crate::leaderboard_snapshot::SnapshotBuilder;
use crate::port::Window;

/// Longest wait for something that must happen soon.
const SOON: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
#[error("the file is gone")]
struct Gone;

fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

/// A snapshot of tags whose names have this many bytes together.
fn snapshot(tags: usize, name_bytes: usize) -> LeaderboardSnapshot {
    let mut builder = SnapshotBuilder::default();
    for n in 0..tags {
        builder.add(&format!("{n:0name_bytes$}"), None, [1; 4]);
    }
    builder.finish()
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("{what} does not happen"));
}

/// A hundred callers, two computations at most at once in the whole cache, one for each tenant.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_of_a_cold_leaderboard_share_one_computation() {
    let cache = LeaderboardCache::new();
    let (reads, at_once, most) =
        <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let mut callers = JoinSet::new();
    let all_called = Arc::new(AtomicUsize::new(0));
    for n in 0..100 {
        let (cache, reads) = (Arc::clone(&cache), Arc::clone(&reads));
        let (at_once, most, all_called) =
            (Arc::clone(&at_once), Arc::clone(&most), Arc::clone(&all_called));
        callers.spawn(async move {
            let called = Arc::clone(&all_called);
            let read = move |_: &TenantId, _: &StopSignal| {
                reads.fetch_add(1, Ordering::SeqCst);
                most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // Every caller comes while the first computation runs.
                let began = Instant::now();
                while called.load(Ordering::SeqCst) < 100 && began.elapsed() < SOON {
                    std::thread::yield_now();
                }
                at_once.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, Gone>(snapshot(3, 5))
            };
            all_called.fetch_add(1, Ordering::SeqCst);
            let (found, _) = cache.get(&tenant(&format!("t{}", n % 5)), read).await.unwrap();
            found.leaderboard(Window::All, 10).len()
        });
    }
    assert_eq!(callers.join_all().await, vec![3; 100]);
    assert_eq!(reads.load(Ordering::SeqCst), 5, "one for each tenant");
    assert!(most.load(Ordering::SeqCst) <= READS_MAX);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_computation_ends_soon_after_its_last_caller_has_left() {
    let cache = LeaderboardCache::new();
    let (began, stopped) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
    let call = || {
        let (cache, began, stopped) =
            (Arc::clone(&cache), Arc::clone(&began), Arc::clone(&stopped));
        tokio::spawn(async move {
            let read = move |_: &TenantId, stop: &StopSignal| {
                began.store(true, Ordering::SeqCst);
                while !stop.is_cancelled() {
                    std::thread::yield_now();
                }
                stopped.store(true, Ordering::SeqCst);
                // What was read so far must not become the snapshot.
                Ok::<_, Gone>(snapshot(1, 5))
            };
            cache.get(&tenant("t"), read).await.map(|_| ())
        })
    };
    let callers: Vec<_> = (0..20).map(|_| call()).collect();
    until("the computation", || began.load(Ordering::SeqCst)).await;
    let (last, others) = callers.split_last().unwrap();
    for caller in others {
        caller.abort();
    }
    until("leaving", || others.iter().all(|caller| caller.is_finished())).await;
    assert!(!stopped.load(Ordering::SeqCst), "one caller still waits");
    last.abort();
    until("the stop", || stopped.load(Ordering::SeqCst)).await;
    let read = |_: &TenantId, _: &StopSignal| Ok::<_, Gone>(snapshot(2, 5));
    let (found, _) = cache.get(&tenant("t"), read).await.unwrap();
    assert_eq!(found.leaderboard(Window::All, 10).len(), 2, "the next caller computes again");
}

#[tokio::test]
async fn an_error_is_shared_and_the_last_good_snapshot_answers() {
    let cache = LeaderboardCache::new();
    let fails = |_: &TenantId, _: &StopSignal| Err(Gone);
    let error = cache.get(&tenant("t"), fails).await.map(|_| ()).unwrap_err();
    let source: BoxError = error.into();
    assert_eq!(
        ErrorChain(source.as_ref()).to_string(),
        "popular tags are unavailable: the file is gone"
    );
    cache.get(&tenant("t"), |_, _| Ok::<_, Gone>(snapshot(2, 5))).await.unwrap();
    cache.mark_all_dirty();
    let expired = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
    cache.slots.lock().tenants.get_mut(&tenant("t")).unwrap().read_at = expired;
    let (found, _) = cache.get(&tenant("t"), fails).await.unwrap();
    assert_eq!(found.leaderboard(Window::All, 10).len(), 2);
}

#[tokio::test]
async fn the_cache_is_bounded_in_bytes_and_tenants() {
    let cache = LeaderboardCache::new();
    let one = snapshot(50, 200);
    let bytes = one.bytes();
    assert!(bytes > 50 * 2 * 200, "{bytes}");
    for n in 0..TENANTS_MAX + 20 {
        let read = |_: &TenantId, _: &StopSignal| Ok::<_, Gone>(snapshot(1, 5));
        cache.get(&tenant(&format!("t{n}")), read).await.unwrap();
    }
    let mut slots = SnapshotSlots::default();
    std::mem::swap(&mut slots, &mut cache.slots.lock());
    assert!(slots.tenants.len() <= TENANTS_MAX);
    assert!(slots.tenants.contains_key(&tenant(&format!("t{}", TENANTS_MAX + 19))));
    let big = Arc::new(one);
    for slot in slots.tenants.values_mut() {
        slot.snapshot = Some(Arc::clone(&big));
    }
    let newest = slots.tenants.iter().max_by_key(|(_, s)| s.last_request).unwrap().0.clone();
    slots.evict_beyond(10 * bytes, &newest);
    assert_eq!(slots.tenants.len(), 10);
    assert!(slots.tenants.contains_key(&newest));
    slots.evict_beyond(1, &newest);
    assert!(slots.tenants.contains_key(&newest), "the newest one stays");
}
