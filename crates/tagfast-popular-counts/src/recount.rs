//! Compares the counts with the shards while writes go on.
//!
//! Totals of a running system always differ, so the recount compares states: a different tag set at
//! the same version is drift. If the shard is ahead, an event is in flight, and the content is
//! compared again after the counts have caught up. If the counted state is ahead, it is newer than
//! the page. Afterwards the sums are compared with the states that they sum up, in one snapshot.
//!
//! How it fails: if the counts do not catch up, the recount ends as unavailable and repairs
//! nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tagfast_domain::{ContentKey, Document, Tagging, Version};
use tagfast_popular::{PopularError, RecountReport, Window};
use tagfast_resilience::task;
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::ScanRequest;

use crate::counts::{PopularCounts, SCAN_PAGE_MAX};
use crate::files::{Files, stored_key, written_at};
use crate::partition_file::{self, PartitionFile, Replace, State};

/// Maximum number of rows in a report.
const REPORT_ROWS_MAX: usize = 1000;
/// How long the counts of a shard may take to catch up.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, PopularError> {
    task::blocking(work)
        .await
        .map_err(PopularError::unavailable)?
        .map_err(PopularError::unavailable)
}

/// How a content of a shard compares with its counted state.
enum Comparison {
    Same,
    /// The shard is ahead.
    InFlight,
    /// Different tags at the same version.
    Drifted,
}

/// Drift that the recount has found.
#[derive(Default)]
struct Drift {
    /// (tenant, tag) -> (counted, true).
    rows: BTreeMap<(String, String), (i64, i64)>,
    /// Contents whose counted state is wrong, with the true document.
    contents: Vec<(ContentKey, Document)>,
    /// Stored keys of counted states without a content.
    gone: Vec<Vec<u8>>,
}

/// Which contents of a shard a scan compares.
#[derive(Default, Clone, Copy)]
struct ShardScan<'a> {
    /// Only contents in flight, with the shard's version when first seen; `None` for all contents.
    only: Option<&'a HashMap<u64, Version>>,
    /// Whether contents in flight have had time to arrive, so that a missing one is drift.
    overdue: bool,
}

impl Drift {
    fn join(&mut self, other: Self) {
        for (tag, (counted, real)) in other.rows {
            let row = self.rows.entry(tag).or_default();
            row.0 += counted;
            row.1 += real;
        }
        self.contents.extend(other.contents);
        self.gone.extend(other.gone);
    }

    /// Adds a content whose counted tags are wrong.
    fn add(&mut self, tenant: &str, counted: &[Tagging], real: &[Tagging]) {
        for (tags, counted) in [(counted, true), (real, false)] {
            for tagging in tags {
                let row = self
                    .rows
                    .entry((tenant.to_owned(), tagging.name.as_str().to_owned()))
                    .or_default();
                if counted {
                    row.0 += 1;
                } else {
                    row.1 += 1;
                }
            }
        }
    }
}

