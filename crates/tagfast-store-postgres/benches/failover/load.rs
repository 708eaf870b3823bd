//! Callers that write, as fast as they are answered or at a given rate, and what was measured.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tagfast_domain::{ContentKey, Limits, Operation, Tag, UnixMillis, UserId, Write, WriteId};
use tagfast_store::{ClusterReader, Durability, Receipt, TagWriter, WriteRequest};
use tagfast_store_postgres::PostgresStore;
use tokio::task::JoinHandle;

use crate::cpu::{CpuEach, CpuTime};

/// Contents that the callers write.
pub(crate) const CONTENTS: u64 = 20_000;
/// Callers that write as fast as they are answered.
pub(crate) const CALLERS: u64 = 256;
/// Callers that carry a given rate; more wait only when it is too high.
const CALLERS_AT_RATE: u64 = 1024;
/// Before each measurement.
const WARM_UP: Duration = Duration::from_millis(500);
/// Between two looks at the journal and the guard.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// After a refused write.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(20);
/// Contents in one batch of preparations.
const BATCH: u64 = 500;

/// What is offered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offered {
    /// Writes a second; `None`: as many as are answered.
    pub(crate) rate: Option<f64>,
    pub(crate) durability: Durability,
}

impl Offered {
    pub(crate) const ALL: Self = Self { rate: None, durability: Durability::Local };

    /// Half of the writes a second that are carried.
    pub(crate) fn half_of(carried: f64, durability: Durability) -> Self {
        Self { rate: Some((carried / 2.0).round()), durability }
    }
}

/// What was measured in a window.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    pub(crate) per_second: f64,
    pub(crate) cpu: CpuEach,
    /// p50, p99 and p99.9, in milliseconds; at a given rate from the moment the write was due.
    pub(crate) latency_ms: [f64; 3],
    /// The most that the journal held, in bytes.
    pub(crate) journal_bytes: usize,
    /// The share of the time in which the guard was not open.
    pub(crate) guarded: f64,
}

pub(crate) fn key(name: &str, n: u64) -> ContentKey {
    ContentKey::parse("bench", "doc", &format!("{name}-{n}")).expect("a content")
}

/// Adds these tags to a content, or removes them.
pub(crate) fn request(key: ContentKey, tags: &[String], is_removal: bool) -> WriteRequest {
    let tags: Vec<Tag> = tags.iter().map(|tag| Tag::parse(tag).expect("a tag")).collect();
    let names = tags.iter().map(|tag| tag.name.clone()).collect();
    let (add, remove) = if is_removal { (Vec::new(), names) } else { (tags, Vec::new()) };
    let operation = Operation::patch(add, remove, &Limits::default()).expect("a patch");
    let user = UserId::parse("bench").expect("a user");
    let id = WriteId(fastrand::u128(..).to_be_bytes());
    WriteRequest::new(Write { id, key, user, operation, if_match: None })
}

/// A caller's next write. It adds a tag of its own and then removes it, so that each changes its
/// content.
fn next_request(caller: u64, round: u64) -> WriteRequest {
    let n = (caller * 7919 + round / 2 * 104_729) % CONTENTS;
    request(key("content", n), &[format!("own-{caller}")], round % 2 == 1)
}

/// Puts five tags on contents.
pub(crate) async fn tag_contents(store: &PostgresStore, name: &str, contents: u64) -> Vec<Receipt> {
    let tags: Vec<String> = (0..5).map(|n| format!("some-tag-{n}")).collect();
    let mut receipts = Vec::with_capacity(contents as usize);
    for first in (0..contents).step_by(BATCH as usize) {
        let batch =
            (first..contents.min(first + BATCH)).map(|n| request(key(name, n), &tags, false));
        let answers = store.write_many(batch.collect()).await;
        receipts.extend(answers.into_iter().map(|answer| answer.expect("written").receipt));
    }
    receipts
}

/// What the callers of one measurement share.
struct Shared {
    began: Instant,
    /// Writes that were due so far.
    due: AtomicU64,
    done: AtomicU64,
    is_measuring: AtomicBool,
    is_over: AtomicBool,
}

