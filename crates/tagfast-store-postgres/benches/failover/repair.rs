//! Failovers that lose many contents beside full load, with the repair and without it, and the
//! verdicts about what they lost.
//!
//! Replication stands still while 10,000 contents are tagged; then the callers start, and the
//! primary is killed. Without journal and guard nothing is repaired: what the first acknowledgement
//! of the new epoch takes then is what it takes without a repair, and the callers go on for as long
//! as beside the repair before it, which tells what the repair takes from them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tagfast_resilience::{Clock, SystemClock};
use tagfast_store::failovers::FailoverReport;
use tagfast_store::{Durability, History, Receipt, ReceiptReader, Verdict};
use tagfast_store_postgres::PostgresStore;

use crate::figure::{Figure, median, spread};
use crate::fixture::{Fixture, FrozenSenders, closed_report, epoch_of};
use crate::load::{Acknowledged, CONTENTS, Callers, Offered, measure, percentiles, tag_contents};
use crate::{Options, progress};

/// Receipts in one call, the most that the API takes.
const RECEIPTS_MAX: usize = 500;
/// Look-ups of single receipts.
const LOOKUPS: usize = 2_000;
/// Calls with as many receipts as are allowed.
const BATCHES: usize = 40;
/// The rate of writes beside the look-ups.
const BESIDE_RATE: f64 = 4_000.0;
/// How long the callers write before the primary dies.
const BEFORE_KILL: Duration = Duration::from_millis(500);
/// The guard would hold so many writes: here as many as possible are to be lost.
const MAX_LOSS: Duration = Duration::from_secs(60);
const REPAIR_TARGET_S: f64 = 5.0;

/// What one failover took.
struct Failover {
    report: FailoverReport,
    /// From the minting of the epoch to its first acknowledgement, in ms.
    first_ms: f64,
    /// Acknowledged writes beyond the end of their epoch, with the contents that were tagged.
    lost: Vec<Receipt>,
    /// When the callers were answered in the new epoch, in ms since it was minted.
    answered_ms: Vec<i64>,
}

impl Failover {
    /// From the minting of the epoch to the end of its repair.
    fn repair_ms(&self) -> i64 {
        let ended_at = self.report.nodes.iter().filter_map(|node| node.ended_at).max();
        (ended_at.expect("it ended") - self.report.times.minted_at).max(1)
    }

    /// Acknowledged writes a second in the first milliseconds of the epoch.
    fn writes_per_s(&self, first_ms: i64) -> f64 {
        let count = self.answered_ms.iter().filter(|at| **at <= first_ms).count();
        count as f64 * 1000.0 / first_ms as f64
    }
}

/// Whether a failover lost a write, repaired or not.
pub(crate) fn is_lost(store: &PostgresStore, receipt: &Receipt) -> bool {
    let end = store.epoch_end(receipt.shard, receipt.position.epoch).unwrap_or(0);
    receipt.position.lsn > end
}

/// What became of writes, in counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fates {
    kept: usize,
    repaired: usize,
    lost: usize,
    unknown: usize,
}

impl Fates {
    /// Asks for the verdicts.
    pub(crate) async fn of(store: &PostgresStore, receipts: &[Receipt]) -> Self {
        let mut fates = Self::default();
        for receipts in receipts.chunks(RECEIPTS_MAX) {
            for verdict in store.verdicts(receipts).await {
                match verdict.expect("a verdict") {
                    Verdict::Kept => fates.kept += 1,
                    Verdict::Repaired { .. } => fates.repaired += 1,
                    Verdict::Lost(_) => fates.lost += 1,
                    Verdict::Unknown(_) => fates.unknown += 1,
                }
            }
        }
        fates
    }

    /// The share that is there, in percent; 100 of none.
    fn there_percent(self) -> f64 {
        let there = self.kept + self.repaired;
        let all = there + self.lost + self.unknown;
        if all == 0 { 100.0 } else { there as f64 * 100.0 / all as f64 }
    }
}