pub(crate) async fn recount(
    counts: &PopularCounts,
    repair: bool,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<RecountReport, PopularError> {
    let _one_at_a_time = counts.recounting.lock().await;
    let files = counts.files();
    if files.all().is_empty() {
        return Err(PopularError::unavailable("the counts are being built"));
    }
    let mut report = RecountReport { repaired: repair, ..RecountReport::default() };
    let mut drift = Drift::default();
    for shard in counts.shards() {
        let mut in_flight = compare_shard(
            counts,
            &files,
            shard,
            ShardScan::default(),
            &mut drift,
            &mut report.contents,
        )
        .await?;
        let deadline = tokio::time::Instant::now() + CATCH_UP_TIMEOUT;
        let mut rounds = 0;
        while !in_flight.is_empty() {
            wait_for_counts(counts, deadline).await?;
            rounds += 1;
            let (mut again, mut late) = (0, Drift::default());
            // A content that has not arrived although every earlier commit is counted is missing,
            // not in flight. It must be seen twice: `visible` may be read between a commit and its
            // event.
            let scan = ShardScan { only: Some(&in_flight), overdue: rounds > 1 };
            in_flight = compare_shard(counts, &files, shard, scan, &mut late, &mut again).await?;
            drift.join(late);
        }
        progress(report.contents);
    }
    report.drifted_contents = (drift.contents.len() + drift.gone.len()) as u64;
    if repair {
        repair_states(&files, &drift).await?;
    }
    for n in 0..files.all().len() {
        let (all, rows) = (Arc::clone(&files), &mut drift.rows);
        let wrong = blocking(move || wrong_sums(&all.all()[n], repair)).await?;
        report.drifted_counts += wrong.len() as u64;
        for ((tenant, window, tag), (counted, real)) in wrong {
            if window == Window::All.index() {
                let row = rows.entry((tenant, tag)).or_default();
                row.0 += counted;
                row.1 += real;
            }
        }
    }
    if repair {
        counts.mark_all_dirty();
    }
    report.rows = drift
        .rows
        .into_iter()
        .filter(|(_, (a, b))| a != b)
        .take(REPORT_ROWS_MAX)
        .map(|((t, n), (a, b))| (t, n, a, b))
        .collect();
    Ok(report)
}

/// Waits until every write committed by now is counted.
async fn wait_for_counts(
    counts: &PopularCounts,
    deadline: tokio::time::Instant,
) -> Result<(), PopularError> {
    let target = counts.clock.now_ms();
    while counts.visible.load(Ordering::Acquire) < target {
        if tokio::time::Instant::now() >= deadline {
            return Err(PopularError::unavailable("the counts do not catch up with the shards"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Compares the contents of a shard; returns those in flight with the shard's version.
async fn compare_shard(
    counts: &PopularCounts,
    files: &Arc<Files>,
    shard: LogicalShard,
    scan: ShardScan<'_>,
    drift: &mut Drift,
    contents: &mut u64,
) -> Result<HashMap<u64, Version>, PopularError> {
    let mut seen = HashSet::new();
    let mut in_flight = HashMap::new();
    let mut after = None;
    loop {
        let page = counts
            .scanner
            .scan(ScanRequest::of_all(shard, after.as_ref(), SCAN_PAGE_MAX))
            .await
            .map_err(PopularError::unavailable)?;
        *contents += page.items.len() as u64;
        let items: Vec<_> = page
            .items
            .into_iter()
            .filter(|(key, _)| scan.only.is_none_or(|o| o.contains_key(&ContentHash::of(key).0)))
            .collect();
        seen.extend(items.iter().map(|(key, _)| ContentHash::of(key).0));
        let file_of = Arc::clone(files);
        let compared = blocking(move || compare_page(&file_of, shard, items)).await?;
        for (key, doc, version, counted, verdict) in compared {
            let hash = ContentHash::of(&key).0;
            let first_seen = scan.only.and_then(|o| o.get(&hash)).copied();
            match verdict {
                // A content that is written all the time is always in flight; it must reach the
                // version seen first.
                Comparison::InFlight if first_seen.is_some_and(|first| version >= first) => {}
                Comparison::InFlight if scan.overdue => {
                    let real: Vec<Tagging> = doc.live().cloned().collect();
                    drift.add(key.tenant.as_str(), &counted, &real);
                    drift.contents.push((key, doc));
                }
                Comparison::Same => {}
                Comparison::InFlight => {
                    in_flight.insert(hash, first_seen.unwrap_or(doc.version));
                }
                Comparison::Drifted => {
                    let real: Vec<Tagging> = doc.live().cloned().collect();
                    drift.add(key.tenant.as_str(), &counted, &real);
                    drift.contents.push((key, doc));
                }
            }
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    if scan.only.is_none() {
        let file_of = Arc::clone(files);
        for (k, counted) in blocking(move || without_content(&file_of, shard, &seen)).await? {
            let Ok(key) = ContentKey::from_bytes(&k[1..]) else { continue };
            // It may have been written since its page was read.
            if !content_exists(counts, &key).await? {
                drift.add(key.tenant.as_str(), &counted, &[]);
                drift.gone.push(k);
            }
        }
    }
    Ok(in_flight)
}

/// Content, true document, counted version, counted tags, comparison.
type CountedContent = (ContentKey, Document, Version, Vec<Tagging>, Comparison);

fn compare_page(
    files: &Files,
    shard: LogicalShard,
    items: Vec<(ContentKey, Document)>,
) -> rusqlite::Result<Vec<CountedContent>> {
    let Some(file) = files.of_shard(shard) else { return Ok(Vec::new()) };
    file.read(|conn| {
        let mut select = conn.prepare_cached("SELECT ver, state FROM pop_state WHERE k = ?1")?;
        let mut compared = Vec::with_capacity(items.len());
        for (key, doc) in items {
            use rusqlite::OptionalExtension;
            let state = select
                .query_row([stored_key(&key)], |row| {
                    Ok((
                        row.get::<_, i64>(0)?,
                        partition_file::decode_tags(row.get_ref(1)?.as_blob()?)?,
                    ))
                })
                .optional()?;
            let (version, counted) = state.unwrap_or((-1, Vec::new()));
            let version = Version::from_packed(version.max(0).unsigned_abs()).unwrap_or_default();
            let live: Vec<&Tagging> = doc.live().collect();
            let same = live.len() == counted.len()
                && live.iter().zip(&counted).all(|(a, b)| partition_file::counts_alike(a, b));
            let verdict = match doc.version.cmp(&version) {
                std::cmp::Ordering::Greater => Comparison::InFlight,
                std::cmp::Ordering::Equal if !same => Comparison::Drifted,
                // The counted state is newer than the page.
                std::cmp::Ordering::Equal | std::cmp::Ordering::Less => Comparison::Same,
            };
            compared.push((key, doc, version, counted, verdict));
        }
        Ok(compared)
    })
}

/// Counted states with tags that the scan of the shard did not see. A shard never removes a
/// content.
fn without_content(
    files: &Files,
    shard: LogicalShard,
    seen: &HashSet<u64>,
) -> rusqlite::Result<Vec<(Vec<u8>, Vec<Tagging>)>> {
    let Some(file) = files.of_shard(shard) else { return Ok(Vec::new()) };
    file.read(|conn| {
        let mut select =
            conn.prepare_cached("SELECT k, state FROM pop_state WHERE k >= ?1 AND k < ?2")?;
        let number = shard.number();
        let mut rows = select.query([[number].as_slice(), [number + 1].as_slice()])?;
        let mut left = Vec::new();
        while let Some(row) = rows.next()? {
            let k: Vec<u8> = row.get(0)?;
            let tags = partition_file::decode_tags(row.get_ref(1)?.as_blob()?)?;
            if !tags.is_empty() && !seen.contains(&ContentHash::of_bytes(&k[1..]).0) {
                left.push((k, tags));
            }
        }
        Ok(left)
    })
}

async fn repair_states(files: &Arc<Files>, drift: &Drift) -> Result<(), PopularError> {
    let mut by_shard: HashMap<LogicalShard, Vec<(ContentKey, Document)>> = HashMap::new();
    for (key, doc) in &drift.contents {
        by_shard.entry(LogicalShard::of(key)).or_default().push((key.clone(), doc.clone()));
    }
    for (shard, items) in by_shard {
        let files = Arc::clone(files);
        blocking(move || {
            let Some(file) = files.of_shard(shard) else { return Ok(()) };
            for (key, doc) in &items {
                let tags: Vec<Tagging> = doc.live().cloned().collect();
                let k = stored_key(key);
                let state = State {
                    k: &k,
                    tenant: &key.tenant,
                    version: doc.version,
                    at: written_at(doc),
                    tags: &tags,
                };
                file.apply(&[state], Replace::IfNotOlder)?;
            }
            Ok(())
        })
        .await?;
    }
    for k in &drift.gone {
        let Some(shard) = k.first().copied().and_then(LogicalShard::from_number) else { continue };
        let (files, k) = (Arc::clone(files), k.clone());
        blocking(move || match files.of_shard(shard) {
            Some(file) => {
                file.write(|tx| tx.execute("DELETE FROM pop_state WHERE k = ?1", [&k]).map(|_| ()))
            }
            None => Ok(()),
        })
        .await?;
    }
    Ok(())
}

async fn content_exists(counts: &PopularCounts, key: &ContentKey) -> Result<bool, PopularError> {
    let mut after = None;
    loop {
        let shard = LogicalShard::of(key);
        let page = counts
            .scanner
            .scan(ScanRequest {
                shard,
                tenant: Some(&key.tenant),
                after: after.as_ref(),
                limit: SCAN_PAGE_MAX,
            })
            .await
            .map_err(PopularError::unavailable)?;
        if page.items.iter().any(|(k, _)| k == key) {
            return Ok(true);
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(false),
        }
    }
}

/// (tenant, window index, tag) -> (counted, true).
type WindowTotals = BTreeMap<(String, usize, String), (i64, i64)>;

/// Sums that differ from their states; with `repair` they are recomputed.
fn wrong_sums(file: &PartitionFile, repair: bool) -> rusqlite::Result<WindowTotals> {
    let compare = |conn: &rusqlite::Connection| -> rusqlite::Result<WindowTotals> {
        let mut sums: WindowTotals =
            partition_file::expected_counts(conn)?.into_iter().map(|(k, n)| (k, (0, n))).collect();
        let mut select = conn.prepare("SELECT tenant, tag, n0, n1, n2, n3 FROM pop_count")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            for window in 0..Window::ALL.len() {
                let key = (row.get(0)?, window, row.get(1)?);
                sums.entry(key).or_default().0 = row.get(2 + window)?;
            }
        }
        sums.retain(|_, (counted, real)| counted != real);
        Ok(sums)
    };
    if !repair {
        return file.read(compare);
    }
    file.write(|tx| {
        let wrong = compare(tx)?;
        if !wrong.is_empty() {
            partition_file::recompute(tx)?;
        }
        Ok(wrong)
    })
}
