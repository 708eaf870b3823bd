//! Compares the counts with the shards while writes go on.
//!
//! Totals of a running system always differ, so it compares states: at the same version a different
//! tag set is drift. A shard that is ahead is an event in flight: the content is looked at again
//! once the counts have caught up. A state that is ahead is newer than the page. Then the sums are
//! compared with the states they are sums of, from one snapshot.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tagfast_domain::{ContentKey, Document, Tagging, Version};
use tagfast_sharding::{ContentHash, LogicalShard};

use crate::counts::{Files, PAGE, PopularCounts, stored_key, written_at};
use crate::owner::{self, OwnerFile, Replace, State};
use crate::{PopularError, RecountReport};

/// Most rows of a report.
const ROWS: usize = 1000;
/// How long contents in flight may take to arrive.
const CATCH_UP: Duration = Duration::from_secs(10);

fn unavailable(error: impl std::fmt::Display) -> PopularError {
    PopularError::Unavailable(error.to_string())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, PopularError> {
    tokio::task::spawn_blocking(work).await.map_err(unavailable)?.map_err(unavailable)
}

/// How a shard's content compares with the counted state.
enum Compared {
    Same,
    InFlight,
    Drift,
}

#[derive(Default)]
struct Found {
    rows: BTreeMap<(String, String), (i64, i64)>,
    contents: Vec<(ContentKey, Document)>,
    gone: Vec<Vec<u8>>,
}

/// Which contents of a shard are looked at.
#[derive(Default, Clone, Copy)]
struct Look<'a> {
    /// Only those that were in flight, with the shard's version when they were first seen.
    only: Option<&'a HashMap<u64, Version>>,
    /// They have had their time.
    overdue: bool,
}

impl Found {
    fn join(&mut self, other: Self) {
        for (tag, (counted, real)) in other.rows {
            let row = self.rows.entry(tag).or_default();
            row.0 += counted;
            row.1 += real;
        }
        self.contents.extend(other.contents);
        self.gone.extend(other.gone);
    }

    /// Takes note of a content whose counted tags are wrong.
    fn drift(&mut self, tenant: &str, counted: &[Tagging], real: &[Tagging]) {
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
        return Err(PopularError::Unavailable("the counts are being built".to_owned()));
    }
    let mut report = RecountReport { repaired: repair, ..RecountReport::default() };
    let mut found = Found::default();
    for shard in counts.shards() {
        let mut in_flight =
            compare_shard(counts, &files, shard, Look::default(), &mut found, &mut report.contents)
                .await?;
        let deadline = tokio::time::Instant::now() + CATCH_UP;
        let mut rounds = 0;
        while !in_flight.is_empty() {
            wait_for_counts(counts, deadline).await?;
            rounds += 1;
            let (mut again, mut late) = (0, Found::default());
            // What has not arrived although everything committed before was counted is missing, not
            // in flight. Seen twice: an age may be read between a commit and its
            // announcement.
            let look = Look { only: Some(&in_flight), overdue: rounds > 1 };
            in_flight = compare_shard(counts, &files, shard, look, &mut late, &mut again).await?;
            found.join(late);
        }
        progress(report.contents);
    }
    report.drifted_contents = (found.contents.len() + found.gone.len()) as u64;
    if repair {
        repair_states(&files, &found).await?;
    }
    for n in 0..files.all().len() {
        let (all, rows) = (Arc::clone(&files), &mut found.rows);
        let wrong = blocking(move || wrong_sums(&all.all()[n], repair)).await?;
        report.drifted_counts += wrong.len() as u64;
        for ((tenant, window, tag), (counted, real)) in wrong {
            if window == 0 {
                let row = rows.entry((tenant, tag)).or_default();
                row.0 += counted;
                row.1 += real;
            }
        }
    }
    if repair {
        counts.anything_moved();
    }
    report.rows = found
        .rows
        .into_iter()
        .filter(|(_, (a, b))| a != b)
        .take(ROWS)
        .map(|((t, n), (a, b))| (t, n, a, b))
        .collect();
    Ok(report)
}