impl fmt::Display for Fates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kept, repaired, lost, unknown } = self;
        write!(f, "{repaired} repaired, {kept} kept, {lost} listed as lost, {unknown} unknown")
    }
}

/// Kills the primary, whose replicas lack so many contents. The callers go on until the repair is
/// closed, and until the epoch is so old.
fn fail_over(
    fixture: &mut Fixture,
    store: &Arc<PostgresStore>,
    run: &str,
    contents: u64,
    epoch_age_ms: i64,
) -> Failover {
    fixture.wait_until_healthy();
    let before = epoch_of(store).expect("an epoch");
    let primary = fixture.primary();
    let senders = FrozenSenders::of(&primary);
    let tagged = fixture.runtime.block_on(tag_contents(store, run, contents));
    let callers = {
        let _runtime = fixture.runtime.enter();
        Callers::start(store)
    };
    fixture.sleep(BEFORE_KILL);
    fixture.kill(&primary);
    senders.kill();
    let (report, acknowledged) = fixture.runtime.block_on(async {
        let report = closed_report(store, before).await;
        let rest_ms = report.times.minted_at + epoch_age_ms - SystemClock.now_ms();
        tokio::time::sleep(Duration::from_millis(u64::try_from(rest_ms).unwrap_or(0))).await;
        (report, callers.finish().await)
    });
    let minted_at = report.times.minted_at;
    let of_epoch = |write: &&Acknowledged| write.receipt.position.epoch == report.epoch;
    let answered = acknowledged.iter().filter(of_epoch);
    let answered_ms: Vec<i64> = answered.map(|write| write.at_ms - minted_at).collect();
    let first_ms = *answered_ms.iter().min().expect("the callers go on") as f64;
    let receipts = tagged.into_iter().chain(acknowledged.iter().map(|write| write.receipt));
    let lost: Vec<Receipt> = receipts.filter(|receipt| is_lost(store, receipt)).collect();
    Failover { report, first_ms, lost, answered_ms }
}

pub(crate) fn figures(fixture: &mut Fixture, options: &Options) -> Vec<Figure> {
    let contents = if options.is_quick { 500 } else { 10_000 };
    let store = fixture.open("repair", MAX_LOSS);
    fixture.runtime.block_on(tag_contents(&store, "content", CONTENTS));
    let (mut with, mut without): (Vec<Failover>, Vec<Failover>) = Default::default();
    for round in 0..options.failovers {
        for is_without in [false, true] {
            progress(&format!(
                "failover {} that loses {contents} contents, {}",
                2 * round + usize::from(is_without) + 1,
                if is_without { "without a repair" } else { "with its repair" }
            ));
            store.set_unguarded(is_without);
            let run = format!("lost-{round}-{is_without}");
            let age_ms = if is_without { with.last().map_or(0, Failover::repair_ms) } else { 0 };
            let failover = fail_over(fixture, &store, &run, contents, age_ms);
            store.set_unguarded(false);
            let repaired = failover.report.counts.repaired;
            match is_without {
                true => assert_eq!(repaired, 0, "{:?}", failover.report),
                false => assert!(repaired >= contents, "{:?}", failover.report),
            }
            if is_without { &mut without } else { &mut with }.push(failover);
        }
    }
    let mut figures = vec![repaired(&with, &without, contents), first_writes(&with, &without)];
    progress("verdicts");
    fixture.wait_until_healthy();
    let lost: Vec<Receipt> = with.iter().flat_map(|failover| failover.lost.clone()).collect();
    let fates = fixture.runtime.block_on(Fates::of(&store, &lost));
    figures.push(
        Figure::new(
            "writes beyond the end of their epoch that came back",
            fates.there_percent(),
            "%",
        )
        .beside(fates.to_string())
        .at_least(99.9, "%"),
    );
    figures.extend(verdicts(fixture, &store, &lost));
    fixture.close(store);
    figures
}

