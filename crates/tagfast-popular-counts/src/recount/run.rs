//! Walks the shards beside the counted states while writes go on.
//!
//! Totals of a running system always differ, so the recount compares states, page by page
//! ([`page`](crate::recount::page)). What a page leaves open is looked at again, up to two times,
//! after the counts have caught up: all shards wait together, because a wait takes as long as
//! heartbeats take on their way. Afterwards the sums are compared with the states
//! ([`sums`](crate::recount::sums)).
//!
//! Memory: pages of some shards at a time, and up to [`UNSETTLED_MAX`] keys. A recount that is
//! dropped ends with the page at hand; each page is repaired in one transaction.
//!
//! How it fails: if the counts do not catch up, the recount ends as unavailable; what it repaired
//! by then is right.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tagfast_domain::ContentKey;
use tagfast_popular::{PopularError, RecountProgress, RecountReport};
use tagfast_resilience::task;
use tagfast_sharding::LogicalShard;
use tagfast_store::ScanRequest;
use tokio::time::Instant;

use crate::counts::PopularCounts;
use crate::files::Files;
use crate::recount::page::{PageComparison, PageDrift, Pass, Range, Unsettled};
use crate::recount::sums::{DriftRows, compare_sums};

/// Contents on a page.
const PAGE_CONTENTS_MAX: usize = 500;
/// Shards that are compared at a time: one is read from its store while others are compared. More
/// take memory and no less time.
const SHARDS_AT_A_TIME: usize = 4;
/// Keys to look at again; with more, they are looked at before the walk goes on.
const UNSETTLED_MAX: usize = 100_000;
/// How long the counts may take to catch up.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at how far the counts are.
const CATCH_UP_POLL_INTERVAL: Duration = Duration::from_millis(20);

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, PopularError> {
    task::blocking(work)
        .await
        .map_err(PopularError::unavailable)?
        .map_err(PopularError::unavailable)
}

/// What has been found so far.
#[derive(Default)]
struct Found {
    /// Contents compared.
    contents: u64,
    drifted_contents: u64,
    rows: DriftRows,
    /// Pages with contents to look at again.
    unsettled: Vec<(Range, Unsettled)>,
    /// The keys of these contents.
    unsettled_keys: usize,
}

impl Found {
    /// Notes contents to look at again.
    fn add_unsettled(&mut self, range: Range, keys: Unsettled) {
        if !keys.is_empty() {
            self.unsettled_keys += keys.len();
            self.unsettled.push((range, keys));
        }
    }

    /// Takes what must be looked at before the walk goes on.
    fn take_if_many(&mut self) -> Vec<(Range, Unsettled)> {
        if self.unsettled_keys <= UNSETTLED_MAX {
            return Vec::new();
        }
        self.unsettled_keys = 0;
        std::mem::take(&mut self.unsettled)
    }
}

/// One recount.
struct Recount<'a> {
    counts: &'a PopularCounts,
    files: Arc<Files>,
    repair: bool,
    found: Mutex<Found>,
    progress: &'a (dyn Fn(RecountProgress) + Send + Sync),
    total: u64,
}

pub(crate) async fn recount(
    counts: &PopularCounts,
    repair: bool,
    progress: &(dyn Fn(RecountProgress) + Send + Sync),
) -> Result<RecountReport, PopularError> {
    let _one_at_a_time = counts.recounting.lock().await;
    let files = counts.files();
    if files.all().is_empty() {
        return Err(PopularError::unavailable("the counts are being built"));
    }
    let shards = counts.shards();
    let (of_shards, all) = (shards.clone(), Arc::clone(&files));
    let total = blocking(move || counted_contents(&all, &of_shards)).await?;
    progress(RecountProgress { done: 0, total });
    let found = Mutex::default();
    let recount = Recount { counts, files: Arc::clone(&files), repair, found, progress, total };
    let mut walks =
        stream::iter(shards).map(|shard| recount.walk(shard)).buffer_unordered(SHARDS_AT_A_TIME);
    while let Some(walked) = walks.next().await {
        walked?;
    }
    drop(walks);
    let unsettled = std::mem::take(&mut recount.found.lock().unsettled);
    recount.settle(unsettled).await?;
    let Found { contents, drifted_contents, mut rows, .. } = recount.found.into_inner();
    let mut drifted_counts = 0;
    for n in 0..files.all().len() {
        let all = Arc::clone(&files);
        let (wrong, drift) = blocking(move || compare_sums(&all.all()[n], repair)).await?;
        drifted_counts += wrong;
        rows.join(drift);
    }
    if repair {
        counts.mark_all_dirty();
    }
    Ok(RecountReport {
        contents,
        drifted_contents,
        drifted_counts,
        rows: rows.into_report(),
        repaired: repair,
    })
}

