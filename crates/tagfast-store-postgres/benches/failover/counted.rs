//! Many acknowledged writes across repeated failovers, each accounted for.
//!
//! Each content has one caller, and each of its writes adds a tag of its own or removes one that an
//! earlier write added: which writes of a content were acknowledged is one number, and what its
//! tags must be follows from it. In the middle of each round the log stands still for a moment and
//! the primary dies, so that some of what was acknowledged is only in the journal; the callers
//! repeat what is refused until it is acknowledged. When the repair is closed and the round's
//! writes are acknowledged, every write whose epoch has ended is looked up by its receipt, and
//! every content is read back, strongly. A write that the contents do not show must be one whose
//! verdict is lost or unknown.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tagfast_domain::ContentKey;
use tagfast_store::failovers::FailoverReport;
use tagfast_store::{Consistency, ReadOptions, Receipt, ReceiptReader, TagReader, TagWriter};
use tagfast_store::{Verdict, View};
use tagfast_store_postgres::PostgresStore;
use tagfast_testkit::stack::Fault;
use tagfast_testkit::wait_for_condition_async;

use crate::figure::Figure;
use crate::fixture::{Fixture, FrozenSenders, closed_report, epoch_of};
use crate::load::{CALLERS, RETRY_AFTER, key, request};
use crate::{Options, progress};

/// The writes of a content that add a tag, each a different one; they come first.
const ADDING_WRITES: u8 = 20;
/// The writes of a content that remove one of these tags, the oldest first.
const REMOVING_WRITES: u8 = 5;
const WRITES_PER_CONTENT: u8 = ADDING_WRITES + REMOVING_WRITES;
/// How long nothing of the log reaches the replicas before the primary dies.
const FROZEN: Duration = Duration::from_millis(300);
/// What the guard allows a failover to lose; it stays open while the log stands still.
const MAX_LOSS: Duration = Duration::from_secs(1);
/// Receipts in one call, the most that the API takes.
const RECEIPTS_PER_CALL: usize = 500;
/// Contents in one call.
const CONTENTS_PER_CALL: usize = 1_000;
/// How long the writes of one round may take.
const ROUND_TIMEOUT: Duration = Duration::from_secs(900);
/// How long a content may not be readable.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Writes that are absent and not listed, named on standard error.
const NAMED_MAX: usize = 20;

/// One write: a content, and which of its writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct CountedWrite {
    content: u32,
    number: u8,
}

/// The tag that a write decides, and whether it removes it.
fn decides(number: u8) -> (u8, bool) {
    match number.checked_sub(ADDING_WRITES) {
        None => (number, false),
        Some(removed) => (removed, true),
    }
}

fn tag(number: u8) -> String {
    format!("tag-{number}")
}

/// Of the acknowledged writes of a content, those whose effect its view does not show. One whose
/// tag a later one decided is in that one.
fn absent(view: &View, acknowledged: u8) -> Vec<u8> {
    let mut last_of_tag = [None; ADDING_WRITES as usize];
    (0..acknowledged).for_each(|number| last_of_tag[decides(number).0 as usize] = Some(number));
    let is_absent = |number: &u8| {
        let (of, is_removal) = decides(*number);
        let name = tag(of);
        view.tags.iter().any(|tagging| tagging.name.as_str() == name) == is_removal
    };
    last_of_tag.into_iter().flatten().filter(is_absent).collect()
}

/// What the callers share.
struct Load {
    store: Arc<PostgresStore>,
    /// How many of each content's writes are acknowledged.
    acknowledged: Vec<AtomicU8>,
    /// Receipts of writes whose epoch had not ended at the last look.
    receipts: Mutex<Vec<(Receipt, CountedWrite)>>,
    /// Writes of this round that no caller has begun.
    left: AtomicI64,
    /// Why the last write that was refused was refused.
    refusal: Mutex<String>,
}

fn content_key(content: u32) -> ContentKey {
    key("counted", u64::from(content))
}