/// Waits until everything committed by now has been counted.
async fn wait_for_counts(
    counts: &PopularCounts,
    deadline: tokio::time::Instant,
) -> Result<(), PopularError> {
    let target = counts.clock.now_ms();
    while counts.visible.load(Ordering::Acquire) < target {
        if tokio::time::Instant::now() >= deadline {
            return Err(PopularError::Unavailable(
                "the counts do not catch up with the shards".to_owned(),
            ));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Compares a shard, or only some of its contents; returns those in flight.
async fn compare_shard(
    counts: &PopularCounts,
    files: &Arc<Files>,
    shard: LogicalShard,
    look: Look<'_>,
    found: &mut Found,
    contents: &mut u64,
) -> Result<HashMap<u64, Version>, PopularError> {
    let mut seen = HashSet::new();
    let mut in_flight = HashMap::new();
    let mut after = None;
    loop {
        let page =
            counts.scanner.scan(shard, None, after.as_ref(), PAGE).await.map_err(unavailable)?;
        *contents += page.items.len() as u64;
        let items: Vec<_> = page
            .items
            .into_iter()
            .filter(|(key, _)| look.only.is_none_or(|o| o.contains_key(&ContentHash::of(key).0)))
            .collect();
        seen.extend(items.iter().map(|(key, _)| ContentHash::of(key).0));
        let file_of = Arc::clone(files);
        let compared = blocking(move || compare_page(&file_of, shard, items)).await?;
        for (key, doc, version, counted, verdict) in compared {
            let hash = ContentHash::of(&key).0;
            let first_seen = look.only.and_then(|o| o.get(&hash)).copied();
            match verdict {
                // A content that is written all the time is always in flight: what counts is the
                // version seen first.
                Compared::InFlight if first_seen.is_some_and(|first| version >= first) => {}
                Compared::InFlight if look.overdue => {
                    let real: Vec<Tagging> = doc.live().cloned().collect();
                    found.drift(key.tenant.as_str(), &counted, &real);
                    found.contents.push((key, doc));
                }
                Compared::Same => {}
                Compared::InFlight => {
                    in_flight.insert(hash, first_seen.unwrap_or(doc.version));
                }
                Compared::Drift => {
                    let real: Vec<Tagging> = doc.live().cloned().collect();
                    found.drift(key.tenant.as_str(), &counted, &real);
                    found.contents.push((key, doc));
                }
            }
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    if look.only.is_none() {
        let file_of = Arc::clone(files);
        for (k, counted) in blocking(move || without_content(&file_of, shard, &seen)).await? {
            let Ok(key) = ContentKey::from_bytes(&k[1..]) else { continue };
            // Written since its page was read? Then it is there now.
            if !content_exists(counts, &key).await? {
                found.drift(key.tenant.as_str(), &counted, &[]);
                found.gone.push(k);
            }
        }
    }
    Ok(in_flight)
}

/// The counted version and tags beside the shard's.
type ComparedContent = (ContentKey, Document, Version, Vec<Tagging>, Compared);

fn compare_page(
    files: &Files,
    shard: LogicalShard,
    items: Vec<(ContentKey, Document)>,
) -> rusqlite::Result<Vec<ComparedContent>> {
    let Some(file) = files.of_shard(shard) else { return Ok(Vec::new()) };
    file.read(|conn| {
        let mut select = conn.prepare_cached("SELECT ver, state FROM pop_state WHERE k = ?1")?;
        let mut compared = Vec::with_capacity(items.len());
        for (key, doc) in items {
            use rusqlite::OptionalExtension;
            let state = select
                .query_row([stored_key(&key)], |row| {
                    Ok((row.get::<_, i64>(0)?, owner::decode_tags(row.get_ref(1)?.as_blob()?)?))
                })
                .optional()?;
            let (version, counted) = state.unwrap_or((-1, Vec::new()));
            let version = Version::from_packed(version.max(0).unsigned_abs()).unwrap_or_default();
            let live: Vec<&Tagging> = doc.live().collect();
            let same = live.len() == counted.len()
                && live.iter().zip(&counted).all(|(a, b)| owner::same(a, b));
            let verdict = match doc.version.cmp(&version) {
                std::cmp::Ordering::Greater => Compared::InFlight,
                std::cmp::Ordering::Equal if !same => Compared::Drift,
                // Newer than the page: the shard has moved on since.
                std::cmp::Ordering::Equal | std::cmp::Ordering::Less => Compared::Same,
            };
            compared.push((key, doc, version, counted, verdict));
        }
        Ok(compared)
    })
}

/// Live states of a shard that the scan did not see. A content is never removed from a shard.
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
            let tags = owner::decode_tags(row.get_ref(1)?.as_blob()?)?;
            if !tags.is_empty() && !seen.contains(&ContentHash::of_bytes(&k[1..]).0) {
                left.push((k, tags));
            }
        }
        Ok(left)
    })
}

async fn repair_states(files: &Arc<Files>, found: &Found) -> Result<(), PopularError> {
    let mut by_shard: HashMap<LogicalShard, Vec<(ContentKey, Document)>> = HashMap::new();
    for (key, doc) in &found.contents {
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
    for k in &found.gone {
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
            .scan(shard, Some(&key.tenant), after.as_ref(), PAGE)
            .await
            .map_err(unavailable)?;
        if page.items.iter().any(|(k, _)| k == key) {
            return Ok(true);
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(false),
        }
    }
}

type Sums = BTreeMap<(String, i64, String), (i64, i64)>;

/// Sums that differ from the states: (counted, real). With `repair` they are computed anew.
fn wrong_sums(file: &OwnerFile, repair: bool) -> rusqlite::Result<Sums> {
    let compare = |conn: &rusqlite::Connection| -> rusqlite::Result<Sums> {
        let mut sums: Sums =
            owner::expected_counts(conn)?.into_iter().map(|(k, n)| (k, (0, n))).collect();
        let mut select = conn.prepare("SELECT tenant, tag, n0, n1, n2, n3 FROM pop_count")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            for window in 0..4 {
                let key = (row.get(0)?, window as i64, row.get(1)?);
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
            owner::recompute(tx)?;
        }
        Ok(wrong)
    })
}