/// How many contents of these shards are counted: about as many as there are to compare.
fn counted_contents(files: &Files, shards: &[LogicalShard]) -> rusqlite::Result<u64> {
    let mut total = 0;
    for shard in shards {
        let Some(file) = files.of_shard(*shard) else { continue };
        let count = "SELECT count(*) FROM pop_state WHERE k >= ?1 AND k < ?2";
        let bounds = [vec![shard.number()], vec![shard.number() + 1]];
        let rows = file.read(|conn| conn.query_row(count, bounds, |row| row.get::<_, i64>(0)))?;
        total += rows.unsigned_abs();
    }
    Ok(total)
}

impl Recount<'_> {
    /// Compares all contents of a shard.
    async fn walk(&self, shard: LogicalShard) -> Result<(), PopularError> {
        let mut after = None;
        loop {
            let page = self.counts.scanner.scan(ScanRequest::of_all(
                shard,
                after.as_ref(),
                PAGE_CONTENTS_MAX,
            ));
            let page = page.await.map_err(PopularError::unavailable)?;
            let contents = page.items.len() as u64;
            let range = Range { shard, after, through: page.next.clone() };
            let (items, only) = (page.items, Unsettled::new());
            let comparison = PageComparison {
                range: range.clone(),
                items,
                pass: Pass::First,
                only,
                repair: self.repair,
            };
            let PageDrift { contents: drifted, rows, unsettled } = self.compare(comparison).await?;
            let (many, done) = {
                let mut found = self.found.lock();
                found.contents += contents;
                found.drifted_contents += drifted;
                found.rows.join(rows);
                found.add_unsettled(range, unsettled);
                (found.take_if_many(), found.contents)
            };
            (self.progress)(RecountProgress { done, total: self.total.max(done) });
            self.settle(many).await?;
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    async fn compare(&self, comparison: PageComparison) -> Result<PageDrift, PopularError> {
        let files = Arc::clone(&self.files);
        blocking(move || comparison.compare(&files)).await
    }

    /// Compares contents again that were unsettled.
    async fn settle(&self, mut unsettled: Vec<(Range, Unsettled)>) -> Result<(), PopularError> {
        for pass in [Pass::Again, Pass::Last] {
            if unsettled.is_empty() {
                return Ok(());
            }
            self.wait_for_counts().await?;
            let mut left = Vec::new();
            for (range, only) in unsettled {
                self.compare_again(range, pass, only, &mut left).await?;
            }
            unsettled = left;
        }
        Ok(())
    }

    /// Compares a range again, which may have become longer than a page.
    async fn compare_again(
        &self,
        range: Range,
        pass: Pass,
        only: Unsettled,
        left: &mut Vec<(Range, Unsettled)>,
    ) -> Result<(), PopularError> {
        let (shard, mut after) = (range.shard, range.after.clone());
        loop {
            let request = ScanRequest::of_all(shard, after.as_ref(), PAGE_CONTENTS_MAX);
            let scanned = self.counts.scanner.scan(request).await;
            let mut page = scanned.map_err(PopularError::unavailable)?;
            let through = earlier(page.next, range.through.clone());
            let is_last = through == range.through;
            if let Some(through) = &through {
                let end = through.to_bytes();
                page.items.retain(|(key, _)| key.to_bytes() <= end);
            }
            let range = Range { shard, after, through: through.clone() };
            let (items, only) = (page.items, only.clone());
            let repair = self.repair;
            let comparison = PageComparison { range: range.clone(), items, pass, only, repair };
            let PageDrift { contents, rows, unsettled } = self.compare(comparison).await?;
            {
                let mut found = self.found.lock();
                found.drifted_contents += contents;
                found.rows.join(rows);
            }
            if !unsettled.is_empty() {
                left.push((range, unsettled));
            }
            if is_last {
                return Ok(());
            }
            after = through;
        }
    }

    /// Waits until every write committed by now is counted.
    async fn wait_for_counts(&self) -> Result<(), PopularError> {
        let counts = self.counts;
        let (target, deadline) = (counts.clock.now_ms(), Instant::now() + CATCH_UP_TIMEOUT);
        while counts.visible.load(Ordering::Acquire) < target {
            if Instant::now() >= deadline {
                let why = "the counts do not catch up with the shards";
                return Err(PopularError::unavailable(why));
            }
            tokio::time::sleep(CATCH_UP_POLL_INTERVAL).await;
        }
        Ok(())
    }
}

/// The end of a page that comes first; `None`: the end of the shard.
fn earlier(a: Option<ContentKey>, b: Option<ContentKey>) -> Option<ContentKey> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if a.to_bytes() <= b.to_bytes() { a } else { b }),
        (one, other) => one.or(other),
    }
}