impl Load {
    fn new(store: &Arc<PostgresStore>, writes: u64) -> Self {
        let contents = writes.div_ceil(u64::from(WRITES_PER_CONTENT));
        // As many for each caller.
        let contents = contents.next_multiple_of(CALLERS);
        Self {
            store: Arc::clone(store),
            acknowledged: (0..contents).map(|_| AtomicU8::new(0)).collect(),
            receipts: Mutex::default(),
            left: AtomicI64::new(0),
            refusal: Mutex::default(),
        }
    }

    /// A caller's next write: the first one that is missing, in turns over its contents.
    fn next_of(&self, caller: u64) -> Option<CountedWrite> {
        let own = (caller as usize..self.acknowledged.len()).step_by(CALLERS as usize);
        let writes = own.map(|n| (n, self.acknowledged[n].load(Ordering::Relaxed)));
        let (content, number) = writes.min_by_key(|(_, acknowledged)| *acknowledged)?;
        (number < WRITES_PER_CONTENT).then_some(CountedWrite { content: content as u32, number })
    }

    /// Writes until the round has none left, or its contents have all of theirs.
    async fn call(self: Arc<Self>, caller: u64) {
        while let Some(write) = self.next_of(caller) {
            if self.left.fetch_sub(1, Ordering::Relaxed) <= 0 {
                return;
            }
            let (of, is_removal) = decides(write.number);
            let request = request(content_key(write.content), &[tag(of)], is_removal);
            let receipt = loop {
                match self.store.write(request.clone()).await {
                    Ok(answer) => break answer.receipt,
                    Err(error) => *self.refusal.lock() = error.to_string(),
                }
                tokio::time::sleep(RETRY_AFTER).await;
            };
            self.receipts.lock().push((receipt, write));
            self.acknowledged[write.content as usize].store(write.number + 1, Ordering::Relaxed);
        }
    }

    /// Acknowledged writes so far.
    fn count(&self) -> u64 {
        self.acknowledged.iter().map(|n| u64::from(n.load(Ordering::Relaxed))).sum()
    }

    /// Waits until so many are acknowledged.
    async fn wait_for(&self, count: u64) {
        wait_for_condition_async("the writes of a round", ROUND_TIMEOUT, || async {
            match self.count() {
                now if now >= count => Ok(()),
                now => Err(format!("{now} of {count}; refused: {}", self.refusal.lock())),
            }
        })
        .await;
    }
}

/// What became of the writes.
#[derive(Default)]
struct Account {
    repaired: u64,
    /// Those whose verdict is lost or unknown.
    listed: HashSet<CountedWrite>,
    absent: HashSet<CountedWrite>,
}

impl Account {
    /// Asks for the verdicts of writes.
    async fn look_up(&mut self, store: &PostgresStore, writes: &[(Receipt, CountedWrite)]) {
        for writes in writes.chunks(RECEIPTS_PER_CALL) {
            let receipts: Vec<Receipt> = writes.iter().map(|(receipt, _)| *receipt).collect();
            let verdicts = store.verdicts(&receipts).await;
            for ((_, write), verdict) in writes.iter().zip(verdicts) {
                match verdict.expect("a verdict") {
                    Verdict::Kept => {}
                    Verdict::Repaired { .. } => self.repaired += 1,
                    Verdict::Lost(_) | Verdict::Unknown(_) => {
                        self.listed.insert(*write);
                    }
                }
            }
        }
    }

    /// Reads every content.
    async fn read_back(&mut self, load: &Load) {
        let contents: Vec<u32> = (0..load.acknowledged.len() as u32).collect();
        for contents in contents.chunks(CONTENTS_PER_CALL) {
            let views = views(&load.store, contents).await;
            for (content, view) in contents.iter().zip(views) {
                let acknowledged = load.acknowledged[*content as usize].load(Ordering::Relaxed);
                let writes = absent(&view, acknowledged).into_iter();
                self.absent.extend(writes.map(|number| CountedWrite { content: *content, number }));
            }
        }
    }

    /// Those that nothing accounts for.
    fn unlisted(&self) -> Vec<CountedWrite> {
        self.absent.difference(&self.listed).copied().collect()
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let absent = self.absent.intersection(&self.listed).count();
        let Self { repaired, listed, .. } = self;
        write!(f, "{repaired} repaired, {} listed as lost or unknown, {absent} of ", listed.len())?;
        write!(f, "these absent")
    }
}