/// One caller, until the measurement is over; returns its latencies in microseconds.
async fn call(
    store: Arc<PostgresStore>,
    shared: Arc<Shared>,
    caller: u64,
    offered: Offered,
) -> Vec<u32> {
    let mut took = Vec::new();
    let mut round = 0;
    // An even number of rounds: tags that were added are removed.
    while !shared.is_over.load(Ordering::Relaxed) || round % 2 == 1 {
        let began = match offered.rate {
            None => Instant::now(),
            Some(rate) => {
                let number = shared.due.fetch_add(1, Ordering::Relaxed) as f64;
                let due = shared.began + Duration::from_secs_f64(number / rate);
                tokio::time::sleep_until(due.into()).await;
                due
            }
        };
        let request = next_request(caller, round);
        let request = WriteRequest { durability: offered.durability, ..request };
        store.write(request).await.expect("written");
        if shared.is_measuring.load(Ordering::Relaxed) {
            took.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
        round += 1;
        shared.done.fetch_add(1, Ordering::Relaxed);
    }
    took
}

/// Measures for a while. `data_dir`: of the primary.
pub(crate) async fn measure(
    store: &Arc<PostgresStore>,
    offered: Offered,
    window: Duration,
    data_dir: &Path,
) -> Window {
    let shared = Arc::new(Shared {
        began: Instant::now(),
        due: AtomicU64::new(0),
        done: AtomicU64::new(0),
        is_measuring: AtomicBool::new(false),
        is_over: AtomicBool::new(false),
    });
    let callers = if offered.rate.is_some() { CALLERS_AT_RATE } else { CALLERS };
    let start = |n| tokio::spawn(call(Arc::clone(store), Arc::clone(&shared), n, offered));
    let tasks: Vec<JoinHandle<Vec<u32>>> = (0..callers).map(start).collect();
    tokio::time::sleep(WARM_UP).await;
    shared.is_measuring.store(true, Ordering::Relaxed);
    let (began, cpu) = (Instant::now(), CpuTime::now(data_dir));
    let before = shared.done.load(Ordering::Relaxed);
    let (mut journal_bytes, mut looks, mut guarded) = (0, 0, 0);
    while began.elapsed() < window {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let clusters = store.clusters();
        journal_bytes = journal_bytes.max(clusters[0].journal.bytes);
        looks += 1;
        guarded += usize::from(clusters[0].guard.state != "open");
    }
    let count = (shared.done.load(Ordering::Relaxed) - before) as f64;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = CpuTime::now(data_dir).each_since(cpu, count);
    shared.is_measuring.store(false, Ordering::Relaxed);
    shared.is_over.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.expect("no panic"));
    }
    let latency_ms = percentiles(took);
    let guarded = guarded as f64 / looks as f64;
    Window { per_second: count / seconds, cpu, latency_ms, journal_bytes, guarded }
}

/// p50, p99 and p99.9 of microseconds, in milliseconds.
pub(crate) fn percentiles(mut took_us: Vec<u32>) -> [f64; 3] {
    took_us.sort_unstable();
    assert!(!took_us.is_empty(), "nothing was measured");
    [500, 990, 999].map(|share| f64::from(took_us[(took_us.len() - 1) * share / 1000]) / 1000.0)
}

/// An acknowledgement that a caller had.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acknowledged {
    pub(crate) receipt: Receipt,
    pub(crate) at: Instant,
    /// The same moment, in Unix ms.
    pub(crate) at_ms: UnixMillis,
}

/// Callers that write through a failover: what is refused they try again.
pub(crate) struct Callers {
    is_over: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Callers {
    /// As many as make full load.
    pub(crate) fn start(store: &Arc<PostgresStore>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let start = |caller| {
            let (store, is_over) = (Arc::clone(store), Arc::clone(&is_over));
            let acknowledged = Arc::clone(&acknowledged);
            tokio::spawn(async move {
                for round in 0.. {
                    let request = next_request(caller, round);
                    let receipt = loop {
                        match store.write(request.clone()).await {
                            Ok(answer) => break answer.receipt,
                            Err(_) if is_over.load(Ordering::Relaxed) => return,
                            Err(_) => tokio::time::sleep(RETRY_AFTER).await,
                        }
                    };
                    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
                    let at_ms = since_1970.map_or(0, |since| since.as_millis() as UnixMillis);
                    let answer = Acknowledged { receipt, at: Instant::now(), at_ms };
                    acknowledged.lock().push(answer);
                    if is_over.load(Ordering::Relaxed) && round % 2 == 1 {
                        return;
                    }
                }
            })
        };
        let tasks = (0..CALLERS).map(start).collect();
        Self { is_over, acknowledged, tasks }
    }

    /// Ends them; returns every acknowledgement.
    pub(crate) async fn finish(self) -> Vec<Acknowledged> {
        self.is_over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("no panic");
        }
        std::mem::take(&mut *self.acknowledged.lock())
    }
}
