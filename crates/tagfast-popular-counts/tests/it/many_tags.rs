//! Tenants with many tags: the list of all of them, and what a cold leaderboard costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tagfast_domain::TenantId;
use tagfast_popular::{PopularTags, Window};

use crate::support::{Counting, PARTITIONS, START, all_tags, event};

/// Longest wait for something that must happen soon.
const SOON: Duration = Duration::from_secs(30);

fn many() -> u64 {
    if cfg!(feature = "full") { 1_000_000 } else { 100_000 }
}

/// Puts this many tags into each file directly, all used once and in every file.
fn plant(counting: &Counting, tenant: &str, tags: u64) {
    for path in counting.databases() {
        let file = rusqlite::Connection::open(path).expect("opens");
        file.busy_timeout(SOON).expect("settable");
        file.execute(
            "WITH RECURSIVE number(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n < ?2)
             INSERT INTO pop_count SELECT ?1, printf('planted-tag-%08d', n), 1, 0, 0, 1, 5,
                                          printf('Planted tag %08d', n) FROM number",
            rusqlite::params![tenant, tags as i64 - 1],
        )
        .expect("planted");
    }
}

/// Resident memory of this process, in bytes: `VmRSS` or `VmHWM`, its maximum.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find(|line| line.starts_with(field)).expect("a line");
    let kib = line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
    kib.expect("a number") * 1024
}

/// A hundred requests for a cold leaderboard cost the memory of one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_requests_for_a_cold_leaderboard_cost_one_computation() {
    let counting = Counting::new().await;
    plant(&counting, "many", many());
    let tenant: TenantId = "many".parse().expect("valid");
    let before = memory("VmRSS");
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..100 {
        let (counts, tenant) = (Arc::clone(&counting.counts), tenant.clone());
        callers.spawn(async move {
            if n % 2 == 0 {
                let ranking = counts.popular(&tenant, Window::All, 20).await.expect("answers");
                return ranking.tags.iter().all(|tag| tag.count == u64::from(PARTITIONS));
            }
            let found = counts.suggest(&tenant, "planted-tag-0000000", 20).await.expect("answers");
            found.tags.len() == 10
        });
    }
    assert!(callers.join_all().await.iter().all(|right| *right));
    let grown = memory("VmHWM").saturating_sub(before);
    assert!(grown < 160 << 20, "{} MiB more", grown >> 20);
}

/// The count of a tag, displays and a page of the list do not need the leaderboard: they are
/// answered while it is computed, and cost what they name.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_page_costs_what_it_names_and_a_computation_ends_with_its_callers() {
    let counting = Counting::new().await;
    plant(&counting, "many", many());
    let tenant: TenantId = "many".parse().expect("valid");
    let done = Arc::new(AtomicBool::new(false));
    let cold = {
        let (counts, tenant, done) =
            (Arc::clone(&counting.counts), tenant.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let ranking = counts.popular(&tenant, Window::All, 5).await;
            done.store(true, Ordering::SeqCst);
            ranking.map(|_| ())
        })
    };
    let page = counting.counts.list(&tenant, None, 50).await.expect("a page");
    assert_eq!(
        (page.tags.len(), page.next.map(|n| n.to_string())),
        (50, Some("planted-tag-00000049".to_owned()))
    );
    let tag = page.tags[7].tag.clone();
    let used = counting.counts.count(&tenant, &tag).await.expect("answers");
    let count = used.tag.expect("counted");
    assert_eq!((count.count, &*count.display), (u64::from(PARTITIONS), "Planted tag 00000007"));
    let shown = counting.counts.displays(&tenant, &[tag]).await.expect("answers");
    assert_eq!(&*shown[0], "Planted tag 00000007");
    assert!(!done.load(Ordering::SeqCst), "reading so many tags takes longer than a page");
    cold.abort();
    // Closing waits for the computation, which no caller wants any more.
    let began = Instant::now();
    tokio::time::timeout(SOON, tagfast_events::Sink::close(&*counting.counts))
        .await
        .expect("it ends")
        .expect("closes");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// Every tag that stays is listed exactly once, whatever is written during the walk; the order is
/// that of canonical names.
#[tokio::test]
async fn a_walk_over_all_tags_is_stable_under_writes() {
    let counting = Counting::new().await;
    let stays: Vec<String> = (0..60).map(|n| format!("stays {n:02} 한글 {}", n % 7)).collect();
    let mut version = 1;
    for (n, tag) in stays.iter().enumerate() {
        let e = event("w", &format!("c{n}"), version, START, &[(tag.as_str(), START)]);
        counting.write(std::slice::from_ref(&e));
        counting.deliver(&[e]).await;
    }
    counting.assert_equals_the_model("w").await;
    let tenant: TenantId = "w".parse().expect("valid");
    let (mut seen, mut after) = (Vec::<String>::new(), None);
    loop {
        let page = counting.counts.list(&tenant, after.as_ref(), 4).await.expect("a page");
        seen.extend(page.tags.iter().map(|t| t.tag.to_string()));
        // Tags come and go before, at and behind the place of the walk.
        version += 1;
        let moving = ["aaa", "stays-30", "zzz"].map(|word| format!("{word}{}", version % 3));
        let tags: Vec<(&str, i64)> = moving.iter().map(|tag| (tag.as_str(), START)).collect();
        let e = event("w", "moving", version, START, &tags[..(version % 4) as usize]);
        counting.write(std::slice::from_ref(&e));
        counting.deliver(&[e]).await;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "in order, none twice: {seen:?}");
    let kept = seen.iter().filter(|tag| tag.contains("한글")).count();
    assert_eq!(kept, stays.len());
    let gone: Vec<_> = (0..60).map(|n| event("w", &format!("c{n}"), 99, START, &[])).collect();
    counting.write(&gone);
    counting.deliver(&gone).await;
    let left = all_tags(&*counting.counts, &tenant, 100).await;
    assert!(left.iter().all(|(tag, _, count)| !tag.contains("한글") && *count > 0), "{left:?}");
    counting.assert_equals_the_model("w").await;
}