/// The views of contents, as the primary has them.
async fn views(store: &PostgresStore, contents: &[u32]) -> Vec<View> {
    let keys: Vec<ContentKey> = contents.iter().map(|content| content_key(*content)).collect();
    let options = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    wait_for_condition_async("contents to be read", READ_TIMEOUT, || async {
        store.view_many(&keys, &options).await.into_iter().collect::<Result<Vec<View>, _>>()
    })
    .await
}

/// Kills the primary in the middle of so many writes, and waits until they are acknowledged and the
/// repair is closed. Every second time its Patroni dies with it, as when a machine does.
fn fail_over(fixture: &mut Fixture, load: &Arc<Load>, round: u64, writes: u64) -> FailoverReport {
    fixture.wait_until_healthy();
    let before = epoch_of(&load.store).expect("an epoch");
    let primary = fixture.primary();
    let fault = if round.is_multiple_of(2) { Fault::Kill } else { Fault::KillNode };
    let (done, tasks) = {
        let _runtime = fixture.runtime.enter();
        let done = load.count();
        load.left.store(writes as i64, Ordering::Relaxed);
        let start = |caller| tokio::spawn(Arc::clone(load).call(caller));
        (done, (0..CALLERS).map(start).collect::<Vec<_>>())
    };
    fixture.runtime.block_on(load.wait_for(done + writes / 2));
    let senders = FrozenSenders::of(&primary);
    fixture.sleep(FROZEN);
    fixture.stack.fault(fault, &primary.name).expect("it is killed");
    senders.kill();
    let report = fixture.runtime.block_on(closed_report(&load.store, before));
    if fault == Fault::KillNode {
        fixture.stack.fault(Fault::Restart, &primary.name).expect("it starts again");
    }
    fixture.runtime.block_on(async {
        load.wait_for(done + writes).await;
        for task in tasks {
            task.await.expect("no panic");
        }
    });
    report
}

pub(crate) fn figures(fixture: &mut Fixture, options: &Options) -> Vec<Figure> {
    let (writes, failovers) = (options.writes, options.failovers as u64);
    let store = fixture.open("counted", MAX_LOSS);
    let load = Arc::new(Load::new(&store, writes));
    let mut account = Account::default();
    // What was never written is found to be absent: the account can fail.
    let empty = fixture.runtime.block_on(views(&store, &[0]));
    assert_eq!(absent(&empty[0], 3), [0, 1, 2]);
    let mut took = Duration::ZERO;
    for round in 0..failovers {
        let of_round = writes * (round + 1) / failovers - writes * round / failovers;
        progress(&format!(
            "failover {} of {failovers}; {} of {writes} writes are acknowledged, {account}",
            round + 1,
            load.count()
        ));
        let began = Instant::now();
        let report = fail_over(fixture, &load, round, of_round);
        took += began.elapsed();
        fixture.wait_until_healthy();
        // A verdict is final when the write's epoch has ended.
        let mut receipts = std::mem::take(&mut *load.receipts.lock());
        let is_of_epoch =
            |(receipt, _): &(Receipt, CountedWrite)| receipt.position.epoch == report.epoch;
        let current: Vec<_> = receipts.extract_if(.., |write| is_of_epoch(write)).collect();
        fixture.runtime.block_on(async {
            account.look_up(&store, &receipts).await;
            account.read_back(&load).await;
        });
        *load.receipts.lock() = current;
    }
    let last = std::mem::take(&mut *load.receipts.lock());
    fixture.runtime.block_on(account.look_up(&store, &last));
    fixture.close(store);
    let unlisted = account.unlisted();
    for write in unlisted.iter().take(NAMED_MAX) {
        progress(&format!("absent and not listed: {write:?}"));
    }
    let per_second = load.count() as f64 / took.as_secs_f64();
    let what = format!(
        "acknowledged writes absent and not listed, of {} across {failovers} failovers",
        load.count()
    );
    vec![
        Figure::new(what, unlisted.len() as f64, "")
            .beside(format!("{account}; {per_second:.0} writes/s, the failovers included"))
            .target("0", unlisted.is_empty()),
    ]
}