/// How long the repairs took, and what the callers could write meanwhile.
fn repaired(with: &[Failover], without: &[Failover], contents: u64) -> Figure {
    let took = |failover: &Failover| {
        let began_at = failover.report.nodes.iter().map(|node| node.began_at).min();
        let began_ms = began_at.expect("a node") - failover.report.times.minted_at;
        (failover.repair_ms() - began_ms) as f64 / 1000.0
    };
    let took: Vec<f64> = with.iter().map(took).collect();
    let ended = median(with.iter().map(|failover| failover.repair_ms() as f64 / 1000.0));
    let beside = median(with.iter().map(|failover| failover.writes_per_s(failover.repair_ms())));
    // The failover after it, in the same span.
    let pairs = with.iter().zip(without);
    let alone = pairs.map(|(with, without)| without.writes_per_s(with.repair_ms()));
    let text = format!(
        "failovers {}; ended {ended:.1} s after the epoch was minted; {beside:.0} writes/s beside \
         it, {:.0} in the same span without",
        spread(took.iter().copied()),
        median(alone)
    );
    Figure::new(format!("repair of {contents} contents beside 256 callers"), median(took), "s")
        .beside(text)
        .at_most(REPAIR_TARGET_S, "s")
}

/// From the epoch to the first acknowledgement.
fn first_writes(with: &[Failover], without: &[Failover]) -> Figure {
    let times = |failovers: &[Failover]| -> Vec<f64> {
        failovers.iter().map(|failover| failover.first_ms).collect()
    };
    let (with, without) = (times(with), times(without));
    let slowest = without.iter().copied().fold(0.0, f64::max);
    let beside = format!(
        "{:.0} ms without a repair, {}; with it {}",
        median(without.iter().copied()),
        spread(without.iter().copied()),
        spread(with.iter().copied())
    );
    let value = median(with);
    Figure::new("from the epoch to its first acknowledgement, a repair pending", value, "ms")
        .beside(beside)
        .target("no wait: within those without", value <= slowest)
}

/// Look-ups of what failovers lost: those that ask the primary.
fn verdicts(fixture: &Fixture, store: &Arc<PostgresStore>, lost: &[Receipt]) -> Vec<Figure> {
    assert!(!lost.is_empty(), "nothing was lost");
    let single = async || {
        let mut took = Vec::with_capacity(LOOKUPS);
        for n in 0..LOOKUPS {
            let began = Instant::now();
            let verdict = store.verdict(&lost[n * 7919 % lost.len()]).await.expect("a verdict");
            took.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
            let is_final = matches!(verdict, Verdict::Kept | Verdict::Repaired { .. });
            assert!(is_final, "{verdict:?}");
        }
        percentiles(took)
    };
    let in_one_call = async || {
        let mut took = Vec::with_capacity(BATCHES);
        for n in 0..BATCHES {
            let receipts = (0..RECEIPTS_MAX).map(|m| lost[(n * 104_729 + m * 7) % lost.len()]);
            let receipts: Vec<Receipt> = receipts.collect();
            let began = Instant::now();
            let verdicts = store.verdicts(&receipts).await;
            took.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
            assert!(verdicts.iter().all(Result::is_ok), "{verdicts:?}");
        }
        percentiles(took)
    };
    let dir = fixture.primary().data_dir;
    let load = Offered { rate: Some(BESIDE_RATE), durability: Durability::Local };
    let (alone, batches, beside) = fixture.runtime.block_on(async {
        let (alone, batches) = (single().await, in_one_call().await);
        let load = measure(store, load, Duration::from_secs(5), &dir);
        let (beside, window) = tokio::join!(single(), load);
        (alone, batches, (beside, window.per_second))
    });
    let (beside, rate) = beside;
    vec![
        Figure::new("verdict about a lost write, p99", alone[1], "ms")
            .latency(alone)
            .at_most(5.0, "ms"),
        Figure::new("the same beside writes, p99", beside[1], "ms")
            .latency(beside)
            .beside(format!("{rate:.0} writes/s")),
        Figure::new(
            format!("{RECEIPTS_MAX} verdicts about lost writes in one call, p99"),
            batches[1],
            "ms",
        )
        .latency(batches)
        .at_most(50.0, "ms"),
    ]
}
